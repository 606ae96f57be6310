package reactor

import (
	"runtime"
	"time"
)

// goRound makes one round after the other, and returns the transfer over which another thread has
// taken the reactor, or nil at its end.
func (r *Reactor) goRound() (lost *op) {
	for {
		worked := false
		if r.hasPosted.Load() {
			r.runPosted()
			worked = true
		}
		if r.stop && r.inflight == 0 {
			r.guard.stop()
			return nil
		}
		more, lost := r.round()
		if !worked && !more {
			more, lost = r.linger()
		}
		switch {
		case lost != nil:
			return lost
		case !worked && !more:
			r.rest()
		}
	}
}

// yieldEvery is after how long a busy loop lets the runtime have its way. Who has not after 10 ms,
// and makes system calls, loses its P in one of them, and the runtime looks every 20 us after that
// whether it can take away more.
const yieldEvery = 5 * time.Millisecond

// roundBytes is after how many bytes to be transferred in line no further Source is polled in a
// round: they come first in the next one, and what has ended is shown before.
const roundBytes = 1 << 20

// After roundTime no further Source is polled in a round either: one turn of each may take a while,
// and kicks of others are seen, and what has ended is shown, between rounds. One in roundPolls
// looks at the clock, so that a round of few need not.
const (
	roundTime  = 500 * time.Microsecond
	roundPolls = 4
)

// round polls the active Sources, makes and submits transfers, completes and flushes, and tells
// whether there was anything. Where a transfer was lost, the reactor is another thread's.
func (r *Reactor) round() (worked bool, lost *op) {
	if r.rounds++; r.rounds%clockRounds == 0 && r.Now()-r.yielded >= yieldEvery {
		r.yielded = r.clock
		r.count()
		runtime.Gosched()
	}
	if r.timers.due(r.clock) {
		r.fire()
		worked = true
	}
	// A Poll may wake others, which are then behind those of this round.
	var begun time.Duration
	polls := 0
	for left := r.active.n; left > 0 && r.queued < roundBytes; left-- {
		if polls++; polls%roundPolls == 0 {
			switch now := r.Now(); {
			case begun == 0:
				begun = now
			case now-begun >= roundTime:
				worked, left = true, 0
				continue
			}
		}
		s := r.active.next()
		s.due = false
		if s.active && s.p.Poll() {
			worked = true
		}
		if s.active {
			r.active.turned()
			continue
		}
		// It was the last one's turn instead, which may have come by: there is another round.
		worked = true
		r.active.drop()
	}
	if len(r.queue) > 0 {
		if lost := r.runQueue(); lost != nil {
			return true, lost
		}
		worked = true
	}
	if r.takeTurns() {
		worked = true
	}
	if !r.submit() {
		return true, lostInSubmit
	}
	if r.eng.turn() {
		worked = true
	}
	r.flush()
	return worked, nil
}

func (r *Reactor) flush() {
	for i := 0; i < len(r.dirty); i++ {
		s := r.dirty[i]
		s.dirty = false
		if s.gone {
			continue
		}
		s.p.Flush()
		// A completion makes room for the next request: it is worth a look.
		s.Wake()
	}
	clear(r.dirty)
	r.dirty = r.dirty[:0]
}
