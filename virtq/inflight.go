package virtq

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Layout of a QueueRegionSplit, and of the DescStateSplit entries behind its header (vhost-user,
// "Inflight I/O tracking"). All fields are in the host's byte order.
const (
	inflightVersion = 1

	inflightHeader   = 16
	offFeatures      = 0  // u64
	offVersion       = 8  // u16, 0: not initialised
	offDescNum       = 10 // u16
	offLastBatchHead = 12 // u16
	offUsedIdx       = 14 // u16

	inflightDesc = 16
	offInflight  = 0 // u8
	offNext      = 6 // u16
	offCounter   = 8 // u64

	inflightAlign = 64
)

// InflightSize returns the bytes that one queue of size descriptors takes in an in-flight region, a
// multiple of 64. The specification leaves it to the back-end; this is what the others do, too.
func InflightSize(size int) int {
	return (inflightHeader + inflightDesc*size + inflightAlign - 1) &^ (inflightAlign - 1)
}

// tracker records in a region that outlives this process which chains are in flight, for whoever
// serves the ring next.
//
// The process may be killed between any two of its stores; what a successor finds is then all that
// came before in program order, and nothing that came after. The processor sees to that on its own,
// whatever it reorders towards other processors: a thread ends at an instruction, and all stores
// before that one are done. The compiler keeps the order of stores to memory. So plain stores do,
// and their order is the specification's:
//
//   - Pop stores the counter, then the mark.
//   - Push enters the head into the list of the batch.
//   - Publish stores used.idx, then clears the marks of the batch, then stores used_idx. Where
//     used.idx and used_idx differ, the successor clears the marks itself: it has the list.
//   - Suspend stores nothing, and Pop nothing for a chain that was suspended.
//   - Unpop and Unfetch clear the mark of a chain that goes back to the available ring.
//
// At each moment the chains that are marked, less those of a batch that used.idx shows already, are
// the first that the guest driver has made available and has not seen used. So the next one to
// fetch is the used index and their number further.
type tracker struct {
	region []byte // nil once the ring is broken or closed
	desc   []byte // the entries in it

	counter   uint64   // of the next chain
	batch     []uint16 // heads pushed and not published
	inherited bool     // the region had been in use before

	stored func() // for tests: called after each store that a successor can find; nil otherwise
}

// newTracker takes over the region as it is found, with the ring's two indices, and returns the
// chains that are in flight by it. It finishes the last batch where that was cut short. The region
// is the front-end's to give, and not trusted.
func newTracker(cfg *Config, used, avail uint16) (*tracker, []suspended, error) {
	fail := func(value uint64, format string, args ...any) error {
		return &ConfigError{"Inflight", value, fmt.Errorf("%w: %s", ErrInflight, fmt.Sprintf(format, args...))}
	}
	size := int(cfg.Size)
	if room := len(cfg.Inflight); room < inflightHeader+inflightDesc*size {
		return nil, nil, fail(uint64(room), "that many bytes are too few for %d descriptors", size)
	}
	t := &tracker{
		region: cfg.Inflight,
		desc:   cfg.Inflight[inflightHeader:],
		batch:  make([]uint16, 0, size),
		stored: cfg.stored,
	}
	version := binary.LittleEndian.Uint16(t.region[offVersion:])
	if version == 0 {
		t.initialise(size, used)
		return t, nil, nil
	}
	if version != inflightVersion {
		return nil, nil, fail(uint64(version), "unknown version")
	}
	if features := binary.LittleEndian.Uint64(t.region[offFeatures:]); features != 0 {
		return nil, nil, fail(features, "unknown features")
	}
	n := int(binary.LittleEndian.Uint16(t.region[offDescNum:]))
	if n < size || n > len(t.desc)/inflightDesc {
		return nil, nil, fail(uint64(n), "desc_num for a ring of %d descriptors, with room for %d", size, len(t.desc)/inflightDesc)
	}
	t.inherited = true
	t.desc = t.desc[:inflightDesc*n]
	if err := t.finishBatch(used, size, fail); err != nil {
		return nil, nil, err
	}

	var list []suspended // by their counters at first
	for head := range n {
		d := t.desc[inflightDesc*head:][:inflightDesc]
		if d[offInflight] == 0 {
			continue
		}
		if head >= size {
			return nil, nil, fail(uint64(head), "head in flight in a ring of %d descriptors", size)
		}
		list = append(list, suspended{binary.LittleEndian.Uint64(d[offCounter:]), uint16(head)})
	}
	if available := avail - used; len(list) > int(available) {
		// What was written for another ring is not to be done again for this one.
		return nil, nil, fail(uint64(len(list)), "that many heads in flight, of %d made available", available)
	}
	sortSuspended(list)
	for i := range list {
		t.counter = list[i].seq + 1
		list[i].seq = uint64(i) // below firstFetched
	}
	return t, list, nil
}

// initialise makes an empty region. Until the last store it does not count as initialised.
func (t *tracker) initialise(size int, used uint16) {
	t.desc = t.desc[:inflightDesc*size]
	clear(t.desc)
	binary.LittleEndian.PutUint64(t.region[offFeatures:], 0)
	t.put16(offDescNum, uint16(size))
	t.put16(offLastBatchHead, 0)
	t.put16(offUsedIdx, used)
	t.put16(offVersion, inflightVersion)
}

// finishBatch clears the marks of a batch that the guest driver has seen, and that the predecessor
// had no time to clear. Being cut short in turn, it leaves the work to the next one.
func (t *tracker) finishBatch(used uint16, size int, fail func(uint64, string, ...any) error) error {
	known := binary.LittleEndian.Uint16(t.region[offUsedIdx:])
	n := used - known
	if int(n) > size {
		return fail(uint64(known), "used_idx of another ring, used.idx is %d", used)
	}
	head := binary.LittleEndian.Uint16(t.region[offLastBatchHead:])
	for range n {
		if int(head) >= len(t.desc)/inflightDesc {
			return fail(uint64(head), "head in the list of the last batch, which has %d", len(t.desc)/inflightDesc)
		}
		d := t.desc[inflightDesc*int(head):][:inflightDesc]
		t.clear(head)
		head = binary.LittleEndian.Uint16(d[offNext:])
	}
	if n != 0 {
		t.put16(offUsedIdx, used)
	}
	return nil
}

// put16 stores a field of the header.
func (t *tracker) put16(off int, v uint16) {
	binary.LittleEndian.PutUint16(t.region[off:], v)
	t.point()
}

// point is a moment at which the process may be killed with something new stored.
func (t *tracker) point() {
	if t.stored != nil {
		t.stored()
	}
}

// mark records a chain that was fetched.
func (t *tracker) mark(head uint16) {
	d := t.desc[inflightDesc*int(head):][:inflightDesc]
	binary.LittleEndian.PutUint64(d[offCounter:], t.counter)
	t.point()
	t.counter++
	d[offInflight] = 1
	t.point()
}

// clear takes the record back.
func (t *tracker) clear(head uint16) {
	t.desc[inflightDesc*int(head)+offInflight] = 0
	t.point()
}

// push enters a chain into the batch. Its mark stays until published.
func (t *tracker) push(head uint16) {
	last := t.region[offLastBatchHead:][:2]
	binary.LittleEndian.PutUint16(t.desc[inflightDesc*int(head)+offNext:], binary.LittleEndian.Uint16(last))
	t.point()
	binary.LittleEndian.PutUint16(last, head)
	t.point()
	t.batch = append(t.batch, head)
}

// landed records a chain that was pushed. Until it is published its head is not the guest driver's.
func (q *Queue) landed(c *Chain) {
	if q.log != nil {
		q.markLanded(c)
	}
	if q.track != nil && q.err == nil {
		q.hold(c.Head)
		q.track.push(c.Head)
	}
}

// hold keeps head from being made available again although its chain is not in flight any more.
func (q *Queue) hold(head uint16) { q.taken[head/64] |= 1 << (head % 64) }

// show is storeUsed with all that is recorded about what is published with it, from index from on.
func (q *Queue) show(from uint16) {
	if q.log != nil {
		q.markElements(from, q.usedIdx)
	}
	q.storeUsed()
	if q.log != nil {
		q.markUsed(0, 4)
	}
	if q.track != nil {
		q.published()
	}
}

// published ends the batch, which used.idx shows from now on. The heads are the guest driver's
// again.
func (q *Queue) published() {
	t := q.track
	t.point()
	for _, head := range t.batch {
		t.clear(head)
		q.taken[head/64] &^= 1 << (head % 64)
	}
	t.batch = t.batch[:0]
	t.put16(offUsedIdx, q.usedIdx)
}

// Inherited tells whether the in-flight region had been in use before this Queue: then the guest
// driver goes on where it was, whatever was in flight. It is false without a region.
func (q *Queue) Inherited() bool { return q.track != nil && q.track.inherited }

// ErrInflight is wrapped where the in-flight region is refused. A new one, all zero, is always
// good.
var ErrInflight = errors.New("in-flight region")
