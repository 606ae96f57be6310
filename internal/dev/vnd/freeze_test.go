package vnd

import (
	"bytes"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/disk/disktest"
)

// patience tells what hangs from what goes on.
const patience = 20 * time.Second

// The ioctls of fsfreeze(8) (linux/fs.h).
const (
	fiFreeze = 0xc0045877
	fiThaw   = 0xc0045878
)

// mkfs are the file systems that can be frozen, the smallest that each can be, and how they are made.
var mkfs = []struct {
	name string
	size int64
	args []string
	pkg  string
}{
	{"ext4", 16 << 20, []string{"mkfs.ext4", "-q", "-F"}, "e2fsprogs"},
	{"xfs", 320 << 20, []string{"mkfs.xfs", "-q"}, "xfsprogs"},
	{"btrfs", 128 << 20, []string{"mkfs.btrfs", "-q"}, "btrfs-progs"},
}

// mounted is a file system of a test's own.
type mounted struct {
	dir    string
	frozen bool
}

// mountLoop makes a file system on a loop device and mounts it for the length of the test.
func mountLoop(t *testing.T, fs string) *mounted {
	t.Helper()
	needRoot(t, "mount a file system")
	for _, c := range mkfs {
		if c.name != fs {
			continue
		}
		prog, err := exec.LookPath(c.args[0])
		if err != nil {
			t.Skipf("there is no %s (Debian: %s)", c.args[0], c.pkg)
		}
		path := newFile(t, nil)
		if err := os.Truncate(path, c.size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(prog, append(c.args[1:], path)...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", prog, err, out)
		}
		dev := loop(t, path, 512)
		m := &mounted{dir: t.TempDir()}
		if err := syscall.Mount(dev, m.dir, fs, 0, ""); err != nil {
			if err == syscall.ENODEV {
				t.Skipf("this host knows no %s", fs)
			}
			t.Fatalf("mounting %s: %v", fs, err)
		}
		t.Cleanup(func() {
			m.thaw(t)
			if err := syscall.Unmount(m.dir, 0); err != nil {
				t.Errorf("unmounting %s: %v", fs, err)
			}
		})
		return m
	}
	t.Fatalf("no such file system: %s", fs)
	return nil
}

func (m *mounted) ioctl(t *testing.T, req uintptr) {
	t.Helper()
	f, err := os.Open(m.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, e := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), req, 0); e != 0 {
		t.Fatalf("ioctl %#x of %s: %v", req, m.dir, e)
	}
}

// freeze has every write to the file system sleep until thaw.
func (m *mounted) freeze(t *testing.T) {
	t.Helper()
	m.ioctl(t, fiFreeze)
	m.frozen = true
}

func (m *mounted) thaw(t *testing.T) {
	t.Helper()
	if m.frozen {
		m.frozen = false
		m.ioctl(t, fiThaw)
	}
}

// within runs what is to end by itself.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s hangs", what)
	}
}

// TestAFrozenFileSystemHoldsUpNoOtherDisk: not by the first write since the open, which has to find out what the file system can,
// nor by a later one; and not by many.
func TestAFrozenFileSystemHoldsUpNoOtherDisk(t *testing.T) {
	for _, fs := range mkfs {
		t.Run(fs.name, func(t *testing.T) {
			m := mountLoop(t, fs.name)
			path := fileIn(t, m.dir, make([]byte, 1<<20))
			for _, mode := range modes {
				for _, what := range []string{"the first write", "a later write", "a stable write"} {
					t.Run(string(mode)+", "+what, func(t *testing.T) {
						r := newRig(t)
						re := newReactor(t, mode)
						t.Cleanup(func() { m.thaw(t) })
						bad := on(r.open(r.create(Config{Path: path})), re)
						good := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 1<<20))})), re)
						exchange(t, good)
						if what != "the first write" {
							exchange(t, bad)
						}
						m.freeze(t)
						var dones []chan struct{}
						var bufs []*devsw.Buf
						for i := range int64(150) { // more than the threads of a pool
							var flags devsw.BufFlag
							if what == "a stable write" {
								flags = devsw.BMediaFUA
							}
							b, done := bad.Buf(devsw.BWrite, flags, i*4096, numbered(4096, byte(i)))
							re.Post(func() { bad.Table.BdevStrategy(b) })
							bufs, dones = append(bufs, b), append(dones, done)
						}
						within(t, "a disk beside that of a frozen file system", func() {
							for range 20 {
								exchange(t, good)
							}
						})
						select {
						case <-dones[0]:
							t.Error("a write to a frozen file system has ended")
						default:
						}
						m.thaw(t)
						for i, done := range dones {
							<-done
							if b := bufs[i]; b.Error != 0 || b.Resid != 0 {
								t.Errorf("write %d, thawed: %v, resid %d", i, b.Error, b.Resid)
							}
						}
					})
				}
			}
		})
	}
}

// exchange writes a block of a disk and reads it again.
func exchange(t *testing.T, d *disktest.Disk) {
	t.Helper()
	want, got := numbered(4096, 99), make([]byte, 4096)
	if b := d.Transfer(devsw.BWrite, 0, 8192, want); b.Error != 0 {
		t.Errorf("write: %v", b.Error)
	}
	if b := d.Transfer(devsw.BRead, 0, 8192, got); b.Error != 0 || !bytes.Equal(got, want) {
		t.Errorf("read: %v, or other data", b.Error)
	}
}
