package reactor

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// slowSubmit is an engine whose next submission waits.
type slowSubmit struct {
	engine
	hold func()
}

func (e *slowSubmit) submit() {
	if hold := e.hold; hold != nil {
		e.hold = nil
		hold()
	}
	e.engine.submit()
}

// readInEngine is a read of f that the engine is to begin.
func readInEngine(r *Reactor, f *os.File, d devsw.AIODone, off int64, n int) (*op, *devsw.Buf) {
	b := &devsw.Buf{Data: [][]byte{make([]byte, n)}, Bcount: int64(n)}
	o := r.newOp(b, d)
	o.fd, o.off, o.data, o.write, o.sync, o.mayBlock, o.forced = int(f.Fd()), off, b.Data, false, false, false, false
	return o, b
}

// TestASubmissionThatStallsHoldsUpNoOther, and the ring's thread hands in what its ring had when it
// is back.
func TestASubmissionThatStallsHoldsUpNoOther(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	slow, d := newResult(), newResult()
	stuck, f := newFile(t, r, slow), newFile(t, r, d)
	want := bytes.Repeat([]byte("0123"), 1024)
	if _, err := stuck.Write(want); err != nil {
		t.Fatal(err)
	}
	held, release := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(release) })
	t.Cleanup(goOn)
	var b *devsw.Buf
	r.Post(func() {
		var o *op
		o, b = readInEngine(r, stuck, slow, 0, len(want))
		o.start()
		if !o.mayWait {
			t.Error("it is begun where nothing waits")
			close(held)
			return
		}
		r.eng = &slowSubmit{r.eng, func() {
			close(held)
			<-release
		}}
	})
	<-held
	for i := range int64(10) {
		put(r, f, d, i*16)
		within(t, "a write beside a submission that stalls", d.ch)
	}
	r.Do(func() {
		if r.of(&op{fd: int(stuck.Fd()), done: slow}).stuck != 1 {
			t.Error("the file is not known to be stuck")
		}
	})
	goOn()
	within(t, "the end of what the ring had that was lost", slow.ch)
	if slow.err != 0 || slow.n != int64(len(want)) || !bytes.Equal(b.Data[0], want) {
		t.Error(slow.n, slow.err)
	}
	r.Do(func() {
		if r.stuck != 0 || r.inEngine != 0 {
			t.Errorf("%d are stuck at the end, and the engine has %d", r.stuck, r.inEngine)
		}
	})
}

// TestFewReadsOfAFileAreBegunOnTheReactor: the disk's queue shall have room for the next one, and
// for the others' that are in the same ring.
func TestFewReadsOfAFileAreBegunOnTheReactor(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	const n = mostBegun + 20
	d := &result{ch: make(chan struct{}, n+1)}
	f := newFile(t, r, d)
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	r.Do(func() {
		here, aside := 0, 0
		for range n {
			o, _ := readInEngine(r, f, d, 0, 4096)
			switch o.start(); {
			case o.mayWait:
				here++
			case o.aside:
				aside++
			}
		}
		if here != mostBegun || aside != n-mostBegun {
			t.Errorf("%d are begun here and %d by a thread of the kernel's, of %d", here, aside, n)
		}
		o, _ := readInEngine(r, f, d, 0, 4096)
		if r.takesInline(o) {
			t.Error("another one is tried in line")
		}
		o.start()
	})
	for range n + 1 {
		within(t, "the end of a read", d.ch)
	}
	r.Do(func() {
		if got := r.of(&op{fd: int(f.Fd()), done: d}).begun; got != 0 {
			t.Errorf("%d are begun at the end", got)
		}
		o, _ := readInEngine(r, f, d, 0, readAhead+1)
		if o.start(); o.mayWait || !o.aside {
			t.Error("one that is longer than what is read ahead is begun here")
		}
	})
	within(t, "the end of a long read", d.ch)
}

// TestAThreadThatCopiesKeepsItsReactor: a call that is long, and waits for nothing, is none that
// stalls.
func TestAThreadThatCopiesKeepsItsReactor(t *testing.T) {
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Skip(err)
	}
	defer zero.Close()
	r := newPool(t, ModeThreads).Pick()
	d := newResult()
	f := newFile(t, r, d)
	mem := make([]byte, 8<<20)
	iov := []sys.Iovec{{Base: &mem[0], Len: uint64(len(mem))}}
	read := func() time.Duration {
		begun := time.Now()
		if _, errno := sys.ReadWaiting(int(zero.Fd()), iov, 0); errno != 0 {
			t.Error(errno)
		}
		return time.Since(begun)
	}
	var took time.Duration
	r.Do(func() {
		// Nothing is written: a disk that is busy might have that wait.
		r.calls.write = func(int, []sys.Iovec, int64) (int, devsw.Errno) {
			took = read()
			return 16, 0
		}
	})
	judged := 0
	for range 100 {
		awaitStandby(r)
		before := r.guard.thread.Load()
		begun := time.Now()
		write(r, f, d, 0)
		<-d.ch
		whole := time.Since(begun)
		after := before
		r.Do(func() { after = r.guard.thread.Load() })
		// Others may have had its processor for longer than the guard has patience, also after the
		// copy.
		if whole > guardPatience*guardTick/2 {
			continue
		}
		if after != before {
			t.Fatalf("it has lost its reactor over a copy of %v", took)
		}
		if took < 4*guardTick {
			if len(iov) < 256 {
				r.Do(func() { iov = append(iov, iov...) })
			}
			continue
		}
		if judged++; judged == 3 {
			return
		}
	}
	t.Skipf("this machine is too fast or too busy: a copy of %d MiB takes %v", 8*len(iov), took)
}

// TestCachedReadsOfTmpfsAreMadeInLine, though it knows no RWF_NOWAIT.
func TestCachedReadsOfTmpfsAreMadeInLine(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		f, err := os.CreateTemp("/dev/shm", "vdev-test")
		if err != nil {
			t.Skipf("there is no tmpfs at /dev/shm: %v", err)
		}
		defer f.Close()
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte("0123"), 1024)
		if _, err := f.Write(want); err != nil {
			t.Fatal(err)
		}
		r := p.Pick()
		awaitStandby(r)
		inLine, refused := 0, false
		r.Do(func() {
			h := hostCalls
			r.calls.readWaiting = func(fd int, v []sys.Iovec, off int64) (int, devsw.Errno) {
				inLine++
				return h.readWaiting(fd, v, off)
			}
			r.calls.read = func(fd int, v []sys.Iovec, off int64) (int, devsw.Errno) {
				n, errno := h.read(fd, v, off)
				refused = refused || errno == devsw.EOPNOTSUPP
				return n, errno
			}
		})
		d := newResult()
		for range 50 {
			b := &devsw.Buf{Data: [][]byte{make([]byte, len(want))}, Bcount: int64(len(want))}
			r.Do(func() { r.ReadAt(b, int(f.Fd()), 0, d) })
			<-d.ch
			if d.err != 0 || !bytes.Equal(b.Data[0], want) {
				t.Fatal(d.n, d.err)
			}
		}
		if !refused {
			t.Skip("this host's tmpfs knows RWF_NOWAIT")
		}
		if inLine == 0 {
			t.Error("none was made in line")
		}
	})
}

// TestManyCancelsSearchOnce: what is cancelled after the first one is found without a look at all
// transfers.
func TestManyCancelsSearchOnce(t *testing.T) {
	const n = 20
	r := newPool(t, ModeThreads).Pick()
	d := &result{ch: make(chan struct{}, n)}
	r.Do(func() {
		// They wait for a thread, and the file has one: see
		// TestCancelTakesBackWhatNoThreadHasBegun.
		w := r.eng.(*threadsEngine).w.local
		w.mu.Lock()
		was := w.running
		w.running, w.lanes[d] = maxWorkers, &lane{busy: 1}
		w.mu.Unlock()
		var bufs []*devsw.Buf
		for range n {
			b := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			r.ReadAt(b, -1, 0, d)
			bufs = append(bufs, b)
		}
		r.Cancel(bufs[0])
		all := r.ops
		r.ops = nil // who looks here finds nothing
		for _, b := range bufs[1:] {
			r.Cancel(b)
		}
		r.ops = all
		if got := len(d.ch); got != n {
			t.Errorf("%d of %d were found", got, n)
			for _, b := range bufs[1:] {
				r.Cancel(b)
			}
		}
		w.mu.Lock()
		w.running = was
		delete(w.lanes, d)
		w.mu.Unlock()
	})
	for range n {
		<-d.ch
	}
}
