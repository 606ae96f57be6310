package vhostuser_test

import (
	"testing"
	"time"

	"vdev/devsw"
	"vdev/vhostuser"
)

// TestADeviceHasTimersOnItsReactor: one that wakes its ring up later, and one that it stops.
func TestADeviceHasTimersOnItsReactor(t *testing.T) {
	for _, aio := range []vhostuser.Mode{vhostuser.ModeURing, vhostuser.ModeThreads} {
		t.Run(string(aio), func(t *testing.T) {
			d := &dozer{reverser: newReverser(1), woken: make(chan struct{}, 1)}
			g := newRigFor(t, d, d.reverser, aio)
			g.handshake()
			r := g.start(0, 8)
			q := d.queue()
			loop := q.Loop()
			var stopped *vhostuser.Timer
			q.Loop().Do(func() {
				d.asleep = true
				stopped = q.Loop().AfterFunc(time.Hour, func() { t.Error("a stopped timer fires") })
				q.Loop().AfterFunc(time.Millisecond, func() {
					if !stopped.Reset(0) || !stopped.Stop() || stopped.Stop() {
						t.Error("it was set, and is stopped once")
					}
					if q.Loop() != loop {
						t.Error("a Queue has one reactor")
					}
					d.asleep = false
					d.woken <- struct{}{}
					q.Wake()
				})
			})
			g.io(r, 1)
			select {
			case <-d.woken:
			default:
				t.Error("the ring was served before its time")
			}
			g.must(r.Stop())
		})
	}
}

// dozer leaves what is in the ring there while it is asleep.
type dozer struct {
	*reverser
	asleep bool // the reactor's
	woken  chan struct{}
}

func (d *dozer) Process(q *vhostuser.Queue) bool { return !d.asleep && d.reverser.Process(q) }

// TestALoopHasWhatDriversLookForInAnAIO: more than file transfers, by interfaces that a driver asks
// for.
func TestALoopHasWhatDriversLookForInAnAIO(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	g.start(0, 8)
	aio := g.dev.queue().Loop().AIO()
	if _, ok := aio.(devsw.Turner); !ok {
		t.Error("it is no devsw.Turner")
	}
	if _, ok := aio.(devsw.Watcher); !ok {
		t.Error("it is no devsw.Watcher")
	}
}

func TestReactorsTellHowTheyWork(t *testing.T) {
	for asked, want := range map[vhostuser.Mode][]vhostuser.Mode{
		"":                    {vhostuser.ModeURing, vhostuser.ModeThreads},
		vhostuser.ModeThreads: {vhostuser.ModeThreads},
		vhostuser.ModeStepped: {vhostuser.ModeStepped},
	} {
		r, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: asked})
		if err != nil {
			t.Fatal(err)
		}
		if got := r.Mode(); got != want[0] && got != want[len(want)-1] {
			t.Errorf("%q: they work by %q", asked, got)
		}
		r.Close()
	}
	if r, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: "aio"}); err == nil {
		t.Errorf("%v, no error, for a Mode that does not exist", r)
	}
}
