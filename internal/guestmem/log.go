package guestmem

import (
	"fmt"
	"sync/atomic"

	"vdev/internal/sys"
)

// LogPage is how many bytes of guest memory one bit of a Log stands for (VHOST_LOG_PAGE;
// vhost-user, "Migration").
const LogPage = 4096

// Log is a dirty log: a bitmap in memory that is shared with a front-end, with a bit for each page
// of guest memory from guest physical address 0 on. Whoever has written to guest memory sets the
// bits of its pages. The front-end clears those it has seen. All methods but Close may be called
// from any goroutine; other processes may mark in the same log at the same time.
//
// A front-end that cuts off the file behind the log causes faults in Mark, as it does with guest
// memory.
type Log struct {
	space   *Space
	mapping []byte
	words   []uint32 // the bitmap; its last word may reach beyond it, but not out of mapping
	pages   uint64   // bits of the bitmap
}

// LogError says which log was refused, and why: ErrSize, ErrAlign, ErrOverflow, ErrShort, ErrFile,
// ErrSpace, or an error of a system call.
type LogError struct {
	Size, Offset uint64
	Err          error
}

func (e *LogError) Error() string {
	return fmt.Sprintf("guestmem: log of %#x bytes at offset %#x: %v", e.Size, e.Offset, e.Err)
}

func (e *LogError) Unwrap() error { return e.Err }

// NewLog is Space.NewLog with a Space of its own.
func NewLog(fd *sys.FD, size, offset uint64) (*Log, error) {
	return new(Space).NewLog(fd, size, offset)
}

// NewLog maps the bitmap of size bytes that begins at offset in fd. fd stays the caller's, and is
// not needed after the return. Nothing is populated. offset must be a multiple of 8, and a regular
// file must be long enough. Errors are *LogError.
func (s *Space) NewLog(fd *sys.FD, size, offset uint64) (*Log, error) {
	if offset%8 != 0 {
		return nil, &LogError{size, offset, ErrAlign}
	}
	mapping, mem, err := s.mapFile(fd, size, offset, hostLimits())
	if err != nil {
		return nil, &LogError{size, offset, err}
	}
	return &Log{space: s, mapping: mapping, words: words(mem), pages: 8 * size}, nil
}

// Covers tells whether the log has a bit for each page of the n bytes from the guest physical
// address addr on.
func (l *Log) Covers(addr, n uint64) bool {
	end := addr + n
	return end >= addr && (n == 0 || (end-1)/LogPage < l.pages)
}

// Mark sets the bit of each page of the n bytes from the guest physical address addr on. It is
// called after they were written, and is a barrier: whoever finds the bits set finds what was
// written. It reports false, and has marked nothing, where the log does not cover them.
func (l *Log) Mark(addr, n uint64) bool {
	if !l.Covers(addr, n) {
		return false
	}
	if n == 0 {
		return true
	}
	first, last := addr/LogPage, (addr+n-1)/LogPage
	for w := first / 32; w <= last/32; w++ {
		mask := ^uint32(0)
		if w == first/32 {
			mask <<= first % 32
		}
		if w == last/32 {
			mask &= ^uint32(0) >> (31 - last%32)
		}
		// Also where the bits are set already: the front-end may be about to clear them, and to
		// read the pages before what was written has got there.
		atomic.OrUint32(&l.words[w], mask)
	}
	return true
}

// Close unmaps the log, which nobody uses any more.
func (l *Log) Close() {
	l.space.unmap(l.mapping)
	*l = Log{}
}
