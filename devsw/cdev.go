package devsw

// CdevOpen calls d_open; see BdevOpen. NetBSD: cdev_open.
func (t *Table) CdevOpen(dev Dev, flag Flag, mode Mode) error {
	return open(t, &t.cdev, dev, flag, mode)
}

// CdevCancel calls d_cancel; see BdevCancel. NetBSD: cdev_cancel.
func (t *Table) CdevCancel(dev Dev, flag Flag, mode Mode) error {
	return cancel(t.CdevswAcquire(dev), flag, mode)
}

// CdevClose calls d_close; see BdevClose. NetBSD: cdev_close.
func (t *Table) CdevClose(dev Dev, flag Flag, mode Mode) error {
	return closeDev(t.CdevswAcquire(dev), flag, mode)
}

// CdevRead calls d_read. ENXIO: no such driver; ENODEV: no d_read.
// NetBSD: cdev_read.
func (t *Table) CdevRead(dev Dev, u *Uio, flag Flag) error {
	d := t.CdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Read == nil {
		return ENODEV
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Read(dev, u, flag)
}

// CdevWrite calls d_write. ENXIO: no such driver; ENODEV: no d_write.
// NetBSD: cdev_write.
func (t *Table) CdevWrite(dev Dev, u *Uio, flag Flag) error {
	d := t.CdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Write == nil {
		return ENODEV
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Write(dev, u, flag)
}

// CdevIoctl calls d_ioctl. ENXIO: no such driver; ENODEV: no d_ioctl.
// NetBSD: cdev_ioctl.
func (t *Table) CdevIoctl(dev Dev, cmd Cmd, data any, flag Flag) error {
	d := t.CdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Ioctl == nil {
		return ENODEV
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Ioctl(dev, cmd, data, flag)
}

// CdevStop calls d_stop for the terminal's device. Without such a driver, or without a d_stop, it
// does nothing. NetBSD: cdev_stop.
func (t *Table) CdevStop(tp *Tty, flag Flag) {
	d := t.CdevswLookup(tp.Dev)
	if d == nil || d.Stop == nil {
		return
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	d.Stop(tp, flag)
}

// CdevTTY calls d_tty, without a lock; nil without such a driver or without a
// d_tty. NetBSD: cdev_tty.
func (t *Table) CdevTTY(dev Dev) *Tty {
	d := t.CdevswLookup(dev)
	if d == nil || d.TTY == nil {
		return nil
	}
	return d.TTY(dev)
}

// CdevPoll calls d_poll. POLLERR: no such driver. Without a d_poll the device
// is always ready, as NetBSD's seltrue has it. NetBSD: cdev_poll.
func (t *Table) CdevPoll(dev Dev, events PollEvents, wake func()) PollEvents {
	d := t.CdevswLookup(dev)
	if d == nil {
		return POLLERR
	}
	if d.Poll == nil {
		return events & (POLLIN | POLLOUT)
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Poll(dev, events, wake)
}

// CdevMmap calls d_mmap; -1 without such a driver or without a d_mmap.
// NetBSD: cdev_mmap.
func (t *Table) CdevMmap(dev Dev, off int64, flag Flag) int64 {
	d := t.CdevswLookup(dev)
	if d == nil || d.Mmap == nil {
		return -1
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Mmap(dev, off, flag)
}

// CdevKqfilter calls d_kqfilter. ENXIO: no such driver. Without a d_kqfilter the
// device is always ready, as NetBSD's seltrue_kqfilter has it: kn, for reads or
// writes, is activated at once, never again, and needs no Detach; EINVAL for any
// other filter. NetBSD: cdev_kqfilter.
func (t *Table) CdevKqfilter(dev Dev, kn *Knote) error {
	d := t.CdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Kqfilter == nil {
		if kn.Filter != EVFILTRead && kn.Filter != EVFILTWrite {
			return EINVAL
		}
		kn.Activate(-1)
		return nil
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Kqfilter(dev, kn)
}

// CdevDiscard calls d_discard for n bytes from byte pos on. ENXIO: no such
// driver; ENODEV: no d_discard. NetBSD: cdev_discard.
func (t *Table) CdevDiscard(dev Dev, pos, n int64) error {
	d := t.CdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Discard == nil {
		return ENODEV
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Discard(dev, pos, n)
}

// CdevFlags gives the driver's properties (DMPSafe), 0 without a driver.
// NetBSD: cdev_flags.
func (t *Table) CdevFlags(dev Dev) DFlag {
	if d := t.CdevswLookup(dev); d != nil {
		return d.Flag &^ dTypeMask
	}
	return 0
}

// CdevType gives the driver's type, DOther without a driver. NetBSD: cdev_type.
func (t *Table) CdevType(dev Dev) DFlag {
	if d := t.CdevswLookup(dev); d != nil {
		return d.Flag.Type()
	}
	return DOther
}
