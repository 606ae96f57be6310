package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Iovec is struct iovec.
type Iovec = unix.Iovec

// Read is Preadv for a caller that has the iovecs, at most 1024, and does not want to block
// (RWF_NOWAIT). It fails with EAGAIN where it would have to block, and with EOPNOTSUPP where the
// file system cannot tell. EINTR is not tried again. It does not allocate.
//
// It may sleep all the same: for room in the queue of a disk from which it reads ahead (seen on
// Linux 6.18), or to write an access time. So it is no raw system call, which would hold up garbage
// collection.
func Read(fd int, iov []Iovec, off int64) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), first(iov), uintptr(len(iov)), uintptr(off), 0, unix.RWF_NOWAIT)
	return count(n, errno)
}

// ReadWaiting is Read where it may block.
func ReadWaiting(fd int, iov []Iovec, off int64) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), first(iov), uintptr(len(iov)), uintptr(off), 0, 0)
	return count(n, errno)
}

// WriteWaiting is ReadWaiting's counterpart.
func WriteWaiting(fd int, iov []Iovec, off int64) (int, syscall.Errno) {
	n, _, errno := unix.Syscall6(unix.SYS_PWRITEV2, uintptr(fd), first(iov), uintptr(len(iov)), uintptr(off), 0, 0)
	return count(n, errno)
}

func first(iov []Iovec) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(iov))) }

func count(n uintptr, errno syscall.Errno) (int, syscall.Errno) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
