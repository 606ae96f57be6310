package specfs

import "vdev/devsw"

// The operations below are sections: a drain waits for them, and they answer
// ENXIO where the node is not open, is revoked, or its device is being closed.
// For the rest they answer what the wrapper in devsw answers.

// Read reads from the device into u.
//
// Of a character device it calls d_read, which may sleep until there is data or the device is
// cancelled. Of a block device it transfers u.Resid bytes at u.Offset, both multiples of
// devsw.DEVBSIZE (else EINVAL), and waits for the end; u shows how far it got. There is no buffer
// cache. A read of no bytes returns nil at once, whether the node is open or not.
//
// Of a character device with FNONBLOCK it takes no lock and allocates nothing. It does not sleep,
// so InProgress and DrainError do not name it; a drain waits for it all the same. NetBSD:
// spec_read.
func (n *Node) Read(u *devsw.Uio, flag devsw.Flag) error {
	if u.Resid == 0 {
		return nil
	}
	if n.key.kind == devsw.IFBLK {
		return n.physio(devsw.BRead, u)
	}
	if flag&devsw.FNONBLOCK != 0 {
		if !n.ops.Acquire() {
			return devsw.ENXIO
		}
		defer n.ops.Release()
		return n.fs.t.CdevRead(n.key.dev, u, flag)
	}
	o, ok := n.enter("read")
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	return n.fs.t.CdevRead(n.key.dev, u, flag)
}

// Write writes u to the device; see Read. A write of no bytes returns nil at once for a block
// device; a character device is asked. NetBSD: spec_write.
func (n *Node) Write(u *devsw.Uio, flag devsw.Flag) error {
	if n.key.kind == devsw.IFBLK {
		return n.physio(devsw.BWrite, u)
	}
	if flag&devsw.FNONBLOCK != 0 {
		if !n.ops.Acquire() {
			return devsw.ENXIO
		}
		defer n.ops.Release()
		return n.fs.t.CdevWrite(n.key.dev, u, flag)
	}
	o, ok := n.enter("write")
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	return n.fs.t.CdevWrite(n.key.dev, u, flag)
}

// physio makes one transfer of u and waits for it. NetBSD: physio(9).
func (n *Node) physio(op devsw.Op, u *devsw.Uio) error {
	if u.Resid == 0 {
		return nil
	}
	if u.Offset < 0 || u.Offset%devsw.DEVBSIZE != 0 || u.Resid%devsw.DEVBSIZE != 0 {
		return devsw.EINVAL
	}
	done := make(chan struct{})
	b := &devsw.Buf{
		Op:     op,
		Blkno:  u.Offset / devsw.DEVBSIZE,
		Data:   u.Iov,
		Bcount: int64(u.Resid),
		Iodone: func(*devsw.Buf) { close(done) },
	}
	n.Strategy(nil, b)
	<-done
	u.Advance(int(b.Bcount - b.Resid))
	if b.Error != 0 {
		return b.Error
	}
	return nil
}

// CancelBuf interrupts one transfer, b, that was given to Strategy of this node. It does not wait
// for its end: b.Iodone is called as ever, with ECANCELED where the driver could interrupt the
// transfer. b may have ended already. It is called on the goroutine that gave b to Strategy.
// ENODEV: the driver has no such function. ENXIO: the device is being closed, and that cancels
// everything. vdev's own; see devsw.Bdevsw.
func (n *Node) CancelBuf(b *devsw.Buf) error {
	o, ok := n.enter("cancel of a transfer")
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	if n.key.kind != devsw.IFBLK {
		return devsw.ENODEV
	}
	return n.fs.t.BdevCancelBuf(b)
}

// Ioctl calls d_ioctl; see devsw.Cmd for the type of data. NetBSD: spec_ioctl.
func (n *Node) Ioctl(cmd devsw.Cmd, data any, flag devsw.Flag) error {
	o, ok := n.enter("ioctl " + cmd.String())
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	if n.key.kind == devsw.IFBLK {
		return n.fs.t.BdevIoctl(n.key.dev, cmd, data, flag)
	}
	return n.fs.t.CdevIoctl(n.key.dev, cmd, data, flag)
}

// Discard calls d_discard for count bytes from byte pos on. NetBSD: spec_fdiscard,
// which is not a section there.
func (n *Node) Discard(pos, count int64) error {
	o, ok := n.enter("discard")
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	if n.key.kind == devsw.IFBLK {
		return n.fs.t.BdevDiscard(n.key.dev, pos, count)
	}
	return n.fs.t.CdevDiscard(n.key.dev, pos, count)
}

// Psize calls d_psize: the size in units of devsw.DEVBSIZE, or -1 where there is
// none, the device is a character device, or the section cannot be entered.
func (n *Node) Psize() int64 {
	if n.key.kind != devsw.IFBLK {
		return -1
	}
	o, ok := n.enter("psize")
	if !ok {
		return -1
	}
	defer n.leave(o)
	return n.fs.t.BdevSize(n.key.dev)
}

// Poll answers which of events the device is ready for; see devsw.Cdevsw. It is
// POLLERR where the section cannot be entered. A block device is always ready.
// NetBSD: spec_poll.
func (n *Node) Poll(events devsw.PollEvents, wake func()) devsw.PollEvents {
	o, ok := n.enter("poll")
	if !ok {
		return devsw.POLLERR
	}
	defer n.leave(o)
	if n.key.kind == devsw.IFBLK {
		return events & (devsw.POLLIN | devsw.POLLOUT)
	}
	return n.fs.t.CdevPoll(n.key.dev, events, wake)
}

// Kqfilter attaches kn to the device. EOPNOTSUPP for a block device.
// NetBSD: spec_kqfilter.
func (n *Node) Kqfilter(kn *devsw.Knote) error {
	o, ok := n.enter("kqfilter")
	if !ok {
		return devsw.ENXIO
	}
	defer n.leave(o)
	if n.key.kind == devsw.IFBLK {
		return devsw.EOPNOTSUPP
	}
	return n.fs.t.CdevKqfilter(n.key.dev, kn)
}
