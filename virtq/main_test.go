package virtq_test

import (
	"testing"

	"go.uber.org/goleak"

	"vdev/internal/guestmem"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// ring is a virtqueue with both its sides.
type ring struct {
	mem    *virtqtest.Mem
	memory *virtq.Memory
	driver *virtqtest.Driver
	queue  *virtq.Queue
}

const modern = virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx

// size is the number of descriptors.
func (r *ring) size() int { return len(r.driver.DescBytes()) / virtqtest.DescSize }

// guest is what is behind a Memory.
func guest(m *virtq.Memory) *guestmem.Memory { return (*guestmem.Memory)(m) }

// without makes the memory that lacks region i of mem.
func without(tb testing.TB, m *virtq.Memory, mem *virtqtest.Mem, i int) *virtq.Memory {
	tb.Helper()
	r := mem.Regions()[i]
	less, err := guest(m).Without(r.GuestPhys, r.Size, r.UserAddr)
	if err != nil {
		tb.Fatal(err)
	}
	return (*virtq.Memory)(less)
}

// newMem makes guest memory that ends with the test.
func newMem(tb testing.TB, ranges ...virtqtest.Range) *virtqtest.Mem {
	tb.Helper()
	mem, err := virtqtest.NewMem(ranges...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(mem.Close)
	return mem
}

// newRing makes a ring in 8 MiB of memory at 0.
func newRing(tb testing.TB, size int, features uint64) *ring {
	tb.Helper()
	mem := newMem(tb, virtqtest.Range{Size: 8 << 20})
	return start(tb, mem, virtqtest.New(mem, size, features))
}

// start starts the device side of d's ring.
func start(tb testing.TB, mem *virtqtest.Mem, d *virtqtest.Driver) *ring {
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
	return &ring{mem, memory, d, q}
}

// pop pops what must be there.
func (r *ring) pop(tb testing.TB, c *virtq.Chain) {
	tb.Helper()
	if ok, err := r.queue.Pop(c); !ok || err != nil {
		tb.Fatalf("Pop = %v, %v", ok, err)
	}
}

// seg allocates a buffer of n bytes.
func (r *ring) seg(n uint32) virtqtest.Seg {
	return virtqtest.Seg{Addr: r.mem.Alloc(uint64(n), 1), Len: n}
}

// blkSegs are the buffers of a virtio-blk read of 4 KiB: header, data, status.
func (r *ring) blkSegs() (readable, writable []virtqtest.Seg) {
	return []virtqtest.Seg{r.seg(16)}, []virtqtest.Seg{r.seg(4096), r.seg(1)}
}

// mustPanic fails unless f panics.
func mustPanic(tb testing.TB, what string, f func()) {
	tb.Helper()
	defer func() {
		tb.Helper()
		if recover() == nil {
			tb.Errorf("%s did not panic", what)
		}
	}()
	f()
}
