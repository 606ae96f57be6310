package virtq

import (
	"cmp"
	"slices"
)

// suspended is a chain that was fetched, and that Pop is to give out again. It holds no guest
// memory: its descriptors are read anew. Its head counts as taken.
type suspended struct {
	seq  uint64 // its number in the order of fetching
	head uint16
}

// firstFetched is more than the number of any inherited chain, and no more than that of any chain
// that a Queue fetches itself.
const firstFetched = 1 << 16

func sortSuspended(list []suspended) {
	slices.SortStableFunc(list, func(a, b suspended) int { return cmp.Compare(a.seq, b.seq) })
}

// Suspend ends the flight of c as Push does, but without a used element. Pop gives the chain out
// again, before it fetches anything new, and those that are suspended in the order in which they
// were fetched. An in-flight region keeps the record of it, so that the next Queue that is made
// with the region has it suspended, too. Until then the guest driver must not make the head
// available again. c and its buffers are not to be used any more; c may be popped into again.
//
// Any chain in flight may be suspended, in any order. On a broken or closed ring only the counts
// are kept. It panics if c is not in flight in q, which is the device's own defect.
func (q *Queue) Suspend(c *Chain) {
	q.land(c)
	q.suspend(c)
	if q.log != nil {
		q.markLanded(c)
	}
}

// suspend puts c, which has landed, on the list.
func (q *Queue) suspend(c *Chain) {
	q.hold(c.Head)
	if n := len(q.suspended); n > 0 && c.seq < q.suspended[n-1].seq {
		q.unsorted = true
	}
	q.suspended = append(q.suspended, suspended{c.seq, c.Head})
}

// Suspended returns how many chains are suspended, the inherited ones that Pop has not given out
// yet among them.
func (q *Queue) Suspended() int { return len(q.suspended) }

// Unfetch returns suspended chains to the available ring, and tells how many: the newest
// first, as long as may allows it and nothing that was fetched later is in flight or was pushed.
// nil allows all. Nothing is recorded about them any more. Those that remain have been overtaken,
// or are inherited, or may not return. On a broken or closed ring it does nothing.
func (q *Queue) Unfetch(may func(head uint16) bool) (n int) {
	if q.err != nil {
		return 0
	}
	q.sort()
	for left := len(q.suspended) - 1; left >= 0; left-- {
		s := q.suspended[left]
		if !q.newest(s.seq) || may != nil && !may(s.head) {
			break
		}
		q.suspended = q.suspended[:left]
		q.unfetch(s.head)
		n++
	}
	return n
}

// CanUnpop tells whether c is what Pop gave out last, of what was not given to Unpop since.
func (q *Queue) CanUnpop(c *Chain) bool {
	return c.gen != nil && c.gen.queue == q && c.pop == q.pops-1
}

// Unpop undoes the last Pop: c returns to the available ring, or is suspended again if it was and
// is not the newest that was fetched. c and its buffers are not to be used any more. Several are
// undone newest first; it panics if CanUnpop is false, which is the caller's own defect.
func (q *Queue) Unpop(c *Chain) {
	if !q.CanUnpop(c) {
		panic("virtq: Unpop of a chain that is not the newest")
	}
	q.land(c)
	q.pops--
	if q.newest(c.seq) {
		q.unfetch(c.Head)
	} else {
		q.suspend(c)
	}
}

// newest tells whether the chain with this number was the last to be fetched, by this Queue: then
// its entry of the available ring is the one before the next. What an inherited chain's is the
// region does not tell, since later ones may have been pushed: it is never the newest.
func (q *Queue) newest(seq uint64) bool { return seq+1 == q.next }

// unfetch returns the newest chain to the available ring.
func (q *Queue) unfetch(head uint16) {
	q.next--
	q.taken[head/64] &^= 1 << (head % 64)
	if q.track != nil && q.err == nil {
		q.track.clear(head)
	}
}

// popSuspended is Pop where something is suspended.
func (q *Queue) popSuspended(c *Chain) (bool, error) {
	if q.err != nil {
		return false, q.err
	}
	if c.gen != nil {
		panic("virtq: Pop into a chain that is in flight")
	}
	q.sort()
	s := q.suspended[0]
	c.clear()
	if err := q.walk(c, s.head); err != nil {
		c.clear()
		return false, err
	}
	q.takeOff(c, s.head, s.seq)
	if q.suspended = q.suspended[1:]; len(q.suspended) == 0 {
		q.suspended = nil // its memory goes
	}
	return true, nil
}

// sort sorts what is suspended.
func (q *Queue) sort() {
	if q.unsorted {
		sortSuspended(q.suspended)
		q.unsorted = false
	}
}
