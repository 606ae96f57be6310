package reactor

import (
	"runtime"
	"sync/atomic"
	"time"

	"vdev/internal/sys"
)

// Post runs fn on the reactor, soon, in the order of the calls. Any goroutine.
func (r *Reactor) Post(fn func()) {
	r.queueUp(fn)
	r.nudge()
}

func (r *Reactor) queueUp(fn func()) {
	r.mu.Lock()
	r.posted = append(r.posted, fn)
	r.mu.Unlock()
}

// Do runs fn on the reactor and returns when it has run: a barrier behind all that was posted
// before. Any goroutine but the reactor's own.
//
// A reactor that had to be woken has nothing else to do, as a rule, and to be put to sleep and
// woken up as well costs more than that: then Do looks for a moment before it sleeps.
func (r *Reactor) Do(fn func()) {
	var ran atomic.Bool
	done := make(chan struct{})
	r.queueUp(func() {
		defer func() {
			ran.Store(true)
			close(done)
		}()
		fn()
	})
	if r.mode == ModeStepped {
		r.hasPosted.Store(true)
		r.step()
		<-done
		return
	}
	woke := r.nudge()
	for begun := time.Now(); woke && time.Since(begun) < doPoll; sys.Yield() {
		if ran.Load() {
			return
		}
		// It may need the processor of Go's that this goroutine has.
		runtime.Gosched()
	}
	<-done
}

// doPoll is for how long Do looks.
const doPoll = 100 * time.Microsecond

// nudge makes the reactor look at what was posted and completed, and tells whether it had to be
// woken for that.
func (r *Reactor) nudge() (woke bool) {
	if r.mode == ModeStepped {
		if r.hasPosted.Store(true); !r.stepping.Load() {
			go r.step()
		}
		return false
	}
	// The loop publishes asleep before it looks at hasPosted the last time: one of the two sees the
	// other. (Swap and not Store: under the race detector a Store is no full barrier.)
	r.hasPosted.Swap(true)
	woke = r.asleep.Load() && r.asleep.Swap(false)
	if woke {
		_ = sys.EventfdWrite(r.wakeFD.Int())
	}
	return woke
}

// runPosted runs what was posted, and takes what has completed elsewhere.
func (r *Reactor) runPosted() {
	r.hasPosted.Store(false)
	r.mu.Lock()
	fns := r.posted
	r.posted = r.spare[:0]
	r.mu.Unlock()
	r.takeCompleted()
	for i, fn := range fns {
		fn()
		fns[i] = nil
	}
	r.spare = fns
	r.flush()
}
