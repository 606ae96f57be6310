package vhostuser_test

import (
	"context"
	"runtime"
	"testing"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// sink uses each chain at once, and allocates nothing.
type sink struct {
	vhostuser.BaseDevice
	chain virtq.Chain
}

func (d *sink) Process(q *vhostuser.Queue) bool {
	for range 64 {
		if !q.Pop(&d.chain) {
			return false
		}
		q.Push(&d.chain, 0)
	}
	return true
}

// driver keeps a ring of a sink full, and polls for what comes back.
type driver struct {
	ring *vhostusertest.Ring
	buf  []virtqtest.Seg
}

func newDriver(tb testing.TB) *driver {
	tb.Helper()
	b, err := vhostuser.New(vhostuser.Config{Device: new(sink), Reactors: newReactors(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		tb.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.ServeConn(context.Background(), conn) }()
	g := &rig{Frontend: f, t: tb, mem: newMem(tb), served: served}
	tb.Cleanup(func() {
		f.Close()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	g.handshake()
	return &driver{g.start(0, 128), []virtqtest.Seg{{Addr: g.mem.Alloc(4096, 4096), Len: 4096}}}
}

// do does n requests, depth at a time.
func (d *driver) do(tb testing.TB, n, depth int) {
	for added, used := 0, 0; used < n; {
		for added < n && added-used < depth {
			if _, ok := d.ring.Add(d.buf, nil); !ok {
				tb.Fatal("no room")
			}
			added++
		}
		if err := d.ring.Notify(); err != nil {
			tb.Fatal(err)
		}
		before := used
		for _, _, ok := d.ring.Used(); ok; _, _, ok = d.ring.Used() {
			used++
		}
		if used == before {
			runtime.Gosched()
		}
	}
}

func TestRequestsDoNotAllocate(t *testing.T) {
	d := newDriver(t)
	d.do(t, 1000, 32)
	if n := testing.AllocsPerRun(10, func() { d.do(t, 1000, 32) }); n >= 10 {
		t.Errorf("%v allocations for 1000 requests", n)
	}
}

func BenchmarkRequest(b *testing.B) {
	for name, depth := range map[string]int{"depth=1": 1, "depth=32": 32} {
		b.Run(name, func(b *testing.B) {
			d := newDriver(b)
			d.do(b, 1000, depth)
			b.ReportAllocs()
			b.ResetTimer()
			d.do(b, b.N, depth)
		})
	}
}
