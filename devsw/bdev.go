package devsw

// BdevOpen calls d_open. It alone takes a reference on the driver, for the
// length of the call, since nothing else keeps the driver attached yet.
// ENXIO: no such driver. NetBSD: bdev_open.
func (t *Table) BdevOpen(dev Dev, flag Flag, mode Mode) error {
	return open(t, &t.bdev, dev, flag, mode)
}

// BdevCancel calls d_cancel. ENXIO: no such driver; ENODEV: the driver has no
// d_cancel. A last close uses BdevswAcquire instead. NetBSD: bdev_cancel.
func (t *Table) BdevCancel(dev Dev, flag Flag, mode Mode) error {
	return cancel(t.BdevswAcquire(dev), flag, mode)
}

// BdevClose calls d_close. ENXIO: no such driver. Whatever d_close answers, the
// device counts as closed. NetBSD: bdev_close.
func (t *Table) BdevClose(dev Dev, flag Flag, mode Mode) error {
	return closeDev(t.BdevswAcquire(dev), flag, mode)
}

// BdevStrategy calls d_strategy for b.Dev. Without such a driver b fails with
// ENXIO, without a d_strategy with ENODEV; both with Resid == Bcount, through
// biodone. NetBSD: bdev_strategy.
func (t *Table) BdevStrategy(b *Buf) {
	d := t.BdevswLookup(b.Dev)
	if d == nil {
		b.Fail(ENXIO)
		return
	}
	if d.Strategy == nil {
		b.Fail(ENODEV)
		return
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	d.Strategy(b)
}

// BdevCancelBuf calls the driver's CancelBuf for b, which was handed to
// d_strategy with this b.Dev: it interrupts one transfer, and does not wait for
// its end. ENXIO: no such driver; ENODEV: no CancelBuf. vdev's own.
func (t *Table) BdevCancelBuf(b *Buf) error {
	d := t.BdevswLookup(b.Dev)
	if d == nil {
		return ENXIO
	}
	if d.CancelBuf == nil {
		return ENODEV
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	d.CancelBuf(b)
	return nil
}

// BdevIoctl calls d_ioctl. ENXIO: no such driver; ENODEV: no d_ioctl.
// NetBSD: bdev_ioctl.
func (t *Table) BdevIoctl(dev Dev, cmd Cmd, data any, flag Flag) error {
	d := t.BdevswLookup(dev)
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

// BdevDump calls d_dump, without a lock: the device need not be open, and the
// system may be in any state. ENXIO: no such driver; ENODEV: no d_dump.
// NetBSD: bdev_dump.
func (t *Table) BdevDump(dev Dev, blkno int64, p []byte) error {
	d := t.BdevswLookup(dev)
	if d == nil {
		return ENXIO
	}
	if d.Dump == nil {
		return ENODEV
	}
	return d.Dump(dev, blkno, p)
}

// BdevSize calls d_psize: the size in units of DEVBSIZE, -1 where there is
// none, no such driver or no d_psize. NetBSD: bdev_size.
func (t *Table) BdevSize(dev Dev) int64 {
	d := t.BdevswLookup(dev)
	if d == nil || d.Psize == nil {
		return -1
	}
	t.enter(d.Flag)
	defer t.exit(d.Flag)
	return d.Psize(dev)
}

// BdevDiscard calls d_discard for n bytes from byte pos on. ENXIO: no such
// driver; ENODEV: no d_discard. NetBSD: bdev_discard.
func (t *Table) BdevDiscard(dev Dev, pos, n int64) error {
	d := t.BdevswLookup(dev)
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
