//go:build !race

package virtioblk

import (
	"math"
	"runtime"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/vnd"
	"vdev/internal/reactor"
)

// TestRequestsAllocateNothing counts over the whole way, from the kick to the used ring, with the
// front-end's side polling. (Under the race detector pools forget on purpose.)
func TestRequestsAllocateNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("it tries every kind of disk many times")
	}
	whole, pieces := []int{4096}, []int{512, 1536, 2048}
	for _, c := range []struct {
		name   string
		mode   reactor.Mode
		disk   disk
		pieces []int
	}{
		{"null", reactor.ModeURing, nullDisk, whole},
		{"md", reactor.ModeURing, mdDisk(md.Config{Size: diskSize}), whole},
		{"md/vectored", reactor.ModeURing, mdDisk(md.Config{Size: diskSize}), pieces},
		{"vnd", reactor.ModeURing, vndDisk, whole},
		{"vnd/vectored", reactor.ModeURing, vndDisk, pieces},
		{"vnd/tmpfs", reactor.ModeURing, vndInMemory, whole},
		{"vnd/direct", reactor.ModeURing, vndDirect, whole},
		{"vnd/bounce", reactor.ModeURing, vndBounce, whole},
		{"vnd/bounce,vectored", reactor.ModeURing, vndBounce, pieces},
		{"vnd/threads", reactor.ModeThreads, vndDisk, whole},
		{"vnd/threads,vectored", reactor.ModeThreads, vndDisk, pieces},
		{"vnd/threads,bounce", reactor.ModeThreads, vndBounce, whole},
		{"nbd", reactor.ModeURing, nbdDisk, whole},
		{"nbd/vectored", reactor.ModeURing, nbdDisk, pieces},
		{"nbd/threads", reactor.ModeThreads, nbdDisk, whole},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newBench(t, c.mode, 1, c.disk, nil)
			w.start(w.all())
			b := newLoadInPieces(w, 16, c.pieces...)
			b.run(tIn, 2000)
			b.run(tOut, 2000)
			// Not testing.AllocsPerRun: it leaves one processor to both sides. The few that are
			// left are the runtime's, and those of lists that grow, once, when the machine is busy
			// and more than ever is on its way.
			least := uint64(math.MaxUint64)
			for range 5 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				b.run(tIn, 2000)
				b.run(tOut, 2000)
				runtime.ReadMemStats(&after)
				if least = min(least, after.Mallocs-before.Mallocs); least <= 50 {
					return
				}
			}
			t.Errorf("%d allocations in 4000 requests", least)
		})
	}
}

func vndDirect(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	return vndWith(t, table, t.TempDir(), vnd.Config{Direct: true})
}

func vndBounce(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	return vndWith(t, table, t.TempDir(), vnd.Config{Bounce: true})
}

// TestAFaultDiskWithoutRulesAllocatesNothing: see TestRequestsAllocateNothing.
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
			b.run(tIn, 2000)
			b.run(tOut, 2000)
			runtime.ReadMemStats(&after)
			// A collection empties the pool of transfers.
			if n := after.Mallocs - before.Mallocs; n > 500 {
				t.Errorf("%d allocations in 4000 requests", n)
			}
		})
	}
}
