package reactor

import (
	"syscall"

	"vdev/devsw"
	"vdev/internal/uring"
)

var _ devsw.AIO = (*Reactor)(nil)

// transfers are a reactor's file transfers in flight, and what it has learnt of their files. They
// are the reactor's own.
type transfers struct {
	ops      []*op
	freeOps  []*op
	opOf     devsw.BufIndex[*op] // for Cancel
	inflight int
	inEngine int    // of those
	requests uint32 // transfers that were begun, modulo 1<<32

	queue   []*op // to be made in line, from next on
	next    int
	queued  int64 // bytes of those
	turns   []*op // that wait for their turn
	calls   calls // hostCalls, but in tests
	calling *op   // the last one whose call might have waited; nil: it was the engine's submit
	reading reading

	files []file // by descriptor
	stuck int    // of all files
}

// op is one transfer in flight. Ops are the reactor's and are used again.
type op struct {
	r     *Reactor
	slot  uint32 // index in r.ops
	buf   *devsw.Buf
	done  devsw.AIODone
	fd    int
	write bool
	sync  bool     // RWF_DSYNC
	data  [][]byte // what is left of the transfer
	off   int64    // byte of the file where data belongs
	moved int64    // bytes transferred so far

	iov       []uring.Iovec
	rest      [][]byte // data's own storage, once a transfer came back short
	cancelled bool
	forced    bool // not to be tried in line, or not again
	tries     int  // how often storage has said EAGAIN or EINTR since bytes were moved last
	mayBlock  bool // devsw.BMayBlock
	mayWait   bool // the engine has it, and its submission may wait
	aside     bool // the engine is to leave its submission to a thread
	stuck     bool // counts in Reactor.stuck
	place     place

	part [][]byte // what piece cut off

	// While it waits for a thread, under workers.mu: its neighbours there, and its lane.
	prev, next *op
	lane       *lane

	// How it ended, where that was elsewhere (threads, a call that stalled). next is another that
	// has, then.
	res   int
	errno syscall.Errno
}

// mostTries is how often a transfer is made again that storage has said EAGAIN or EINTR of. The
// engine says that of a call that a signal has interrupted; a file system whose server answers so
// by itself (FUSE, a network's) would keep a processor busy for nothing.
const mostTries = 100

// place is where an op in flight is.
type place uint8

const (
	inQueue  place = iota // in Reactor.queue
	inTurns               // in Reactor.turns
	inEngine              // the engine has it
	inThread              // the crew has it: its file is stuck, or the kernel has no thread
	inLost                // an engine has it that has lost the reactor
	inCall                // a thread is in the middle of its system call
)

// ReadAt implements devsw.AIO. On the reactor.
func (r *Reactor) ReadAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	r.begin(b, fd, off, done, false)
}

// WriteAt implements devsw.AIO. On the reactor.
func (r *Reactor) WriteAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	r.begin(b, fd, off, done, true)
}

func (r *Reactor) begin(b *devsw.Buf, fd int, off int64, done devsw.AIODone, write bool) {
	o := r.newOp(b, done)
	o.fd, o.off, o.data = fd, off, b.Data
	o.write, o.sync = write, write && b.Flags&devsw.BMediaFUA != 0
	o.mayBlock = b.Flags&devsw.BMayBlock != 0
	o.forced = o.mayBlock
	if b.Bcount > inlineMost {
		r.awaitTurn(o)
		return
	}
	if r.takesInline(o) {
		o.place = inQueue
		r.queue = append(r.queue, o)
		r.queued += o.weight()
		return
	}
	o.start()
}

// bufferWeight is how many bytes it takes as long to copy as the host takes for one more buffer.
const bufferWeight = 256

// weight is how many bytes a transfer counts as while it is queued.
func (o *op) weight() int64 { return o.buf.Bcount + bufferWeight*int64(len(o.data)-1) }

// newOp begins a transfer of b.
func (r *Reactor) newOp(b *devsw.Buf, done devsw.AIODone) *op {
	var o *op
	if n := len(r.freeOps); n > 0 {
		o = r.freeOps[n-1]
		r.freeOps = r.freeOps[:n-1]
	} else {
		o = &op{r: r, slot: uint32(len(r.ops)), iov: make([]uring.Iovec, 0, 8)}
		r.ops = append(r.ops, o)
	}
	o.buf, o.done, o.moved, o.cancelled, o.tries = b, done, 0, false, 0
	r.inflight++
	r.requests++
	return o
}

// CancelAll implements devsw.AIO. Any goroutine; it does not wait.
func (r *Reactor) CancelAll(done devsw.AIODone) {
	r.Post(func() {
		for _, o := range r.ops {
			if o.buf != nil && o.done == done {
				r.cancel(o)
			}
		}
	})
}

// Cancel implements devsw.AIO. On the reactor.
func (r *Reactor) Cancel(b *devsw.Buf) {
	o, ok := r.opOf.Find(b, uint64(r.requests), func(yield func(*devsw.Buf, *op) bool) {
		for _, o := range r.ops {
			if o.buf != nil && !yield(o.buf, o) {
				return
			}
		}
	})
	if ok {
		r.cancel(o)
	}
}

// cancel interrupts o if it is in flight and the host can. On the reactor.
func (r *Reactor) cancel(o *op) {
	if o.cancelled {
		return
	}
	o.cancelled = true
	switch o.place {
	case inEngine:
		r.eng.cancel(o)
	case inThread:
		if r.crew.of(o).take(o) {
			o.ended(0, syscall.ECANCELED)
		}
	}
	// What is queued, or waits for its turn, ends when that comes, and what a thread is in the
	// middle of by itself.
}

// ended takes the result of one system call's worth of o: the number of bytes or an errno. It goes
// on with the rest of a short transfer, and else tells the driver.
func (o *op) ended(n int, errno syscall.Errno) {
	if o.place == inEngine {
		o.r.inEngine--
		if o.mayWait || o.aside {
			o.mayWait, o.aside = false, false
			o.r.of(o).begun--
		}
	}
	switch {
	case errno == syscall.EAGAIN || errno == syscall.EINTR || errno == syscall.EOPNOTSUPP && o.place == inCall:
		// The last: RWF_NOWAIT is not known, and the engine does without.
		switch {
		case o.cancelled:
			errno = syscall.ECANCELED
		case o.tries < mostTries:
			o.tries++
			o.forced = true
			o.start()
			return
		case errno == syscall.EINTR:
			errno = syscall.EIO // it was not cancelled
		}
	case errno == syscall.ECANCELED && !o.cancelled && (o.place == inEngine || o.place == inLost) && o.r.mode == ModeURing:
		// The kernel could not make a thread for it: the host allows no more tasks. We have ours.
		o.byThread()
		return
	case errno == 0 && n > 0:
		o.moved += int64(n)
		o.tries = 0
		if o.moved < o.buf.Bcount {
			if !o.cancelled {
				o.advance(n)
				if o.buf.Bcount > inlineMost {
					o.r.awaitTurn(o)
				} else {
					o.start()
				}
				return
			}
			errno = syscall.ECANCELED
		}
	}
	b, done, moved := o.buf, o.done, o.moved
	o.free()
	b.InContext = true
	done.AIODone(b, moved, errno)
}

// keepBuffers is for how many buffers an op keeps room until it is used again. Transfers of more
// are rare, and make it anew.
const keepBuffers = 512

// free makes o one that can be used again.
func (o *op) free() {
	o.r.opOf.Ended(o.buf)
	o.buf, o.done, o.data = nil, nil, nil
	clear(o.rest)
	clear(o.part)
	if cap(o.iov)+cap(o.rest)+cap(o.part) > keepBuffers {
		o.iov, o.rest, o.part = nil, nil, nil
	}
	o.r.freeOps = append(o.r.freeOps, o)
	o.r.inflight--
}

// advance cuts n bytes off the front of o.data.
func (o *op) advance(n int) {
	o.off += int64(n)
	for n >= len(o.data[0]) {
		n -= len(o.data[0])
		o.data = o.data[1:]
	}
	o.rest = append(o.rest[:0], o.data...)
	o.rest[0] = o.rest[0][n:]
	o.data = o.rest
}
