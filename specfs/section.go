package specfs

import (
	"time"

	"vdev/devsw"
)

// batchReserve is how many sections a batch takes from its Counter at once.
const batchReserve = 32

// Counter counts the transfers that one queue of a node has in progress. It is
// on a cache line of its own, so that queues on different CPUs do not slow each
// other down: the counts are looked at together only when the device is drained.
// NetBSD: localcount(9), which has one for each CPU.
type Counter struct {
	count    devsw.Localcount
	node     *Node
	released bool // under FS.mu

	// The batch is its goroutine's.
	batch bool
	// sections taken from count and not given to a transfer; with any, the last one is the batch's
	// own
	held int32

	_ [128 - 48]byte
}

func newCounter(n *Node) *Counter {
	c := &Counter{node: n}
	set(&c.count, n.admits)
	return c
}

// NewCounter makes a Counter for a queue of this node, whether the node is open or not. The Counter
// lasts over closes and opens of the node, until Release.
func (n *Node) NewCounter() *Counter {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	c := newCounter(n)
	n.counters = append(n.counters, c)
	return c
}

// InProgress is the number of transfers in progress, of Strategy calls that have not returned, and
// of the sections that a batch has in reserve while it runs. It changes all the time.
func (c *Counter) InProgress() int { return c.count.Count() }

// Release ends the Counter: it is not used again. Transfers may still be in progress; a drain waits
// for them.
func (c *Counter) Release() {
	n := c.node
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	c.released = true
	c.count.Close()
	kept := n.counters[:0]
	for _, c := range n.counters {
		if !c.released || c.count.Count() != 0 {
			kept = append(kept, c)
		}
	}
	clear(n.counters[len(kept):])
	n.counters = kept
}

// section is a Counter as a Buf sees it.
type section Counter

// Leave implements devsw.Section.
func (s *section) Leave(inContext bool) {
	if inContext && s.batch {
		s.held++
		return
	}
	s.count.Release()
}

// Begin begins a batch of transfers: until End, only the calling goroutine uses c. It is for
// whoever starts many at once. Strategy then takes its sections from a reserve, which costs one
// atomic addition for all of them, and a transfer that ends in its issuer's context (Buf.InContext)
// puts its section back there. What Strategy promises holds as ever. A drain waits for the end of a
// batch. Once the device is being closed, further transfers of the batch are refused.
func (c *Counter) Begin() { c.batch = true }

// End ends the batch.
func (c *Counter) End() {
	c.batch = false
	if held := c.held; held != 0 {
		c.held = 0
		step("batch ends")
		c.count.ReleaseN(int64(held))
	}
}

// take takes a section for a transfer of the batch. The batch keeps one, in which
// its calls of d_strategy run.
func (c *Counter) take() bool {
	if c.count.Closed() {
		return false
	}
	if c.held <= 1 {
		if !c.count.AcquireN(batchReserve) {
			return false
		}
		c.held += batchReserve
	}
	c.held--
	return true
}

// Strategy starts the transfer b and returns; the end comes with b.Iodone. c is
// the Counter of the queue the transfer belongs to, or nil. b.Dev is set.
//
// The transfer is a section of the device from here until biodone (not only
// until d_strategy has returned, as on NetBSD, where the buffer cache waits for
// the rest), and at least as long as d_strategy runs. Where the node is not open,
// is revoked or its device is being closed, b fails with ENXIO; on a character
// device, which has no d_strategy, with ENODEV.
//
// It takes no lock, allocates nothing, and touches no memory that another queue
// writes. NetBSD: spec_strategy.
func (n *Node) Strategy(c *Counter, b *devsw.Buf) {
	if c == nil {
		c = n.shared
	}
	if c.node != n {
		panic("specfs: Strategy with another node's Counter")
	}
	b.Dev = n.key.dev
	if c.batch {
		if !c.take() {
			refuse(b)
			return
		}
		step("strategy entered")
		b.SetSection((*section)(c))
		n.strategy(b)
		return
	}
	// Twice: for the transfer, and for the call of d_strategy, either of which
	// may end first.
	if !c.count.AcquireN(2) {
		refuse(b)
		return
	}
	step("strategy entered")
	b.SetSection((*section)(c))
	n.strategy(b)
	step("strategy returned")
	c.count.Release()
}

// refuse ends a transfer that gets no section.
func refuse(b *devsw.Buf) {
	b.InContext = true
	b.Fail(devsw.ENXIO)
}

// enter begins a section for an operation that is not a transfer.
func (n *Node) enter(what string) (*op, bool) {
	if !n.ops.Acquire() {
		return nil, false
	}
	o := &op{what: what, since: now()}
	n.fs.mu.Lock()
	n.sd.ops[o] = struct{}{}
	n.fs.mu.Unlock()
	step("section entered")
	return o, true
}

// leave ends the section.
func (n *Node) leave(o *op) {
	step("section leaving")
	n.fs.mu.Lock()
	delete(n.sd.ops, o)
	n.fs.mu.Unlock()
	n.ops.Release()
}

func now() time.Time { return time.Now() }
