package vhostuser

import (
	"context"
	"fmt"
	"time"
)

// StopReason says why rings are stopped or disabled.
type StopReason int

const (
	// StopBase is GET_VRING_BASE: the guest resets or removes the device, pauses, or migrates. The
	// front-end, and with it the guest, waits for the answer.
	StopBase StopReason = iota
	// StopReset is RESET_DEVICE while rings run. The in-flight region is dropped after it.
	StopReset
	// StopDisconnect is the end of the session: the connection has ended, or a new session starts
	// on it (a second SET_OWNER).
	StopDisconnect
	// StopDisable is SET_VRING_ENABLE 0, or RESET_OWNER, for a ring that has requests in flight.
	// The front-end waits, as for GET_VRING_BASE.
	StopDisable
)

// String returns "base", "reset", "disconnect" or "disable".
func (r StopReason) String() string {
	switch r {
	case StopBase:
		return "base"
	case StopReset:
		return "reset"
	case StopDisable:
		return "disable"
	default:
		return "disconnect"
	}
}

// Stop says how the Device is to stop, or to disable, rings. Its methods are for the call that the
// Stop was given to, on the connection's goroutine.
type Stop struct {
	// Reason is why.
	Reason StopReason
	// Deadline is until when requests in flight may complete. Then, or at once where that time has
	// passed, they are to be cancelled. Messages that belong to one stop share one deadline
	// (Config.StopGap). It is zero where nothing was in flight.
	Deadline time.Time
	// Revoke says that nobody waits for what the Device has open: it is to be revoked, and requests
	// are cancelled at once.
	Revoke bool
	// WholeDevice says that no ring of the device is fetched from any more. StopDevice always has
	// it, StopQueue never, and PauseQueue for the last ring.
	WholeDevice bool

	s *session
}

// Context is done when the front-end has hung up, the session has failed or the Backend is to end.
// Then nobody waits for the answer any more. Call it before a wait: a hang-up during the wait is
// only seen once Context was called.
func (how Stop) Context() context.Context {
	how.s.watchHangup()
	return how.s.ctx
}

// Suspends says what is to become of requests of q that come back cancelled: they are to be
// suspended (Queue.Suspend) if it returns true, and to complete with an error otherwise. It is
// asked after the wait, since a hang-up in the midst of that changes the answer. A ring without an
// in-flight region never suspends.
func (how Stop) Suspends(q *Queue) bool { return how.s.decide(how.Reason, q).suspend }

// Next returns for how long, from the end of this call on, the front-end is likely to disable or
// stop further rings. It is 0 where that is not likely. It is asked after the wait, as Suspends is.
func (how Stop) Next() time.Duration {
	if how.s.stopping.disables || how.s.ctx.Err() != nil {
		return how.s.b.stopGap
	}
	return 0
}

// defaultStopGap is Config.StopGap where that is 0.
const defaultStopGap = time.Second

// stopTime is the time of a stop that is spread over several messages: rings are disabled or
// stopped, one soon after the other. It begins with the first ring that has something in flight. It
// ends when all rings have stopped, when a ring is started or enabled, or when Config.StopGap has
// passed since the last answer.
//
// All of a stop has one deadline, or a device of 64 rings that hang would hold up the front-end for
// 64 times as long.
type stopTime struct {
	deadline time.Time // zero where no stop is under way
	answered time.Time // when its last message was answered; zero before
	disables bool      // a ring was disabled, so that others are likely to be stopped next
}

// begin returns the deadline of the stop that is under way, and of a new one where there is none.
func (t *stopTime) begin(now time.Time, after time.Duration) time.Time {
	if t.deadline.IsZero() {
		t.deadline = now.Add(after)
	}
	return t.deadline
}

// expire ends a stop whose last answer was gap ago.
func (t *stopTime) expire(now time.Time, gap time.Duration) {
	if !t.answered.IsZero() && now.Sub(t.answered) >= gap {
		*t = stopTime{}
	}
}

// decide asks the policy about a ring, as things stand.
func (s *session) decide(reason StopReason, q *Queue) decision {
	return policy(reason, q.canSuspend, q.migrates, !s.b.notMigratable, s.ctx.Err() != nil)
}

// howTo says how rings are to be stopped or disabled that are fetched from no more.
func (s *session) howTo(reason StopReason, queues ...*Queue) Stop {
	how := Stop{Reason: reason, WholeDevice: !s.fetching(nil), s: s}
	busy, wait := false, false
	for _, q := range queues {
		d := s.decide(reason, q)
		how.Revoke = how.Revoke || d.revoke
		if q.inFlight > 0 {
			busy, wait = true, wait || d.wait
		}
	}
	now := time.Now()
	s.stopping.expire(now, s.b.stopGap)
	switch {
	case wait:
		how.Deadline = s.stopping.begin(now, s.b.cancelAfter)
	case busy:
		how.Deadline = now
	}
	return how
}

// fetching tells whether any ring but not is fetched from.
func (s *session) fetching(not *ring) bool {
	for _, r := range s.rings {
		if r != not && r.q != nil && r.q.state == RingRunning {
			return true
		}
	}
	return false
}

// answered says that the message is answered next which a ring was stopped or disabled for.
func (s *session) answered() {
	switch {
	case !s.running():
		s.stopping = stopTime{}
	case !s.stopping.deadline.IsZero():
		s.stopping.answered = time.Now()
	}
}

// stopDevice stops every ring that runs. When it returns, none of them uses guest memory.
func (s *session) stopDevice(why StopReason) {
	var all []*ring
	for _, r := range s.rings {
		if r.q != nil {
			all = append(all, r)
		}
	}
	if len(all) > 0 {
		s.stop(why, all, s.dev.StopDevice)
	}
}

// stopRing stops a ring that runs, while others are fetched from.
func (s *session) stopRing(r *ring, why StopReason) {
	s.stop(why, []*ring{r}, func(all []*Queue, how Stop) { s.dev.StopQueue(all[0], how) })
}

// stop ends rings that run: the Device is asked, what it has pushed is shown to the guest driver,
// and then nothing of the rings is used any more. A ring's base is the next entry to take. All of
// the rings stop fetching before the Device waits for the first.
func (s *session) stop(why StopReason, rings []*ring, ask func([]*Queue, Stop)) {
	queues := make([]*Queue, len(rings))
	for i, r := range rings {
		queues[i] = r.q
		r.q.detach()
	}
	for _, r := range rings {
		s.b.event(Event{Kind: EventStopping, Ring: r.index, Fields: []Field{{"why", why}}})
		r.why = why
	}
	s.publish()
	how := s.howTo(why, queues...)
	if why == StopBase {
		s.whileWaited(func() { ask(queues, how) })
	} else {
		ask(queues, how)
	}
	for _, r := range rings {
		s.finish(r)
	}
	s.answered()
}

// detach sees to it that nothing more is fetched from a ring that runs when it returns. On the
// connection's goroutine.
func (q *Queue) detach() {
	fetched := q.state == RingRunning
	q.state = RingStopping
	q.reactor.Do(func() {
		q.inFlight = q.InFlight()
		if fetched {
			q.paused = true
			q.reactor.Remove(q.src)
			q.src = nil
		}
	})
}

// finish shows the guest driver what the Device has pushed on a ring that it has stopped, and lets
// go of the ring.
func (s *session) finish(r *ring) {
	q := r.q
	left := 0
	q.reactor.Do(func() {
		poller{q}.Flush()
		left, r.suspended = q.unfinished(), q.Suspended()
		r.base = q.vq.NextAvail()
		r.left = r.base
		q.close()
	})
	r.q = nil
	s.notify.started(-1)
	s.publish()
	fields := []Field{{"why", r.why}, {"base", r.base}}
	if q.canSuspend {
		fields = append(fields, Field{"suspended", r.suspended})
	}
	s.b.event(Event{Kind: EventStop, Ring: r.index, Fields: fields})
	if left > 0 {
		// A defect of the Device. Its chains keep their memory, but the front-end must not rely on
		// the ring.
		s.end(&RingError{Ring: r.index, Err: fmt.Errorf("stopped by the device with %d requests in flight", left)})
	}
}

// drain has the Device end, or suspend, what a disabled ring has in flight, and shows the guest
// driver what was pushed. When it returns, nothing of the ring's guest memory is used, and nothing
// signalled, until the ring is enabled or stopped. Where the policy leaves no time, because the
// in-flight region travels with the guest, a stop follows, which cancels: nothing is waited for
// here.
func (s *session) drain(r *ring) {
	q := r.q
	if !s.decide(StopDisable, q).wait {
		return
	}
	suspended := 0
	s.b.event(Event{Kind: EventDrain, Ring: r.index})
	q.state = RingDraining
	s.publish()
	how := s.howTo(StopDisable, q)
	s.stopping.disables = true
	s.whileWaited(func() { s.dev.PauseQueue(q, how) })
	q.reactor.Do(func() {
		poller{q}.Flush()
		suspended = q.Suspended()
	})
	q.state = RingDisabled
	s.answered()
	s.publish()
	s.b.event(Event{Kind: EventDrained, Ring: r.index, Fields: []Field{{"suspended", suspended}}})
}
