package sys

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// eventfdOne is what one signal writes: a 64-bit 1 in the host's byte order.
var eventfdOne = binary.NativeEndian.AppendUint64(nil, 1)

// NewEventfd returns an eventfd(2) with counter 0, CLOEXEC and NONBLOCK, owned by the caller.
func NewEventfd() (*FD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("eventfd2", err)
	}
	return NewFD(fd), nil
}

// EventfdWrite adds 1 to the eventfd's counter, which wakes its reader. A counter at its limit
// (EAGAIN) is no error: its reader has been woken and has not looked. It does not allocate unless
// it fails. NONBLOCK belongs to the open file: others who have that file can clear the flag at any
// time, and then a counter at its limit blocks the caller.
func EventfdWrite(fd int) error {
	for {
		_, err := unix.Write(fd, eventfdOne)
		switch err {
		case nil, unix.EAGAIN:
			return nil
		case unix.EINTR:
		default:
			return os.NewSyscallError("write(eventfd)", err)
		}
	}
}

// EventfdRead takes the eventfd's counter and sets it to 0. The error is EAGAIN when it was 0
// already and the descriptor is NONBLOCK.
func EventfdRead(fd int) (uint64, error) {
	var b [8]byte
	for {
		n, err := unix.Read(fd, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, os.NewSyscallError("read(eventfd)", err)
		case n != len(b):
			// Not an eventfd at all: a front-end may send any descriptor.
			return 0, os.NewSyscallError("read(eventfd)", unix.EINVAL)
		default:
			return binary.NativeEndian.Uint64(b[:]), nil
		}
	}
}

// NewBlockingEventfd is NewEventfd without NONBLOCK: EventfdRead waits until the counter is not 0.
func NewBlockingEventfd() (*FD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("eventfd2", err)
	}
	return NewFD(fd), nil
}
