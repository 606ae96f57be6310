package virtioblk

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/virtq"
)

// queue is a started virtqueue and its requests. But for the fields that newQueue sets it is its reactor's.
type queue struct {
	d        *Device
	vq       *vhostuser.Queue
	loop     vhostuser.Loop
	aio      devsw.AIO
	features uint64
	stable   bool // writes are stable when they complete, whatever writeback says: the driver cannot flush

	disabled bool // PauseQueue was called, and ResumeQueue not; the connection's goroutine only

	// Changed by the queue's reactor, or before it has the queue, under Device.mu.
	open    *specfs.Life
	node    *specfs.Node    // open's
	counter *specfs.Counter // of open's node

	ready    bool  // the open has succeeded or failed, and requests may be started
	failed   error // with what they end then
	parking  bool  // see park
	orphaned bool  // open was closed for another queue's sake
	waits    bool  // to be reopened once a stop is over
	fetched  uint64
	account
	free     []*request
	requests []*request    // all
	parked   []*request    // have come back cancelled, and are kept
	idle     chan struct{} // closed when nothing is in flight but what is parked; nil if nobody waits
}

func newQueue(d *Device, vq *vhostuser.Queue) *queue {
	return &queue{account: account{granted: queueUnits}, d: d, vq: vq, loop: vq.Loop(), aio: vq.Loop().AIO(), features: d.negotiated,
		stable: d.negotiated&fFlush == 0}
}

// opened lets the queue's requests go, or fail, according to how the open went: first those that were kept. On the reactor.
func (q *queue) opened(o *specfs.Life) {
	if o != q.open || q.parking {
		return
	}
	q.ready, q.failed = true, nil
	switch {
	case o.Err() != nil:
		q.failed = errNotOpen
	case q.d.memory.lost():
		q.failed = errLost
	}
	parked := q.takeParked()
	for _, r := range parked {
		if q.failed != nil {
			r.end(q.failed)
		} else {
			r.again()
		}
	}
	q.vq.Wake()
}

// park fetches no more, and keeps from now on what comes back cancelled: when the queue is stopped, settle says what becomes of
// it, and where it goes on instead, because it was only disabled, or the device was closed for another one, it is handed to
// the device again. On the reactor.
func (q *queue) park() { q.ready, q.parking = false, true }

// resume goes on where park has left off: at once, unless the device was closed meanwhile. On the reactor.
func (q *queue) resume() {
	o := q.open
	q.d.mu.Lock()
	closed := q.d.open != o
	q.d.mu.Unlock()
	if closed {
		return // reopen comes, when the close has been done
	}
	q.parking = false
	if ended(o.Began()) {
		q.opened(o)
	}
}

// orphan says that the device has been closed. On the reactor.
func (q *queue) orphan() {
	q.orphaned = true
	q.vq.Wake()
}

// reopen opens the device again, or shares the open that there is. It waits for the end of a stop in which this ring may
// be disabled next: the device would be opened only to be closed again. On the reactor.
func (q *queue) reopen() {
	d := q.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if left := d.stop.reopensIn(time.Now()); left > 0 {
		if !q.waits {
			q.waits = true
			time.AfterFunc(left, func() { q.vq.Post(q.waited) })
		}
		return
	}
	q.orphaned, q.parking = false, false
	q.counter.Release()
	d.openLocked(q)
}

// waited says that reopen is to be tried again. On the reactor.
func (q *queue) waited() {
	q.waits = false
	q.vq.Wake()
}

// keep takes a request that has come back cancelled by err, which is to be ended with it or started again. On the reactor.
func (q *queue) keep(r *request, err error) {
	r.kept = err
	q.parked = append(q.parked, r)
	q.checkIdle()
}

// takeParked takes what is kept, in the order it was fetched in. On the reactor.
func (q *queue) takeParked() []*request {
	parked := q.parked
	q.parked = nil
	slices.SortFunc(parked, func(a, b *request) int { return cmp.Compare(a.seq, b.seq) })
	return parked
}

// wait waits until nothing is in flight but what is parked, or ctx is done, whose error it then returns. Not on a reactor.
func (q *queue) wait(ctx context.Context) error {
	idle := make(chan struct{})
	q.vq.Do(func() {
		q.idle = idle
		q.checkIdle()
	})
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	q.vq.Do(func() { q.idle = nil })
	select {
	case <-idle:
		return nil
	default:
		return ctx.Err()
	}
}

func (q *queue) checkIdle() {
	if q.idle != nil && q.vq.InFlight() == len(q.parked) {
		close(q.idle)
		q.idle = nil
	}
}

// abandon keeps the operations in flight, as if they had come back cancelled, if they are none that use the guest's memory; they
// go on by themselves. On the reactor.
func (q *queue) abandon() {
	var ops []*request
	for _, r := range q.requests {
		switch {
		case !r.chain.InFlight() || r.kept != nil:
		case r.op == nil:
			return
		default:
			ops = append(ops, r)
		}
	}
	for _, r := range ops {
		// One that has ended meanwhile tells so in a moment.
		if r.op.settled.CompareAndSwap(false, true) {
			r.op = nil
			q.keep(r, devsw.ECANCELED)
		}
	}
}

// settle ends what is parked, when nothing else is in flight: what has not reached the driver is given back, newest first, as
// far as it was fetched last; the rest is suspended, or fails. Other rings of the reactor have their turn between. Not on a
// reactor.
func (q *queue) settle(suspend bool) {
	q.vq.Do(func() {
		q.parked = q.takeParked()
		for n := len(q.parked) - 1; n >= 0; n-- {
			r := q.parked[n]
			// It got no section: see cancelled.
			if !errors.Is(r.kept, devsw.ENXIO) || !q.vq.CanUnpop(&r.chain) {
				break
			}
			q.parked = q.parked[:n]
			q.drop(r)
		}
	})
	for left := true; left; {
		q.vq.Do(func() {
			n := min(len(q.parked), stopTurn)
			turn := q.parked[:n]
			q.parked = q.parked[n:]
			for _, r := range turn {
				if suspend {
					r.suspend()
				} else {
					r.finish(r.kept)
				}
			}
			left = len(q.parked) > 0
		})
	}
	q.parked = nil
}

// Process implements vhostuser.Device.
func (d *Device) Process(vq *vhostuser.Queue) (worked bool) {
	q, _ := vq.Data.(*queue)
	if q == nil || !q.ready {
		if q != nil && q.orphaned {
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

// fail ends a request that was not even looked at.
func (r *request) fail(err error) {
	r.typ, r.sector, r.bytes, r.in = ^uint32(0), 0, 0, 0
	if _, _, perr := r.parse(); perr != nil && r.status == nil {
		r.q.vq.Break(perr)
		r.q.drop(r)
		return
	}
	r.end(err)
}

func (q *queue) get() *request {
	if n := len(q.free); n > 0 {
		r := q.free[n-1]
		q.free = q.free[:n-1]
		return r
	}
	r := &request{q: q, at: len(q.requests)}
	r.transfer = newTransfer(r, nil)
	q.requests = append(q.requests, r)
	return r
}

func (q *queue) put(r *request) {
	r.transfer.data, r.status, r.kept, r.ranges = nil, nil, nil, nil
	q.held -= r.units
	if q.granted > queueUnits {
		q.giveBack(q.held + roomChunk)
	}
	if r.units > keepBuffers {
		r.chain = virtq.Chain{} // its memory goes
	}
	r.units = 0
	q.free = append(q.free, r)
	if q.idle != nil {
		q.checkIdle()
	}
}

// drop gives up a request that is given back unanswered, or whose ring is broken.
func (q *queue) drop(r *request) {
	q.vq.Unpop(&r.chain)
	q.put(r)
}

// recall takes back the operations that wait for a place to be done in, as if they had come back cancelled. On the reactor, when the
// queue is parked.
func (q *queue) recall() {
	for _, r := range q.requests {
		if r.op == nil {
			continue
		}
		if err, recalled := r.op.recall(); recalled {
			r.op = nil
			q.keep(r, err)
		}
	}
}

// cancel interrupts the queue's own transfers, with the device open; they end soon after. Operations that have begun are interrupted
// by nothing but the close of the device. It begins with the request at from, does one turn's worth, and returns with which to go on,
// and whether that was all. On the reactor.
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
		q.aio.Cancel(&r.transfer.buf)
	}
	return next, next == len(q.requests)
}

// stopTurn is how many requests are cancelled, or ended, before other rings of the reactor have their turn.
const stopTurn = 2048
