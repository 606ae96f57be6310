package sys

import (
	"errors"
	"os"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fence replaces what is mapped at mapping, a slice that Mmap has returned, by private memory.
// Whoever uses its addresses afterwards does not reach the file any more, and that includes the
// kernel in a system call that is in progress. keep are parts of mapping: they have the content
// that they had before, and the rest is zero. The addresses are mapped at every moment, as far as
// the kernel's copying can see. Munmap ends the mapping as ever.
//
// Fence does not keep off what uses the file's pages and not the addresses: O_DIRECT, registered
// buffers, vmsplice(2).
//
// If there is nothing to keep and the host has no memory to spare, the private memory is some that
// nobody can use. After an error everything is as it was: mostly ENOMEM, or EFAULT where the file
// behind the mapping has been truncated.
func Fence(mapping []byte, keep [][]byte) error {
	err := fence(mapping, keep)
	if err == nil || len(keep) > 0 {
		return err
	}
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE | unix.MAP_FIXED
	if _, errno := mmap(address(mapping), len(mapping), unix.PROT_NONE, flags); errno != 0 {
		return errors.Join(err, os.NewSyscallError("mmap", errno))
	}
	return nil
}

func fence(mapping []byte, keep [][]byte) error {
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_NORESERVE
	staging, errno := mmap(0, len(mapping), prot, flags)
	if errno != 0 {
		return os.NewSyscallError("mmap", errno)
	}
	err := fill(staging, mapping, keep)
	if err == nil {
		const fixed = unix.MREMAP_MAYMOVE | unix.MREMAP_FIXED
		size := uintptr(len(mapping))
		_, _, errno := unix.Syscall6(unix.SYS_MREMAP, staging, size, size, fixed, address(mapping), 0)
		if errno == 0 {
			return nil
		}
		err = os.NewSyscallError("mremap", errno)
	}
	_, _, _ = unix.Syscall(unix.SYS_MUNMAP, staging, uintptr(len(mapping)), 0)
	return err
}

// fill copies what is to be kept to the same places of staging.
func fill(staging uintptr, mapping []byte, keep [][]byte) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			fault, ok := r.(interface {
				error
				Addr() uintptr
			})
			if !ok {
				panic(r)
			}
			if at := fault.Addr() - address(mapping); at >= uintptr(len(mapping)) {
				panic(r)
			}
			err = os.NewSyscallError("copy", syscall.EFAULT)
		}
	}()
	base := address(mapping)
	for _, k := range keep {
		if len(k) == 0 {
			continue
		}
		off := address(k) - base
		if off >= uintptr(len(mapping)) || uintptr(len(k)) > uintptr(len(mapping))-off {
			return os.NewSyscallError("copy", syscall.EINVAL)
		}
		copyOut(staging+off, k)
	}
	return nil
}

// copyOut copies p to an address that is not Go's.
func copyOut(to uintptr, p []byte) {
	copy(unsafe.Slice(*(**byte)(unsafe.Pointer(&to)), len(p)), p)
}

func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// mmap maps anonymous memory, without the bookkeeping of unix.Mmap, which knows one mapping for an
// address.
func mmap(addr uintptr, size int, prot, flags int) (uintptr, syscall.Errno) {
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, addr, uintptr(size), uintptr(prot), uintptr(flags), ^uintptr(0), 0)
	return at, errno
}
