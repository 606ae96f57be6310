package sys_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vdev/internal/sys"
)

func openImage(t *testing.T, path string, fl sys.OpenFlags) *sys.FD {
	t.Helper()
	f, err := sys.OpenFile(path, fl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func newImage(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLocksBelongToTheOpenFileAndGoWithIt(t *testing.T) {
	path := newImage(t, nil)
	a := openImage(t, path, sys.OpenFlags{Write: true})
	b := openImage(t, path, sys.OpenFlags{})
	held := func(f *sys.FD, at int64) bool {
		t.Helper()
		held, pid, err := sys.LockHeld(f.Int(), at, 1)
		if err != nil || held && pid != -1 {
			t.Fatalf("byte %d: pid %d, %v", at, pid, err)
		}
		return held
	}
	if err := sys.LockShared(a.Int(), 100, 2); err != nil {
		t.Fatal(err)
	}
	if held(a, 100) {
		t.Error("a lock is in its owner's own way")
	}
	if !held(b, 100) || !held(b, 101) || held(b, 99) || held(b, 102) {
		t.Error("the lock is not on bytes 100 and 101")
	}
	if err := sys.LockShared(b.Int(), 100, 1); err != nil {
		t.Errorf("a second shared lock: %v", err)
	}
	// Another descriptor of the file, closed, takes no lock along; POSIX locks would be gone.
	openImage(t, path, sys.OpenFlags{}).Close()
	if !held(b, 101) {
		t.Error("the lock is gone before its file is closed")
	}
	a.Close()
	if held(b, 101) {
		t.Error("the lock outlives its file")
	}
}

func TestHolesAndZeroesKeepTheSize(t *testing.T) {
	const size = 64 << 10
	data := bytes.Repeat([]byte{1}, size)
	path := newImage(t, data)
	f := openImage(t, path, sys.OpenFlags{Write: true})
	for off, do := range map[int64]func(int, int64, int64) syscall.Errno{4096: sys.PunchHole, 32<<10 + 512: sys.ZeroRange} {
		switch e := do(f.Int(), off, 8192); e {
		case 0:
			clear(data[off : off+8192])
		case syscall.EOPNOTSUPP:
			t.Logf("not on this file system: at %d", off)
		default:
			t.Errorf("at %d: %v", off, e)
		}
	}
	if e := sys.PunchHole(f.Int(), size-512, 4096); e != 0 && e != syscall.EOPNOTSUPP {
		t.Error(e)
	} else if e == 0 {
		clear(data[size-512:])
	}
	if e := sys.Fdatasync(f.Int()); e != 0 {
		t.Error(e)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the file has %d bytes, and not those it should (%v)", len(got), err)
	}
}

func TestStatTellsWhatAFileIs(t *testing.T) {
	path := newImage(t, make([]byte, 1000))
	for p, want := range map[string]string{
		path:               "regular file",
		filepath.Dir(path): "directory",
		"/dev/null":        "character device",
	} {
		st, err := sys.Stat(p)
		if err != nil || st.Type.String() != want {
			t.Errorf("%s: a %v, want a %s (%v)", p, st.Type, want, err)
		}
	}
	st, err := openImage(t, path, sys.OpenFlags{}).Stat()
	if err != nil || st.Type != sys.TypeRegular || st.Size != 1000 || st.BlockSize <= 0 {
		t.Errorf("%+v, %v", st, err)
	}
	if st, err := sys.Stat("/dev/null"); err != nil || st.Major != 1 || st.Minor != 3 {
		t.Errorf("/dev/null: %+v, %v", st, err)
	}
	if _, err := sys.Stat(path + "x"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a missing file: %v, want ENOENT", err)
	}
}

func TestBlockDeviceCallsSayNoToFiles(t *testing.T) {
	fd := openImage(t, newImage(t, nil), sys.OpenFlags{Write: true}).Int()
	_, size := sys.BlockSize64(fd)
	_, sector := sys.BlockSectorSize(fd)
	_, ro := sys.BlockReadOnly(fd)
	for what, err := range map[string]error{
		"size": size, "sector size": sector, "read-only": ro,
		"discard": sys.BlockDiscard(fd, 0, 512), "zero": sys.BlockZeroOut(fd, 0, 512),
	} {
		if !errors.Is(err, syscall.ENOTTY) {
			t.Errorf("%s: %v, want ENOTTY", what, err)
		}
	}
}

func TestAnonymousMemoryIsZeroAgainOnceDiscarded(t *testing.T) {
	page := sys.PageSize()
	b, err := sys.MmapAnon(4 * page)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Munmap(b)
	for i := range b {
		if b[i] != 0 {
			t.Fatalf("byte %d is %d", i, b[i])
		}
		b[i] = 1
	}
	if err := sys.Discard(b[page : 3*page]); err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{1}, 4*page)
	clear(want[page : 3*page])
	if !bytes.Equal(b, want) {
		t.Error("not the two pages in the middle are zero")
	}
}

func TestAlignedBuffersAre(t *testing.T) {
	for _, align := range []int64{1, 2, 512, 4096, 65536} {
		for _, n := range []int{1, 511, 4096} {
			b := sys.AlignedBuffer(n, align)
			if len(b) != n || cap(b) != n || !sys.Aligned(b, align) {
				t.Errorf("%d bytes at %d: %d of %d, aligned %v", n, align, len(b), cap(b), sys.Aligned(b, align))
			}
		}
	}
	if b := sys.AlignedBuffer(8192, 4096); sys.Aligned(b[1:], 2) || sys.Aligned(b[512:], 4096) || !sys.Aligned(b[512:], 512) {
		t.Error("Aligned is wrong about parts of an aligned buffer")
	}
}
