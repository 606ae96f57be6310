package reactor

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// TestUsageIsTheAverageOfLate: after some seconds of the same it is that, however often it was
// counted, and when nothing is counted any more it fades to 1/e in a second.
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

// TestToWaitIsNoWork, be it that the reactor sleeps, or looks for work all the time, however often
// there is some. What it does is work, and so is what it does with a transfer that has ended.
func TestToWaitIsNoWork(t *testing.T) {
	const us, ms = time.Microsecond, time.Millisecond
	for name, w := range map[string]*workday{
		"sleeps":              {each: 100 * us, pauses: []time.Duration{2 * ms}},
		"sleeps between much": {each: 3 * ms, pauses: []time.Duration{ms}},
		"sleeps, a transfer":  {each: 3 * ms, pauses: []time.Duration{ms}, transfer: true},
		"looks":               {each: 100 * us, pauses: []time.Duration{2 * ms}, most: time.Second},
		"looks between much":  {each: 3 * ms, pauses: []time.Duration{ms}, most: time.Second},
		"looks in vain":       {each: 100 * us, pauses: []time.Duration{900 * us, 900 * us, 900 * us, 3 * ms}, most: ms},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				got := w.run(t, 3*time.Second)
				var all time.Duration
				for _, pause := range w.pauses {
					all += w.each + pause
				}
				want := float64(w.each) * float64(len(w.pauses)) / float64(all)
				if math.Abs(got-want) > 0.1 {
					t.Errorf("its usage is %.3f, want %.3f", got, want)
				}
			})
		})
	}
}

// workday is a Source of a reactor, and its engine. Both take their time as they are told, which is
// the time of a synctest bubble, and not that of the machine.
type workday struct {
	engine
	each     time.Duration   // how long a piece of work takes
	pauses   []time.Duration // from its end to the next, in turn
	most     time.Duration   // for how long work is looked for
	transfer bool            // it is the engine's: a transfer has ended

	src       *Source
	pieces    int       // of work, so far
	next, end time.Time // when there is the next piece; after when there is no more
}

// run gives the reactor's usage after that time of such pieces.
func (w *workday) run(t *testing.T, length time.Duration) float64 {
	r := &Reactor{pollMax: w.most, eng: w, sources: map[uint64]*Source{}, lines: map[any]*line{}}
	r.counted = r.Now()
	r.yielded = r.clock // a bubble's time is before epoch
	r.usage.set(r.clock, 0)
	var err error
	if w.src, err = r.Add(w, 0); err != nil {
		t.Fatal(err)
	}
	w.end = time.Now().Add(length)
	r.goRound()
	return r.worked(r.Now())
}

func (w *workday) work() (worked bool) {
	if time.Now().Before(w.next) {
		return false
	}
	time.Sleep(w.each)
	w.next = time.Now().Add(w.pauses[w.pieces%len(w.pauses)])
	w.pieces++
	w.src.r.stop = w.next.After(w.end)
	return true
}

func (w *workday) Poll() bool {
	if w.transfer {
		return false
	}
	if w.work() {
		return true
	}
	time.Sleep(20 * time.Microsecond)
	return false
}

func (w *workday) Arm() bool { return !w.transfer && !time.Now().Before(w.next) }
func (w *workday) Disarm()   {}
func (w *workday) Flush()    {}

func (w *workday) watch(int, uint64) error { return nil }
func (w *workday) waits() bool             { return false }
func (w *workday) turn() bool              { return w.transfer && w.work() }

func (w *workday) sleep(time.Duration) {
	time.Sleep(time.Until(w.next))
	w.src.Wake()
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

// TestARoundCountsWhileItLasts: whoever is not done with its work for long does not pass for idle
// meanwhile.
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
