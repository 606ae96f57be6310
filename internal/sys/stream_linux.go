package sys

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Stream is a connection that was taken from the net package, and is a net.Conn itself. (The net
// package wakes a thread for whatever comes on a connection of its own, whoever reads it.) One
// goroutine at a time may read, and one may write; each that waits holds a thread. Everything else
// may be called at any time.
type Stream struct {
	in, out side
	local   net.Addr
	remote  net.Addr

	mu     sync.Mutex
	fd     *FD
	users  int // calls that use the descriptors
	closed bool
}

// side is one direction.
type side struct {
	events   int16
	do       func(fd int, iov [][]byte) (int, syscall.Errno)
	wake     *FD       // an eventfd: something has changed for who waits
	deadline time.Time // under mu; zero: none
	one      [1][]byte
}

// NewStream takes nc over, which must not be used any more. It returns nil, and leaves nc as it
// was, where nc is not a connection of the system's or there are no descriptors left.
func NewStream(nc net.Conn) *Stream {
	c, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &Stream{local: nc.LocalAddr(), remote: nc.RemoteAddr()}
	if e := raw.Control(func(fd uintptr) { s.fd, err = Dup(int(fd)) }); e != nil || err != nil {
		return nil
	}
	if s.local.Network() == "unix" {
		// As much as the host allows, which is twice what it gives by itself: a large write goes on
		// for longer until somebody has to wait. (With TCP the host adapts it.)
		_ = unix.SetsockoptInt(s.fd.Int(), unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20)
	}
	s.in.events, s.in.do = unix.POLLIN, Readv
	s.out.events, s.out.do = unix.POLLOUT, Writev
	if s.in.wake, err = NewEventfd(); err != nil {
		s.fd.Close()
		return nil
	}
	if s.out.wake, err = NewEventfd(); err != nil {
		s.fd.Close()
		s.in.wake.Close()
		return nil
	}
	nc.Close()
	return s
}

// enter begins a use of the descriptors.
func (s *Stream) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.users++
	return nil
}

func (s *Stream) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	s.releaseLocked()
}

func (s *Stream) releaseLocked() {
	if s.closed && s.users == 0 {
		s.fd.Close()
		s.in.wake.Close()
		s.out.wake.Close()
	}
}

// Close closes the connection, and ends the calls that wait with net.ErrClosed.
func (s *Stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.closed = true
	// The peer is told now, whoever else has the connection open: an io_uring keeps hold of what it
	// watches.
	_ = unix.Shutdown(s.fd.Int(), unix.SHUT_RDWR)
	_ = EventfdWrite(s.in.wake.Int())
	_ = EventfdWrite(s.out.wake.Int())
	s.releaseLocked()
	return nil
}

// CloseWrite shuts down the sending side.
func (s *Stream) CloseWrite() error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.leave()
	return os.NewSyscallError("shutdown", unix.Shutdown(s.fd.Int(), unix.SHUT_WR))
}

// Readv reads into iov, at most its first 1024 elements, once, and returns the number of bytes
// read: 0 and no error at the end of the stream. With nowait the error is EAGAIN where there is
// nothing to read; else it waits, until the deadline.
func (s *Stream) Readv(iov [][]byte, nowait bool) (int, error) { return s.transfer(&s.in, iov, nowait) }

// Writev writes iov, at most its first 1024 elements, once, and returns the number of bytes
// written. With nowait the error is EAGAIN where there is no room; else it waits, until the
// deadline.
func (s *Stream) Writev(iov [][]byte, nowait bool) (int, error) {
	return s.transfer(&s.out, iov, nowait)
}

// Peek tells what a read would find, without taking it and without waiting: 1 for a byte, 0 for the
// end of the stream, EAGAIN for nothing.
func (s *Stream) Peek() (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	return Peek(s.fd.Int())
}

// PeerState tells, without waiting, whether the peer has stopped sending (EpollReadClosed), or
// receiving too (EpollHangup).
func (s *Stream) PeerState() (EpollEvents, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	p := [1]unix.PollFd{{Fd: int32(s.fd.Int()), Events: unix.POLLRDHUP}}
	for {
		// The flags of poll(2) are those of epoll(7).
		if _, err := unix.Poll(p[:], 0); err != unix.EINTR {
			return EpollEvents(p[0].Revents), os.NewSyscallError("poll", err)
		}
	}
}

func (s *Stream) transfer(d *side, iov [][]byte, nowait bool) (int, error) {
	if err := s.enter(); err != nil {
		return 0, err
	}
	defer s.leave()
	for {
		timeout := -1
		if !nowait {
			var err error
			if timeout, err = s.timeout(d); err != nil {
				return 0, err
			}
		}
		n, e := d.do(s.fd.Int(), iov)
		switch {
		case e == 0:
			return n, nil
		case e != syscall.EAGAIN || nowait:
			return 0, e
		}
		p := [2]unix.PollFd{{Fd: int32(s.fd.Int()), Events: d.events}, {Fd: int32(d.wake.Int()), Events: unix.POLLIN}}
		if _, err := unix.Poll(p[:], timeout); err != nil && err != unix.EINTR {
			return 0, os.NewSyscallError("poll", err)
		}
		if p[1].Revents != 0 {
			_, _ = EventfdRead(d.wake.Int())
		}
	}
}

// timeout tells how long to wait, in milliseconds; -1: for ever.
func (s *Stream) timeout(d *side) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return 0, net.ErrClosed
	case d.deadline.IsZero():
		return -1, nil
	}
	left := time.Until(d.deadline)
	if left <= 0 {
		return 0, os.ErrDeadlineExceeded
	}
	return int(left.Milliseconds()) + 1, nil
}

// Read implements net.Conn.
func (s *Stream) Read(p []byte) (int, error) {
	s.in.one[0] = p
	n, err := s.Readv(s.in.one[:], false)
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (s *Stream) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		s.out.one[0] = p[n:]
		k, err = s.Writev(s.out.one[:], false)
		n += k
	}
	return n, err
}

func (s *Stream) setDeadline(d *side, t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	d.deadline = t
	return EventfdWrite(d.wake.Int())
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error { return s.setDeadline(&s.in, t) }

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error { return s.setDeadline(&s.out, t) }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	if err := s.SetReadDeadline(t); err != nil {
		return err
	}
	return s.SetWriteDeadline(t)
}

// LocalAddr implements net.Conn.
func (s *Stream) LocalAddr() net.Addr { return s.local }

// RemoteAddr implements net.Conn.
func (s *Stream) RemoteAddr() net.Addr { return s.remote }

// Int returns the descriptor's number, which is the Stream's: it is valid until Close.
func (s *Stream) Int() int { return s.fd.Int() }

// Dup makes a descriptor for the connection, which stays when the connection is closed.
func (s *Stream) Dup() (*FD, error) {
	if err := s.enter(); err != nil {
		return nil, err
	}
	defer s.leave()
	return s.fd.Dup()
}
