package sock

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/devsw/line"
	"vdev/internal/ready"
	"vdev/internal/sys"
)

// client is a connection. As it is, it only watches; a writer has input too.
type client struct {
	line.Base
	socket *Socket
	conn   *sys.Stream
	watch  *ready.Watcher
	halves bool // the peer can stop sending and go on receiving, and we can tell
	// scratch is where what a client sends goes that only watches; nil: it is the writer.
	scratch [][]byte

	hung   atomic.Bool   // the peer has gone
	gone   chan struct{} // closed when the client is none any more
	isGone bool          // under Socket.mu: gone is closed
}

// writer is a client that has input.
type writer struct{ *client }

// Writev implements line.End.
func (c *client) Writev(p [][]byte) (int, error) {
	n, err := c.conn.Writev(p, false)
	if err != nil {
		c.hangup()
	}
	return n, err
}

// WritevNow implements line.Direct.
func (c *client) WritevNow(p [][]byte) (int, error) { return c.conn.Writev(p, true) }

// Readv implements line.Input.
func (w writer) Readv(p [][]byte) (int, error) {
	n, err := w.conn.Readv(p, true)
	switch {
	case err == syscall.EAGAIN:
		if err := w.watch.Arm(); err != nil {
			return 0, err
		}
	case err == nil && n == 0 && w.halves && !w.hung.Load():
		// It only has no more to say. When it goes, that is told.
		return 0, syscall.EAGAIN
	}
	return n, err
}

// Close implements line.End.
func (c *client) Close() {
	s := c.socket
	if c.watch != nil {
		c.watch.Close()
	}
	c.conn.Close()
	s.left(c)
	s.mu.Lock()
	delete(s.clients, c)
	s.mu.Unlock()
	<-s.places
}

// told is told what has happened to the connection.
func (c *client) told(w *ready.Watcher, e ready.Events) {
	c.peer(e&ready.ReadClosed != 0, e&ready.Hangup != 0)
	switch {
	case e&ready.Readable == 0:
	case c.scratch == nil:
		c.Ready()
	default:
		if n, err := c.conn.Readv(c.scratch, true); n > 0 || err == syscall.EAGAIN {
			_ = w.Arm()
		}
	}
}

// look asks how the peer is.
func (c *client) look() {
	if is, err := c.conn.PeerState(); err == nil {
		c.peer(is&sys.EpollReadClosed != 0, is&sys.EpollHangup != 0)
	}
}

// peer is told whether the peer has stopped sending, or receiving too. With TCP the one cannot be
// told from the other.
func (c *client) peer(readClosed, hangup bool) {
	if hangup || readClosed && !c.halves {
		c.hangup()
	}
}

// hangup takes c, whose peer has gone or does not receive, from the clients. What it has sent stays
// to be read, and what it may still send comes.
func (c *client) hangup() {
	c.hung.Store(true)
	c.socket.left(c)
	_ = c.conn.SetWriteDeadline(time.Unix(1, 0))
	if n, err := c.conn.Peek(); (n == 1 || errors.Is(err, syscall.EAGAIN)) && c.scratch == nil {
		c.Hangup()
	} else {
		c.Remove()
	}
}
