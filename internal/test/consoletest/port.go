package consoletest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// Errors of a Port's methods, as a guest's program gets them.
var (
	ErrRemoved = errors.New("the port was removed") // ENODEV
	ErrBusy    = errors.New("the port is open")     // EBUSY
)

// Port is a port of a Guest. It is an io.Reader and an io.Writer for what a program of the guest
// does with it. A port that was removed is another one when it is added anew.
type Port struct {
	ID       uint32
	Name     string // the first that was told
	Console  bool
	HostOpen bool // the device's side is open; without MULTIPORT nobody tells
	Opened   bool // a program has it open
	// Cols and Rows are what was told last, in the order of the specification. Sizes counts how
	// often.
	Cols, Rows uint16
	Sizes      int
	Discarded  int64 // bytes that came while the port was closed
	// Empty counts the buffers that came back without a byte, which a program takes for the end of
	// file. A device gives none back so.
	Empty int

	g       *Guest
	in, out *queue
	removed bool

	// Input that was not read: a queue of count buffers from first on.
	unread       []input
	first, count int
}

// input is a receive buffer that came back.
type input struct {
	buffer
	from, to int // the bytes of it that were not read
}

// addPort makes a port.
func (g *Guest) addPort(id uint32) *Port {
	in, out := ringsOf(id)
	p := &Port{ID: id, g: g, in: g.queues[in], out: g.queues[out], unread: make([]input, g.cfg.RingSize)}
	g.ports[id] = p
	return p
}

// drop makes an end of a port. Its rings have stopped, or its unread buffers are posted again.
func (g *Guest) drop(p *Port) {
	for ; p.count > 0; p.shift() {
		g.give(p.unread[p.first].buffer)
	}
	p.removed, p.Opened = true, false
	g.ports[p.ID] = nil
}

// bufferOf is how many bytes a receive buffer of a ring has.
func (g *Guest) bufferOf(q *queue) int {
	if g.Multiport() && q.Index == controlIn {
		return controlBuffer
	}
	return g.cfg.Buffer
}

// post gives the device a receive buffer, and kicks, as Linux does for each.
func (g *Guest) post(q *queue, b buffer) error {
	seg := [1]virtqtest.Seg{{Addr: b.addr, Len: uint32(g.bufferOf(q))}}
	head, ok := q.Add(nil, seg[:])
	if !ok {
		panic("consoletest: more receive buffers than descriptors")
	}
	q.held[head] = b
	return q.Notify()
}

// fill posts as many receive buffers as there is room for.
func (g *Guest) fill(q *queue) error {
	for q.Room() > 0 {
		if err := g.post(q, g.take(g.bufferOf(q))); err != nil {
			return err
		}
	}
	return nil
}

// Send sends a control message, and returns when it was used.
func (g *Guest) Send(m Message) error {
	var b [64]byte
	return g.SendBytes(m.Append(b[:0]))
}

// SendBytes is Send with any bytes.
func (g *Guest) SendBytes(b []byte) error {
	q := g.queues[controlOut]
	head, ok := g.add(q, b, Shape{})
	if !ok {
		return errors.New("the control ring is full")
	}
	if err := q.Notify(); err != nil {
		return err
	}
	return g.spin("the use of a control message", q, head)
}

// control handles control messages, as Linux does.
func (g *Guest) control(q *queue) error {
	for {
		head, n, ok := q.Used()
		if !ok {
			return nil
		}
		b := q.held[head]
		q.held[head] = buffer{}
		if n < messageSize || n > controlBuffer {
			return fmt.Errorf("a control message of %d bytes", n)
		}
		m := ParseMessage(b.bytes[:n])
		g.Received = append(g.Received, m)
		if err := g.obey(m); err != nil {
			return fmt.Errorf("%v: %w", m, err)
		}
		if err := g.post(q, b); err != nil {
			return err
		}
	}
}

// obey does what a control message says. What is about a port that is not there is dropped.
func (g *Guest) obey(m Message) error {
	p := g.Port(m.ID)
	if p == nil {
		if m.Event != PortAdd || m.ID >= g.MaxPorts {
			return nil
		}
		if err := g.fill(g.addPort(m.ID).in); err != nil {
			return err
		}
		return g.Send(Message{ID: m.ID, Event: PortReady, Value: 1})
	}
	switch m.Event {
	case PortAdd:
		return g.Send(Message{ID: m.ID, Event: PortReady, Value: 1})
	case PortRemove:
		// The buffers stay the device's.
		if err := p.discard(); err != nil {
			return err
		}
		g.drop(p)
	case ConsolePort:
		if m.Value == 0 || p.Console {
			return nil
		}
		p.Console = true
		return g.Send(Message{ID: m.ID, Event: PortOpen, Value: 1})
	case Resize:
		if len(m.Rest) < 4 {
			return errors.New("a size is missing")
		}
		if p.Console && g.Features()&FeatureSize != 0 {
			p.Cols, p.Rows = le16(m.Rest), le16(m.Rest[2:])
			p.Sizes++
		}
	case PortOpen:
		p.HostOpen = m.Value != 0
	case PortName:
		if p.Name == "" {
			p.Name = strings.TrimRight(m.Rest, "\x00")
		}
	}
	return nil
}

// input takes what came for p, which is nil where nobody is to have it.
func (g *Guest) input(q *queue, p *Port) error {
	for {
		head, n, ok := q.Used()
		if !ok {
			return nil
		}
		b := q.held[head]
		q.held[head] = buffer{}
		switch {
		case b.bytes == nil:
			continue // a test's own
		case int(n) > g.cfg.Buffer:
			return fmt.Errorf("ring %d: %d bytes in a buffer of %d", q.Index, n, g.cfg.Buffer)
		case p == nil:
			g.give(b)
			continue
		case n > 0 && p.keeps():
			p.unread[(p.first+p.count)%len(p.unread)] = input{b, 0, int(n)}
			p.count++
			continue
		}
		if n == 0 {
			p.Empty++
		}
		p.Discarded += int64(n)
		if err := g.post(q, b); err != nil {
			return err
		}
	}
}

// keeps tells whether input is kept for a program.
func (p *Port) keeps() bool { return p.Opened || p.Console && !p.g.cfg.Forgetful }

// shift removes the first unread buffer.
func (p *Port) shift() {
	p.unread[p.first] = input{}
	p.first = (p.first + 1) % len(p.unread)
	p.count--
}

// discard gives the unread buffers back to the device.
func (p *Port) discard() error {
	for p.count > 0 {
		b := p.unread[p.first].buffer
		p.shift()
		if err := p.g.post(p.in, b); err != nil {
			return err
		}
	}
	return nil
}

// Open has a program open the port.
func (p *Port) Open() error {
	switch {
	case p.removed:
		return ErrRemoved
	case p.Opened:
		return ErrBusy
	}
	p.Opened = true
	return p.tell(1)
}

// Close has the program close the port. What it has not read is thrown away, but on a console.
func (p *Port) Close() error {
	if p.removed || !p.Opened {
		return nil
	}
	if err := p.tell(0); err != nil {
		return err
	}
	p.Opened = false
	if p.keeps() {
		return nil
	}
	return p.discard()
}

// tell tells the device whether the port is open. Nobody tells it of a console.
func (p *Port) tell(open uint16) error {
	if !p.g.Multiport() || p.Console {
		return nil
	}
	return p.g.Send(Message{ID: p.ID, Event: PortOpen, Value: open})
}

// OutRing returns the index of the ring for output.
func (p *Port) OutRing() int { return p.out.Index }

// Removed tells whether there is no such port any more.
func (p *Port) Removed() bool { return p.removed }

// Buffered returns how many receive buffers have something to read.
func (p *Port) Buffered() int { return p.count }

// Peek returns what is left of the first receive buffer, in guest memory; nothing where none came.
// Skip ends it.
func (p *Port) Peek() []byte {
	if p.count == 0 {
		return nil
	}
	b := &p.unread[p.first]
	return b.bytes[b.from:b.to]
}

// Skip says that n bytes of what Peek returns were read. The buffer goes back with the last one.
func (p *Port) Skip(n int) error {
	b := &p.unread[p.first]
	if b.from += n; b.from < b.to {
		return nil
	}
	again := b.buffer
	p.shift()
	return p.g.post(p.in, again)
}

// Read waits for input, and reads at most what one buffer has. io.EOF: the device's side is closed,
// and all was read.
func (p *Port) Read(b []byte) (int, error) {
	closed := func() bool { return p.g.Multiport() && !p.Console && !p.HostOpen }
	if err := p.g.Wait("input", func() bool { return p.count > 0 || p.removed || closed() }); err != nil {
		return 0, err
	}
	switch {
	case p.removed:
		return 0, ErrRemoved
	case p.count == 0:
		return 0, io.EOF
	}
	n := copy(b, p.Peek())
	return n, p.Skip(n)
}

// Shape says how a transmit chain is made.
type Shape struct {
	Piece    int  // bytes of a descriptor; 0: all in one
	Indirect bool // the descriptors are in a table
}

// Spliced is what splice(2) of a pipe makes.
var Spliced = Shape{Piece: 4096, Indirect: true}

// add makes a chain of data, which is copied, and offers it. It returns false, having done nothing,
// where there is no room. The pieces lie in memory in reverse order, so that a device which takes
// them for one is found out.
func (g *Guest) add(q *queue, data []byte, s Shape) (head uint16, ok bool) {
	piece := s.Piece
	if piece == 0 {
		piece = max(len(data), 1)
	}
	n := max((len(data)+piece-1)/piece, 1)
	if need := n; s.Indirect && q.Room() == 0 || !s.Indirect && q.Room() < need {
		return 0, false
	}
	b := g.take(n * piece)
	g.segs = g.segs[:0]
	for i := range n {
		at := (n - 1 - i) * piece
		k := copy(b.bytes[at:at+piece], data)
		data = data[k:]
		g.segs = append(g.segs, virtqtest.Seg{Addr: b.addr + uint64(at), Len: uint32(k)})
	}
	if s.Indirect {
		head, _ = q.AddIndirect(g.segs, nil)
	} else {
		head, _ = q.Add(g.segs, nil)
	}
	q.held[head] = b
	return head, true
}

// Offer transmits a chain of data, which is copied, if there is room in the ring, and tells whether
// there was.
func (p *Port) Offer(data []byte, s Shape) (bool, error) {
	if s.Indirect && p.g.Features()&virtq.FeatureIndirectDesc == 0 {
		return false, errors.New("indirect tables were not negotiated")
	}
	if _, ok := p.g.add(p.out, data, s); !ok {
		return false, nil
	}
	return true, p.out.Notify()
}

// Writable tells whether a program may write: a data port waits for the device's side.
func (p *Port) Writable() bool { return p.HostOpen || p.Console || !p.g.Multiport() }

// Transmit waits until a program may write and there is room, and transmits a chain of data, which
// is copied. It does not wait for its use.
func (p *Port) Transmit(data []byte, s Shape) error {
	var err error
	done := false
	waited := p.g.Wait("room to transmit", func() bool {
		if p.removed {
			err = ErrRemoved
		} else if p.Writable() {
			done, err = p.Offer(data, s)
		}
		return done || err != nil
	})
	return errors.Join(waited, err)
}

// Write transmits b as a program's write(2) does: a chain of one descriptor for each Config.Chunk
// bytes. It waits for room, and not for their use.
func (p *Port) Write(b []byte) (n int, err error) {
	for n < len(b) {
		k := min(len(b)-n, p.g.cfg.Chunk)
		if err := p.Transmit(b[n:n+k], Shape{}); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

// Print transmits b as the kernel prints to a console: a newline is two characters, a chain has at
// most 16, and the next one waits until the one before was used.
func (p *Port) Print(b []byte) error {
	b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	for len(b) > 0 {
		k := min(len(b), 16)
		head, ok := p.g.add(p.out, b[:k], Shape{})
		if !ok {
			return errors.New("the console's ring is full")
		}
		if err := p.out.Notify(); err != nil {
			return err
		}
		if err := p.g.spin("the use of what the kernel prints", p.out, head); err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}

// Flush waits until all that was transmitted was used.
func (p *Port) Flush() error {
	return p.g.Wait("the use of what was transmitted", func() bool { return p.removed || p.out.InFlight() == 0 })
}
