package sys

import (
	"errors"
	"os"
	"runtime/debug"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Fence puts private memory in the place of what is mapped at mapping, a slice that Mmap has returned: whoever goes on to use its
// addresses, the kernel on behalf of a system call in progress included, does not reach the file any more. Each of keep, parts of
// mapping, has in the private memory what it had before; the rest of it is zero. There is no moment at which the addresses are not
// mapped, as far as the kernel's copying can see. Munmap ends the mapping as ever.
//
// What uses the file's pages and not the addresses is not kept off: O_DIRECT, registered buffers, vmsplice(2).
//
// Without anything to keep it makes do with memory that nobody can use, where the host has none to spare. After an error, ENOMEM
// mostly, or EFAULT where the file has been cut off behind the mapping, everything is as it was.
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

// mmap maps anonymous memory, without the bookkeeping of unix.Mmap, which knows one mapping for an address.
func mmap(addr uintptr, size int, prot, flags int) (uintptr, syscall.Errno) {
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, addr, uintptr(size), uintptr(prot), uintptr(flags), ^uintptr(0), 0)
	return at, errno
}
