package reactor

import (
	"time"

	"vdev/internal/sys"
)

// awaited is a guest driver's reply to what it was shown, which is new requests in place of those
// that have ended.
type awaited struct {
	due      bool          // the last look was for one
	requests uint32        // Reactor.requests when it was looked for first
	since    time.Duration // when that was, by clock
}

// linger looks for work for the adapted time, without asking for notification, and tells whether it
// found any.
//
// While the engine has transfers, their end is slept for. But a guest driver that has just been
// shown what has ended may be about to go on with as much, and the disk has less to do until it is
// given that. What ends meanwhile makes that time no longer.
func (r *Reactor) linger() (worked bool, lost *op) {
	most := r.pollFor
	r.looked, r.reply.due = 0, false
	if r.inEngine > 0 {
		if r.inflight >= r.level {
			return false, nil
		}
		most, r.reply.due = r.replyFor, true
	}
	if most <= 0 || r.active.n == 0 {
		return false, nil
	}
	start := r.Now()
	until := start + most
	if r.reply.due {
		if r.reply.requests != r.requests {
			r.reply.requests, r.reply.since = r.requests, start
		}
		until = r.reply.since + most
	}
	for {
		// The last of these rounds begins with a look at the clock.
		for again := true; again; again = r.rounds%clockRounds != 0 {
			if r.hasPosted.Load() {
				worked = true
			} else {
				worked, lost = r.round()
			}
			if lost != nil {
				return true, lost // the reactor is another thread's
			}
			if worked {
				r.idled += r.looked
				return true, nil
			}
		}
		r.looked = r.clock - start
		if r.clock >= until {
			r.idled += r.looked
			return false, nil
		}
		// Where cores are few, whoever would give us work may be waiting for this one.
		sys.Yield()
	}
}

// rest asks for notification and sleeps, unless there is work after all.
func (r *Reactor) rest() {
	pending := false
	r.active.keep(func(s *Source) bool {
		switch {
		case !s.active:
			return false
		case s.polledOnly:
			return true
		case s.due:
			pending = true // it has had no turn since
			return true
		case s.p.Arm():
			s.p.Disarm()
			pending = true
			return true
		}
		s.armed = true
		s.active = false
		return false
	})
	if pending {
		return
	}
	r.asleep.Swap(true)
	if r.hasPosted.Load() || len(r.queue) > 0 || len(r.turns) > 0 || r.eng.waits() {
		r.asleep.Store(false)
		return
	}
	busy := r.inEngine > 0
	r.level, r.kicked = r.inflight, false
	r.resting.Store(true)
	start := r.Now()
	timeout := r.untilTimer()
	if r.noKick > 0 && (timeout < 0 || timeout > polledPause) {
		timeout = polledPause
	}
	r.eng.sleep(timeout)
	r.asleep.Store(false)
	slept := r.Now() - start
	if slept >= yieldEvery {
		r.yielded = r.clock
	}
	r.idled += slept
	r.count()
	r.resting.Store(false)
	r.eng.turn()
	r.flush()
	most := min(r.pollMax, maxReply)
	switch waited := r.looked + slept; {
	case !busy:
		r.pollFor = adapted(r.pollFor, waited, r.pollMax)
	case r.reply.due && (r.kicked || waited > most):
		r.replyFor = adapted(r.replyFor, waited, most)
	}
}

// polledPause is how long a Source without a kick descriptor waits at most for its next Poll.
const polledPause = time.Millisecond

const (
	// minPoll is the shortest time worth looking for work at all.
	minPoll = 4 * time.Microsecond
	// maxReply is for how long a guest driver's reply is looked for at most while the engine has
	// transfers.
	maxReply = 16 * time.Microsecond
)

// adapted returns how long to look before the next sleep, for the time that it was before this one
// and how long there was no work: if looking longer (but no longer than most) would have spared the
// sleep, longer; if there was none for far too long for that, less.
func adapted(look, waited, most time.Duration) time.Duration {
	if waited <= most {
		return min(max(look*2, minPoll), most)
	}
	if look /= 2; look < minPoll {
		return 0
	}
	return look
}
