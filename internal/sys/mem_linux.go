package sys

import (
	"math"
	"math/bits"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// NewMemfd returns an anonymous memory file of size bytes, all zero, CLOEXEC, owned by the caller.
// name is only seen in /proc.
func NewMemfd(name string, size int64) (*FD, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := NewFD(fd)
	if err := unix.Ftruncate(fd, size); err != nil {
		f.Close()
		return nil, os.NewSyscallError("ftruncate", err)
	}
	return f, nil
}

// Mmap maps length bytes of fd from off on: shared, readable and, where writable is set, writable.
// Nothing is populated and no swap is reserved: guests are large and sparse, and the front-end
// waits meanwhile. off must be a multiple of the page size. The mapping outlives fd; it ends with
// Munmap. Its memory is not Go's: the garbage collector neither moves nor frees it, and a use of
// the slice after Munmap is a fault.
func Mmap(fd int, off int64, length int, writable bool) ([]byte, error) {
	prot := unix.PROT_READ
	if writable {
		prot |= unix.PROT_WRITE
	}
	b, err := unix.Mmap(fd, off, length, prot, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return b, nil
}

// Munmap ends a mapping made by Mmap. b must be the very slice that Mmap returned.
func Munmap(b []byte) error {
	return os.NewSyscallError("munmap", unix.Munmap(b))
}

// IsMemory tells whether fd is a file that is nothing but memory, a memfd or a file of tmpfs or
// hugetlbfs. It asks the kernel for the file's seals (fcntl_linux(2)), which only those have, and
// never a file system that may not answer.
func IsMemory(fd int) (bool, error) {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == unix.EINVAL {
		return false, nil
	}
	return err == nil, os.NewSyscallError("fcntl(F_GET_SEALS)", err)
}

// AddressSpace is how many bytes of addresses a process has on this host: a power of two. The
// kernel puts the first mappings at the top, so that one of them shows it. (With an unlimited stack
// the kernel begins at the bottom, and half as much is found.)
func AddressSpace() uint64 {
	b, err := unix.Mmap(-1, 0, PageSize(), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return 1 << 38 // the least that hosts have
	}
	defer func() { _ = unix.Munmap(b) }()
	return 1 << bits.Len64(uint64(addressOf(b)))
}

// AddressLimit is how many bytes of them this process may use (RLIMIT_AS).
func AddressLimit() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_AS, &l); err != nil {
		return math.MaxUint64
	}
	return l.Cur
}

// MaxMappings is how many mappings a process can have (vm.max_map_count).
func MaxMappings() uint64 {
	const usual = 65530
	text, err := os.ReadFile("/proc/sys/vm/max_map_count")
	if err != nil {
		return usual
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return usual
	}
	return n
}

// PageSize is the host's page size in bytes.
func PageSize() int { return unix.Getpagesize() }

// MapAlign returns what offset and length of a mapping of fd must be multiples of, in bytes: the
// page size, and on hugetlbfs the size of its huge pages (munmap refuses a part of one).
func MapAlign(fd int) (int, error) {
	var st unix.Statfs_t
	for {
		err := unix.Fstatfs(fd, &st)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, os.NewSyscallError("fstatfs", err)
		}
		if st.Type == unix.HUGETLBFS_MAGIC {
			return int(st.Bsize), nil
		}
		return PageSize(), nil
	}
}
