package nbd

import (
	"vdev/devsw"
)

// What a context does for a connection: see the package's comment.

// roused has somebody look after a request that has been put into the queue: the connection's
// context, or the sender, which then has the connection go to the context that the request came
// from, if that can do such things.
func (c *conn) roused(r *request) {
	if c.watch != nil {
		c.pokeLocked()
		return
	}
	c.more.Signal()
	if c.next != nil || c.stream == nil || r.buf == nil {
		return
	}
	if w, ok := r.buf.AIO.(devsw.Watcher); ok {
		c.next = w
		_ = c.nc.SetReadDeadline(past)
	}
}

// pokeLocked has the context look at the connection, if it has one.
func (c *conn) pokeLocked() {
	if c.watch != nil && !c.poked {
		c.poked = true
		c.watch()
	}
}

// stayAway leaves the receiver's work to the context that is to have the connection, until that
// gives it back, with an error where it is over.
func (c *conn) stayAway() error {
	// A descriptor of its own is watched: the connection's may be closed at any time, and its
	// number be somebody else's then.
	fd, err := c.stream.Dup()
	if err != nil {
		return nil // it stays where it is
	}
	defer fd.Close()
	c.cl.mu.Lock()
	if c.cl.givenUp {
		c.cl.mu.Unlock()
		return nil
	}
	c.in.nowait = true
	c.watch = c.next.Watch(fd.Int(), c)
	c.pokeLocked()
	c.cl.mu.Unlock()
	return <-c.back
}

// receiver is the context that the caller, who receives, is in, or nil.
func (c *conn) receiver() devsw.Watcher {
	if c.in.nowait {
		return c.next
	}
	return nil
}

// sender is the context that the caller, who sends, is in, or nil.
func (c *conn) sender() devsw.Watcher {
	if c.nowait {
		return c.next
	}
	return nil
}

// answersAtOnce is how many answers are taken before others get their turn.
const answersAtOnce = 64

// Poll implements devsw.Watched: it sends what can be sent, and takes what has come.
func (c *conn) Poll() (worked, over bool) {
	cl := c.cl
	cl.mu.Lock()
	c.poked = false
	if !c.sending && !c.handed && !c.quit {
		worked = c.sendLocked(true) && !c.full
	}
	givenUp := cl.givenUp
	cl.unlock(c.next)
	if givenUp {
		return worked, true
	}
	for range answersAtOnce {
		switch err := c.step(); err {
		case nil:
			worked = true
		case errAgain:
			return worked, false
		default:
			c.reason = err
			return true, true
		}
	}
	return worked, false
}

// Sleep implements devsw.Watched. What the socket has no room for is the sender's, who waits for
// it.
func (c *conn) Sleep() {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	if c.full && !c.sending {
		c.handed = true
		c.more.Signal()
	}
}

// Over implements devsw.Watched: the receiver goes on where it has stopped.
func (c *conn) Over() {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	c.watch, c.in.nowait = nil, false
	c.more.Signal()
	c.back <- c.reason
}
