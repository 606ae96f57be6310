//go:build !race

package nbd

import (
	"runtime"
	"testing"

	"vdev/devsw"
)

// TestAWriteThatProvesNothingAllocatesNothing: zeroes prove nothing, so each write is looked at.
// (Under the race detector pools forget on purpose.)
func TestAWriteThatProvesNothingAllocatesNothing(t *testing.T) {
	r := newRig(t)
	d := r.opened(Config{URI: nbdkit(t, "memory", "size=1M").uri(), Connections: 2})
	cl := r.softc(d.Dev).last.Load()
	now := func() proof {
		cl.mu.Lock()
		defer cl.mu.Unlock()
		return cl.proof
	}
	done := make(chan struct{}, 1)
	b := &devsw.Buf{Dev: d.Dev, Op: devsw.BWrite, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096,
		Iodone: func(*devsw.Buf) { done <- struct{}{} }}
	looked := 0
	n := testing.AllocsPerRun(100, func() {
		b.Rearm()
		r.table.BdevStrategy(b)
		<-done
		for ; now() == proofRuns; runtime.Gosched() {
			looked = 1
		}
	})
	if p := now(); n != 0 || looked == 0 || p != proofLacks || b.Error != 0 {
		t.Errorf("%v allocations for each write; looked at: %d, proof: %d, error: %v", n, looked, p, b.Error)
	}
}
