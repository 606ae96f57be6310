package guestmem

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"
)

// MaxRegions is how many regions a Memory has at most. It is the answer to vhost-user's
// GET_MAX_MEM_SLOTS, and the number of memory slots that QEMU uses.
const MaxRegions = 509

// Memory is one generation of a guest's memory. It does not change. All methods may be called from
// any goroutine. What they return is valid while the caller holds a reference to the Memory.
type Memory struct {
	regions []*Region // by guest physical address
	refs    atomic.Int64
}

// New returns a Memory of regions, in any order, and takes a reference to each; the caller's own
// references stay the caller's. The caller holds the one reference to the Memory, until Release. It
// refuses, with a *RegionError, more than MaxRegions, and regions that overlap as the guest or the
// front-end sees them.
func New(regions ...*Region) (*Memory, error) {
	if len(regions) > MaxRegions {
		return nil, regions[MaxRegions].error(ErrTooMany)
	}
	sorted := slices.Clone(regions)
	slices.SortFunc(sorted, func(a, b *Region) int { return cmp.Compare(a.UserAddr, b.UserAddr) })
	for i := 1; i < len(sorted); i++ {
		if prev := sorted[i-1]; sorted[i].UserAddr-prev.UserAddr < prev.Size {
			return nil, sorted[i].error(fmt.Errorf("user addresses: %w", ErrOverlap))
		}
	}
	slices.SortFunc(sorted, func(a, b *Region) int { return cmp.Compare(a.GuestPhys, b.GuestPhys) })
	for i := 1; i < len(sorted); i++ {
		if prev := sorted[i-1]; sorted[i].GuestPhys-prev.GuestPhys < prev.Size {
			return nil, sorted[i].error(fmt.Errorf("guest addresses: %w", ErrOverlap))
		}
	}
	for _, r := range sorted {
		r.retain()
	}
	m := &Memory{regions: sorted}
	m.refs.Store(1)
	return m, nil
}

// With returns a new generation that also has r. The caller holds a reference to it; m stays as it
// is.
func (m *Memory) With(r *Region) (*Memory, error) {
	return New(append(slices.Clone(m.regions), r)...)
}

// Without returns a new generation that lacks the region so described, or a *RegionError with
// ErrUnknown. The caller holds a reference to it; m stays as it is.
func (m *Memory) Without(guestPhys, size, userAddr uint64) (*Memory, error) {
	i := slices.IndexFunc(m.regions, func(r *Region) bool { return r.Is(guestPhys, size, userAddr) })
	if i < 0 {
		return nil, &RegionError{GuestPhys: guestPhys, Size: size, UserAddr: userAddr, Err: ErrUnknown}
	}
	return New(slices.Delete(slices.Clone(m.regions), i, i+1)...)
}

// Regions returns the regions by guest physical address. The slice is not to be changed.
func (m *Memory) Regions() []*Region { return m.regions }

// Retain takes a further reference. Only who holds one may call it.
func (m *Memory) Retain() {
	if m.refs.Add(1) <= 1 {
		panic("guestmem: memory used after its last release")
	}
}

// Release drops a reference. With the last one, regions that no other Memory has and whose creator
// has released them are unmapped, on the caller's goroutine.
func (m *Memory) Release() {
	if last(&m.refs) {
		for _, r := range m.regions {
			r.Release()
		}
	}
}

// ReleaseSoon is Release for a caller that must not wait, such as an event loop. Where it drops the
// last reference, another goroutine unmaps. That takes as long as the host takes to free the
// memory: seconds, for all of a guest's memory. Regions of other Spaces do not wait for it.
func (m *Memory) ReleaseSoon() {
	if last(&m.refs) {
		for _, r := range m.regions {
			r.releaseSoon()
		}
	}
}

// last drops one of refs, and tells whether it was the last one.
func last(refs *atomic.Int64) bool {
	n := refs.Add(-1)
	if n < 0 {
		panic("guestmem: released too often")
	}
	return n == 0
}

// find returns the region that has the byte at gpa, or nil.
func (m *Memory) find(gpa uint64) *Region {
	lo, hi := 0, len(m.regions)
	for lo < hi {
		mid := (lo + hi) / 2
		r := m.regions[mid]
		switch {
		case gpa < r.GuestPhys:
			hi = mid
		case gpa-r.GuestPhys >= r.Size:
			lo = mid + 1
		default:
			return r
		}
	}
	return nil
}

// Slice returns the n bytes at the guest physical address gpa, if they lie within one region. The
// slice's capacity is its length. Slice searches: a goroutine that translates often uses a View.
func (m *Memory) Slice(gpa, n uint64) ([]byte, bool) {
	r := m.find(gpa)
	if r == nil {
		return nil, false
	}
	off := gpa - r.GuestPhys
	if n > r.Size-off {
		return nil, false
	}
	return r.mem[off : off+n : off+n], true
}

// UserSlice is Slice for an address of the front-end's own address space, as ring addresses are.
func (m *Memory) UserSlice(uva, n uint64) ([]byte, bool) {
	for _, r := range m.regions {
		// Below the region the difference wraps round to a number too large: a region does not
		// reach the end of the address space.
		off := uva - r.UserAddr
		if off < r.Size && n <= r.Size-off {
			return r.mem[off : off+n : off+n], true
		}
	}
	return nil, false
}

// AppendSlices appends the n bytes at gpa to dst, in one slice for each region they lie in. Regions
// that follow one another in guest physical addresses count as one range. Where a byte is not
// mapped, it returns dst as it was and a *RangeError.
func (m *Memory) AppendSlices(dst [][]byte, gpa, n uint64) ([][]byte, error) {
	out := dst
	// Each turn is for a region further on, so there are at most MaxRegions.
	for at, left := gpa, n; left > 0; {
		r := m.find(at)
		if r == nil {
			return dst, &RangeError{Addr: gpa, Len: n}
		}
		off := at - r.GuestPhys
		k := min(left, r.Size-off)
		out = append(out, r.mem[off:off+k:off+k])
		at += k
		left -= k
	}
	return out, nil
}

// RangeError says that the guest has no memory at some of the Len bytes from the guest physical
// address Addr.
type RangeError struct {
	Addr, Len uint64
}

func (e *RangeError) Error() string {
	return fmt.Sprintf("guestmem: no memory at some of the %#x bytes from gpa %#x", e.Len, e.Addr)
}

// View translates guest physical addresses of one Memory for one goroutine. Most requests of a
// guest stay within one region, so a View tries that of its last hit first. It holds no reference
// of its own.
type View struct {
	base uint64 // of the region last hit
	mem  []byte
	m    *Memory
}

// View returns a View of m.
func (m *Memory) View() View { return View{m: m} }

// Memory returns the Memory that v looks at.
func (v *View) Memory() *Memory { return v.m }

// Slice is Memory.Slice.
func (v *View) Slice(gpa, n uint64) ([]byte, bool) {
	off := gpa - v.base
	if size := uint64(len(v.mem)); off < size && n <= size-off {
		return v.mem[off : off+n : off+n], true
	}
	return v.search(gpa, n)
}

func (v *View) search(gpa, n uint64) ([]byte, bool) {
	r := v.m.find(gpa)
	if r == nil {
		return nil, false
	}
	v.base, v.mem = r.GuestPhys, r.mem
	off := gpa - r.GuestPhys
	if n > r.Size-off {
		return nil, false
	}
	return r.mem[off : off+n : off+n], true
}
