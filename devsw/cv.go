package devsw

import (
	"context"
	"sync"
)

// Cv is how an operation sleeps until there is something for it to do, or until
// it is cancelled. NetBSD: condvar(9), which leaves the cancelling to the driver.
//
// A driver has one Cv (or several, for several things to wait for) per unit:
//
//	d_open, d_read, d_write   Wait
//	whoever brings data       Broadcast
//	d_cancel                  Cancel
//	d_close                   Reset
//
// Cancel lasts until Reset, so a sleep that begins after it does not sleep. It
// is d_close that resets, because by then the device is drained: an open that
// was counted before the cancel, but that called d_open only after it, has
// found the Cv cancelled and has gone. Were it d_open that resets, that open
// would sleep for ever. A driver without d_cancel calls both in d_close; it
// wakes those who sleep, but cannot do anything about such an open, which is one
// more reason to have a d_cancel.
//
// All methods but NewCv are called with the lock held.
type Cv struct {
	l         sync.Locker
	wake      chan struct{} // closed to wake all; nil while nobody sleeps
	cancelled bool
	cancels   uint64 // number of Cancels ever
}

// NewCv makes a Cv for what l guards: a mutex of the unit's, or the Table for a
// driver without DMPSafe. The lock is let go during sleep, and no other lock
// may be held then.
func NewCv(l sync.Locker) *Cv { return &Cv{l: l} }

// Wait sleeps until ready answers true; ready is called with the lock held.
// It fails with ECANCELED once Cancel has been called, ready or not, and also
// where Reset was called before the sleeper came to look.
func (c *Cv) Wait(ready func() bool) error {
	return c.WaitContext(context.Background(), ready)
}

// WaitContext is Wait that also ends, with ctx's error, when ctx does.
func (c *Cv) WaitContext(ctx context.Context, ready func() bool) error {
	began := c.cancels
	for {
		if c.cancelled || c.cancels != began {
			return ECANCELED
		}
		if ready() {
			return nil
		}
		if c.wake == nil {
			c.wake = make(chan struct{})
		}
		wake := c.wake
		c.l.Unlock()
		step("sleep")
		var err error
		select {
		case <-wake:
		case <-ctx.Done():
			err = ctx.Err()
		}
		c.l.Lock()
		if err != nil {
			return err
		}
	}
}

// Broadcast makes every sleeper look again whether it is ready.
func (c *Cv) Broadcast() {
	if c.wake != nil {
		close(c.wake)
		c.wake = nil
	}
}

// Cancel makes every Wait fail with ECANCELED, those that sleep now and those
// that come, until Reset. It does not sleep.
func (c *Cv) Cancel() {
	c.cancelled = true
	c.cancels++
	c.Broadcast()
}

// Cancelled tells whether Cancel was called since the last Reset.
func (c *Cv) Cancelled() bool { return c.cancelled }

// Reset ends the effect of Cancel.
func (c *Cv) Reset() { c.cancelled = false }
