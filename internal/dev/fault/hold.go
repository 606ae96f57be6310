package fault

import (
	"cmp"
	"slices"
	"time"

	"vdev/devsw"
)

// hold is an operation that a rule keeps from beginning. All of it is under softc.mu.
type hold struct {
	op       Ops
	pos, n   int64 // bytes
	v        verdict
	since    time.Time
	order    uint64 // the older one has the smaller
	delaying bool
	hanging  bool
	timer    *time.Timer // while it is delayed

	// Of a transfer:
	buf    *devsw.Buf    // only to be compared: it is the set's
	set    *devsw.BufSet // which has it; nil for what sleeps in a Cv
	ticket devsw.Ticket
}

func (sc *softc) holdLocked(op Ops, pos, n int64, v verdict) *hold {
	sc.lastHold++
	h := &hold{op: op, pos: pos, n: n, v: v, since: time.Now(), order: sc.lastHold, delaying: v.delay > 0, hanging: v.hang}
	sc.holds[h] = struct{}{}
	if h.delaying {
		h.timer = time.AfterFunc(v.delay, func() { sc.elapsed(h) })
	}
	return h
}

// forgetLocked ends the hold itself, and nothing more.
func (sc *softc) forgetLocked(h *hold) {
	delete(sc.holds, h)
	sc.holdOf.Ended(h.buf)
	if h.timer != nil {
		h.timer.Stop()
	}
}

// elapsed is called when a delay is over, on a goroutine of its own.
func (sc *softc) elapsed(h *hold) {
	sc.mu.Lock()
	h.delaying = false
	free := sc.freeLocked(h)
	sc.mu.Unlock()
	if free {
		sc.resume(h)
	}
}

// freeLocked looks whether anything still keeps the operation. Where not, it is woken or, a
// transfer, has to be resumed.
func (sc *softc) freeLocked(h *hold) (resume bool) {
	if _, ok := sc.holds[h]; !ok || h.delaying || h.hanging {
		return false
	}
	if h.set == nil {
		sc.cv.Broadcast()
		sc.stuck.Broadcast()
		return false
	}
	sc.forgetLocked(h)
	return true
}

// resume goes on with a transfer that was held, on a goroutine of the driver's own.
func (sc *softc) resume(h *hold) {
	if b := h.set.Claim(h.ticket); b != nil {
		sc.begin(b, h.v, false)
	}
}

// release ends the hangs that a rule has made, or all. The transfers go on in the order they came.
func (sc *softc) release(rule int) {
	sc.mu.Lock()
	var free []*hold
	for h := range sc.holds {
		if rule == 0 || h.v.rule == rule {
			h.hanging = false
			if sc.freeLocked(h) {
				free = append(free, h)
			}
		}
	}
	sc.mu.Unlock()
	if len(free) == 0 {
		return
	}
	slices.SortFunc(free, func(a, b *hold) int { return cmp.Compare(a.order, b.order) })
	go func() {
		for _, h := range free {
			sc.resume(h)
		}
	}()
}

// pause lets the rules act on an operation that may sleep. It returns when the operation may begin,
// or the error it ends with.
func (sc *softc) pause(op Ops, pos, n int64) error {
	sc.ops[op.index()].Add(1)
	if !sc.armed.Load() {
		return nil
	}
	sc.mu.Lock()
	if op&Any != 0 && !sc.opened {
		sc.mu.Unlock()
		return devsw.ENXIO
	}
	v := sc.decideLocked(op, pos, n)
	if v.holds() {
		h := sc.holdLocked(op, pos, n, v)
		cv := sc.cv
		if v.uncancellable {
			cv = sc.stuck
		}
		err := cv.Wait(func() bool { return !h.delaying && !h.hanging })
		sc.forgetLocked(h)
		if err != nil {
			sc.mu.Unlock()
			return err
		}
	}
	sc.mu.Unlock()
	switch {
	case v.crash != nil:
		_ = sc.crash(v.crash)
		return devsw.EIO
	case v.errno != 0:
		return v.errno
	}
	return nil
}
