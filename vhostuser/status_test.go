package vhostuser_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// status asks the rig's back-end, which must answer for every ring that runs.
func (g *rig) status() vhostuser.Status {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(g.t.Context(), vhostusertest.Timeout)
	defer cancel()
	return g.backend.Status(ctx)
}

func (g *rig) ringStatus(i int) vhostuser.RingStatus {
	g.t.Helper()
	st := g.status()
	if st.FrontEnd == nil {
		g.t.Fatal("no front-end is told of")
	}
	return st.FrontEnd.Rings[i]
}

func TestStatusForgetsWhatWasSuspendedWithTheRegion(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	g.newInflight(1, 16)
	r := g.start(0, 16)
	g.hold(r, 3)
	g.disableAll(r)
	_, err := g.GetVringBase(0)
	g.must(err)
	if st := g.ringStatus(0); st.Suspended != 3 {
		t.Errorf("after the stop it is %+v", st)
	}
	g.must(g.ResetDevice())
	if st := g.ringStatus(0); st.Suspended != 0 {
		t.Errorf("after the reset it is %+v", st)
	}
}

func TestStatusTellsTheFrontEndAndWhatWasNegotiated(t *testing.T) {
	g := newRig(t, newReverser(3))
	g.handshake()
	f := g.status().FrontEnd
	if f == nil {
		t.Fatal("no front-end is told of")
	}
	if f.PID != os.Getpid() || f.UID != os.Geteuid() || f.Since.IsZero() {
		t.Errorf("the front-end is process %d of user %d, since %v", f.PID, f.UID, f.Since)
	}
	if f.Features != g.Features() || f.Protocol != g.ProtocolFeatures() || f.Regions != 2 || f.Memory != 2<<20 {
		t.Errorf("the session is %+v; want features %#x and %#x, 2 regions of 2 MiB", *f, g.Features(), uint64(g.ProtocolFeatures()))
	}
	if len(f.Rings) != 3 || f.Message != "" {
		t.Errorf("%d rings, message %q; want 3 and none", len(f.Rings), f.Message)
	}
	region, err := g.NewInflight(3, 8)
	g.must(err)
	defer region.Close()
	if before, after := f.Inflight, g.status().FrontEnd.Inflight; before || !after {
		t.Errorf("in-flight region: %v before it came, %v afterwards", before, after)
	}
	if names := f.Protocol.Names(); !slices.Contains(names, "REPLY_ACK") || !slices.Contains(names, "MQ") {
		t.Errorf("the protocol features are %q", names)
	}
	if err := g.hangUp(); err != nil {
		t.Error(err)
	}
	if st := g.status(); st.FrontEnd != nil || st.Waiting {
		t.Errorf("after the end of the connection: %+v", st)
	}
}

func TestStatusFollowsTheStateOfARing(t *testing.T) {
	dev := newReverser(1)
	g := newRig(t, dev)
	g.handshake()
	is := func(want vhostuser.RingState) {
		t.Helper()
		if got := g.ringStatus(0); got.State != want || got.Known != (want == vhostuser.RingRunning || want == vhostuser.RingDisabled) {
			t.Errorf("the ring is %+v, want it %s", got, want)
		}
	}
	is(vhostuser.RingStopped)
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringKick(0, r.KickFD()))
	g.must(g.Barrier())
	is(vhostuser.RingStarted)
	g.must(g.SetVringEnable(0, true))
	g.must(g.Barrier())
	is(vhostuser.RingRunning)
	g.io(r, 3)
	if got := g.ringStatus(0); got.Size != 8 || got.Next != 3 || got.Used != 3 || got.InFlight != 0 || got.Pending {
		t.Errorf("after 3 requests: %+v", got)
	}
	dev.setHold(true)
	b := newBuffers(g.mem)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	if got := g.ringStatus(0); got.Next != 4 || got.Used != 3 || got.InFlight != 1 {
		t.Errorf("with a request in flight: %+v", got)
	}
	g.must(g.SetVringEnable(0, false))
	g.must(g.Barrier())
	is(vhostuser.RingDisabled)
	_, err := g.GetVringBase(0)
	g.must(err)
	is(vhostuser.RingStopped)
}

func TestStatusAnswersWhileAStopWaits(t *testing.T) {
	dev := newReverser(1)
	release := make(chan struct{})
	dev.onStop = func(q *vhostuser.Queue, _ vhostuser.Stop) {
		<-release
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
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	answered := make(chan error)
	go func() {
		_, err := g.GetVringBase(0)
		answered <- err
	}()
	dev.waitFor(t, "stop 0 base")
	st := g.status().FrontEnd
	if st == nil || st.Message != "GET_VRING_BASE" || st.MessageAt.IsZero() {
		t.Fatalf("while the stop waits: %+v", st)
	}
	if got := st.Rings[0]; got.State != vhostuser.RingStopping || got.Why != vhostuser.StopBase || !got.Known || got.InFlight != 1 {
		t.Errorf("the ring is %+v", got)
	}
	close(release)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	if st := g.status().FrontEnd; st.Message != "" || st.Rings[0].State != vhostuser.RingStopped {
		t.Errorf("after the stop: %+v", st)
	}
}

func TestStatusTellsWhoWaitsToBeServed(t *testing.T) {
	dev := newReverser(1)
	goOn := make(chan struct{})
	dev.onStop = func(*vhostuser.Queue, vhostuser.Stop) { <-goOn }
	s := serve(t, dev)
	mem := newMem(t)
	first := s.dial(t)
	_, err := first.Handshake(vhostusertest.AllProtocolFeatures)
	err = errors.Join(err, first.SetFeatures(vhostuser.FProtocolFeatures), first.AddMemory(mem))
	if err != nil {
		t.Fatal(err)
	}
	r, err := first.NewRing(mem, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	first.Close()
	dev.waitFor(t, "stop 0 disconnect")
	second := s.dial(t)
	// Who is told off comes after the one who waits.
	third := s.dial(t)
	if _, _, err := third.Receive(); err == nil {
		t.Error("a third front-end is served")
	}
	st := s.backend.Status(t.Context())
	if !st.Waiting || st.FrontEnd == nil || st.FrontEnd.Rings[0].Why != vhostuser.StopDisconnect {
		t.Errorf("the status is %+v", st)
	}
	close(goOn)
	if _, err := second.GetFeatures(); err != nil {
		t.Error(err)
	}
	if st := s.backend.Status(t.Context()); st.Waiting || st.FrontEnd == nil {
		t.Errorf("with the second front-end: %+v", st)
	}
}

func TestStatusTellsABrokenRing(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	r.Add([]virtqtest.Seg{{Addr: 1 << 50, Len: 16}}, nil) // there is no such memory
	g.must(r.Notify())
	for len(g.rec.find(vhostuser.EventBreak)) == 0 {
		g.must(g.Barrier())
	}
	if got := g.ringStatus(0); got.State != vhostuser.RingBroken || got.Err == nil {
		t.Errorf("the ring is %+v", got)
	}
}

func TestStatusDoesNotWaitForAReactorThatIsBusy(t *testing.T) {
	dev := newReverser(1)
	entered, release := make(chan *vhostuser.Queue, 1), make(chan struct{})
	dev.onStart = func(q *vhostuser.Queue) error {
		q.Post(func() { entered <- q; <-release })
		return nil
	}
	g := newRig(t, dev)
	g.handshake()
	r := g.ring(0, 8)
	started := make(chan error)
	go func() { started <- r.Start() }()
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, r := range g.backend.Status(ctx).FrontEnd.Rings {
		if r.Known {
			t.Errorf("the reactor stands still, and has told %+v", r)
		}
	}
	close(release)
	g.must(<-started)
}
