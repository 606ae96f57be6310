package vhostuser_test

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"os"
	"slices"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
)

// suspendHeld suspends what is held back. On the reactor.
func (d *reverser) suspendHeld(q *vhostuser.Queue) {
	l := q.Data.(*lane)
	for _, c := range l.held {
		q.Suspend(c)
		l.free = append(l.free, c)
	}
	l.held = nil
}

// suspends makes the device suspend at every stop what it holds back.
func (d *reverser) suspends() *reverser {
	d.onStop = func(q *vhostuser.Queue, _ vhostuser.Stop) {
		q.Post(func() { d.suspendHeld(q) })
		if err := q.WaitIdle(context.Background()); err != nil {
			panic(err)
		}
	}
	return d
}

// hold adds n requests to r that the device holds back, and returns their buffers.
func (g *rig) hold(r *vhostusertest.Ring, n int) []buffers {
	g.t.Helper()
	g.dev.mu.Lock()
	g.dev.hold, g.dev.held = true, 0
	g.dev.mu.Unlock()
	bufs := make([]buffers, n)
	for i := range bufs {
		bufs[i] = newBuffers(g.mem)
		bufs[i].fill(i)
		if _, ok := r.Add(bufs[i].in, bufs[i].out); !ok {
			g.t.Fatal("no room in the ring")
		}
	}
	g.must(r.Notify())
	g.dev.waitHeld(g.t, n)
	g.dev.setHold(false)
	return bufs
}

// answered checks that what was held back is answered now, once and in order.
func (g *rig) answered(r *vhostusertest.Ring, bufs []buffers) {
	g.t.Helper()
	for i, b := range bufs {
		_, _, err := r.Wait()
		g.must(err)
		g.must(b.check(i))
	}
	if r.PendingUsed() {
		g.t.Error("more answers than requests")
	}
}

func (g *rig) newInflight(queues, size int) *vhostusertest.Inflight {
	g.t.Helper()
	region, err := g.NewInflight(queues, size)
	g.must(err)
	g.t.Cleanup(region.Close)
	return region
}

// lastField returns a field of the last event of a kind.
func (r *recorder) lastField(kind vhostuser.EventKind, name string) any {
	events := r.find(kind)
	if len(events) == 0 {
		return nil
	}
	for _, f := range events[len(events)-1].Fields {
		if f.Name == name {
			return f.Value
		}
	}
	return nil
}

func TestSuspendedRequestsComeAgainAfterAPause(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	region := g.newInflight(1, 16)
	r := g.start(0, 16)
	g.io(r, 5)
	bufs := g.hold(r, 3)
	g.must(r.Stop())
	if r.Base != 5 {
		t.Errorf("base %d, want 5, less what is suspended", r.Base)
	}
	if n := g.rec.lastField(vhostuser.EventStop, "suspended"); n != 3 {
		t.Errorf("%v suspended in the trace, want 3", n)
	}
	g.must(g.SetStatus(0))

	// QEMU sends the same region again, and no GET_INFLIGHT_FD.
	g.must(g.SetFeatures(g.Features()))
	g.must(g.SetInflightFD(region))
	g.must(r.Start())
	g.answered(r, bufs)
	if n := g.rec.lastField(vhostuser.EventStart, "resubmitted"); n != 3 {
		t.Errorf("%v resubmitted in the trace, want 3", n)
	}
	g.io(r, 5)
	g.must(r.Stop())
	if r.Base != 13 {
		t.Errorf("base %d, want 13", r.Base)
	}
}

func TestSuspendedRequestsComeAgainOverAnotherConnection(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	region := g.newInflight(1, 16)
	r := g.start(0, 16)
	g.io(r, 5)
	bufs := g.hold(r, 3)
	g.must(g.hangUp())

	g.connect()
	g.handshake()
	g.must(g.SetInflightFD(region))
	r.Reconnect(g.Frontend)
	g.must(r.Start())
	g.answered(r, bufs)
	g.io(r, 20)
}

func TestEachRegionAskedForIsNewAndSealed(t *testing.T) {
	g := newRig(t, newReverser(3))
	g.handshake()
	var before []byte
	for range 2 {
		region, err := g.GetInflightFD(2, 128)
		g.must(err)
		defer region.Close()
		want := vhostuser.Inflight{MmapSize: 2 * 2112, NumQueues: 2, QueueSize: 128}
		if region.Inflight != want {
			t.Errorf("region %+v, want %+v", region.Inflight, want)
		}
		b := mapped(t, region)
		if !bytes.Equal(b, make([]byte, len(b))) {
			t.Error("the region is not all zero")
		}
		b[0], before = 1, b
		f := os.NewFile(uintptr(mustDup(t, region.FD())), "region")
		defer f.Close()
		if err := f.Truncate(4096); err == nil {
			t.Error("the region can be cut off")
		}
	}
	if before[0] != 1 {
		t.Error("not shared")
	}
	// Asking is not yet having: rings that start now have none.
	if g.startQueue(0, 8); g.hasRegion() {
		t.Error("a ring has a region that was not sent again")
	}
}

// By the specification the description has 20 bytes; QEMU sends 24, and wants them back.
func TestInflightDescriptionMayLackItsPadding(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	for _, size := range []int{20, 24} {
		payload := vhostuser.Inflight{NumQueues: 1, QueueSize: 8}.Append(nil)[:size]
		p, err := g.Ask(vhostuser.GetInflightFD, payload)
		if err != nil || len(p) != size {
			t.Errorf("%d bytes answered by %d, %v", size, len(p), err)
		}
		region, err := g.GetInflightFD(1, 8)
		g.must(err)
		g.must(g.Tell(vhostuser.SetInflightFD, region.Append(nil)[:size], region.FD()))
		region.Close()
	}
}

// mapped maps a region as a front-end does.
func mapped(t testing.TB, region *vhostusertest.Inflight) []byte {
	t.Helper()
	b, err := sys.Mmap(region.FD(), 0, int(region.MmapSize), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sys.Munmap(b) })
	return b
}

// startQueue starts a ring, and returns what the device sees of it.
func (g *rig) startQueue(index, size int) *vhostuser.Queue {
	g.t.Helper()
	g.start(index, size)
	return g.dev.queue()
}

// TestAStopSuspendsWhereTheRegionReachesTheNextStart: for GET_VRING_BASE that is one that travels,
// since the guest may be saved, and for a front-end that has gone it is any.
func TestAStopSuspendsWhereTheRegionReachesTheNextStart(t *testing.T) {
	const shmfd, base = vhostuser.ProtocolInflightSHMFD, vhostuser.ProtocolGetVringBaseInflight
	for _, c := range []struct {
		name             string
		want             vhostuser.ProtocolFeatures
		regions          int // queues in the region, 0 for none
		ring             int
		suspend, migrate bool
	}{
		{"region and bit 20", vhostusertest.AllProtocolFeatures, 2, 1, true, true},
		{"region without bit 20", ^base, 2, 1, true, false},
		{"bit 20 without a region", vhostusertest.AllProtocolFeatures, 0, 1, false, false},
		{"ring beyond the region", vhostusertest.AllProtocolFeatures, 1, 1, false, false},
		{"bit 20 alone", ^shmfd, 0, 1, false, false},
		{"neither", ^(shmfd | base), 0, 0, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			dev := newReverser(2)
			suspends := make(map[vhostuser.StopReason]bool)
			dev.onStop = func(q *vhostuser.Queue, how vhostuser.Stop) { suspends[how.Reason] = how.Suspends(q) }
			g := newRig(t, dev)
			features, err := g.Handshake(c.want)
			g.must(err)
			g.must(g.SetFeatures(features))
			g.must(g.AddMemory(g.mem))
			if c.regions > 0 {
				g.newInflight(c.regions, 16)
			}
			g.startQueue(c.ring, 8)
			_, err = g.GetVringBase(c.ring)
			g.must(err)
			g.startQueue(c.ring, 8)
			g.must(g.hangUp())
			want := map[vhostuser.StopReason]bool{vhostuser.StopBase: c.migrate, vhostuser.StopDisconnect: c.suspend}
			if !maps.Equal(suspends, want) {
				t.Errorf("suspends %v, want %v", suspends, want)
			}
		})
	}
}

// hasRegion tells whether the ring that was started last has a part in an in-flight region.
func (g *rig) hasRegion() bool { return g.rec.lastField(vhostuser.EventStart, "resubmitted") != nil }

func TestRegionCannotBeChangedWhileARingRuns(t *testing.T) {
	g := newRig(t, newReverser(2).suspends())
	g.handshake()
	region := g.newInflight(1, 16)
	r := g.start(0, 16)
	if err := g.SetInflightFD(region); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("SET_INFLIGHT_FD: %v, want a refusal", err)
	}
	bufs := g.hold(r, 2)
	// Asking for a new one changes nothing.
	if other, err := g.GetInflightFD(1, 16); err != nil {
		t.Error(err)
	} else {
		other.Close()
	}
	g.must(r.Stop())
	g.must(r.Start())
	g.answered(r, bufs)
}

func TestBaseIsIgnoredWithARegion(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	g.newInflight(1, 16)
	r := g.start(0, 16)
	g.io(r, 3)
	bufs := g.hold(r, 2)
	g.must(r.Stop())
	r.Base = 1000
	g.must(r.Start())
	g.answered(r, bufs)
	g.io(r, 3)
}

// A reset is the end of what was suspended: the guest has forgotten it, and has a new ring in the
// same place.
func TestResetDropsTheRegion(t *testing.T) {
	for _, how := range []string{"stopped before", "running"} {
		t.Run(how, func(t *testing.T) {
			g := newRig(t, newReverser(1).suspends())
			g.handshake()
			region := g.newInflight(1, 16)
			r := g.start(0, 16)
			g.io(r, 1)
			bufs := g.hold(r, 2)
			if how == "stopped before" {
				g.must(r.Stop())
			}
			g.must(g.ResetDevice())
			g.must(g.SetFeatures(g.Features()))
			if q := g.startQueue(0, 16); g.hasRegion() || q.Resubmitted() != 0 {
				t.Error("the ring has a region after a reset")
			}
			_, err := g.GetVringBase(0)
			g.must(err)
			if bytes.Equal(bufs[0].mem.Bytes(bufs[0].out[0].Addr, 1), []byte{'0'}) {
				t.Error("a request was done that the guest has forgotten")
			}
			// What the front-end has kept is its own affair.
			g.must(g.SetInflightFD(region))
		})
	}
}

func TestNewSessionDropsTheRegion(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	g.newInflight(1, 16)
	g.hold(g.start(0, 16), 2)
	g.handshake()
	if g.startQueue(0, 16); g.hasRegion() {
		t.Error("the ring has a region of the session before")
	}
}

// What is in the region can be the guest's fault, or another back-end's: it breaks the ring, and
// leaves the others alone.
func TestBadRegionBreaksItsRing(t *testing.T) {
	for _, c := range []struct {
		name string
		size int // of the ring, in a region for 16
		set  func(region []byte)
	}{
		{"ring larger than the region's queues", 32, func([]byte) {}},
		{"unknown version", 16, func(b []byte) { b[8] = 9 }},
		{"index of another ring", 16, func(b []byte) { b[8], b[10], b[14] = 1, 16, 77 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, newReverser(2))
			g.handshake()
			c.set(mapped(t, g.newInflight(2, 16)))
			bad := g.start(0, c.size)
			g.io(g.start(1, 16), 3)
			if !bad.Failed() {
				t.Error("the error descriptor was not signalled")
			}
			broken := g.rec.find(vhostuser.EventBreak)
			if len(broken) != 1 || broken[0].Ring != 0 || !errors.Is(broken[0].Err, virtq.ErrInflight) {
				t.Errorf("break events %v, want one for the region of ring 0", broken)
			}
		})
	}
}

// A front-end can take its own region away: that ends its connection, as with guest memory.
func TestFaultOnTheRegionEndsTheConnection(t *testing.T) {
	for _, when := range []string{"before the start", "while it runs"} {
		t.Run(when, func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			fd, err := sys.NewMemfd("region", 4096)
			g.must(err)
			region := vhostusertest.NewInflight(vhostuser.Inflight{MmapSize: 4096, NumQueues: 1, QueueSize: 16}, fd)
			defer region.Close()
			g.must(g.SetInflightFD(region))
			f := os.NewFile(uintptr(mustDup(t, region.FD())), "region")
			defer f.Close()
			if when == "before the start" {
				g.must(f.Truncate(0))
			}
			r := g.ring(0, 16)
			_ = r.Start()
			if when == "while it runs" {
				g.io(r, 3)
				g.must(f.Truncate(0))
				b := newBuffers(g.mem)
				b.fill(1)
				r.Add(b.in, b.out)
				g.must(r.Notify())
			}
			var fault *vhostuser.FaultError
			if err := g.wait(); !errors.As(err, &fault) {
				t.Errorf("ServeConn: %v, want a FaultError", err)
			}
		})
	}
}

// What is unpopped at a stop is taken from the region, which may fault; all of it is unpopped all
// the same.
func TestFaultOnTheRegionKeepsNothingInFlight(t *testing.T) {
	dev := newReverser(1)
	var region *os.File
	left := -1
	dev.onStop = func(q *vhostuser.Queue, _ vhostuser.Stop) {
		if err := region.Truncate(0); err != nil {
			t.Error(err)
		}
		q.Post(func() {
			l := q.Data.(*lane)
			for _, c := range slices.Backward(l.held) {
				q.Unpop(c)
			}
			l.held = nil
		})
		q.Loop().Do(func() { left = q.InFlight() })
	}
	g := newRig(t, dev)
	g.handshake()
	fd, err := sys.NewMemfd("region", 4096)
	g.must(err)
	desc := vhostusertest.NewInflight(vhostuser.Inflight{MmapSize: 4096, NumQueues: 1, QueueSize: 16}, fd)
	defer desc.Close()
	region = os.NewFile(uintptr(mustDup(t, desc.FD())), "region")
	defer region.Close()
	g.must(g.SetInflightFD(desc))
	g.hold(g.start(0, 16), 3)
	_, _ = g.GetVringBase(0)
	var fault *vhostuser.FaultError
	if err := g.wait(); !errors.As(err, &fault) {
		t.Errorf("ServeConn: %v, want a FaultError", err)
	}
	if left != 0 {
		t.Errorf("%d requests left in flight", left)
	}
}
