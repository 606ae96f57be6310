package guestmem

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"syscall"

	"vdev/internal/sys"
)

// mappings are all there are, of regions and of logs.
var mappings = struct {
	mu    sync.Mutex
	sizes map[uintptr]uintptr // in bytes, by address
	held  held                // by all Spaces; also what could not be unmapped
}{sizes: make(map[uintptr]uintptr)}

// Mapped tells whether addr, an address of this process, lies in memory that a front-end shares,
// mapped by Map or NewLog. A fault there is the front-end's doing. It looks at each mapping, so it
// is for rare cases. It may be called on any goroutine.
func Mapped(addr uintptr) bool {
	mappings.mu.Lock()
	defer mappings.mu.Unlock()
	for start, size := range mappings.sizes {
		if addr-start < size {
			return true
		}
	}
	return false
}

// mapFile maps size bytes of fd from offset on, shared and writable: mem, within mapping, which is
// whole pages around it and what unmap needs. It counts in s, within l.
func (s *Space) mapFile(fd *sys.FD, size, offset uint64, l limits) (mapping, mem []byte, err error) {
	if size == 0 {
		return nil, nil, ErrSize
	}
	// Before anything that asks the file's file system, which may not answer.
	if err := s.Admits(fd); err != nil {
		return nil, nil, err
	}
	align, err := sys.MapAlign(fd.Int())
	if err != nil {
		return nil, nil, err
	}
	a := uint64(align)
	if size > math.MaxInt64-offset || offset > math.MaxInt64-a || offset+size > math.MaxInt64-a {
		return nil, nil, ErrOverflow
	}
	fileSize, regular, err := fd.Size()
	if err != nil {
		return nil, nil, err
	}
	if regular && uint64(fileSize) < offset+size {
		return nil, nil, fmt.Errorf("%w: it has %#x bytes", ErrShort, fileSize)
	}
	start := offset &^ (a - 1)
	skip := offset - start
	length := (skip + size + a - 1) &^ (a - 1)
	h := held{length, 1}
	mappings.mu.Lock()
	err = s.takeLocked(h, l)
	mappings.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	m, err := sys.Mmap(fd.Int(), int64(start), int(length), true)
	mappings.mu.Lock()
	defer mappings.mu.Unlock()
	if err != nil {
		s.giveLocked(h)
		return nil, nil, err
	}
	mappings.sizes[address(m)] = uintptr(len(m))
	return m, m[skip : skip+size : skip+size], nil
}

// Admits returns an error where fd must not be memory: ErrFile where it is not one of the files
// that are taken, or the host's error where the host does not say what it is. It never waits.
func (s *Space) Admits(fd *sys.FD) error {
	if s.AnyFiles {
		return nil
	}
	memory, err := sys.IsMemory(fd.Int())
	if memory || err != nil {
		return err
	}
	kind, err := sys.KindOf(fd.Int())
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: it is %s", ErrFile, kind)
}

// unmap ends a mapping that counts in s.
func (s *Space) unmap(mapping []byte) {
	// Before somebody else's mapping has the address.
	mappings.mu.Lock()
	delete(mappings.sizes, address(mapping))
	mappings.mu.Unlock()
	err := sys.Munmap(mapping)
	if err != nil && !errors.Is(err, syscall.ENOMEM) {
		panic(fmt.Sprintf("guestmem: %v", err))
	}
	if err != nil {
		// The kernel had joined the mapping with a neighbour and may not split it. Then it stays,
		// unused, and counts.
		return
	}
	mappings.mu.Lock()
	defer mappings.mu.Unlock()
	s.giveLocked(held{uint64(len(mapping)), 1})
}
