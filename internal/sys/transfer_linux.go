package sys

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Readv reads from fd into iov, once (readv(2)), and returns the number of bytes read, 0 at the end
// of the stream. It takes at most the first 1024 elements of iov. EINTR is tried again.
func Readv(fd int, iov [][]byte) (int, syscall.Errno) {
	for {
		n, err := unix.Readv(fd, iov[:min(len(iov), 1024)])
		if err == nil {
			return n, 0
		}
		if errno := err.(syscall.Errno); errno != unix.EINTR {
			return 0, errno
		}
	}
}

// Writev writes iov to fd, once (writev(2)), and returns the number of bytes written. It takes at
// most the first 1024 elements of iov. EINTR is tried again, but not for ever.
func Writev(fd int, iov [][]byte) (int, syscall.Errno) {
	for n := interrupts(0); ; {
		k, err := unix.Writev(fd, iov[:min(len(iov), 1024)])
		if err == nil {
			return k, 0
		}
		if !n.again(&err) {
			return 0, err.(syscall.Errno)
		}
	}
}

// Preadv reads from byte off of fd into iov, once (preadv2(2)), and returns the number of bytes
// read, 0 at the end of the file. It takes at most the first 1024 elements of iov. EINTR is tried
// again, but not for ever.
func Preadv(fd int, iov [][]byte, off int64) (int, syscall.Errno) {
	for n := interrupts(0); ; {
		k, err := unix.Preadv(fd, iov[:min(len(iov), 1024)], off)
		if err == nil {
			return k, 0
		}
		if !n.again(&err) {
			return 0, err.(syscall.Errno)
		}
	}
}

// Pwritev writes iov at byte off of fd, once (pwritev2(2)), and returns the number of bytes
// written. With dsync they are on stable storage when it returns (RWF_DSYNC). It takes at most the
// first 1024 elements of iov. EINTR is tried again, but not for ever.
func Pwritev(fd int, iov [][]byte, off int64, dsync bool) (int, syscall.Errno) {
	flags := 0
	if dsync {
		flags = unix.RWF_DSYNC
	}
	for n := interrupts(0); ; {
		k, err := unix.Pwritev2(fd, iov[:min(len(iov), 1024)], off, flags)
		if err == nil {
			return k, 0
		}
		if !n.again(&err) {
			return 0, err.(syscall.Errno)
		}
	}
}

// Buffered tells whether transfers of fd use the page cache: it was not opened with O_DIRECT.
func Buffered(fd int) bool {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	return err == nil && flags&unix.O_DIRECT == 0
}

// KeepQuiet makes reads by f leave the file's access time alone (O_NOATIME), so that a read of what
// is in memory writes nothing. EPERM where the file is somebody else's and this process is not
// privileged.
func (f *FD) KeepQuiet() error {
	flags, err := unix.FcntlInt(uintptr(f.Int()), unix.F_GETFL, 0)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(f.Int()), unix.F_SETFL, flags|unix.O_NOATIME)
	}
	return os.NewSyscallError("fcntl", err)
}
