// Package virtqtest is the guest driver's side of a virtqueue, over memory of its own, for tests,
// fuzz targets and benchmarks of devices. It trusts neither side: misuse by the test and
// misbehaviour of the device both panic, with a message that says which.
//
// Nothing here locks. A Mem may be read by any goroutine, but Alloc is for one at a time; a Driver
// belongs to one goroutine, while the device works on the same ring.
package virtqtest

import (
	"fmt"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/virtq"
)

// userBase is where the guest's memory lies in the make-believe front-end's address space. Nothing
// reads there.
const userBase = 0x7e00_0000_0000

// Range is a range of guest physical memory to make. Both numbers are best multiples of the page
// size.
type Range struct {
	GuestPhys uint64 // guest physical address of its first byte
	Size      uint64 // bytes
}

// Region is a region of a Mem, as a front-end describes it to a back-end (vhost-user, "Single
// memory region description").
type Region struct {
	GuestPhys uint64 // guest physical address of its first byte
	Size      uint64 // bytes
	// address of its first byte in the front-end's own address space, as ring addresses are given
	UserAddr   uint64
	MmapOffset uint64 // where it begins in the memory file, bytes
}

// Mem is a guest's memory: one memory file, zero at first, in which the regions lie one after
// another.
type Mem struct {
	fd      *sys.FD
	bytes   []byte
	regions []Region
	next    []uint64 // offset in each region of what is not allocated
}

// NewMem makes memory of the given ranges. The caller ends it with Close.
func NewMem(ranges ...Range) (*Mem, error) {
	m := &Mem{next: make([]uint64, len(ranges))}
	var total uint64
	for _, r := range ranges {
		m.regions = append(m.regions, Region{r.GuestPhys, r.Size, userBase + total, total})
		total += r.Size
	}
	var err error
	if m.fd, err = sys.NewMemfd("virtqtest", int64(total)); err != nil {
		return nil, err
	}
	if m.bytes, err = sys.Mmap(m.fd.Int(), 0, int(total), true); err != nil {
		m.fd.Close()
		return nil, err
	}
	return m, nil
}

// Close unmaps the memory; a Memory made from it stays until it is released. Slices from Bytes, and
// Drivers on m, must not be used any more.
func (m *Mem) Close() {
	if err := sys.Munmap(m.bytes); err != nil {
		panic(fmt.Sprintf("virtqtest: %v", err))
	}
	m.fd.Close()
}

// FD returns the memory file's descriptor, to be sent to a back-end. It stays owned by m.
func (m *Mem) FD() int { return m.fd.Int() }

// Regions returns the regions in the order they were asked for. The slice is not to be changed.
func (m *Mem) Regions() []Region { return m.regions }

// mapRegion maps region i as a back-end does. The caller releases it.
func (m *Mem) mapRegion(i int) (*guestmem.Region, error) {
	fd, err := m.fd.Dup()
	if err != nil {
		return nil, err
	}
	r := m.regions[i]
	return guestmem.Map(r.GuestPhys, r.Size, r.UserAddr, r.MmapOffset, fd)
}

// Memory maps all regions as a back-end does, anew with each call. The caller releases it.
func (m *Mem) Memory() (*virtq.Memory, error) {
	regions := make([]*guestmem.Region, 0, len(m.regions))
	defer func() {
		for _, r := range regions {
			r.Release()
		}
	}()
	for i := range m.regions {
		r, err := m.mapRegion(i)
		if err != nil {
			return nil, err
		}
		regions = append(regions, r)
	}
	mem, err := guestmem.New(regions...)
	return (*virtq.Memory)(mem), err
}

// Alloc returns the guest physical address of n bytes, a multiple of align (a power of two), in the
// first region with room for them. Nothing is ever freed. It panics when no region has room.
func (m *Mem) Alloc(n, align uint64) uint64 {
	for i := range m.regions {
		if gpa, ok := m.alloc(i, n, align); ok {
			return gpa
		}
	}
	panic(fmt.Sprintf("virtqtest: no room for %d bytes", n))
}

// AllocIn is Alloc within region i.
func (m *Mem) AllocIn(i int, n, align uint64) uint64 {
	gpa, ok := m.alloc(i, n, align)
	if !ok {
		panic(fmt.Sprintf("virtqtest: no room for %d bytes in region %d", n, i))
	}
	return gpa
}

func (m *Mem) alloc(i int, n, align uint64) (uint64, bool) {
	r := m.regions[i]
	gpa := (r.GuestPhys + m.next[i] + align - 1) &^ (align - 1)
	if off := gpa - r.GuestPhys; off > r.Size || n > r.Size-off {
		return 0, false
	}
	m.next[i] = gpa + n - r.GuestPhys
	return gpa, true
}

// Reset makes everything that was allocated zero, and free again. Nobody uses it any more.
func (m *Mem) Reset() {
	for i, r := range m.regions {
		clear(m.bytes[r.MmapOffset:][:m.next[i]])
		m.next[i] = 0
	}
}

// offset returns where in the memory file the byte at gpa is.
func (m *Mem) offset(gpa uint64) uint64 {
	for _, r := range m.regions {
		if off := gpa - r.GuestPhys; off < r.Size {
			return r.MmapOffset + off
		}
	}
	panic(fmt.Sprintf("virtqtest: gpa %#x is not in memory", gpa))
}

// Bytes returns the n bytes at gpa, shared with the device. They may lie in several regions that
// follow one another. It panics when they are not all in memory.
func (m *Mem) Bytes(gpa, n uint64) []byte {
	if n == 0 {
		return nil
	}
	first, last := m.offset(gpa), m.offset(gpa+n-1)
	if last-first != n-1 {
		panic(fmt.Sprintf("virtqtest: %#x bytes at gpa %#x are not in one piece", n, gpa))
	}
	return m.bytes[first : last+1 : last+1]
}

// UserAddr returns the address of the byte at gpa in the front-end's own address space.
func (m *Mem) UserAddr(gpa uint64) uint64 { return userBase + m.offset(gpa) }
