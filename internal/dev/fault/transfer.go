package fault

import (
	"sync"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// xfer is a transfer that the lower device has in progress for one of ours.
type xfer struct {
	sc        *softc
	b         *devsw.Buf // ours
	buf       devsw.Buf  // the lower device's
	cut       int64      // how many bytes of b are not in buf
	data      [][]byte   // the storage of buf.Data, where that is not b's
	overlay   []patch    // what is to be put over the data that was read
	inContext bool       // the lower device was called on the goroutine that issued b

	// Under xferList.mu:

	prev, next *xfer
	kept       bool // whoever has kept it may still name it: it is not used again
}

// xferList is the transfers that the lower device has in progress, for CancelBuf to find them. Its
// lock is a leaf.
type xferList struct {
	mu    sync.Mutex
	first *xfer
	begun uint64
	of    devsw.BufIndex[*xfer]
}

func (l *xferList) add(x *xfer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x.next = l.first; x.next != nil {
		x.next.prev = x
	}
	l.first = x
	l.begun++
}

// remove takes x out, and tells whether it is kept.
func (l *xferList) remove(x *xfer) (kept bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		l.first = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	}
	l.of.Ended(x.b)
	return x.kept
}

// keep finds the transfer for b, and keeps it from being used again once it has ended: a cancel of
// it that comes late must not hit another one.
func (l *xferList) keep(b *devsw.Buf) *xfer {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, ok := l.of.Find(b, l.begun, func(yield func(*devsw.Buf, *xfer) bool) {
		for x := l.first; x != nil; x = x.next {
			if !yield(x.b, x) {
				return
			}
		}
	})
	if ok {
		x.kept = true
	}
	return x
}

var xfers = sync.Pool{New: func() any { return new(xfer) }}

// strategy is d_strategy.
func (d *Driver) strategy(b *devsw.Buf) {
	sc := d.Get(b.Dev)
	if sc == nil {
		b.InContext = true
		b.Fail(devsw.ENXIO)
		return
	}
	op := Read
	if b.Op == devsw.BWrite {
		op = Write
	}
	sc.ops[op.index()].Add(1)
	if sc.armed.Load() || sc.cache != nil {
		sc.slow(op, b)
		return
	}
	sc.pass(b, b.Bcount, nil, true)
}

// slow starts a transfer that rules or the cache may have to do with.
func (sc *softc) slow(op Ops, b *devsw.Buf) {
	sc.mu.Lock()
	if !sc.opened {
		sc.mu.Unlock()
		b.InContext = true
		b.Fail(devsw.ENXIO)
		return
	}
	v := sc.decideLocked(op, b.Blkno*devsw.DEVBSIZE, b.Bcount)
	if !v.holds() {
		sc.mu.Unlock()
		sc.begin(b, v, true)
		return
	}
	set := &sc.held
	if v.uncancellable {
		set = &sc.lost
	} else if sc.cv.Cancelled() {
		sc.mu.Unlock()
		b.InContext = true
		b.Fail(devsw.ECANCELED)
		return
	}
	defer sc.mu.Unlock()
	h := sc.holdLocked(op, b.Blkno*devsw.DEVBSIZE, b.Bcount, v)
	// It does not fail: the set is cancelled only once the Cv is, and reset with it.
	h.ticket, _ = set.Add(b)
	h.buf, h.set = b, set
}

// cancelBuf is CancelBuf: a transfer that is delayed, or hangs, ends with ECANCELED where a rule
// does not forbid it, and one that the lower device has is interrupted there. What waits for the
// cache to be written out ends by itself.
func (d *Driver) cancelBuf(b *devsw.Buf) {
	sc := d.Get(b.Dev)
	if sc == nil {
		return
	}
	sc.mu.Lock()
	h, ok := sc.holdOf.Find(b, sc.lastHold, func(yield func(*devsw.Buf, *hold) bool) {
		for h := range sc.holds {
			if h.set == &sc.held && !yield(h.buf, h) {
				return
			}
		}
	})
	if ok {
		sc.forgetLocked(h)
	}
	sc.mu.Unlock()
	if sc.held.CancelBuf(b) {
		return
	}
	if x := sc.xfers.keep(b); x != nil {
		_ = sc.table.BdevCancelBuf(&x.buf) // it can, or it cannot
	}
}

// begin does, or lets the lower device do, what is left of a transfer once it is not held any more.
// inContext: on the goroutine that issued it.
func (sc *softc) begin(b *devsw.Buf, v verdict, inContext bool) {
	n := b.Bcount
	if inContext && sc.cache != nil && n > maxWrite {
		// The cache is looked through, and copied to and from, at a length that a context does not
		// have for one transfer.
		b.InContext = false
		go sc.begin(b, v, false)
		return
	}
	b.InContext = inContext
	switch {
	case v.crash != nil:
		b.InContext = false
		go func() {
			_ = sc.crash(v.crash)
			b.Fail(devsw.EIO)
		}()
		return
	case v.errno != 0:
		b.Fail(v.errno)
		return
	case v.short:
		if n = v.bytes; n == 0 {
			b.Error, b.Resid = 0, b.Bcount
			b.Biodone()
			return
		}
	}
	switch {
	case sc.cache == nil:
		sc.pass(b, n, nil, inContext)
	case b.Op == devsw.BRead:
		// Looked up first: what is written out and forgotten while the lower device reads must not
		// be missed in both places.
		sc.pass(b, n, sc.cache.overlay(b.Blkno*devsw.DEVBSIZE, n), inContext)
	default:
		sc.keep(b, n)
	}
}

// pass hands the first n bytes of a transfer to the lower device.
func (sc *softc) pass(b *devsw.Buf, n int64, overlay []patch, inContext bool) {
	// For the transfer, and for the call: either may end first.
	if !sc.lower.AcquireN(2) {
		b.InContext = inContext
		b.Fail(devsw.ENXIO)
		return
	}
	b.InContext = false // until the lower device says otherwise
	x := xfers.Get().(*xfer)
	x.sc, x.b, x.cut, x.overlay, x.inContext = sc, b, b.Bcount-n, overlay, inContext
	l := &x.buf
	l.Rearm()
	l.Op, l.Flags, l.Dev, l.Blkno, l.Data, l.Bcount = b.Op, b.Flags, sc.conf.Lower, b.Blkno, b.Data, n
	if x.cut != 0 {
		x.data = head(x.data[:0], b.Data, n)
		l.Data = x.data
	}
	l.Iodone, l.Context, l.AIO = passed, x, nil
	if inContext {
		l.AIO = b.AIO
	}
	sc.xfers.add(x)
	sc.table.BdevStrategy(l)
	sc.lower.Release()
}

// head appends the first n bytes of data to p.
func head(p, data [][]byte, n int64) [][]byte {
	for _, d := range data {
		if n == 0 {
			break
		}
		d = d[:min(n, int64(len(d)))]
		n -= int64(len(d))
		p = append(p, d)
	}
	return p
}

// passed ends our transfer when the lower device's has ended.
func passed(l *devsw.Buf) {
	x := l.Context.(*xfer)
	sc, b := x.sc, x.b
	b.Error, b.Resid = l.Error, l.Resid+x.cut
	b.InContext = l.InContext && x.inContext
	for _, p := range x.overlay {
		if b.Error == 0 {
			b.Error = b.MoveAt(p.data, p.off)
		}
	}
	if !sc.xfers.remove(x) {
		clear(x.data)
		*x = xfer{data: x.data[:0]}
		xfers.Put(x)
	}
	b.Biodone()
	sc.lower.Release()
}

// keep writes the first n bytes of a transfer to the cache. With BMediaFUA, or where the cache is
// full, the transfer ends when they, or all that the cache has, have been written out.
func (sc *softc) keep(b *devsw.Buf, n int64) {
	if !sc.lower.Acquire() {
		b.Fail(devsw.ENXIO)
		return
	}
	if !sc.keepAcquired(b, n) {
		sc.lower.Release()
	}
}

// keepAcquired is keep with the lower device acquired. later: a goroutine ends the transfer, and
// releases the lower device.
func (sc *softc) keepAcquired(b *devsw.Buf, n int64) (later bool) {
	info, err := sc.conf.Info()
	if err != nil {
		b.Fail(devsw.ToErrno(err))
		return false
	}
	bounds := disk.Bounds{Size: info.Size, High: info.Size, Sector: sc.sector, ReadOnly: info.ReadOnly}
	off, fits, ok := disk.Check(b, bounds)
	if !ok {
		return false
	}
	n = min(n, fits)
	full, e := sc.cache.put(b, off, n)
	if e != 0 {
		b.Fail(e)
		return false
	}
	b.Error, b.Resid = 0, b.Bcount-n
	fua := b.Flags & devsw.BMediaFUA
	if fua == 0 && !full {
		b.Biodone()
		return false
	}
	b.InContext = false
	what := everything
	if !full {
		what = sc.cache.extent(off, n)
	}
	go func() {
		if e := sc.writeBack(what, fua); e != 0 {
			b.Error, b.Resid = e, b.Bcount
		}
		sc.lower.Release()
		b.Biodone()
	}()
	return true
}
