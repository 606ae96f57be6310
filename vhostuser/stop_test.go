package vhostuser_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// stops has the device note what its stops and pauses are called with.
type stops struct {
	rings []int
	how   vhostuser.Stop
	next  time.Duration // when it returned
}

// stopLog is the stops of a device.
type stopLog struct {
	mu  sync.Mutex
	all []stops
}

func (l *stopLog) add(how vhostuser.Stop, queues ...*vhostuser.Queue) {
	s := stops{how: how, next: how.Next()}
	for _, q := range queues {
		s.rings = append(s.rings, q.Index())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, s)
}

func (l *stopLog) get() []stops {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

// noteStops has the calls of StopDevice, StopQueue and PauseQueue noted. Held requests end in each.
func noteStops(dev *reverser) *stopLog {
	l := new(stopLog)
	dev.onStops = func(rings []*vhostuser.Queue, how vhostuser.Stop) { l.add(how, rings...) }
	dev.onPause = func(q *vhostuser.Queue, how vhostuser.Stop) {
		l.add(how, q)
		q.Post(func() { dev.finishHeld(q) })
		if err := q.WaitIdle(context.Background()); err != nil {
			panic(err)
		}
	}
	return l
}

// disableAll disables all rings.
func (g *rig) disableAll(rings ...*vhostusertest.Ring) {
	g.t.Helper()
	for _, r := range rings {
		g.must(g.SetVringEnable(r.Index, false))
	}
}

// TestADeviceIsStoppedOnce, at the first GET_VRING_BASE when no ring is enabled, whichever ring
// that is about, and the others are answered from what that left.
func TestADeviceIsStoppedOnce(t *testing.T) {
	dev := newReverser(3)
	all := noteStops(dev)
	g := newRig(t, dev)
	g.handshake()
	rings := []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8), g.start(2, 8)}
	for i, r := range rings {
		g.io(r, i+1)
	}
	g.disableAll(rings...)
	dev.life()
	for n, i := range []int{1, 0, 2} {
		base, err := g.GetVringBase(i)
		g.must(err)
		if int(base) != i+1 {
			t.Errorf("ring %d: base %d, want %d", i, base, i+1)
		}
		want := map[int]string{0: "stop 0 base, stop 1 base, stop 2 base"}[n]
		if got := dev.life(); got != want {
			t.Errorf("GET_VRING_BASE of ring %d: %q, want %q", i, got, want)
		}
	}
	if s := all.get(); len(s) != 1 || !slices.Equal(s[0].rings, []int{0, 1, 2}) || !s[0].how.WholeDevice {
		t.Errorf("the device is stopped by %+v", s)
	}
	if n := len(g.rec.find(vhostuser.EventStop)); n != 3 {
		t.Errorf("%d rings are said to have stopped, want 3", n)
	}
	for i, r := range rings {
		r.Base = uint16(i + 1)
		g.must(r.Start())
		g.io(r, 2)
	}
}

// TestARingIsStoppedAloneWhileOthersAreEnabled, whether it was disabled before or not; the last one
// is the device.
func TestARingIsStoppedAloneWhileOthersAreEnabled(t *testing.T) {
	dev := newReverser(3)
	all := noteStops(dev)
	g := newRig(t, dev)
	g.handshake()
	rings := []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8), g.start(2, 8)}
	g.disableAll(rings[0])
	dev.life()
	for i, want := range []string{"stop 0 alone, base", "stop 1 alone, base", "stop 2 base"} {
		_, err := g.GetVringBase(i)
		g.must(err)
		if got := dev.life(); got != want {
			t.Errorf("ring %d: %s, want %s", i, got, want)
		}
		if s := all.get()[i]; s.how.WholeDevice != (i == 2) || !slices.Equal(s.rings, []int{i}) {
			t.Errorf("ring %d: %+v", i, s)
		}
		if i < 2 {
			g.io(rings[2], 1)
		}
	}
}

// TestARingThatWasStoppedWithTheDeviceStartsAnewWhereItWasLeft when it is enabled again: the
// front-end never asked for its base.
func TestARingThatWasStoppedWithTheDeviceStartsAnewWhereItWasLeft(t *testing.T) {
	t.Run("no region", func(t *testing.T) {
		dev := newReverser(2)
		g := newRig(t, dev)
		g.handshake()
		r0, r1 := g.start(0, 8), g.start(1, 8)
		g.io(r1, 11)
		g.disableAll(r0, r1)
		_, err := g.GetVringBase(0)
		g.must(err)
		// It is not fetched from, and the kick is not lost.
		b := newBuffers(g.mem)
		b.fill(7)
		r1.Add(b.in, b.out)
		g.idle(r1)
		dev.life()
		g.must(g.SetVringEnable(1, true))
		_, _, err = r1.Wait()
		g.must(err)
		g.must(b.check(7))
		if got := dev.life(); got != "start 1" {
			t.Errorf("device's life: %s, want start 1", got)
		}
		if got := dev.queue().Driver(); got != vhostuser.DriverSame {
			t.Errorf("the driver's origin is %v, want %v", got, vhostuser.DriverSame)
		}
		g.io(r1, 9)
		base, err := g.GetVringBase(1)
		g.must(err)
		if base != 21 {
			t.Errorf("base %d, want 21", base)
		}
	})
	t.Run("suspended", func(t *testing.T) {
		dev := newReverser(2).suspends()
		g := newRig(t, dev)
		g.handshake()
		g.newInflight(2, 16)
		r0, r1 := g.start(0, 16), g.start(1, 16)
		bufs := g.hold(r1, 3)
		g.disableAll(r0, r1)
		_, err := g.GetVringBase(0)
		g.must(err)
		if r1.PendingUsed() {
			t.Error("a suspended request was completed")
		}
		if st := g.ringStatus(1); st.Known || st.Suspended != 3 || st.Resubmitted != 0 {
			t.Errorf("the ring that was stopped is %+v", st)
		}
		g.must(g.SetVringEnable(1, true))
		if q := dev.queue(); q.Index() != 1 || q.Resubmitted() != 3 || q.Driver() != vhostuser.DriverSame {
			t.Errorf("ring %d starts with %d requests, of driver %v", q.Index(), q.Resubmitted(), q.Driver())
		}
		if st := g.ringStatus(1); !st.Known || st.Suspended != 0 || st.Resubmitted != 3 {
			t.Errorf("the ring that was started is %+v", st)
		}
		g.answered(r1, bufs)
	})
}

// TestNoRingIsFetchedFromWhileADeviceStops, though all were enabled, in each way a device is
// stopped by one message.
func TestNoRingIsFetchedFromWhileADeviceStops(t *testing.T) {
	for name, end := range map[string]func(*rig){
		"RESET_DEVICE": func(g *rig) { g.must(g.ResetDevice()) },
		"SET_OWNER":    func(g *rig) { g.must(g.SetOwner()) },
		"hang-up":      func(g *rig) { g.must(g.hangUp()) },
	} {
		t.Run(name, func(t *testing.T) {
			dev := newReverser(2)
			var g *rig
			var rings []*vhostusertest.Ring
			calls := 0
			turn := make(chan struct{}, 1) // who has it uses the rings
			dev.onStops = func(queues []*vhostuser.Queue, how vhostuser.Stop) {
				<-turn
				defer func() { turn <- struct{}{} }()
				calls++
				if len(queues) != 2 || !how.WholeDevice || !how.Revoke || how.Deadline.After(time.Now()) {
					t.Errorf("%d rings, %+v", len(queues), how)
				}
				for _, r := range rings {
					b := newBuffers(g.mem)
					r.Add(b.in, b.out)
					g.must(r.Notify())
				}
				time.Sleep(5 * time.Millisecond) // time in which a request would be fetched
				for _, q := range queues {
					q.Loop().Do(func() {
						if n := q.InFlight(); n != 0 {
							t.Errorf("ring %d has %d requests in flight", q.Index(), n)
						}
					})
				}
			}
			g = newRig(t, dev)
			g.handshake()
			rings = append(rings, g.start(0, 8), g.start(1, 8))
			turn <- struct{}{}
			end(g)
			if _, err := g.GetFeatures(); !g.ended && err != nil {
				t.Error(err)
			}
			<-turn
			if calls != 1 {
				t.Errorf("the device was stopped %d times", calls)
			}
		})
	}
}

// TestAStopOfSeveralMessagesHasOneDeadline: the first ring with something in flight sets it. It
// ends when a ring is enabled or started, and StopGap after the last answer.
func TestAStopOfSeveralMessagesHasOneDeadline(t *testing.T) {
	const after = 10 * time.Minute
	begin := func(t *testing.T, gap time.Duration) (*rig, []*vhostusertest.Ring, *stopLog) {
		dev := newReverser(3)
		all := noteStops(dev)
		g := newRigConfig(t, dev, vhostuser.Config{CancelAfter: after, StopGap: gap})
		g.handshake()
		return g, []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8), g.start(2, 8)}, all
	}
	// held has a request of the ring in flight.
	held := func(g *rig, r *vhostusertest.Ring) {
		g.t.Helper()
		g.hold(r, 1)
	}
	base := func(g *rig, r *vhostusertest.Ring) {
		g.t.Helper()
		_, err := g.GetVringBase(r.Index)
		g.must(err)
	}
	deadlines := func(all []stops) (d []string) {
		seen := make(map[time.Time]string)
		for _, s := range all {
			name := "none"
			if !s.how.Deadline.IsZero() {
				if seen[s.how.Deadline] == "" {
					seen[s.how.Deadline] = fmt.Sprint("deadline ", len(seen)+1)
				}
				name = seen[s.how.Deadline]
			}
			d = append(d, name)
		}
		return d
	}
	for name, c := range map[string]struct {
		gap  time.Duration
		do   func(*rig, []*vhostusertest.Ring)
		want string
	}{
		"rings are disabled and stopped": {time.Hour, func(g *rig, r []*vhostusertest.Ring) {
			held(g, r[0])
			held(g, r[1])
			g.disableAll(r[0], r[1])
			held(g, r[2])
			base(g, r[0]) // nothing is in flight
			base(g, r[2])
		}, "deadline 1, deadline 1, none, deadline 1"},
		"one is enabled in between": {time.Hour, func(g *rig, r []*vhostusertest.Ring) {
			held(g, r[0])
			g.disableAll(r[0])
			g.must(g.SetVringEnable(0, true))
			held(g, r[1])
			g.disableAll(r[1])
		}, "deadline 1, deadline 2"},
		"one is started in between": {time.Hour, func(g *rig, r []*vhostusertest.Ring) {
			held(g, r[0])
			g.must(r[0].Stop())
			g.must(r[0].Start())
			held(g, r[1])
			g.must(r[1].Stop())
		}, "deadline 1, none, deadline 2, none"},
		"another one is stopped much later": {time.Nanosecond, func(g *rig, r []*vhostusertest.Ring) {
			held(g, r[0])
			g.disableAll(r[0])
			held(g, r[1])
			g.disableAll(r[1])
		}, "deadline 1, deadline 2"},
		"one with nothing in flight begins none": {time.Hour, func(g *rig, r []*vhostusertest.Ring) {
			g.must(r[0].Stop())
			held(g, r[1])
			g.must(r[1].Stop())
		}, "none, deadline 1, none"},
	} {
		t.Run(name, func(t *testing.T) {
			g, rings, all := begin(t, c.gap)
			before := time.Now()
			c.do(g, rings)
			if got := strings.Join(deadlines(all.get()), ", "); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
			for _, s := range all.get() {
				if d := s.how.Deadline; !d.IsZero() && (d.Before(before.Add(after)) || d.After(time.Now().Add(after))) {
					t.Errorf("a deadline is %v from now", time.Until(d))
				}
			}
		})
	}
}

// TestAStopTellsWhetherMoreIsLikely: rings are disabled one by one, and after a hang-up all are
// stopped.
func TestAStopTellsWhetherMoreIsLikely(t *testing.T) {
	const gap = time.Hour
	dev := newReverser(3)
	all := noteStops(dev)
	g := newRigConfig(t, dev, vhostuser.Config{CancelAfter: time.Hour, StopGap: gap})
	g.handshake()
	rings := []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8), g.start(2, 8)}
	base := func(i int) {
		t.Helper()
		_, err := g.GetVringBase(i)
		g.must(err)
	}
	base(0) // by itself
	g.hold(rings[1], 1)
	g.disableAll(rings[1])
	base(1) // of the same stop
	g.must(rings[1].Start())
	base(1) // that is over
	g.must(g.hangUp())
	var got []time.Duration
	for _, s := range all.get() {
		got = append(got, s.next)
	}
	if want := []time.Duration{0, gap, gap, 0, gap}; !slices.Equal(got, want) {
		t.Errorf("more is likely for %v, want %v", got, want)
	}
}
