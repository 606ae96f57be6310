//go:build !race

package sys_test

import (
	"testing"

	"vdev/internal/sys"
)

func TestEventfdSignalAndReadDoNotAllocate(t *testing.T) {
	f, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n := testing.AllocsPerRun(100, func() {
		_ = sys.EventfdWrite(f.Int())
		_, _ = sys.EventfdRead(f.Int())
	}); n != 0 {
		t.Errorf("signalling and reading allocates %v times", n)
	}
}
