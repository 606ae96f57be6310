package virtioblk

import (
	"errors"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/offload"
	"vdev/specfs"
)

// slow does a request that may block, away from the reactor, and ends it with the result.
func (r *request) slow() {
	o := &operation{d: r.q.d, r: r, q: r.q, open: r.q.open, typ: r.typ, ranges: r.ranges}
	o.job.Owner, o.job.Piece = o, o.piece
	if r.typ == tFlush {
		o.job.Joint = o.cover
	}
	r.op = o
	o.open.Hold()
	r.q.d.share.Add(&o.job)
}

// operation is what a request that may block does. It uses nothing of the guest's memory: it may
// go on when nobody waits for it any more. What it does stands in an I/O section of specfs. Where
// it has no place it waits as it is (see offload), and can be taken back.
type operation struct {
	d      *Device
	open   *specfs.Life
	typ    uint32
	ranges []devsw.ZeroRange // nobody changes them
	job    offload.Job

	// Whose it is. Once it is settled they are not touched.
	q *queue
	r *request

	begun   bool         // some of it has been done, or is being done
	next    int          // the range whose turn it is
	done    int64        // bytes of it
	covered []*operation // flushes that this one is for, too
	// it has ended, or was given up: whoever sets this says what becomes of the request
	settled  atomic.Bool
	recalled atomic.Bool // what is left is not to be done
	flushErr error       // how its flush failed
	flushed  bool        // its flush has succeeded
}

// A discard, and a write-zeroes, is done in pieces of so many bytes: others have their turns in
// between, and a stop need not wait for the rest. Whole blocks stay whole. Where the host has to
// write zeroes one by one, a piece takes a while.
const (
	discardPiece     = 2 << 30
	writeZeroesPiece = 64 << 20
)

// turn is for how long one operation goes on with further pieces before others have their turns.
const turn = 10 * time.Millisecond

// piece is offload.Job's. It does pieces for a turn.
func (o *operation) piece() (more bool) {
	for begun := time.Now(); ; {
		if o.begun && (o.recalled.Load() || o.settled.Load()) {
			o.end(devsw.ECANCELED)
			return false
		}
		o.begun = true
		more, err := o.step()
		if err != nil || !more {
			o.end(err)
			return false
		}
		if time.Since(begun) >= turn {
			return true
		}
	}
}

// step does the next piece, or the flush that comes last.
func (o *operation) step() (more bool, err error) {
	switch {
	case o.next < len(o.ranges):
		err = o.doRange()
		return o.next < len(o.ranges) || o.d.stable.Load(), err
	case o.typ == tFlush || o.d.stable.Load():
		err = o.flush()
	}
	return false, err
}

// doRange does the next piece of the range whose turn it is.
func (o *operation) doRange() (err error) {
	whole := o.ranges[o.next]
	most := int64(discardPiece)
	if o.typ == tWriteZeroes {
		most = writeZeroesPiece
	}
	z := devsw.ZeroRange{Pos: whole.Pos + o.done, Unmap: whole.Unmap}
	z.N = min(whole.N-o.done, most-z.Pos%most)
	switch {
	case z.N == 0:
	case o.typ == tDiscard:
		err = o.open.Node().Discard(z.Pos, z.N)
	default:
		err = o.open.Node().Ioctl(devsw.DIOCWRITEZEROES, &z, o.d.flag())
	}
	if o.done += z.N; o.done == whole.N {
		o.next, o.done = o.next+1, 0
	}
	return err
}

// cover is offload.Job's, for a flush: one that begins when others wait does what they would.
func (o *operation) cover(jobs []*offload.Job) {
	for _, j := range jobs {
		o.covered = append(o.covered, j.Owner.(*operation))
	}
}

// end ends the operation and those it covers, and each one's request with its result, unless that
// has been given up.
func (o *operation) end(err error) {
	if err != nil && !cancelled(err) {
		o.d.Learn()
	}
	o.tell(err)
	for _, c := range o.covered {
		c.flushErr, c.flushed = o.flushErr, o.flushed
		c.tell(err)
	}
}

// tell is end for one request.
func (o *operation) tell(err error) {
	defer o.open.Release()
	if !o.settled.CompareAndSwap(false, true) {
		o.keepQuiet()
		return
	}
	o.q.vq.Post(func() { o.told(err) })
}

// told ends the request of an operation that is settled. On the reactor.
func (o *operation) told(err error) {
	o.r.op, o.r.flushed = nil, o.flushed
	if err != nil {
		o.r.storageFailed(err)
	}
	o.r.end(err)
}

// recall takes the operation back, if it can be had, and tells whether it could: then it has
// ended, and err says how. On the reactor of its queue.
func (o *operation) recall() (err error, recalled bool) {
	o.recalled.Store(true)
	if !o.d.share.Remove(&o.job) {
		return nil, false
	}
	o.settled.Store(true)
	o.open.Release()
	if o.begun {
		return devsw.ECANCELED, true
	}
	return devsw.ENXIO, true // as if it had come to the device too late: see cancelled
}

func (o *operation) flush() error {
	unsaid := o.d.unsaid.Load()
	if unsaid != nil {
		// Only the guest's own flush is told for good: who looks at how a discard has ended?
		if o.typ == tFlush {
			o.d.unsaid.CompareAndSwap(unsaid, nil)
		}
		o.flushErr = *unsaid
		return o.flushErr
	}
	number := uint64(0)
	covers := o.d.memory.holds == devsw.HoldsToClose
	if covers {
		number = o.d.memory.beginFlush()
	}
	o.flushErr = o.open.Node().Ioctl(devsw.DIOCCACHESYNC, nil, o.d.flag())
	if o.flushed = o.flushErr == nil; o.flushed && covers {
		o.d.memory.endFlush(number)
	}
	return o.flushErr
}

// keepQuiet ends an operation that was given up. That a flush has failed is told once by the host,
// and often by drivers: the next flush, which may be the same one begun again, must not succeed as
// if nothing had been lost.
func (o *operation) keepQuiet() {
	if err := o.flushErr; err != nil && !cancelled(err) && !errors.Is(err, devsw.ESTALE) {
		o.d.unsaid.Store(&err)
	}
}
