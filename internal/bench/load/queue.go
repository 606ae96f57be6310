package load

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// What a queue is to do, in order.
const (
	warming   int32 = iota // keep the disk busy
	measuring              // and count
	stopping               // let end what is in flight
	aborting               // leave it
)

// The passes over the disk. Those but the first are for Job.Verify, before and after the load.
const (
	loading  = iota // what the Job says
	filling         // write all of the queue's part
	checking        // read all of it
)

// maxDirect is the largest ring whose requests are three descriptors in it; a larger one has them
// in indirect tables. QEMU's back-ends take no more.
const maxDirect = 1024

// never is later than anything.
const never = time.Duration(math.MaxInt64)

// notInFlight is when a slot's request was issued that is none.
const notInFlight = time.Duration(-1)

// noStatus is what the driver makes a request's status, which is no status that a device gives.
const noStatus = 0xff

// queue is one virtqueue, its driver and its requests. But for what says otherwise all of it is the
// queue's own thread's.
type queue struct {
	d     *disk
	j     *Job
	index int
	ring  *vhostusertest.Ring
	call  *sys.FD    // non-blocking, as QEMU's is
	calls *sys.Epoll // of call

	// The ring in memory.
	mask     uint16
	eventIdx bool
	desc     []byte
	entries  []byte          // avail.ring
	avail    guestmem.Uint32 // avail.flags and avail.idx
	usedIdx  guestmem.Uint16
	used     []byte // used.ring
	usedEv   guestmem.Uint16
	availEv  guestmem.Uint16
	usedFl   guestmem.Uint16

	// The requests, by slot.
	step    int    // descriptors of the ring for each slot
	headers []byte // type, reserved, sector
	status  []byte
	data    []byte
	flags   [][]byte // the flags of the data's descriptor
	blocks  []int64  // the block that is asked for
	reads   []bool
	issued  []time.Duration // when; notInFlight, before it is and when it has ended
	ended   []int           // with a ledger, those that take has found to be right

	added    uint16 // entries of the available ring written
	shown    uint16 // avail.idx
	lastUsed uint16
	inFlight int

	pass        int
	first, part int64   // the queue's part of the disk in blocks, for what is sequential
	from, span  int64   // what is random is of these blocks
	next        int64   // of the part
	ledger      *ledger // nil but with Job.Verify
	rng         *rand.PCG
	start       time.Time    // what times count from
	state       atomic.Int32 // set by whoever runs the Job
	// since when requests that are issued have a latency that is told; never, before that
	window time.Duration

	// Of the one who looks whether the queue stalls: its used index, and since when it is that.
	seen  uint16
	since time.Time

	// What came of it, to be read when the thread has ended.
	hist *hdrhistogram.Histogram
	done uint64 // requests counted
	// looks at the used ring that found something, and those of them that had to look again
	turns, waited uint64
}

// newQueue makes queue i, and starts its ring.
func newQueue(ctx context.Context, d *disk, j *Job, i int) (*queue, error) {
	q := &queue{d: d, j: j, index: i, eventIdx: d.features&virtq.FeatureEventIdx != 0, step: 3}
	n := 1 << bits.Len(uint(3*j.Depth-1))
	if n > maxDirect && d.features&virtq.FeatureIndirectDesc != 0 {
		q.step, n = 1, 1<<bits.Len(uint(j.Depth-1))
	}
	n = max(n, 4)
	var err error
	if q.call, err = sys.NewEventfd(); err != nil {
		return nil, err
	}
	if q.calls, err = sys.NewEpoll(); err != nil {
		q.call.Close()
		return nil, err
	}
	if q.ring, err = d.f.NewRing(d.mem, i, n); err != nil {
		q.calls.Close()
		q.call.Close()
		return nil, err
	}
	q.mask = uint16(n - 1)
	q.attach(n)
	if err := q.layOut(ctx); err != nil {
		q.close()
		return nil, err
	}
	q.span = d.used(j) / j.BlockSize
	q.part = q.span / int64(j.Queues)
	q.first = q.part * int64(i)
	if i == j.Queues-1 {
		q.part = q.span - q.first
	}
	if j.Verify {
		q.from, q.span = q.first, q.part
		q.ledger = newLedger(d.nonce, q.first, q.part, j.BlockSize)
	}
	q.rng = rand.NewPCG(j.Seed, uint64(i))
	q.hist = NewLatency()
	if err := q.begin(d.f); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

// begin starts the ring.
func (q *queue) begin(f *vhostusertest.Frontend) error {
	err := q.calls.Add(q.call.Int(), 0)
	if err == nil {
		err = q.ring.Setup()
	}
	if err == nil {
		err = f.SetVringCall(q.index, q.call.Int())
	}
	if err == nil {
		err = f.SetVringKick(q.index, q.ring.KickFD())
	}
	if err == nil {
		err = f.SetVringEnable(q.index, true)
	}
	return err
}

func (q *queue) close() {
	q.ring.Close()
	q.calls.Close()
	q.call.Close()
}

// attach finds the parts of the ring, which has n descriptors.
func (q *queue) attach(n int) {
	must16 := func(b []byte) guestmem.Uint16 {
		f, ok := guestmem.AtUint16(b)
		if !ok {
			panic("load: misaligned ring")
		}
		return f
	}
	avail, used := q.ring.AvailBytes(), q.ring.UsedBytes()
	q.desc = q.ring.DescBytes()
	var ok bool
	if q.avail, ok = guestmem.AtUint32(avail); !ok {
		panic("load: misaligned ring")
	}
	q.entries, q.used = avail[4:4+2*n], used[4:4+8*n]
	q.usedFl, q.usedIdx = must16(used), must16(used[2:])
	if q.eventIdx {
		q.usedEv, q.availEv = must16(avail[4+2*n:]), must16(used[4+8*n:])
	}
}

// layOut makes the descriptors of all slots, whose addresses and lengths do not change. ctx's end
// ends it.
func (q *queue) layOut(ctx context.Context) error {
	m, depth, bs := q.d.mem, uint64(q.j.Depth), uint64(q.j.BlockSize)
	headers, status, data := m.Alloc(depth*headerSize, 64), m.Alloc(depth, 64), m.Alloc(depth*bs, 4096)
	q.headers, q.status, q.data = m.Bytes(headers, depth*headerSize), m.Bytes(status, depth), m.Bytes(data, depth*bs)
	// Pages that are not there yet would be the first round's affair.
	for i := 0; i < len(q.data); i += 4096 {
		if i%(1<<20) == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		q.data[i] = 0
	}
	q.blocks, q.reads, q.issued = make([]int64, depth), make([]bool, depth), make([]time.Duration, depth)
	for s := range depth {
		q.issued[s] = notInFlight
		table, base := q.desc[virtqtest.DescSize*s*uint64(q.step):], uint16(3*s)
		if q.step == 1 {
			at := m.Alloc(3*virtqtest.DescSize, 16)
			virtqtest.Desc{Addr: at, Len: 3 * virtqtest.DescSize, Flags: virtqtest.DescIndirect}.Put(table)
			table, base = m.Bytes(at, 3*virtqtest.DescSize), 0
		}
		virtqtest.Desc{Addr: headers + headerSize*s, Len: headerSize, Flags: virtqtest.DescNext, Next: base + 1}.Put(table)
		virtqtest.Desc{Addr: data + bs*s, Len: uint32(bs), Flags: virtqtest.DescNext, Next: base + 2}.Put(table[virtqtest.DescSize:])
		virtqtest.Desc{Addr: status + s, Len: 1, Flags: virtqtest.DescWrite}.Put(table[2*virtqtest.DescSize:])
		q.flags = append(q.flags, table[virtqtest.DescSize+12:][:2:2])
	}
	return nil
}

// set tells the queue's thread what to do. Any goroutine.
func (q *queue) set(state int32) {
	q.state.Store(state)
	if state == aborting {
		_ = sys.EventfdWrite(q.call.Int()) // it may sleep, and nothing may ever complete
	}
}

// run is the queue's thread. It calls ready when it could begin, begins when begin is closed, and
// ends when it was told to.
func (q *queue) run(cpus []int, ready func(), begin <-chan struct{}) error {
	// Not unlocked: a thread that was bound to a processor must not serve anybody else.
	runtime.LockOSThread()
	if err := bindOwn(cpus); err != nil {
		ready()
		return err
	}
	q.start = time.Now()
	if q.ledger != nil {
		if err := q.work(filling); err != nil {
			ready()
			return err
		}
	}
	ready()
	<-begin
	if err := q.work(loading); err != nil || q.ledger == nil {
		return err
	}
	return q.work(checking)
}

// work makes a pass: it keeps as many requests in flight as there are to be, until the queue is to
// stop, or all of the part was passed over, and none is left: as take lets none end twice, each of
// them has ended then.
func (q *queue) work(pass int) error {
	q.pass, q.next, q.window = pass, 0, never
	now := time.Since(q.start)
	for s := range q.j.Depth {
		switch state := q.state.Load(); {
		case state == aborting:
			return errAborted
		case q.goesOn(state):
			q.issue(s, now)
		}
	}
	q.show()
	looked := false // in vain, since the last that was found
	for q.inFlight > 0 {
		used := q.usedIdx.Load()
		if used != q.lastUsed {
			if err := q.take(used, looked); err != nil {
				return err
			}
			looked = false
			q.show()
			continue
		}
		looked = true
		if q.j.Poll {
			if q.state.Load() == aborting {
				return errAborted
			}
			continue
		}
		q.listen()
		if q.usedIdx.Load() == q.lastUsed {
			if err := q.calls.Wait(-1, func(uint64) {}); err != nil {
				return err
			}
			if q.state.Load() == aborting {
				return errAborted
			}
		}
		q.hush()
	}
	return nil
}

// goesOn tells whether there are to be more requests.
func (q *queue) goesOn(state int32) bool {
	return state < stopping || state == stopping && q.pass == checking
}

var errAborted = errors.New("requests in flight were given up")

// listen asks for a call at the next completion.
func (q *queue) listen() {
	if q.eventIdx {
		q.usedEv.Store(q.lastUsed)
	} else {
		q.avail.Store(uint32(q.shown) << 16)
	}
}

// hush says that no call is needed. With VIRTIO_F_EVENT_IDX there is nothing to do: used_event
// stays behind.
func (q *queue) hush() {
	if !q.eventIdx {
		q.avail.Store(virtqtest.AvailNoInterrupt | uint32(q.shown)<<16)
	}
}

// take takes what has completed up to used, and asks for more. looked says that the one look before
// found nothing.
func (q *queue) take(used uint16, looked bool) error {
	now, state := time.Since(q.start), q.state.Load()
	measure, more := state == measuring, q.goesOn(state)
	if measure {
		q.turns++
		if looked {
			q.waited++
		}
		q.window = min(q.window, now)
	}
	if n := used - q.lastUsed; int(n) > q.inFlight {
		return fmt.Errorf("queue %d: the back-end has completed %d requests of %d in flight", q.index, n, q.inFlight)
	}
	for ; q.lastUsed != used; q.lastUsed++ {
		head := uint32(binary.LittleEndian.Uint64(q.used[8*int(q.lastUsed&q.mask):]))
		s := int(head) / q.step
		if int(head)%q.step != 0 || s >= len(q.blocks) {
			return fmt.Errorf("queue %d: the back-end has given back head %d, which is no request's", q.index, head)
		}
		issued := q.issued[s]
		if issued == notInFlight {
			return fmt.Errorf("queue %d: the back-end has completed the request of head %d twice", q.index, head)
		}
		q.issued[s] = notInFlight
		q.inFlight--
		switch status := q.status[s]; status {
		case statusOK:
		case noStatus:
			return fmt.Errorf("queue %d: the request for the %d bytes from %d on was completed without a status, or the one before it twice",
				q.index, q.j.BlockSize, q.blocks[s]*q.j.BlockSize)
		default:
			return fmt.Errorf("queue %d: the request for the %d bytes from %d on ended with status %d", q.index, q.j.BlockSize,
				q.blocks[s]*q.j.BlockSize, status)
		}
		if measure {
			q.done++
		}
		// Also of what ends after the time that counts: else a stall at its end would be told
		// nowhere.
		if issued >= q.window {
			// In range by the bounds, so it does not fail.
			_ = q.hist.RecordValue(min(max(int64(now-issued), 1), maxLatency))
		}
		if q.ledger != nil {
			if err := q.verify(s); err != nil {
				return err
			}
			q.ended = append(q.ended, s)
		} else if more {
			q.issue(s, now)
		}
	}
	if len(q.ended) > 0 {
		if more {
			q.issueEnded()
		}
		q.ended = q.ended[:0]
	}
	return nil
}

// issueEnded issues a request for each slot in ended. How long it took to look at what these have
// read, and to make what is to be written now, is not the back-end's latency: they are issued when
// all that is done.
func (q *queue) issueEnded() {
	for _, s := range q.ended {
		q.issue(s, 0)
	}
	now := time.Since(q.start)
	for _, s := range q.ended {
		if q.issued[s] != notInFlight {
			q.issued[s] = now
		}
	}
}

// issue enters the request of slot s into the available ring, for the block that comes next; none
// where all were passed over.
func (q *queue) issue(s int, now time.Duration) {
	var read bool
	var block int64
	if q.pass == loading {
		read = q.j.Pattern.Reads()
		if q.j.Pattern.random() {
			hi, _ := bits.Mul64(q.rng.Uint64(), uint64(q.span))
			block = q.from + int64(hi)
		} else {
			block = q.first + q.next
			if q.next++; q.next == q.part {
				q.next = 0
			}
		}
		if read && q.j.Pattern.Writes() {
			read = q.rng.Uint64()%100 < uint64(q.j.ReadPercent)
		}
	} else {
		if q.next == q.part {
			return
		}
		read, block = q.pass == checking, q.first+q.next
		q.next++
	}
	if q.ledger != nil {
		block = q.prepare(s, block, read)
	}
	h := q.headers[headerSize*s:][:headerSize]
	if read {
		h[0] = typeIn
		q.flags[s][0] = virtqtest.DescNext | virtqtest.DescWrite
	} else {
		h[0] = typeOut
		q.flags[s][0] = virtqtest.DescNext
	}
	binary.LittleEndian.PutUint64(h[8:], uint64(block*(q.j.BlockSize/sectorSize)))
	q.status[s] = noStatus
	q.blocks[s], q.reads[s], q.issued[s] = block, read, now
	binary.LittleEndian.PutUint16(q.entries[2*int(q.added&q.mask):], uint16(s*q.step))
	q.added++
	q.inFlight++
}

// show shows the back-end what was issued, and kicks it if it wants to be.
func (q *queue) show() {
	if q.shown == q.added {
		return
	}
	from := q.shown
	q.shown = q.added
	flags := uint32(0)
	if !q.eventIdx {
		flags = virtqtest.AvailNoInterrupt
	}
	q.avail.Store(flags | uint32(q.shown)<<16)
	if q.eventIdx {
		if q.shown-q.availEv.Load()-1 >= q.shown-from {
			return
		}
	} else if q.usedFl.Load()&virtqtest.UsedNoNotify != 0 {
		return
	}
	_ = sys.EventfdWrite(q.ring.KickFD())
}

// prepare returns a block that slot s may be used for, which is block if possible, and makes the
// slot's memory ready for that.
func (q *queue) prepare(s int, block int64, read bool) int64 {
	block = q.ledger.claim(block, read)
	if read {
		clear(q.memory(s)) // what was there may be what is to be read
	} else {
		q.ledger.fill(q.memory(s), block)
	}
	return block
}

// verify looks whether slot s, whose request has ended, has read what it should.
func (q *queue) verify(s int) error {
	q.ledger.release(q.blocks[s])
	switch {
	case !q.reads[s]:
		return nil
	case q.state.Load() == aborting: // many large requests may have ended
		return errAborted
	}
	return q.ledger.check(q.memory(s), q.blocks[s])
}

func (q *queue) memory(s int) []byte { return q.data[int64(s)*q.j.BlockSize:][:q.j.BlockSize] }
