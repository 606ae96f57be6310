package nbd

import (
	"vdev/devsw"
)

// State tells what a successor has to know of disk unit, open or not. Unflushed says that writes
// are lost: see the package's comment. It does not wait.
func (d *Driver) State(unit int) (s devsw.DiskState) {
	d.withStability(unit, func(cl *client) {
		s = devsw.DiskState{FlushError: cl.flushed.failed, Unflushed: cl.flushed.lost > 0}
	})
	return s
}

// SetState tells disk unit, which is open, with what a flush of it failed before. That a
// predecessor has lost writes is the guest's affair, and not the disk's: whoever opens it sees to
// that.
func (d *Driver) SetState(unit int, s devsw.DiskState) {
	d.withStability(unit, func(cl *client) {
		if cl.flushed.failed == 0 {
			cl.flushed.failed = s.FlushError
		}
	})
}

// ClearState has it forgotten that a flush has failed and that writes are lost, and returns what
// that was. ENXIO where there is no such unit.
func (d *Driver) ClearState(unit int) (s devsw.DiskState, err error) {
	if _, err := d.unit(unit); err != nil {
		return s, err
	}
	s = d.State(unit)
	d.withStability(unit, func(cl *client) {
		cl.flushed.failed, cl.flushed.lost, cl.flushed.split = 0, 0, false
	})
	return s, nil
}

// withStability has fn look at what is known of what the disk has written, with client.mu held,
// where it has been open.
func (d *Driver) withStability(unit int, fn func(cl *client)) {
	sc, err := d.unit(unit)
	if err != nil {
		return
	}
	if cl := sc.last.Load(); cl != nil {
		cl.mu.Lock()
		fn(cl)
		cl.unlock(nil)
	}
}
