package virtioconsole

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/consoletest"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// bytesAt makes a buffer in the guest's memory with b in it.
func bytesAt(mem *virtqtest.Mem, b []byte) []virtqtest.Seg {
	s := segs(mem, len(b))
	copy(mem.Bytes(s[0].Addr, uint64(len(b))), b)
	return s
}

// TestControlMessagesThatSayNothingSensibleAreUsedAndCounted: a CPU of the guest spins until they
// are.
func TestControlMessagesThatSayNothingSensibleAreUsedAndCounted(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.status(0, "open", func(p PortStatus) bool { return p.GuestOpen })
	before := r.dev.Status()
	refused := uint64(0)
	for _, m := range []consoletest.Message{
		{ID: 2, Event: consoletest.PortOpen, Value: 1},  // there is none
		{ID: 3, Event: consoletest.PortReady, Value: 1}, // likewise
		{ID: 4, Event: consoletest.PortOpen, Value: 1},  // there cannot be one
		{ID: 1 << 31, Event: consoletest.PortOpen, Value: 1},
		{ID: consoletest.NoPort, Event: consoletest.PortOpen, Value: 1},
		{ID: 1 + 1<<16, Event: consoletest.PortOpen, Value: 1},
		{ID: 1, Event: consoletest.PortAdd},
		{ID: 1, Event: consoletest.PortRemove},
		{ID: 0, Event: consoletest.ConsolePort, Value: 1},
		{ID: 0, Event: consoletest.Resize, Rest: "\x01\x00\x01\x00"},
		{ID: 0, Event: consoletest.PortName, Rest: "mine"},
		{ID: 0, Event: 8, Value: 1},
		{ID: 1, Event: 0xffff, Value: 0xffff},
	} {
		r.must(r.g.Send(m))
		refused++
	}
	for n := range 8 {
		r.must(r.g.SendBytes(make([]byte, n)))
		refused++
	}
	ring, mem := r.g.Ring(3), r.g.Memory()
	for _, c := range [][2][]virtqtest.Seg{
		{nil, segs(mem, 8)},
		{segs(mem, 3), segs(mem, 100)},
		{segs(mem, 0, 0), nil},
		{segs(mem, 1, 2, 4), nil},
	} {
		_, _ = ring.Add(c[0], c[1])
		r.must(ring.Notify())
		r.wait("its use", func() bool { return ring.InFlight() == 0 })
		refused++
	}
	after := r.dev.Status()
	if n := after.Refused - before.Refused; n != refused {
		t.Errorf("%d were refused, want %d", n, refused)
	}
	after.Refused = before.Refused
	r.want("status", fmt.Sprint(after), fmt.Sprint(before))

	// One that is longer than it need be, in pieces, with room behind it, says what it says.
	m := consoletest.Message{ID: 1, Event: consoletest.PortOpen, Value: 1}.Append(nil)
	c := append(bytesAt(mem, m[:3]), bytesAt(mem, m[3:])...)
	_, _ = ring.Add(append(c, segs(mem, 5000)...), segs(mem, 9))
	r.must(ring.Notify())
	r.wait("its use", func() bool { return ring.InFlight() == 0 })
	r.status(1, "open", func(p PortStatus) bool { return p.GuestOpen })
}

// TestAFloodOfControlMessagesLeavesNothingBehind: nor does one of changes to be told.
func TestAFloodOfControlMessagesLeavesNothingBehind(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	l := r.lines[0]
	l.do(func() { l.size = devsw.Winsize{Row: 1, Col: 2} })
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	for i := range 3000 {
		r.must(r.g.Send(consoletest.Message{ID: uint32(i % 2), Event: consoletest.PortOpen, Value: uint16(i)}))
		if i%10 == 0 {
			r.must(r.g.Send(consoletest.Message{Event: consoletest.DeviceReady, Value: 1}))
		}
		if i%7 == 0 {
			l.do(func() { l.size.Row++ })
		}
	}
	told := func() bool {
		r.dev.mu.Lock()
		defer r.dev.mu.Unlock()
		return r.dev.slots[1].told.open
	}
	r.wait("the end of it", told)
	r.lines[1].do(func() { r.lines[1].hungUp = true })
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Rows == 1+3000/7+1 })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return !p.HostOpen })
	r.lines[1].do(func() { r.lines[1].hungUp = false })
	r.wait("the port", func() bool { return p.HostOpen })
	r.write(p, "it works")
	r.lines[1].awaitOutput(t, "it works")
}

// TestAControlBufferThatIsTooSmallBreaksItsRingAlone: half a message would be misread.
func TestAControlBufferThatIsTooSmallBreaksItsRingAlone(t *testing.T) {
	for _, size := range []int{0, 4, 7} {
		r := newRig(t, several(console(0)))
		rings, mem := r.start(1, 2, 3), r.g.Memory()
		rings[1].Add(nil, segs(mem, size))
		r.must(rings[1].Notify())
		say := func(m consoletest.Message) {
			_, err := rings[2].Do(bytesAt(mem, m.Append(nil)), nil)
			r.must(err)
		}
		say(consoletest.Message{Event: consoletest.DeviceReady, Value: 1})
		r.must(sys.WaitReadable(rings[1].ErrFD(), vhostusertest.Timeout))
		say(consoletest.Message{Event: consoletest.PortReady, Value: 1})
		_, err := rings[0].Do(bytesAt(mem, []byte("out")), nil)
		r.must(err)
		r.lines[0].awaitOutput(t, "out")
	}
}

// TestRingsOfNoPortAreUsedUpOrBroken: what is not there needs no device.
func TestRingsOfNoPortAreUsedUpOrBroken(t *testing.T) {
	r := newRig(t, several(console(1)))
	r.must(r.g.Bind())
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	mem := r.g.Memory()
	for _, i := range []int{1, 7, 9} {
		ring := r.g.Ring(i)
		for range 10 {
			_, _ = ring.Add(segs(mem, 1<<16), nil)
		}
		_, _ = ring.Add(segs(mem, 5), segs(mem, 5))
		r.must(ring.Notify())
		r.wait("use", func() bool { return ring.InFlight() == 0 })
	}
	for _, i := range []int{0, 6, 8} {
		ring := r.g.Ring(i)
		_, _ = ring.Add(nil, segs(mem, 100))
		r.must(ring.Notify())
	}
	r.lines[1].say("x")
	r.readString(r.g.Port(1), "x")
	for _, i := range []int{0, 6, 8} {
		if r.g.Ring(i).InFlight() != 1 {
			t.Errorf("ring %d: its buffer was used", i)
		}
	}
	// Without MULTIPORT there are two rings, whatever the front-end starts.
	r.must(r.g.Unbind())
	f := r.g.Frontend()
	r.must(f.SetFeatures(f.Features() &^ consoletest.FeatureMultiport))
	ring, err := f.NewRing(mem, 2, 8)
	r.must(err)
	defer ring.Close()
	r.must(ring.Start())
	if !ring.Failed() {
		t.Error("ring 2 runs")
	}
}

// TestALongChainIsTakenInTurns: gigabytes of the same memory, on a console, hold up nobody.
func TestALongChainIsTakenInTurns(t *testing.T) {
	r := newRig(t, several(console(0), console(1)), func(c *setup) { c.guest.Memory = 16 << 20 })
	for id := range 2 {
		r.lines[id].do(func() { r.lines[id].discard = true })
	}
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	ring, mem := r.g.Ring(1), r.g.Memory()
	big := segs(mem, 4<<20)
	var chain []virtqtest.Seg
	for range 1023 {
		chain = append(chain, big...)
	}
	if _, ok := ring.AddIndirect(chain, nil); !ok {
		t.Fatal("no room")
	}
	r.must(ring.Notify())
	r.write(p, "x")
	r.must(p.Flush())
	first := ring.InFlight() == 1
	r.wait("use", func() bool { return ring.InFlight() == 0 })
	r.status(0, "all", func(p PortStatus) bool { return p.Out == 1023*4<<20 })
	r.lines[0].mu.Lock()
	defer r.lines[0].mu.Unlock()
	if n := r.lines[0].writes; n < 1023*4<<20/budgetBytes {
		t.Errorf("%d calls of d_write", n)
	}
	t.Logf("the other console was first: %v", first)
}

// TestMemoryThatIsTakenAwayBreaksTheRing: in the midst of d_read and d_write, whose locks are let
// go.
func TestMemoryThatIsTakenAwayBreaksTheRing(t *testing.T) {
	for _, out := range []bool{false, true} {
		r := newRig(t, several(data(1, "a")), func(c *setup) { c.guest.RingSize = 4 })
		l := r.lines[1]
		r.must(r.g.Bind())
		p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
		r.must(p.Open())
		// A region of its own, which then shrinks.
		other, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 20})
		r.must(err)
		defer other.Close()
		f := r.g.Frontend()
		region := other.Regions()[0]
		r.must(f.AddMemReg(vhostuser.MemoryRegion{GuestPhys: region.GuestPhys, Size: region.Size, UserAddr: 1 << 45}, other.FD()))
		gone := []virtqtest.Seg{{Addr: 1 << 40, Len: 1 << 20}}
		r.must(syscall.Ftruncate(other.FD(), 0))
		if out {
			ring := r.g.Ring(5)
			_, _ = ring.Add(gone, nil)
			r.must(ring.Notify())
		} else {
			// The guest's own buffers come first.
			l.say(string(make([]byte, 4*4096)))
			r.wait("input", func() bool { return p.Buffered() == 4 })
			ring := r.g.Ring(4)
			// It is one of several that the driver has at that time.
			_, _ = ring.Add(nil, segs(r.g.Memory(), 4))
			_, _ = ring.Add(nil, gone)
			r.must(ring.Notify())
			l.say("and more")
		}
		<-r.ended
		r.ended <- nil
		r.must(r.dev.WaitClosed(context.Background()))
		l.do(func() {}) // the driver has let its lock go
		for i, c := range r.dev.slots[1].in.chains {
			if c.InFlight() {
				t.Errorf("chain %d is in flight", i)
			}
		}
	}
}

func TestAllRingsMustBeOnOneReactor(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	r.hangUp()
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Reactors: 2})
	r.must(err)
	t.Cleanup(reactors.Close)
	t.Cleanup(r.hangUp)
	cfg := r.dev.BackendConfig(vhostuser.Config{Reactors: reactors})
	cfg.OneReactor = false
	var broken []string
	cfg.Trace = func(e vhostuser.Event) {
		if e.Kind == vhostuser.EventBreak {
			r.mu.Lock()
			defer r.mu.Unlock()
			broken = append(broken, e.String())
		}
	}
	r.b, err = vhostuser.New(cfg)
	r.must(err)
	r.g, err = consoletest.New(r.connect(), consoletest.Linux())
	r.must(err)
	_ = r.g.Bind()
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := strings.Join(broken, "\n"); !strings.Contains(s, errManyReactors.Error()) {
		t.Errorf("breaks: %s", s)
	}
}

func TestTheConfigurationSpaceIsAsTheSpecificationHasIt(t *testing.T) {
	r := newRig(t, several(console(0)), func(c *setup) { c.MaxPorts = 31 })
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	f := r.g.Frontend()
	n, err := f.GetQueueNum()
	r.must(err)
	if n != 64 {
		t.Errorf("%d queues for 31 ports, Linux wants 64", n)
	}
	if f.ProtocolFeatures()&vhostuser.ProtocolInflightSHMFD != 0 {
		t.Error("an in-flight region is offered")
	}
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Cols == 100 })
	b, err := f.GetConfig(0, 12)
	r.must(err)
	want := binary.LittleEndian.AppendUint16(nil, 100)
	want = binary.LittleEndian.AppendUint16(want, 40)
	want = binary.LittleEndian.AppendUint32(want, 31)
	want = binary.LittleEndian.AppendUint32(want, 0)
	r.want("configuration", fmt.Sprint(b), fmt.Sprint(want))
}

// TestChainsThatComeBackKeepNoMemory: each of those that one d_read gets may be a long one.
func TestChainsThatComeBackKeepNoMemory(t *testing.T) {
	r := newRig(t, single)
	l, s, in, mem := r.lines[0], r.dev.slots[0], r.start(0)[0], r.g.Memory()
	r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen })
	one := segs(mem, 1)
	long := slices.Repeat(one, 3000)
	for n := 10; n > 0; n-- {
		s.inQueue.Load().Do(func() { s.in.worth = gatherChains })
		for range n {
			in.Add(nil, one)
		}
		if _, ok := in.AddIndirect(nil, long); !ok {
			t.Fatal("no room")
		}
		r.must(in.Notify())
		// The long one comes back; then it is filled.
		for _, size := range []int{n, len(long)} {
			l.say(string(pattern(size)))
			for left := size; left > 0; {
				_, written, err := in.Wait()
				r.must(err)
				left -= int(written)
			}
			r.looked(0)
		}
	}
	kept := 0
	s.inQueue.Load().Do(func() {
		for _, c := range s.in.chains {
			kept += cap(c.Writable)
		}
	})
	if kept > keepBuffers {
		t.Errorf("%d buffers are kept", kept)
	}
}

// TestInputIsNotReadForARingThatBreaks: by the second of the chains that one d_read was to get. It
// is for the guest driver that comes next.
func TestInputIsNotReadForARingThatBreaks(t *testing.T) {
	r := newRig(t, single)
	l, s, in, mem := r.lines[0], r.dev.slots[0], r.start(0)[0], r.g.Memory()
	r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen })
	s.inQueue.Load().Do(func() { s.in.worth = gatherChains })
	in.Add(nil, segs(mem, 100))
	in.Add(nil, []virtqtest.Seg{{Addr: 1 << 50, Len: 100}})
	r.must(in.Notify())
	l.say("input")
	r.must(sys.WaitReadable(in.ErrFD(), vhostusertest.Timeout))
	r.looked(0)
	l.mu.Lock()
	defer l.mu.Unlock()
	if string(l.input) != "input" {
		t.Errorf("%q is left", l.input)
	}
}
