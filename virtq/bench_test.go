package virtq_test

import (
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// ringWith is a ring with a driver and a device.
type ringWith struct {
	mem    *virtqtest.Mem
	memory *virtq.Memory
	driver *virtqtest.Driver
	queue  *virtq.Queue
}

func newRing(tb testing.TB, size int, features uint64) *ringWith {
	tb.Helper()
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 8 << 20})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(mem.Close)
	return newRingIn(tb, mem, virtqtest.New(mem, size, features))
}

func newRingIn(tb testing.TB, mem *virtqtest.Mem, d *virtqtest.Driver) *ringWith {
	tb.Helper()
	memory, err := mem.Memory()
	if err != nil {
		tb.Fatal(err)
	}
	q, err := virtq.New(memory, d.Layout())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		q.Close()
		memory.Release()
	})
	return &ringWith{mem, memory, d, q}
}

// blkSegs are the buffers of a virtio-blk read of 4 KiB: header, data, status.
func blkSegs(mem *virtqtest.Mem) (readable, writable []virtqtest.Seg) {
	return []virtqtest.Seg{{Addr: mem.Alloc(16, 16), Len: 16}},
		[]virtqtest.Seg{{Addr: mem.Alloc(4096, 4096), Len: 4096}, {Addr: mem.Alloc(1, 1), Len: 1}}
}

// BenchmarkDevice is the device's own part for one chain: Pop, Push and its share of Publish. The ring is filled and
// emptied by putting the indices back, so that no driver's work is measured.
func BenchmarkDevice(b *testing.B) {
	for _, bc := range []struct {
		name     string
		features uint64
		indirect bool
		batch    int
	}{
		{"direct/batch=1", virtq.FeatureVersion1 | virtq.FeatureEventIdx, false, 1},
		{"direct/batch=32", virtq.FeatureVersion1 | virtq.FeatureEventIdx, false, 32},
		{"indirect/batch=1", virtq.FeatureVersion1 | virtq.FeatureEventIdx | virtq.FeatureIndirectDesc, true, 1},
		{"indirect/batch=32", virtq.FeatureVersion1 | virtq.FeatureEventIdx | virtq.FeatureIndirectDesc, true, 32},
		{"flags/batch=1", 0, false, 1},
		{"flags/batch=32", 0, false, 32},
	} {
		b.Run(bc.name, func(b *testing.B) {
			const size = 128
			r := newRing(b, size, bc.features)
			readable, writable := blkSegs(r.mem)
			heads := make([]uint16, 0, 32)
			for range 32 {
				add := r.driver.Add
				if bc.indirect {
					add = r.driver.AddIndirect
				}
				head, ok := add(readable, writable)
				if !ok {
					b.Fatal("no room")
				}
				heads = append(heads, head)
			}
			// All entries of the ring name the same heads, over and over: never one twice in 32.
			for i := len(heads); i < size; i++ {
				r.driver.Offer(heads[i%len(heads)])
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
			r := newRing(b, 128, virtq.FeatureVersion1|virtq.FeatureEventIdx|virtq.FeatureIndirectDesc)
			readable, writable := blkSegs(r.mem)
			add := r.driver.Add
			if indirect {
				add = r.driver.AddIndirect
			}
			var c virtq.Chain
			b.ReportAllocs()
			for b.Loop() {
				add(readable, writable)
				r.driver.Kick()
				if ok, err := r.queue.Pop(&c); !ok || err != nil {
					b.Fatal(ok, err)
				}
				r.queue.Push(&c, 4097)
				r.queue.Publish()
				if _, _, ok := r.driver.Used(); !ok {
					b.Fatal("nothing used")
				}
			}
		})
	}
}
