//go:build !race

package virtioconsole

import (
	"math"
	"runtime"
	"testing"

	"vdev/internal/test/consoletest"
)

// TestChainsAllocateNothing counts over the whole way, from the kick to the used ring. (Under the
// race detector pools forget on purpose.)
func TestChainsAllocateNothing(t *testing.T) {
	for name, port := range map[string]Port{"console": console(0), "data": data(0, "a")} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, several(port))
			l := r.lines[0]
			l.do(func() { l.discard = true })
			r.must(r.g.Bind())
			p := r.awaitPort(0, func(p *consoletest.Port) bool { return p.HostOpen })
			r.must(p.Open())
			b := pattern(16)
			out := func() {
				for range 2000 {
					r.must(p.Transmit(b, consoletest.Shape{}))
					r.must(p.Flush())
				}
			}
			l.do(func() { l.endless = true })
			in := func() {
				r.must(r.g.Poll())
				for range 2000 {
					r.wait("input", func() bool { return p.Buffered() > 0 })
					r.must(p.Skip(len(p.Peek())))
				}
			}
			for what, f := range map[string]func(){"output": out, "input": in} {
				f()
				// The few that are left are the runtime's, the test's closures, and those of lists
				// that grow.
				least := uint64(math.MaxUint64)
				for range 5 {
					var before, after runtime.MemStats
					runtime.ReadMemStats(&before)
					f()
					runtime.ReadMemStats(&after)
					if least = min(least, after.Mallocs-before.Mallocs); least <= 50 {
						break
					}
				}
				if least > 50 {
					t.Errorf("%s: %d allocations for 2000 chains", what, least)
				}
			}
		})
	}
}

// TestIdlePortsTakeLittleMemory: three devices of 31 ports, all open.
func TestIdlePortsTakeLittleMemory(t *testing.T) {
	var ports []Port
	for id := range uint32(MaxPorts) {
		ports = append(ports, data(id, ""))
	}
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	r := newRig(t, several(ports...), func(c *setup) { c.MaxPorts, c.guest.RingSize = MaxPorts, 4 })
	before := heap()
	r.must(r.g.Bind())
	for id := range uint32(MaxPorts) {
		p := r.awaitPort(id, func(p *consoletest.Port) bool { return p.HostOpen })
		r.write(p, "x")
		r.lines[id].say("y")
		r.must(p.Open())
		r.readString(p, "y")
	}
	// Of this the guest's side has the most.
	if n := int64(heap() - before); n > MaxPorts*20<<10 {
		t.Errorf("%d bytes for %d ports", n, MaxPorts)
	}
}
