package sys

import (
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD owns one file descriptor of the process. It must not be copied. Its methods may be called from
// any goroutine. But while another goroutine uses the descriptor by its number it must not be
// closed: the number may then stand for another file.
type FD struct {
	_  noCopy
	fd atomic.Int64
}

// noCopy lets go vet's copylocks find copies.
type noCopy struct{}

func (*noCopy) Lock()   {}
func (*noCopy) Unlock() {}

// NewFD takes ownership of fd. Any negative number gives an FD that is already closed.
func NewFD(fd int) *FD {
	f := new(FD)
	f.fd.Store(int64(max(fd, -1)))
	return f
}

// Int returns the descriptor's number, and -1 once it is closed. It stays owned by f.
func (f *FD) Int() int { return int(f.fd.Load()) }

// Close closes the descriptor. Only the first call does anything; later ones return nil.
func (f *FD) Close() error {
	fd := f.fd.Swap(-1)
	if fd < 0 {
		return nil
	}
	// Linux has released the number even when close answers EINTR: it must not be tried again.
	if err := unix.Close(int(fd)); err != nil && err != unix.EINTR {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// Dup returns a new descriptor for the same open file, with CLOEXEC set, owned by the caller.
// It fails with EBADF once f is closed.
func (f *FD) Dup() (*FD, error) { return Dup(f.Int()) }

// Dup makes another descriptor for what fd refers to.
func Dup(fd int) (*FD, error) {
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("fcntl(F_DUPFD_CLOEXEC)", err)
	}
	return NewFD(fd), nil
}

// Replace makes the number fd stand for what by refers to, in one step (dup3(2)): there is no
// moment in which it is free. What it stood for is closed. CLOEXEC is set.
func Replace(fd, by int) error {
	for {
		err := unix.Dup3(by, fd, unix.O_CLOEXEC)
		if err != unix.EINTR && err != unix.EBUSY {
			return os.NewSyscallError("dup3", err)
		}
	}
}

// Size returns the length in bytes of the file behind the descriptor, as fstat(2) gives it, and
// whether it is a regular file: for others the length means nothing.
func (f *FD) Size() (size int64, regular bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(f.Int(), &st); err != nil {
		return 0, false, os.NewSyscallError("fstat", err)
	}
	return st.Size, st.Mode&unix.S_IFMT == unix.S_IFREG, nil
}
