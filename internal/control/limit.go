package control

import (
	"net"
	"sync"
)

// limitedListener accepts no more than a number of connections at once; others wait in the kernel's
// queue.
type limitedListener struct {
	net.Listener
	conns  chan struct{} // has one for each
	closed chan struct{}
	once   sync.Once
}

func limitConns(ln net.Listener, n int) net.Listener {
	return &limitedListener{Listener: ln, conns: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	select {
	case l.conns <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.conns
		return nil, err
	}
	return &limitedConn{Conn: c, l: l}, nil
}

// Close implements net.Listener.
func (l *limitedListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

// limitedConn is one of the connections.
type limitedConn struct {
	net.Conn
	l    *limitedListener
	once sync.Once
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.l.conns })
	return err
}
