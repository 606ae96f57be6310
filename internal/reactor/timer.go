package reactor

import (
	"container/heap"
	"math"
	"time"
)

// Timer calls a function on its reactor, once, when its time has come. It costs no goroutine and no
// system call. The zero Timer is of no use before Init. The methods are for the reactor's own
// goroutine.
type Timer struct {
	r  *Reactor
	fn func()
	at time.Duration // by Clock
	// place is where it is in Reactor.timers, counted from 1. 0: it is stopped, or has fired.
	place int
}

// Init makes t a timer of r that is stopped. Any goroutine that nobody else has t on.
func (t *Timer) Init(r *Reactor, fn func()) { *t = Timer{r: r, fn: fn} }

// Reset has the function called once, after d, and not before the caller has returned to the
// reactor. It takes the place of what the timer was set to before, and tells whether that was still
// to come. On the reactor.
func (t *Timer) Reset(d time.Duration) (pending bool) {
	now := t.r.Now()
	t.at = now + min(max(d, 0), math.MaxInt64-now)
	if t.place > 0 {
		heap.Fix(&t.r.timers, t.place-1)
		return true
	}
	heap.Push(&t.r.timers, t)
	return false
}

// Stop sees to it that the function is not called any more, and tells whether it was to be. On the
// reactor.
func (t *Timer) Stop() (pending bool) {
	if t.place == 0 {
		return false
	}
	heap.Remove(&t.r.timers, t.place-1)
	return true
}

// timers are those that are set: a heap by the time they are set to.
type timers []*Timer

func (h timers) Len() int           { return len(h) }
func (h timers) Less(i, j int) bool { return h[i].at < h[j].at }

func (h timers) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i+1, j+1
}

// Push implements heap.Interface.
func (h *timers) Push(t any) {
	*h = append(*h, t.(*Timer))
	t.(*Timer).place = len(*h)
}

// Pop implements heap.Interface.
func (h *timers) Pop() any {
	last := len(*h) - 1
	t := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	t.place = 0
	return t
}

// due tells whether a timer's time has come, by Clock.
func (h timers) due(clock time.Duration) bool { return len(h) > 0 && h[0].at <= clock }

// fire calls those whose time has come.
func (r *Reactor) fire() {
	now := r.clock
	// Those that are set anew meanwhile are for the next round.
	for n := len(r.timers); n > 0 && r.timers.due(now); n-- {
		heap.Pop(&r.timers).(*Timer).fn()
	}
}

// untilTimer returns how long a sleep may be that begins now, by Clock, for the timers' sake.
// Negative: without limit.
func (r *Reactor) untilTimer() time.Duration {
	if len(r.timers) == 0 {
		return -1
	}
	return max(r.timers[0].at-r.clock, 0)
}
