package virtioconsole

import (
	"context"
	"encoding/binary"
	"testing"

	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

const (
	fuzzRing  = 16 // descriptors
	fuzzArena = 256 << 10
	fuzzOps   = 48
)

// The rings of fuzzWorld's ports: 0 is a console, and 1 is not.
const (
	fuzzIn0 = iota
	fuzzOut0
	fuzzControlIn
	fuzzControlOut
	fuzzIn1
	fuzzOut1
	fuzzRings
)

// fuzzWorld is a Device with two lines behind it and a guest's rings in front, whose reactor does
// something only in Step. After each input all of it is as it was before.
type fuzzWorld struct {
	lines    lines
	dev      *Device
	reactors *vhostuser.Reactors
	f        *vhostusertest.Frontend
	mem      *virtqtest.Mem
	rings    [fuzzRings]*vhostusertest.Ring
	arena    uint64 // guest physical
	at       uint64 // what is used of it

	midst bool // an input has begun, and has not ended as it must

	// Of one input:

	odd     bool                            // what the rings have is not what a driver makes
	buffers [fuzzRings]map[uint16]fuzzChain // by head
	out     [2][]byte                       // what the ports' devices are to have got
	in      [2][]byte                       // what the guest is to get
	got     [2][]byte                       // and has got
	ready   bool
	known   [2]fuzzPort
	guest   [2]bool // what it has said of them: open
}

// fuzzChain is a chain of the guest's.
type fuzzChain struct {
	writable []virtqtest.Seg
	room     uint32
}

// fuzzPort is what the guest was told of a port.
type fuzzPort struct {
	added, console, open bool
	name                 string
	size                 devsw.Winsize
}

func newFuzzWorld(f testing.TB) *fuzzWorld {
	w := &fuzzWorld{lines: lines{newLine(), newLine()}}
	must := func(err error) {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
	}
	table := devsw.NewTable()
	sw := w.lines.cdevsw()
	_, major, err := table.Attach("line", nil, devsw.NODEVMAJOR, sw, -1)
	must(err)
	c := Config{FS: specfs.New(table), Multiport: true, MaxPorts: 2, Ports: []Port{console(0), data(1, "name")}}
	for i := range c.Ports {
		c.Ports[i].Dev = devsw.Makedev(uint32(major), uint32(i))
	}
	w.dev, err = New(c)
	must(err)
	w.reactors, err = vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: vhostuser.ModeStepped})
	must(err)
	f.Cleanup(w.reactors.Close)
	b, err := vhostuser.New(w.dev.BackendConfig(vhostuser.Config{Reactors: w.reactors}))
	must(err)
	front, conn, err := vhostusertest.Pair()
	must(err)
	w.f = front
	ended := make(chan error, 1)
	go func() { ended <- b.ServeConn(context.Background(), conn) }()
	f.Cleanup(func() {
		front.Close()
		<-ended
		must(w.dev.WaitClosed(context.Background()))
		for _, r := range w.rings {
			r.Close()
		}
		w.mem.Close()
	})
	offered, err := front.Handshake(vhostusertest.AllProtocolFeatures)
	must(err)
	must(front.SetFeatures(offered))
	w.mem, err = virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	must(err)
	must(front.AddMemory(w.mem))
	w.arena = w.mem.Alloc(fuzzArena, 4096)
	for i := range w.rings {
		w.rings[i], err = front.NewRing(w.mem, i, fuzzRing)
		must(err)
	}
	w.start(f)
	return w
}

// start starts all rings, empty, and waits until the ports' devices are open.
func (w *fuzzWorld) start(t testing.TB) {
	t.Helper()
	for _, r := range w.rings {
		r.Renew()
		r.Failed()
		if err := r.Start(); err != nil {
			t.Fatal(err)
		}
		r.DisableCalls()
	}
	for id := range w.lines {
		for w.dev.slots[id].port.Load().open.Load() == nil {
			w.lines[id].await(t, "d_open", func() bool { return w.lines[id].opens > 0 })
		}
	}
	w.reactors.Step()
}

// restart stops all rings, and starts them.
func (w *fuzzWorld) restart(t testing.TB) {
	t.Helper()
	for _, r := range w.rings {
		if err := r.Stop(); err != nil {
			t.Fatal(err)
		}
	}
	w.start(t)
	// What was kept for a console whose ring has broken has come by now.
	for _, l := range w.lines {
		l.mu.Lock()
		l.input, l.output = nil, nil
		l.mu.Unlock()
	}
}

// fuzzBytes is the fuzzer's input. At its end it is all zeros.
type fuzzBytes []byte

func (b *fuzzBytes) byte() byte {
	if len(*b) == 0 {
		return 0
	}
	v := (*b)[0]
	*b = (*b)[1:]
	return v
}

// length is a number of bytes: mostly few.
func (b *fuzzBytes) length() int {
	v := int(b.byte())
	if v >= 0xe0 {
		return (v & 0x1f) << 8
	}
	return v & 0x1f
}

// take takes n bytes of the arena, 0 where there is no room.
func (w *fuzzWorld) take(n int) (s virtqtest.Seg, ok bool) {
	if w.at+uint64(n)+1 > fuzzArena {
		return s, false
	}
	s = virtqtest.Seg{Addr: w.arena + w.at, Len: uint32(n)}
	w.at += uint64(n) + 1
	return s, true
}

// chain adds a chain, as the input says, and returns its readable bytes. There is none where the
// ring has no room. Bits of shape: two for the readable buffers' number, two for the writable
// ones', one for an indirect table.
func (w *fuzzWorld) chain(ring int, shape byte, in *fuzzBytes, content func(b []byte)) (text []byte) {
	var segs [2][]virtqtest.Seg
	c := fuzzChain{}
	for dir, n := range []byte{shape & 3, shape >> 2 & 3} {
		for range n {
			s, ok := w.take(in.length())
			if !ok {
				return nil
			}
			segs[dir] = append(segs[dir], s)
			if dir == 0 {
				b := w.mem.Bytes(s.Addr, uint64(s.Len))
				content(b)
				text = append(text, b...)
			} else {
				c.room += s.Len
			}
		}
	}
	if len(segs[0])+len(segs[1]) == 0 {
		return nil
	}
	c.writable = segs[1]
	r := w.rings[ring]
	var head uint16
	var ok bool
	if shape&0x10 != 0 {
		head, ok = r.AddIndirect(segs[0], segs[1])
	} else {
		head, ok = r.Add(segs[0], segs[1])
	}
	if !ok {
		return nil
	}
	w.buffers[ring][head] = c
	return text
}

// step has the device do what there is to do, and looks at what it has done.
func (w *fuzzWorld) step(t testing.TB) {
	t.Helper()
	for _, r := range w.rings {
		if err := r.Notify(); err != nil {
			t.Fatal(err)
		}
	}
	w.reactors.Step()
	if w.odd {
		return
	}
	for i, r := range w.rings {
		for {
			head, n, ok := r.Used()
			if !ok {
				break
			}
			c := w.buffers[i][head]
			delete(w.buffers[i], head)
			if n > c.room {
				t.Fatalf("ring %d: %d bytes in room for %d", i, n, c.room)
			}
			var b []byte
			for _, s := range c.writable {
				b = append(b, w.mem.Bytes(s.Addr, uint64(s.Len))...)
			}
			b = b[:n]
			switch i {
			case fuzzIn0, fuzzIn1:
				if n == 0 && c.room > 0 {
					t.Fatalf("ring %d: a buffer without a byte", i)
				}
				w.got[i/fuzzIn1] = append(w.got[i/fuzzIn1], b...)
				if n > 0 && (!w.guest[i/fuzzIn1] || !w.known[i/fuzzIn1].added) {
					t.Fatalf("ring %d: input for a port that is closed", i)
				}
			case fuzzControlIn:
				w.hear(t, b)
			default:
				if n != 0 {
					t.Fatalf("ring %d: %d bytes were written", i, n)
				}
			}
		}
	}
	for _, i := range []int{fuzzOut0, fuzzControlOut} {
		if n := w.rings[i].InFlight(); n != 0 {
			t.Fatalf("ring %d: %d descriptors were not used", i, n)
		}
	}
}

// hear checks a control message of the device's, as Linux would take it.
func (w *fuzzWorld) hear(t testing.TB, b []byte) {
	t.Helper()
	if len(b) < messageSize {
		t.Fatalf("a control message of %d bytes", len(b))
	}
	m := parseMessage([messageSize]byte(b))
	rest := b[messageSize:]
	if m.ID > 1 {
		t.Fatalf("%v", m)
	}
	p := &w.known[m.ID]
	if p.added == (m.Event == PortAdd) {
		t.Fatalf("%v: the port was added: %v", m, p.added)
	}
	switch m.Event {
	case PortAdd:
		p.added = true
	case ConsolePort:
		if m.ID != 0 || p.console {
			t.Fatalf("%v", m)
		}
		p.console = true
	case PortOpen:
		if p.open == (m.Value == 1) || p.open && p.console {
			t.Fatalf("%v: it was so before", m)
		}
		p.open = m.Value == 1
	case PortName:
		if p.name != "" || m.ID != 1 {
			t.Fatalf("%v: a second name", m)
		}
		p.name = string(rest)
	case Resize:
		size := devsw.Winsize{Col: binary.LittleEndian.Uint16(rest), Row: binary.LittleEndian.Uint16(rest[2:])}
		if !p.console || size == p.size {
			t.Fatalf("%v: %+v", m, p)
		}
		p.size = size
	default:
		t.Fatalf("%v", m)
	}
}

// say sends a control message, whatever it is.
func (w *fuzzWorld) say(t testing.TB, id uint32, event ControlEvent, value uint16) {
	t.Helper()
	if w.rings[fuzzControlOut].Room() == 0 {
		if w.step(t); w.odd {
			return // it may be broken
		}
	}
	s, ok := w.take(messageSize)
	if !ok {
		w.at = 0 // nothing is in flight there
		s, _ = w.take(messageSize)
	}
	m := Message{ID: id, Event: event, Value: value}.append(nil, false)
	copy(w.mem.Bytes(s.Addr, messageSize), m)
	head, _ := w.rings[fuzzControlOut].Add([]virtqtest.Seg{s}, nil)
	w.buffers[fuzzControlOut][head] = fuzzChain{}
	w.said(m)
}

// said follows a control message of the guest's.
func (w *fuzzWorld) said(b []byte) {
	if len(b) < messageSize {
		return
	}
	switch m := parseMessage([messageSize]byte(b)); {
	case m.Event == DeviceReady:
		w.ready, w.known, w.guest = m.Value == 1, [2]fuzzPort{}, [2]bool{}
	case m.Event == PortOpen && m.ID < 2 && w.known[m.ID].added:
		w.guest[m.ID] = m.Value != 0
	}
}

// run runs one input.
func (w *fuzzWorld) run(t testing.TB, in fuzzBytes) {
	if w.midst {
		w.restart(t) // the one before has failed
	}
	w.midst = true
	w.odd, w.at = false, 0
	for i := range w.buffers {
		w.buffers[i] = make(map[uint16]fuzzChain)
	}
	w.out, w.in, w.got = [2][]byte{}, [2][]byte{}, [2][]byte{}
	w.say(t, 0, DeviceReady, 1)
	w.step(t)
	next := byte(0) // of what is carried
	count := func(b []byte) {
		for i := range b {
			next++
			b[i] = next
		}
	}
	none := func([]byte) {}
	for n := 0; len(in) > 0 && n < fuzzOps; n++ {
		op, shape := in.byte(), in.byte()
		switch op & 0xf {
		case 0, 1:
			id := int(op & 1)
			text := w.chain([]int{fuzzOut0, fuzzOut1}[id], shape, &in, count)
			w.out[id] = append(w.out[id], text...)
		case 2, 3:
			w.chain([]int{fuzzIn0, fuzzIn1}[op&1], shape, &in, none)
		case 4:
			w.step(t) // what it knows of ports is as of now
			w.say(t, uint32(shape&3), ControlEvent(in.byte()&7), uint16(in.byte()&1))
			w.step(t)
		case 5:
			w.step(t)
			raw := w.chain(fuzzControlOut, shape, &in, func(b []byte) {
				for i := range b {
					b[i] = in.byte()
				}
			})
			w.said(raw)
			w.step(t)
		case 6:
			if s, ok := w.take(64); ok {
				if head, ok := w.rings[fuzzControlIn].Add(nil, []virtqtest.Seg{s}); ok {
					w.buffers[fuzzControlIn][head] = fuzzChain{[]virtqtest.Seg{s}, 64}
				}
			}
		case 7, 8:
			id := int(op & 0xf >> 3)
			b := make([]byte, in.length())
			count(b)
			w.in[id] = append(w.in[id], b...)
			w.lines[id].say(string(b))
		case 9:
			w.lines[1].do(func() { w.lines[1].room = in.length() })
		case 10:
			w.lines[0].do(func() { w.lines[0].room = in.length() })
		case 11:
			w.lines[1].do(func() { w.lines[1].hungUp = shape&1 != 0 })
		case 12:
			w.lines[0].do(func() { w.lines[0].size = devsw.Winsize{Row: uint16(shape) + 1, Col: uint16(in.byte())} })
		case 13:
			w.lines[shape&1].do(func() { w.lines[shape&1].piece = in.length() })
		case 14:
			// Anything at all in a descriptor, and in the available ring.
			w.odd = true
			r := w.rings[int(shape)%fuzzRings]
			r.SetDesc(int(in.byte())%fuzzRing, virtqtest.Desc{
				Addr: w.arena + uint64(in.byte())<<in.byte()&0x3f, Len: uint32(in.byte()) << (in.byte() & 0x1f),
				Flags: uint16(in.byte()), Next: uint16(in.byte()),
			})
			r.Offer(uint16(in.byte()) % (fuzzRing + 1))
		default:
			w.step(t)
		}
		if op&0x80 != 0 {
			w.step(t)
		}
	}
	w.step(t)
	w.settle(t)
	w.midst = false
}

// settle has all that is under way end, and compares it with what was to be.
func (w *fuzzWorld) settle(t testing.TB) {
	t.Helper()
	for id, l := range w.lines {
		l.do(func() { l.room, l.piece = -1, 0 })
		if id == 1 {
			l.do(func() { l.hungUp = false })
		}
	}
	w.step(t)
	if w.odd {
		w.restart(t)
		return
	}
	// The guest learns everything, and opens both ports.
	if !w.ready {
		w.say(t, 0, DeviceReady, 1)
		w.step(t)
	}
	w.give(t, fuzzControlIn, 64, func() bool {
		l := w.lines[0]
		return w.known[0].open && w.known[1].open && w.known[1].name == "name" && w.known[0].size == l.size
	})
	for id := range uint32(2) {
		w.say(t, id, PortOpen, 1)
	}
	w.step(t)
	for id, ring := range []int{fuzzIn0, fuzzIn1} {
		w.give(t, ring, 500, func() bool { return len(w.got[id]) >= len(w.in[id]) })
		sameBytes(t, "input", w.got[id], w.in[id])
	}
	for id, l := range w.lines {
		sameBytes(t, "output", l.output, w.out[id])
		l.output = nil
	}
	if n := w.rings[fuzzOut1].InFlight(); n != 0 {
		t.Fatalf("%d descriptors of the data port were not used", n)
	}
	// What is left in the rings to the guest is used, too.
	l := w.lines[0]
	for w.rings[fuzzControlIn].InFlight() > 0 {
		l.do(func() { l.size.Row = l.size.Row%1000 + 1 })
		w.step(t)
	}
	for id, ring := range []int{fuzzIn0, fuzzIn1} {
		for w.rings[ring].InFlight() > 0 {
			w.lines[id].say(" ")
			w.step(t)
		}
		if len(w.lines[id].input) > 0 {
			t.Fatal("input is left")
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// give gives the device buffers until done.
func (w *fuzzWorld) give(t testing.TB, ring, size int, done func() bool) {
	t.Helper()
	for n := 0; !done(); n++ {
		if n == 1000 {
			t.Fatalf("ring %d: it does not come: %+v", ring, w.known)
		}
		s, ok := w.take(size)
		if !ok {
			w.at = 0
			s, _ = w.take(size)
		}
		if head, ok := w.rings[ring].Add(nil, []virtqtest.Seg{s}); ok {
			w.buffers[ring][head] = fuzzChain{[]virtqtest.Seg{s}, s.Len}
		}
		w.step(t)
	}
}

// FuzzConsole has a guest do anything with the rings of a console and of a port: no byte is lost or
// doubled, a console's and the control output is used at once, and the guest is told nothing that
// Linux would not take. Where a ring's content is not a driver's, nothing else may happen than that
// it breaks.
func FuzzConsole(f *testing.F) {
	// Output, input of a console, input of a port, back-pressure; then what is odd.
	f.Add([]byte{0x80, 0x01, 0x05, 0x81, 0x15, 0x05, 0x03})
	f.Add([]byte{0x86, 0, 0x86, 0, 0x86, 0, 0x84, 0, 6, 1, 0x87, 0, 5,
		0x82, 4, 3, 0x82, 8, 1, 1, 0x8f, 0})
	f.Add([]byte{0x86, 0, 0x86, 0, 0x86, 0, 0x86, 0, 0x86, 0, 0x86, 0,
		0x84, 1, 6, 1, 0x88, 0, 0x1f, 0x83, 4, 7, 0x83, 9, 2, 9, 3, 0x84, 1, 6, 0, 0x88, 0, 9})
	f.Add([]byte{0x89, 0, 3, 0x81, 0x03, 4, 5, 6, 0x89, 0, 7, 0x8a, 0, 0, 0x80, 1, 9, 0x8a, 0, 4})
	f.Add([]byte{0x85, 0x02, 7, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 1, 0, 0x85, 0x11, 3, 0x84, 3, 5, 1})
	f.Add([]byte{0x8b, 1, 0x86, 0, 0x8c, 9, 9, 0x86, 0, 0x8b, 0, 0x86, 0, 0x86, 0, 0x8c, 3, 3})
	f.Add([]byte{0x8e, 1, 0, 0, 0, 9, 0, 1, 0, 0})
	f.Add([]byte{0x8e, 3, 0, 1, 0, 9, 20, 4, 0, 16})
	f.Add([]byte{0x82, 1, 7, 0x82, 4, 0, 0x82, 0xc, 0, 1, 0, 0x87, 0, 3, 0x80, 0xd, 3, 4, 5, 6})
	w := newFuzzWorld(f)
	f.Fuzz(func(t *testing.T, in []byte) { w.run(t, in) })
}
