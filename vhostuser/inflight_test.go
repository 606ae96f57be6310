package vhostuser_test

import (
	"context"
	"testing"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
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
	d.onStop = func(q *vhostuser.Queue, _ vhostuser.StopReason) {
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
