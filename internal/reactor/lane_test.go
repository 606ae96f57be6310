package reactor

import (
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"vdev/devsw"
	"vdev/internal/sys"
)

// laned gives a reactor that has a lane for the file it returns, whatever the file system, and whose lane's writes wait where
// hold says so.
func laned(t *testing.T, hold func(off int64)) (*Reactor, *os.File, *result) {
	r := newPool(t, ModeURing).Pick()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	d := &result{ch: make(chan struct{}, 100)}
	r.Do(func() {
		r.lane, err = newLane(r)
		r.lane.write = func(fd int, iov [][]byte, off int64, dsync bool) (int, syscall.Errno) {
			hold(off)
			return sys.Pwritev(fd, iov, off, dsync)
		}
		r.files = append(r.files, file{done: d, fd: int(f.Fd()), lane: true})
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, f, d
}

func write(r *Reactor, f *os.File, d devsw.AIODone, off int64) *devsw.Buf {
	b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{[]byte("0123456789abcdef")}, Bcount: 16}
	r.Do(func() { r.WriteAt(b, int(f.Fd()), off, d) })
	return b
}

func TestAWriteThatStallsHoldsUpNoOther(t *testing.T) {
	release := make(chan struct{})
	var inLane atomic.Int32
	r, f, d := laned(t, func(off int64) {
		inLane.Add(1)
		if off == 0 {
			<-release
		}
	})
	for i := range 10 {
		write(r, f, d, int64(i)*16)
	}
	for range 9 { // behind the stalled one, yet they end
		<-d.ch
	}
	write(r, f, d, 1600)
	<-d.ch
	if n := inLane.Load(); n != 1 {
		t.Fatalf("%d writes went into the lane behind one that stalls", n)
	}
	close(release)
	<-d.ch
	// The lane is used again.
	for used := false; !used; used = inLane.Load() > 1 {
		write(r, f, d, 3200)
		<-d.ch
	}
	if d.err != 0 || d.n != 16 {
		t.Fatal(d.n, d.err)
	}
}

func TestCancelTakesBackWhatTheLaneHasNotBegun(t *testing.T) {
	release := make(chan struct{})
	begun := make(chan struct{}, 10)
	r, f, d := laned(t, func(int64) {
		begun <- struct{}{}
		<-release
	})
	first := write(r, f, d, 0)
	<-begun
	e := newResult()
	r.Do(func() {
		r.files = append(r.files, file{done: e, fd: int(f.Fd()), lane: true})
		b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 16)}, Bcount: 16}
		r.lane.stuck = false
		r.WriteAt(b, int(f.Fd()), 16, e)
		r.Cancel(b)
		r.Cancel(first) // which cannot be taken back any more, and ends as it will
	})
	<-e.ch
	if e.err != syscall.ECANCELED {
		t.Fatal(e.err)
	}
	close(release)
	<-d.ch
	if d.err != 0 {
		t.Fatal(d.err)
	}
}

func TestTheLaneIsFoundOutByTheFirstWrite(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, errno := sys.PwritevNowait(int(f.Fd()), [][]byte{{1}}, 0)
	d := newResult()
	for i := range 2 * maxFiles {
		write(r, f, d, int64(i)*16)
		<-d.ch
		if d.err != 0 || d.n != 16 {
			t.Fatal(d.n, d.err)
		}
	}
	r.Do(func() {
		if len(r.files) != 1 || r.files[0].lane != (errno == syscall.EOPNOTSUPP) {
			t.Errorf("%+v, and the file system says %v", r.files, errno)
		}
	})
}
