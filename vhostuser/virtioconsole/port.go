package virtioconsole

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
)

// slot is the place of the port with one id: its rings, and what the guest driver knows of it. It
// stays when the port goes.
type slot struct {
	d  *Device
	id uint32

	port atomic.Pointer[port] // nil: none. Changed under Device.mu
	// The rings while they run. Changed under Device.mu.
	inQueue, outQueue atomic.Pointer[vhostuser.Queue]
	// what the port's device has may be given to the guest; changed under Device.mu
	input atomic.Bool

	// The reactor's.
	in  incoming
	out outgoing

	// Under Device.mu:

	told       told
	guestReady bool  // the guest driver has said PORT_READY 1
	guestOpen  bool  // and PORT_OPEN 1
	leaving    *port // one that was removed, and whose device is not closed yet
}

// port is one port, from AddPort to RemovePort.
type port struct {
	Port
	slot  *slot
	lives specfs.Lives

	// open is the device while it can be used. Changed under Device.mu.
	open    atomic.Pointer[opened]
	backlog backlog // of a console
	// whether somebody is at the other side, or the size, is to be looked at
	look  atomic.Bool
	count counts

	// Under Device.mu:

	life      *specfs.Life // nil while the device is not to be open
	temporary bool         // life is for an emergency, and no ring of the port runs
	lifes     int          // that have not ended
	lost      bool         // life's device was revoked
	side      side
	size      devsw.Winsize
}

// side is what is known of the other side of a port.
type side uint8

const (
	// The device is not open yet, or is being closed: in a pause of the guest nothing changes for
	// it.
	sideUnknown side = iota
	sideAbsent       // nobody is there, or the device has failed
	sideThere
)

// counts are a port's, since it was added.
type counts struct {
	in, out, dropped atomic.Uint64 // bytes
	odd              atomic.Uint64 // chains that were used up though they are not as they should be
	errs             atomic.Uint64 // errors of d_read and d_write
}

// opened is a port's device while it is open.
type opened struct {
	port  *port
	life  *specfs.Life
	node  *specfs.Node
	notes [3]devsw.Knote
	// how often the driver has said that there may be something to read, or room to write
	readable, writable atomic.Uint64

	// The reactor's.
	// readable and writable when the driver has last had nothing, or no room
	emptyAt, fullAt uint64

	retry *vhostuser.Timer // nil: none is set
	told  bool             // the log was, of an error
}

// ErrPort is wrapped by AddPort and RemovePort where the port cannot be there, is there already, or
// is not there.
var ErrPort = errors.New("virtio-console: port")

// AddPort adds a port, and tells the guest. Any goroutine. It fails, with ErrPort, where the id is
// not below Config.MaxPorts, or the id, the name or the device is another port's; the id and the
// device of one that was removed are its own until RemovePort has returned nil.
func (d *Device) AddPort(c Port) error {
	switch {
	case c.ID >= uint32(len(d.slots)):
		return fmt.Errorf("%w %d: ids are below %d", ErrPort, c.ID, len(d.slots))
	case len(c.Name) > MaxName:
		return fmt.Errorf("%w %d: its name has %d bytes, at most %d may be", ErrPort, c.ID, len(c.Name), MaxName)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.slots[c.ID]
	if s.port.Load() != nil {
		return fmt.Errorf("%w %d: there is one already", ErrPort, c.ID)
	}
	for _, o := range d.slots {
		for _, p := range []*port{o.port.Load(), o.leaving} {
			switch {
			case p == nil:
			case p == s.leaving, p.Dev == c.Dev && p == o.leaving:
				return fmt.Errorf("%w %d: the one before is still being closed: %w", ErrPort, c.ID, devsw.EBUSY)
			case p.Dev == c.Dev:
				return fmt.Errorf("%w %d: its device is port %d's already", ErrPort, c.ID, p.ID)
			case p.Name == c.Name && c.Name != "" && p != o.leaving:
				return fmt.Errorf("%w %d: its name %q is port %d's already", ErrPort, c.ID, c.Name, p.ID)
			}
		}
	}
	p := &port{Port: c, slot: s}
	p.lives = specfs.Lives{FS: d.fs, Mode: devsw.IFCHR, Dev: c.Dev, Began: p.lifeBegan, Revoked: p.lifeEnding,
		Ending: p.lifeEnding, Ended: p.lifeEnded}
	s.port.Store(p)
	s.setInputLocked()
	s.beginLocked()
	s.wake()
	return nil
}

// RemovePort removes a port, tells the guest, and returns when its device is closed: cancel, drain,
// close. Any goroutine. It fails with ErrPort where there is no such port. Where ctx is done first
// it returns ctx's error, and the close goes on.
func (d *Device) RemovePort(ctx context.Context, id uint32) error {
	if id >= uint32(len(d.slots)) {
		return fmt.Errorf("%w %d: ids are below %d", ErrPort, id, len(d.slots))
	}
	s := d.slots[id]
	d.mu.Lock()
	p := s.port.Load()
	if p == nil {
		d.mu.Unlock()
		return fmt.Errorf("%w %d: there is none", ErrPort, id)
	}
	s.port.Store(nil)
	s.setInputLocked()
	p.endLocked(false)
	if p.lifes > 0 {
		s.leaving = p
	}
	d.mu.Unlock()
	s.wake()
	return p.lives.WaitClosed(ctx)
}

// wake has all looked at that a change of the port concerns. Any goroutine.
func (s *slot) wake() {
	wake(&s.inQueue)
	wake(&s.outQueue)
	wake(&s.d.controlIn)
}

// setInputLocked finds out whether input is read. Without MULTIPORT nobody tells whether the guest
// has the port open. With it, it says so of consoles, too (5.3.6.2.1).
func (s *slot) setInputLocked() {
	p := s.port.Load()
	is := p != nil && (!s.d.multi && s.id == 0 || s.d.multi && s.told.port == p && s.guestOpen)
	if was := s.input.Swap(is); is && !was {
		wake(&s.inQueue)
	}
}

// beginLocked has the port's device opened, if it is not to be open yet and a ring of the port
// runs.
func (s *slot) beginLocked() {
	p := s.port.Load()
	if p == nil || s.inQueue.Load() == nil && s.outQueue.Load() == nil {
		return
	}
	p.temporary = false
	if p.life == nil {
		p.openLocked()
	}
}

// openLocked begins a Life.
func (p *port) openLocked() {
	p.life, p.side, p.lost = p.lives.Begin(), sideUnknown, false
	p.lifes++
}

// endLocked has the port's device closed, and returns the Life that ends; nil where none does. p
// may be nil.
func (p *port) endLocked(revoke bool) *specfs.Life {
	if p == nil || p.life == nil {
		return nil
	}
	l := p.life
	p.life = nil
	// With the lock: a Life that begins from now on waits for this close.
	if revoke {
		l.Revoke()
	} else {
		l.Close(devsw.FREAD | devsw.FWRITE)
	}
	return l
}

// lifeBegan lets the port go when its device has been opened, or could not be.
func (p *port) lifeBegan(l *specfs.Life) {
	d := p.slot.d
	if err := l.Err(); err != nil {
		if !errors.Is(err, context.Canceled) && !errors.Is(err, devsw.EBADF) {
			d.log(fmt.Sprintf("port %d: its device cannot be opened", p.ID), err)
		}
		d.mu.Lock()
		if p.life == l {
			p.side = sideAbsent
			if p.temporary {
				p.endLocked(false)
			}
		}
		d.mu.Unlock()
		wake(&d.controlIn)
		return
	}
	o := &opened{port: p, life: l, node: l.Node()}
	o.readable.Store(1)
	o.writable.Store(1)
	p.look.Store(true)
	o.attach()
	for buf := make([]byte, flushSize); ; {
		err := p.flush(o, buf)
		d.mu.Lock()
		goesOn, done := p.life == l, false
		switch {
		case !goesOn:
		case !p.temporary:
			o.fullAt = 0 // the reactor tries for itself, and takes note of an error
			p.open.Store(o)
			done = true
		case err != nil || p.backlog.empty():
			p.endLocked(false)
			goesOn = false
		}
		d.mu.Unlock()
		switch {
		case done:
			p.slot.wake()
			return
		case !goesOn:
			o.detach()
			return
		}
	}
}

// lifeEnding has the device not used any more: it is to be closed, or was revoked.
func (p *port) lifeEnding(l *specfs.Life) {
	if o := p.open.Load(); o != nil && o.life == l {
		p.lose(o)
	}
}

// lose takes the device away from the port: it is being closed, or was revoked. Then nobody is at
// the other side until the rings have been stopped and started. Any goroutine.
func (p *port) lose(o *opened) {
	d := p.slot.d
	d.mu.Lock()
	if p.open.Load() == o {
		p.open.Store(nil)
		if p.life == o.life {
			p.side, p.lost = sideAbsent, true
		}
	}
	d.mu.Unlock()
	o.detach()
	wake(&d.controlIn)
}

// lifeEnded takes note that the device is closed. err is d_close's.
func (p *port) lifeEnded(_ *specfs.Life, err error) {
	d := p.slot.d
	if err != nil {
		d.log(fmt.Sprintf("port %d: close of its device", p.ID), err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.lifes--; p.lifes == 0 && p.slot.leaving == p {
		p.slot.leaving = nil
	}
}

// attach asks the driver to say when it has something, has room, or its other side has changed.
func (o *opened) attach() {
	s := o.port.slot
	o.notes[0].Filter, o.notes[0].Activate = devsw.EVFILTRead, func(int64) {
		o.readable.Add(1)
		wake(&s.inQueue)
	}
	o.notes[1].Filter, o.notes[1].Activate = devsw.EVFILTWrite, func(int64) {
		o.writable.Add(1)
		wake(&s.outQueue)
	}
	o.notes[2].Filter, o.notes[2].Activate = devsw.EVFILTLine, func(int64) {
		o.port.look.Store(true)
		wake(&s.d.controlIn)
		wake(&s.inQueue)
	}
	for i := range o.notes {
		// A driver that has not such events is never asked to say them; ENXIO shows in what comes
		// next.
		_ = o.node.Kqfilter(&o.notes[i])
	}
}

func (o *opened) detach() {
	for i := range o.notes {
		o.notes[i].Detach()
	}
}

// lookAt asks the port's device whether somebody is there, and how large the window is, where that
// may have changed. On the reactor.
func (s *slot) lookAt() {
	p := s.port.Load()
	if p == nil {
		return
	}
	o := p.open.Load()
	if o == nil || !p.look.Swap(false) {
		return
	}
	other := sideThere
	switch state := o.node.Poll(0, nil); {
	case state&devsw.POLLERR != 0:
		p.lose(o)
		return
	case state&devsw.POLLHUP != 0:
		other = sideAbsent
	}
	size := devsw.Winsize{}
	if o.node.Ioctl(devsw.TIOCGWINSZ, &size, devsw.FNONBLOCK) != nil {
		size = devsw.Winsize{}
	}
	if s.looked(p, o, other, size) {
		s.d.configChanged()
	}
}

// looked takes note of what lookAt has seen, and tells whether the configuration space has changed
// for a guest driver that looks there. The last size that was known stays.
func (s *slot) looked(p *port, o *opened, other side, size devsw.Winsize) (changed bool) {
	d := s.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.open.Load() != o {
		return false
	}
	p.side = other
	if size == (devsw.Winsize{}) {
		return false
	}
	p.size = size
	if s.id != 0 || d.size == size {
		return false
	}
	d.size = size
	return !d.multi
}

// emergency puts out one character of emerg_wr, on the console with the lowest id. It does not need
// any ring: where none of the port runs, the device is opened for it.
func (d *Device) emergency(c byte) {
	d.mu.Lock()
	var p *port
	for _, s := range d.slots {
		if p = s.port.Load(); p != nil && p.Console {
			break
		}
	}
	if p == nil || !p.Console {
		d.mu.Unlock()
		return
	}
	p.keep([]byte{c})
	if p.life == nil {
		p.openLocked()
		p.temporary = true
	}
	d.mu.Unlock()
	p.slot.wake()
}

// keep puts output into the backlog.
func (p *port) keep(b []byte) { p.count.dropped.Add(uint64(p.backlog.add(b))) }

// flushSize is how much of a backlog is given to the driver at once, in bytes.
const flushSize = 4 << 10

// flush gives the driver what is in the backlog, by way of buf. The error is the driver's where it
// has not taken all; EAGAIN where it has none. One goroutine at a time calls it: that of the Life
// before the device is used, and the reactor from then on.
func (p *port) flush(o *opened, buf []byte) error {
	for {
		at, n := p.backlog.oldest(buf)
		if n == 0 {
			return nil
		}
		seen := o.writable.Load()
		u := devsw.NewUio(devsw.UIOWrite, buf[:n])
		err := o.node.Write(u, devsw.FNONBLOCK)
		took := n - u.Resid
		p.count.out.Add(uint64(took))
		p.backlog.drop(at + uint64(took))
		if took < n && err == nil {
			err = devsw.EAGAIN
		}
		if err != nil {
			o.fullAt = seen
			return err
		}
	}
}

// retryAfter is when a device is tried again that has answered with an error, if it does not say
// before that it is ready.
const retryAfter = time.Second

// failed takes note of an error of d_read or d_write other than EAGAIN. On the reactor.
func (o *opened) failed(q *vhostuser.Queue, err error) {
	p := o.port
	switch devsw.ToErrno(err) {
	case devsw.ENXIO, devsw.EBADF, devsw.ECANCELED:
		p.lose(o) // until the rings have been stopped and started
		return
	case devsw.EFAULT:
		q.Break(err)
		return
	}
	p.count.errs.Add(1)
	if !o.told {
		o.told = true
		p.slot.d.log(fmt.Sprintf("port %d: its device fails; it is tried again every %v", p.ID, retryAfter), err)
	}
	if o.retry != nil {
		return // what fails in the other direction must not put it off
	}
	o.retry = q.Loop().AfterFunc(retryAfter, func() {
		o.retry = nil
		o.readable.Add(1)
		o.writable.Add(1)
		wake(&p.slot.inQueue)
		wake(&p.slot.outQueue)
	})
}
