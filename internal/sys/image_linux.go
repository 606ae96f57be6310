package sys

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// OpenFlags say how OpenFile opens.
type OpenFlags struct {
	Write  bool // for reading and writing; else for reading
	Direct bool // O_DIRECT
	// O_EXCL: of a block device, EBUSY where the host uses it itself (has it mounted, say)
	Exclusive bool
}

// OpenFile opens the file at path, which must exist, CLOEXEC. It may block: see open(2) for FIFOs.
func OpenFile(path string, fl OpenFlags) (*FD, error) {
	flags := unix.O_CLOEXEC | unix.O_RDONLY
	if fl.Write {
		flags = unix.O_CLOEXEC | unix.O_RDWR
	}
	if fl.Direct {
		flags |= unix.O_DIRECT
	}
	if fl.Exclusive {
		flags |= unix.O_EXCL
	}
	for n := interrupts(0); ; {
		fd, err := unix.Open(path, flags, 0)
		if err == nil {
			return NewFD(fd), nil
		}
		if !n.again(&err) {
			return nil, os.NewSyscallError("open", err)
		}
	}
}

// FileType is the kind of a file: the S_IFMT bits of its mode.
type FileType uint32

// The types that images are looked at for.
const (
	TypeRegular FileType = unix.S_IFREG
	TypeBlock   FileType = unix.S_IFBLK
)

// String names the type as a user would.
func (t FileType) String() string {
	switch t {
	case unix.S_IFREG:
		return "regular file"
	case unix.S_IFBLK:
		return "block device"
	case unix.S_IFCHR:
		return "character device"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "special file"
}

// FileStat is what stat(2) says of a file.
type FileStat struct {
	Type         FileType
	Size         int64  // bytes; of a regular file only
	BlockSize    int64  // st_blksize, bytes
	Major, Minor uint32 // of a device: its number
	Ino          uint64 // the inode's number in its file system
}

// Stat looks at the file at path, without opening it.
func Stat(path string) (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileStat{}, os.NewSyscallError("stat", err)
	}
	return fileStat(&st), nil
}

// Stat looks at the file behind the descriptor.
func (f *FD) Stat() (FileStat, error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.Int(), &st); err != nil {
		return FileStat{}, os.NewSyscallError("fstat", err)
	}
	return fileStat(&st), nil
}

func fileStat(st *unix.Stat_t) FileStat {
	return FileStat{
		Type:      FileType(st.Mode & unix.S_IFMT),
		Size:      st.Size,
		BlockSize: int64(st.Blksize),
		Major:     unix.Major(uint64(st.Rdev)),
		Minor:     unix.Minor(uint64(st.Rdev)),
		Ino:       st.Ino,
	}
}

// DirectAlign gives what O_DIRECT transfers of fd must be aligned to, in bytes: addresses in memory
// to mem; offsets in the file, and the length of each piece of memory, to off. known is false where
// the kernel or the file system does not say (statx(2), STATX_DIOALIGN: Linux 6.1). If known is
// true and both are 0, there are no such transfers.
func DirectAlign(fd int) (mem, off int64, known bool, err error) {
	var st unix.Statx_t
	for n := interrupts(0); ; {
		err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st)
		if n.again(&err) {
			continue
		}
		if err != nil {
			return 0, 0, false, os.NewSyscallError("statx", err)
		}
		return int64(st.Dio_mem_align), int64(st.Dio_offset_align), st.Mask&unix.STATX_DIOALIGN != 0, nil
	}
}

// Fdatasync puts what was written to fd on stable storage (fdatasync(2)); 0 is success. EINTR is
// tried again, but not for ever.
func Fdatasync(fd int) syscall.Errno {
	for n := interrupts(0); ; {
		if err := unix.Fdatasync(fd); !n.again(&err) {
			return toErrno(err)
		}
	}
}

// PunchHole discards the bytes off to off+n of the file: they read as zeroes, and the size stays
// (fallocate(2) with FALLOC_FL_PUNCH_HOLE). EOPNOTSUPP where the file system has no such thing.
// EINTR is tried again, but not for ever.
func PunchHole(fd int, off, n int64) syscall.Errno {
	return fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// ZeroRange makes the bytes off to off+n of the file read as zeroes and keeps them allotted; the
// size stays (fallocate(2) with FALLOC_FL_ZERO_RANGE). EOPNOTSUPP where the file system has no such
// thing. EINTR is tried again, but not for ever.
func ZeroRange(fd int, off, n int64) syscall.Errno {
	return fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func fallocate(fd int, mode uint32, off, n int64) syscall.Errno {
	for tries := interrupts(0); ; {
		if err := unix.Fallocate(fd, mode, off, n); !tries.again(&err) {
			return toErrno(err)
		}
	}
}

// toErrno gives the number of an error of package unix; 0 for nil.
func toErrno(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	return err.(syscall.Errno)
}

// SeekData gives the first byte from off on that is data, not a hole: ENXIO where there is none
// (lseek(2), SEEK_DATA). Where the file system knows of no holes that is off itself. The
// descriptor's own offset changes.
func SeekData(fd int, off int64) (int64, error) {
	n, err := unix.Seek(fd, off, unix.SEEK_DATA)
	return n, os.NewSyscallError("lseek", err)
}

// SeekHole gives the first byte from off on that is in a hole or the end of the file (lseek(2),
// SEEK_HOLE). The descriptor's own offset changes.
func SeekHole(fd int, off int64) (int64, error) {
	n, err := unix.Seek(fd, off, unix.SEEK_HOLE)
	return n, os.NewSyscallError("lseek", err)
}

// MayMakeIn tells why files cannot be made in the folder at path: nil where they can, as far as
// rights go (access(2)).
func MayMakeIn(path string) error {
	return os.NewSyscallError("access", unix.Access(path, unix.W_OK|unix.X_OK))
}
