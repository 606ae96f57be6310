package vhostuser

import (
	"sync"

	"vdev/internal/sys"
)

// closer closes the descriptors that came with messages and that nobody took. For most kinds of files close(2) does not wait, but it does
// for one of a server that does not answer (FUSE), or for a socket that lingers, and for as long as the front-end likes: that is not to
// hold up the connection, nor its end.
type closer struct {
	mu      sync.Mutex
	room    sync.Cond // signalled when queue has become shorter
	queue   []*sys.FD
	running bool // there is a goroutine
}

// maxClosing is how many descriptors of one device may wait to be closed. Who sends more of them waits for those before.
const maxClosing = 64

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
	if c.room.L == nil {
		c.room.L = &c.mu
	}
	for len(c.queue) >= maxClosing {
		c.room.Wait()
	}
	c.queue = append(c.queue, f)
	if !c.running {
		c.running = true
		go c.run()
	}
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
		c.queue = c.queue[1:]
		c.room.Signal()
	}
	c.queue, c.running = nil, false
}
