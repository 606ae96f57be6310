package sys

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestCachedCountsWhatWasRead(t *testing.T) {
	const pages = 8
	size := int64(pages * PageSize())
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := OpenFile(path, OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	for name, count := range map[string]func(int, int64, int64) (int, syscall.Errno){"Cached": Cached, "mincore": mapped} {
		if errno := Fdatasync(fd.Int()); errno != 0 {
			t.Fatal(errno)
		}
		DropCached(fd.Int(), 0, size)
		n, errno := count(fd.Int(), 0, size)
		if errno == syscall.ENODEV || errno == syscall.EOPNOTSUPP {
			t.Skipf("%s does not work on this file system: %v", name, errno)
		}
		if errno != 0 || n == pages {
			// tmpfs has nowhere else to keep them
			t.Logf("%s: %d pages are there after they were dropped (%v)", name, n, errno)
		}
		if _, errno := Preadv(fd.Int(), [][]byte{make([]byte, size)}, 0); errno != 0 {
			t.Fatal(errno)
		}
		if n, errno := count(fd.Int(), 0, size); n != pages || errno != 0 {
			t.Errorf("%s: %d pages (%v), %d were read", name, n, errno, pages)
		}
	}
}

func TestCachedFailsForWhatIsNoFile(t *testing.T) {
	fd, err := NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if _, errno := mapped(fd.Int(), 0, 4096); !errors.Is(errno, syscall.ENODEV) {
		t.Errorf("mincore of an eventfd: %v", errno)
	}
}
