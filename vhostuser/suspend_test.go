package vhostuser_test

import (
	"errors"
	"fmt"
	"testing"

	"vdev/vhostuser"
	"vdev/virtq"
)

// TestSuspendedRequestsComeAgainOnARingThatGoesOn, before anything new, with an in-flight region
// and without.
func TestSuspendedRequestsComeAgainOnARingThatGoesOn(t *testing.T) {
	for _, region := range []bool{false, true} {
		t.Run(fmt.Sprintf("region=%v", region), func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			if region {
				g.newInflight(1, 16)
			}
			r := g.start(0, 16)
			g.io(r, 2)
			bufs := g.hold(r, 3)
			q := g.dev.queue()
			q.Do(func() {
				l := q.Data.(*lane)
				for _, i := range []int{1, 2, 0} {
					q.Suspend(l.held[i])
				}
				l.held = nil
				if q.Suspended() != 3 || q.InFlight() != 0 {
					t.Errorf("%d suspended, %d in flight", q.Suspended(), q.InFlight())
				}
			})
			more := newBuffers(g.mem)
			more.fill(len(bufs))
			r.Add(more.in, more.out)
			q.Wake()
			g.must(r.Notify())
			g.answered(r, append(bufs, more))
			g.must(r.Stop())
			if r.Base != 6 {
				t.Errorf("base %d, want 6", r.Base)
			}
		})
	}
}

// endSuspended is a StopQueue that keeps what it can in the ring, and completes the rest.
func (d *reverser) endSuspended(q *vhostuser.Queue) {
	q.Do(func() {
		d.note("unfetched %d", q.Unfetch(nil))
		for c := new(virtq.Chain); q.PopSuspended(c); c = new(virtq.Chain) {
			d.finish(q, c)
		}
	})
}

// TestAStopWithoutARegionGivesBackWhatItSuspends, or pops it once more to push it, though nothing
// is fetched any more.
func TestAStopWithoutARegionGivesBackWhatItSuspends(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		t.Run(fmt.Sprintf("disabled=%v", disabled), func(t *testing.T) {
			dev := newReverser(1)
			dev.onStop = func(q *vhostuser.Queue, _ vhostuser.Stop) {
				q.Do(func() {
					l := q.Data.(*lane)
					if len(l.held) == 0 {
						return
					}
					dev.finish(q, l.held[1])
					for _, i := range []int{0, 3, 2} {
						q.Suspend(l.held[i])
					}
					l.held = nil
				})
				dev.endSuspended(q)
			}
			g := newRig(t, dev)
			g.handshake()
			r := g.start(0, 16)
			bufs := g.hold(r, 4)
			if disabled {
				g.must(g.SetVringEnable(0, false))
			}
			r.Add(bufs[0].in, bufs[0].out) // not fetched by the stop
			g.must(r.Stop())
			dev.waitFor(t, "unfetched 2")
			if r.Base != 2 || r.UsedIdx() != 2 {
				t.Errorf("base %d, used %d, want 2", r.Base, r.UsedIdx())
			}
			for range 2 {
				r.Used()
			}
			g.must(bufs[0].check(0))
			g.must(bufs[1].check(1))
			bufs[0].fill(9)
			g.must(r.Start())
			g.must(r.Notify())
			for _, want := range []struct {
				b buffers
				n int
			}{{bufs[2], 2}, {bufs[3], 3}, {bufs[0], 9}} {
				_, _, err := r.Wait()
				g.must(err)
				g.must(want.b.check(want.n))
			}
		})
	}
}

// TestWhatAStopLeavesSuspendedEndsTheSession where no region keeps it. A ring that the guest broke
// is no reason.
func TestWhatAStopLeavesSuspendedEndsTheSession(t *testing.T) {
	for _, broken := range []bool{false, true} {
		t.Run(fmt.Sprintf("broken=%v", broken), func(t *testing.T) {
			g := newRig(t, newReverser(1).suspends())
			g.handshake()
			r := g.start(0, 16)
			g.hold(r, 1)
			if broken {
				q := g.dev.queue()
				q.Do(func() { q.Break(errors.New("test")) })
			}
			_, err := g.GetVringBase(0)
			if broken {
				g.must(err)
				_, err = g.GetFeatures()
				g.must(err)
				return
			}
			var re *vhostuser.RingError
			if err := g.wait(); !errors.As(err, &re) || re.Ring != 0 {
				t.Errorf("ServeConn: %v, want a RingError of ring 0", err)
			}
		})
	}
}
