package reactor

import (
	"math"
	"syscall"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vdev/devsw"
)

// TestUsageIsTheAverageOfLate: after some seconds of the same it is that, however often it was counted, and when nothing is counted any
// more it fades to 1/e in a second.
func TestUsageIsTheAverageOfLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u usage
		at := time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(t, "begin"))
		u.set(at, rapid.Float64Range(0, 1).Draw(t, "before"))
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		for end := at + 10*time.Second; at < end; {
			at += time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(time.Second)).Draw(t, "step"))
			u.count(at, share)
		}
		if got := u.now(at); math.Abs(got-share) > 1e-3 {
			t.Fatalf("after ten seconds of %v it is %v", share, got)
		}
		if got := u.now(at + time.Second); math.Abs(got-share/math.E) > 1e-3 {
			t.Fatalf("a second after %v it is %v", share, got)
		}
	})
}

// TestPickAvoidsTheBusyReactor, though the other one has many Sources that are idle.
func TestPickAvoidsTheBusyReactor(t *testing.T) {
	usages(t, func(t *testing.T, p *Pool) {
		idle, busy := p.reactors[0], p.reactors[1]
		for range 10 {
			addOne(t, idle, false)
		}
		for _, r := range p.reactors {
			for r.worked(time.Since(epoch)) > 0.05 {
				time.Sleep(time.Millisecond)
			}
		}
		if got := p.Pick(); got != busy {
			t.Error("while both are idle, not the one without Sources was picked")
		}
		addOne(t, busy, true)
		for busy.worked(time.Since(epoch)) < 0.9 || idle.worked(time.Since(epoch)) > 0.1 {
			time.Sleep(time.Millisecond)
		}
		if p.Pick() != idle {
			t.Error("the busy one was picked")
		}
	})
}

// TestPickSpreadsThoseThatStartTogether, of whom none has been added when the last is picked for.
func TestPickSpreadsThoseThatStartTogether(t *testing.T) {
	usages(t, func(t *testing.T, p *Pool) {
		const n = 32
		picked := make(chan *Reactor)
		for range 2 * n {
			go func() { picked <- p.Pick() }()
		}
		count := make(map[*Reactor]int)
		for range 2 * n {
			count[<-picked]++
		}
		for i, r := range p.reactors {
			if count[r] < n/2 {
				t.Errorf("reactor %d was picked %d times of %d", i, count[r], 2*n)
			}
		}
	})
}

// TestCompletionsAreWork: a reactor that does nothing but to follow up transfers, and sleeps until the next one has ended, has worked.
func TestCompletionsAreWork(t *testing.T) {
	usages(t, func(t *testing.T, p *Pool) {
		r := p.reactors[0]
		f := tempFile(t)
		w := &worker{r: r, fd: int(f.Fd()), data: make([]byte, 4096), ended: make(chan struct{})}
		before := r.worked(time.Since(epoch))
		r.Do(w.next)
		<-w.ended
		if after := r.worked(time.Since(epoch)); after < before+0.2 {
			t.Errorf("usage was %.2f, and after half a second of nothing but completions it is %.2f", before, after)
		}
	})
}

// TestToWaitIsNoWork, be it that the reactor sleeps, or looks for work all the time, however often there is some.
func TestToWaitIsNoWork(t *testing.T) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		for name, most := range map[string]time.Duration{"sleeps": -1, "looks": time.Second} {
			t.Run(string(mode)+"/"+name, func(t *testing.T) {
				p := newPoolOf(t, Config{Mode: mode, PollMax: most})
				r := p.reactors[0]
				m := addOne(t, r, false)
				for range 500 {
					m.produce()
					time.Sleep(2 * time.Millisecond)
				}
				if got := r.worked(time.Since(epoch)); got > 0.5 {
					t.Errorf("with one thing to do in 2 ms its usage is %.2f", got)
				}
			})
		}
	}
}

// TestAReactorThatIsWokenHasNotWorkedMeanwhile, before its thread has been given a processor.
func TestAReactorThatIsWokenHasNotWorkedMeanwhile(t *testing.T) {
	usages(t, func(t *testing.T, p *Pool) {
		r := p.reactors[0]
		for !r.asleep.Swap(false) { // as nudge does, which then wakes it
			time.Sleep(time.Millisecond)
		}
		got := r.worked(time.Since(epoch) + time.Minute)
		r.asleep.Store(true)
		if got > 0.1 {
			t.Errorf("after a minute of sleep its usage is %.2f", got)
		}
	})
}

// worker reads again and again, for half a second, and takes its time with what it has read.
type worker struct {
	r     *Reactor
	fd    int
	data  []byte
	buf   devsw.Buf
	busy  time.Duration
	ended chan struct{}
}

func (w *worker) next() {
	w.buf = devsw.Buf{Op: devsw.BRead, Data: [][]byte{w.data}, Bcount: int64(len(w.data)), Flags: devsw.BMayBlock}
	w.r.ReadAt(&w.buf, w.fd, 0, w)
}

func (w *worker) AIODone(*devsw.Buf, int64, syscall.Errno) {
	const each = 10 * time.Millisecond // beside which it is little until it is called
	for begun := time.Now(); time.Since(begun) < each; {
	}
	if w.busy += each; w.busy >= time.Second/2 {
		close(w.ended)
		return
	}
	w.next()
}

// TestARoundCountsWhileItLasts: whoever is not done with its work for long does not pass for idle meanwhile.
func TestARoundCountsWhileItLasts(t *testing.T) {
	usages(t, func(t *testing.T, p *Pool) {
		r := p.reactors[0]
		for r.worked(time.Since(epoch)) > 0.1 {
			time.Sleep(time.Millisecond)
		}
		release := make(chan struct{})
		r.Post(func() { <-release })
		defer close(release)
		for r.worked(time.Since(epoch)) < 0.9 {
			time.Sleep(time.Millisecond)
		}
	})
}

// usages runs a test with two reactors of each mode.
func usages(t *testing.T, f func(t *testing.T, p *Pool)) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) { f(t, newPoolOf(t, Config{Mode: mode, Reactors: 2})) })
	}
}
