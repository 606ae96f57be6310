package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Cached counts the pages that the page cache has of the n bytes of the file at off, a multiple of
// the page size. It asks cachestat(2), and before Linux 6.5 mincore(2), which counts every page of
// a file that this process may only read.
func Cached(fd int, off, n int64) (pages int, errno syscall.Errno) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	// which a container's seccomp says of what it does not know
	if err == unix.ENOSYS || err == unix.EPERM {
		return mapped(fd, off, n)
	}
	return int(stat.Cache), toErrno(err)
}

// mapped is Cached by mincore.
func mapped(fd int, off, n int64) (pages int, errno syscall.Errno) {
	mem, err := unix.Mmap(fd, off, int(n), unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return 0, toErrno(err)
	}
	defer unix.Munmap(mem)
	page := PageSize()
	there := make([]byte, (len(mem)+page-1)/page)
	_, _, e := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&there[0])))
	for _, b := range there {
		pages += int(b & 1)
	}
	return pages, e
}

// DropCached drops what the page cache has of the n bytes of the file at off, but for what is still
// to be written, and for what somebody has mapped (posix_fadvise(2)).
func DropCached(fd int, off, n int64) {
	_ = unix.Fadvise(fd, off, n, unix.FADV_DONTNEED)
}
