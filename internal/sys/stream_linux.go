package sys

import (
	"net"
	"syscall"
)

// Stream is a connection of the net package's, as readv(2) and writev(2) see it. One goroutine at a time may read, and one write; the
// connection may be closed meanwhile. What it gives to the net package is made once, so that a call allocates nothing.
type Stream struct {
	raw syscall.RawConn
	in  vectored
	out vectored
}

// vectored is one direction.
type vectored struct {
	try    func(fd uintptr) (done bool)
	iov    [][]byte
	nowait bool
	n      int
	err    syscall.Errno
}

// NewStream gives the Stream of nc, or nil where it is not a connection of the system's.
func NewStream(nc net.Conn) *Stream {
	c, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	s := &Stream{raw: raw}
	s.in.does(Readv)
	s.out.does(Writev)
	return s
}

func (v *vectored) does(do func(fd int, iov [][]byte) (int, syscall.Errno)) {
	v.try = func(fd uintptr) bool {
		v.n, v.err = do(int(fd), v.iov)
		return v.nowait || v.err != syscall.EAGAIN
	}
}

// Readv reads into iov, at most its first 1024 elements, once, and returns the number of bytes read: 0 and no error at the end of the
// stream. With nowait the error is EAGAIN where there is nothing to read; else it waits, for no longer than the connection's deadline.
func (s *Stream) Readv(iov [][]byte, nowait bool) (int, error) {
	s.in.iov, s.in.nowait = iov, nowait
	return s.in.result(s.raw.Read(s.in.try))
}

// Writev writes iov, at most its first 1024 elements, once, and returns the number of bytes written. With nowait the error is EAGAIN
// where there is no room; else it waits, for no longer than the connection's deadline.
func (s *Stream) Writev(iov [][]byte, nowait bool) (int, error) {
	s.out.iov, s.out.nowait = iov, nowait
	return s.out.result(s.raw.Write(s.out.try))
}

func (v *vectored) result(err error) (int, error) {
	v.iov = nil
	switch {
	case err != nil:
		return 0, err
	case v.err != 0:
		return 0, v.err
	}
	return v.n, nil
}

// Dup makes a descriptor for the connection, which stays when the connection is closed.
func (s *Stream) Dup() (fd *FD, err error) {
	if e := s.raw.Control(func(own uintptr) { fd, err = Dup(int(own)) }); e != nil {
		return nil, e
	}
	return fd, err
}
