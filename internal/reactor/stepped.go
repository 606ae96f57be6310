package reactor

import (
	"runtime"
	"runtime/debug"
	"time"
)

// A stepped reactor (ModeStepped) has no thread of its own. What there is to do is done by the
// goroutine that calls Do, to the end, before Do returns. After a Post it is done by a goroutine
// that is started for that, unless one is at it. Nobody waits for kicks and timers: they are found
// by whoever does the rest, and Pool.Step does nothing else.
//
// It is for tests: with one goroutine, events come in the same order each time, and no switch
// between threads takes longer than what is tested. Nothing watches its calls: a transfer goes to a
// thread of the crew, and a write to an eventfd that waits is not ended.

// steppedEngine never sleeps. It looks for kicks where another one would.
type steppedEngine struct{ *threadsEngine }

func (e steppedEngine) sleep(time.Duration) { e.look(0) }
func (e steppedEngine) turn() bool          { return false }

// beginStepped makes r a stepped reactor.
func (r *Reactor) beginStepped() error {
	eng, err := newThreadsEngine(r)
	if err != nil {
		r.wakeFD.Close()
		return err
	}
	r.eng = steppedEngine{eng}
	r.counted = r.Now()
	r.threads.Add(1)
	go r.awaitEnd()
	return nil
}

// step does what there is to do, unless another goroutine is at it, who looks again when this one
// has nothing left.
func (r *Reactor) step() {
	for r.hasPosted.Load() && r.stepping.CompareAndSwap(false, true) {
		before := debug.SetPanicOnFault(true)
		over := r.stepAll()
		debug.SetPanicOnFault(before)
		if over {
			return // and keeps others away
		}
		r.stepping.Store(false)
	}
}

// stepRounds bounds the rounds of a step: a guest can lay its rings so that each request that ends
// makes another one, and then there is always something to do. What is left is for the next step.
const stepRounds = 1000

// stepAll makes rounds until there is nothing to do. over: the reactor has ended.
func (r *Reactor) stepAll() (over bool) {
	if len(r.timers) > 0 {
		r.Now()
	}
	for range stepRounds {
		if r.hasPosted.Load() {
			r.runPosted()
		}
		if r.stop && r.inflight == 0 {
			r.eng.close()
			r.threads.Done()
			return true
		}
		if worked, _ := r.round(); worked {
			continue
		}
		r.kicked = false
		if r.rest(); !r.kicked && r.active.n == r.noKick && !r.hasPosted.Load() {
			return false
		}
	}
	return false
}

// Step has stepped reactors do what there is to do, and returns when nothing is left: what was
// posted and kicked before is done. Work that has no end is left. Not on a reactor.
func (p *Pool) Step() {
	for _, r := range p.reactors {
		for r.Do(func() {}); r.stepping.Load() || r.hasPosted.Load(); {
			runtime.Gosched() // another goroutine is at it
		}
	}
}
