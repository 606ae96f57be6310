package virtioconsole

import (
	"errors"

	"vdev/devsw"
	"vdev/vhostuser"
)

// told is what the guest driver was told of a port.
type told struct {
	port    *port // PORT_ADD; nil: it knows of none
	console bool  // CONSOLE_PORT
	named   bool  // PORT_NAME
	open    bool  // PORT_OPEN
	size    devsw.Winsize
}

var errSmallControl = errors.New("virtio-console: a control buffer is too small for a message")

// listen takes the guest driver's control messages. A CPU of the guest spins until each is used, so
// nothing is waited for.
func (d *Device) listen(q *vhostuser.Queue) (more bool) {
	c := &d.outChain
	for range budget {
		if !q.Pop(c) {
			return false
		}
		work := c.Work()
		var b [messageSize]byte
		n, _ := c.Read(b[:]) // io.EOF where there is nothing to read
		q.Push(c, 0)
		if n < messageSize {
			d.refused.Add(1)
		} else {
			d.hear(parseMessage(b))
		}
		if work > budgetWork/budget {
			break
		}
	}
	return true
}

// hear does what a message says.
func (d *Device) hear(m Message) {
	if d.trace != nil {
		d.trace(m)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.Event == DeviceReady {
		d.forgetLocked()
		d.ready = m.Value == 1
		wake(&d.controlIn)
		return
	}
	if m.ID >= uint32(len(d.slots)) || m.Event != PortReady && m.Event != PortOpen {
		d.refused.Add(1)
		return
	}
	s := d.slots[m.ID]
	if p := s.port.Load(); p == nil || s.told.port != p {
		d.refused.Add(1) // it does not know yet that the port has gone, or never had it
		return
	}
	if m.Event == PortReady {
		s.guestReady = m.Value == 1
		return
	}
	s.guestOpen = m.Value != 0
	s.setInputLocked()
}

// tell gives the guest driver the messages that it is to have.
func (d *Device) tell(q *vhostuser.Queue) (more bool) {
	for _, s := range d.slots {
		s.lookAt()
	}
	c := &d.inChain
	for range budget {
		m, p, ok := d.toTell()
		if !ok || !q.Pop(c) {
			return false
		}
		d.message = m.append(d.message[:0], d.rowsFirst)
		if c.WritableLen() < len(d.message) {
			q.Unpop(c)
			q.Break(errSmallControl)
			return false
		}
		n, _ := c.Write(d.message) // there is room
		q.Push(c, uint32(n))
		if d.trace != nil {
			d.trace(m)
		}
		d.hasTold(m, p)
	}
	return true
}

// toTell returns the next message that the guest driver is to have, and the port it is about.
func (d *Device) toTell() (m Message, p *port, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ready || !d.multi {
		return m, nil, false
	}
	for range d.slots {
		s := d.slots[d.next]
		if m, ok := s.toTellLocked(); ok {
			return m, s.port.Load(), true
		}
		d.next = (d.next + 1) % len(d.slots)
	}
	return m, nil, false
}

// toTellLocked returns the next message about the slot's port. The order is that of QEMU, and Linux
// drops what it does not expect: it must know a port before anything is said of it, and a console
// as such before its size. A port that came after another with the same id is another one.
func (s *slot) toTellLocked() (m Message, ok bool) {
	p, t := s.port.Load(), &s.told
	m = Message{ID: s.id, Value: 1}
	switch {
	case t.port != nil && t.port != p:
		m.Event, m.Value = PortRemove, 0
	case p == nil:
		return m, false
	case t.port == nil:
		m.Event, m.Value = PortAdd, 0
	case p.Console && !t.console:
		m.Event = ConsolePort
	case p.Name != "" && !t.named:
		m.Event, m.Name = PortName, p.Name
	case p.Console && !t.open, !p.Console && p.side != sideUnknown && t.open != (p.side == sideThere):
		m.Event = PortOpen
		if t.open {
			m.Value = 0
		}
	case p.Console && s.d.sized && p.size != t.size:
		m.Event, m.Value, m.Size = Resize, 0, p.size
	default:
		return m, false
	}
	return m, true
}

// hasTold notes that the guest driver has got m, about p.
func (d *Device) hasTold(m Message, p *port) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.slots[m.ID]
	t := &s.told
	switch m.Event {
	case PortRemove:
		*t = told{}
		s.guestReady, s.guestOpen = false, false
	case PortAdd:
		t.port = p
	case ConsolePort:
		t.console = true
	case PortName:
		t.named = true
	case PortOpen:
		t.open = m.Value == 1
	case Resize:
		t.size = m.Size
		// Others have their turn, however often this window changes.
		d.next = (d.next + 1) % len(d.slots)
	}
	s.setInputLocked()
}
