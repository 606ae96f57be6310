package virtq

import (
	"math/bits"

	"vdev/internal/guestmem"
)

// Feature bits that concern a virtqueue (virtio 1.2, section 6, "Reserved Feature Bits").
const (
	FeatureIndirectDesc uint64 = 1 << 28 // VIRTIO_F_INDIRECT_DESC
	FeatureEventIdx     uint64 = 1 << 29 // VIRTIO_F_EVENT_IDX
	FeatureVersion1     uint64 = 1 << 32 // VIRTIO_F_VERSION_1
	FeatureRingPacked   uint64 = 1 << 34 // VIRTIO_F_RING_PACKED; New refuses it
)

// MaxSize is the largest number of descriptors in a virtqueue (virtio 1.2, 2.7).
const MaxSize = 32768

// Config describes a virtqueue as a front-end sets it up.
type Config struct {
	Size uint32 // descriptors: a power of two from 1 to MaxSize

	// Addresses of the three parts in the front-end's own address space (vhost-user,
	// SET_VRING_ADDR), multiples of 16, 2 and 4, each part within one region of memory.
	Desc, Avail, Used uint64

	Features uint64 // the negotiated ones; FeatureRingPacked is refused
	// free-running index of the next entry to take from the available ring; unused with Inflight
	Base uint16
	// MaxIndirect is how many descriptors a chain with an indirect table may have where the queue
	// has fewer. 0: 1024. More than MaxSize counts as MaxSize. A Chain keeps 24 bytes for each.
	MaxIndirect uint32

	// Inflight is this queue's part of an in-flight region (vhost-user, "Inflight I/O tracking"),
	// of InflightSize bytes, shared memory that outlives the process and that is not changed by
	// anybody else until the Queue is closed; nil for none. The Queue records in it what is in
	// flight or suspended. What a predecessor left there is suspended in this Queue, and the ring
	// is fetched from behind it.
	Inflight []byte

	stored func() // see tracker
}

// generation is a Memory with the number of chains in flight whose buffers lie in it. The Queue
// holds one reference to the Memory for as long as it is the current one or has such chains. Only
// the Queue's goroutine counts.
type generation struct {
	queue    *Queue
	mem      *guestmem.Memory
	inFlight int
}

// Queue is the device side of one split virtqueue. It is not safe for concurrent use: one goroutine
// owns it.
type Queue struct {
	ring split // where the ring is in our memory; empty once broken or closed

	// next is the number of the next chain to fetch. Its low 16 bits are the free-running index of
	// the entry to take.
	next      uint64
	pops      uint64 // chains that Pop gave out, less those given to Unpop
	availIdx  uint16 // avail.idx when it was last read
	usedNext  uint16 // next element to store
	usedIdx   uint16 // used.idx as the guest driver sees it
	told      uint16 // used.idx as of the last Publish, and what the guest driver was called for
	mask      uint16 // size-1
	usedFlags uint16 // used.flags as published
	eventIdx  bool
	indirect  bool
	// track or log is there: one look for both on the way of a request that has neither
	records  bool
	inFlight int // of all generations

	suspended []suspended // in order of fetching, unless unsorted
	unsorted  bool

	view guestmem.View // of gen.mem
	gen  *generation   // the current one
	err  error         // why the ring is broken or closed, sticky
	// a bit for each head, set while its chain is in flight or suspended; with track until it is
	// published
	taken  []uint64
	track  *tracker // nil without an in-flight region; see records
	log    *logger  // nil unless something is marked; see records
	pieces [][]byte // scratch: where an indirect table is that does not lie in one region
	cfg    Config
}

// New starts a Queue on the ring that cfg describes, in mem, to which it takes a reference. The
// used index starts as the ring's own used.idx, since SET_VRING_BASE brings only the other one.
// Errors are *ConfigError.
func New(mem *Memory, cfg Config) (*Queue, error) {
	if bits.OnesCount32(cfg.Size) != 1 || cfg.Size > MaxSize {
		return nil, &ConfigError{"Size", uint64(cfg.Size), ErrSize}
	}
	if cfg.Features&FeatureRingPacked != 0 {
		return nil, &ConfigError{"Features", cfg.Features, ErrFeature}
	}
	if cfg.MaxIndirect == 0 {
		cfg.MaxIndirect = maxIndirect
	}
	cfg.MaxIndirect = min(cfg.MaxIndirect, MaxSize)
	ring, err := newSplit(mem.guest(), &cfg)
	if err != nil {
		return nil, err
	}
	// Before the reference is taken: this may fault, and the caller recover.
	word := ring.usedWord.Load()
	used := uint16(word >> 16)
	next := firstFetched + uint64(cfg.Base)
	var track *tracker
	var inherited []suspended
	if cfg.Inflight != nil {
		if track, inherited, err = newTracker(&cfg, used, ring.availIdx.Load()); err != nil {
			return nil, err
		}
		next = firstFetched + uint64(used) + uint64(len(inherited))
	}
	mem.Retain()
	q := &Queue{
		ring:      ring,
		track:     track,
		next:      next,
		suspended: inherited,
		availIdx:  uint16(next),
		usedNext:  used,
		usedIdx:   used,
		told:      used,
		mask:      uint16(cfg.Size - 1),
		eventIdx:  cfg.Features&FeatureEventIdx != 0,
		indirect:  cfg.Features&FeatureIndirectDesc != 0,
		records:   track != nil,
		view:      mem.guest().View(),
		taken:     make([]uint64, (cfg.Size+63)/64),
		cfg:       cfg,
	}
	if !q.eventIdx {
		q.usedFlags = uint16(word) & usedNoNotify
	}
	q.gen = &generation{queue: q, mem: mem.guest()}
	for _, s := range inherited {
		q.hold(s.head)
	}
	return q, nil
}

// InFlight returns how many chains were popped and neither pushed, suspended nor given to Unpop.
func (q *Queue) InFlight() int { return q.inFlight }

// NextAvail returns the free-running index of the next entry to take from the available ring, less
// the chains that are suspended: what GET_VRING_BASE is answered with once nothing is in flight.
func (q *Queue) NextAvail() uint16 {
	if q.track != nil && q.err != nil {
		// All that was fetched and not shown used is still recorded.
		return q.usedIdx
	}
	return uint16(q.next) - uint16(len(q.suspended))
}

// UsedIdx returns the used index as it was last published.
func (q *Queue) UsedIdx() uint16 { return q.usedIdx }

// Broken returns why the ring is broken or closed, and nil while it is sound.
func (q *Queue) Broken() error { return q.err }

// Break gives the ring up: from now on nothing is popped and nothing of the ring is touched, and
// Push, Unpop and the rest only keep count. err is the cause; one that is no *BrokenError is
// wrapped in one, with ReasonDevice. Only the first break counts.
func (q *Queue) Break(err error) {
	if q.err != nil {
		return
	}
	if _, ok := err.(*BrokenError); !ok {
		err = &BrokenError{Reason: ReasonDevice, Err: err}
	}
	q.err = err
	q.letGo()
}

// letGo forgets where the ring and the in-flight region are.
func (q *Queue) letGo() {
	q.ring = split{}
	if q.track != nil {
		q.track.region, q.track.desc = nil, nil
	}
}

// SetMemory goes over to a new generation of the guest's memory, to which it takes a reference.
// Chains in flight keep the old one until they are pushed, suspended or given to Unpop; suspended
// ones have none. The ring's addresses are translated anew; where they cannot be, the ring is
// broken and the error returned, a *BrokenError. A Queue that is broken or closed already returns
// that error.
func (q *Queue) SetMemory(mem *Memory) error {
	if q.err == ErrClosed {
		return q.err
	}
	mem.Retain()
	old := q.gen
	q.gen = &generation{queue: q, mem: mem.guest()}
	q.view = mem.guest().View()
	if old.inFlight == 0 {
		old.mem.ReleaseSoon()
	}
	if q.err != nil {
		return q.err
	}
	ring, err := newSplit(mem.guest(), &q.cfg)
	if err != nil {
		q.Break(&BrokenError{Reason: ReasonRingMemory, Err: err})
		return q.err
	}
	q.ring = ring
	return nil
}

// Memory returns the memory that the buffers of c, a chain in flight, lie in, with a reference to
// it that is the caller's.
func (q *Queue) Memory(c *Chain) *Memory {
	if c.gen == nil || c.gen.queue != q {
		panic("virtq: chain is not in flight in this queue")
	}
	c.gen.mem.Retain()
	return (*Memory)(c.gen.mem)
}

// LiesIn tells whether SetMemory can go over to mem: whether the ring is in it. A broken or closed
// ring always can.
func (q *Queue) LiesIn(mem *Memory) bool {
	if q.err != nil {
		return true
	}
	_, err := newSplit(mem.guest(), &q.cfg)
	return err == nil
}

// Close drops the Queue's hold on guest memory. Chains still in flight keep theirs until they are
// pushed, suspended or given to Unpop, which touches neither the ring nor the in-flight region.
// Further calls do nothing.
func (q *Queue) Close() {
	if q.err == ErrClosed {
		return
	}
	q.err = ErrClosed
	q.letGo()
	q.setLogger(nil)
	q.view = guestmem.View{}
	if q.gen.inFlight == 0 {
		q.gen.mem.ReleaseSoon()
	}
	// No chain has a generation that is current, so that each one's last chain releases it.
	q.gen, q.pieces = nil, nil
}

// land ends the flight of c, which is not to be used any more.
func (q *Queue) land(c *Chain) {
	g := c.gen
	if g == nil || g.queue != q {
		panic("virtq: chain is not in flight in this queue")
	}
	c.gen = nil
	q.taken[c.Head/64] &^= 1 << (c.Head % 64)
	q.inFlight--
	g.inFlight--
	if g.inFlight == 0 && g != q.gen {
		g.mem.ReleaseSoon()
	}
}
