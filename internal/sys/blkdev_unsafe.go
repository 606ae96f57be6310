//go:build linux

package sys

import (
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BlockSize64 gives the size of a block device in bytes (BLKGETSIZE64).
func BlockSize64(fd int) (int64, error) {
	var n uint64
	if errno := ioctl(fd, unix.BLKGETSIZE64, unsafe.Pointer(&n)); errno != 0 {
		return 0, os.NewSyscallError("ioctl(BLKGETSIZE64)", errno)
	}
	return int64(n), nil
}

// BlockSectorSize gives the logical sector size of a block device in bytes (BLKSSZGET).
func BlockSectorSize(fd int) (int64, error) {
	var n int32
	if errno := ioctl(fd, unix.BLKSSZGET, unsafe.Pointer(&n)); errno != 0 {
		return 0, os.NewSyscallError("ioctl(BLKSSZGET)", errno)
	}
	return int64(n), nil
}

// BlockOptIO gives the optimal transfer size of a block device in bytes, 0 where it has none
// (BLKIOOPT).
func BlockOptIO(fd int) (uint32, error) {
	var n uint32
	if errno := ioctl(fd, unix.BLKIOOPT, unsafe.Pointer(&n)); errno != 0 {
		return 0, os.NewSyscallError("ioctl(BLKIOOPT)", errno)
	}
	return n, nil
}

// blkGetDiskSeq is BLKGETDISKSEQ of linux/fs.h.
const blkGetDiskSeq = 2<<30 | 8<<16 | 0x12<<8 | 128

// diskSequence gives the number of a block device among all that the kernel has had: 0 where it
// does not say.
func diskSequence(fd int) (n uint64) {
	if errno := ioctl(fd, blkGetDiskSeq, unsafe.Pointer(&n)); errno != 0 {
		return 0
	}
	return n
}

// BlockReadOnly reports whether a block device is set read-only (BLKROGET).
func BlockReadOnly(fd int) (bool, error) {
	var n int32
	if errno := ioctl(fd, unix.BLKROGET, unsafe.Pointer(&n)); errno != 0 {
		return false, os.NewSyscallError("ioctl(BLKROGET)", errno)
	}
	return n != 0, nil
}

// BlockRotational reports whether a block device is a rotating disk (BLKROTATIONAL).
func BlockRotational(fd int) (bool, error) {
	var n uint16
	if errno := ioctl(fd, unix.BLKROTATIONAL, unsafe.Pointer(&n)); errno != 0 {
		return false, os.NewSyscallError("ioctl(BLKROTATIONAL)", errno)
	}
	return n != 0, nil
}

// BlockDiscard discards the bytes off to off+n of a block device (BLKDISCARD). What they read as
// afterwards is undefined. 0 is success. EINTR is tried again, but not for ever.
func BlockDiscard(fd int, off, n int64) syscall.Errno {
	return blockRange(fd, unix.BLKDISCARD, off, n)
}

// BlockZeroOut makes the bytes off to off+n of a block device zero (BLKZEROOUT); it writes them
// where the device has nothing better. 0 is success. EINTR is tried again, but not for ever.
func BlockZeroOut(fd int, off, n int64) syscall.Errno {
	return blockRange(fd, unix.BLKZEROOUT, off, n)
}

func blockRange(fd int, req uintptr, off, n int64) syscall.Errno {
	r := [2]uint64{uint64(off), uint64(n)}
	return ioctl(fd, req, unsafe.Pointer(&r))
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) syscall.Errno {
	for n := interrupts(0); ; {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		if err := error(errno); !n.again(&err) {
			return err.(syscall.Errno)
		}
	}
}
