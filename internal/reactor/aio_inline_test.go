package reactor

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// stalling gives a pool's reactor, whose calls that may wait do so where hold says so.
func stalling(t *testing.T, p *Pool, hold func(off int64)) *Reactor {
	r := p.Pick()
	held := func(c call) call {
		return func(fd int, iov []sys.Iovec, off int64) (int, syscall.Errno) {
			hold(off)
			return c(fd, iov, off)
		}
	}
	r.Do(func() {
		h := hostCalls
		r.calls = calls{read: held(h.read), readWaiting: held(h.readWaiting), write: held(h.write)}
	})
	return r
}

// newFile gives an empty file that the reactor takes for one whose writes may wait, when it can
// make the first one in line.
func newFile(t *testing.T, r *Reactor, d devsw.AIODone) *os.File {
	f := tempFile(t)
	r.Do(func() {
		r.of(&op{fd: int(f.Fd()), done: d}).buffered = true
	})
	awaitStandby(r)
	return f
}

// awaitStandby waits for the reactor's standby, wanting it.
func awaitStandby(r *Reactor) {
	for ready := false; !ready; time.Sleep(guardTick) {
		r.Do(func() { ready = r.stoodBy() })
	}
}

func write(r *Reactor, f *os.File, d devsw.AIODone, off int64) *devsw.Buf {
	b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{[]byte("0123456789abcdef")}, Bcount: 16}
	r.Do(func() { r.WriteAt(b, int(f.Fd()), off, d) })
	return b
}

// put starts a write and does not wait until the reactor has taken it.
func put(r *Reactor, f *os.File, d devsw.AIODone, off int64) {
	b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{[]byte("0123456789abcdef")}, Bcount: 16}
	r.Post(func() { r.WriteAt(b, int(f.Fd()), off, d) })
}

// counter is a Source that counts its Polls.
type pollCounter struct{ polls chan struct{} }

func (c *pollCounter) Poll() bool {
	select {
	case c.polls <- struct{}{}:
	default:
	}
	return false
}
func (c *pollCounter) Arm() bool { return false }
func (c *pollCounter) Disarm()   {}
func (c *pollCounter) Flush()    {}

// writer is a Source that makes a write when there is work, of which it is not told by a kick.
type writer struct {
	pollCounter
	work  atomic.Bool
	write func()
}

func (w *writer) Poll() bool {
	w.pollCounter.Poll()
	if !w.work.Swap(false) {
		return false
	}
	w.write()
	return true
}

// TestAWriteThatStallsMayHaveBeenLookedFor: what lost the reactor while it looked for work leaves
// everything to the thread that has it.
func TestAWriteThatStallsMayHaveBeenLookedFor(t *testing.T) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPoolOf(t, Config{Mode: mode, PollMax: time.Minute})
			held, release := make(chan struct{}), make(chan struct{})
			r := stalling(t, p, func(int64) {
				held <- struct{}{}
				<-release
			})
			d := newResult()
			f := newFile(t, r, d)
			b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{[]byte("0123456789abcdef")}, Bcount: 16}
			w := &writer{pollCounter: pollCounter{polls: make(chan struct{}, 1)}, write: func() { r.WriteAt(b, int(f.Fd()), 0, d) }}
			kick, err := sys.NewEventfd()
			if err != nil {
				t.Fatal(err)
			}
			defer kick.Close()
			var s *Source
			r.Do(func() {
				r.pollFor = time.Minute
				s, err = r.Add(w, kick.Int())
			})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Do(func() { r.Remove(s) })
			for range 2 { // it looks
				<-w.polls
			}
			w.work.Store(true)
			<-held
			r.Do(func() {}) // another thread has it
			for range 100 {
				<-w.polls
			}
			close(release)
			<-d.ch
			if d.err != 0 || d.n != 16 {
				t.Error(d.n, d.err)
			}
			r.Do(func() {})
		})
	}
}

func TestAWriteThatStallsHoldsUpNoOther(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		release := make(chan struct{})
		held := make(chan struct{}, 1)
		r := stalling(t, p, func(off int64) {
			if off == 0 {
				held <- struct{}{}
				<-release
			}
		})
		slow, d := &result{ch: make(chan struct{}, 100)}, &result{ch: make(chan struct{}, 100)}
		stuck, f := newFile(t, r, slow), newFile(t, r, d)
		c, kick, remove := countPolls(t, r)
		defer remove()

		for round := range 3 { // it can be taken over more than once
			put(r, stuck, slow, 0)
			<-held
			// The same file's writes, another one's, and a kick, while the first thread is stuck.
			write(r, stuck, slow, 16)
			<-slow.ch
			for i := range 10 {
				write(r, f, d, int64(i+1)*16)
				<-d.ch
			}
			if d.err != 0 || d.n != 16 || slow.err != 0 || slow.n != 16 {
				t.Fatal(d.n, d.err, slow.n, slow.err)
			}
			for len(c.polls) > 0 {
				<-c.polls
			}
			if err := sys.EventfdWrite(kick.Int()); err != nil {
				t.Fatal(err)
			}
			<-c.polls
			select {
			case <-slow.ch:
				t.Fatalf("round %d: a write has ended that is stuck", round)
			default:
			}
			r.Do(func() {
				if r.mayStall(r.of(&op{fd: int(stuck.Fd()), done: slow})) {
					t.Error("a file's writes are made in line while one of them is stuck")
				}
			})
			release <- struct{}{}
			<-slow.ch
			if slow.err != 0 || slow.n != 16 {
				t.Fatal(slow.n, slow.err)
			}
			// Its writes go by the engine for a time, and are then made in line again.
			for again := false; !again; {
				r.Do(func() { r.Now(); again = r.mayStall(r.of(&op{fd: int(stuck.Fd()), done: slow})) })
			}
		}
	})
}

// TestAReadThatStallsHoldsUpNoOther: neither one that may have an access time to write down, nor
// one of a file system that knows no RWF_NOWAIT.
func TestAReadThatStallsHoldsUpNoOther(t *testing.T) {
	for _, waits := range []bool{false, true} {
		t.Run(fmt.Sprintf("waits=%v", waits), func(t *testing.T) {
			modes(t, func(t *testing.T, p *Pool) {
				release, held := make(chan struct{}), make(chan struct{}, 1)
				r := stalling(t, p, func(off int64) {
					if off == 0 {
						held <- struct{}{}
						<-release
					}
				})
				slow, d := newResult(), newResult()
				stuck, f := newFile(t, r, slow), newFile(t, r, d)
				want := bytes.Repeat([]byte("0123"), 1024)
				if _, err := stuck.Write(want); err != nil {
					t.Fatal(err)
				}
				r.Do(func() { r.of(&op{fd: int(stuck.Fd()), done: slow}).waits = waits })
				b := &devsw.Buf{Data: [][]byte{make([]byte, len(want))}, Bcount: int64(len(want))}
				r.Post(func() { r.ReadAt(b, int(stuck.Fd()), 0, slow) })
				<-held
				for i := range 10 {
					write(r, f, d, int64(i+1)*16)
					<-d.ch
				}
				// The same file's go by threads, and nothing of it waits in the engine, or the
				// other's would not be made in line.
				again := &devsw.Buf{Data: [][]byte{make([]byte, 16)}, Bcount: 16}
				r.Do(func() {
					o := r.newOp(again, slow)
					o.fd, o.off, o.data, o.write, o.sync = int(stuck.Fd()), 16, again.Data, false, false
					o.start()
					if o.place != inThread || r.inEngine != 0 {
						t.Errorf("a transfer of a file that is stuck is at %d, and the engine has %d", o.place, r.inEngine)
					}
					// Not by those that the others' are made by.
					w := p.workers.local
					w.mu.Lock()
					defer w.mu.Unlock()
					if w.lanes[slow] != nil {
						t.Error("a transfer of a file that is stuck has a thread of the others'")
					}
				})
				<-slow.ch
				if slow.err != 0 || slow.n != 16 || !bytes.Equal(again.Data[0], want[16:32]) {
					t.Error("by a thread:", slow.n, slow.err)
				}
				close(release)
				<-slow.ch
				if slow.err != 0 || slow.n != int64(len(want)) || !bytes.Equal(b.Data[0], want) {
					t.Error("what stalled:", slow.n, slow.err)
				}
			})
		})
	}
}

// TestReadsThatHadToWaitAreLeftToTheEngine, where only their time tells.
func TestReadsThatHadToWaitAreLeftToTheEngine(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		calls := 0
		r := stalling(t, p, func(int64) {
			calls++
			for begun := time.Now(); time.Since(begun) < 2*slowRead; {
			}
		})
		d := newResult()
		f := newFile(t, r, d)
		if _, err := f.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		r.Do(func() { r.of(&op{fd: int(f.Fd()), done: d}).waits = true })
		const reads = 200
		for range reads {
			b := &devsw.Buf{Data: [][]byte{make([]byte, 4096)}, Bcount: 4096}
			r.Do(func() { r.ReadAt(b, int(f.Fd()), 0, d) })
			<-d.ch
			if d.err != 0 || d.n != 4096 {
				t.Fatal(d.n, d.err)
			}
		}
		if calls == 0 || calls > reads/maxSkip+6 {
			t.Errorf("%d of %d were made in line", calls, reads)
		}
	})
}

// noDescriptors has the host refuse the process any new descriptor, until restore is called.
func noDescriptors(t *testing.T) (restore func()) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	// Standard input, output and error are open.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	restore = sync.OnceFunc(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(restore)
	if f, err := os.Open(os.DevNull); !errors.Is(err, syscall.EMFILE) {
		f.Close()
		t.Fatalf("open: %v, want EMFILE", err)
	}
	return restore
}

// TestTheReactorIsTakenOverWithoutADescriptor, and goes on without a standby until it can have one
// again.
// countPolls adds a Source that counts its polls, with the eventfd that kicks it.
func countPolls(t *testing.T, r *Reactor) (c *pollCounter, kick *sys.FD, remove func()) {
	kick, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	c = &pollCounter{polls: make(chan struct{}, 1)}
	var s *Source
	r.Do(func() { s, err = r.Add(c, kick.Int()) })
	if err != nil {
		t.Fatal(err)
	}
	return c, kick, func() {
		r.Do(func() { r.Remove(s) })
		kick.Close()
	}
}

func TestTheReactorIsTakenOverWithoutADescriptor(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		release, held := make(chan struct{}), make(chan struct{}, 1)
		r := stalling(t, p, func(int64) {
			held <- struct{}{}
			<-release
		})
		slow, d := newResult(), newResult()
		stuck, f := newFile(t, r, slow), newFile(t, r, d)
		c, kick, remove := countPolls(t, r)
		defer remove()

		restore := noDescriptors(t)
		put(r, stuck, slow, 0)
		<-held
		// Another thread has it, or this would not return. It makes no write that may wait: nobody
		// could take over from it.
		for i := range 10 {
			write(r, f, d, int64(i)*16)
			<-d.ch
			if d.err != 0 || d.n != 16 {
				t.Fatal(d.n, d.err)
			}
		}
		r.Do(func() {
			if r.mayStall(r.of(&op{fd: int(f.Fd()), done: d})) {
				t.Error("a write is made in line for which nobody stands by")
			}
		})
		for len(c.polls) > 0 {
			<-c.polls
		}
		if err := sys.EventfdWrite(kick.Int()); err != nil {
			t.Fatal(err)
		}
		<-c.polls
		for !r.guard.asleep.Load() { // it tries no more before somebody writes
			time.Sleep(guardTick)
		}
		restore()
		awaitStandby(r)
		// So the next write may stall again.
		put(r, f, d, 0)
		<-held
		r.Do(func() {})
		release <- struct{}{}
		release <- struct{}{}
		<-slow.ch
		<-d.ch
		if slow.err != 0 || slow.n != 16 || d.err != 0 || d.n != 16 {
			t.Fatal(slow.n, slow.err, d.n, d.err)
		}
	})
}

func TestTheReactorEndsWithoutAStandby(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		restore := noDescriptors(t)
		defer restore()
		r.Do(func() {
			r.startGuard()
			if r.stoodBy() {
				t.Error("there is a standby, and no descriptor to make it with")
			}
		})
		p.Close()
	})
}

// TestAStandbyLeavesNothingBehind: its engine's descriptor goes with the reactor, as its goroutine
// does.
func TestAStandbyLeavesNothingBehind(t *testing.T) {
	count := func(dir string) int {
		all, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) {
			newPool(t, mode).Pick().Do(func() {}) // what is opened once for the process is open
			before := count("/proc/self/fd")
			p, err := NewPool(Config{Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			running := count("/proc/self/fd")
			f := newFile(t, p.Pick(), newResult())
			if got := count("/proc/self/fd"); got != running+2 {
				t.Errorf("%d descriptors with a file and a standby, %d without", got, running)
			}
			p.Close()
			f.Close()
			if got := count("/proc/self/fd"); got != before {
				t.Errorf("%d descriptors at the end, %d before", got, before)
			}
		})
	}
}

func TestAFileThatStallsAgainSoonIsLeftAloneLonger(t *testing.T) {
	f, now := &file{}, time.Hour
	stall := func(after, length time.Duration) time.Duration {
		now = max(now, f.resume) + after + length
		f.stuck++
		f.back(now)
		return f.resume - now
	}
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 6400} {
		if got := stall(5*time.Millisecond, 200*time.Millisecond); got != want*time.Millisecond {
			t.Errorf("left alone for %v, want %v ms", got, int(want))
		}
	}
	if got := stall(mostPause, 0); got != leastPause {
		t.Errorf("after a time without a stall: left alone for %v", got)
	}
	if got := stall(0, 10*time.Second); got != leastPause {
		t.Errorf("after a stall that was long, and hardly the first of many: left alone for %v", got)
	}
	if f.stuck != 0 {
		t.Errorf("%d writes are stuck", f.stuck)
	}
}

func TestAStuckWriteIsWaitedForAtTheEnd(t *testing.T) {
	p, err := NewPool(Config{Mode: ModeThreads})
	if err != nil {
		t.Fatal(err)
	}
	release, held := make(chan struct{}), make(chan struct{})
	r := stalling(t, p, func(int64) {
		close(held)
		<-release
	})
	d := newResult()
	f := newFile(t, r, d)
	put(r, f, d, 0)
	<-held
	r.Do(func() {}) // another thread has it
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		p.Close()
	}()
	r.Do(func() {})
	select {
	case <-closed:
		t.Fatal("the reactor has ended with a write in progress")
	default:
	}
	close(release)
	<-closed
	<-d.ch
}

func TestWhatIsQueuedIsCancelled(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		d := newResult()
		f := newFile(t, r, d)
		r.Do(func() {
			b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 16)}, Bcount: 16}
			r.WriteAt(b, int(f.Fd()), 16, d)
			r.Cancel(b)
		})
		<-d.ch
		if d.err != syscall.ECANCELED {
			t.Fatal(d.err)
		}
	})
}

func TestReadsThatFailInLineAreTriedLessAndLess(t *testing.T) {
	var s skip
	tries := 0
	for range 1000 {
		if s.try() {
			tries++
			s.failed()
		}
	}
	if tries > 1000/maxSkip+6 {
		t.Errorf("%d tries", tries)
	}
	for !s.try() {
	}
	s.worked()
	if !s.try() {
		t.Error("no try after one that has worked")
	}
}

func TestTheGuardSleepsWhereNothingIsWritten(t *testing.T) {
	r := newPool(t, ModeThreads).Pick()
	d := newResult()
	f := newFile(t, r, d)
	for range 3 {
		write(r, f, d, 0)
		<-d.ch
		for !r.guard.asleep.Load() {
			time.Sleep(guardTick)
		}
	}
}

// flushCounter counts its Flushes.
type flushCounter struct {
	pollCounter
	flushes int
}

func (c *flushCounter) Flush() { c.flushes++ }

// marker marks its Source at each end of a transfer.
type marker struct {
	s    *Source
	left int
}

func (m *marker) AIODone(*devsw.Buf, int64, devsw.Errno) {
	m.s.MarkDirty()
	m.left--
}

func TestALongBatchIsShownBeforeItsEnd(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		awaitStandby(r)
		if _, err := f.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
		for n, want := range map[int]int{1: 1, 16: 1, 32: 2, 128: 2} {
			r.Do(func() {
				c := &flushCounter{pollCounter: pollCounter{polls: make(chan struct{}, 1)}}
				s, err := r.Add(c, -1)
				if err != nil {
					t.Error(err)
					return
				}
				defer r.Remove(s)
				m := &marker{s: s, left: n}
				for i := range n {
					r.ReadAt(&devsw.Buf{Data: [][]byte{make([]byte, 4096)}, Bcount: 4096}, int(f.Fd()), int64(i)*4096, m)
				}
				for m.left > 0 {
					r.round()
				}
				if c.flushes != want {
					t.Errorf("%d reads were shown in %d parts, want %d", n, c.flushes, want)
				}
			})
		}
	})
}

// TestEveryWriteEndsOnceWhateverStalls has many writes of several files in flight, some of which
// stall, several at a time.
func TestEveryWriteEndsOnceWhateverStalls(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		const files, writes, stalls = 4, 64, 3
		var calls atomic.Int32
		r := stalling(t, p, func(int64) {
			// Once in a while, more than the guard has patience for.
			if n := calls.Add(1); n%16 == 0 && n <= 16*stalls*files {
				time.Sleep(4 * guardTick)
			}
		})
		var left sync.WaitGroup
		var ends [files][writes]atomic.Int32
		for i := range files {
			d := &tally{left: &left, ends: ends[i][:]}
			f := newFile(t, r, d)
			left.Add(writes)
			for k := range writes {
				block := bytes.Repeat([]byte{byte(i), byte(k)}, 256)
				b := &devsw.Buf{Op: devsw.BWrite, Blkno: int64(k), Data: split(block, 1+k%3), Bcount: 512}
				r.Post(func() { r.WriteAt(b, int(f.Fd()), int64(k)*512, d) })
				if k%8 == 0 {
					r.Do(func() { r.of(&op{fd: int(f.Fd()), done: d}).resume = 0 }) // in line again
				}
			}
			defer func() {
				got, err := os.ReadFile(f.Name())
				if err != nil || len(got) != writes*512 {
					t.Fatalf("%d bytes, %v", len(got), err)
				}
				for k := range writes {
					if n := ends[i][k].Load(); n != 1 {
						t.Errorf("write %d of file %d has ended %d times", k, i, n)
					}
					if want := bytes.Repeat([]byte{byte(i), byte(k)}, 256); !bytes.Equal(got[k*512:][:512], want) {
						t.Errorf("block %d of file %d is not what was written", k, i)
					}
				}
			}()
		}
		left.Wait()
	})
}

// tally counts the ends of each write, by its block.
type tally struct {
	left *sync.WaitGroup
	ends []atomic.Int32
}

func (c *tally) AIODone(b *devsw.Buf, n int64, err devsw.Errno) {
	if err == 0 && n == b.Bcount {
		c.ends[b.Blkno].Add(1)
	}
	c.left.Done()
}

// TestWhatMayWaitIsSubmittedUnderTheGuardAlone whatever else is asked of the engine meanwhile.
func TestWhatMayWaitIsSubmittedUnderTheGuardAlone(t *testing.T) {
	p := newPoolOf(t, Config{Mode: ModeURing})
	r := p.Pick()
	d := newResult()
	d.ch = make(chan struct{}, 1000)
	f := newFile(t, r, d)
	other := newResult()
	other.ch = make(chan struct{}, 1000)
	g := tempFile(t)
	for _, f := range []*os.File{f, g} {
		if err := f.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
	}
	read := func(f *os.File, d devsw.AIODone, flags devsw.BufFlag) *devsw.Buf {
		b := &devsw.Buf{Op: devsw.BRead, Data: [][]byte{make([]byte, 512)}, Bcount: 512, Flags: flags}
		r.ReadAt(b, int(f.Fd()), 0, d)
		return b
	}
	kick, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer kick.Close()
	c := &pollCounter{polls: make(chan struct{}, 1)}
	var s *Source
	r.Do(func() { s, err = r.Add(c, kick.Int()) })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Do(func() { r.Remove(s) })
	all := 0
	for name, ask := range map[string]func(){
		"another kick": func() { _ = r.SetKick(s, kick.Int()) },
		"no kick":      func() { r.Remove(s); s, _ = r.Add(c, kick.Int()) },
		"as many transfers as fill the ring": func() {
			for range sqEntries + 8 {
				read(g, other, devsw.BMayBlock)
			}
		},
		"as many watches as fill the ring": func() {
			for range sqEntries + 8 {
				_ = r.SetKick(s, kick.Int())
			}
		},
		"as many cancels as fill the ring": func() {
			var begun []*devsw.Buf
			for range sqEntries + 8 {
				begun = append(begun, read(g, other, devsw.BMayBlock))
			}
			for _, b := range begun {
				r.Cancel(b)
			}
		},
		"a cancel of one of them": func() {
			r.Cancel(read(f, d, 0))
			all++
		},
	} {
		r.Do(func() {
			r.of(&op{fd: int(f.Fd()), done: d}).reads.left = 200 // none is tried in line
			for range 3 {
				read(f, d, 0)
			}
			all += 3
			if !r.eng.waits() {
				t.Error("nothing waits, so the test shows nothing")
			}
			ask()
			if !r.eng.waits() {
				t.Errorf("%s: what may wait was submitted with it", name)
			}
		})
		for ; all > 0; all-- {
			<-d.ch
		}
	}
	r.Do(func() {})
}

// TestWhatWasNotBegunGoesToTheThreadThatTakesOver: it does not wait for the one that is stuck.
func TestWhatWasNotBegunGoesToTheThreadThatTakesOver(t *testing.T) {
	p := newPoolOf(t, Config{Mode: ModeURing})
	held, release := make(chan struct{}), make(chan struct{})
	r := stalling(t, p, func(int64) {
		held <- struct{}{}
		<-release
	})
	d := newResult()
	f := newFile(t, r, d)
	other := newResult()
	g := newFile(t, r, other)
	for _, f := range []*os.File{f, g} {
		if err := f.Truncate(1 << 20); err != nil {
			t.Fatal(err)
		}
	}
	b := &devsw.Buf{Op: devsw.BRead, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
	first := &devsw.Buf{Op: devsw.BRead, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
	r.Post(func() {
		r.ReadAt(first, int(f.Fd()), 0, d) // in line
		r.of(&op{fd: int(g.Fd()), done: other}).reads.left = 1
		r.ReadAt(b, int(g.Fd()), 0, other)
		if !r.eng.waits() {
			t.Error("nothing waits, so the test shows nothing")
		}
	})
	<-held
	<-other.ch
	if other.err != 0 || other.n != 512 {
		t.Error(other.n, other.err)
	}
	close(release)
	<-d.ch
	if d.err != 0 || d.n != 512 {
		t.Error(d.n, d.err)
	}
	r.Do(func() {})
}
