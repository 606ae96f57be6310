package virtqtest

import (
	"encoding/binary"
	"fmt"

	"vdev/internal/guestmem"
	"vdev/virtq"
)

// Flags of a descriptor, of the available and of the used ring (virtio 1.2, 2.7.5, 2.7.6 and
// 2.7.8).
const (
	DescNext     = 1 // VIRTQ_DESC_F_NEXT
	DescWrite    = 2 // VIRTQ_DESC_F_WRITE
	DescIndirect = 4 // VIRTQ_DESC_F_INDIRECT

	AvailNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	UsedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY
)

// DescSize is the length of a descriptor in bytes.
const DescSize = 16

// Desc is a descriptor (struct virtq_desc).
type Desc struct {
	Addr  uint64 // guest physical
	Len   uint32 // bytes
	Flags uint16 // DescNext, DescWrite, DescIndirect
	Next  uint16 // index in the same table of the descriptor that follows, with DescNext
}

// Put writes d to the start of b.
func (d Desc) Put(b []byte) {
	binary.LittleEndian.PutUint64(b, d.Addr)
	binary.LittleEndian.PutUint32(b[8:], d.Len)
	binary.LittleEndian.PutUint16(b[12:], d.Flags)
	binary.LittleEndian.PutUint16(b[14:], d.Next)
}

// Seg is a buffer in guest memory.
type Seg struct {
	Addr uint64 // guest physical
	Len  uint32 // bytes
}

// Driver is the guest driver's side of a split virtqueue.
type Driver struct {
	mem      *Mem
	size     int
	features uint64
	base     uint16

	descAddr, availAddr, usedAddr uint64 // guest physical
	desc, avail, used             []byte // the whole parts

	availFlags, availIdx, usedEvent guestmem.Uint16
	usedFlags, usedIdx, availEvent  guestmem.Uint16

	free   []uint16 // descriptors not in use, the last is taken first
	links  []uint16 // next of each descriptor in use
	counts []uint16 // descriptors of the chain that starts here, 0 if none does
	tables []table  // an indirect table for each head, made when needed

	added     uint16 // entries written to the available ring, free-running
	published uint16 // avail.idx
	lastUsed  uint16 // next used element to read
}

type table struct {
	addr uint64
	cap  int // descriptors
}

// New makes a Driver for a ring with size descriptors in mem, and the negotiated features. The
// three parts are allocated in the first regions with room.
func New(mem *Mem, size int, features uint64) *Driver {
	n := uint64(size)
	return NewAt(mem, size, features,
		mem.Alloc(DescSize*n, 16), mem.Alloc(6+2*n, 2), mem.Alloc(6+8*n, 4))
}

// NewAt is New with the guest physical addresses of the parts given. Without FeatureEventIdx the
// last two bytes of the available and of the used ring are not touched and need not be there.
func NewAt(mem *Mem, size int, features uint64, desc, avail, used uint64) *Driver {
	n := uint64(size)
	d := &Driver{
		mem: mem, size: size, features: features,
		descAddr: desc, availAddr: avail, usedAddr: used,
		links:  make([]uint16, n),
		counts: make([]uint16, n),
		tables: make([]table, n),
	}
	event := uint64(0)
	if d.eventIdx() {
		event = 2
	}
	d.desc = mem.Bytes(desc, DescSize*n)
	d.avail = mem.Bytes(avail, 4+2*n+event)
	d.used = mem.Bytes(used, 4+8*n+event)
	d.availFlags, d.availIdx = field(d.avail), field(d.avail[2:])
	d.usedFlags, d.usedIdx = field(d.used), field(d.used[2:])
	if d.eventIdx() {
		d.usedEvent, d.availEvent = field(d.avail[4+2*n:]), field(d.used[4+8*n:])
	}
	for i := size - 1; i >= 0; i-- {
		d.free = append(d.free, uint16(i))
	}
	return d
}

func field(b []byte) guestmem.Uint16 {
	f, ok := guestmem.AtUint16(b)
	if !ok {
		panic("virtqtest: misaligned ring")
	}
	return f
}

func (d *Driver) eventIdx() bool { return d.features&virtq.FeatureEventIdx != 0 }

// Layout describes the ring to a device, or to a back-end: it is a front-end's SET_VRING_NUM,
// SET_VRING_ADDR, SET_FEATURES and SET_VRING_BASE.
func (d *Driver) Layout() virtq.Config {
	return virtq.Config{
		Size:     uint32(d.size),
		Desc:     d.mem.UserAddr(d.descAddr),
		Avail:    d.mem.UserAddr(d.availAddr),
		Used:     d.mem.UserAddr(d.usedAddr),
		Features: d.features,
		Base:     d.base,
	}
}

// Renew returns the Driver of a guest driver that begins anew at the same place in memory, with
// these features: the ring is zero, empty and begins at 0. d is not to be used any more.
func (d *Driver) Renew(features uint64) *Driver {
	n := uint64(d.size)
	clear(d.mem.Bytes(d.descAddr, DescSize*n))
	clear(d.mem.Bytes(d.availAddr, uint64(len(d.avail))))
	clear(d.mem.Bytes(d.usedAddr, uint64(len(d.used))))
	r := NewAt(d.mem, d.size, features, d.descAddr, d.availAddr, d.usedAddr)
	r.tables = d.tables
	return r
}

// UsedPhys returns the guest physical address of the used ring, as the log field of SET_VRING_ADDR
// has it.
func (d *Driver) UsedPhys() uint64 { return d.usedAddr }

// StartAt makes all indices start at idx, as after that many requests. It is for a Driver that has
// added nothing and a device that has not started.
func (d *Driver) StartAt(idx uint16) {
	if d.InFlight() != 0 || d.added != d.base {
		panic("virtqtest: StartAt on a ring in use")
	}
	d.base, d.added, d.published, d.lastUsed = idx, idx, idx, idx
	store(d.availIdx, idx)
	store(d.usedIdx, idx)
}

// store writes a field beside which nobody else writes.
func store(f guestmem.Uint16, v uint16) {
	if !f.Store(v) {
		panic("virtqtest: somebody else writes to the driver's part of the ring")
	}
}

// Room returns how many descriptors are free.
func (d *Driver) Room() int { return len(d.free) }

// InFlight returns how many descriptors are in use.
func (d *Driver) InFlight() int { return d.size - len(d.free) }

// Add makes a chain of one descriptor for each buffer and enters it into the available ring; the
// device sees it after Kick. It returns the chain's head, and false, having done nothing, when
// there is no room. A chain has at least one buffer.
func (d *Driver) Add(readable, writable []Seg) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 {
		panic("virtqtest: chain without a buffer")
	}
	if n > len(d.free) {
		return 0, false
	}
	at := len(d.free)
	for i := range n {
		desc, id := segment(readable, writable, i), d.free[at-1-i]
		if i < n-1 {
			desc.Flags |= DescNext
			desc.Next = d.free[at-2-i]
			d.links[id] = desc.Next
		}
		desc.Put(d.desc[DescSize*int(id):])
	}
	head = d.free[at-1]
	d.free = d.free[:at-n]
	d.counts[head] = uint16(n)
	d.Offer(head)
	return head, true
}

// segment returns descriptor i of a chain of these buffers.
func segment(readable, writable []Seg, i int) Desc {
	if i < len(readable) {
		return Desc{Addr: readable[i].Addr, Len: readable[i].Len}
	}
	s := writable[i-len(readable)]
	return Desc{Addr: s.Addr, Len: s.Len, Flags: DescWrite}
}

// AddIndirect is Add with the chain in an indirect table, which takes one descriptor of the ring.
func (d *Driver) AddIndirect(readable, writable []Seg) (head uint16, ok bool) {
	n := len(readable) + len(writable)
	if n == 0 {
		panic("virtqtest: chain without a buffer")
	}
	if len(d.free) == 0 {
		return 0, false
	}
	head = d.free[len(d.free)-1]
	d.free = d.free[:len(d.free)-1]
	t := &d.tables[head]
	if t.cap < n {
		*t = table{d.mem.Alloc(DescSize*uint64(n), 16), n}
	}
	b := d.mem.Bytes(t.addr, DescSize*uint64(n))
	for i := range n {
		desc := segment(readable, writable, i)
		if i < n-1 {
			desc.Flags |= DescNext
			desc.Next = uint16(i + 1)
		}
		desc.Put(b[DescSize*i:])
	}
	d.SetDesc(int(head), Desc{Addr: t.addr, Len: uint32(DescSize * n), Flags: DescIndirect})
	d.counts[head] = 1
	d.Offer(head)
	return head, true
}

// Kick shows the device everything added since the last Kick, and tells whether the device wants a
// notification for it: by avail_event where FeatureEventIdx was negotiated, else by the used ring's
// flags.
func (d *Driver) Kick() bool {
	from, to := d.published, d.added
	if from == to {
		return false
	}
	d.published = to
	store(d.availIdx, to)
	if d.eventIdx() {
		return to-d.availEvent.Load()-1 < to-from
	}
	return d.usedFlags.Load()&UsedNoNotify == 0
}

// PendingUsed tells whether Used has something to return.
func (d *Driver) PendingUsed() bool { return d.usedIdx.Load() != d.lastUsed }

// Used takes the next used element, and false when there is none: the head that Add returned, whose
// descriptors are free from now on, and the number of bytes the device says it wrote.
func (d *Driver) Used() (head uint16, written uint32, ok bool) {
	if !d.PendingUsed() {
		return 0, 0, false
	}
	elem := d.used[4+8*(int(d.lastUsed)%d.size):]
	id := binary.LittleEndian.Uint32(elem)
	written = binary.LittleEndian.Uint32(elem[4:])
	if int64(id) >= int64(d.size) || d.counts[id] == 0 {
		panic(fmt.Sprintf("virtqtest: used element %d has head %d, which is not in flight", d.lastUsed, id))
	}
	head = uint16(id)
	d.lastUsed++
	at := len(d.free)
	n := int(d.counts[head])
	d.free = d.free[:at+n]
	// Back in the order they were taken, the head on top.
	for i, link := 0, head; i < n; i++ {
		d.free[at+n-1-i] = link
		link = d.links[link]
	}
	d.counts[head] = 0
	return head, written, true
}

// EnableCalls asks the device for a call when it publishes the next used element, and then looks
// whether it has done so already: pending says that Used has something, for which no call may come.
func (d *Driver) EnableCalls() (pending bool) {
	if d.eventIdx() {
		store(d.usedEvent, d.lastUsed)
	} else {
		store(d.availFlags, 0)
	}
	return d.PendingUsed()
}

// DisableCalls tells the device that calls are not needed. With FeatureEventIdx used_event just
// stays behind.
func (d *Driver) DisableCalls() {
	if !d.eventIdx() {
		store(d.availFlags, AvailNoInterrupt)
	}
}

// UsedIdx reads used.idx.
func (d *Driver) UsedIdx() uint16 { return d.usedIdx.Load() }

// SetUsedEvent writes used_event, for which FeatureEventIdx must be negotiated.
func (d *Driver) SetUsedEvent(idx uint16) { store(d.usedEvent, idx) }

// AvailEvent reads avail_event, for which FeatureEventIdx must be negotiated.
func (d *Driver) AvailEvent() uint16 { return d.availEvent.Load() }

// UsedFlags reads the used ring's flags.
func (d *Driver) UsedFlags() uint16 { return d.usedFlags.Load() }

// What follows does as it is told, for rings that are not as they should be.

// SetDesc writes descriptor i of the ring, whoever uses it.
func (d *Driver) SetDesc(i int, desc Desc) { desc.Put(d.desc[DescSize*i:]) }

// Offer enters head into the available ring, whatever it is. The device sees it after Kick. Used
// knows nothing of such a head.
func (d *Driver) Offer(head uint16) {
	binary.LittleEndian.PutUint16(d.avail[4+2*(int(d.added)%d.size):], head)
	d.added++
}

// SetAvailIdx writes avail.idx. What the driver itself knows of it stays as it is.
func (d *Driver) SetAvailIdx(idx uint16) { store(d.availIdx, idx) }

// DescBytes returns the descriptor table.
func (d *Driver) DescBytes() []byte { return d.desc }

// AvailBytes returns the available ring, with used_event only if FeatureEventIdx was negotiated.
func (d *Driver) AvailBytes() []byte { return d.avail }

// UsedBytes returns the used ring, with avail_event only if FeatureEventIdx was negotiated.
func (d *Driver) UsedBytes() []byte { return d.used }
