package virtq

import (
	"encoding/binary"
	"fmt"

	"vdev/internal/guestmem"
)

// Layout of a split virtqueue (virtio 1.2, 2.7).
const (
	descSize = 16 // struct virtq_desc: addr, len, flags, next

	descNext     = 1 // VIRTQ_DESC_F_NEXT
	descWrite    = 2 // VIRTQ_DESC_F_WRITE
	descIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	availNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// maxIndirect is Config.MaxIndirect where that is 0. By the specification no chain is longer than
// the queue (2.7.5.3.1), but Linux heeds that only without indirect tables, and QEMU takes up to
// 1024 (VIRTQUEUE_MAX_SIZE), the number of buffers preadv(2) takes.
const maxIndirect = 1024

// maxBytes is how many bytes a chain may have (2.7.5.2).
const maxBytes = 1 << 32

// split is a split virtqueue in our memory.
type split struct {
	desc  []byte // descriptor table
	avail []byte // avail.ring
	used  []byte // used.ring

	availIdx   guestmem.Uint16
	availFlags guestmem.Uint16
	usedEvent  guestmem.Uint16 // only with FeatureEventIdx
	usedWord   guestmem.Uint32 // used.flags, and used.idx in the upper half
	availEvent guestmem.Uint16 // only with FeatureEventIdx
}

// newSplit finds the ring of cfg in mem. The event fields belong to the rings only where they were
// negotiated: an old guest driver may have none at all.
func newSplit(mem *guestmem.Memory, cfg *Config) (split, error) {
	size := uint64(cfg.Size)
	event := uint64(0)
	if cfg.Features&FeatureEventIdx != 0 {
		event = 2
	}
	desc, ok := mem.UserSlice(cfg.Desc, descSize*size)
	if cfg.Desc%16 != 0 {
		return split{}, &ConfigError{"Desc", cfg.Desc, ErrAlign}
	}
	if !ok {
		return split{}, &ConfigError{"Desc", cfg.Desc, ErrMemory}
	}
	avail, ok := mem.UserSlice(cfg.Avail, 4+2*size+event)
	if cfg.Avail%2 != 0 {
		return split{}, &ConfigError{"Avail", cfg.Avail, ErrAlign}
	}
	if !ok {
		return split{}, &ConfigError{"Avail", cfg.Avail, ErrMemory}
	}
	used, ok := mem.UserSlice(cfg.Used, 4+8*size+event)
	if cfg.Used%4 != 0 {
		return split{}, &ConfigError{"Used", cfg.Used, ErrAlign}
	}
	if !ok {
		return split{}, &ConfigError{"Used", cfg.Used, ErrMemory}
	}

	r := split{desc: desc, avail: avail[4 : 4+2*size], used: used[4 : 4+8*size]}
	// Where the front-end's own addresses of a region are out of step with the file's offsets, an
	// aligned address may be misaligned here.
	if r.availFlags, ok = guestmem.AtUint16(avail); !ok {
		return split{}, &ConfigError{"Avail", cfg.Avail, ErrAlign}
	}
	r.availIdx, _ = guestmem.AtUint16(avail[2:])
	if r.usedWord, ok = guestmem.AtUint32(used); !ok {
		return split{}, &ConfigError{"Used", cfg.Used, ErrAlign}
	}
	if event != 0 {
		r.usedEvent, _ = guestmem.AtUint16(avail[4+2*size:])
		r.availEvent, _ = guestmem.AtUint16(used[4+8*size:])
	}
	return r, nil
}

// Pop takes the oldest chain that is suspended into c, or else fetches the next one from the
// available ring. It returns false when there is none. An error is sticky: the ring is broken (a
// *BrokenError) or closed. c must not be in flight. Each descriptor is read once.
func (q *Queue) Pop(c *Chain) (bool, error) {
	if len(q.suspended) > 0 {
		return q.popSuspended(c)
	}
	if uint16(q.next) == q.availIdx || q.err != nil {
		if !q.lookAvail() {
			return false, q.err
		}
	}
	if c.gen != nil {
		panic("virtq: Pop into a chain that is in flight")
	}
	pos := uint16(q.next)
	head := binary.LittleEndian.Uint16(q.ring.avail[2*int(pos&q.mask):])
	if head > q.mask {
		return false, q.broken(ReasonHeadRange, "entry %d has head %d of %d", pos, head, q.cfg.Size)
	}
	if q.taken[head/64]>>(head%64)&1 != 0 {
		return false, q.broken(ReasonHeadInFlight, "entry %d has head %d", pos, head)
	}
	c.clear()
	if err := q.walk(c, head); err != nil {
		c.clear()
		return false, err
	}
	if q.records && q.track != nil {
		q.track.mark(head)
	}
	q.taken[head/64] |= 1 << (head % 64)
	q.takeOff(c, head, q.next)
	q.next++
	return true, nil
}

// takeOff begins the flight of c.
func (q *Queue) takeOff(c *Chain, head uint16, seq uint64) {
	c.Head, c.seq, c.pop, c.gen = head, seq, q.pops, q.gen
	q.gen.inFlight++
	q.inFlight++
	q.pops++
}

// lookAvail reads avail.idx, and tells whether there is an entry to take.
func (q *Queue) lookAvail() bool {
	if q.err != nil {
		return false
	}
	idx := q.ring.availIdx.Load()
	n := idx - uint16(q.next)
	if uint32(n) > q.cfg.Size {
		q.broken(ReasonAvailIndex, "avail.idx is %d, next entry is %d, size %d", idx, uint16(q.next), q.cfg.Size)
		return false
	}
	q.availIdx = idx
	return n != 0
}

// walk fills c with the buffers of the chain that starts with head. On an error the ring is broken.
func (q *Queue) walk(c *Chain, head uint16) error {
	table, entries, limit := q.ring.desc, q.cfg.Size, q.cfg.Size
	inTable, writable := false, false
	apart := uint64(0) // where a table is that does not lie in one region; table is nil then
	pieces := 0        // of it
	i := uint32(head)
	// Each turn takes one descriptor: at most limit of them.
	for n := uint32(1); ; n++ {
		var d []byte
		if table != nil {
			d = table[descSize*int(i):][:descSize]
		} else {
			d = q.descAt(apart + descSize*uint64(i))
		}
		// These two loads are the only ones: the compiler keeps the copies.
		addr, rest := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
		size, flags, next := uint64(uint32(rest)), uint16(rest>>32), uint32(rest>>48)

		if flags&descIndirect != 0 {
			if inTable {
				return q.broken(ReasonIndirectNested, "head %d, table entry %d", head, i)
			}
			var err error
			if table, pieces, err = q.indirectTable(head, addr, size, flags); err != nil {
				return err
			}
			apart, inTable = addr, true
			entries, limit = uint32(size/descSize), max(limit, q.cfg.MaxIndirect)
			i = 0
			n-- // the descriptor that refers to the table is no buffer
			continue
		}

		if flags&descWrite != 0 {
			writable = true
			c.writableLen += int(size)
			if b, ok := q.view.Slice(addr, size); ok && size != 0 {
				c.Writable = append(c.Writable, b)
			} else if err := q.appendSlices(&c.Writable, c, head, addr, size); err != nil {
				return err
			}
			if q.log != nil {
				if err := q.noteBuffer(c, head, addr, size); err != nil {
					return err
				}
			}
		} else {
			if writable {
				return q.broken(ReasonDirection, "head %d, descriptor %d", head, i)
			}
			c.readableLen += int(size)
			if b, ok := q.view.Slice(addr, size); ok && size != 0 {
				c.Readable = append(c.Readable, b)
			} else if err := q.appendSlices(&c.Readable, c, head, addr, size); err != nil {
				return err
			}
		}
		if flags&descNext == 0 {
			c.descs = int(n) + pieces
			break
		}
		if next >= entries {
			return q.broken(ReasonNextRange, "head %d, descriptor %d has next %d of %d", head, i, next, entries)
		}
		if n >= limit {
			return q.broken(ReasonChainLength, "head %d has more than %d descriptors", head, limit)
		}
		i = next
	}
	if c.readableLen+c.writableLen > maxBytes {
		return q.broken(ReasonChainBytes, "head %d has %#x bytes", head, c.readableLen+c.writableLen)
	}
	return nil
}

// appendSlices is for the buffers that do not lie in one region, which hardly a guest ever has: it
// appends one to list, a list of c.
func (q *Queue) appendSlices(list *[][]byte, c *Chain, head uint16, addr, size uint64) error {
	var err error
	if *list, err = q.view.Memory().AppendSlices(*list, addr, size); err != nil {
		return q.brokenBy(err, ReasonAddress, "head %d", head)
	}
	// Buffers that do not overlap cross from one region into another at most once for each region.
	if limit := int(max(q.cfg.Size, q.cfg.MaxIndirect)) + guestmem.MaxRegions; len(c.Readable)+len(c.Writable) > limit {
		return q.broken(ReasonChainLength, "head %d lies in more than %d pieces", head, limit)
	}
	return nil
}

// indirectTable returns the table that a descriptor refers to, or nil for one that lies across
// regions, and the number of pieces that it is in then: descAt finds its descriptors. It is not
// copied: a guest driver says that it has 4 GiB of them for a chain of one. VIRTQ_DESC_F_WRITE in
// flags means nothing (2.7.5.3.2).
func (q *Queue) indirectTable(head uint16, addr, size uint64, flags uint16) (
	table []byte, pieces int, err error,
) {
	switch {
	case !q.indirect:
		return nil, 0, q.broken(ReasonIndirectFeature, "head %d", head)
	case flags&descNext != 0:
		return nil, 0, q.broken(ReasonIndirectNext, "head %d", head)
	case size == 0 || size%descSize != 0:
		return nil, 0, q.broken(ReasonIndirectLength, "head %d, table of %d bytes", head, size)
	}
	if table, ok := q.view.Slice(addr, size); ok {
		return table, 0, nil
	}
	if q.pieces, err = q.view.Memory().AppendSlices(q.pieces[:0], addr, size); err != nil {
		return nil, 0, q.brokenBy(err, ReasonAddress, "head %d, indirect table", head)
	}
	return nil, len(q.pieces), nil
}

// broken breaks the ring and returns the error.
func (q *Queue) broken(reason Reason, format string, args ...any) error {
	return q.brokenBy(nil, reason, format, args...)
}

func (q *Queue) brokenBy(err error, reason Reason, format string, args ...any) error {
	q.Break(&BrokenError{Reason: reason, Detail: fmt.Sprintf(format, args...), Err: err})
	return q.err
}

// Push ends c: it stores the used element, which the guest driver does not see before Publish.
// written is how many bytes were written at the start of the writable buffers (used.ring[].len). c
// and its buffers are not to be used any more, but c may be popped into again. On a broken or
// closed ring only the count is kept. It panics if c is not in flight in q, or written is more than
// there is room for: the device's own defects.
func (q *Queue) Push(c *Chain, written uint32) {
	if int(written) > c.writableLen {
		panic("virtq: more written than the chain has room for")
	}
	q.land(c)
	if q.records {
		q.landed(c)
	}
	if q.err != nil {
		return
	}
	binary.LittleEndian.PutUint64(q.ring.used[8*int(q.usedNext&q.mask):], uint64(c.Head)|uint64(written)<<32)
	q.usedNext++
}

// Show shows the guest driver all that was pushed, with one store. A guest driver that looks sees
// it; one that waits to be called does not until Publish says so. Without anything new, or on a
// broken or closed ring, it does nothing.
func (q *Queue) Show() {
	from, to := q.usedIdx, q.usedNext
	if from == to || q.err != nil {
		return
	}
	q.usedIdx = to
	if q.records {
		q.show(from)
	} else {
		q.storeUsed()
	}
}

// Publish is Show, and tells whether the guest driver wants a call for what was shown since the
// last Publish: by used_event where VIRTIO_F_EVENT_IDX was negotiated, else by avail.flags (virtio
// 1.2, 2.7.7.2). Without anything new, or on a broken or closed ring, it does nothing and returns
// false.
func (q *Queue) Publish() (call bool) {
	q.Show()
	from := q.told
	if from == q.usedIdx || q.err != nil {
		return false
	}
	q.told = q.usedIdx
	if q.eventIdx {
		return needEvent(q.ring.usedEvent.Load(), q.usedIdx, from)
	}
	return q.ring.availFlags.Load()&availNoInterrupt == 0
}

// storeUsed writes used.flags and used.idx. With a log they are to be marked then.
func (q *Queue) storeUsed() {
	q.ring.usedWord.Store(uint32(q.usedFlags) | uint32(q.usedIdx)<<16)
}

// storeUsedFlags writes used.flags.
func (q *Queue) storeUsedFlags() {
	q.storeUsed()
	if q.log != nil {
		q.markUsed(0, 4)
	}
}

// needEvent tells whether the entry event is among those from from to to-1: then whoever set it
// wants to be notified of the move of the index (vring_need_event in virtio 1.2, appendix A).
func needEvent(event, to, from uint16) bool {
	return to-event-1 < to-from
}

// Pending tells whether there is something to pop, or an avail.idx that will break the ring. It is
// at most one load.
func (q *Queue) Pending() bool {
	if q.err != nil {
		return false
	}
	next := uint16(q.next)
	return q.availIdx != next || len(q.suspended) > 0 || q.ring.availIdx.Load() != next
}

// EnableNotify asks the guest driver for a kick when it makes the next chain available, and then
// looks whether it has done so already: pending says that there is something to pop, for which no
// kick may come. On a broken or closed ring it returns false.
func (q *Queue) EnableNotify() (pending bool) {
	if q.err != nil {
		return false
	}
	if len(q.suspended) > 0 {
		return true
	}
	next := uint16(q.next)
	if q.eventIdx {
		if !q.ring.availEvent.Store(next) {
			// Not asked for, so the caller has to look again itself.
			return true
		}
		if q.log != nil {
			q.markUsed(4+8*uint64(q.cfg.Size), 2)
		}
	} else {
		q.usedFlags = 0
		q.storeUsedFlags()
	}
	return q.ring.availIdx.Load() != next
}

// DisableNotify tells the guest driver that kicks are not needed. It may kick all the same. With
// VIRTIO_F_EVENT_IDX there is nothing to do: avail_event stays behind.
func (q *Queue) DisableNotify() {
	if q.err != nil || q.eventIdx || q.usedFlags == usedNoNotify {
		return
	}
	q.usedFlags = usedNoNotify
	q.storeUsedFlags()
}
