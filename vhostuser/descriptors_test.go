package vhostuser_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// newNeighbour returns another device on g's reactors, with a ring that runs.
func newNeighbour(t testing.TB, reactors *vhostuser.Reactors) (*rig, *vhostusertest.Ring) {
	t.Helper()
	g := newRigWith(t, newReverser(1), reactors)
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 1)
	return g, r
}

// fill makes the counter of an eventfd full, and whoever writes to it wait.
func fill(t testing.TB, fd int) {
	t.Helper()
	sys.DrainEventfd(fd)
	if _, err := syscall.Write(fd, vhostuser.AppendU64(nil, ^uint64(0)-1)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

func TestAnEventfdThatWaitsEndsItsConnectionAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		what string
		set  func(g *rig, r *vhostusertest.Ring, fd int)
		make func(g *rig, r *vhostusertest.Ring) // makes the back-end write
	}{
		{"call", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetVringCall(0, fd))
		}, func(g *rig, r *vhostusertest.Ring) {
			b := newBuffers(g.mem)
			r.EnableCalls()
			r.Add(b.in, b.out)
			g.must(r.Notify())
		}},
		{"error", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetVringErr(0, fd))
		}, func(g *rig, r *vhostusertest.Ring) {
			q := g.dev.queue()
			q.Post(func() { q.Break(errors.New("no more")) })
		}},
		{"log", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetLogFD(fd))
			g.must(g.StartLog(newLog(g.t), r))
		}, func(g *rig, r *vhostusertest.Ring) {
			b := newBuffers(g.mem)
			r.Add(b.in, b.out)
			g.must(r.Notify())
		}},
	} {
		for _, aio := range []string{vhostuser.ModeURing, vhostuser.ModeThreads} {
			t.Run(c.what+"/"+aio, func(t *testing.T) {
				checkFDs(t)
				reactors, err := vhostuser.NewReactors(1, aio)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(reactors.Close)
				other, ring := newNeighbour(t, reactors)
				g := newRigWith(t, newReverser(1), reactors)
				g.handshake()
				r := g.ring(0, 8)
				fd, err := sys.NewEventfd()
				g.must(err)
				defer fd.Close()
				c.set(g, r, fd.Int())
				g.must(g.Barrier())
				fill(t, fd.Int())
				c.make(g, r)
				other.io(ring, 20)
				if err := g.waitCancelled(); err == nil || !strings.Contains(err.Error(), "counter is full") {
					t.Errorf("the connection ended with %v, want the cause", err)
				}
				other.io(ring, 20)
			})
		}
	}
}

func TestADeviceWhoseFrontEndMadeAReactorWaitServesNobodyForAMoment(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	g.must(g.Barrier())
	fill(t, r.CallFD())
	b := newBuffers(g.mem)
	r.EnableCalls()
	r.Add(b.in, b.out)
	begun := time.Now()
	g.must(r.Notify())
	if err := g.wait(); err == nil {
		t.Error("the connection ended without an error")
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the next front-end could come after %v, want a second", took)
	}
	g.connect()
	g.handshake()
	g.io(g.start(0, 8), 3)
}

func TestAFullCounterThatDoesNotWaitIsNoFault(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	fill(t, r.CallFD())
	g.must(syscall.SetNonblock(r.CallFD(), true))
	b := newBuffers(g.mem)
	r.EnableCalls()
	r.Add(b.in, b.out)
	g.must(r.Notify())
	for !r.PendingUsed() {
		time.Sleep(time.Millisecond)
	}
	g.must(r.Stop())
}
