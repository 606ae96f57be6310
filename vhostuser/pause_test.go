package vhostuser_test

import (
	"context"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
)

// waitPaused is a PauseQueue that waits for what the device holds, or until the front-end has hung
// up.
func waitPaused(q *vhostuser.Queue, how vhostuser.Stop) (givenUp bool) {
	return q.WaitIdle(how.Context()) != nil
}

// pausing is a rig whose device holds requests of ring 0, which it has.
func pausing(t *testing.T, dev *reverser, requests int) (*rig, *vhostusertest.Ring, []buffers) {
	g := newRig(t, dev)
	g.handshake()
	dev.setHold(true)
	r := g.start(0, 8)
	var bufs []buffers
	for i := range requests {
		b := newBuffers(g.mem)
		b.fill(i)
		r.Add(b.in, b.out)
		bufs = append(bufs, b)
	}
	g.must(r.Notify())
	dev.waitHeld(t, requests)
	return g, r, bufs
}

// sendDisable disables a ring and does not wait for an answer.
func (g *rig) sendDisable(index int, flags uint32) {
	g.t.Helper()
	g.must(g.Request(vhostuser.SetVringEnable, flags, vhostuser.VringState{Index: uint32(index)}.Append(nil)))
}

// TestWhatHasJustEndedIsShownBeforeADisableIsAnswered: the request ends in the same turn of the
// event loop as the disable, which finds nothing in flight, and the turn goes on after the answer.
func TestWhatHasJustEndedIsShownBeforeADisableIsAnswered(t *testing.T) {
	g, r, _ := pausing(t, newReverser(1), 1)
	r.Called()
	q := g.dev.queue()
	begun, begin, end := make(chan struct{}), make(chan struct{}), make(chan struct{})
	q.Post(func() { close(begun); <-begin })
	<-begun // what is posted from here on is for the next turn, all of it
	q.Post(func() { g.dev.finishHeld(q) })
	g.sendDisable(0, vhostuser.FlagNeedReply)
	awaitSessionAtEventLoop()
	q.Post(func() { <-end })
	close(begin)
	_, _, err := g.Receive()
	shown, called := r.PendingUsed(), r.Called()
	close(end)
	g.must(err)
	if !shown || !called {
		t.Errorf("with the answer the request is shown: %v, and signalled: %v", shown, called)
	}
}

// awaitSessionAtEventLoop returns when the goroutine of a session waits for what it has posted to
// an event loop.
func awaitSessionAtEventLoop() {
	stacks := make([]byte, 1<<20)
	for {
		for stack := range strings.SplitSeq(string(stacks[:runtime.Stack(stacks, true)]), "\n\n") {
			state, calls, _ := strings.Cut(stack, "\n")
			if strings.Contains(state, "[chan receive") && strings.Contains(calls, "reactor.(*Reactor).Do(") &&
				strings.Contains(calls, "vhostuser.(*session).") {
				return
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// TestADisableIsAnsweredWhenNothingIsInFlight, and the next message is handled only then, whether
// an answer was asked for or not. With the answer everything is used and signalled.
func TestADisableIsAnsweredWhenNothingIsInFlight(t *testing.T) {
	for name, flags := range map[string]uint32{"an answer is due": vhostuser.FlagNeedReply, "none is": 0} {
		t.Run(name, func(t *testing.T) {
			dev := newReverser(1)
			dev.onPause = func(q *vhostuser.Queue, how vhostuser.Stop) { waitPaused(q, how) }
			g, r, bufs := pausing(t, dev, 3)
			answers := 1
			g.sendDisable(0, flags)
			if flags != 0 {
				answers++
			}
			g.must(g.Request(vhostuser.GetFeatures, 0, nil))
			g.dev.waitFor(t, "pause 0")
			r.Called()
			received := make(chan error, 2)
			go func() {
				for range answers {
					_, _, err := g.Receive()
					received <- err
				}
			}()
			time.Sleep(5 * time.Millisecond) // time in which a wrong answer would come
			if len(received) != 0 || r.PendingUsed() {
				t.Fatal("a message was answered, or a request, before the requests in flight had ended")
			}
			if st := g.status().FrontEnd; st.Message != "SET_VRING_ENABLE" || st.Rings[0].State != vhostuser.RingDraining ||
				st.Rings[0].InFlight != 3 {
				t.Errorf("while the disable waits: %+v", st)
			}
			q := g.dev.queue()
			q.Post(func() { g.dev.finishHeld(q) })
			g.must(<-received)
			for i, b := range bufs {
				if _, _, ok := r.Used(); !ok {
					t.Fatal("a request was not completed")
				}
				g.must(b.check(i))
			}
			if !r.Called() {
				t.Error("the completions were not signalled")
			}
			for range answers - 1 {
				g.must(<-received)
			}
			if st := g.status().FrontEnd; st.Message != "" || st.Rings[0].State != vhostuser.RingDisabled {
				t.Errorf("after the disable: %+v", st)
			}
			var order []vhostuser.EventKind
			g.rec.mu.Lock()
			for _, e := range g.rec.events {
				switch e.Kind {
				case vhostuser.EventDisable, vhostuser.EventDrain, vhostuser.EventDrained, vhostuser.EventOut:
					order = append(order, e.Kind)
				}
			}
			g.rec.mu.Unlock()
			want := []vhostuser.EventKind{vhostuser.EventDisable, vhostuser.EventDrain, vhostuser.EventDrained, vhostuser.EventOut}
			if i := slices.Index(order, vhostuser.EventDisable); !slices.Equal(order[i:][:len(want)], want) {
				t.Errorf("the trace tells %v", order[i:])
			}
			g.dev.setHold(false)
			g.must(g.SetVringEnable(0, true))
			g.io(r, 2)
			g.must(r.Stop())
		})
	}
}

// TestAHangUpEndsTheWaitOfADisable, though the front-end had sent more.
func TestAHangUpEndsTheWaitOfADisable(t *testing.T) {
	dev := newReverser(1)
	dev.onPause = func(q *vhostuser.Queue, how vhostuser.Stop) {
		if waitPaused(q, how) {
			dev.note("given up")
		}
	}
	g, _, _ := pausing(t, dev, 1)
	g.sendDisable(0, 0)
	g.must(g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil)))
	g.dev.waitFor(t, "pause 0")
	g.must(g.hangUp())
	want := "features 0x130000000, start 0, pause 0, given up, stop 0 disconnect, end"
	if got := g.dev.life(); got != want {
		t.Errorf("device's life: %s\nwant:          %s", got, want)
	}
}

// TestAStopThatCancelsIsNotHeldUpByADisable: where the in-flight region travels, GET_VRING_BASE is
// to leave requests in it.
func TestAStopThatCancelsIsNotHeldUpByADisable(t *testing.T) {
	dev := newReverser(1)
	dev.onPause = func(*vhostuser.Queue, vhostuser.Stop) { dev.note("waits") }
	g := newRig(t, dev)
	g.handshake()
	region, err := g.GetInflightFD(1, 8)
	g.must(err)
	defer region.Close()
	g.must(g.SetInflightFD(region))
	dev.setHold(true)
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	r.Add(b.in, b.out)
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	g.must(g.SetVringEnable(0, false))
	if got := dev.life(); strings.Contains(got, "waits") || r.PendingUsed() {
		t.Errorf("device's life: %s", got)
	}
	g.must(r.Stop())
}

// TestResetOwnerWaitsForEveryRing, and all of them stop fetching before it waits for the first.
func TestResetOwnerWaitsForEveryRing(t *testing.T) {
	dev := newReverser(2)
	stopping := make(chan bool, 2)
	dev.onPause = func(p *vhostuser.Queue, how vhostuser.Stop) {
		stopping <- how.WholeDevice
		p.Post(func() { dev.finishHeld(p) })
		if err := p.WaitIdle(context.Background()); err != nil {
			panic(err)
		}
	}
	g, _, _ := pausing(t, dev, 1)
	other := g.start(1, 8)
	q := g.dev.queue()
	b := newBuffers(g.mem)
	b.fill(7)
	other.Add(b.in, b.out)
	g.must(other.Notify())
	g.dev.waitHeld(t, 2)
	g.must(g.ResetOwner())
	if first, second := <-stopping, <-stopping; !first || !second {
		t.Error("a ring was waited for while another one was fetched from")
	}
	g.must(b.check(7))
	q.Do(func() {
		if q.InFlight() != 0 {
			t.Error("a request is in flight")
		}
	})
}

// TestADisabledRingIsLeftAlone, whoever kicks it: its memory may be another's by now.
func TestADisabledRingIsLeftAlone(t *testing.T) {
	for name, features := range map[string]uint64{
		"event index": virtq.FeatureVersion1 | virtq.FeatureEventIdx, "flags": virtq.FeatureVersion1,
	} {
		t.Run(name, func(t *testing.T) {
			dev := newReverser(1)
			dev.features = features
			g := newRig(t, dev)
			g.handshake()
			r := g.start(0, 8)
			g.io(r, 3)
			// time for the reactor to ask for kicks, and to go to sleep
			time.Sleep(5 * time.Millisecond)
			g.must(g.SetVringEnable(0, false))
			all := g.mem.Bytes(0, 1<<20)
			before := slices.Clone(all)
			r.Called()
			for range 3 {
				g.must(sys.EventfdWrite(r.KickFD()))
				g.must(g.Barrier())
				time.Sleep(time.Millisecond)
			}
			if !slices.Equal(before, all) {
				t.Error("guest memory was written while the ring was disabled")
			}
			if r.Called() {
				t.Error("a disabled ring was signalled")
			}
			g.must(g.SetVringEnable(0, true))
			g.io(r, 3)
		})
	}
}
