package vnd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
	"vdev/internal/test/hangfs"
	"vdev/internal/test/loopfs"
)

// truncate takes the memory of a memfd away.
func truncate(fd *sys.FD) error { return os.Truncate(fmt.Sprintf("/proc/self/fd/%d", fd.Int()), 0) }

func TestAFlushBeginsAfterItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var (
			mu      sync.Mutex
			begun   []time.Time
			running bool
		)
		s := &syncer{}
		s.sync = func() devsw.Errno {
			mu.Lock()
			if running {
				t.Error("two at a time")
			}
			running = true
			begun = append(begun, time.Now())
			mu.Unlock()
			time.Sleep(10 * time.Millisecond)
			mu.Lock()
			running = false
			mu.Unlock()
			return 0
		}
		start := time.Now()
		var wg sync.WaitGroup
		// One begins at 0; those that come while it runs share the next one, at 10.
		for _, at := range []time.Duration{0, 1, 5, 9, 100} {
			wg.Go(func() {
				time.Sleep(at * time.Millisecond)
				asked := time.Now()
				if e := s.flush(); e != 0 {
					t.Error(e)
				}
				mu.Lock()
				defer mu.Unlock()
				if !slices.ContainsFunc(begun, func(b time.Time) bool {
					return !b.Before(asked) && time.Since(b) == 10*time.Millisecond
				}) {
					t.Errorf("asked at %v and answered at %v, by none of %v", asked.Sub(start), time.Since(start), begun)
				}
			})
		}
		wg.Wait()
		if len(begun) != 3 {
			t.Errorf("%d times for five flushes, want 3", len(begun))
		}
	})
}

func TestAFailedFlushStaysFailed(t *testing.T) {
	path := newFile(t, make([]byte, 4096))
	r := newRig(t)
	dev := r.create(Config{Path: path})
	if err := r.tryOpen(dev); err != nil {
		t.Fatal(err)
	}
	flush := func() error { return r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw) }
	if err := flush(); err != nil {
		t.Fatal(err)
	}
	im := r.image(dev)
	answers := []devsw.Errno{devsw.ECANCELED, 0, devsw.ENOSPC, 0, devsw.EIO}
	im.syncer.sync = func() (e devsw.Errno) {
		e, answers = answers[0], answers[1:]
		return e
	}
	for i, want := range []error{devsw.ECANCELED, nil, devsw.ENOSPC, devsw.ENOSPC, devsw.ENOSPC} {
		if err := flush(); err != want {
			t.Errorf("flush %d: %v, want %v", i, err, want)
		}
	}
	if len(answers) != 2 {
		t.Errorf("the host was asked again: %d answers are left", len(answers))
	}
	r.close(dev)
	if err := r.tryOpen(dev); err != nil {
		t.Fatal(err)
	}
	defer func() { r.close(dev) }()
	if err := flush(); err != devsw.ENOSPC {
		t.Errorf("after opening again: %v", err)
	}
	// Another image.
	r.close(dev)
	if s := r.d.State(0); s.FlushError != devsw.ENOSPC {
		t.Errorf("closed: %+v", s)
	}
	if err := os.WriteFile(path+".new", make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	if _, err := r.d.Info(0); err != nil {
		t.Fatal(err)
	}
	if s := r.d.State(0); s.FlushError != 0 {
		t.Errorf("looked at again: %+v", s)
	}
	if err := r.tryOpen(dev); err != nil {
		t.Fatal(err)
	}
	if err := flush(); err != nil {
		t.Errorf("of another image: %v", err)
	}
	if s := r.d.State(0); s.FlushError != 0 {
		t.Errorf("another image: %+v", s)
	}
}

// TestAFailedFlushOutlivesTheProcess: a driver that knows the same folder fails the flushes of the
// image, by whatever name it comes, until that is forgotten.
func TestAFailedFlushOutlivesTheProcess(t *testing.T) {
	path, dir := newFile(t, make([]byte, 4096)), filepath.Join(t.TempDir(), "state")
	link := path + ".link"
	if err := os.Link(path, link); err != nil {
		t.Fatal(err)
	}
	process := func(path string, fail devsw.Errno, want error) *rig {
		t.Helper()
		r := newRig(t)
		dev := r.create(Config{Path: path, Failures: NewFailures(dir, func(err error) { t.Error(err) })})
		r.open(dev)
		if fail != 0 {
			r.image(dev).syncer.sync = func() devsw.Errno { return fail }
		}
		if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != want {
			t.Errorf("flush of %s: %v, want %v", path, err, want)
		}
		if e := r.d.State(0).FlushError; want != nil && e != want || want == nil && e != 0 {
			t.Errorf("state of %s: %v, want %v", path, e, want)
		}
		return r
	}
	r := process(path, devsw.EIO, devsw.EIO)
	r.close(devsw.Makedev(bmajor, 0))
	r = newRig(t)
	r.create(Config{Path: path, Failures: NewFailures(dir, nil)})
	if e := r.d.State(0).FlushError; e != devsw.EIO {
		t.Errorf("state of a disk that was not opened: %v, want EIO", e)
	}
	r = process(link, 0, devsw.EIO)
	if s, err := r.d.ClearState(0); s.FlushError != devsw.EIO || err != nil {
		t.Errorf("cleared %+v, %v", s, err)
	}
	if s, err := r.d.ClearState(0); s.FlushError != 0 || err != nil {
		t.Errorf("cleared again: %+v, %v", s, err)
	}
	if err := r.table.BdevIoctl(devsw.Makedev(bmajor, 0), devsw.DIOCCACHESYNC, nil, rw); err != nil {
		t.Errorf("then: %v", err)
	}
	r.close(devsw.Makedev(bmajor, 0))
	r = process(path, 0, nil)
	// What a predecessor knew comes by another way as well.
	r.d.SetState(0, devsw.DiskState{FlushError: devsw.ENOSPC})
	if err := r.table.BdevIoctl(devsw.Makedev(bmajor, 0), devsw.DIOCCACHESYNC, nil, rw); err != devsw.ENOSPC {
		t.Errorf("a flush after SetState: %v", err)
	}
	r.close(devsw.Makedev(bmajor, 0))
	// A record that cannot be read is one.
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.WriteFile(files[0], nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r = process(path, 0, devsw.EIO)
	r.close(devsw.Makedev(bmajor, 0))
}

// TestWhatACloseHasLostFailsTheNextFlush: NFS and FUSE write back when a file is closed, and tell
// of a failure then.
func TestWhatACloseHasLostFailsTheNextFlush(t *testing.T) {
	r := newRig(t)
	f, path, _ := hanging(t, hangfs.Config{}, make([]byte, 4096))
	dev := r.create(Config{Path: path})
	r.open(dev)
	f.Fail(hangfs.Flush, syscall.EIO)
	r.close(dev)
	f.Fail(hangfs.Flush, 0)
	if e := r.d.State(0).FlushError; e != devsw.EIO {
		t.Errorf("closed: %v, want EIO", e)
	}
	r.open(dev)
	if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != devsw.EIO {
		t.Errorf("the next flush: %v, want EIO", err)
	}
	if s, err := r.d.ClearState(0); s.FlushError != devsw.EIO || err != nil {
		t.Errorf("cleared %+v, %v", s, err)
	}
	r.close(dev)
}

func TestFlushesThatShareAFailureAllFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &syncer{sync: func() devsw.Errno {
			time.Sleep(time.Second)
			return devsw.EIO
		}}
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * 300 * time.Millisecond)
				if e := s.flush(); e != devsw.EIO {
					t.Errorf("flush %d: %v, want EIO", i, e)
				}
			})
		}
		wg.Wait()
	})
}

func TestAStableWriteThatFailsFailsTheFlush(t *testing.T) {
	for _, c := range []struct {
		flags devsw.BufFlag
		e     devsw.Errno
		want  error
	}{
		{devsw.BMediaFUA, devsw.EIO, devsw.EIO},
		{devsw.BMediaFUA, devsw.ENOSPC, nil},
		{devsw.BMediaFUA, devsw.ECANCELED, nil},
		{0, devsw.EIO, nil},
	} {
		for _, direct := range []bool{false, true} {
			r := newRig(t)
			dir := t.TempDir()
			dev := r.create(Config{Path: newFile(t, make([]byte, 4096)), Direct: direct, Failures: NewFailures(dir, nil)})
			m := r.open(dev)
			m.AIO = &disktest.AIO{Fault: func(*devsw.Buf, int64) (int64, devsw.Errno) { return 0, c.e }}
			if b := m.Transfer(devsw.BWrite, c.flags, 0, sys.AlignedBuffer(513, 4096)[1:]); b.Error != c.e {
				t.Errorf("write: %v, want %v", b.Error, c.e)
			}
			// Who is told of the write finds its record.
			if e := NewFailures(dir, nil).Look(r.image(dev).identity); e != 0 != (c.want != nil) {
				t.Errorf("after a write with flags %v that failed with %v a successor finds %v", c.flags, c.e, e)
			}
			if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != c.want {
				t.Errorf("direct %v, flush after a write with flags %v failed with %v: %v, want %v", direct, c.flags, c.e, err, c.want)
			}
		}
	}
}

// TestLostWritesAreNotForgotten makes the host lose writes for real: a loop device on a file that
// has no room takes them into the page cache, and cannot write them back.
func TestLostWritesAreNotForgotten(t *testing.T) {
	dir := mountTmpfs(t, 128<<10)
	path := fileIn(t, dir, nil)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	dev := loopfs.Loop(t, path, 512)
	r := newRig(t)
	vnd := r.create(Config{Path: dev})
	m := r.open(vnd)
	if b := m.Transfer(devsw.BWrite, 0, 0, bytes.Repeat([]byte{1}, 1<<20)); b.Error != 0 {
		t.Fatalf("write: %v; this is about one that the page cache takes", b.Error)
	}
	first := r.table.BdevIoctl(vnd, devsw.DIOCCACHESYNC, nil, rw)
	if first == nil {
		t.Fatal("the flush of what cannot be written succeeded")
	}
	if err := r.table.BdevIoctl(vnd, devsw.DIOCCACHESYNC, nil, rw); err != first {
		t.Errorf("the next flush: %v, want %v again", err, first)
	}
	// The kernel alone would have said that all is well, which is what this is about.
	if e := sys.Fdatasync(r.image(vnd).fd); e != 0 {
		t.Logf("this kernel remembers: %v", e)
	}
	r.close(vnd)
	if err := r.tryOpen(vnd); err != nil {
		t.Fatal(err)
	}
	if err := r.table.BdevIoctl(vnd, devsw.DIOCCACHESYNC, nil, rw); err != first {
		t.Errorf("opened anew: %v, want %v again", err, first)
	}
	if s, err := r.d.ClearState(0); s.FlushError != first || err != nil {
		t.Errorf("cleared %+v, %v", s, err)
	}
	if err := r.table.BdevIoctl(vnd, devsw.DIOCCACHESYNC, nil, rw); err != nil {
		t.Errorf("cleared: %v", err)
	}
}

// TestFlushedDataIsWithQEMUToo reads back with QEMU what was written and flushed.
func TestFlushedDataIsWithQEMUToo(t *testing.T) {
	qemuIO := tool(t, "qemu-io")
	path := newFile(t, make([]byte, 1<<20))
	r := newRig(t)
	dev := r.create(Config{Path: path})
	m := r.open(dev)
	if b := m.Transfer(devsw.BWrite, 0, 4096, bytes.Repeat([]byte{0xa7}, 8192)); b.Error != 0 {
		t.Fatal(b.Error)
	}
	if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(qemuIO, "-U", "-r", "-f", "raw", "-c", "read -P 0xa7 4096 8192", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "failed") {
		t.Errorf("qemu-io: %v: %s", err, out)
	}
}
