package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"vdev/internal/sys"
)

// ErrInUse is wrapped by the error of Listen when another process listens on the path already.
var ErrInUse = sys.ErrInUse

// Listen listens on a Unix socket at path. A socket that nobody listens on any more, left by a
// process that was killed, is replaced; anything else that is there is an error, ErrInUse for a
// socket in use. Closing the listener removes the socket, if it is still the one that was made
// here.
func Listen(path string) (net.Listener, error) {
	ln, err := sys.ListenUnix(path, 0)
	if err != nil {
		return nil, fmt.Errorf("vhostuser: listen on %s: %w", path, err)
	}
	return ln, nil
}

// FromFD returns a listener for the inherited descriptor fd, which it takes over: a Unix stream
// socket that listens or that is connected to a front-end. For a connected one, Accept returns the
// connection once, and then io.EOF. Closing a listening socket does not remove its path, which
// belongs to whoever made it.
func FromFD(fd int) (net.Listener, error) {
	// os.NewFile would take over, and close, whatever stands behind a wrong number.
	info, err := sys.Socket(fd)
	switch {
	case errors.Is(err, syscall.EBADF):
		return nil, fmt.Errorf("vhostuser: descriptor %d is not open", fd)
	case errors.Is(err, syscall.ENOTSOCK):
		return nil, fmt.Errorf("vhostuser: descriptor %d is not a socket", fd)
	case err != nil:
		return nil, fmt.Errorf("vhostuser: descriptor %d: %w", fd, err)
	case !info.Unix || !info.Stream:
		return nil, fmt.Errorf("vhostuser: descriptor %d is a socket, but not a Unix stream socket", fd)
	}
	f := os.NewFile(uintptr(fd), "vhost-user")
	// The net package duplicates it.
	defer f.Close()
	if info.Listening {
		ln, err := net.FileListener(f)
		if err != nil {
			return nil, fmt.Errorf("vhostuser: descriptor %d: %w", fd, err)
		}
		return ln, nil
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("vhostuser: descriptor %d: %w", fd, err)
	}
	return &oneConn{conn: c, addr: c.LocalAddr()}, nil
}

// oneConn is a listener with one connection, which is there already.
type oneConn struct {
	addr net.Addr

	mu   sync.Mutex
	conn net.Conn // nil once it was accepted or closed
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conn
	l.conn = nil
	if c == nil {
		return nil, io.EOF
	}
	return c, nil
}

func (l *oneConn) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.conn
	l.conn = nil
	if c == nil {
		return nil
	}
	return c.Close()
}

func (l *oneConn) Addr() net.Addr { return l.addr }
