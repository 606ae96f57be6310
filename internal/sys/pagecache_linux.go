package sys

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// Cached is how many pages of the n bytes of the file at off the page cache has (cachestat(2), Linux 6.5). ENOSYS before that.
func Cached(fd int, off, n int64) (pages uint64, errno syscall.Errno) {
	var stat unix.Cachestat_t
	err := unix.Cachestat(uint(fd), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &stat, 0)
	return stat.Cache, toErrno(err)
}

// DropCached drops what the page cache has of the n bytes of the file at off, as far as it can: not what is still to be written,
// nor what somebody has mapped (posix_fadvise(2)).
func DropCached(fd int, off, n int64) {
	_ = unix.Fadvise(fd, off, n, unix.FADV_DONTNEED)
}
