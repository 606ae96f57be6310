package sys

import (
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Epoll is an epoll(7) instance that watches descriptors for input, edge-triggered: it tells of
// each wake-up of a descriptor once, and nobody needs to read the descriptor.
type Epoll struct {
	fd     *FD
	events [64]unix.EpollEvent
}

// NewEpoll makes an instance.
func NewEpoll() (*Epoll, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &Epoll{fd: NewFD(fd)}, nil
}

// Add watches fd; tag comes back from Wait. fd stays the caller's, who calls Remove before closing
// it.
func (e *Epoll) Add(fd int, tag uint64) error {
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(tag), Pad: int32(tag >> 32)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.fd.Int(), unix.EPOLL_CTL_ADD, fd, &ev))
}

// Remove ends the watch of fd.
func (e *Epoll) Remove(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.fd.Int(), unix.EPOLL_CTL_DEL, fd, nil))
}

// Wait calls woken with the tag of each descriptor that was woken, after waiting for one for at
// most timeout (0: not at all, negative: without limit). A signal ends the wait without an error.
// One goroutine at a time.
func (e *Epoll) Wait(timeout time.Duration, woken func(tag uint64)) error {
	ms := -1
	if timeout >= 0 {
		// More than the kernel can count would be no time to it, or without limit.
		timeout = min(timeout, math.MaxInt32*time.Millisecond)
		ms = int((timeout + time.Millisecond - 1) / time.Millisecond)
	}
	n, err := unix.EpollWait(e.fd.Int(), e.events[:], ms)
	if err == unix.EINTR {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("epoll_wait", err)
	}
	for _, ev := range e.events[:n] {
		woken(uint64(uint32(ev.Fd)) | uint64(uint32(ev.Pad))<<32)
	}
	return nil
}

// Close ends all watches.
func (e *Epoll) Close() error { return e.fd.Close() }
