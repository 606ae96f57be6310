package reactor

import "time"

// epoch is what clocks count from.
var epoch = time.Now()

// Now returns the time since a moment that is the same for all reactors, and sets Clock by it. On
// the reactor.
func (r *Reactor) Now() time.Duration {
	r.clock = time.Since(epoch)
	return r.clock
}

// Clock is Now when the loop last had a look at it, which it has whenever it wakes, and else every
// clockRounds rounds: a time for those to whom a few batches do not matter, and that costs nothing.
// On the reactor.
func (r *Reactor) Clock() time.Duration { return r.clock }

const clockRounds = 8
