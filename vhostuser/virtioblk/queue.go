package virtioblk

import (
	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/virtq"
)

// queueState is what a queue does with requests.
type queueState uint8

const (
	queueWaits queueState = iota // it begins none before the device is open
	queueRuns
	// It begins none, since the ring is disabled or being stopped, or the device is being closed.
	// What comes back cancelled
	queueSuspends // is suspended,
	queueFails    // or ends with its error, unless the driver has not had it.
	queueClosed   // The device was closed for another ring's sake: Process opens it again.
)

// queue is a started virtqueue and its requests. But for the fields that newQueue sets it is its
// reactor's.
type queue struct {
	d    *Device
	vq   *vhostuser.Queue
	loop vhostuser.Loop

	// Changed by the queue's reactor, or before it has the queue, under Device.mu.
	open    *specfs.Life
	node    *specfs.Node    // open's
	counter *specfs.Counter // of open's node

	state     queueState
	failed    error    // with what requests end that are begun
	untouched []uint64 // a bit for each head: nothing was begun of the chain, when it was suspended
	account
	free     []*request
	requests []*request // all
}

func newQueue(d *Device, vq *vhostuser.Queue) *queue {
	return &queue{account: account{granted: queueUnits}, d: d, vq: vq, loop: vq.Loop()}
}

// opened lets the queue's requests go, or fail, according to how the open went. On the reactor.
func (q *queue) opened(o *specfs.Life) {
	if o != q.open || q.state > queueRuns {
		return
	}
	q.state, q.failed = queueRuns, nil
	switch {
	case o.Err() != nil:
		q.failed = errNotOpen
	case q.d.memory.lost():
		q.failed = errLost
	}
	q.vq.Wake()
}

// hold begins no more requests, and suspends those that come back cancelled from now on. On the
// reactor.
func (q *queue) hold() {
	if q.state <= queueRuns {
		q.state = queueSuspends
	}
}

// resume goes on where hold has left off, unless the device is being closed: then it goes on when
// it has been opened again. On the reactor.
func (q *queue) resume() {
	if q.state != queueSuspends && q.state != queueFails {
		return
	}
	o := q.open
	q.d.mu.Lock()
	closed := q.d.open != o
	q.d.mu.Unlock()
	if closed {
		return
	}
	q.state = queueWaits
	if ended(o.Began()) {
		q.opened(o)
	}
}

// closed says that the device has been closed. On the reactor.
func (q *queue) closed() {
	q.state = queueClosed
	q.vq.Wake()
}

// reopen opens the device again, or shares the open that there is. It does nothing before the end
// of a stop in which this ring may be disabled next, which wakes the ring: the device would be
// opened only to be closed again. On the reactor.
func (q *queue) reopen() {
	d := q.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.stop.over() {
		return
	}
	q.state = queueWaits
	q.counter.Release()
	d.openLocked(q)
}

// giveUp ends the operations in flight as if they had come back cancelled. They use nothing of the
// guest's memory, and go on by themselves. On the reactor.
func (q *queue) giveUp() {
	for _, r := range q.requests {
		// One that has ended meanwhile tells so in a moment.
		if r.op != nil && r.op.settled.CompareAndSwap(false, true) {
			r.op = nil
			r.end(devsw.ECANCELED)
		}
	}
}

// settle ends what is suspended when nothing is in flight any more. What the driver has not had
// goes back to the ring, as far as it was fetched last. The rest stays suspended, or fails. Other
// rings of the reactor have their turn between. Not on a reactor.
func (q *queue) settle(suspend bool) {
	q.vq.Do(func() { q.vq.Unfetch(q.isUntouched) })
	for left := !suspend; left; {
		q.vq.Do(func() {
			for range stopTurn {
				if left = q.failSuspended(); !left {
					return
				}
			}
		})
	}
}

// failSuspended fails the oldest request that is suspended, and tells whether there was one.
func (q *queue) failSuspended() bool {
	r := q.get()
	if !q.vq.PopSuspended(&r.chain) {
		q.put(r)
		return false
	}
	r.fail(devsw.ECANCELED)
	return true
}

// setUntouched notes whether the driver has not had a chain that is suspended.
func (q *queue) setUntouched(head uint16, is bool) {
	if q.untouched == nil {
		q.untouched = make([]uint64, (q.vq.Size()+63)/64)
	}
	if bit := uint64(1) << (head % 64); is {
		q.untouched[head/64] |= bit
	} else {
		q.untouched[head/64] &^= bit
	}
}

func (q *queue) isUntouched(head uint16) bool {
	return q.untouched != nil && q.untouched[head/64]>>(head%64)&1 != 0
}

// Process implements vhostuser.Device.
func (d *Device) Process(vq *vhostuser.Queue) (worked bool) {
	q, _ := vq.Data.(*queue)
	if q == nil || q.state != queueRuns {
		if q != nil && q.state == queueClosed {
			q.reopen()
		}
		return false
	}
	if len(q.free) >= 2*keepRequests {
		q.trim()
	}
	q.counter.Begin()
	defer q.counter.End()
	bytes, work := int64(0), 0
	for range budget {
		if q.held >= q.granted && !q.moreRoom() {
			return worked
		}
		r := q.get()
		if !vq.Pop(&r.chain) {
			q.put(r)
			return worked
		}
		worked = true
		work += r.chain.Work()
		if q.failed != nil {
			r.fail(q.failed)
		} else {
			r.start()
		}
		// Ended or not, the request keeps this until it is popped into again.
		if bytes += r.bytes; bytes >= budgetBytes || work >= budgetWork {
			break
		}
	}
	return worked
}

// fail ends a request that nothing is begun of.
func (r *request) fail(err error) {
	defer func() {
		// A fault on the guest's memory ends this, and nobody has the request then.
		if r.chain.InFlight() {
			r.q.drop(r)
		}
	}()
	if _, _, perr := r.parse(); perr != errNoStatus {
		r.finish(err)
	}
}

func (q *queue) get() *request {
	if n := len(q.free); n > 0 {
		r := q.free[n-1]
		q.free = q.free[:n-1]
		return r
	}
	r := &request{q: q, at: len(q.requests)}
	r.transfer = newTransfer(r)
	q.requests = append(q.requests, r)
	return r
}

func (q *queue) put(r *request) {
	r.status, r.ranges = nil, nil
	q.held -= r.units
	if q.granted > queueUnits {
		q.shrink(q.held + roomChunk)
	}
	if r.units > keepBuffers {
		r.chain = virtq.Chain{} // its memory goes
	}
	r.units = 0
	q.free = append(q.free, r)
}

// drop drops a request that returns to the ring unanswered, or whose ring is broken.
func (q *queue) drop(r *request) {
	q.vq.Unpop(&r.chain)
	q.put(r)
}

// recall takes back the operations that wait for a place to be done in, as if they had come back
// cancelled. On the reactor, when the queue is held.
func (q *queue) recall() {
	for _, r := range q.requests {
		if r.op == nil {
			continue
		}
		if err, recalled := r.op.recall(); recalled {
			r.op = nil
			r.end(err)
		}
	}
}

// cancel interrupts the queue's own transfers, with the device open; they end soon after.
// Operations that have begun are interrupted by nothing but the close of the device. It begins
// with the request at from, does one turn's worth, and returns with which to go on, and whether
// that was all. On the reactor.
func (q *queue) cancel(from int) (next int, all bool) {
	if from == 0 {
		q.recall()
	}
	next = min(from+stopTurn, len(q.requests))
	for _, r := range q.requests[from:next] {
		if !r.inDriver() {
			continue
		}
		_ = q.node.CancelBuf(&r.transfer.buf)
		// For a driver that has no such function, but works by the reactor.
		q.loop.AIO().Cancel(&r.transfer.buf)
	}
	return next, next == len(q.requests)
}

// stopTurn is how many requests are cancelled, or ended, before other rings of the reactor have
// their turn.
const stopTurn = 2048
