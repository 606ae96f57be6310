package vhostuser_test

import (
	"slices"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
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

// TestRingsShareOneReactorWhereTheyAreToDoSo: in one session. The next one may have another.
func TestRingsShareOneReactorWhereTheyAreToDoSo(t *testing.T) {
	for _, one := range []bool{false, true} {
		d := newReverser(8)
		loops := make(map[vhostuser.Loop]int)
		d.onStart = func(q *vhostuser.Queue) error {
			loops[q.Loop()]++
			return nil
		}
		g := newRigConfig(t, d, vhostuser.Config{OneReactor: one})
		for range 3 {
			g.handshake()
			var rings []*vhostusertest.Ring
			for i := range 8 {
				rings = append(rings, g.start(i, 8))
			}
			for _, r := range rings {
				g.io(r, 1)
				g.must(r.Stop())
			}
			if n := len(loops); (n == 1) != one {
				t.Errorf("one reactor %v: 8 rings are on %v", one, loops)
			}
			clear(loops)
			g.must(g.hangUp())
			g.connect()
		}
	}
}

// TestChainsAreAsLongAsTheBackendAllows: see virtq.Config.MaxIndirect.
func TestChainsAreAsLongAsTheBackendAllows(t *testing.T) {
	for _, c := range []struct {
		allowed, n int
		fits       bool
	}{{0, 1024, true}, {0, 1025, false}, {2048, 2048, true}, {2048, 2049, false}} {
		d := newReverser(1)
		g := newRigConfig(t, d, vhostuser.Config{MaxChain: c.allowed})
		g.handshake()
		r := g.start(0, 8)
		b := newBuffers(g.mem)
		in := slices.Repeat(b.in, c.n-len(b.out))
		if _, ok := r.AddIndirect(in[:c.n-len(b.out)], b.out); !ok {
			t.Fatal("no room")
		}
		g.must(r.Notify())
		if c.fits {
			_, _, err := r.Wait()
			g.must(err)
		} else if err := sys.WaitReadable(r.ErrFD(), vhostusertest.Timeout); err != nil {
			t.Errorf("%+v: %v", c, err)
		}
	}
	for _, n := range []int{-1, virtq.MaxSize + 1} {
		if _, err := vhostuser.New(vhostuser.Config{Device: newReverser(1), Reactors: newReactors(t), MaxChain: n}); err == nil {
			t.Errorf("chains of %d are taken", n)
		}
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
