package reactor

import (
	"math"
	"sync/atomic"
	"time"
)

// usage is which part of its time a reactor has worked of late, from 0 to 1: an average in which a
// second ago counts 1/e as much as now. One writes it, anybody reads it; who reads in the middle of
// a write may take what was before it for what is now.
type usage struct {
	share atomic.Uint64 // a float64
	at    atomic.Int64  // since epoch: when that was
}

// usageFades is how long it takes until what was counts 1/e of what it did.
const usageFades = time.Second

// now returns the share at a time, since epoch, if there was no work since it was counted last.
func (u *usage) now(at time.Duration) float64 {
	return math.Float64frombits(u.share.Load()) * u.kept(at)
}

// kept is what counts at a time of what was when it was counted last, from 0 to 1.
func (u *usage) kept(at time.Duration) float64 {
	since := max(at-time.Duration(u.at.Load()), 0)
	return math.Exp(-since.Seconds() / usageFades.Seconds())
}

// count says that of the time since the last call a share was work. On the reactor.
func (u *usage) count(at time.Duration, share float64) {
	u.set(at, u.now(at)+share*(1-u.kept(at)))
}

// add says that there is more, at once.
func (u *usage) add(at time.Duration, share float64) { u.set(at, u.now(at)+share) }

func (u *usage) set(at time.Duration, share float64) {
	u.share.Store(math.Float64bits(share))
	u.at.Store(int64(at))
}

// worked is the reactor's usage at a time, since epoch. What it is in the middle of counts as work,
// however long a round is. Any goroutine.
func (r *Reactor) worked(at time.Duration) float64 {
	share := r.usage.now(at)
	if !r.resting.Load() {
		share += 1 - r.usage.kept(at)
	}
	return share
}

// count counts what there was to do, now and then.
func (r *Reactor) count() {
	since := r.clock - r.counted
	if since < yieldEvery {
		return
	}
	r.usage.count(r.clock, 1-min(r.idled.Seconds()/since.Seconds(), 1))
	r.counted, r.idled = r.clock, 0
}
