package blk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/nbd"
	"vdev/internal/serve"
	"vdev/internal/spec"
)

// image makes an image of n blocks of 512 bytes.
func image(t *testing.T, n int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, n*512)); err != nil {
		t.Fatal(err)
	}
	return name
}

// parts are a serve.Parts for storage alone.
func parts(w io.Writer) serve.Parts {
	to := func(name string) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)).With("to", name) }
	return serve.Parts{Table: devsw.NewTable(), Log: serve.Log{Asked: to("asked"), Found: to("found"), Vital: to("vital")}}
}

// TestADiskBelowFaultsKeepsWhatItKnows: what the driver has found out of lost writes is not the
// faults'.
func TestADiskBelowFaultsKeepsWhatItKnows(t *testing.T) {
	driver, err := spec.ParseDriver("fault,lower=vnd,file=" + image(t, 8))
	if err != nil {
		t.Fatal(err)
	}
	d := Disk{Disk: spec.Disk{Driver: driver, BlockSize: 512}}
	s, err := d.openStorage(t.Context(), parts(io.Discard))
	if err != nil {
		t.Fatal(err)
	}
	defer s.detach()
	if s.keeper() == nil {
		t.Error("nobody asks the disk what it knows")
	}
}

// TestEachServerOfAnImageIsCounted though its format is only found out.
func TestEachServerOfAnImageIsCounted(t *testing.T) {
	name := filepath.Join(t.TempDir(), "x.qcow2")
	if err := os.WriteFile(name, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1<<16)...), 0o600); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		driver spec.Driver
		has    bool
	}{
		"raw":     {spec.Driver{Name: "vnd", File: image(t, 1), Detect: true}, false},
		"found":   {spec.Driver{Name: "vnd", File: name, Detect: true}, true},
		"said":    {spec.Driver{Name: "qemu", File: name}, true},
		"missing": {spec.Driver{Name: "vnd", File: name + ".not", Detect: true}, false},
	} {
		checkPrograms(t, what, c.driver, c.has)
	}
}

func checkPrograms(t *testing.T, what string, d spec.Driver, has bool) {
	t.Helper()
	wantLeast, wantMost := 0, 0
	if has {
		wantLeast, wantMost = leastServer, serverTasks
	}
	least, most := Disk{Disk: spec.Disk{Driver: d}}.Programs(t.Context())
	if least != wantLeast || most != wantMost {
		t.Errorf("%s: %d to %d tasks, want %d to %d", what, least, most, wantLeast, wantMost)
	}
}

func TestADiskWhoseStorageDoesNotAnswerCountsAsHavingAServer(t *testing.T) {
	answer, ended := make(chan bool), make(chan struct{})
	over, cancel := context.WithCancel(t.Context())
	cancel()
	least, most := programs(over, func() bool { defer close(ended); return <-answer })
	if least != leastServer || most != serverTasks {
		t.Errorf("%d to %d tasks", least, most)
	}
	answer <- false
	<-ended
}

// TestWhatIsSaidOfADisksServerIsVital: it must get through whatever others say.
func TestWhatIsSaidOfADisksServerIsVital(t *testing.T) {
	var out strings.Builder
	log := parts(&out).Log
	for _, err := range []error{
		nil, errors.New("connection refused"), &nbd.LostError{Writes: 1}, fmt.Errorf("it: %w", &nbd.LostError{Writes: 1, Perhaps: true}),
		&nbd.LostError{Split: true},
	} {
		tellServer(log.Vital, err)
	}
	if n := strings.Count(out.String(), "to=vital"); n != 5 {
		t.Errorf("the log has\n%s", out.String())
	}
}
