package virtioblk

import (
	"sync/atomic"

	"vdev/devsw"
	"vdev/virtq"
)

// transfer is the driver's half of a request: what it uses of a read or a write until it has
// returned it by biodone. Each request has one, which is used again with it.
//
// A fence abandons the transfer: the request goes on without it, as if it had come back cancelled,
// and gets another one. Whatever the driver still does with the one abandoned, nobody waits for it
// but the close of the device, and so the next open.
type transfer struct {
	q      *queue
	buf    devsw.Buf // Context is the transfer
	data   [][]byte  // guest memory: the driver may have other memory in buf.Data meanwhile
	traced bool      // iodone has told how it ended
	// of is the request whose half this is; nil once the transfer is abandoned.
	of atomic.Pointer[request]
	// memory is what data lies in, with a reference that is the transfer's, once it is
	// abandoned.
	memory *virtq.Memory
}

func newTransfer(r *request) *transfer {
	t := &transfer{q: r.q, buf: devsw.Buf{Iodone: iodone, AIO: r.q.loop.AIO()}}
	t.buf.Context = t
	t.of.Store(r)
	return t
}

// submit hands a read or a write to the device. data is guest memory.
func (r *request) submit(data [][]byte) {
	q, t := r.q, r.transfer
	b := &t.buf
	b.Rearm()
	b.Op, b.Flags, b.Blkno, b.Bcount = devsw.BRead, 0, int64(r.sector), r.bytes
	if r.typ == tOut {
		b.Op = devsw.BWrite
		if q.d.stable.Load() {
			b.Flags = devsw.BMediaFUA
		}
	}
	b.Data, t.data = data, data
	q.node.Strategy(q.counter, b)
}

// iodone has the request of a Buf ended, on the reactor. Any goroutine.
//
// How a transfer ends is traced here where the reactor gets to know it later: in its I/O section,
// before the drain that waits for it is over. So is it where it comes back cancelled; what becomes
// of the request is traced when it does, which may be after the close. How one that was abandoned
// ends is nobody's business.
func iodone(b *devsw.Buf) {
	t := b.Context.(*transfer)
	if trace := t.q.d.config.Trace; trace != nil {
		t.trace(trace)
	}
	if !b.InContext {
		t.q.vq.Post(t.done)
		return
	}
	t.done()
}

// trace tells how the transfer has ended, as far as iodone is to tell it. Any goroutine. It does
// not look at the request, which a fence may take away meanwhile, and begin again.
func (t *transfer) trace(tell func(Request)) {
	if t.of.Load() == nil {
		return
	}
	b := &t.buf
	told := Request{Queue: t.q.vq.Index(), Type: tIn, Sector: uint64(b.Blkno), Bytes: b.Bcount}
	if b.Op == devsw.BWrite {
		told.Type = tOut
	}
	switch {
	case b.Error == devsw.ECANCELED || b.Error == devsw.EINTR:
		told.Err, told.Cancelled = b.Error, true
		tell(told)
	case !b.InContext && b.Error == 0 && b.Resid == 0:
		t.traced = true
		tell(told)
	}
}

// done ends the request with the result of its Buf. On the reactor.
func (t *transfer) done() {
	b, r := &t.buf, t.of.Load()
	if r == nil {
		t.letGo()
		return
	}
	var err error
	switch {
	case b.Error != 0:
		err = b.Error
	case b.Resid != 0:
		err = devsw.EIO
	}
	if err != nil && !cancelled(err) && (r.typ == tOut || err == devsw.ESTALE) {
		r.q.d.Learn()
	}
	if err != nil {
		r.storageFailed(err)
	}
	r.end(err)
}

// inDriver tells whether the request is a read or a write that the driver has. On the reactor.
//
// A chain that is not in flight may have a request all the same, which nobody ends: Process has
// lost both in a fault on the guest's memory (vhostuser.Queue.RecoverFault).
func (r *request) inDriver() bool {
	return r.chain.InFlight() && (r.typ == tIn || r.typ == tOut)
}

// abandon leaves the request's transfer to the driver, and suspends the request, as if the
// transfer had come back cancelled. On the reactor.
func (r *request) abandon() *transfer {
	q, t := r.q, r.transfer
	t.memory = q.vq.Memory(&r.chain)
	t.of.Store(nil)
	r.transfer = newTransfer(r)
	r.chain.Readable, r.chain.Writable = nil, nil // the lists are the transfer's, too
	q.d.lost.Acquire()
	q.open.Hold()
	r.suspend(devsw.ECANCELED)
	return t
}

// letGo ends a transfer that was abandoned, when the driver has returned it. On the reactor.
func (t *transfer) letGo() {
	memory := t.memory
	t.memory, t.data, t.buf.Data = nil, nil, nil
	memory.ReleaseSoon()
	t.q.d.lost.Release()
	t.q.open.Release()
}
