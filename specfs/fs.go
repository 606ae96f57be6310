package specfs

import (
	"sync"
	"time"

	"vdev/devsw"
)

// FS holds the state of the devices of one devsw.Table: for each that is open,
// being opened or being closed, a specdev. Make one with New. Its methods may be
// called on any goroutine.
type FS struct {
	t     *devsw.Table
	trace func(Event)

	// mu guards devs, every specdev, and of every Node what is marked so. It is
	// held for a few instructions only, never while a driver, a trace function
	// or anything that waits is called, and never on the way of a transfer.
	mu   sync.Mutex
	devs map[devKey]*specdev
}

// devKey names a device: block and character devices have numbers of their own.
type devKey struct {
	kind devsw.Mode
	dev  devsw.Dev
}

// specdev is what all nodes of one device share. It exists while there is
// anything to know about the device. All of it is under FS.mu, but for the
// counting of opens. NetBSD: struct specdev.
type specdev struct {
	devKey
	// opencnt is the number of opens, of all nodes, those in progress included:
	// an open counts before it calls d_open.
	opencnt int
	// opened: some d_open has gone well since the last close, so that whoever
	// drops the last open must close. NetBSD: sd_opened.
	opened bool
	// closing: a last close is under way, from before d_cancel to after the
	// last drain. No open is counted and no section entered meanwhile.
	closing bool
	// closed is made with each last close and closed (the channel) at its end.
	closed chan struct{}
	// nodes are those with an open, and those without that may still have
	// operations in progress.
	nodes map[*Node]struct{}
	// opens is the number of d_opens in progress.
	opens devsw.Localcount
	// ops are the operations in progress that are not transfers, for the report.
	ops map[*op]struct{}
	// claim is the node that has claimed the device (NetBSD: sd_mountpoint).
	claim *Node
}

// op is one operation in progress that is not a transfer.
type op struct {
	what  string
	since time.Time
}

// Option changes what New makes.
type Option func(*FS)

// WithTrace has fn called for each step of a device's life, in the order of the
// steps for one device, on the goroutine that takes the step and with no lock
// held. fn must be quick, must not call into specfs, and is called on several
// goroutines at once.
func WithTrace(fn func(Event)) Option {
	return func(fs *FS) { fs.trace = fn }
}

// New makes an FS over the drivers of t. There should be one FS to a Table: two
// do not know what the other has open.
func New(t *devsw.Table, opts ...Option) *FS {
	fs := &FS{t: t, devs: make(map[devKey]*specdev)}
	for _, o := range opts {
		o(fs)
	}
	return fs
}

// Node makes a node for a device. The device need not exist; Open finds out. A
// Node that is not open is known to nobody, and needs no release.
func (fs *FS) Node(kind devsw.Mode, dev devsw.Dev) *Node {
	n := &Node{fs: fs, key: devKey{kind, dev}}
	if n.strategy = fs.t.BdevStrategy; kind != devsw.IFBLK {
		n.strategy = func(b *devsw.Buf) { b.Fail(devsw.ENODEV) }
	}
	n.shared = newCounter(n)
	n.counters = []*Counter{n.shared}
	n.admitLocked(false)
	return n
}

// Lookup gives a node that has the device open, nil where none has. Of a block
// device there is at most one. NetBSD: spec_node_lookup_by_dev, vfinddev.
func (fs *FS) Lookup(kind devsw.Mode, dev devsw.Dev) *Node {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if sd := fs.devs[devKey{kind, dev}]; sd != nil {
		for n := range sd.nodes {
			if n.done > 0 && !n.gone {
				return n
			}
		}
	}
	return nil
}

// RevokeDevice revokes every node that has the device open, or is opening it. They are all marked
// before the first is closed, and only the last one's close cancels; see Node.Revoke. Opens that
// come meanwhile are revoked too. A driver whose device is going must refuse opens from before the
// call. When it returns nobody has the device open and no operation is in progress. NetBSD:
// VOP_REVOKE with REVOKEALL.
func (fs *FS) RevokeDevice(kind devsw.Mode, dev devsw.Dev) {
	key := devKey{kind, dev}
	for {
		fs.mu.Lock()
		sd := fs.devs[key]
		if sd == nil || sd.opencnt == 0 {
			fs.waitClosingUnlock(key)
			return
		}
		var nodes []*Node
		for n := range sd.nodes {
			if n.opencnt > 0 {
				n.goneLocked()
				nodes = append(nodes, n)
			}
		}
		fs.mu.Unlock()
		for _, n := range nodes {
			n.revoke()
		}
	}
}

// Vdevgone revokes the devices of one driver with minors minl to minh. A driver calls it to detach
// a unit, after it has begun to refuse opens, and not from within an operation of such a device.
// NetBSD: vdevgone(9).
func (fs *FS) Vdevgone(kind devsw.Mode, major, minl, minh uint32) {
	fs.mu.Lock()
	var gone []devsw.Dev
	for key := range fs.devs {
		d := key.dev
		if key.kind == kind && d.Major() == major && minl <= d.Minor() && d.Minor() <= minh {
			gone = append(gone, d)
		}
	}
	fs.mu.Unlock()
	for _, dev := range gone {
		fs.RevokeDevice(kind, dev)
	}
}

// getLocked gives the specdev of a device, a new one where there is none.
func (fs *FS) getLocked(key devKey) *specdev {
	sd := fs.devs[key]
	if sd == nil {
		sd = &specdev{devKey: key, nodes: make(map[*Node]struct{}), ops: make(map[*op]struct{})}
		fs.devs[key] = sd
	}
	return sd
}

// sweepLocked forgets the nodes that have neither opens nor operations in
// progress, and the device if nothing is left to know about it.
func (fs *FS) sweepLocked(sd *specdev) {
	for n := range sd.nodes {
		if n.opencnt == 0 && n.idle() {
			delete(sd.nodes, n)
			n.sd = nil
		}
	}
	if sd.opencnt == 0 && !sd.closing && sd.claim == nil && len(sd.nodes) == 0 {
		delete(fs.devs, sd.devKey)
	}
}

// waitClosingUnlock waits until the device is not being closed. It is called
// with mu held and returns without.
func (fs *FS) waitClosingUnlock(key devKey) {
	for {
		sd := fs.devs[key]
		if sd == nil || !sd.closing {
			fs.mu.Unlock()
			return
		}
		closed := sd.closed
		fs.mu.Unlock()
		<-closed
		fs.mu.Lock()
	}
}

// The driver's operations, by the kind of the device.

func (fs *FS) devOpen(k devKey, flag devsw.Flag) error {
	if k.kind == devsw.IFBLK {
		return fs.t.BdevOpen(k.dev, flag, k.kind)
	}
	return fs.t.CdevOpen(k.dev, flag, k.kind)
}

// acquire refers to the driver, nil where there is none.
func (fs *FS) acquire(k devKey) *devsw.Ref {
	if k.kind == devsw.IFBLK {
		return fs.t.BdevswAcquire(k.dev)
	}
	return fs.t.CdevswAcquire(k.dev)
}
