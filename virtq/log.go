package virtq

import (
	"encoding/binary"
	"slices"

	"vdev/internal/guestmem"
)

// Log is a dirty log: a bitmap that is shared with the front-end, with a bit for each page of 4096
// bytes of guest memory (vhost-user, "Migration"). A vhostuser.Backend makes it of what the
// front-end sends, and closes it. Queues alone mark in it.
type Log guestmem.Log

func (l *Log) bitmap() *guestmem.Log { return (*guestmem.Log)(l) }

// DirtyLog says what a Queue writes to guest memory it marks, and where. The zero value is nothing.
type DirtyLog struct {
	// Log stays its owner's. It is used until it is replaced, or the Queue closed. With nil nothing
	// is marked.
	Log *Log
	// Data is for the chains' writable buffers (VHOST_F_LOG_ALL).
	Data bool
	// Used is for the used ring (VHOST_VRING_F_LOG), as it were at the guest physical address
	// UsedAddr.
	Used     bool
	UsedAddr uint64 // of its first byte
}

// span is a range of guest physical addresses.
type span struct {
	addr, n uint64
}

// logger is the state of a Queue that marks what it writes.
type logger struct {
	DirtyLog
	// early has the writable buffers of the chains that were in flight, by their heads, when Data
	// was switched on. Those of later ones are kept in the Chain.
	early map[uint16][]span
}

// SetLog changes what is marked, also while chains are in flight: what ends from now on is marked
// in the new log, and nothing in the old one. All pages of a chain's writable buffers are marked
// when it lands, written or not, and so before the guest driver can see it used; those of the used
// ring, when they are written. Where the used ring was not marked before, all of it is now: whoever
// had the ring before may have been killed between writing and marking.
//
// A used ring, or later a buffer, that the log has no room for breaks the ring: the front-end would
// move the guest without noticing what was written there. So do chains in flight that are too much
// to look at (maxEarly). The error is a *BrokenError. On a Queue that is broken or closed already
// SetLog marks no more used ring, and returns nil.
func (q *Queue) SetLog(d DirtyLog) error {
	old := q.log
	q.setLogger(nil)
	if d.Log == nil || !d.Data && !d.Used || q.err == ErrClosed {
		return nil
	}
	l := &logger{DirtyLog: d}
	if d.Data {
		if old != nil && old.Data {
			l.early = old.early
		} else if q.err == nil {
			var ok bool
			if l.early, ok = q.inFlightSpans(); !ok {
				return q.broken(ReasonLog, "chains in flight of more than %d descriptors", maxEarly)
			}
		}
	}
	if d.Used && q.err == nil {
		if n := q.usedBytes(); !d.Log.bitmap().Mark(d.UsedAddr, n) {
			return q.broken(ReasonLog, "used ring, %#x bytes at %#x", n, d.UsedAddr)
		}
	}
	q.setLogger(l)
	return nil
}

func (q *Queue) setLogger(l *logger) {
	q.log = l
	q.records = q.track != nil || l != nil
}

// usedBytes returns the size of the used ring.
func (q *Queue) usedBytes() uint64 {
	n := 4 + 8*uint64(q.cfg.Size)
	if q.eventIdx {
		n += 2
	}
	return n
}

// maxEarly is how many descriptors the chains in flight may have together when Data is switched on:
// as many as in the largest queue that QEMU makes, with a table of the greatest usual length in
// each place. It bounds the time and the memory that a guest driver can take by changing
// descriptors in flight.
const maxEarly = 1024 * maxIndirect

// inFlightSpans finds the writable buffers of all chains in flight, as their descriptors say now: a
// guest driver does not change those of a chain before it is used. One that does so all the same
// has wrong pages marked, and nothing else: the walk touches none of the buffers. It reports false
// where there are more than maxEarly descriptors.
func (q *Queue) inFlightSpans() (early map[uint16][]span, ok bool) {
	early = make(map[uint16][]span)
	left := maxEarly
	for head := range uint16(q.cfg.Size) {
		if q.taken[head/64]>>(head%64)&1 != 0 {
			if early[head] = q.spans(head, &left); left < 0 {
				return nil, false
			}
		}
	}
	return early, true
}

// spans walks the chain that starts with head, as walk does, but takes it as it comes, and ends at
// the first thing that is wrong. It takes the number of descriptors off left, and also ends when
// that falls below 0.
func (q *Queue) spans(head uint16, left *int) (list []span) {
	at := func(i uint64) []byte { return q.ring.desc[descSize*i:][:descSize] }
	entries, limit, inTable := uint64(q.cfg.Size), q.cfg.Size, false
	d := at(uint64(head))
	bytes := uint64(0)
	for n := uint32(0); n < limit && d != nil; {
		if *left--; *left < 0 {
			return list
		}
		addr, rest := binary.LittleEndian.Uint64(d), binary.LittleEndian.Uint64(d[8:])
		size, flags, next := uint64(uint32(rest)), uint16(rest>>32), rest>>48
		switch {
		case flags&descIndirect != 0 && inTable:
			return list
		case flags&descIndirect != 0:
			at = func(i uint64) []byte { return q.descAt(addr + descSize*i) }
			entries, limit, inTable = size/descSize, max(limit, q.cfg.MaxIndirect), true
			next = 0
		default:
			if bytes += size; bytes > maxBytes {
				return list
			}
			if flags&descWrite != 0 {
				list = appendSpan(list, addr, size)
			}
			if flags&descNext == 0 {
				return list
			}
			n++
		}
		if next >= entries {
			return list
		}
		d = at(next)
	}
	return list
}

// descAt returns the descriptor at a guest physical address, or nil where there is no memory.
func (q *Queue) descAt(addr uint64) []byte {
	if d, ok := q.view.Slice(addr, descSize); ok {
		return d
	}
	pieces, err := q.view.Memory().AppendSlices(nil, addr, descSize)
	if err != nil {
		return nil
	}
	return slices.Concat(pieces...)
}

func appendSpan(list []span, addr, n uint64) []span {
	if last := len(list) - 1; last >= 0 && list[last].addr+list[last].n == addr {
		list[last].n += n
		return list
	}
	return append(list, span{addr, n})
}

// noteBuffer keeps a writable buffer of c, which is being popped, to be marked when c lands.
func (q *Queue) noteBuffer(c *Chain, head uint16, addr, n uint64) error {
	if !q.log.Data {
		return nil
	}
	if !q.log.Log.bitmap().Covers(addr, n) {
		return q.broken(ReasonLog, "head %d, %#x bytes at %#x", head, n, addr)
	}
	c.dirty = appendSpan(c.dirty, addr, n)
	return nil
}

// markLanded marks the writable buffers of c, which is not in flight any more. What the log has no
// room for has been taken from the guest since it was popped: log and memory shrink together.
func (q *Queue) markLanded(c *Chain) {
	if !q.log.Data {
		return
	}
	for _, s := range c.dirty {
		q.log.Log.bitmap().Mark(s.addr, s.n)
	}
	if early := q.log.early; len(early) > 0 {
		for _, s := range early[c.Head] {
			q.log.Log.bitmap().Mark(s.addr, s.n)
		}
		delete(early, c.Head)
	}
}

// markElements marks the elements of the used ring from from to to-1.
func (q *Queue) markElements(from, to uint16) {
	first, n := uint64(from&q.mask), uint64(to-from)
	if over := first + n; over > uint64(q.cfg.Size) {
		n = uint64(q.cfg.Size) - first
		q.markUsed(4, 8*(over-uint64(q.cfg.Size)))
	}
	q.markUsed(4+8*first, 8*n)
}

// markUsed marks n bytes of the used ring from off on. SetLog has seen that the log has room for
// them.
func (q *Queue) markUsed(off, n uint64) {
	if q.log.Used {
		q.log.Log.bitmap().Mark(q.log.UsedAddr+off, n)
	}
}
