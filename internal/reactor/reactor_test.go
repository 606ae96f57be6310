package reactor

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/uring"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// modes runs f once for each mode the host has.
func modes(t *testing.T, f func(t *testing.T, p *Pool)) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPool(t, mode)
			f(t, p)
		})
	}
}

func newPool(t testing.TB, mode Mode) *Pool { return newPoolOf(t, Config{Mode: mode}) }

func newPoolOf(t testing.TB, c Config) *Pool {
	p, err := NewPool(c)
	if errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EPERM) {
		t.Skipf("the host refuses io_uring: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// result is a devsw.AIODone that keeps what it was told.
type result struct {
	n   int64
	err devsw.Errno
	ch  chan struct{}
}

func newResult() *result { return &result{ch: make(chan struct{}, 1)} }

func (d *result) AIODone(b *devsw.Buf, n int64, err devsw.Errno) {
	d.n, d.err = n, err
	d.ch <- struct{}{}
}

// tempFile gives an empty file, until the test ends.
func tempFile(t *testing.T) *os.File {
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func split(p []byte, pieces int) (v [][]byte) {
	size := max(len(p)/pieces, 1)
	for len(p) > size {
		v, p = append(v, p[:size]), p[size:]
	}
	return append(v, p)
}

func TestTransfersMoveEveryByteWhateverTheNumberOfPieces(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		for _, pieces := range []int{1, 2, 9, 1500} { // 1500: more than the kernel takes at once
			want := make([]byte, 1500*512)
			for i := range want {
				want[i] = byte(rand.Uint32())
			}
			for _, flags := range []devsw.BufFlag{0, devsw.BMediaFUA} {
				d := newResult()
				b := &devsw.Buf{Op: devsw.BWrite, Flags: flags, Data: split(want, pieces), Bcount: int64(len(want))}
				r.Post(func() { r.WriteAt(b, int(f.Fd()), 4096, d) })
				<-d.ch
				if d.err != 0 || d.n != int64(len(want)) {
					t.Fatalf("%d pieces: wrote %d, %v", pieces, d.n, d.err)
				}
			}
			got := make([]byte, len(want))
			d := newResult()
			b := &devsw.Buf{Data: split(got, pieces), Bcount: int64(len(got))}
			r.Post(func() { r.ReadAt(b, int(f.Fd()), 4096, d) })
			<-d.ch
			if d.err != 0 || d.n != int64(len(want)) || !bytes.Equal(got, want) {
				t.Fatalf("%d pieces: read %d, %v, equal %v", pieces, d.n, d.err, bytes.Equal(got, want))
			}
		}
	})
}

func TestReadAtTheEndOfTheFileIsShort(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		f := tempFile(t)
		f.Write(make([]byte, 700))
		d := newResult()
		b := &devsw.Buf{Data: split(make([]byte, 1024), 3), Bcount: 1024}
		r := p.Pick()
		r.Post(func() { r.ReadAt(b, int(f.Fd()), 512, d) })
		<-d.ch
		if d.err != 0 || d.n != 188 {
			t.Fatalf("%d, %v", d.n, d.err)
		}
	})
}

func TestErrorsComeThrough(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d := newResult()
		b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
		r := p.Pick()
		r.Post(func() { r.WriteAt(b, int(f.Fd()), 0, d) })
		<-d.ch
		if d.err != syscall.EBADF {
			t.Fatalf("a write to a read-only descriptor: %v", d.err)
		}
	})
}

// TestCancelEndsAReadThatWouldNeverEnd uses a pipe, which the host can interrupt where it waits in
// the kernel's poll.
func TestCancelEndsAReadThatWouldNeverEnd(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	rd, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	defer wr.Close()
	for _, how := range []string{"all", "one"} {
		d := newResult()
		b := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
		fd := int(rd.Fd())
		r.Do(func() { r.ReadAt(b, fd, -1, d) })
		awaitPolled(t, r)
		if how == "all" {
			r.CancelAll(d)
		} else {
			r.Do(func() { r.Cancel(b) })
		}
		<-d.ch
		if d.err != syscall.ECANCELED {
			t.Fatalf("%s: %v", how, d.err)
		}
	}
}

// awaitPolled returns when a read waits in the kernel's poll. Until it has come there the host may
// not find it.
func awaitPolled(t *testing.T, r *Reactor) {
	t.Helper()
	info := fmt.Sprintf("/proc/self/fdinfo/%d", r.eng.(*uringEngine).ring.FD())
	for {
		text, err := os.ReadFile(info)
		if err != nil {
			t.Fatal(err)
		}
		_, polled, _ := strings.Cut(string(text), "PollList:")
		for _, op := range []uring.Op{uring.OpRead, uring.OpReadv} {
			if strings.Contains(polled, fmt.Sprintf("op=%d,", op)) {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// stuckReads returns what starts a read by the engine, on the reactor, that ends no sooner than the
// test.
func stuckReads(t *testing.T, r *Reactor) (start func()) {
	rd, wr, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	n, done := 0, &result{ch: make(chan struct{}, 100)}
	t.Cleanup(func() {
		wr.Close()
		for range n {
			<-done.ch
		}
		rd.Close()
	})
	r.Do(func() {}) // what the engine has to ask for at its start is asked for before the next Do
	return func() {
		n++
		r.ReadAt(&devsw.Buf{Flags: devsw.BMayBlock, Data: [][]byte{make([]byte, 1)}, Bcount: 1}, int(rd.Fd()), 0, done)
	}
}

func TestABatchIsSubmittedByDoublingParts(t *testing.T) {
	const n = 20
	r := newPool(t, ModeURing).Pick()
	start := stuckReads(t, r)
	var left []int // to be submitted, after each start
	r.Do(func() {
		for range n {
			start()
			left = append(left, r.eng.(*uringEngine).ring.Pending())
		}
	})
	want := []int{1, 1, 1, 2, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4}
	if !slices.Equal(left, want) {
		t.Errorf("to be submitted after each of %d: %v, want %v", n, left, want)
	}
}

// TestABatchBeginsAnewWhenMostHasEnded: the rest has ended, too, as far as that can be known, and
// the device has nothing to do.
func TestABatchBeginsAnewWhenMostHasEnded(t *testing.T) {
	const n = 16
	r := newPool(t, ModeURing).Pick()
	start := stuckReads(t, r)
	for _, c := range []struct {
		ended int
		want  []int // to be submitted, after each start
	}{
		{n/2 - 1, []int{1, 2, 3, 4}},
		{n / 2, []int{1, 1, 1, 2}},
	} {
		var left []int
		r.Do(func() {
			e := r.eng.(*uringEngine)
			for r.inEngine < n {
				start()
			}
			e.submit()
			e.slept, e.begun, e.ended = n, 0, c.ended
			for range c.want {
				start()
				left = append(left, e.ring.Pending())
			}
			e.submit()
		})
		if !slices.Equal(left, c.want) {
			t.Errorf("with %d of %d ended, to be submitted: %v, want %v", c.ended, n, left, c.want)
		}
	}
}

// TestOnlyAKickIsTakenForOne, and neither a completion nor a wake-up: how long to look for a
// driver's reply hangs on that.
func TestOnlyAKickIsTakenForOne(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		kick, err := sys.NewEventfd()
		if err != nil {
			t.Fatal(err)
		}
		defer kick.Close()
		seen := make(chan bool, 1)
		w := &writer{pollCounter: pollCounter{polls: make(chan struct{}, 1)}, write: func() { seen <- r.kicked }}
		var s *Source
		r.Do(func() { s, err = r.Add(w, kick.Int()) })
		if err != nil {
			t.Fatal(err)
		}
		defer r.Do(func() { r.Remove(s) })
		kicked := func() (is bool) {
			r.Do(func() { is = r.kicked })
			return is
		}
		asleep := func() {
			for !r.asleep.Load() {
				time.Sleep(time.Millisecond)
			}
		}
		d := newResult()
		b := &devsw.Buf{Op: devsw.BWrite, Flags: devsw.BMayBlock, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
		asleep()
		r.Do(func() { r.WriteAt(b, int(f.Fd()), 0, d) })
		<-d.ch
		asleep()
		if kicked() {
			t.Error("a wake-up or a completion was")
		}
		asleep()
		w.work.Store(true)
		if err := sys.EventfdWrite(kick.Int()); err != nil {
			t.Fatal(err)
		}
		if !<-seen {
			t.Error("a kick was not")
		}
	})
}

// TestAReplyIsLookedForWhereOneIsDue: while the driver has as much in flight as before, the reactor
// sleeps until something ends.
func TestAReplyIsLookedForWhereOneIsDue(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	start := stuckReads(t, r)
	kick, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer kick.Close()
	c := &pollCounter{polls: make(chan struct{}, 1)}
	var s *Source
	r.Do(func() {
		r.replyFor = time.Minute
		s, err = r.Add(c, kick.Int())
		start()
		start()
		r.level = 2
	})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Do(func() { r.Remove(s) })
	asleep := func() {
		for !r.asleep.Load() {
			time.Sleep(time.Millisecond)
		}
	}
	asleep()
	r.Do(func() {
		r.level = 3
		s.Wake()
	})
	for range 100 {
		<-c.polls
	}
	if r.asleep.Load() {
		t.Error("it sleeps, and does not look")
	}
	r.Do(func() { r.replyFor = minPoll })
	asleep() // the look is over
}

// TestTheLookForWorkIsAsLongAsItPays, and no longer.
func TestTheLookForWorkIsAsLongAsItPays(t *testing.T) {
	const most = 100 * time.Microsecond
	for _, c := range []struct{ response, want time.Duration }{
		{30 * time.Microsecond, 30 * time.Microsecond},
		{most, most},
		{most + 1, 0},
		{time.Second, 0},
	} {
		for _, look := range []time.Duration{0, minPoll, most} {
			for range 20 {
				if look < c.response { // else it is found by looking
					look = adapted(look, c.response, most)
				}
			}
			if look < c.want || c.want == 0 && look > 0 {
				t.Errorf("for work after %v it is looked for %v", c.response, look)
			}
		}
	}
}

func TestCancelTakesBackWhatNoThreadHasBegun(t *testing.T) {
	r := newPool(t, ModeThreads).Pick()
	d := newResult()
	b := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
	r.Do(func() {
		// On the reactor no completion comes in between, and put starts no thread for o when none
		// may start and its file has one.
		w := r.eng.(*threadsEngine).w.local
		w.mu.Lock()
		was := w.running
		w.running, w.lanes[d] = maxWorkers, &lane{busy: 1}
		w.mu.Unlock()
		r.ReadAt(b, -1, 0, d)
		r.Cancel(b)
		w.mu.Lock()
		w.running = was
		delete(w.lanes, d)
		w.mu.Unlock()
	})
	<-d.ch
	if d.err != syscall.ECANCELED {
		t.Fatal(d.err)
	}
}

// TestTheClockGoesOn with a loop that sleeps and with one that is always busy.
func TestTheClockGoesOn(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var before, after time.Duration
		r.Do(func() { before = r.Now() })
		for after <= before {
			// Each of these may find the loop asleep.
			r.Do(func() { after = r.Clock() })
		}
		// From here on it has no time to sleep.
		done := make(chan struct{})
		var again func()
		again = func() {
			if r.Clock() > after {
				close(done)
				return
			}
			r.Post(again)
		}
		r.Post(again)
		<-done
	})
}

func TestPostsRunInOrderAndDoIsABarrier(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var got []int
		for i := range 100 {
			r.Post(func() { got = append(got, i) })
		}
		r.Do(func() {})
		for i, g := range got {
			if i != g {
				t.Fatalf("place %d has %d", i, g)
			}
		}
		if len(got) != 100 {
			t.Fatalf("%d ran", len(got))
		}
	})
}

// counter is a Poller whose work is a number that a producer raises, with a kick only when it was
// armed: a virtqueue in small.
type counter struct {
	made    atomic.Int64
	armed   atomic.Bool
	seen    atomic.Int64
	flushed int64
	src     *Source
	kick    *sys.FD
	ended   atomic.Bool
}

func (c *counter) Poll() bool {
	if c.ended.Load() {
		panic("Poll after Remove")
	}
	m := c.made.Load()
	if m == c.seen.Load() {
		return false
	}
	c.seen.Store(m)
	c.src.MarkDirty()
	return true
}
func (c *counter) Arm() bool {
	c.armed.Store(true)
	return c.made.Load() != c.seen.Load()
}
func (c *counter) Disarm() { c.armed.Store(false) }
func (c *counter) Flush()  { c.flushed++ }
func (c *counter) produce() {
	c.made.Add(1)
	if c.armed.Load() {
		sys.EventfdWrite(c.kick.Int())
	}
}

func TestNoKickIsLost(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var wg sync.WaitGroup
		for range 3 {
			fd, err := sys.NewEventfd()
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			c := &counter{kick: fd}
			r.Do(func() { c.src, err = r.Add(c, fd.Int()) })
			if err != nil {
				t.Fatal(err)
			}
			wg.Go(func() {
				for i := range 3000 {
					c.produce()
					if i%7 == 0 {
						time.Sleep(time.Duration(rand.IntN(60)) * time.Microsecond)
					}
					if i%100 == 0 {
						for c.seen.Load() != c.made.Load() { // a lost kick hangs here
							time.Sleep(time.Microsecond)
						}
					}
				}
				for c.seen.Load() != c.made.Load() {
					time.Sleep(time.Microsecond)
				}
				r.Do(func() {
					r.Remove(c.src)
					if c.flushed == 0 {
						t.Error("never flushed")
					}
				})
				c.ended.Store(true)
				c.made.Add(1)
				sys.EventfdWrite(fd.Int())
			})
		}
		wg.Wait()
		r.Do(func() {})
		if n := r.load.Load(); n != 0 {
			t.Errorf("%d sources left", n)
		}
	})
}

// TestAKickIsNotLostWithItsDescriptor kicks on the old descriptor just before another one takes its
// place.
func TestAKickIsNotLostWithItsDescriptor(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var fds [2]*sys.FD
		for i := range fds {
			var err error
			if fds[i], err = sys.NewEventfd(); err != nil {
				t.Fatal(err)
			}
			defer fds[i].Close()
		}
		c := &counter{kick: fds[0]}
		r.Do(func() { c.src, _ = r.Add(c, fds[0].Int()) })
		for i := range 20 {
			for !c.armed.Load() {
				time.Sleep(10 * time.Microsecond)
			}
			old, next := fds[i%2], fds[(i+1)%2]
			_, _ = sys.EventfdRead(next.Int())
			r.Do(func() {
				c.kick = old
				c.produce()
				if err := r.SetKick(c.src, next.Int()); err != nil {
					t.Error(err)
				}
			})
			for c.seen.Load() != c.made.Load() { // a lost kick hangs here
				time.Sleep(10 * time.Microsecond)
			}
		}
		r.Do(func() { r.Remove(c.src) })
	})
}

func TestASourceWithoutAKickDescriptorIsPolled(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		c := new(counter)
		r.Do(func() { c.src, _ = r.Add(c, -1) })
		for range 20 {
			c.made.Add(1)
			for c.seen.Load() != c.made.Load() {
				time.Sleep(10 * time.Microsecond)
			}
		}
		// It may get one later, and is then not polled any more.
		fd, err := sys.NewEventfd()
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		c.kick = fd
		r.Do(func() { err = r.SetKick(c.src, fd.Int()) })
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			c.produce()
			for c.seen.Load() != c.made.Load() {
				time.Sleep(10 * time.Microsecond)
			}
		}
		r.Do(func() {
			if r.noKick != 0 {
				t.Error("still counted as polled")
			}
			r.Remove(c.src)
		})
	})
}

func TestTransfersAllocateNothing(t *testing.T) {
	r := newPool(t, ModeURing).Pick()
	f := tempFile(t)
	f.Write(make([]byte, 8192))
	fd := int(f.Fd())
	b := &devsw.Buf{Data: split(make([]byte, 4096), 4), Bcount: 4096}
	var allocs float64
	r.Do(func() {
		d := new(ended)
		allocs = testing.AllocsPerRun(1000, func() {
			*d = 0
			r.ReadAt(b, fd, 0, d)
			for *d == 0 {
				r.round()
			}
		})
	})
	if allocs != 0 {
		t.Fatalf("%v allocations a transfer", allocs)
	}
}

type ended int

func (e *ended) AIODone(*devsw.Buf, int64, devsw.Errno) { *e++ }

func BenchmarkRead4K(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "QD1", 32: "QD32"}[depth], func(b *testing.B) {
			r := newPool(b, ModeURing).Pick()
			f, err := os.Create(filepath.Join(b.TempDir(), "f"))
			if err != nil {
				b.Fatal(err)
			}
			defer f.Close()
			f.Write(make([]byte, 1<<20))
			fd := int(f.Fd())
			bufs := make([]*devsw.Buf, depth)
			for i := range bufs {
				bufs[i] = &devsw.Buf{Data: [][]byte{make([]byte, 4096)}, Bcount: 4096}
			}
			b.ReportAllocs()
			b.ResetTimer()
			r.Do(func() {
				d := new(ended)
				for n := 0; n < b.N; n += depth {
					*d = 0
					for i, buf := range bufs {
						r.ReadAt(buf, fd, int64(i)*4096, d)
					}
					for int(*d) < depth {
						r.round()
					}
				}
			})
		})
	}
}
