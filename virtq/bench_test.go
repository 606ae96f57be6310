package virtq_test

import (
	"testing"

	"vdev/virtq"
)

// BenchmarkDevice is the device's own part for one chain: Pop, Push and its share of Publish.
// Entries of the available ring are offered once, and from then on only avail.idx moves, so that
// hardly any driver's work is measured. With inflight there is an in-flight region, with logged a
// dirty log.
func BenchmarkDevice(b *testing.B) {
	for _, bc := range []struct {
		name     string
		features uint64
		indirect bool
		batch    int
		tracked  bool
		logged   bool
	}{
		{"direct/batch=1", modern, false, 1, false, false},
		{"direct/batch=32", modern, false, 32, false, false},
		{"direct/batch=128", modern, false, 128, false, false},
		{"indirect/batch=1", modern, true, 1, false, false},
		{"indirect/batch=32", modern, true, 32, false, false},
		{"indirect/batch=128", modern, true, 128, false, false},
		{"flags/batch=1", 0, false, 1, false, false},
		{"flags/batch=32", 0, false, 32, false, false},
		{"inflight/batch=1", modern, false, 1, true, false},
		{"inflight/batch=32", modern, false, 32, true, false},
		{"logged/batch=1", modern, false, 1, false, true},
		{"logged/batch=32", modern, false, 32, false, true},
	} {
		b.Run(bc.name, func(b *testing.B) {
			const size, heads = 512, 128
			r := newRing(b, size, bc.features)
			if bc.tracked {
				r = r.restart(b, make([]byte, virtq.InflightSize(size)))
			}
			if bc.logged {
				l := newBitmap(b, 8<<20/page/8)
				defer l.close()
				if err := r.queue.SetLog(virtq.DirtyLog{Log: l.Log, Data: true, Used: true, UsedAddr: r.driver.UsedPhys()}); err != nil {
					b.Fatal(err)
				}
				defer r.queue.SetLog(virtq.DirtyLog{})
			}
			readable, writable := r.blkSegs()
			add := r.driver.Add
			if bc.indirect {
				add = r.driver.AddIndirect
			}
			var offered []uint16
			for range heads {
				head, ok := add(readable, writable)
				if !ok {
					b.Fatal("no room")
				}
				offered = append(offered, head)
			}
			// All entries of the ring name these heads over and over, no one twice in a batch.
			for i := heads; i < size; i++ {
				r.driver.Offer(offered[i%heads])
			}
			chains := make([]virtq.Chain, bc.batch)
			idx := uint16(0)
			b.ReportAllocs()
			for i := 0; i < b.N; i += bc.batch {
				idx += uint16(bc.batch)
				r.driver.SetAvailIdx(idx)
				for k := range chains {
					if ok, err := r.queue.Pop(&chains[k]); !ok || err != nil {
						b.Fatal(ok, err)
					}
				}
				for k := range chains {
					r.queue.Push(&chains[k], 4097)
				}
				r.queue.Publish()
			}
		})
	}
}

// BenchmarkBothSides adds what the driver does.
func BenchmarkBothSides(b *testing.B) {
	for _, indirect := range []bool{false, true} {
		name := "direct"
		if indirect {
			name = "indirect"
		}
		b.Run(name, func(b *testing.B) {
			r := newRing(b, 128, modern)
			readable, writable := r.blkSegs()
			add := r.driver.Add
			if indirect {
				add = r.driver.AddIndirect
			}
			var c virtq.Chain
			b.ReportAllocs()
			for b.Loop() {
				add(readable, writable)
				r.driver.Kick()
				r.pop(b, &c)
				r.queue.Push(&c, 4097)
				r.queue.Publish()
				if _, _, ok := r.driver.Used(); !ok {
					b.Fatal("nothing used")
				}
			}
		})
	}
}
