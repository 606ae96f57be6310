package vnd

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/disk/disktest"
	"vdev/internal/sys"
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

func TestAFailedFlushStaysFailedUntilTheClose(t *testing.T) {
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
	defer r.close(dev)
	if err := flush(); err != nil {
		t.Errorf("after opening again: %v", err)
	}
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
			dev := r.create(Config{Path: newFile(t, make([]byte, 4096)), Direct: direct})
			m := r.open(dev)
			m.AIO = &disktest.AIO{Fault: func(*devsw.Buf, int64) (int64, devsw.Errno) { return 0, c.e }}
			if b := m.Transfer(devsw.BWrite, c.flags, 0, sys.AlignedBuffer(513, 4096)[1:]); b.Error != c.e {
				t.Errorf("write: %v, want %v", b.Error, c.e)
			}
			if err := r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, rw); err != c.want {
				t.Errorf("direct %v, flush after a write with flags %v failed with %v: %v, want %v", direct, c.flags, c.e, err, c.want)
			}
		}
	}
}

// TestLostWritesAreNotForgotten makes the host lose writes for real: a loop device on a file that has no room takes them
// into the page cache, and cannot write them back.
func TestLostWritesAreNotForgotten(t *testing.T) {
	dir := mountTmpfs(t, 128<<10)
	path := fileIn(t, dir, nil)
	if err := os.Truncate(path, 1<<20); err != nil {
		t.Fatal(err)
	}
	dev := loop(t, path, 512)
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
