package guestmem

import (
	"errors"
	"fmt"
	"math"
	"sync/atomic"

	"vdev/internal/sys"
)

// Region is one range of guest memory, mapped shared and writable. The fields are the front-end's
// description of it (vhost-user, "Single memory region description") and do not change.
type Region struct {
	GuestPhys  uint64 // guest physical address of the first byte
	Size       uint64 // bytes, not 0
	UserAddr   uint64 // address of the first byte in the front-end's own address space
	MmapOffset uint64 // offset in bytes of the first byte in the file behind FD

	space   *Space
	fd      *sys.FD
	mapping []byte // what munmap needs: whole pages around mem
	mem     []byte // the region itself
	refs    atomic.Int64
}

// RegionError says which region was refused, and why.
type RegionError struct {
	GuestPhys, Size, UserAddr, MmapOffset uint64
	Err                                   error
}

func (e *RegionError) Error() string {
	return fmt.Sprintf("guestmem: region gpa %#x, size %#x, user %#x, offset %#x: %v",
		e.GuestPhys, e.Size, e.UserAddr, e.MmapOffset, e.Err)
}

func (e *RegionError) Unwrap() error { return e.Err }

// The errors that a RegionError or a LogError can hold, beside those of system calls.
var (
	ErrSize     = errors.New("size is 0")
	ErrOverflow = errors.New("address range overflows")
	ErrShort    = errors.New("file ends too early")
	ErrAlign    = errors.New("offset is not a multiple of 8")
	ErrOverlap  = errors.New("overlaps another region")
	ErrTooMany  = errors.New("more than 509 regions")
	ErrUnknown  = errors.New("no such region")
	ErrFile     = errors.New("the descriptor must be a memfd, or a file of tmpfs or hugetlbfs")
)

// Map is Space.Map with a Space of its own.
func Map(guestPhys, size, userAddr, mmapOffset uint64, fd *sys.FD) (*Region, error) {
	return new(Space).Map(guestPhys, size, userAddr, mmapOffset, fd)
}

// Map maps size bytes of fd from mmapOffset on as the guest memory at guestPhys, which the
// front-end has at userAddr. It owns fd on every path: an error closes it. Nothing is populated.
// The caller holds the one reference to the Region, until Release. Errors are *RegionError.
//
// Neither range may reach the last byte of the 64-bit address space, so that its end is a number
// too. A regular file must be long enough when it is mapped. Whoever truncates it afterwards causes
// faults (SIGBUS) in its users.
func (s *Space) Map(guestPhys, size, userAddr, mmapOffset uint64, fd *sys.FD) (*Region, error) {
	return s.mapRegion(guestPhys, size, userAddr, mmapOffset, fd, hostLimits())
}

func (s *Space) mapRegion(guestPhys, size, userAddr, mmapOffset uint64, fd *sys.FD, l limits) (*Region, error) {
	r := &Region{GuestPhys: guestPhys, Size: size, UserAddr: userAddr, MmapOffset: mmapOffset, space: s, fd: fd}
	if err := r.mmap(l); err != nil {
		fd.Close()
		return nil, r.error(err)
	}
	r.refs.Store(1)
	return r, nil
}

func (r *Region) mmap(l limits) error {
	if r.GuestPhys > math.MaxUint64-r.Size || r.UserAddr > math.MaxUint64-r.Size {
		return ErrOverflow
	}
	mapping, mem, err := r.space.mapFile(r.fd, r.Size, r.MmapOffset, l)
	if err != nil {
		return err
	}
	r.mapping, r.mem = mapping, mem
	return nil
}

func (r *Region) error(err error) error {
	return &RegionError{r.GuestPhys, r.Size, r.UserAddr, r.MmapOffset, err}
}

// FD returns the descriptor the region was mapped from. It stays the region's, and is closed with
// it.
func (r *Region) FD() *sys.FD { return r.fd }

// Bytes returns the region's memory, which is shared with the guest and changes under the reader.
// It is valid while the caller holds a reference to the region or to a Memory that has it.
func (r *Region) Bytes() []byte { return r.mem }

// Is tells whether the front-end describes r by these numbers.
func (r *Region) Is(guestPhys, size, userAddr uint64) bool {
	return r.GuestPhys == guestPhys && r.Size == size && r.UserAddr == userAddr
}

func (r *Region) retain() {
	if r.refs.Add(1) <= 1 {
		panic("guestmem: region used after its last release")
	}
}

// Release drops a reference: the creator calls it once. The last one unmaps the memory and closes
// the descriptor, on the caller's goroutine.
func (r *Region) Release() {
	if last(&r.refs) {
		r.free()
	}
}

// releaseSoon is Release for a caller that must not wait.
func (r *Region) releaseSoon() {
	if last(&r.refs) {
		r.space.later.put(r)
	}
}

// free is what the last reference's end does.
func (r *Region) free() {
	r.space.unmap(r.mapping)
	r.mapping, r.mem = nil, nil
	r.fd.Close()
}
