package disk

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"vdev/devsw"
)

// claim says which of a disk's two devices has it, and holds what was opened: at most one device
// has the disk, from its first d_open until that fails or until d_close. It is closed at first. Its
// methods may be called on any goroutine.
type claim struct {
	// medium is there while the disk is open. It is changed under mu and read by anybody: what the
	// operations of an open device find here stays, since d_close comes when they are over.
	medium atomic.Pointer[opened]

	mu        sync.Mutex
	by        *opening // the first open of the device that has the disk
	cancelled [2]bool  // by side: d_cancel has been, d_close has not
	retired   bool
}

// opening is the first open of a device.
type opening struct {
	mode  devsw.Mode
	ctx   context.Context // done when d_cancel or d_close has been
	intr  context.CancelFunc
	ready chan struct{} // closed when the open has ended, one way or the other
}

func side(mode devsw.Mode) int {
	if mode == devsw.IFBLK {
		return 0
	}
	return 1
}

// claimed tells whether a device has the disk open, or is opening it.
func (c *claim) claimed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.by != nil
}

// open is d_open. The first one calls open, without a lock. Others of the same device wait for its
// end. The context is done when d_cancel has been: open is to return soon then, and what it has
// opened all the same is closed. Errors: ECANCELED in that case; EBUSY where the disk is open
// through its other device; ENXIO once the disk is retired; else what open gives.
func (c *claim) open(mode devsw.Mode, open func(ctx context.Context) (*opened, error)) error {
	for {
		o, first, err := c.enter(mode)
		switch {
		case err != nil:
			return err
		case first:
			return c.openFirst(o, open)
		case o == nil:
			return nil
		}
		select {
		case <-o.ready:
		case <-o.ctx.Done():
			return errInterrupted
		}
	}
}

var errInterrupted = fmt.Errorf("open interrupted: %w", devsw.ECANCELED)

// enter gives an opener its part: to be the first; to wait for the first, which it gets; or
// nothing, since the disk is open.
func (c *claim) enter(mode devsw.Mode) (o *opening, first bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.retired:
		return nil, false, devsw.ENXIO
	case c.cancelled[side(mode)]:
		return nil, false, errInterrupted
	case c.by == nil:
		o = &opening{mode: mode, ready: make(chan struct{})}
		o.ctx, o.intr = context.WithCancel(context.Background())
		c.by = o
		return o, true, nil
	case c.by.mode != mode:
		return nil, false, fmt.Errorf("the %s device is open: %w", c.by.mode, devsw.EBUSY)
	case c.medium.Load() != nil:
		return nil, false, nil
	}
	return c.by, false, nil
}

func (c *claim) openFirst(o *opening, open func(ctx context.Context) (*opened, error)) error {
	m, err := open(o.ctx)

	c.mu.Lock()
	cancelled := o.ctx.Err() != nil
	if err == nil && !cancelled {
		c.medium.Store(m)
	} else if c.by == o {
		c.by = nil
	}
	close(o.ready)
	c.mu.Unlock()

	if !cancelled {
		if err != nil {
			o.intr()
		}
		return err
	}
	if err == nil {
		m.Close()
	}
	return errInterrupted
}

// cancel is d_cancel: it ends the opens of the device that wait, and makes those fail that come
// before d_close. What it returns is the caller's to cancel. It is nil where the device does not
// have the disk open. It may come more than once.
func (c *claim) cancel(mode devsw.Mode) *opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelled[side(mode)] = true
	if c.by == nil || c.by.mode != mode {
		return nil
	}
	c.by.intr()
	return c.medium.Load()
}

// close is d_close. What it returns is the caller's to close. It is nil where the device does not
// have the disk open, or where its open has not ended yet, which fails then. Another open may come
// before the caller has closed it.
func (c *claim) close(mode devsw.Mode) *opened {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cancelled[side(mode)] = false
	if c.by == nil || c.by.mode != mode {
		return nil
	}
	c.by.intr()
	c.by = nil
	return c.medium.Swap(nil)
}

// retire makes later opens fail. EBUSY, and nothing changed, while the disk is open or being
// opened.
func (c *claim) retire() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by != nil {
		return fmt.Errorf("is open: %w", devsw.EBUSY)
	}
	c.retired = true
	return nil
}
