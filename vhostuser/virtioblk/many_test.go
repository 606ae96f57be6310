package virtioblk

import (
	"sync/atomic"
	"testing"
	"time"

	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// TestARingWithManyRequestsIsStoppedAloneInATimeLinearInThem, and another device's ring on the
// same reactors goes on meanwhile. What grew with the square of them took 27 s here.
func TestARingWithManyRequestsIsStoppedAloneInATimeLinearInThem(t *testing.T) {
	const most = 32768
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:read:blocks=8-8")
		w, _ := newSuspendBench(t, mode, 2, f.disk, noInflight, func(c *benchConfig) { c.CancelAfter = time.Millisecond })
		w.check(w.rings[0].Stop())
		w.rings[0].Close()
		large := must(w.f.NewRing(w.mem, 0, most))(t)
		w.rings[0] = large
		w.check(large.Start())
		header, data, status := w.header(tIn, 8), w.buffer(512), w.buffer(1)
		for range most {
			if _, ok := large.AddIndirect([]virtqtest.Seg{header}, []virtqtest.Seg{data, status}); !ok {
				t.Fatal("no room")
			}
		}
		w.check(large.Notify())
		for begun := time.Now(); w.ring(0).InFlight < most; time.Sleep(20 * time.Millisecond) {
			if time.Since(begun) > vhostusertest.Timeout {
				t.Skipf("the machine is too busy to have %d requests in flight", most)
			}
		}
		var longest atomic.Int64
		ended, gone := make(chan struct{}), make(chan struct{})
		defer func() {
			close(ended)
			<-gone
		}()
		go func() {
			defer close(gone)
			for {
				select {
				case <-ended:
					return
				default:
				}
				begun := time.Now()
				w.do(1, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)})
				if d := int64(time.Since(begun)); d > longest.Load() {
					longest.Store(d)
				}
				time.Sleep(100 * time.Microsecond)
			}
		}()
		time.Sleep(20 * time.Millisecond)
		begun := time.Now()
		w.check(large.Stop())
		took := time.Since(begun)
		if took > 20*time.Second {
			t.Errorf("it took %v", took)
		}
		t.Logf("stopped in %v; the neighbour's longest read took %v", took, time.Duration(longest.Load()))
		if got := int(large.UsedIdx()); got != most {
			t.Errorf("%d requests were answered", got)
		}
	})
}
