package virtqtest_test

import (
	"encoding/binary"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func newMem(t *testing.T, ranges ...virtqtest.Range) *virtqtest.Mem {
	t.Helper()
	mem, err := virtqtest.NewMem(ranges...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mem.Close)
	return mem
}

func mustPanic(t *testing.T, what string, f func()) {
	t.Helper()
	defer func() {
		t.Helper()
		if recover() == nil {
			t.Errorf("%s did not panic", what)
		}
	}()
	f()
}

func TestAllocGivesEachByteOnceAligned(t *testing.T) {
	mem := newMem(t, virtqtest.Range{GuestPhys: 0x1000, Size: 0x1000}, virtqtest.Range{GuestPhys: 0x8000, Size: 0x2000})
	for _, want := range []struct{ n, align, gpa uint64 }{
		{1, 1, 0x1000}, {1, 16, 0x1010}, {0x800, 0x800, 0x1800}, {1, 1, 0x8000}, {0x1000, 0x1000, 0x9000},
	} {
		if got := mem.Alloc(want.n, want.align); got != want.gpa {
			t.Errorf("Alloc(%#x, %#x) = %#x, want %#x", want.n, want.align, got, want.gpa)
		}
	}
	mustPanic(t, "Alloc without room", func() { mem.Alloc(1, 1) })
	mustPanic(t, "AllocIn without room", func() { mem.AllocIn(0, 1, 1) })
}

func TestBytesRefusesWhatIsNotInOnePiece(t *testing.T) {
	mem := newMem(t, virtqtest.Range{GuestPhys: 0, Size: 0x1000}, virtqtest.Range{GuestPhys: 0x1000, Size: 0x1000},
		virtqtest.Range{GuestPhys: 0x4000, Size: 0x1000})
	if b := mem.Bytes(0xff0, 0x20); len(b) != 0x20 || cap(b) != 0x20 {
		t.Errorf("%d bytes across regions", len(b))
	}
	mustPanic(t, "a hole", func() { mem.Bytes(0x1fff, 2) })
	mustPanic(t, "over a hole", func() { mem.Bytes(0x1fff, 0x3000) })
	mustPanic(t, "outside", func() { mem.Bytes(0x5000, 1) })
}

func TestTheDriverCatchesADeviceThatMisbehaves(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	seg := []virtqtest.Seg{{Addr: mem.Alloc(1, 1), Len: 1}}
	for _, id := range []uint32{8, 1 << 31, 3} {
		d := virtqtest.New(mem, 8, virtq.FeatureVersion1)
		d.Add(seg, nil)
		d.Kick()
		binary.LittleEndian.PutUint32(d.UsedBytes()[4:], id)
		d.UsedBytes()[2] = 1
		mustPanic(t, "Used of a head not in flight", func() { d.Used() })
	}
}

func TestDescriptorsAreFreeAgainOnceUsed(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x10000})
	d := virtqtest.New(mem, 4, virtq.FeatureIndirectDesc)
	seg := virtqtest.Seg{Addr: mem.Alloc(1, 1), Len: 1}
	long := []virtqtest.Seg{seg, seg, seg}
	for i := range 20 {
		head, ok := d.Add(long, nil)
		other, ok2 := d.AddIndirect(long, []virtqtest.Seg{seg, seg})
		if !ok || !ok2 || d.Room() != 0 || d.InFlight() != 4 {
			t.Fatalf("round %d: %v, %v, room %d", i, ok, ok2, d.Room())
		}
		if _, ok := d.Add(long[:1], nil); ok {
			t.Fatal("a chain without a free descriptor")
		}
		if _, ok := d.AddIndirect(long[:1], nil); ok {
			t.Fatal("an indirect chain without a free descriptor")
		}
		d.Kick()
		for k, h := range []uint16{other, head} {
			used := 2*i + k
			binary.LittleEndian.PutUint32(d.UsedBytes()[4+8*(used%4):], uint32(h))
			binary.LittleEndian.PutUint16(d.UsedBytes()[2:], uint16(used+1))
			if got, _, ok := d.Used(); !ok || got != h {
				t.Fatalf("used %d, %v, want %d", got, ok, h)
			}
		}
		if d.Room() != 4 {
			t.Fatalf("room %d", d.Room())
		}
	}
}
