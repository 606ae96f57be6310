package specfs

import (
	"context"
	"fmt"

	"vdev/devsw"
)

// Node is one way to a device, as a vnode is on NetBSD: it has opens of its own
// and can be revoked by itself. Make one with FS.Node. Its methods may be called
// on any goroutine, and those that wait, not from within an operation of the
// same device (a driver's, or an Iodone): they would wait for themselves.
// NetBSD: struct specnode.
type Node struct {
	fs  *FS
	key devKey

	// strategy is the driver's d_strategy, or what calls it. It is read within
	// sections, and set under fs.mu while there can be none: when an open finds
	// another driver than bdev, for which the device must have been closed.
	strategy func(*devsw.Buf)
	// shared counts the transfers of Strategy calls without a Counter.
	shared *Counter
	// ops counts the operations in progress that are not transfers.
	ops devsw.Localcount
	// revoked, where it is not nil, is called when the node is revoked: see Lives.Revoked.
	revoked func()

	// begun is a Life's: a close or a revoke of the node has come to where it may wait for others.
	// It may be called more than once. nil: it is nobody's affair.
	begun func()

	// Under fs.mu:

	sd       *specdev      // while the device knows the node
	bdev     *devsw.Bdevsw // the driver strategy is of
	counters []*Counter    // shared and those of NewCounter
	opencnt  int           // opens, those in progress included. NetBSD: sn_opencnt
	done     int           // opens that went well and were not closed
	admits   bool          // sections can be entered
	gone     bool          // revoked, for ever. NetBSD: sn_gone
}

// Dev is the device's number.
func (n *Node) Dev() devsw.Dev { return n.key.dev }

// Mode is the device's kind.
func (n *Node) Mode() devsw.Mode { return n.key.kind }

// Open opens the device. It counts the open, and then calls d_open, with no lock held and inside a
// section: d_open may sleep for ever, and a close or a revoke wakes it. One Close, or Revoke,
// undoes an Open that has returned nil.
//
// A character device may be opened many times, by many nodes. The open waits while a close is in
// progress; when ctx is done first, it returns ctx's error. ctx does not interrupt d_open. A block
// device may be opened once: EBUSY while it is open, being opened or being closed (WaitClosed waits
// for that). Both: EBUSY while another node has claimed the device; ENXIO for a node that was
// revoked; EBADF (errors.Is) where the node is revoked meanwhile, whatever d_open has answered;
// else d_open's error, ENXIO where there is no such driver.
//
// d_open may fail although another open has succeeded and was closed meanwhile. Then this Open has
// the last reference, and closes the device before it returns. It does so too where the d_open of a
// node that was revoked still sleeps: nobody else would wake that one (on NetBSD nobody does).
// NetBSD: spec_open.
func (n *Node) Open(ctx context.Context, flag devsw.Flag) error {
	fs := n.fs
	fs.mu.Lock()
	sd, o, err := n.reserveUnlock(ctx)
	if err != nil {
		return err
	}
	step("open counted")
	fs.event(n.key, EventOpen, nil)
	err = fs.devOpen(n.key, flag)
	fs.event(n.key, EventOpened, err)
	step("open returned")

	// The section has to end before a close of our own, which drains.
	sd.opens.Release()
	fs.mu.Lock()
	delete(sd.ops, o)
	switch {
	case n.gone:
		fs.mu.Unlock()
		// The revoke has dropped our reference, and closed.
		if err != nil {
			return fmt.Errorf("%w (revoked; d_open: %w)", devsw.EBADF, err)
		}
		return devsw.EBADF
	case err == nil:
		sd.opened = true
		n.done++
		if !n.admits {
			n.resolveLocked()
			n.admitLocked(true)
		}
		fs.mu.Unlock()
		return nil
	case sd.opencnt == 1 && (sd.opened || sd.opens.Count() != 0):
		_ = n.dropUnlock(devsw.FNONBLOCK) // the caller is told why d_open failed
		return err
	}
	sd.opencnt--
	n.opencnt--
	fs.sweepLocked(sd)
	fs.mu.Unlock()
	return err
}

// reserveUnlock counts an open and enters its section, or says why not. It is
// called with fs.mu held and returns without.
func (n *Node) reserveUnlock(ctx context.Context) (*specdev, *op, error) {
	fs := n.fs
	defer fs.mu.Unlock()
	if n.gone {
		return nil, nil, devsw.ENXIO
	}
	sd := fs.getLocked(n.key)
	for n.key.kind != devsw.IFBLK && sd.closing {
		closed := sd.closed
		fs.mu.Unlock()
		var err error
		select {
		case <-closed:
		case <-ctx.Done():
			err = ctx.Err()
		}
		fs.mu.Lock()
		if err == nil && n.gone {
			err = devsw.EBADF
		}
		if err != nil {
			return nil, nil, err
		}
		sd = fs.getLocked(n.key) // the closed one may have been forgotten
	}
	if n.key.kind == devsw.IFBLK && (sd.opencnt != 0 || sd.closing) ||
		sd.claim != nil && sd.claim != n {
		return nil, nil, devsw.EBUSY
	}
	sd.opencnt++
	n.opencnt++
	n.sd = sd
	sd.nodes[n] = struct{}{}
	// Never closed: it is the count above that keeps the device from closing.
	sd.opens.Acquire()
	o := &op{what: "open", since: now()}
	sd.ops[o] = struct{}{}
	return sd, o, nil
}

// resolveLocked finds d_strategy, so that Strategy need not. The device is open,
// so the driver is attached.
func (n *Node) resolveLocked() {
	if n.key.kind != devsw.IFBLK {
		return
	}
	d := n.fs.t.BdevswLookup(n.key.dev)
	if d == n.bdev {
		return // and Strategy calls may be in progress
	}
	n.bdev = d
	n.strategy = n.fs.t.BdevStrategy
	if d.Flag&devsw.DMPSafe != 0 && d.Strategy != nil {
		n.strategy = d.Strategy
	}
}

// Close undoes one Open. The last close of the device, over all its nodes,
//
//  1. calls d_cancel, which interrupts what is in progress and does not wait,
//  2. drains: waits until every operation has returned, transfers included,
//  3. calls d_close, which is alone.
//
// For a driver without d_cancel, or whose d_cancel answers ENODEV, d_close comes first and
// interrupts; then drain. Any other answer of d_cancel is the driver's defect: Close panics.
// Without a driver there is only drain; that is so when an open is revoked that is about to fail
// with ENXIO. From before d_cancel to the end no section can be entered (ENXIO) and no open begins.
// When a last Close returns, no operation of the device is in progress. When another one returns,
// operations of the node may be.
//
// It returns d_close's error; the device is closed all the same. EBADF where the
// node is not open, nil where it was revoked. NetBSD: spec_close.
func (n *Node) Close(flag devsw.Flag) error {
	n.fs.mu.Lock()
	if n.gone || n.done == 0 {
		gone := n.gone
		n.fs.mu.Unlock()
		if gone {
			return nil
		}
		return devsw.EBADF
	}
	if n.done--; n.done == 0 {
		n.admitLocked(false)
	}
	return n.dropUnlock(flag)
}

// dropUnlock drops one of the node's opens and, if it was the device's last,
// closes the device. It is called with fs.mu held and returns without.
func (n *Node) dropUnlock(flag devsw.Flag) error {
	fs, sd := n.fs, n.sd
	n.opencnt--
	if sd.opencnt--; sd.opencnt != 0 {
		fs.sweepLocked(sd)
		fs.mu.Unlock()
		return nil
	}
	sd.opened = false
	sd.closing = true
	sd.closed = make(chan struct{})
	for m := range sd.nodes {
		m.admitLocked(false)
	}
	counts := sd.countsLocked()
	fs.mu.Unlock()
	step("close begun")
	n.tellBegun()

	err := fs.takeDown(n.key, flag, counts)

	fs.mu.Lock()
	defer fs.mu.Unlock()
	sd.closing = false
	close(sd.closed)
	fs.sweepLocked(sd)
	return err
}

// takeDown does a last close's work: cancel, drain, close, drain, or what there is
// of it. Nothing can begin on the device any more; counts are all that is in
// progress. It gives d_close's error.
//
// One driver is cancelled and closed, and not detached meanwhile. Where there is
// none, an open of a device that does not exist, or no longer, is being revoked:
// no driver has anything to cancel or to close, and the open is about to fail.
func (fs *FS) takeDown(k devKey, flag devsw.Flag, counts []*devsw.Localcount) error {
	ref := fs.acquire(k)
	if ref == nil {
		fs.drain(k, counts)
		return nil
	}
	defer ref.Release()

	fs.event(k, EventCancel, nil)
	cancelErr := ref.Cancel(flag, k.kind)
	fs.event(k, EventCanceled, cancelErr)
	step("cancelled")
	switch cancelErr {
	case nil:
		fs.drain(k, counts)
		step("drained")
	case devsw.ENODEV:
	default:
		panic(fmt.Sprintf("specfs: d_cancel of %v device %v answered %v: it may answer nil or ENODEV", k.kind, k.dev, cancelErr))
	}

	fs.event(k, EventClose, nil)
	err := ref.Close(flag, k.kind)
	fs.event(k, EventClosed, err)
	step("closed")
	if cancelErr != nil {
		fs.drain(k, counts)
	} else {
		drain(counts)
	}
	step("drained again")
	return err
}

// Revoke takes the device away from the node, for ever. No section of the node can be entered any
// more (ENXIO), its opens are dropped, and its open in progress fails with EBADF. If those were the
// device's last opens, Revoke closes the device as Close does, with d_cancel for what is in
// progress. It waits for that, and for any close of the device that is in progress already. If
// other nodes have the device open it stays open, and what the node had in progress goes on. A
// second Revoke only waits. NetBSD: spec_node_revoke.
func (n *Node) Revoke() {
	n.fs.mu.Lock()
	n.goneLocked()
	n.fs.mu.Unlock()
	n.revoke()
}

// goneLocked marks the node as revoked.
func (n *Node) goneLocked() {
	n.gone = true
	n.admitLocked(false)
}

// revoke drops the opens of a node that is marked.
func (n *Node) revoke() {
	fs := n.fs
	fs.event(n.key, EventRevoke, nil)
	if n.revoked != nil {
		n.revoked()
	}
	step("revoke marked")
	fs.mu.Lock()
	if n.opencnt > 0 {
		n.sd.opencnt -= n.opencnt - 1
		n.opencnt = 1
		n.done = 0
		_ = n.dropUnlock(devsw.FNONBLOCK) // nobody is left to be told
		fs.mu.Lock()
	}
	n.tellBegun()
	fs.waitClosingUnlock(n.key)
	fs.event(n.key, EventRevoked, nil)
}

func (n *Node) tellBegun() {
	if n.begun != nil {
		n.begun()
	}
}

// WaitClosed waits until no close of the device is in progress. It does not wait for a device that
// is open or was never opened. Where ctx is done first it returns a *DrainError that says what the
// close waits for. Call it before the open of a block device that must not fail with EBUSY because
// the last user's close is slow. vdev's own.
func (n *Node) WaitClosed(ctx context.Context) error {
	fs := n.fs
	began := now()
	fs.mu.Lock()
	for {
		sd := fs.devs[n.key]
		if sd == nil || !sd.closing {
			fs.mu.Unlock()
			return nil
		}
		closed := sd.closed
		fs.mu.Unlock()
		select {
		case <-closed:
		case <-ctx.Done():
			return fs.drainError(n.key, began, ctx.Err())
		}
		fs.mu.Lock()
	}
}

// Claim marks the open device as taken by this node, as a mounted file system
// does: until Unclaim no other node can open it (EBUSY), also when it has been
// closed or revoked under the claim. EBADF where the node is not open, EBUSY
// where another has claimed the device. NetBSD: spec_node_setmountedfs.
func (n *Node) Claim() error {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if n.done == 0 {
		return devsw.EBADF
	}
	if n.sd.claim != nil && n.sd.claim != n {
		return devsw.EBUSY
	}
	n.sd.claim = n
	return nil
}

// Unclaim ends the node's claim, if it has one.
func (n *Node) Unclaim() {
	n.fs.mu.Lock()
	defer n.fs.mu.Unlock()
	if sd := n.fs.devs[n.key]; sd != nil && sd.claim == n {
		sd.claim = nil
		n.fs.sweepLocked(sd)
	}
}

// admitLocked lets sections be entered, or not any more.
func (n *Node) admitLocked(admit bool) {
	n.admits = admit
	set(&n.ops, admit)
	for _, c := range n.counters {
		set(&c.count, admit && !c.released)
	}
}

func set(l *devsw.Localcount, admit bool) {
	if admit {
		l.Reopen()
	} else {
		l.Close()
	}
}

// idle tells that nothing is in progress on a node that does not admit anything.
// Transfers are not looked at: a block device has one node, and when that has no
// opens any more it was the last close, which has drained.
func (n *Node) idle() bool { return n.ops.Count() == 0 }
