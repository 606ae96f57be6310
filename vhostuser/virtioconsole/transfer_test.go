package virtioconsole

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/test/consoletest"
	"vdev/virtq/virtqtest"
)

// TestAConsolesOutputIsTakenWhateverItsDeviceDoes: a CPU of the guest spins until it is. What is
// kept for the device is the newest, in order.
func TestAConsolesOutputIsTakenWhateverItsDeviceDoes(t *testing.T) {
	for name, c := range map[string]struct {
		before func(r *rig, l *line) // the guest's driver begins
		after  func(r *rig, l *line)
	}{
		"d_open sleeps": {
			before: func(_ *rig, l *line) { l.do(func() { l.asleep = true }) },
			after:  func(_ *rig, l *line) { l.do(func() { l.asleep = false }) },
		},
		"d_open fails": {
			before: func(_ *rig, l *line) { l.do(func() { l.openErr = devsw.EIO }) },
			after: func(r *rig, l *line) {
				r.status(0, "failure", func(p PortStatus) bool { return p.State == StateFailed && errors.Is(p.Err, devsw.EIO) })
				l.do(func() { l.openErr = nil })
				r.must(r.g.Pause())
				r.must(r.g.Resume())
			},
		},
		"the close before is late": {
			before: func(r *rig, l *line) {
				r.must(r.g.Bind())
				r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
				l.do(func() { l.slow = true })
				r.must(r.g.Unbind())
			},
			after: func(_ *rig, l *line) { l.do(func() { l.slow = false }) },
		},
		"EAGAIN": {
			before: func(_ *rig, l *line) { l.do(func() { l.room = 0 }) },
			after:  func(_ *rig, l *line) { l.do(func() { l.room = -1 }) },
		},
		"EIO": {
			before: func(_ *rig, l *line) { l.do(func() { l.err = devsw.EIO }) },
			after:  func(_ *rig, l *line) { l.do(func() { l.err = nil }) },
		},
		"EIO, and the driver does not say that it is over": {
			before: func(_ *rig, l *line) { l.do(func() { l.err = devsw.EIO }) },
			after: func(_ *rig, l *line) {
				l.mu.Lock()
				l.err = nil
				l.mu.Unlock()
			},
		},
		"revoked": {
			before: func(*rig, *line) {},
			after: func(r *rig, l *line) {
				r.status(0, "revocation", func(p PortStatus) bool { return p.State == StateRevoked })
				r.must(r.g.Pause())
				r.must(r.g.Resume())
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(console(0)))
			l := r.lines[0]
			c.before(r, l)
			r.must(r.g.Bind())
			p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
			if name == "revoked" {
				r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen })
				r.fs.RevokeDevice(devsw.IFCHR, r.devs[0])
			}
			const total = 200<<10 + 77
			out := pattern(total)
			r.must(p.Print(out[:1000]))
			_, err := p.Write(out[1000:])
			r.must(err)
			r.must(p.Flush())
			kept := bytes.ReplaceAll(out[:1000], []byte("\n"), []byte("\r\n"))
			kept = append(kept, out[1000:]...)
			lost := len(kept) - backlogSize
			r.status(0, "loss", func(p PortStatus) bool {
				return p.Backlog == backlogSize && p.Dropped == uint64(lost) && p.Out == 0
			})
			c.after(r, l)
			l.await(t, "what was kept", func() bool { return len(l.output) >= backlogSize })
			sameBytes(t, "what was kept", l.output, kept[lost:])
			l.do(func() { l.output = nil })
			r.write(p, "and live")
			l.awaitOutput(t, "and live")
			r.status(0, "end", func(p PortStatus) bool {
				return p.Backlog == 0 && p.Dropped == uint64(lost) && p.Out == backlogSize+8 && p.State == StateOpen
			})
		})
	}
}

// TestAConsolesDeviceMayTakeAPartOfAChain: the rest goes to the backlog, and comes before what
// follows.
func TestAConsolesDeviceMayTakeAPartOfAChain(t *testing.T) {
	r := newRig(t, single)
	l := r.lines[0]
	l.do(func() { l.room = 10 })
	r.must(r.g.Bind())
	p := r.g.Port(0)
	for _, s := range []string{"0123456789abc", "def", "ghi"} {
		r.write(p, s)
		r.must(p.Flush())
	}
	r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen && p.Out == 10 && p.Backlog == 9 })
	l.do(func() { l.room = 5 })
	r.status(0, "more", func(p PortStatus) bool { return p.Out == 15 && p.Backlog == 4 })
	l.do(func() { l.room = -1 })
	r.write(p, "jkl")
	l.awaitOutput(t, "0123456789abcdefghijkl")
}

// TestWhatIsKeptComesFirst: also where the device has room again before the next chain is looked
// at.
func TestWhatIsKeptComesFirst(t *testing.T) {
	r := newRig(t, single)
	l := r.lines[0]
	l.do(func() { l.eager = 3 })
	r.must(r.g.Bind())
	r.status(0, "open", func(p PortStatus) bool { return p.State == StateOpen })
	ring, mem := r.g.Ring(1), r.g.Memory()
	for _, s := range []string{"0123456789", "ab", "cdef"} {
		_, _ = ring.Add(bytesAt(mem, []byte(s)), nil)
	}
	r.must(ring.Notify()) // of all at once
	l.awaitOutput(t, "0123456789abcdef")
	r.wait("use", func() bool { return ring.InFlight() == 0 })
}

// TestADataPortLosesNothing: chains of every shape, a device that takes a little now and then,
// pauses in the midst of all, both ways at once.
func TestADataPortLosesNothing(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 15))
			r := newRig(t, several(data(1, "a")), func(c *setup) { c.guest.RingSize = 1 << (1 + rnd.IntN(7)) })
			l := r.lines[1]
			l.do(func() { l.room = 0 })
			r.must(r.g.Bind())
			p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
			r.must(p.Open())
			var out, in, got []byte
			for range 300 {
				switch rnd.IntN(10) {
				case 0, 1, 2:
					b := make([]byte, 1+rnd.IntN(1<<(1+rnd.IntN(15))))
					for i := range b {
						b[i] = byte(rnd.Uint32())
					}
					shape := consoletest.Shape{Piece: 1 + rnd.IntN(2*len(b)), Indirect: true}
					if len(b)/shape.Piece > 1000 {
						shape.Piece = 0
					}
					ok, err := p.Offer(b, shape)
					r.must(err)
					if ok {
						out = append(out, b...)
					}
				case 3, 4:
					n := rnd.IntN(1 << (1 + rnd.IntN(16)))
					l.do(func() { l.room += n })
				case 5, 6:
					b := make([]byte, rnd.IntN(1<<(1+rnd.IntN(14))))
					for i := range b {
						b[i] = byte(rnd.Uint32())
					}
					in = append(in, b...)
					l.do(func() { l.piece = rnd.IntN(5000) })
					l.say(string(b))
				case 7:
					r.must(r.g.Pause())
					if rnd.IntN(2) == 0 {
						l.do(func() { l.room += rnd.IntN(1000) })
					}
					r.must(r.g.Resume())
				default:
					for r.must(r.g.Poll()); p.Buffered() > 0; {
						b := p.Peek()
						got = append(got, b...)
						r.must(p.Skip(len(b)))
					}
				}
			}
			l.do(func() { l.room = -1 })
			r.must(p.Flush())
			l.await(t, "output", func() bool { return len(l.output) >= len(out) })
			sameBytes(t, "output", l.output, out)
			got = append(got, r.read(p, len(in)-len(got))...)
			sameBytes(t, "input", got, in)
			if p.Empty != 0 {
				t.Errorf("%d buffers without a byte", p.Empty)
			}
			st := r.dev.Status().Ports[0]
			if st.Out != uint64(len(out)) || st.In != uint64(len(in)) || st.Dropped != 0 {
				t.Errorf("status %+v", st)
			}
		})
	}
}

// TestAChainThatWasBegunGoesOnAfterAPauseAndIsForgottenByAReset: its first part was delivered once.
func TestAChainThatWasBegunGoesOnAfterAPauseAndIsForgottenByAReset(t *testing.T) {
	for name, multiport := range map[string]bool{"MULTIPORT": true, "one port": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(c *setup) { c.Multiport, c.MaxPorts, c.Ports = multiport, 1, []Port{data(0, "")} })
			l := r.lines[0]
			l.do(func() { l.room = 5 })
			r.must(r.g.Bind())
			p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen || !multiport })
			r.write(p, ".")
			r.must(p.Flush())
			r.write(p, "0123456789")
			r.status(0, "the first part", func(p PortStatus) bool { return p.Out == 5 })
			r.must(r.g.Pause())
			// Nothing is in flight, and the chain was not used.
			if ring := r.g.Ring(1); ring.Base != 1 || ring.UsedIdx() != 1 {
				t.Errorf("base %d, used %d", ring.Base, ring.UsedIdx())
			}
			r.must(r.g.Resume())
			l.do(func() { l.room = 3 })
			r.status(0, "the second part", func(p PortStatus) bool { return p.Out == 8 })
			l.await(t, "output", func() bool { return string(l.output) == ".0123456" })
			r.must(r.g.Unbind())
			r.must(r.g.Bind())
			p = r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen || !multiport })
			// The new driver's first chain is in the same place, and as long.
			r.write(p, "abcdefghij")
			l.do(func() { l.room = -1 })
			l.awaitOutput(t, ".0123456abcdefghij")
		})
	}
}

func TestNothingLeavesTheReceiveRingWithoutInput(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	for i := range uint16(3) {
		l.say("x")
		r.readString(p, "x")
		l.do(func() {})
		r.looked(1)
		r.must(r.g.Pause())
		if ring := r.g.Ring(4); ring.Base != i+1 || ring.UsedIdx() != i+1 {
			t.Errorf("base %d, used %d, want %d", ring.Base, ring.UsedIdx(), i+1)
		}
		r.must(r.g.Resume())
	}
}

// TestOneReadFillsSeveralBuffers, but only where there is that much: a byte takes one.
func TestOneReadFillsSeveralBuffers(t *testing.T) {
	r := newRig(t, several(data(1, "a")), func(c *setup) { c.guest.Buffer, c.guest.RingSize = 8, 64 })
	l := r.lines[1]
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	chains := func() (n int) {
		r.dev.slots[1].inQueue.Load().Do(func() { n = len(r.dev.slots[1].in.chains) })
		return n
	}
	for range 10 {
		l.say("x")
		r.readString(p, "x")
	}
	if n := chains(); n != 1 {
		t.Errorf("for a byte %d chains were popped at once", n)
	}
	big, taken := pattern(64*8+3), uint16(10)
	for round := range 3 {
		r.looked(1)
		l.mu.Lock()
		before := l.reads
		l.mu.Unlock()
		l.say(string(big))
		sameBytes(t, "input", r.read(p, len(big)), big)
		r.looked(1)
		l.mu.Lock()
		if n := l.reads - before; n > 16 {
			t.Errorf("%d calls of d_read for 65 buffers", n)
		}
		l.mu.Unlock()
		// More buffers were popped than were needed.
		l.say("x")
		r.readString(p, "x")
		taken += 65 + 1
		r.looked(1)
		r.must(r.g.Pause())
		if ring := r.g.Ring(4); ring.Base != taken || ring.UsedIdx() != taken || p.Empty != 0 {
			t.Errorf("round %d: base %d, used %d, want %d; %d buffers without a byte", round, ring.Base, ring.UsedIdx(), taken, p.Empty)
		}
		r.must(r.g.Resume())
	}
}

func TestInputWaitsUntilTheGuestOpensThePortAndHasABuffer(t *testing.T) {
	r := newRig(t, several(data(1, "a")), func(c *setup) { c.guest.RingSize = 4 })
	l := r.lines[1]
	l.say("before")
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.status(1, "ready", func(p PortStatus) bool { return p.GuestReady })
	l.do(func() {})
	r.looked(1)
	r.status(1, "nothing", func(p PortStatus) bool { return p.In == 0 })
	r.must(p.Open())
	r.readString(p, "before")
	r.must(p.Close())
	l.say("closed")
	r.looked(1)
	r.must(p.Open())
	r.readString(p, "closed")
	if p.Discarded != 0 {
		t.Errorf("%d bytes came to a port that was closed", p.Discarded)
	}
	// Four buffers, and no more, leave the line while the guest reads nothing.
	big := pattern(10 * 4096)
	l.say(string(big))
	r.status(1, "four", func(p PortStatus) bool { return p.In == uint64(12+4*4096) })
	sameBytes(t, "input", r.read(p, len(big)), big)
}

// TestAWholePipeIsTakenAsOneChain: 8 MiB on a ring of 2, which is what splice(2) by root makes.
func TestAWholePipeIsTakenAsOneChain(t *testing.T) {
	for name, port := range map[string]Port{"console": console(0), "data": data(0, "a")} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(port), func(c *setup) { c.guest.RingSize = 2 })
			r.must(r.g.Bind())
			p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
			out := pattern(8 << 20)
			r.must(p.Transmit(out, consoletest.Spliced))
			r.must(p.Flush())
			l := r.lines[0]
			l.await(t, "output", func() bool { return len(l.output) >= len(out) })
			sameBytes(t, "output", l.output, out)
			// The reactor's other rings had their turn.
			if least := len(out) / budgetBytes; l.writes < least {
				t.Errorf("%d calls of d_write, at least %d were to be", l.writes, least)
			}
			if n := cap(r.dev.slots[0].out.iov); n > keepBuffers {
				t.Errorf("%d buffers are kept", n)
			}
		})
	}
}

func TestAChainWithoutEndBreaksItsRingAlone(t *testing.T) {
	r := newRig(t, several(console(0), console(1)))
	r.must(r.g.Bind())
	r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.status(1, "ready", func(p PortStatus) bool { return p.GuestOpen })
	ring, mem := r.g.Ring(1), r.g.Memory()
	table := mem.Alloc(32, 16)
	for i := range uint64(2) {
		d := virtqtest.Desc{Addr: table, Len: 16, Flags: virtqtest.DescNext, Next: uint16(1 - i)}
		d.Put(mem.Bytes(table+16*i, 16))
	}
	ring.SetDesc(0, virtqtest.Desc{Addr: table, Len: 32, Flags: virtqtest.DescIndirect})
	ring.Offer(0)
	r.must(ring.Notify())
	if err := r.g.Wait("the break", func() bool { return false }); !isBroken(err) {
		t.Error(err)
	}
	r.write(p, "the other goes on")
	r.lines[1].awaitOutput(t, "the other goes on")
}

// TestOddChainsOfAConsoleAreUsedUp: a broken ring is a dead CPU of the guest.
func TestOddChainsOfAConsoleAreUsedUp(t *testing.T) {
	for name, port := range map[string]Port{"console": console(0), "data": data(0, "a")} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(port))
			r.must(r.g.Bind())
			r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
			ring, mem := r.g.Ring(1), r.g.Memory()
			text := segs(mem, 2, 3)
			copy(mem.Bytes(text[0].Addr, 2), "ab")
			copy(mem.Bytes(text[1].Addr, 3), "cde")
			for i, c := range [][2][]virtqtest.Seg{
				{segs(mem, 0), nil}, // no length
				{nil, segs(mem, 5)}, // only room
				{text, segs(mem, 7)},
				{segs(mem, 0, 0), segs(mem, 0)},
				{text[:1], nil},
			} {
				_, ok := ring.Add(c[0], c[1])
				if !ok {
					t.Fatal("no room")
				}
				r.must(ring.Notify())
				r.wait(fmt.Sprint("use of chain ", i), func() bool { return ring.InFlight() == 0 })
			}
			r.lines[0].awaitOutput(t, "abcdeab")
			r.status(0, "count", func(p PortStatus) bool { return p.Odd == 4 })
		})
	}
}

func TestOddReceiveBuffersAreUsedForWhatTheyAre(t *testing.T) {
	r := newRig(t, single, func(c *setup) { c.guest.Buffer = 8; c.guest.RingSize = 16 })
	l := r.lines[0]
	r.must(r.g.Bind())
	p := r.g.Port(0)
	ring, mem := r.g.Ring(0), r.g.Memory()
	// All of the guest's own buffers are used up first.
	l.say(string(bytes.Repeat([]byte("12345678"), 16)))
	r.wait("input", func() bool { return p.Buffered() == 16 })
	room := segs(mem, 3, 0, 4)
	if _, ok := ring.Add(segs(mem, 5), room); !ok { // readable buffers before
		t.Fatal("no room")
	}
	if _, ok := ring.Add(segs(mem, 5), nil); !ok { // nothing else
		t.Fatal("no room")
	}
	if _, ok := ring.Add(nil, segs(mem, 0)); !ok {
		t.Fatal("no room")
	}
	r.must(ring.Notify())
	l.say("abcdefg")
	r.wait("all", func() bool { return ring.InFlight() == 0 })
	if got := string(mem.Bytes(room[0].Addr, 3)) + string(mem.Bytes(room[2].Addr, 4)); got != "abcdefg" {
		t.Errorf("%q", got)
	}
	r.status(0, "count", func(p PortStatus) bool { return p.Odd == 2 && p.In == 128+7 })
}

// TestADataPortWaitsWhileItsDeviceFails: its bytes are delivered when it does not any more.
func TestADataPortWaitsWhileItsDeviceFails(t *testing.T) {
	r := newRig(t, several(data(1, "a")))
	l := r.lines[1]
	r.must(r.g.Bind())
	p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
	r.must(p.Open())
	l.do(func() { l.err, l.input = devsw.EIO, []byte("in") })
	r.write(p, "out")
	r.status(1, "errors", func(p PortStatus) bool { return p.Errors >= 2 })
	// It does not say that it works again: it is tried.
	l.mu.Lock()
	l.err = nil
	l.mu.Unlock()
	r.readString(p, "in")
	r.must(p.Flush())
	l.awaitOutput(t, "out")
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.logged) != 1 {
		t.Errorf("log: %q", r.logged)
	}
}

// TestADeviceThatFailsIsTriedAgainAndAgain: also with what a console has kept for it, and however
// often its input fails meanwhile.
func TestADeviceThatFailsIsTriedAgainAndAgain(t *testing.T) {
	for name, port := range map[string]Port{"console": console(1), "data": data(1, "a")} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(port))
			l := r.lines[1]
			l.do(func() { l.err = devsw.EIO })
			r.must(r.g.Bind())
			p := r.awaitPort(1, func(p *consoletest.Port) bool { return p.HostOpen })
			r.must(p.Open())
			r.status(1, "open", func(p PortStatus) bool { return p.State == StateOpen && p.GuestOpen })
			out := []byte("out")
			if port.Console {
				// Nor does anything else try then.
				r.must(r.g.Frontend().SetVringEnable(4, false))
				r.must(p.Print(out))
			} else {
				_, err := p.Offer(out, consoletest.Shape{})
				r.must(err)
			}
			quit, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-quit:
						return
					case <-time.After(20 * time.Millisecond):
						l.klist.Notify(devsw.EVFILTRead, -1)
					}
				}
			}()
			l.awaitWrites(t, 2)
			close(quit)
			<-done
			l.mu.Lock()
			l.err = nil // and the driver does not say so
			l.mu.Unlock()
			l.await(t, "output", func() bool { return bytes.Equal(l.output, out) })
		})
	}
}
