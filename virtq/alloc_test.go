//go:build !race

package virtq_test

import (
	"testing"

	"vdev/virtq"
)

func TestARequestDoesNotAllocate(t *testing.T) {
	for i, features := range []uint64{0, modern, 0, modern} {
		r := newRing(t, 64, features)
		if i >= 2 {
			r = r.restart(t, make([]byte, virtq.InflightSize(64)))
		}
		readable, writable := r.blkSegs()
		add := r.driver.Add
		if features == modern {
			add = r.driver.AddIndirect
		}
		var chains [8]virtq.Chain
		if n := testing.AllocsPerRun(1000, func() {
			for range chains {
				add(readable, writable)
			}
			r.driver.Kick()
			r.queue.DisableNotify()
			for i := range chains {
				r.pop(t, &chains[i])
			}
			r.queue.Unpop(&chains[len(chains)-1])
			r.pop(t, &chains[len(chains)-1])
			for i := range chains {
				r.queue.Push(&chains[i], 1)
			}
			r.queue.Publish()
			r.queue.Pending()
			r.queue.EnableNotify()
			for range chains {
				r.driver.Used()
			}
		}); n != 0 {
			t.Errorf("features %#x: %v allocations in a batch", features, n)
		}
	}
}
