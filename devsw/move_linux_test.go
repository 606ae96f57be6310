package devsw

import (
	"os"
	"path/filepath"
	"testing"

	"vdev/internal/sys"
)

func TestMoveAtAnswersEFAULTForMemoryThatWasTakenAway(t *testing.T) {
	const size = 1 << 16
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	mem, err := sys.Mmap(int(f.Fd()), 0, size, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Munmap(mem)
	p := make([]byte, size)
	for _, op := range []Op{BRead, BWrite} {
		b := &Buf{Op: op, Data: [][]byte{mem}}
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		if err := b.MoveAt(p, 0); err != 0 {
			t.Errorf("%v: MoveAt answers %v while the memory is there", op, err)
		}
		if err := f.Truncate(size / 2); err != nil {
			t.Fatal(err)
		}
		if err := b.MoveAt(p, 0); err != EFAULT {
			t.Errorf("%v: MoveAt answers %v, want EFAULT", op, err)
		}
	}
}
