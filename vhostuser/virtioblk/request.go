package virtioblk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/offload"
	"vdev/virtq"
)

// Request is what the trace hook is told of a request that has ended.
type Request struct {
	Queue  int
	Type   uint32 // VIRTIO_BLK_T_*
	Sector uint64 // of 512 bytes; of the first range for discard and write-zeroes
	Bytes  int64  // of data, or of the ranges
	Status uint8  // VIRTIO_BLK_S_*
	Err    error  // why Status is not OK
	// Suspended: it has not ended, and has no Status. It is left in the in-flight region, to be started again.
	Suspended bool
	// Cancelled: it is a transfer that the driver has given back cancelled, and has no Status yet. What becomes of it is told
	// when it does.
	Cancelled bool
	// Answered: the guest's driver is told now of what was cancelled, or came too late for the device. This is no I/O.
	Answered bool
}

// String gives the request as one readable line, without a newline.
func (r Request) String() string {
	s := fmt.Sprintf("queue %d %s", r.Queue, typeName(r.Type))
	switch r.Type {
	case tFlush, tGetID:
	default:
		s += fmt.Sprintf(" sector %d, %d bytes", r.Sector, r.Bytes)
	}
	switch {
	case r.Suspended:
		return s + ": suspended"
	case r.Cancelled:
		return s + ": cancelled"
	case r.Answered:
		return fmt.Sprintf("%s: answered with an i/o error: %v", s, r.Err)
	case r.Status == statusOK:
		return s + ": ok"
	case r.Status == statusUnsupp:
		return fmt.Sprintf("%s: unsupported: %v", s, r.Err)
	}
	return fmt.Sprintf("%s: i/o error: %v", s, r.Err)
}

func typeName(t uint32) string {
	switch t {
	case tIn:
		return "read"
	case tOut:
		return "write"
	case tFlush:
		return "flush"
	case tGetID:
		return "get-id"
	case tDiscard:
		return "discard"
	case tWriteZeroes:
		return "write-zeroes"
	}
	return fmt.Sprintf("request of type %d", t)
}

// What is wrong with a request itself. They end with VIRTIO_BLK_S_IOERR, errUnknown and errFlags with UNSUPP.
var (
	errHeader    = errors.New("header shorter than 16 bytes")
	errNoStatus  = errors.New("no room for the status byte")
	errDirection = errors.New("buffer in the wrong direction")
	errLength    = errors.New("length not a multiple of 512 bytes")
	errRange     = errors.New("beyond the end of the disk")
	errRanges    = errors.New("ranges malformed, none, or more than max_discard_seg or max_write_zeroes_seg")
	errShortID   = errors.New("no room for the serial number")
	errFlags     = errors.New("unknown flags in a range")
	errUnknown   = errors.New("unknown request type")
	errReadOnly  = errors.New("disk is read-only")
	errNotOpen   = errors.New("device could not be opened")
	errLost      = fmt.Errorf("what the guest has written is lost: %w", devsw.ESTALE)
)

// request is one request of a queue, from Pop to Push. Requests are the queue's and are used again.
type request struct {
	q      *queue
	chain  virtq.Chain
	buf    devsw.Buf
	data   [][]byte // guest memory of a read or a write
	status []byte   // the byte of guest memory for the status
	typ    uint32
	sector uint64
	bytes  int64
	in     int               // bytes that are written from the first writable one on, where all goes well; without the status
	ranges []devsw.ZeroRange // made anew for each request: an operation may use them for longer
	op     *operation        // in progress, of a request that may block
	seq    uint64            // the order of fetching
	traced bool              // by iodone
	fenced atomic.Bool       // memory is about to be set: how the transfer ends is nobody's business
	began  time.Duration     // by the reactor's clock
	kept   error             // while it is parked: what it came back with
	at     int               // in queue.requests
	units  int               // see Room
	// flushed: of a discard or write-zeroes, a flush has followed it before it ended.
	flushed bool

	// memory is set where the request is nobody's any more, but of the driver, which does not give its Buf back: see fence. It is what
	// the Buf's data lies in.
	memory *virtq.Memory
}

// parse reads the request's header, finds the status byte, and leaves the data in readable and writable.
// errNoStatus means that there is nowhere to answer.
func (r *request) parse() (readable, writable [][]byte, err error) {
	w := r.chain.Writable
	for len(w) > 0 && len(w[len(w)-1]) == 0 {
		w = w[:len(w)-1]
	}
	if len(w) == 0 {
		return nil, nil, errNoStatus
	}
	last := w[len(w)-1]
	r.status = last[len(last)-1:]
	if len(last) == 1 {
		w = w[:len(w)-1]
	} else {
		w[len(w)-1] = last[: len(last)-1 : len(last)-1]
	}

	rd := r.chain.Readable
	if len(rd) > 0 && len(rd[0]) >= headerSize {
		// The usual framing. Each field is read once.
		r.typ = binary.LittleEndian.Uint32(rd[0])
		r.sector = binary.LittleEndian.Uint64(rd[0][8:])
		if len(rd[0]) == headerSize {
			rd = rd[1:]
		} else {
			rd[0] = rd[0][headerSize:]
		}
		return rd, w, nil
	}
	var h [headerSize]byte
	rd, ok := take(h[:], rd)
	if !ok {
		return nil, nil, errHeader
	}
	r.typ = binary.LittleEndian.Uint32(h[:])
	r.sector = binary.LittleEndian.Uint64(h[8:])
	return rd, w, nil
}

// take copies the first len(p) bytes of bufs into p and returns what is left of bufs.
func take(p []byte, bufs [][]byte) ([][]byte, bool) {
	for len(p) > 0 {
		if len(bufs) == 0 {
			return nil, false
		}
		n := copy(p, bufs[0])
		p = p[n:]
		if n == len(bufs[0]) {
			bufs = bufs[1:]
		} else {
			bufs[0] = bufs[0][n:]
		}
	}
	return bufs, true
}

func length(bufs [][]byte) (n int64) {
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// start begins the request that was popped into r. It ends through r.end, on the reactor.
func (r *request) start() {
	r.q.fetched++
	r.seq, r.began, r.traced = r.q.fetched, r.q.reactor.Clock(), false
	r.typ, r.sector, r.bytes, r.in = ^uint32(0), 0, 0, 0
	r.q.charge(r)
	readable, writable, err := r.parse()
	if err != nil {
		if r.status == nil {
			r.q.vq.Break(fmt.Errorf("virtio-blk request at head %d: %w", r.chain.Head, err))
			r.q.drop(r)
			return
		}
		r.end(err)
		return
	}
	switch r.typ {
	case tIn:
		r.bytes = length(writable)
		r.in = int(r.bytes)
		r.transfer(devsw.BRead, writable, readable)
	case tOut:
		r.bytes = length(readable)
		r.transfer(devsw.BWrite, readable, writable)
	case tFlush:
		r.slow()
	case tGetID:
		r.getID(writable)
	case tDiscard, tWriteZeroes:
		if err := r.parseRanges(readable, length(writable)); err != nil {
			r.end(err)
			return
		}
		r.slow()
	default:
		r.end(errUnknown)
	}
}

// transfer hands a read or a write to the device. wrong is what must be empty.
func (r *request) transfer(op devsw.Op, data, wrong [][]byte) {
	d := r.q.d
	switch {
	case r.bytes%sectorSize != 0:
		r.end(errLength)
		return
	case len(wrong) > 0 && length(wrong) > 0:
		r.end(errDirection)
		return
	case op == devsw.BWrite && d.readOnly:
		r.end(errReadOnly)
		return
	}
	if size := uint64(d.sectors.Load()); r.sector > size || uint64(r.bytes/sectorSize) > size-r.sector {
		r.end(errRange)
		return
	}
	if r.bytes == 0 {
		r.end(nil)
		return
	}
	r.data = data
	r.submit()
}

// submit hands a read or a write to the device, for the first time or once more.
func (r *request) submit() {
	b := &r.buf
	b.Data = nil // it is the chain's memory, which is not to be cleared
	b.Reset()
	b.Op, b.Dev, b.Blkno = devsw.BRead, r.q.d.dev, int64(r.sector)
	b.Data, b.Bcount, b.Resid = r.data, r.bytes, r.bytes
	b.Iodone, b.AIO, b.Context = iodone, r.q.aio, r
	if r.typ == tOut {
		b.Op = devsw.BWrite
		if r.q.stable || r.q.d.stable.Load() {
			b.Flags = devsw.BMediaFUA
		}
	}
	r.q.open.node.Strategy(r.q.counter, b)
}

// iodone has the request of a Buf ended, on the reactor. Any goroutine.
//
// How a transfer ends is traced here where the reactor gets to know it later: in its I/O section, before the drain that
// waits for it is over. So is it where it comes back cancelled; what becomes of the request is traced when it does, which may
// be after the close.
func iodone(b *devsw.Buf) {
	r := b.Context.(*request)
	if d := r.q.d; d.trace != nil && !r.fenced.Load() {
		t := Request{Queue: r.q.vq.Index(), Type: r.typ, Sector: r.sector, Bytes: r.bytes}
		switch {
		case b.Error == devsw.ECANCELED || b.Error == devsw.EINTR:
			t.Err, t.Cancelled = b.Error, true
			d.trace(t)
		case !b.InContext && b.Error == 0 && b.Resid == 0:
			r.traced = true
			d.trace(t)
		}
	}
	if !b.InContext {
		r.q.vq.Post(r.done)
		return
	}
	r.done()
}

// done ends the request with the result of its Buf. On the reactor.
func (r *request) done() {
	if r.memory != nil {
		r.q.d.cameBack(r)
		return
	}
	b := &r.buf
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

// getID answers with the serial number, padded with zeros (section 5.2.6).
func (r *request) getID(writable [][]byte) {
	var id [idSize]byte
	copy(id[:], r.q.d.serial)
	if length(writable) < idSize {
		r.end(errShortID)
		return
	}
	rest := id[:]
	for _, w := range writable {
		n := copy(w, rest)
		rest = rest[n:]
	}
	r.in = idSize
	r.end(nil)
}

// parseRanges reads the ranges of a discard or write-zeroes request into r.ranges, in bytes, and validates them. One that is larger than
// max_discard_sectors or max_write_zeroes_sectors is taken all the same: there are drivers that split nothing (QEMU's, by libblkio), and
// an operation is done in pieces anyway.
func (r *request) parseRanges(readable [][]byte, writable int64) error {
	d := r.q.d
	total := length(readable)
	switch {
	case r.typ == tDiscard && r.q.features&fDiscard == 0, r.typ == tWriteZeroes && r.q.features&fWriteZeroes == 0:
		return errUnknown
	case d.readOnly:
		return errReadOnly
	case writable > 0:
		return errDirection
	case total == 0 || total%rangeSize != 0 || total/rangeSize > maxRanges:
		return errRanges
	}
	r.ranges = make([]devsw.ZeroRange, 0, total/rangeSize)
	units := (int(total/rangeSize) + rangesAUnit - 1) / rangesAUnit
	r.units, r.q.held = r.units+units, r.q.held+units
	size := uint64(d.sectors.Load())
	for i := range total / rangeSize {
		var p [rangeSize]byte
		readable, _ = take(p[:], readable)
		sector := binary.LittleEndian.Uint64(p[0:])
		n := binary.LittleEndian.Uint32(p[8:])
		flags := binary.LittleEndian.Uint32(p[12:])
		unmap := flags&1 != 0
		var err error
		switch {
		case flags&^1 != 0, unmap && r.typ == tDiscard:
			err = errFlags
		case sector > size || uint64(n) > size-sector:
			err = errRange
		}
		if err != nil {
			// The trace is to name what is wrong.
			r.sector, r.bytes = sector, int64(n)*sectorSize
			return err
		}
		if i == 0 {
			r.sector = sector
		}
		r.bytes += int64(n) * sectorSize
		r.ranges = append(r.ranges, devsw.ZeroRange{Pos: int64(sector) * sectorSize, N: int64(n) * sectorSize, Unmap: unmap})
	}
	return nil
}

// again hands a request that has come back cancelled to the device once more. On the reactor.
func (r *request) again() {
	r.kept = nil
	switch r.typ {
	case tIn, tOut:
		r.submit()
	default:
		r.slow()
	}
}

// slow does a request that may block, away from the reactor, and ends it with the result.
func (r *request) slow() {
	o := &operation{d: r.q.d, r: r, q: r.q, open: r.q.open, typ: r.typ, ranges: r.ranges, stable: r.q.stable}
	o.job.Owner, o.job.Piece = o, o.piece
	if r.typ == tFlush {
		o.job.Joint = o.cover
	}
	r.op = o
	o.open.ops.Acquire()
	r.q.d.share.Add(&o.job)
}

// operation is what a request that may block does. It uses nothing of the guest's memory: it may go on when nobody waits for it any
// more. What it does stands in an I/O section of specfs. Where it has no place it waits as it is (see offload), and can be taken back.
type operation struct {
	d      *Device
	open   *opening
	typ    uint32
	ranges []devsw.ZeroRange // nobody changes them
	stable bool
	job    offload.Job

	// Whose it is. Once it is settled they are not touched.
	q *queue
	r *request

	begun    bool         // some of it has been done, or is being done
	next     int          // the range whose turn it is
	done     int64        // bytes of it
	covered  []*operation // flushes that this one is for, too
	settled  atomic.Bool  // it has ended, or was given up: whoever sets this says what becomes of the request
	recalled atomic.Bool  // what is left is not to be done
	flushErr error        // how its flush failed
	flushed  bool         // its flush has succeeded
}

// A discard, and a write-zeroes, is done in pieces of so many bytes: others have their turns in between, and a stop need not wait for
// the rest. Whole blocks stay whole. Where the host has to write zeroes one by one, a piece takes a while.
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
		return o.next < len(o.ranges) || o.isStable(), err
	case o.typ == tFlush || o.isStable():
		err = o.flush()
	}
	return false, err
}

func (o *operation) isStable() bool { return o.stable || o.d.stable.Load() }

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
		err = o.open.node.Discard(z.Pos, z.N)
	default:
		err = o.open.node.Ioctl(devsw.DIOCWRITEZEROES, &z, o.d.flag())
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

// end ends the operation and those it covers, and each one's request with its result, unless that has been given up.
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
	defer o.open.ops.Release()
	if !o.settled.CompareAndSwap(false, true) {
		o.keepQuiet()
		return
	}
	o.q.vq.Post(func() {
		o.r.op, o.r.flushed = nil, o.flushed
		if err != nil {
			o.r.storageFailed(err)
		}
		o.r.end(err)
	})
}

// recall takes the operation back, if it can be had, and tells whether it could: then it has ended, and err says how. On the reactor
// of its queue.
func (o *operation) recall() (err error, recalled bool) {
	o.recalled.Store(true)
	if !o.d.share.Remove(&o.job) {
		return nil, false
	}
	o.settled.Store(true)
	o.open.ops.Release()
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
	covers := o.open.holds == devsw.HoldsToClose
	if covers {
		number = o.d.memory.beginFlush()
	}
	o.flushErr = o.open.node.Ioctl(devsw.DIOCCACHESYNC, nil, o.d.flag())
	if o.flushed = o.flushErr == nil; o.flushed && covers {
		o.d.memory.endFlush(number)
	}
	return o.flushErr
}

// keepQuiet ends an operation that was given up. That a flush has failed is told once by the host, and often by drivers: the next
// flush, which may be the same one begun again, must not succeed as if nothing had been lost.
func (o *operation) keepQuiet() {
	if err := o.flushErr; err != nil && !cancelled(err) && !errors.Is(err, devsw.ESTALE) {
		o.d.unsaid.Store(&err)
	}
}

// end ends the request with the device's answer, or keeps it.
func (r *request) end(err error) {
	if err != nil && r.q.parking && cancelled(err) {
		r.q.keep(r, err)
		return
	}
	r.finish(err)
}

// cancelled tells whether err is how an operation ends that the driver has given back (ECANCELED, EINTR), or that specfs has not
// let through to it (ENXIO), because the device is being taken down. A driver that answers ENXIO for reasons of its own will do
// so again.
func cancelled(err error) bool {
	return errors.Is(err, devsw.ECANCELED) || errors.Is(err, devsw.EINTR) || errors.Is(err, devsw.ENXIO)
}

// suspend leaves the request in the in-flight region.
func (r *request) suspend() {
	q := r.q
	if q.d.trace != nil {
		q.d.trace(Request{Queue: q.vq.Index(), Type: r.typ, Sector: r.sector, Bytes: r.bytes, Err: r.kept, Suspended: true})
	}
	q.vq.Suspend(&r.chain)
	q.put(r)
}

// finish answers the request: nil is OK.
func (r *request) finish(err error) {
	status := uint8(statusOK)
	if err != nil {
		status = statusOf(r.typ, err)
	}
	q := r.q
	if err == nil && q.open.holds != devsw.HoldsNothing && r.held() {
		q.d.memory.answered()
	}
	q.vq.PushStatus(&r.chain, uint32(r.written(err)), r.status, status)
	if q.d.trace != nil && !r.traced {
		q.d.trace(Request{Queue: q.vq.Index(), Type: r.typ, Sector: r.sector, Bytes: r.bytes, Status: status, Err: err,
			Answered: err != nil && cancelled(err)})
	}
	q.put(r)
}

// written is the length for the used element: so many bytes have been written, from the first writable one on (section 2.7.8.2; a device
// may write more than it says). The status is the last writable byte, and only counts where nothing before it is left out: after
// a read that has failed, the driver is to count on none of the data. QEMU says all the room there is instead.
func (r *request) written(err error) int {
	n := r.in
	if err != nil {
		n = 0
	}
	if n == r.chain.WritableLen()-1 {
		n++
	}
	return n
}

// held tells whether the request, which has succeeded, has changed the disk, in a way that depends on the disk's holder.
func (r *request) held() bool {
	always := r.q.open.holds == devsw.HoldsAlways
	switch r.typ {
	case tOut:
		return always || r.buf.Flags&devsw.BMediaFUA == 0
	case tDiscard, tWriteZeroes:
		return always || !r.flushed
	}
	return false
}

// statusOf maps an error to a status of the protocol.
func statusOf(typ uint32, err error) uint8 {
	switch {
	case err == errUnknown, err == errFlags:
		return statusUnsupp
	case errors.Is(err, devsw.EOPNOTSUPP), errors.Is(err, devsw.ENOTTY):
		return statusUnsupp
	case typ == tDiscard && errors.Is(err, devsw.ENODEV):
		return statusUnsupp
	}
	return statusIOErr
}
