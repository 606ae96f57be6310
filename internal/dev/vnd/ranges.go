package vnd

import (
	"slices"
	"sync"

	"vdev/devsw"
)

// ranges keeps writes apart that touch the same block, where at least one of them touches it in
// part and so writes back what it has read of the rest. Writes of whole blocks do not keep each
// other apart. Those that wait do so in the order they came.
//
// Blocks share queues, so that a write of any length has few places in them, and neither a lock,
// nor an unlock, nor a cancel searches: a guest may have tens of thousands of writes wait. Now and
// then a write waits for another one with which it has no block in common.
type ranges struct {
	mu     sync.Mutex
	queues [rangeQueues]queue // block n has queue n modulo rangeQueues

	first, last *op // those that wait, in the order they came
	came        uint64
	of          devsw.BufIndex[*op] // for cancelBuf
}

const rangeQueues = 128

// queue is who has blocks, and who waits for them, in the order they came.
type queue struct {
	first, last *claim
	waits       *claim // the first that has not got them; all before have
}

// claim is one op's place in a queue.
type claim struct {
	o          *op
	prev, next *claim
}

// queue gives the queue that the i-th claim of o is in.
func (r *ranges) queue(o *op, i int) *queue {
	return &r.queues[(o.lo/o.im.geo.offAlign+int64(i))%rangeQueues]
}

// lock takes the blocks of o, or notes o and returns false: o.resume is called later, or o ended by
// cancel.
func (r *ranges) lock(o *op) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.came++
	n := int(min((o.hi-o.lo)/o.im.geo.offAlign, rangeQueues))
	o.claims = slices.Grow(o.claims[:0], n)[:n]
	for i := range o.claims {
		c, q := &o.claims[i], r.queue(o, i)
		*c = claim{o: o, prev: q.last}
		if q.last == nil {
			q.first = c
		} else {
			q.last.next = c
		}
		q.last = c
		if q.waits == nil && !q.lets(c) {
			q.waits = c
		}
		if q.waits != nil {
			o.missing++
		}
	}
	if o.held = o.missing == 0; o.held {
		return true
	}
	if o.before = r.last; o.before == nil {
		r.first = o
	} else {
		o.before.after = o
	}
	r.last = o
	return false
}

// lets tells whether c can have its blocks, as all before it have.
func (q *queue) lets(c *claim) bool { return c == q.first || c.o.whole && q.first.o.whole }

// release takes o out of its queues, and returns who has got the last of its blocks by that. Under
// mu.
func (r *ranges) release(o *op) (ready []*op) {
	for i := range o.claims {
		c, q := &o.claims[i], r.queue(o, i)
		if q.waits == c {
			q.waits = c.next
		}
		if c.prev == nil {
			q.first = c.next
		} else {
			c.prev.next = c.next
		}
		if c.next == nil {
			q.last = c.prev
		} else {
			c.next.prev = c.prev
		}
		for ; q.waits != nil && q.lets(q.waits); q.waits = q.waits.next {
			if w := q.waits.o; w.missing == 1 {
				w.missing = 0
				ready = append(ready, w)
			} else {
				w.missing--
			}
		}
	}
	return ready
}

// leave takes o off the list of those that wait. Under mu.
func (r *ranges) leave(o *op) {
	if o.before == nil {
		r.first = o.after
	} else {
		o.before.after = o.after
	}
	if o.after == nil {
		r.last = o.before
	} else {
		o.after.before = o.before
	}
	o.before, o.after = nil, nil
	r.of.Ended(o.b)
}

// unlock unlocks the blocks of o, and resumes whoever waited for them.
func (r *ranges) unlock(o *op) {
	r.mu.Lock()
	r.resumeUnlock(r.release(o))
}

// resumeUnlock resumes ops that have their blocks now. It is called with mu held and returns
// without.
func (r *ranges) resumeUnlock(ready []*op) {
	for _, o := range ready {
		r.leave(o)
		o.held = true
	}
	r.mu.Unlock()
	for _, o := range ready {
		o.resume()
	}
}

// cancelBuf ends the op of b with ECANCELED, if it waits.
func (r *ranges) cancelBuf(b *devsw.Buf) {
	r.mu.Lock()
	o, ok := r.of.Find(b, r.came, func(yield func(*devsw.Buf, *op) bool) {
		for o := r.first; o != nil && yield(o.b, o); o = o.after {
		}
	})
	if !ok {
		r.mu.Unlock()
		return
	}
	r.leave(o)
	// Others may have waited for this one alone.
	r.resumeUnlock(r.release(o))
	o.end(devsw.ECANCELED)
}

// cancel ends all that wait with ECANCELED.
func (r *ranges) cancel() {
	r.mu.Lock()
	var waiting []*op
	// The newest first: nobody waits for it.
	for o := r.last; o != nil; o = r.last {
		r.leave(o)
		r.release(o)
		waiting = append(waiting, o)
	}
	r.mu.Unlock()
	for _, o := range slices.Backward(waiting) {
		o.end(devsw.ECANCELED)
	}
}
