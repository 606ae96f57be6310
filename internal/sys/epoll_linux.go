package sys

import (
	"math"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Epoll is an epoll(7) instance. It watches descriptors that were added by Add for input,
// edge-triggered: it tells of each wake-up of a descriptor once, and nobody needs to read the
// descriptor. It watches one that was added by AddOnce until it has told of an event of it, and
// again after Arm.
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

// EpollEvents is a set of what a descriptor was woken for.
type EpollEvents uint32

// The events. EpollHangup is always watched for.
const (
	EpollInput      EpollEvents = unix.EPOLLIN
	EpollReadClosed EpollEvents = unix.EPOLLRDHUP               // the peer sends no more
	EpollHangup     EpollEvents = unix.EPOLLHUP | unix.EPOLLERR // nor does it receive
)

// AddOnce watches fd for one of the events; see Arm.
func (e *Epoll) AddOnce(fd int, tag uint64, events EpollEvents) error {
	return e.once(unix.EPOLL_CTL_ADD, fd, tag, events)
}

// Arm watches fd, which AddOnce has added, for one of the events, instead of what it was watched
// for before. An event that is there already counts.
func (e *Epoll) Arm(fd int, tag uint64, events EpollEvents) error {
	return e.once(unix.EPOLL_CTL_MOD, fd, tag, events)
}

func (e *Epoll) once(op, fd int, tag uint64, events EpollEvents) error {
	ev := unix.EpollEvent{Events: uint32(events) | unix.EPOLLONESHOT, Fd: int32(tag), Pad: int32(tag >> 32)}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.fd.Int(), op, fd, &ev))
}

// Remove ends the watch of fd.
func (e *Epoll) Remove(fd int) error {
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(e.fd.Int(), unix.EPOLL_CTL_DEL, fd, nil))
}

// Wait calls woken with the tag of each descriptor that was woken, after waiting for one for at
// most timeout (0: not at all, negative: without limit). A signal ends the wait without an error.
// One goroutine at a time.
func (e *Epoll) Wait(timeout time.Duration, woken func(tag uint64)) error {
	return e.WaitEvents(timeout, func(tag uint64, _ EpollEvents) { woken(tag) })
}

// WaitEvents is Wait that also says what a descriptor was woken for.
func (e *Epoll) WaitEvents(timeout time.Duration, woken func(tag uint64, events EpollEvents)) error {
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
		woken(uint64(uint32(ev.Fd))|uint64(uint32(ev.Pad))<<32, EpollEvents(ev.Events))
	}
	return nil
}

// Close ends all watches.
func (e *Epoll) Close() error { return e.fd.Close() }
