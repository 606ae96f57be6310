//go:build !race

package virtioblk

import (
	"runtime"
	"testing"

	"vdev/internal/dev/md"
	"vdev/internal/reactor"
)

// TestAFaultDiskWithoutRulesAllocatesNothing: see TestRequestsAllocateNothing. (Under the race detector pools forget on purpose.)
func TestAFaultDiskWithoutRulesAllocatesNothing(t *testing.T) {
	for name, lower := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
		t.Run(name, func(t *testing.T) {
			w := newBench(t, reactor.ModeURing, 1, newFaulty(t, lower).disk, nil)
			w.start(w.all())
			b := newLoad(w, 16)
			b.run(tIn, 2000)
			b.run(tOut, 2000)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b.run(tIn, 5000)
			b.run(tOut, 5000)
			runtime.ReadMemStats(&after)
			// A collection empties the pool of transfers.
			if n := after.Mallocs - before.Mallocs; n > 500 {
				t.Errorf("%d allocations in 10000 requests", n)
			}
		})
	}
}
