package virtioconsole

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/internal/test/consoletest"
)

func TestOneConsoleCarriesBytesBothWays(t *testing.T) {
	for name, guest := range map[string]consoletest.Config{"Linux": consoletest.Linux(), "NetBSD": consoletest.NetBSD()} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, single, func(c *setup) { c.guest = guest })
			r.must(r.g.Bind())
			p := r.g.Port(0)
			r.must(p.Open())
			out, in := pattern(128<<10), pattern(128<<10+1)
			_, err := p.Write(out)
			r.must(err)
			r.must(p.Flush())
			l := r.lines[0]
			l.await(t, "output", func() bool { return len(l.output) >= len(out) })
			sameBytes(t, "output", l.output, out)
			l.say(string(in))
			sameBytes(t, "input", r.read(p, len(in)), in)
			if p.Empty != 0 {
				t.Errorf("%d buffers came back without a byte", p.Empty)
			}
			st := r.dev.Status().Ports[0]
			if st.Out != uint64(len(out)) || st.In != uint64(len(in)) || st.State != StateOpen {
				t.Errorf("status %+v", st)
			}
			r.must(r.g.Unbind())
			r.want("life", r.life(0), opening+" "+closing)
		})
	}
}

// TestTheGuestIsToldInOrder: what Linux answers, too.
func TestTheGuestIsToldInOrder(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "org.example.1"), console(2)))
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Sizes == 1 })
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.awaitPort(2, func(p *consoletest.Port) bool { return p.HostOpen })
	for id, want := range []string{
		"PORT_ADD 0, CONSOLE_PORT 1, PORT_OPEN 1, RESIZE 0 100,40",
		`PORT_ADD 0, PORT_NAME 1 "org.example.1", PORT_OPEN 1`,
		"PORT_ADD 0, CONSOLE_PORT 1, PORT_OPEN 1",
	} {
		var got []string
		for _, m := range r.g.Received {
			if m.ID == uint32(id) {
				got = append(got, strings.TrimPrefix(m.String(), m.String()[:2]))
			}
		}
		r.want("told", strings.Join(got, ", "), want)
	}
	for id := range uint32(3) {
		r.status(id, "ready", func(p PortStatus) bool { return p.GuestReady && p.Added && p.GuestOpen == p.Console })
	}
	if p := r.g.Port(1); p.Name != "org.example.1" || p.Console {
		t.Errorf("port 1: %+v", p)
	}
	if p := r.g.Port(0); p.Cols != 100 || p.Rows != 40 {
		t.Errorf("%d columns, %d rows", p.Cols, p.Rows)
	}
}

func TestNothingIsToldBeforeDeviceReady(t *testing.T) {
	r := newRig(t, several(console(0)))
	rings := r.start(2, 3)
	in := rings[0]
	in.Add(nil, segs(r.g.Memory(), 64))
	r.must(in.Notify())
	send := func(m consoletest.Message) {
		_, err := rings[1].Do(bytesAt(r.g.Memory(), m.Append(nil)), nil)
		r.must(err)
	}
	send(consoletest.Message{Event: consoletest.PortReady, Value: 1})
	send(consoletest.Message{Event: consoletest.DeviceReady, Value: 0}) // it has failed
	r.must(r.g.Frontend().Barrier())
	if in.PendingUsed() {
		t.Error("it was told something")
	}
	send(consoletest.Message{Event: consoletest.DeviceReady, Value: 1})
	if _, n, err := in.Wait(); err != nil || n != 8 {
		t.Errorf("PORT_ADD: %d bytes, %v", n, err)
	}
}

func TestADriverThatBeginsAnewIsToldEverythingAnew(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	for range 3 {
		r.must(r.g.Bind())
		r.awaitPort(0, func(p *consoletest.Port) bool { return p.Sizes == 1 && p.HostOpen })
		p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen && p.Name == "a" })
		r.must(p.Open())
		r.status(1, "open", func(p PortStatus) bool { return p.GuestOpen })
		r.must(r.g.Unbind())
		// The next driver has the port closed, and is not given anything before it opens it.
		r.lines[1].say("x")
		r.must(r.g.Bind())
		p = r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
		r.status(1, "ready", func(p PortStatus) bool { return p.GuestReady && !p.GuestOpen })
		r.must(p.Open())
		r.readString(p, "x")
		if p.Discarded != 0 {
			t.Errorf("%d bytes came to a port that was closed", p.Discarded)
		}
		r.must(r.g.Unbind())
	}
}

// TestADriverThatBeginsAnewIsToldOfTheFirstPortFirst, since a guest numbers its terminals as it is
// told of consoles: one would be another's after a restart.
func TestADriverThatBeginsAnewIsToldOfTheFirstPortFirst(t *testing.T) {
	r := newRig(t, several(console(0), console(1), console(2)))
	for i := range uint16(3) {
		r.g.Received = nil
		r.must(r.g.Bind())
		r.awaitPort(2, func(p *consoletest.Port) bool { return p.Console && p.HostOpen })
		var consoles []uint32
		for _, m := range r.g.Received {
			if m.Event == consoletest.Event(ConsolePort) {
				consoles = append(consoles, m.ID)
			}
		}
		if !slices.Equal(consoles, []uint32{0, 1, 2}) {
			t.Errorf("told of the consoles %v", consoles)
		}
		// The last message is about one in the midst.
		l := r.lines[1]
		l.do(func() { l.size = devsw.Winsize{Row: 40, Col: 100 + i} })
		r.awaitPort(1, func(p *consoletest.Port) bool { return int(p.Cols) == int(100+i) })
		r.must(r.g.Unbind())
	}
}

func TestAPauseKeepsAllThatTheGuestKnows(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Sizes == 1 })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	r.status(0, "open", func(p PortStatus) bool { return p.GuestOpen })
	r.talk()
	r.must(r.g.Pause())
	l := r.lines[1]
	l.say("meanwhile")
	l.do(func() { l.asleep = true })
	r.must(r.g.Resume())
	l.await(t, "d_open", func() bool { return l.opens == 2 })
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 41, Col: 101} })
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Cols == 101 && p.Rows == 41 })
	l.do(func() { l.asleep = false })
	r.readString(p, "meanwhile")
	// While the device is not open nobody is said to have gone.
	r.want("told", r.talk(), "0 RESIZE 0 101,41")
	r.must(r.g.Unbind())
	for id := range uint32(2) {
		r.want("life", r.life(id), opening+" "+closing+" "+opening+" "+closing)
	}
}

// TestAResizeWaitsForABufferOverAPause: it is sent when the guest has one at last.
func TestAResizeWaitsForABufferOverAPause(t *testing.T) {
	r := newRig(t, several(console(0)), func(c *setup) { c.guest.RingSize = 4 })
	l := r.lines[0]
	l.do(func() { l.size = devsw.Winsize{Row: 40, Col: 100} })
	r.must(r.g.Bind())
	p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.Sizes == 1 })
	r.status(0, "open", func(p PortStatus) bool { return p.GuestOpen })
	// The guest handles nothing: its buffers run out, and only the newest size counts then.
	for i := range uint16(10) {
		l.do(func() { l.size = devsw.Winsize{Row: 50 + i, Col: 110 + i} })
		r.status(0, "size", func(p PortStatus) bool { return p.Size.Row == 50+i && (i >= 4 || p.Told.Row == 50+i) })
	}
	r.status(0, "told", func(p PortStatus) bool { return p.Told.Row == 53 })
	r.must(r.g.Pause())
	r.must(r.g.Resume())
	r.wait("the size", func() bool { return p.Rows == 59 && p.Cols == 119 })
	if p.Sizes != 6 {
		t.Errorf("%d sizes were told, want 6", p.Sizes)
	}
}

func TestOlderKernelsAreToldRowsFirst(t *testing.T) {
	r := newRig(t, several(console(0)), func(c *setup) { c.RowsFirst = true })
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.Cols == 40 && p.Rows == 100 })
	if !r.dev.Status().RowsFirst {
		t.Error("the status does not tell")
	}
}

func TestADriverWithoutSizeIsToldNone(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "last")), func(c *setup) { c.guest.Features &^= consoletest.FeatureSize })
	r.lines[0].do(func() { r.lines[0].size = devsw.Winsize{Row: 40, Col: 100} })
	r.must(r.g.Bind())
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.status(0, "size", func(p PortStatus) bool { return p.Size.Col == 100 && p.Told.Col == 0 })
	if strings.Contains(r.talk(), "RESIZE") {
		t.Error("it was told")
	}
}

// TestWithoutMultiportTheSizeIsInTheConfigurationSpace: Linux 6.1 reads it only when told.
func TestWithoutMultiportTheSizeIsInTheConfigurationSpace(t *testing.T) {
	r := newRig(t, single, func(c *setup) { c.guest.LateSize = true })
	l := r.lines[0]
	l.do(func() { l.size = devsw.Winsize{Row: 40, Col: 100} })
	for range 2 {
		r.must(r.g.Bind())
		r.wait("the size", func() bool { return r.g.Cols == 100 && r.g.Rows == 40 })
		r.must(r.g.Unbind())
	}
	r.must(r.g.Bind())
	l.do(func() { l.size = devsw.Winsize{Row: 41, Col: 101} })
	r.wait("the new size", func() bool { return r.g.Cols == 101 && r.g.Rows == 41 })
	before := r.g.ConfigChanges
	r.must(r.g.Pause())
	r.must(r.g.Resume())
	r.wait("word of the start", func() bool { return r.g.ConfigChanges > before })
	// The size that was known last stays when nobody is there any more.
	l.do(func() { l.size, l.hungUp = devsw.Winsize{}, true })
	r.status(0, "nobody", func(p PortStatus) bool { return !p.Attached })
	r.must(r.g.ReadConfig())
	if r.g.Cols != 101 || r.g.Rows != 41 {
		t.Errorf("%d columns, %d rows", r.g.Cols, r.g.Rows)
	}
}

func TestAGuestWithoutMultiportHasPort0OfADeviceThatOffersIt(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")), func(c *setup) { c.guest = consoletest.NetBSD() })
	r.must(r.g.Bind())
	p := r.g.Port(0)
	r.must(p.Open())
	r.lines[0].say("in")
	r.readString(p, "in")
	r.write(p, "out")
	r.lines[0].awaitOutput(t, "out")
	r.want("life of the other", r.life(1), "")
}

func TestAConsolesInputWaitsUntilTheGuestHasATerminal(t *testing.T) {
	r := newRig(t, several(console(0)))
	r.lines[0].say("typed early")
	r.must(r.g.Bind())
	p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.Console })
	r.readString(p, "typed early")
	if p.Discarded != 0 {
		t.Errorf("%d bytes came too early", p.Discarded)
	}
}

func TestTheGuestIsToldWhetherSomebodyIsAtTheOtherSide(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	for id := range 2 {
		r.lines[id].do(func() { r.lines[id].hungUp = true })
	}
	r.must(r.g.Bind())
	r.status(1, "ready", func(p PortStatus) bool { return p.State == StateOpen })
	// A console is open to the guest whoever is there.
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.Name == "a" })
	if p.HostOpen {
		t.Error("nobody is there")
	}
	l := r.lines[1]
	for range 3 {
		l.do(func() { l.hungUp = false })
		r.wait("somebody", func() bool { return p.HostOpen })
		l.do(func() { l.hungUp = true })
		r.wait("nobody", func() bool { return !p.HostOpen })
	}
}

func TestPortsComeAndGoWhileTheGuestRuns(t *testing.T) {
	r := newRig(t, several(console(0)))
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	for i := range 3 {
		port := Port{ID: 2, Name: "n" + string(rune('0'+i)), Dev: r.devs[2]}
		r.must(r.dev.AddPort(port))
		p := r.awaitPort(2, func(p *consoletest.Port) bool { return p.HostOpen && p.Name == port.Name })
		r.must(p.Open())
		r.lines[2].say("in")
		r.readString(p, "in")
		r.write(p, "out")
		r.lines[2].awaitOutput(t, "out")
		r.must(r.dev.RemovePort(context.Background(), 2))
		r.wait("the removal", func() bool { return p.Removed() })
	}
	r.want("life", r.life(2), strings.TrimSpace(strings.Repeat(opening+" "+closing+" ", 3)))
}

// TestAPortThatWasReplacedUnseenIsRemovedFirst: the guest handles nothing meanwhile.
func TestAPortThatWasReplacedUnseenIsRemovedFirst(t *testing.T) {
	r := newRig(t, several(data(1, "first")), func(c *setup) { c.guest.RingSize = 4 })
	r.must(r.g.Bind())
	old := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(old.Open())
	r.status(1, "open", func(p PortStatus) bool { return p.GuestOpen })
	r.must(r.dev.RemovePort(context.Background(), 1))
	r.lines[3].say("for the second")
	r.must(r.dev.AddPort(Port{ID: 1, Name: "second", Dev: r.devs[3]}))
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.Name == "second" && p.HostOpen })
	if !old.Removed() || p == old {
		t.Error("the guest has the old one still")
	}
	r.status(1, "closed", func(p PortStatus) bool { return p.GuestReady && !p.GuestOpen && p.In == 0 })
	r.must(p.Open())
	r.readString(p, "for the second")
}

func TestPortsThatCannotBeAreRefused(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	for name, p := range map[string]Port{
		"id":        {ID: 4, Dev: r.devs[4]},
		"id 2^32-1": {ID: 1<<32 - 1, Dev: r.devs[4]},
		"taken":     {ID: 1, Dev: r.devs[4]},
		"name":      {ID: 2, Name: "a", Dev: r.devs[4]},
		"device":    {ID: 2, Dev: r.devs[0]},
		"length":    {ID: 2, Name: strings.Repeat("x", MaxName+1), Dev: r.devs[4]},
	} {
		if err := r.dev.AddPort(p); !errors.Is(err, ErrPort) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, id := range []uint32{3, 4, 1<<32 - 1} {
		if err := r.dev.RemovePort(context.Background(), id); !errors.Is(err, ErrPort) {
			t.Errorf("removal of %d: %v", id, err)
		}
	}
	for _, c := range []Config{{Multiport: true}, {Multiport: true, MaxPorts: 32}, {Ports: []Port{{ID: 1}}}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// TestAnIDIsNotReusedBeforeItsDeviceIsClosed: and RemovePort waits no longer than it may.
func TestAnIDIsNotReusedBeforeItsDeviceIsClosed(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	l.do(func() { l.slow = true })
	r.must(r.g.Bind())
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.dev.RemovePort(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("removal: %v", err)
	}
	again := Port{ID: 1, Dev: r.devs[2]}
	if err := r.dev.AddPort(again); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("the same id: %v", err)
	}
	if err := r.dev.AddPort(Port{ID: 2, Dev: r.devs[1]}); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("the same device: %v", err)
	}
	l.do(func() { l.slow = false })
	r.must(r.dev.WaitClosed(context.Background()))
	r.must(r.dev.AddPort(again))
}
