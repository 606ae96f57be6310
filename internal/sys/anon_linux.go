package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// MmapAnon maps size bytes of private anonymous memory, all zero, readable and writable. Pages are
// taken when they are first written, and no swap is reserved (MAP_NORESERVE), so that a large
// sparse mapping costs nothing. It ends with Munmap; its memory is not Go's.
func MmapAnon(size int) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return b, nil
}

// Discard discards the pages of b, a part of a mapping by MmapAnon that begins on a page's
// boundary: they read as zeroes afterwards, and the host has the memory (madvise(2),
// MADV_DONTNEED). The last page is discarded whole.
func Discard(b []byte) error {
	return os.NewSyscallError("madvise", unix.Madvise(b, unix.MADV_DONTNEED))
}
