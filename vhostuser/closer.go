package vhostuser

import (
	"sync"
	"time"

	"vdev/internal/sys"
)

// closer closes the descriptors that came with messages and that nobody took. For most kinds of
// files close(2) does not wait, but it does for one of a server that does not answer (FUSE), or for
// a socket that lingers, and for as long as the front-end likes: that is not to hold up the
// connection, nor its end.
//
// A front-end that sends more of them than maxClosing loses its connection, and until some have
// been closed the device serves nobody: or it would get one after the other to keep that many,
// until the process had no descriptor left for other devices.
type closer struct {
	mu      sync.Mutex
	room    sync.Cond // signalled when queue has become shorter
	queue   []*sys.FD
	begun   time.Time // when the close of the first one was
	running bool      // there is a goroutine
}

const (
	// maxClosing is how many descriptors of one device may wait to be closed, beside those of one
	// message.
	maxClosing = 64
	// closePatience is how long they may be more, since their closes are slow.
	closePatience = time.Second
)

// close closes f, soon.
func (c *closer) close(f *sys.FD) {
	if memory, err := sys.IsMemory(f.Int()); memory || err != nil {
		f.Close()
		return
	}
	if kind, err := sys.KindOf(f.Int()); kind == sys.KindEventfd || err != nil {
		f.Close()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.queue = append(c.queue, f)
	if !c.running {
		c.running, c.begun = true, time.Now()
		go c.run()
	}
}

// check waits until there is room for the descriptors of another message. It does not wait for a
// close that has taken closePatience: then it returns ErrClosing.
func (c *closer) check() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.room.L == nil {
		c.room.L = &c.mu
	}
	for len(c.queue) >= maxClosing {
		left := closePatience - time.Since(c.begun)
		if left <= 0 {
			return ErrClosing
		}
		wake := time.AfterFunc(left, func() {
			c.mu.Lock() // or it may come before the Wait
			defer c.mu.Unlock()
			c.room.Broadcast()
		})
		c.room.Wait()
		wake.Stop()
	}
	return nil
}

// run closes what is queued, and ends.
func (c *closer) run() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queue) > 0 {
		f := c.queue[0]
		c.mu.Unlock()
		f.Close()
		c.mu.Lock()
		c.queue, c.begun = c.queue[1:], time.Now()
		c.room.Broadcast()
	}
	c.queue, c.running = nil, false
}
