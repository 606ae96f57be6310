package fault

import (
	"context"
	"errors"

	"vdev/devsw"
)

// open is d_open. It opens the lower device, every time: that is idempotent. EBUSY where the unit
// is open through its other device, ECANCELED where d_cancel ended it, else what a rule or the
// lower device says.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	sc.mu.Lock()
	closes := sc.closes
	err := sc.claimLocked(mode)
	sc.mu.Unlock()
	if err != nil {
		return err
	}
	err = sc.pause(Open, 0, 0)

	sc.mu.Lock()
	if err == nil && (sc.cv.Cancelled() || sc.closes != closes) {
		err = devsw.ECANCELED
	}
	entered := err == nil
	if entered {
		sc.lowerBegun = true
		sc.lower.Reopen()
		sc.lower.Acquire()
	}
	sc.mu.Unlock()
	if entered {
		// What d_close does about the lower device waits for this to be noted.
		defer sc.lower.Release()
		err = sc.table.BdevOpen(sc.conf.Lower, flag, devsw.IFBLK)
	}

	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.opening--
	switch {
	case sc.closes != closes:
		if err == nil {
			sc.lateOpen = true
			err = devsw.ECANCELED
		}
	case err == nil:
		sc.opened = true
	case sc.opening == 0 && !sc.opened && !sc.cancelled[side(mode)]:
		// There will be no d_close.
		sc.owner, sc.lowerBegun = 0, false
		sc.lower.Close()
	}
	return err
}

// claimLocked takes the unit for an open through this device, or says why not.
func (sc *softc) claimLocked(mode devsw.Mode) error {
	switch {
	case sc.retired:
		return devsw.ENXIO
	case sc.cancelled[side(mode)]:
		return devsw.ECANCELED
	case sc.owner != 0 && sc.owner != mode:
		return devsw.EBUSY
	}
	sc.owner = mode
	sc.opening++
	return nil
}

// cancel is d_cancel: what this driver delays, or lets hang, ends with ECANCELED, and the lower
// device is cancelled. It answers what the lower device answers. It waits for nothing but what a
// rule for Cancel says.
func (d *Driver) cancel(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return nil // a d_open that failed with ENXIO may be cancelled, too
	}
	if err := sc.pause(Cancel, 0, 0); err != nil {
		return err
	}
	return sc.interrupt(flag, mode)
}

// interrupt does d_cancel's work.
func (sc *softc) interrupt(flag devsw.Flag, mode devsw.Mode) error {
	sc.mu.Lock()
	sc.cancelled[side(mode)] = true
	if sc.owner != mode {
		sc.mu.Unlock()
		return nil
	}
	sc.cv.Cancel()
	for h := range sc.holds {
		if h.set == &sc.held {
			sc.forgetLocked(h)
		}
	}
	sc.lowerCancelled = true
	lower := sc.lowerBegun
	sc.mu.Unlock()

	sc.held.Cancel()
	if !lower {
		return nil
	}
	ref := sc.table.BdevswAcquire(sc.conf.Lower)
	if ref == nil {
		return nil // the lower d_open fails for want of a driver
	}
	err := ref.Cancel(flag, devsw.IFBLK)
	ref.Release()
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.lowerAnswer = err
	return err
}

// close is d_close. It takes the lower device down in specfs's order: cancel (where d_cancel has
// not), drain, close; and where the lower device has no d_cancel, close and drain. After a d_cancel
// that went well nothing is in progress. Without, it is not alone, and waits for what is in
// progress in the lower device, but not for what hangs here: specfs does that afterwards.
func (d *Driver) close(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	sc.mu.Lock()
	if sc.owner != 0 && sc.owner != mode {
		sc.cancelled[side(mode)] = false
		sc.mu.Unlock()
		return nil
	}
	sc.mu.Unlock()
	answer := sc.pause(Close, 0, 0)

	sc.mu.Lock()
	sc.closes++
	sc.opened = false
	interrupted := sc.lowerCancelled
	sc.mu.Unlock()
	if !interrupted {
		_ = sc.interrupt(flag, mode)
	}

	sc.mu.Lock()
	lower, cancelErr := sc.lowerBegun, sc.lowerAnswer
	sc.lower.Close()
	sc.mu.Unlock()
	var err error
	if lower {
		if cancelErr == nil {
			sc.drainLower()
		}
		sc.mu.Lock()
		sc.lateOpen = false
		sc.mu.Unlock()
		err = sc.table.BdevClose(sc.conf.Lower, flag, devsw.IFBLK)
		if cancelErr != nil {
			sc.drainLower()
			sc.mu.Lock()
			again := sc.lateOpen
			sc.mu.Unlock()
			if again {
				err = errors.Join(err, sc.table.BdevClose(sc.conf.Lower, flag, devsw.IFBLK))
			}
		}
	}

	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.cv.Reset()
	sc.held.Reset()
	sc.cancelled[side(mode)] = false
	sc.lowerBegun, sc.lowerCancelled, sc.lowerAnswer, sc.lateOpen = false, false, nil, false
	sc.owner, sc.off = 0, false
	sc.rearmLocked()
	if answer != nil {
		return answer
	}
	return err
}

// drainLower waits until no call of the lower device is in progress. No more can begin.
func (sc *softc) drainLower() {
	// Background never ends, so this does not fail.
	_ = sc.lower.Drain(context.Background())
}
