package vnd

import (
	"bytes"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/test/disktest"
	"vdev/internal/test/loopfs"
)

// patience tells what hangs from what goes on.
const patience = time.Minute

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

// TestAFrozenFileSystemHoldsUpNoOtherDisk: not by the first write since the open, which has to find
// out what the file system can, nor by a later one; and not by many.
func TestAFrozenFileSystemHoldsUpNoOtherDisk(t *testing.T) {
	for _, fs := range loopfs.Kinds {
		t.Run(fs.Name, func(t *testing.T) {
			m := loopfs.New(t, fs.Name)
			path := fileIn(t, m.Dir, make([]byte, 1<<20))
			for _, mode := range modes {
				for _, what := range []string{"the first write", "a later write", "a stable write"} {
					t.Run(string(mode)+", "+what, func(t *testing.T) {
						r := newRig(t)
						re := newReactor(t, mode)
						t.Cleanup(func() { m.Thaw(t) })
						bad := on(r.open(r.create(Config{Path: path})), re)
						good := on(r.open(r.create(Config{Path: newFile(t, make([]byte, 1<<20))})), re)
						exchange(t, good)
						if what != "the first write" {
							exchange(t, bad)
						}
						m.Freeze(t)
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
						m.Thaw(t)
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
