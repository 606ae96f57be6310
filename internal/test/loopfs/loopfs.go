// Package loopfs gives tests a file system of their own on a loop device, which can be frozen. It
// is for root.
package loopfs

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

// Kinds are the file systems that can be made: the smallest that each can be, in bytes, what makes
// it, and Debian's package of that.
var Kinds = []struct {
	Name    string
	Size    int64
	Make    []string
	Package string
}{
	{"ext4", 16 << 20, []string{"mkfs.ext4", "-q", "-F"}, "e2fsprogs"},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q"}, "xfsprogs"},
	{"btrfs", 128 << 20, []string{"mkfs.btrfs", "-q"}, "btrfs-progs"},
}

// unmountWait is how long the end of a test waits for files that are still in use.
const unmountWait = 10 * time.Second

// FS is a file system, mounted for the length of a test. Its methods are for the test's goroutine.
type FS struct {
	Dir    string // where it is mounted
	frozen bool
}

// New makes a file system of a kind. It skips the test where that cannot be.
func New(t testing.TB, kind string) *FS {
	t.Helper()
	for _, k := range Kinds {
		if k.Name != kind {
			continue
		}
		path := filepath.Join(t.TempDir(), "image")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, k.Size); err != nil {
			t.Fatal(err)
		}
		prog, err := exec.LookPath(k.Make[0])
		if err != nil {
			t.Skipf("there is no %s (Debian: %s)", k.Make[0], k.Package)
		}
		dev := Loop(t, path, 512)
		if out, err := exec.Command(prog, append(k.Make[1:], dev)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", prog, err, out)
		}
		fs := &FS{Dir: t.TempDir()}
		err = sys.Mount(dev, fs.Dir, kind)
		if errors.Is(err, syscall.ENODEV) {
			t.Skipf("this host knows no %s", kind)
		}
		if err != nil {
			t.Fatalf("mounting %s: %v", kind, err)
		}
		t.Cleanup(func() {
			fs.Thaw(t)
			// The kernel may still be closing files of a process that has ended (io_uring does).
			for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				err := sys.Unmount(fs.Dir)
				if err == nil {
					return
				}
				if !errors.Is(err, syscall.EBUSY) || time.Since(begun) > unmountWait {
					t.Errorf("unmounting %s: %v", kind, err)
					return
				}
			}
		})
		return fs
	}
	t.Fatalf("no such file system: %s", kind)
	return nil
}

// Loop makes a loop device of a file, with sectors of this many bytes, and further arguments of
// losetup, for the length of the test. It skips the test where that cannot be.
func Loop(t testing.TB, path string, sector int, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can make a loop device")
	}
	losetup, err := exec.LookPath("losetup")
	if err != nil {
		t.Skip("there is no losetup (Debian: mount)")
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("this host has no loop devices: %v", err)
	}
	args = append(args, "--find", "--show", "--sector-size", strconv.Itoa(sector), path)
	out, err := exec.Command(losetup, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("losetup %v: %v: %s", args, err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command(losetup, "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach %s: %v: %s", dev, err, out)
		}
	})
	return dev
}

// Freeze makes every write to the file system sleep until Thaw.
func (fs *FS) Freeze(t testing.TB) {
	t.Helper()
	fs.set(t, true)
	fs.frozen = true
}

// Thaw ends Freeze. The end of the test does, too.
func (fs *FS) Thaw(t testing.TB) {
	t.Helper()
	if fs.frozen {
		fs.frozen = false
		fs.set(t, false)
	}
}

func (fs *FS) set(t testing.TB, frozen bool) {
	t.Helper()
	fd, err := sys.OpenFile(fs.Dir, sys.OpenFlags{})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if err := fd.Freeze(frozen); err != nil {
		t.Fatalf("%s: %v", fs.Dir, err)
	}
}
