package devsw

import (
	"os"
	"path/filepath"
	"testing"

	"vdev/internal/sys"
)

// TestMoveAnswersEFAULTAndHowFarItGot: what lies before the hole was moved, in either direction.
func TestMoveAnswersEFAULTAndHowFarItGot(t *testing.T) {
	gone := vanished(t)
	for _, rw := range []UioRw{UIORead, UIOWrite} {
		p, there := []byte("0123456789"), []byte("abcdef")
		u := NewUio(rw, there[:4], there[4:], gone[:100])
		n, e := u.Move(p)
		if n != 6 || e != EFAULT || u.Resid != 100 || u.Offset != 6 {
			t.Errorf("%v: %d bytes, %v, %d are left", rw, n, e, u.Resid)
		}
		if want := map[UioRw]string{UIORead: "012345", UIOWrite: "abcdef"}[rw]; string(p[:6]) != want || string(there) != want {
			t.Errorf("%v: moved %q and %q", rw, p, there)
		}
	}
	if n, e := Kcopy(make([]byte, 10), gone); n != 0 || e != EFAULT {
		t.Errorf("a copy: %d bytes, %v", n, e)
	}
	u := NewUio(UIORead, make([]byte, 4))
	if n, e := u.Move([]byte("012345")); n != 4 || e != 0 {
		t.Errorf("to where is less room: %d bytes, %v", n, e)
	}
}

// vanished returns memory that is not there.
func vanished(t *testing.T) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "gone"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := sys.Mmap(int(f.Fd()), 0, 1<<12, true) // of an empty file
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sys.Munmap(mem) })
	return mem
}

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
