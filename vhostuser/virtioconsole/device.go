// Package virtioconsole is the virtio console device (virtio 1.2, section 5.3): consoles and ports,
// each of them a character device behind specfs.
//
// A port's device is opened when the first of its two rings starts, off the control path, and is
// closed when the last of them stops: cancel, drain, close. A Device has no goroutine of its own.
// Bytes are moved on the reactor, by d_read and d_write with FNONBLOCK, straight from and to the
// guest's memory.
//
// # What a port's driver must keep
//
// The driver is a devsw.Cdevsw. Nothing of it that is called here may wait, but d_open and d_close:
//
//   - d_read and d_write with FNONBLOCK move what they can, and answer EAGAIN if that is nothing.
//     The guest may take its memory away meanwhile. An access then panics: locks are to be let go
//     by defer. (A system call that answers EFAULT passes that on.)
//   - d_kqfilter has EVFILTRead, EVFILTWrite and EVFILTLine. After an EAGAIN the port waits for
//     Activate of the first or the second. The third says that d_poll or TIOCGWINSZ may answer
//     something else.
//   - d_poll answers POLLHUP while nobody is at the other side.
//   - d_ioctl answers TIOCGWINSZ, with ENOTTY where no size is known.
//
// The output of a console is taken from the guest at once, whatever the driver does, since a
// guest's CPU spins until it is: 64 KiB are kept for a driver that takes nothing, and the oldest
// bytes are dropped. Any other port is lossless: its chains wait in the ring. Input is read when
// the guest has the port open and a buffer for it.
//
// # What the guest is told
//
// No queue of control messages exists. For each port there is what the guest was told, and what is
// so: messages are made of the difference, when the guest has a buffer. A flood of changes takes no
// memory, and what could not be told before a pause is told after it.
//
// # Locks and goroutines
//
// The connection's goroutine calls the methods of vhostuser.Device but Process. All rings are on
// one reactor (vhostuser.Config.OneReactor), which calls Process, and owns what is being
// transferred. Goroutines of specfs.Life open and close. Device.mu guards what they share. It is
// held for a few instructions, never while a driver is called or the guest's memory is touched, and
// never taken on the way of bytes. backlog.mu, and what a Life locks, are taken after it.
package virtioconsole

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/virtq"
)

// MaxPorts is the largest Config.MaxPorts.
const MaxPorts = 31

// maxChain is how many descriptors a chain may have. Linux makes one of a whole pipe by splice(2),
// a page a descriptor: this is one of 32 MiB.
const maxChain = 8192

// Config says what a Device serves. FS must be set.
type Config struct {
	FS    *specfs.FS
	Ports []Port // at first; more by Device.AddPort
	// Multiport offers VIRTIO_CONSOLE_F_MULTIPORT. Without it there is port 0 alone, a console or
	// not, and it has no name. A guest driver that does not take the offer has port 0 as well.
	Multiport bool
	// MaxPorts is how many ports there may be with Multiport, 1 to MaxPorts; ids are below it. The
	// front-end must give the device 2*(MaxPorts+1) queues then, or a Linux guest takes none of
	// it; else 2.
	MaxPorts int
	// RowsFirst has RESIZE sent as Linux before 6.12.65 (and 6.1.162 in Debian) and others read
	// it, with the rows before the columns. By the specification columns come first.
	RowsFirst bool
	// ConfigChanged is told that the configuration space has changed, with the window's size
	// (vhostuser.Backend.ConfigChanged). It is called on the connection's goroutine and on the
	// reactor, and must not wait. nil: nobody is told.
	ConfigChanged func()
	// Trace is called for each control message, with a Message, on the reactor. It must not block.
	// nil: nobody wants to know.
	Trace func(fmt.Stringer)
	// Log is told what went wrong or took long where nobody is there to take an error. err may be
	// nil. It may be called on any goroutine. nil: nobody is told.
	Log func(msg string, err error)
}

// Port is one port.
type Port struct {
	ID   uint32 // below Config.MaxPorts
	Name string // as the guest sees it, at most MaxName bytes; "" for none
	// Console: the guest has a terminal on it (hvc). Its output never waits.
	Console bool
	Dev     devsw.Dev // a character device's number, that no other port has
}

// MaxName is the greatest length of Port.Name, in bytes.
const MaxName = 256

// Device is one virtio console device. It implements vhostuser.Device, whose methods are the
// Backend's to call. One Backend at a time serves it; BackendConfig says how.
type Device struct {
	fs            *specfs.FS
	offers        bool // MULTIPORT
	rowsFirst     bool
	configChanged func()
	trace         func(fmt.Stringer)
	log           func(string, error)

	slots []*slot // by id

	// The control queues while they run. Changed under mu.
	controlIn, controlOut atomic.Pointer[vhostuser.Queue]
	inChain, outChain     virtq.Chain // the reactor's
	message               []byte      // likewise

	refused atomic.Uint64 // control messages that say nothing sensible

	mu      sync.Mutex
	running int            // rings
	loop    vhostuser.Loop // theirs
	multi   bool           // MULTIPORT was negotiated
	sized   bool           // SIZE was
	ready   bool           // the guest driver has said DEVICE_READY 1
	next    int            // slot to look at first for something to tell
	size    devsw.Winsize  // of port 0 as last known, for the configuration space
}

var _ vhostuser.Device = (*Device)(nil)

// New makes a Device. No port's device is opened. It fails where Config is not as it must be.
func New(c Config) (*Device, error) {
	n := 1
	if c.Multiport {
		if n = c.MaxPorts; n < 1 || n > MaxPorts {
			return nil, fmt.Errorf("virtio-console: %d ports at most: must be from 1 to %d", n, MaxPorts)
		}
	}
	d := &Device{fs: c.FS, offers: c.Multiport, rowsFirst: c.RowsFirst,
		configChanged: c.ConfigChanged, trace: c.Trace, log: c.Log}
	if d.configChanged == nil {
		d.configChanged = func() {}
	}
	if d.log == nil {
		d.log = func(string, error) {}
	}
	for id := range n {
		d.slots = append(d.slots, &slot{d: d, id: uint32(id)})
	}
	for _, p := range c.Ports {
		if err := d.AddPort(p); err != nil {
			return nil, err
		}
	}
	return d, nil
}

// BackendConfig returns cfg with what a Backend of this Device needs: the Device itself, one
// reactor for all rings, chains as long as guests make them, and no in-flight region, since nothing
// is ever suspended.
func (d *Device) BackendConfig(cfg vhostuser.Config) vhostuser.Config {
	cfg.Device = d
	cfg.OneReactor = true
	cfg.MaxChain = maxChain
	cfg.Decline |= vhostuser.ProtocolInflightSHMFD
	return cfg
}

// Features implements vhostuser.Device.
func (d *Device) Features() uint64 {
	f := virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx | fSize | fEmergency
	if d.offers {
		f |= fMultiport
	}
	return f
}

// NumQueues implements vhostuser.Device.
func (d *Device) NumQueues() int {
	if d.offers {
		return 2 * (len(d.slots) + 1)
	}
	return 2
}

// ConfigSize implements vhostuser.Device.
func (d *Device) ConfigSize() int { return configSize }

// ReadConfig implements vhostuser.Device.
func (d *Device) ReadConfig(p []byte) {
	d.mu.Lock()
	size := d.size
	d.mu.Unlock()
	fillConfig(p, size, len(d.slots))
}

// WriteConfig implements vhostuser.Device. A write that reaches emerg_wr puts one character out.
// Everything else in it is a copy that the front-end has from an earlier read, and is ignored.
func (d *Device) WriteConfig(off int, p []byte) error {
	if at := configEmergWr - off; at >= 0 && at < len(p) {
		d.emergency(p[at])
	}
	return nil
}

// SessionBegin implements vhostuser.Device. Whether the guest driver is another one than in the
// session before is seen when its rings start.
func (d *Device) SessionBegin() {}

// SessionEnd implements vhostuser.Device.
func (d *Device) SessionEnd() {}

// SetFeatures implements vhostuser.Device.
func (d *Device) SetFeatures(f uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.multi, d.sized = f&fMultiport != 0, f&fSize != 0
	for _, s := range d.slots {
		s.setInputLocked()
	}
}

// ringKind is what a ring is for.
type ringKind uint8

const (
	ringPortIn ringKind = iota // to the guest
	ringPortOut
	ringControlIn // to the guest
	ringControlOut
)

// ring is a Queue's Data.
type ring struct {
	kind ringKind
	slot *slot // nil for a control ring
}

// ring tells what the ring with this index is for (virtio 1.2, 5.3.2).
func (d *Device) ring(index int) *ring {
	dir := ringKind(index & 1)
	switch index / 2 {
	case 0:
		return &ring{ringPortIn + dir, d.slots[0]}
	case 1:
		return &ring{ringControlIn + dir, nil}
	default:
		return &ring{ringPortIn + dir, d.slots[index/2-1]}
	}
}

// place is where the Queue of a ring is kept while it runs.
func (d *Device) place(r *ring) *atomic.Pointer[vhostuser.Queue] {
	switch r.kind {
	case ringPortIn:
		return &r.slot.inQueue
	case ringPortOut:
		return &r.slot.outQueue
	case ringControlIn:
		return &d.controlIn
	default:
		return &d.controlOut
	}
}

// wake has the ring looked at, if it runs. Any goroutine.
func wake(at *atomic.Pointer[vhostuser.Queue]) {
	if q := at.Load(); q != nil {
		q.Wake()
	}
}

var (
	errManyReactors = errors.New("virtio-console: the rings are not on one reactor (see Device.BackendConfig)")
	errNoMultiport  = errors.New("virtio-console: MULTIPORT was not negotiated: there are rings 0 and 1 only")
)

// StartQueue implements vhostuser.Device. The first ring of a port opens its device, in the
// background.
func (d *Device) StartQueue(q *vhostuser.Queue) error {
	if err := d.startQueue(q); err != nil {
		return err
	}
	d.mu.Lock()
	multi := d.multi
	d.mu.Unlock()
	if q.Index() == 0 && !multi {
		// Linux 6.1, for one, does not read the size before this.
		d.configChanged()
	}
	return nil
}

func (d *Device) startQueue(q *vhostuser.Queue) error {
	r := d.ring(q.Index())
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case q.Index() >= 2 && !d.multi:
		return errNoMultiport
	case d.running == 0:
		d.loop = q.Loop()
	case d.loop != q.Loop():
		return errManyReactors
	}
	d.meetDriverLocked(q.Driver())
	d.running++
	q.Data = r
	d.place(r).Store(q)
	if r.slot != nil {
		r.slot.beginLocked()
	}
	return nil
}

// meetDriverLocked takes note of the guest driver whose ring starts.
func (d *Device) meetDriverLocked(origin vhostuser.DriverOrigin) {
	switch {
	case origin == vhostuser.DriverNew && d.running == 0:
		d.forgetLocked()
		for _, s := range d.slots {
			s.out.resume = resume{} // no ring runs, so the reactor does not use it
		}
	case origin == vhostuser.DriverElsewhere && !d.ready:
		// It was served by another back-end, or before this one was killed. It has its ports, and
		// does not say again which of them it has open.
		d.ready = true
		for _, s := range d.slots {
			s.guestOpen = true
		}
	}
}

// forgetLocked forgets what the guest driver was told, and what it has told: another one begins.
func (d *Device) forgetLocked() {
	d.ready = false
	d.next = 0 // a guest numbers its terminals in the order in which it is told of consoles
	for _, s := range d.slots {
		s.told = told{}
		s.guestReady, s.guestOpen = false, false
		s.setInputLocked()
	}
}

// PauseQueue implements vhostuser.Device. The one chain that can be in flight is one of a port that
// waits for its device to take the rest of it. It goes back to the ring.
func (d *Device) PauseQueue(q *vhostuser.Queue, _ vhostuser.Stop) {
	r := q.Data.(*ring)
	q.Do(func() { r.park(q) })
}

// ResumeQueue implements vhostuser.Device.
func (d *Device) ResumeQueue(*vhostuser.Queue) {}

// closeWait is how long a stop waits for the closes of all ports together, before it leaves them to
// themselves.
const closeWait = 200 * time.Millisecond

// StopDevice implements vhostuser.Device. Nothing is in flight but what goes back to the ring (see
// PauseQueue). The devices of all ports are closed at once (cancel, drain, close). A close that
// takes long goes on in the background, and the next start of the port waits for it. Where
// how.Revoke is set the devices are revoked.
func (d *Device) StopDevice(rings []*vhostuser.Queue, how vhostuser.Stop) {
	rings[0].Do(func() {
		for _, q := range rings {
			q.Data.(*ring).park(q)
		}
	})
	var ended []*specfs.Life
	d.mu.Lock()
	for _, q := range rings {
		r := q.Data.(*ring)
		d.place(r).Store(nil)
		d.running--
		if s := r.slot; s != nil && s.inQueue.Load() == nil && s.outQueue.Load() == nil {
			if l := s.port.Load().endLocked(how.Revoke); l != nil {
				ended = append(ended, l)
			}
		}
	}
	d.mu.Unlock()
	until := time.Now().Add(closeWait)
	for _, l := range ended {
		if l.Await(time.Until(until)) {
			continue
		}
		if err := l.TellLate(); err != nil {
			d.log("a port's device is still being closed; its next start waits for it", err)
		}
	}
}

// StopQueue implements vhostuser.Device, as StopDevice.
func (d *Device) StopQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	d.StopDevice([]*vhostuser.Queue{q}, how)
}

// WaitClosed waits until nothing of the ports' devices is open or in progress any more, when no
// front-end is served: a close may go on in the background. Where ctx is done first it returns
// ctx's error. Any goroutine.
func (d *Device) WaitClosed(ctx context.Context) error {
	var all []*port
	d.mu.Lock()
	for _, s := range d.slots {
		p := s.port.Load()
		p.endLocked(true) // of an emergency that d_open does not return from
		for _, p := range []*port{p, s.leaving} {
			if p != nil {
				all = append(all, p)
			}
		}
	}
	d.mu.Unlock()
	for _, p := range all {
		if err := p.lives.WaitClosed(ctx); err != nil {
			return err
		}
	}
	return nil
}

// The budgets of one call of Process, so that the rings of a reactor take turns: chains, bytes, and
// descriptors (virtq.Chain.Work).
const (
	budget      = 128
	budgetBytes = 512 << 10
	budgetWork  = 4096
)

// Process implements vhostuser.Device.
func (d *Device) Process(q *vhostuser.Queue) (more bool) {
	r, _ := q.Data.(*ring)
	switch {
	case r == nil:
		return false
	case r.kind == ringPortIn:
		return r.slot.receive(q)
	case r.kind == ringPortOut:
		return r.slot.transmit(q)
	case r.kind == ringControlIn:
		return d.tell(q)
	default:
		return d.listen(q)
	}
}
