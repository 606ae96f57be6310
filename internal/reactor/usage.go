package reactor

import (
	"math"
	"sync/atomic"
	"time"
)

// usage is which part of its time a reactor has worked of late, from 0 to 1: an average in which a second ago counts 1/e as much as now.
// The reactor writes it, anybody reads it; who reads in the middle of a write is off by the little that was added.
type usage struct {
	share atomic.Uint64 // a float64
	at    atomic.Int64  // since epoch: when that was
}

// usageFades is how long it takes until what was counts 1/e of what it did.
const usageFades = time.Second

// now returns the share at a time, since epoch, if there was no work since it was counted last.
func (u *usage) now(at time.Duration) float64 {
	since := max(at-time.Duration(u.at.Load()), 0)
	return math.Float64frombits(u.share.Load()) * math.Exp(-since.Seconds()/usageFades.Seconds())
}

// count says that of the time since the last call a share was work. On the reactor.
func (u *usage) count(at time.Duration, share float64) {
	since := at - time.Duration(u.at.Load())
	u.set(at, u.now(at)+share*(1-math.Exp(-since.Seconds()/usageFades.Seconds())))
}

// expect says that there is about to be more work, for so large a share. It fades like all else: then it was counted. On the reactor.
func (u *usage) expect(at time.Duration, share float64) { u.set(at, min(u.now(at)+share, 1)) }

func (u *usage) set(at time.Duration, share float64) {
	u.share.Store(math.Float64bits(share))
	u.at.Store(int64(at))
}
