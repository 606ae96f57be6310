package virtioblk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"vdev/devsw"
	"vdev/virtq"
)

// Request is what Config.Trace and Config.Failed are told of a request.
type Request struct {
	Queue  int    // the queue's index
	Type   uint32 // VIRTIO_BLK_T_* (virtio 1.2, section 5.2.6)
	Sector uint64 // of 512 bytes; of the first range for discard and write-zeroes
	Bytes  int64  // of data, or of the ranges
	Status uint8  // VIRTIO_BLK_S_*, of a request that has ended
	Err    error  // why Status is not VIRTIO_BLK_S_OK; nil if it is
	// Suspended: it has not ended, and has no Status. Its ring has it, and gives it out again when
	// the device is open again, or at the next start that has the in-flight region.
	Suspended bool
	// Cancelled: it is a transfer that the driver has returned cancelled, and has no Status yet.
	// What becomes of it is told when it does.
	Cancelled bool
	// Answered: the guest driver is told now of what was cancelled, or came too late for the
	// device. This is no I/O.
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

// What is wrong with a request itself. They end with VIRTIO_BLK_S_IOERR, errUnknown and errFlags
// with UNSUPP.
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

// request is one request of a queue, from Pop to Push. Requests are the queue's and are used
// again.
type request struct {
	q        *queue
	chain    virtq.Chain
	transfer *transfer // the driver's half of a read or a write
	status   []byte    // the byte of guest memory for the status
	typ      uint32
	sector   uint64
	bytes    int64
	ranges   []devsw.ZeroRange // made anew for each request: an operation may use them for longer
	op       *operation        // in progress, of a request that may block
	began    time.Duration     // by the reactor's clock
	at       int               // in queue.requests
	units    int               // see room
	// flushed: of a discard or write-zeroes, a flush has followed it before it ended.
	flushed bool
}

// parse finds the status byte of the request that was popped into r, reads the header, and returns
// the data, and what buffers there are in the other direction. errNoStatus means that there is
// nowhere to answer: then the ring is broken, and has the request back.
func (r *request) parse() (data, other [][]byte, err error) {
	r.q.charge(r)
	r.typ, r.sector, r.bytes = ^uint32(0), 0, 0
	w := r.chain.Writable
	for len(w) > 0 && len(w[len(w)-1]) == 0 {
		w = w[:len(w)-1]
	}
	if len(w) == 0 {
		r.q.vq.Break(fmt.Errorf("virtio-blk request at head %d: %w", r.chain.Head, errNoStatus))
		r.q.drop(r)
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
	} else {
		var h [headerSize]byte
		var ok bool
		if rd, ok = take(h[:], rd); !ok {
			return nil, nil, errHeader
		}
		r.typ = binary.LittleEndian.Uint32(h[:])
		r.sector = binary.LittleEndian.Uint64(h[8:])
	}
	switch r.typ {
	case tIn:
		r.bytes = length(w)
		return w, rd, nil
	case tOut:
		r.bytes = length(rd)
	}
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
	r.began = r.q.loop.Clock()
	data, other, err := r.parse()
	switch {
	case err == errNoStatus:
		return
	case err != nil:
		r.end(err)
		return
	}
	switch r.typ {
	case tIn, tOut:
		r.readWrite(data, other)
	case tFlush:
		r.slow()
	case tGetID:
		r.getID(other)
	case tDiscard, tWriteZeroes:
		if err := r.parseRanges(data, length(other)); err != nil {
			r.end(err)
			return
		}
		r.slow()
	default:
		r.end(errUnknown)
	}
}

// readWrite hands a read or a write to the device. wrong is what must be empty.
func (r *request) readWrite(data, wrong [][]byte) {
	d := r.q.d
	switch {
	case r.bytes%sectorSize != 0:
		r.end(errLength)
		return
	case len(wrong) > 0 && length(wrong) > 0:
		r.end(errDirection)
		return
	case r.typ == tOut && d.readOnly:
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
	r.submit(data)
}

// getID answers with the serial number, padded with zeros (section 5.2.6).
func (r *request) getID(writable [][]byte) {
	var id [idSize]byte
	copy(id[:], r.q.d.config.Serial)
	if length(writable) < idSize {
		r.end(errShortID)
		return
	}
	rest := id[:]
	for _, w := range writable {
		n := copy(w, rest)
		rest = rest[n:]
	}
	r.end(nil)
}

// parseRanges reads the ranges of a discard or write-zeroes request into r.ranges, in bytes, and
// validates them. One that is larger than max_discard_sectors or max_write_zeroes_sectors is taken
// all the same: there are guest drivers that split nothing (QEMU's, by libblkio), and an operation
// is done in pieces anyway.
func (r *request) parseRanges(readable [][]byte, writable int64) error {
	d := r.q.d
	total := length(readable)
	switch {
	case r.typ == tDiscard && r.q.d.negotiated&fDiscard == 0, r.typ == tWriteZeroes && r.q.d.negotiated&fWriteZeroes == 0:
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

// end ends the request with the device's answer, or suspends it.
func (r *request) end(err error) {
	if err != nil && cancelled(err) {
		state := r.q.state
		if state == queueSuspends || state == queueFails && untouched(err) {
			r.suspend(err)
			return
		}
	}
	r.finish(err)
}

// untouched tells of an error for which cancelled is true whether the driver has not had the
// request.
func untouched(err error) bool { return errors.Is(err, devsw.ENXIO) }

// cancelled tells whether an operation with this error was cancelled in the driver (ECANCELED,
// EINTR), or was not let through to it by specfs (ENXIO), because the device is being taken down. A
// driver that answers ENXIO for reasons of its own will do so again.
func cancelled(err error) bool {
	return errors.Is(err, devsw.ECANCELED) || errors.Is(err, devsw.EINTR) || errors.Is(err, devsw.ENXIO)
}

// told is what others are told of the request.
func (r *request) told(err error) Request {
	return Request{Queue: r.q.vq.Index(), Type: r.typ, Sector: r.sector, Bytes: r.bytes, Err: err}
}

// suspend leaves the request to its ring, which gives it out again.
func (r *request) suspend(err error) {
	q := r.q
	if q.d.config.Trace != nil {
		told := r.told(err)
		told.Suspended = true
		q.d.config.Trace(told)
	}
	q.setUntouched(r.chain.Head, untouched(err))
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
	if err == nil && q.d.memory.holds != devsw.HoldsNothing && r.held() {
		q.d.memory.answered()
	}
	q.vq.PushStatus(&r.chain, uint32(r.written(err)), r.status, status)
	if q.d.config.Trace != nil {
		r.traceEnd(status, err)
	}
	q.put(r)
}

// traceEnd tells how the request has ended, unless iodone has.
func (r *request) traceEnd(status uint8, err error) {
	if !r.transfer.traced {
		told := r.told(err)
		told.Status, told.Answered = status, err != nil && cancelled(err)
		r.q.d.config.Trace(told)
	}
	r.transfer.traced = false
}

// written is the length for the used element: so many bytes have been written, from the first
// writable one on (section 2.7.8.2; a device may write more than it says). The status is the last
// writable byte, and only counts where nothing before it is left out: after a read that has failed,
// the guest driver is to count on none of the data. QEMU says all the room there is instead.
func (r *request) written(err error) int {
	n := 0
	switch {
	case err != nil:
	case r.typ == tIn:
		n = int(r.bytes)
	case r.typ == tGetID:
		n = idSize
	}
	if n == r.chain.WritableLen()-1 {
		n++
	}
	return n
}

// held tells whether the request, which has succeeded, has changed the disk, in a way that depends
// on the disk's holder.
func (r *request) held() bool {
	always := r.q.d.memory.holds == devsw.HoldsAlways
	switch r.typ {
	case tOut:
		return always || r.transfer.buf.Flags&devsw.BMediaFUA == 0
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
