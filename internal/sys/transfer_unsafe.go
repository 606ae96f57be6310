package sys

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Iovec is struct iovec.
type Iovec = unix.Iovec

// Read is Preadv for who has the iovecs, at most 1024, and does not want to block: with nowait (RWF_NOWAIT) it fails with EAGAIN
// where it would have to, and with EOPNOTSUPP where the file system cannot tell. EINTR is not tried again. It does not allocate.
func Read(fd int, iov []Iovec, off int64, nowait bool) (int, syscall.Errno) {
	return transfer(unix.SYS_PREADV2, fd, iov, off, nowait)
}

// Write is Read's counterpart.
func Write(fd int, iov []Iovec, off int64, nowait bool) (int, syscall.Errno) {
	return transfer(unix.SYS_PWRITEV2, fd, iov, off, nowait)
}

func transfer(call uintptr, fd int, iov []Iovec, off int64, nowait bool) (int, syscall.Errno) {
	flags := uintptr(0)
	if nowait {
		flags = unix.RWF_NOWAIT
	}
	// The offset's upper half, of 64 bits, is for machines that have no such registers.
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)), uintptr(off), 0, flags)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
