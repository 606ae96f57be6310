package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// NewSealableMemfd is NewMemfd for a file that can be sealed.
func NewSealableMemfd(name string, size int64) (*FD, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
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

// NewSealedMemfd is NewMemfd for a file whose size nobody can change, whoever has it: reading and
// writing it through a mapping never faults.
func NewSealedMemfd(name string, size int64) (*FD, error) {
	f, err := NewSealableMemfd(name, size)
	if err != nil {
		return nil, err
	}
	if err := addSeals(f.Int(), unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// SealWrites seals fd: only those who have it mapped already can write to it.
func SealWrites(fd int) error { return addSeals(fd, unix.F_SEAL_FUTURE_WRITE) }

func addSeals(fd, seals int) error {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals)
	return os.NewSyscallError("fcntl(F_ADD_SEALS)", err)
}
