package virtioconsole

import (
	"context"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/internal/test/consoletest"
	"vdev/vhostuser"
)

// fill fills everything: the port's device takes nothing and has more than the guest has buffers
// for, and the guest's ring is full.
func (r *rig) fill(id uint32) (p *consoletest.Port, out []byte) {
	r.t.Helper()
	p = r.awaitPort(id, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	l := r.lines[id]
	l.do(func() { l.room = 3 })
	l.say(string(pattern(1 << 20)))
	for {
		b := pattern(1000 + len(out)%77)
		ok, err := p.Offer(b, consoletest.Shape{})
		r.must(err)
		if !ok {
			break
		}
		out = append(out, b...)
	}
	r.wait("input", func() bool { return p.Buffered() == 16 })
	r.status(id, "output", func(p PortStatus) bool { return p.Out == 3 })
	return p, out
}

// TestAStopWithEverythingFullTakesEachPortDownInOrder: whatever the front-end does.
func TestAStopWithEverythingFullTakesEachPortDownInOrder(t *testing.T) {
	for name, c := range map[string]struct {
		stop func(r *rig)
		want string
	}{
		"stop":       {func(r *rig) { r.must(r.g.Unbind()) }, closing},
		"disconnect": {(*rig).hangUp, "revoke " + closing + " revoked"},
		"reset":      {func(r *rig) { r.must(r.g.Frontend().ResetDevice()); r.must(r.g.Frontend().Barrier()) }, "revoke " + closing + " revoked"},
		"new session": {func(r *rig) { r.must(r.g.Frontend().SetOwner()); r.must(r.g.Frontend().Barrier()) },
			"revoke " + closing + " revoked"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(data(1, "a"), data(2, "b"), console(3)), func(c *setup) { c.guest.RingSize = 16 })
			r.must(r.g.Bind())
			r.fill(1)
			r.fill(2)
			r.awaitPort(3, func(p *consoletest.Port) bool { return p.HostOpen })
			c.stop(r)
			r.must(r.dev.WaitClosed(context.Background()))
			for id := range uint32(4) {
				want := opening + " " + c.want
				if id == 0 {
					want = ""
				}
				r.want("life", r.life(id), want)
			}
			for id := uint32(1); id < 4; id++ {
				r.status(id, "closed", func(p PortStatus) bool { return p.State == StateClosed })
			}
		})
	}
}

func TestOneRingOfAPortMayBeStoppedAlone(t *testing.T) {
	r := newRig(t, single)
	r.must(r.g.Bind())
	l, p, f := r.lines[0], r.g.Port(0), r.g.Frontend()
	l.say("x")
	r.readString(p, "x")
	r.must(f.SetVringEnable(0, false))
	_, err := f.GetVringBase(0)
	r.must(err)
	r.write(p, "it is open still")
	l.awaitOutput(t, "it is open still")
	r.must(r.g.Ring(0).Start())
	r.must(f.SetVringEnable(1, false))
	_, err = f.GetVringBase(1)
	r.must(err)
	r.want("life", r.life(0), opening)
	r.must(f.SetVringEnable(0, false))
	_, err = f.GetVringBase(0)
	r.must(err)
	r.must(r.dev.WaitClosed(context.Background()))
	r.want("life", r.life(0), opening+" "+closing)
}

// TestADisabledRingHasNothingInFlight: some front-ends pause by that alone.
func TestADisabledRingHasNothingInFlight(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	l.do(func() { l.room = 4 })
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.write(p, "0123456789")
	r.status(1, "the first part", func(p PortStatus) bool { return p.Out == 4 })
	f := r.g.Frontend()
	r.must(f.SetVringEnable(5, false))
	for _, ring := range r.b.Status(t.Context()).FrontEnd.Rings {
		if ring.InFlight != 0 {
			t.Errorf("ring %d: %d in flight", ring.Index, ring.InFlight)
		}
	}
	l.do(func() { l.room = -1 })
	r.must(f.Barrier())
	l.await(t, "no more output", func() bool { return string(l.output) == "0123" })
	r.must(f.SetVringEnable(5, true))
	r.must(p.Flush())
	l.awaitOutput(t, "0123456789")
}

func TestAStopWakesAnOpenThatSleeps(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	for id := range uint32(2) {
		r.lines[id].do(func() { r.lines[id].asleep = true })
	}
	r.must(r.g.Bind())
	r.awaitPort(1, func(p *consoletest.Port) bool { return p.Name == "a" })
	for id := range uint32(2) {
		l := r.lines[id]
		l.await(t, "d_open", func() bool { return l.opens == 1 })
		r.status(id, "opening", func(p PortStatus) bool { return p.State == StateOpening })
	}
	r.must(r.g.Unbind())
	r.must(r.dev.WaitClosed(context.Background()))
	for id := range uint32(2) {
		if got := r.life(id); !strings.HasPrefix(got, "open revoke cancel canceled drain ") {
			t.Errorf("life: %s", got)
		}
		r.lines[id].do(func() { r.lines[id].asleep = false })
	}
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.write(p, "x")
	r.lines[1].awaitOutput(t, "x")
}

// TestAStopDoesNotWaitForADeviceThatCannotBeClosed: the next start of the port does, and that of
// the others does not.
func TestAStopDoesNotWaitForADeviceThatCannotBeClosed(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	stuck := r.lines[1]
	stuck.do(func() { stuck.asleep, stuck.stuck = true, true })
	r.must(r.g.Bind())
	stuck.await(t, "d_open", func() bool { return stuck.opens == 1 })
	r.must(r.g.Unbind())
	r.must(r.g.Bind())
	p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	r.write(p, "x")
	r.lines[0].awaitOutput(t, "x")
	q := r.awaitPort(1, func(p *consoletest.Port) bool { return p.Name == "a" })
	if q.HostOpen {
		t.Error("nobody can be there")
	}
	r.status(1, "wait", func(p PortStatus) bool { return p.State == StateClosing })
	r.mu.Lock()
	logged := strings.Join(r.logged, "\n")
	r.mu.Unlock()
	if strings.Count(logged, "still being closed") != 1 {
		t.Errorf("log: %s", logged)
	}
	stuck.do(func() { stuck.asleep, stuck.stuck = false, false })
	r.wait("the port", func() bool { return q.HostOpen })
	stuck.await(t, "two opens", func() bool { return stuck.opens == 2 })
}

// TestARevokedPortIsDeadUntilTheNextStart: and its bytes wait, but for a console's.
func TestARevokedPortIsDeadUntilTheNextStart(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	r.write(p, "before")
	l.awaitOutput(t, "before")
	r.fs.RevokeDevice(devsw.IFCHR, r.devs[1])
	r.wait("word of it", func() bool { return !p.HostOpen })
	_, err := p.Offer([]byte("after"), consoletest.Shape{})
	r.must(err)
	l.say("input")
	r.status(1, "revocation", func(p PortStatus) bool { return p.State == StateRevoked && p.In == 0 && p.Out == 6 })
	r.must(r.g.Pause())
	r.must(r.g.Resume())
	r.readString(p, "input")
	l.awaitOutput(t, "after")
	r.want("life", r.life(1), opening+" revoke "+closing+" revoked "+opening)
}

func TestADeviceThatHasGoneIsAskedNoMore(t *testing.T) {
	for _, errno := range []devsw.Errno{devsw.ENXIO, devsw.ECANCELED} {
		r := newRig(t, several(data(1, "a")))
		l := r.lines[1]
		r.must(r.g.Bind())
		p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
		l.do(func() { l.err = errno })
		_, err := p.Offer([]byte("out"), consoletest.Shape{})
		r.must(err)
		r.wait("word of it", func() bool { return !p.HostOpen })
		r.status(1, "state", func(p PortStatus) bool { return p.State == StateRevoked && p.Errors == 0 })
	}
}

// TestAPortIsRemovedWithEverythingFull: and one that comes in its place begins with nothing of it.
func TestAPortIsRemovedWithEverythingFull(t *testing.T) {
	r := newRig(t, several(data(1, "a")), func(c *setup) { c.guest.RingSize = 16 })
	r.must(r.g.Bind())
	old, _ := r.fill(1)
	r.must(r.dev.RemovePort(context.Background(), 1))
	r.want("life", r.life(1), opening+" "+closing)
	r.wait("the removal", old.Removed)
	ring := r.g.Ring(5)
	r.wait("the use of its chains", func() bool { return ring.InFlight() == 0 })
	r.must(r.dev.AddPort(Port{ID: 1, Name: "b", Dev: r.devs[2]}))
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	r.write(p, "new")
	r.lines[2].awaitOutput(t, "new")
	r.lines[2].say("input")
	r.readString(p, "input")
}

// TestAPortAddedInTheMidstOfAChainTakesNothingOfIt: the guest's ring has a chain that the port
// before has begun to take.
func TestAPortAddedInTheMidstOfAChainTakesNothingOfIt(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	l.do(func() { l.room = 2 })
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.write(p, "old")
	r.status(1, "the first part", func(p PortStatus) bool { return p.Out == 2 })
	// Both in one go, before the reactor looks.
	q := r.dev.slots[1].outQueue.Load()
	q.Do(func() {
		r.must(r.dev.RemovePort(context.Background(), 1))
		r.must(r.dev.AddPort(Port{ID: 1, Name: "b", Dev: r.devs[2]}))
	})
	p = r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen && p.Name == "b" })
	r.write(p, "new")
	r.lines[2].awaitOutput(t, "new")
}

// TestAnotherSessionOfTheSameGuestGoesOn: the connection is lost, and the guest does not know. Its
// driver says nothing again.
func TestAnotherSessionOfTheSameGuestGoesOn(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	l := r.lines[1]
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	r.write(p, "out")
	l.awaitOutput(t, "out")
	l.say("in")
	r.readString(p, "in")
	l.do(func() { l.room = 4 })
	r.write(p, "0123456789")
	r.status(1, "the first part", func(p PortStatus) bool { return p.Out == 7 })
	r.talk()
	r.reconnect()
	l.do(func() { l.room = -1 })
	r.must(p.Flush())
	l.awaitOutput(t, "0123456789")
	l.say("more")
	r.readString(p, "more")
	r.want("told", r.talk(), "")
}

// reconnect has the guest lose its back-end, and find it again.
func (r *rig) reconnect() {
	r.t.Helper()
	ended := r.ended
	r.must(r.g.Frontend().Conn().CloseWrite())
	<-ended
	r.must(r.g.Reconnect(r.connect()))
}

// TestAnotherBackEndTakesTheGuestOver: the one before was killed. What the guest has open is not
// known, and so is taken for open.
func TestAnotherBackEndTakesTheGuestOver(t *testing.T) {
	r := newRig(t, several(console(0), data(1, "a")))
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	r.write(p, "out")
	r.lines[1].awaitOutput(t, "out")
	// Another Device, which knows nothing.
	r.must(r.g.Frontend().Conn().CloseWrite())
	<-r.ended
	r.must(r.dev.WaitClosed(context.Background()))
	var ports []Port
	for _, p := range r.dev.Status().Ports {
		ports = append(ports, p.Port)
	}
	c := Config{FS: r.fs, Ports: ports, Multiport: true, MaxPorts: 4}
	dev, err := New(c)
	r.must(err)
	t.Cleanup(func() { r.must(dev.WaitClosed(context.Background())) })
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	r.must(err)
	t.Cleanup(reactors.Close)
	t.Cleanup(r.hangUp)
	r.dev = dev
	r.b, err = vhostuser.New(dev.BackendConfig(vhostuser.Config{Reactors: reactors}))
	r.must(err)
	r.must(r.g.Reconnect(r.connect()))
	r.lines[1].say("in")
	r.readString(p, "in")
	r.write(p, "more")
	r.lines[1].awaitOutput(t, "more")
	if p != r.g.Port(1) {
		t.Error("the port is another one")
	}
}

// TestInputThatIsThereWhenAGuestIsTakenOverIsGiven: the guest says nothing of what it has open, and
// nothing new comes.
func TestInputThatIsThereWhenAGuestIsTakenOverIsGiven(t *testing.T) {
	r := newRig(t, several(console(0)))
	r.lines[0].say("in")
	in, mem := r.start(0)[0], r.g.Memory()
	in.Add(nil, segs(mem, 100))
	r.must(in.Notify())
	r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen })
	r.looked(0)
	r.dev.mu.Lock()
	r.dev.meetDriverLocked(vhostuser.DriverElsewhere)
	r.dev.mu.Unlock()
	f := r.g.Frontend()
	control, err := f.NewRing(mem, 2, 16)
	r.must(err)
	t.Cleanup(control.Close)
	for range 8 {
		control.Add(nil, segs(mem, 100))
	}
	r.must(control.Start())
	r.must(control.Notify())
	if _, n, err := in.Wait(); n != 2 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}
