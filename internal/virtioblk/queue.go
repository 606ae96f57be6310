package virtioblk

import (
	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
)

// queue is a started virtqueue and its requests. But for the fields that newQueue sets it is its reactor's.
type queue struct {
	d        *Device
	vq       *vhostuser.Queue
	aio      devsw.AIO
	open     *opening
	counter  *specfs.Counter
	features uint64
	stable   bool // writes are stable when they complete, whatever writeback says: the driver cannot flush

	ready    bool // the open has succeeded or failed
	failed   bool
	free     []*request
	requests []*request // all
}

func newQueue(d *Device, vq *vhostuser.Queue, o *opening) *queue {
	return &queue{d: d, vq: vq, aio: vq.Reactor(), open: o, counter: o.node.NewCounter(), features: d.negotiated,
		stable: d.negotiated&fFlush == 0}
}

// opened lets the queue's requests go, or fail, according to how the open went. On the reactor.
func (q *queue) opened() {
	q.ready = true
	q.failed = q.open.err != nil
	q.vq.Wake()
}

// Process implements vhostuser.Device.
func (d *Device) Process(vq *vhostuser.Queue) (worked bool) {
	q, _ := vq.Data.(*queue)
	if q == nil || !q.ready {
		return false
	}
	q.counter.Begin()
	defer q.counter.End()
	bytes := int64(0)
	for range budget {
		r := q.get()
		if !vq.Pop(&r.chain) {
			q.put(r)
			return worked
		}
		worked = true
		if q.failed {
			r.fail(errNotOpen)
			continue
		}
		r.start()
		// Ended or not, the request keeps this until it is popped into again.
		if bytes += r.bytes; bytes >= budgetBytes {
			break
		}
	}
	return worked
}

// fail ends a request that was not even looked at.
func (r *request) fail(err error) {
	r.typ, r.sector, r.bytes, r.in = ^uint32(0), 0, 0, 1
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
	r := &request{q: q}
	q.requests = append(q.requests, r)
	return r
}

func (q *queue) put(r *request) {
	r.status = nil
	q.free = append(q.free, r)
}

// drop gives up a request that cannot be answered: its ring is broken.
func (q *queue) drop(r *request) {
	q.vq.Unpop(&r.chain)
	q.put(r)
}

// cancel interrupts the queue's own requests; they end soon after. On the reactor.
func (q *queue) cancel() {
	for _, r := range q.requests {
		if r.status != nil {
			q.vq.Reactor().Cancel(&r.buf)
		}
	}
}
