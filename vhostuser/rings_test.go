package vhostuser_test

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// The table of ring states: what must be sent until requests are served, in any order.
func TestRingRunsWhenItIsBothStartedAndEnabled(t *testing.T) {
	kick := func(g *rig, r *vhostusertest.Ring) { g.must(g.SetVringKick(r.Index, r.KickFD())) }
	enable := func(g *rig, r *vhostusertest.Ring) { g.must(g.SetVringEnable(r.Index, true)) }
	disable := func(g *rig, r *vhostusertest.Ring) { g.must(g.SetVringEnable(r.Index, false)) }
	base := func(g *rig, r *vhostusertest.Ring) {
		b, err := g.GetVringBase(r.Index)
		g.must(err)
		r.Base = b
	}
	negotiate := func(g *rig, _ *vhostusertest.Ring) { g.must(g.SetFeatures(g.Features())) }
	type step = func(*rig, *vhostusertest.Ring)
	for _, c := range []struct {
		name  string
		steps []step
		runs  bool
	}{
		{"neither", nil, false},
		{"started", []step{kick}, false},
		{"enabled", []step{enable}, false},
		{"started, enabled", []step{kick, enable}, true},
		{"enabled, started", []step{enable, kick}, true},
		{"started, enabled, disabled", []step{kick, enable, disable}, false},
		{"started, enabled, disabled, enabled", []step{kick, enable, disable, enable}, true},
		{"started, enabled twice", []step{kick, enable, enable}, true},
		{"started twice, enabled", []step{kick, kick, enable}, true},
		{"stopped again", []step{kick, enable, base}, false},
		{"stopped again, disabled and enabled", []step{kick, enable, base, disable, enable}, false},
		{"stopped and started, still enabled", []step{kick, enable, base, kick}, true},
		{"stopped while disabled, started", []step{kick, enable, disable, base, kick}, false},
		{"stopped before it was started", []step{base}, false},
		{"stopped while never enabled", []step{kick, base, enable}, false},
		{"reset owner disables", []step{kick, enable, func(g *rig, _ *vhostusertest.Ring) { g.must(g.ResetOwner()) }}, false},
		{"reset owner, enabled", []step{kick, enable, func(g *rig, _ *vhostusertest.Ring) { g.must(g.ResetOwner()) }, enable}, true},
		{"reset device disables", []step{kick, enable, func(g *rig, _ *vhostusertest.Ring) { g.must(g.ResetDevice()) }}, false},
		{"reset device, enabled", []step{kick, enable, func(g *rig, _ *vhostusertest.Ring) { g.must(g.ResetDevice()) }, negotiate, enable}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			r := g.ring(0, 8)
			g.must(r.Setup())
			for _, s := range c.steps {
				s(g, r)
			}
			if !c.runs {
				b := newBuffers(g.mem)
				b.fill(1)
				r.Add(b.in, b.out)
				g.idle(r)
				return
			}
			g.io(r, 3)
		})
	}
}

func TestKickBeforeEnableIsNotLost(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(r.Setup())
	b := newBuffers(g.mem)
	b.fill(7)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	g.must(g.SetVringKick(0, r.KickFD()))
	g.idle(r)
	g.must(g.SetVringEnable(0, true))
	// Nobody kicks any more.
	_, _, err := r.Wait()
	g.must(err)
	g.must(b.check(7))
}

func TestRequestsAddedWhileDisabledAreServedOnEnable(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 2)
	g.must(g.SetVringEnable(0, false))
	b := newBuffers(g.mem)
	b.fill(3)
	r.Add(b.in, b.out)
	g.idle(r)
	g.must(g.SetVringEnable(0, true))
	_, _, err := r.Wait()
	g.must(err)
	g.must(b.check(3))
}

func TestWithoutProtocolFeaturesRingsStartEnabled(t *testing.T) {
	g := newRig(t, newReverser(1))
	features, err := g.GetFeatures()
	g.must(err)
	g.must(g.SetOwner())
	g.must(g.SetFeatures(features &^ vhostuser.FProtocolFeatures))
	g.must(g.SetMemTable(g.mem))
	r := g.start(0, 8)
	g.io(r, 5)
	g.must(r.Stop())
	if r.Base != 5 {
		t.Errorf("base %d, want 5", r.Base)
	}
	// They cannot be disabled either.
	g.must(g.SetVringEnable(0, false))
	wantProtocolError(t, g.wait(), vhostuser.SetVringEnable, "always enabled")
}

func TestLosingProtocolFeaturesEnablesAllRings(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringKick(0, r.KickFD()))
	g.must(g.SetFeatures(g.Features() &^ vhostuser.FProtocolFeatures))
	g.io(r, 3)
}

func TestPolledRingNeedsNoKick(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringKick(0, -1))
	g.must(g.SetVringEnable(0, true))
	b := newBuffers(g.mem)
	for i := range 5 {
		b.fill(i)
		r.Add(b.in, b.out)
		r.Kick() // shows it, and signals nothing
		_, _, err := r.Wait()
		g.must(err)
		g.must(b.check(i))
	}
	// A descriptor takes its place while it runs.
	g.must(g.SetVringKick(0, r.KickFD()))
	g.io(r, 5)
}

func TestDescriptorsCanBeReplacedOnARunningRing(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 2)
	other, err := g.NewRing(g.mem, 0, 8) // for its descriptors
	g.must(err)
	defer other.Close()

	g.must(g.SetVringCall(0, other.CallFD()))
	r.Called()
	b := newBuffers(g.mem)
	b.fill(1)
	r.EnableCalls()
	r.Add(b.in, b.out)
	g.must(r.Notify())
	g.must(sys.WaitReadable(other.CallFD(), vhostusertest.Timeout))
	if r.Called() {
		t.Error("the old call descriptor was signalled")
	}
	r.Used()

	g.must(g.SetVringCall(0, -1))
	other.Called()
	b.fill(2)
	r.EnableCalls()
	r.Add(b.in, b.out)
	g.must(r.Notify())
	for !r.PendingUsed() {
		time.Sleep(time.Millisecond)
	}
	g.must(g.Barrier())
	if other.Called() || r.Called() {
		t.Error("a call descriptor was signalled though there is none")
	}
	r.Used()
	g.must(g.SetVringCall(0, r.CallFD()))

	g.must(g.SetVringKick(0, other.KickFD()))
	b.fill(3)
	r.Add(b.in, b.out)
	if r.Kick() {
		g.must(sys.EventfdWrite(other.KickFD()))
	}
	_, _, err = r.Wait()
	g.must(err)
	g.must(b.check(3))
}

func TestEachStartSignalsTheCallDescriptorOnce(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	for range 3 {
		g.must(r.Start())
		g.must(g.Barrier())
		if n, err := sys.EventfdRead(r.CallFD()); n != 1 {
			t.Errorf("call counter %d (%v) after a start, want 1", n, err)
		}
		g.must(r.Stop())
		if r.Called() {
			t.Error("the stop signalled")
		}
	}
}

func TestStopEmptiesTheKickCounter(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 3)
	g.must(sys.EventfdWrite(r.KickFD()))
	g.must(r.Stop())
	if sys.Readable(r.KickFD()) {
		t.Error("the kick eventfd is readable after GET_VRING_BASE")
	}
}

func TestStopLetsGoOfTheKickDescriptor(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringKick(0, r.KickFD()))
	if n := descriptorsOf(t, r.KickFD()); n != 2 {
		t.Errorf("%d descriptors are of the kick eventfd, want ours and the back-end's", n)
	}
	g.must(g.SetVringEnable(0, true))
	g.must(r.Stop())
	if n := descriptorsOf(t, r.KickFD()); n != 1 {
		t.Errorf("%d descriptors are of the kick eventfd after the stop, want ours", n)
	}
}

// descriptorsOf counts this process's descriptors of an eventfd.
func descriptorsOf(t *testing.T, eventfd int) (n int) {
	t.Helper()
	id := func(fd string) string {
		text, _ := os.ReadFile("/proc/self/fdinfo/" + fd)
		_, rest, ok := strings.Cut(string(text), "eventfd-id:")
		if !ok {
			return ""
		}
		line, _, _ := strings.Cut(rest, "\n")
		return strings.TrimSpace(line)
	}
	want := id(strconv.Itoa(eventfd))
	if want == "" {
		t.Skip("the host's /proc does not number eventfds (Linux 5.2)")
	}
	for fd := range openFDs(t) {
		if id(fd) == want {
			n++
		}
	}
	return n
}

func TestStopDoesNotBlockOnABlockingKickDescriptor(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.ring(0, 8)
	g.must(r.Setup())
	fd := blockingEventfd(t, 0)
	g.must(g.SetVringKick(0, fd))
	g.must(g.SetVringEnable(0, true))
	g.must(r.Stop())
	if nonblock, err := sys.Nonblocking(fd); nonblock || err != nil {
		t.Errorf("O_NONBLOCK of the kick descriptor: %v, %v, want as it was", nonblock, err)
	}
}

func TestFullBlockingCallDescriptorDoesNotHoldUpTheRing(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	fd := blockingEventfd(t, ^uint64(0)-1)
	g.must(g.SetVringCall(0, fd))
	b := newBuffers(g.mem)
	for i := range 5 {
		b.fill(i)
		r.EnableCalls()
		r.Add(b.in, b.out)
		g.must(r.Notify())
		for !r.PendingUsed() {
			time.Sleep(time.Millisecond)
		}
		r.Used()
		g.must(b.check(i))
	}
	g.must(r.Stop())
}

// blockingEventfd returns an eventfd without O_NONBLOCK.
func blockingEventfd(t *testing.T, count uint64) int {
	t.Helper()
	n, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	t.Cleanup(func() { syscall.Close(int(n)) })
	if count > 0 {
		if _, err := syscall.Write(int(n), vhostuser.AppendU64(nil, count)); err != nil {
			t.Fatal(err)
		}
	}
	return int(n)
}

func TestRunningRingKeepsItsShape(t *testing.T) {
	g := newRig(t, newReverser(2))
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 1)

	logged := r.Addr()
	logged.Flags, logged.Log = vhostuser.VringLog, 0x1000
	g.must(g.SetVringAddr(logged))
	g.must(g.SetVringAddr(r.Addr()))
	g.must(g.SetVringNum(0, 8))
	g.must(g.SetFeatures(g.Features()))

	moved := r.Addr()
	moved.Desc += 16
	for what, err := range map[string]error{
		"other address":  g.SetVringAddr(moved),
		"other size":     g.SetVringNum(0, 16),
		"base":           g.SetVringBase(0, 0),
		"other features": g.Frontend.SetFeatures(g.Features() &^ virtq.FeatureEventIdx),
	} {
		if !errors.Is(err, vhostusertest.ErrRefused) {
			t.Errorf("%s on a running ring: %v, want a refusal", what, err)
		}
	}
	g.io(r, 1)
	// Another ring is nobody's business.
	g.must(g.SetVringNum(1, 16))
	g.must(g.SetVringBase(1, 3))
	if base, err := g.GetVringBase(1); base != 3 || err != nil {
		t.Errorf("base of a ring never started: %d, %v, want 3", base, err)
	}
}

func TestGuestsBadRingBreaksItselfAlone(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(g *rig, r *vhostusertest.Ring) error
		refused bool // by the message that brings it, where an acknowledgement is asked for
		reason  error
	}{
		{"size is no power of two", func(g *rig, r *vhostusertest.Ring) error { return g.SetVringNum(0, 3) }, true, virtq.ErrSize},
		{"descriptors misaligned", func(g *rig, r *vhostusertest.Ring) error {
			a := r.Addr()
			a.Desc += 8
			return g.SetVringAddr(a)
		}, true, virtq.ErrAlign},
		{"available ring misaligned", func(g *rig, r *vhostusertest.Ring) error {
			a := r.Addr()
			a.Avail++
			return g.SetVringAddr(a)
		}, true, virtq.ErrAlign},
		{"used ring misaligned", func(g *rig, r *vhostusertest.Ring) error {
			a := r.Addr()
			a.Used += 2
			return g.SetVringAddr(a)
		}, true, virtq.ErrAlign},
		{"ring not in memory", func(g *rig, r *vhostusertest.Ring) error {
			a := r.Addr()
			a.Desc = 0x1000
			return g.SetVringAddr(a)
		}, false, virtq.ErrMemory},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, newReverser(2))
			g.handshake()
			good := g.start(1, 8)
			r := g.ring(0, 8)
			g.must(r.Setup())
			err := c.change(g, r)
			if refused := errors.Is(err, vhostusertest.ErrRefused); refused != c.refused || err != nil && !refused {
				t.Errorf("the message was answered by %v, want a refusal: %v", err, c.refused)
			}
			g.must(g.SetVringKick(0, r.KickFD()))
			g.must(g.SetVringEnable(0, true))
			if !r.Failed() {
				t.Error("the error descriptor was not signalled")
			}
			broken := g.rec.find(vhostuser.EventBreak)
			if len(broken) != 1 || broken[0].Ring != 0 || !errors.Is(broken[0].Err, c.reason) {
				t.Errorf("break events %v, want one of ring 0 for %q", broken, c.reason)
			}
			g.io(good, 3)
			// Stopped, set up well and started, it is as good as new.
			base, err := g.GetVringBase(0)
			g.must(err)
			if base != 0 {
				t.Errorf("base %d, want 0", base)
			}
			g.must(r.Start())
			g.io(r, 3)
		})
	}
}

// Without an acknowledgement, too, what the guest chose does not end the connection.
func TestGuestsBadRingKeepsTheConnectionWithoutReplyAck(t *testing.T) {
	g := newRig(t, newReverser(2))
	features, err := g.Handshake(vhostusertest.AllProtocolFeatures &^ vhostuser.ProtocolReplyAck)
	g.must(err)
	g.must(g.SetFeatures(features))
	g.must(g.AddMemory(g.mem))
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringNum(0, 100))
	g.must(g.SetVringKick(0, r.KickFD()))
	g.must(g.SetVringEnable(0, true))
	g.must(g.Barrier())
	if !r.Failed() {
		t.Error("the error descriptor was not signalled")
	}
	g.io(g.start(1, 8), 3)
}

func TestBrokenRingIsStickyAndTheOthersGoOn(t *testing.T) {
	g := newRig(t, newReverser(2))
	g.handshake()
	r, other := g.start(0, 8), g.start(1, 8)
	g.io(r, 2)
	r.Offer(200) // no such descriptor
	g.must(r.Notify())
	g.must(sys.WaitReadable(r.ErrFD(), vhostusertest.Timeout))
	if !r.Failed() {
		t.Fatal("the error descriptor was not signalled")
	}
	broken := g.rec.find(vhostuser.EventBreak)
	var be *virtq.BrokenError
	if len(broken) != 1 || !errors.As(broken[0].Err, &be) || be.Reason != virtq.ReasonHeadRange {
		t.Fatalf("break events %v, want one for the head", broken)
	}
	// Disabling and enabling does not mend it.
	g.must(g.SetVringEnable(0, false))
	g.must(g.SetVringEnable(0, true))
	g.must(sys.EventfdWrite(r.KickFD()))
	g.io(other, 3)
	if _, err := g.GetVringBase(0); err != nil {
		t.Fatal(err)
	}
	fresh := g.start(0, 8)
	g.io(fresh, 3)
}

func TestDeviceThatCannotStartAQueueBreaksIt(t *testing.T) {
	dev := newReverser(1)
	sorry := errors.New("sorry")
	dev.onStart = func(*vhostuser.Queue) error { return sorry }
	g := newRig(t, dev)
	g.handshake()
	r := g.start(0, 8)
	if !r.Failed() {
		t.Error("the error descriptor was not signalled")
	}
	if broken := g.rec.find(vhostuser.EventBreak); len(broken) != 1 || !errors.Is(broken[0].Err, sorry) {
		t.Errorf("break events %v", broken)
	}
	g.must(r.Stop())
	g.must(g.hangUp())
	if got, want := dev.life(), "features 0x130000000, start 0, end"; got != want {
		t.Errorf("device's life: %s, want %s", got, want)
	}
}

func TestStopWaitsForWhatIsInFlight(t *testing.T) {
	dev := newReverser(1)
	release := make(chan struct{})
	dev.onStop = func(q *vhostuser.Queue, how vhostuser.Stop) {
		go func() {
			<-release
			q.Post(func() { dev.finishHeld(q) })
		}()
		if err := q.WaitIdle(how.Context()); err != nil {
			panic(err)
		}
		dev.note("idle")
	}
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(0, 8)
	bufs := []buffers{newBuffers(g.mem), newBuffers(g.mem), newBuffers(g.mem)}
	for i, b := range bufs {
		b.fill(i)
		r.Add(b.in, b.out)
	}
	g.must(r.Notify())
	dev.waitHeld(t, 3)
	g.must(g.SetVringEnable(0, false))
	g.must(g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil)))
	dev.waitFor(t, "stop 0 base")
	if r.PendingUsed() {
		t.Error("a request that is held was completed")
	}
	r.Called()
	close(release)
	_, p, err := g.Receive()
	g.must(err)
	if s := vhostuser.ParseVringState(p); s.Num != 3 {
		t.Errorf("base %d, want 3", s.Num)
	}
	// With the reply everything is there, and was signalled.
	for range bufs {
		if _, _, ok := r.Used(); !ok {
			t.Fatal("a request was not completed")
		}
	}
	for i, b := range bufs {
		g.must(b.check(i))
	}
	if !r.Called() {
		t.Error("the completions were not signalled")
	}
}

func TestUnpoppedRequestsComeAgain(t *testing.T) {
	dev := newReverser(1)
	dev.onStop = func(q *vhostuser.Queue, how vhostuser.Stop) {
		q.Loop().Do(func() {
			l := q.Data.(*lane)
			for n := len(l.held); n > 0; n-- {
				c := l.held[n-1]
				if !q.CanUnpop(c) {
					panic("the newest cannot be unpopped")
				}
				q.Unpop(c)
				l.held = l.held[:n-1]
			}
		})
	}
	g := newRig(t, dev)
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 2)
	dev.setHold(true)
	b := newBuffers(g.mem)
	b.fill(5)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	g.must(r.Stop())
	if r.Base != 2 {
		t.Errorf("base %d, want 2", r.Base)
	}
	dev.setHold(false)
	g.must(r.Start())
	_, _, err := r.Wait()
	g.must(err)
	g.must(b.check(5))
}

func TestHangUpEndsTheWaitOfAStop(t *testing.T) {
	dev := newReverser(1)
	dev.onStop = func(q *vhostuser.Queue, how vhostuser.Stop) {
		if err := q.WaitIdle(how.Context()); err == nil {
			panic("idle with a request in flight")
		}
		dev.note("given up, %v", how.Reason)
		q.Post(func() { dev.finishHeld(q) })
		if err := q.WaitIdle(context.Background()); err != nil {
			panic(err)
		}
	}
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	g.must(g.SetVringEnable(0, false))
	g.must(g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil)))
	dev.waitFor(t, "stop 0 base")
	g.must(g.hangUp())
	dev.waitFor(t, "given up, base")
	if !r.PendingUsed() {
		t.Error("the request was not completed")
	}
}

func TestEndOfContextEndsTheWaitOfAStop(t *testing.T) {
	dev := newReverser(1)
	dev.onStop = func(q *vhostuser.Queue, how vhostuser.Stop) {
		if err := q.WaitIdle(how.Context()); err == nil {
			panic("idle with a request in flight")
		}
		q.Post(func() { dev.finishHeld(q) })
		if err := q.WaitIdle(context.Background()); err != nil {
			panic(err)
		}
	}
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	g.must(g.SetVringEnable(0, false))
	g.must(g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil)))
	dev.waitFor(t, "stop 0 base")
	g.cancel()
	g.must(g.wait())
}

func TestDeviceThatStopsWithRequestsInFlightEndsTheConnection(t *testing.T) {
	dev := newReverser(1)
	var q *vhostuser.Queue
	dev.onStop = func(stopped *vhostuser.Queue, how vhostuser.Stop) { q = stopped }
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	g.must(g.SetVringEnable(0, false))
	if _, err := g.GetVringBase(0); err == nil {
		t.Error("GET_VRING_BASE was answered")
	}
	var re *vhostuser.RingError
	if err := g.wait(); !errors.As(err, &re) || re.Ring != 0 {
		t.Errorf("ServeConn: %v, want a RingError", err)
	}
	// What comes late finds the ring gone, and does no harm.
	q.Loop().Do(func() { dev.finishHeld(q) })
	if r.PendingUsed() {
		t.Error("the ring was written to after the end of the connection")
	}
}

func TestDisconnectStopsEveryRingBeforeTheSessionEnds(t *testing.T) {
	dev := newReverser(3)
	calls := 0
	dev.onStops = func(rings []*vhostuser.Queue, how vhostuser.Stop) {
		if calls++; calls > 1 || len(rings) != 3 || !how.WholeDevice || !how.Revoke {
			t.Errorf("call %d: %d rings, %+v", calls, len(rings), how)
		}
	}
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	rings := []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8), g.start(2, 8)}
	for _, r := range rings {
		b := newBuffers(g.mem)
		b.fill(1)
		r.Add(b.in, b.out)
		g.must(r.Notify())
	}
	dev.waitHeld(t, 3)
	g.must(g.hangUp())
	want := "features 0x130000000, start 0, start 1, start 2, stop 0 disconnect, stop 1 disconnect, stop 2 disconnect, end"
	if got := dev.life(); got != want {
		t.Errorf("device's life: %s\nwant:          %s", got, want)
	}
}

func TestResetDeviceStopsWhatStillRuns(t *testing.T) {
	dev := newReverser(2)
	g := newRig(t, dev)
	g.handshake()
	g.must(g.SetStatus(0xf))
	r := g.start(0, 8)
	g.io(r, 3)
	dev.life()
	g.must(g.ResetDevice())
	if got, want := dev.life(), "stop 0 reset"; got != want {
		t.Errorf("device's life: %s, want %s", got, want)
	}
	if status, err := g.GetStatus(); status != 0 || err != nil {
		t.Errorf("status %#x, %v, want 0", status, err)
	}
	// Again, with nothing to do.
	g.must(g.ResetDevice())
	// Memory, protocol features and the call descriptor are still known; the ring begins anew.
	g.must(g.SetFeatures(g.Features()))
	fresh := g.ring(0, 8)
	g.must(g.SetVringNum(0, 8))
	g.must(g.SetVringAddr(fresh.Addr()))
	g.must(g.SetVringKick(0, fresh.KickFD()))
	g.must(g.SetVringEnable(0, true))
	b := newBuffers(g.mem)
	b.fill(4)
	fresh.EnableCalls()
	fresh.Add(b.in, b.out)
	g.must(fresh.Notify())
	g.must(sys.WaitReadable(r.CallFD(), vhostusertest.Timeout))
	for !fresh.PendingUsed() {
		time.Sleep(time.Millisecond)
	}
	g.must(b.check(4))
}

// A device that leaves requests in the ring for now is not asked for them again and again.
func TestDeviceThatLeavesRequestsInTheRingIsLeftAlone(t *testing.T) {
	d := &sleeper{reverser: newReverser(1), calls: make(chan struct{}, 10_000)}
	checkFDs(t)
	b, err := vhostuser.New(vhostuser.Config{Device: d, Reactors: newReactors(t)})
	if err != nil {
		t.Fatal(err)
	}
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeConn(context.Background(), conn) }()
	g := &rig{Frontend: f, t: t, dev: d.reverser, mem: newMem(t), served: served}
	defer func() {
		f.Close()
		<-served
	}()
	g.handshake()
	r := g.start(0, 8)
	bufs := newBuffers(g.mem)
	bufs.fill(1)
	r.Add(bufs.in, bufs.out)
	g.must(r.Notify())
	time.Sleep(20 * time.Millisecond)
	// A reactor looks a few times before it sleeps; one that goes on and on comes by more often by
	// far.
	if n := len(d.calls); n > 2000 {
		t.Errorf("Process was called %d times", n)
	}
	d.q.Loop().Do(func() { d.awake = true })
	d.q.Wake()
	_, _, err = r.Wait()
	g.must(err)
	g.must(bufs.check(1))
}

type sleeper struct {
	*reverser
	q     *vhostuser.Queue
	awake bool // the reactor's
	calls chan struct{}
}

func (d *sleeper) StartQueue(q *vhostuser.Queue) error {
	d.q = q
	return d.reverser.StartQueue(q)
}

func (d *sleeper) Process(q *vhostuser.Queue) bool {
	if !d.awake {
		select {
		case d.calls <- struct{}{}:
		default:
		}
		return false
	}
	return d.reverser.Process(q)
}

func TestDeviceCanGiveARingUp(t *testing.T) {
	dev := newReverser(2)
	queues := make(map[int]*vhostuser.Queue)
	dev.onStart = func(q *vhostuser.Queue) error { queues[q.Index()] = q; return nil }
	g := newRig(t, dev)
	g.handshake()
	r, other := g.start(0, 8), g.start(1, 8)
	dev.setHold(true)
	b := newBuffers(g.mem)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	dev.setHold(false)
	enough := errors.New("enough")
	queues[0].Loop().Do(func() {
		queues[0].Break(enough)
		queues[0].Break(errors.New("once more"))
	})
	if !r.Failed() {
		t.Error("the error descriptor was not signalled")
	}
	if broken := g.rec.find(vhostuser.EventBreak); len(broken) != 1 || !errors.Is(broken[0].Err, enough) {
		t.Errorf("break events %v, want one for %q", broken, enough)
	}
	g.io(other, 3)
	// What was in flight ends, and the guest sees nothing of it.
	g.must(r.Stop())
	if r.PendingUsed() {
		t.Error("a request was completed on a broken ring")
	}
}

// A Process that hands a chain on before it looks at it, and is cut short by a fault, may push the
// chain all the same.
func TestChainLostInAFaultMayStillBePushed(t *testing.T) {
	endedByFault(t, &hasty{}, func(r *vhostusertest.Ring, far uint64) {
		r.Add([]virtqtest.Seg{{Addr: far, Len: 16}}, nil)
	})
}

// endedByFault serves one ring, on which add puts something that leads to an address far off, where
// there is no memory any more.
func endedByFault(t *testing.T, d vhostuser.Device, add func(r *vhostusertest.Ring, far uint64)) {
	checkFDs(t)
	b, err := vhostuser.New(vhostuser.Config{Device: d, Reactors: newReactors(t)})
	if err != nil {
		t.Fatal(err)
	}
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeConn(context.Background(), conn) }()
	g := &rig{Frontend: f, t: t, mem: newMem(t), served: served}
	defer f.Close()
	g.handshake()
	r := g.start(0, 8)
	add(r, 1<<32+1<<20-4096) // the last page of the file
	file := os.NewFile(uintptr(mustDup(t, g.mem.FD())), "mem")
	defer file.Close()
	g.must(file.Truncate(2<<20 - 4096))
	g.must(r.Notify())
	var fe *vhostuser.FaultError
	if err := <-served; !errors.As(err, &fe) {
		t.Errorf("ServeConn: %v, want a FaultError", err)
	}
}

// A chain that was popped before is its owner's, whoever that may be by then: a fault in the next
// Pop leaves it in flight.
func TestAFaultInPopLeavesEarlierChainsInFlight(t *testing.T) {
	d := &keeper{left: -1}
	endedByFault(t, d, func(r *vhostusertest.Ring, far uint64) {
		r.Add([]virtqtest.Seg{{Addr: 0, Len: 16}}, nil)
		head, _ := r.AddIndirect([]virtqtest.Seg{{Addr: 0, Len: 16}}, nil)
		r.SetDesc(int(head), virtqtest.Desc{Addr: far, Len: virtqtest.DescSize, Flags: virtqtest.DescIndirect})
	})
	if d.left != 1 {
		t.Errorf("%d chains in flight after the fault, want 1", d.left)
	}
}

// keeper takes two chains, and pushes the first when the ring is stopped.
type keeper struct {
	vhostuser.BaseDevice
	chains [2]virtq.Chain
	left   int // in flight by then
}

func (d *keeper) Process(q *vhostuser.Queue) bool {
	return q.Pop(&d.chains[0]) && q.Pop(&d.chains[1])
}

func (d *keeper) StopDevice(rings []*vhostuser.Queue, _ vhostuser.Stop) {
	q := rings[0]
	q.Loop().Do(func() {
		if d.left = q.InFlight(); d.chains[0].InFlight() {
			q.Push(&d.chains[0], 0)
		}
	})
}

type hasty struct {
	vhostuser.BaseDevice
	chain virtq.Chain
}

func (d *hasty) Process(q *vhostuser.Queue) bool {
	if q.Pop(&d.chain) {
		q.Post(func() { q.Push(&d.chain, 0) })
		d.chain.Read(make([]byte, 1))
	}
	return false
}

func (d *hasty) StopDevice(rings []*vhostuser.Queue, _ vhostuser.Stop) {
	if err := rings[0].WaitIdle(context.Background()); err != nil {
		panic(err)
	}
}

func TestQueueTellsWhatItIs(t *testing.T) {
	dev := newReverser(2)
	var q *vhostuser.Queue
	dev.onStart = func(started *vhostuser.Queue) error { q = started; return nil }
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(1, 16)
	if q.Index() != 1 || q.Size() != 16 {
		t.Errorf("index %d, size %d", q.Index(), q.Size())
	}
	b := newBuffers(g.mem)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	q.Loop().Do(func() {
		if n := q.InFlight(); n != 1 {
			t.Errorf("in flight %d", n)
		}
	})
}

// TestQueueTellsWhetherTheDriverGoesOn has what tells a pause from a reset, with an in-flight
// region and without one.
func TestQueueTellsWhetherTheDriverGoesOn(t *testing.T) {
	for _, region := range []bool{false, true} {
		start := func(g *rig, r *vhostusertest.Ring, want bool) {
			t.Helper()
			g.must(r.Start())
			if got := g.dev.queue().Driver() != vhostuser.DriverNew; got != want {
				t.Errorf("region %v: ring %d at base %d: the driver goes on: %v, want %v", region, r.Index, r.Base, got, want)
			}
		}
		g := newRig(t, newReverser(2))
		g.handshake()
		var shared *vhostusertest.Inflight
		renew := func() {
			if region {
				shared = g.newInflight(2, 8)
			}
		}
		again := func() {
			if region {
				g.must(g.SetInflightFD(shared))
			}
		}
		renew()
		a, b := g.ring(0, 8), g.ring(1, 8)
		start(g, a, false)
		start(g, b, false)
		g.io(b, 3)
		g.must(b.Stop())
		start(g, b, false) // it was stopped alone: the device goes on as it has begun
		g.io(b, 1)

		// A pause. The first ring has done nothing.
		g.must(a.Stop())
		g.must(b.Stop())
		again()
		g.must(a.Setup())
		g.must(b.Setup())
		g.must(g.SetVringKick(a.Index, a.KickFD()))
		g.must(g.SetVringKick(b.Index, b.KickFD()))
		start(g, a, true)
		start(g, b, true)

		// The same over another connection.
		g.must(g.hangUp())
		g.connect()
		g.handshake()
		again()
		b.Reconnect(g.Frontend)
		start(g, b, true)

		// A reset as newer front-ends tell it.
		g.must(b.Stop())
		g.must(g.ResetDevice())
		g.must(g.SetFeatures(g.Features()))
		renew()
		b = g.ring(1, 8)
		start(g, b, false)
		g.io(b, 2)

		// As older ones do, with a driver that does not use the ring.
		g.must(b.Stop())
		renew()
		a = g.ring(0, 8)
		start(g, a, false)
	}
}
