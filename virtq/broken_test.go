package virtq_test

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// The memory of the tests of malformed rings: two regions that follow one another, a hole, and a
// third.
var badRanges = []virtqtest.Range{{GuestPhys: 0, Size: 0x10000}, {GuestPhys: 0x10000, Size: 0x10000}, {GuestPhys: 0x40000, Size: 0x10000}}

// table writes an indirect table of these descriptors to addr.
func (r *ring) table(addr uint64, descs ...virtqtest.Desc) {
	for i, d := range descs {
		d.Put(r.mem.Bytes(addr+uint64(i)*virtqtest.DescSize, virtqtest.DescSize))
	}
}

// sequence is a chain of n readable descriptors of size bytes, in order from the first on.
func sequence(n int, size uint32) []virtqtest.Desc {
	var descs []virtqtest.Desc
	for i := range n {
		d := virtqtest.Desc{Addr: 0x40000, Len: size, Flags: virtqtest.DescNext, Next: uint16(i + 1)}
		if i == n-1 {
			d.Flags = 0
		}
		descs = append(descs, d)
	}
	return descs
}

const (
	next     = virtqtest.DescNext
	write    = virtqtest.DescWrite
	indirect = virtqtest.DescIndirect
)

func TestAMalformedRingBreaksAndSaysWhy(t *testing.T) {
	type desc = virtqtest.Desc
	for _, tc := range []struct {
		name     string
		size     int
		features uint64
		descs    []desc // from descriptor 0 on
		setup    func(r *ring)
		reason   virtq.Reason
		detail   string
	}{
		{name: "avail.idx one too far", size: 8,
			setup:  func(r *ring) { r.driver.SetAvailIdx(9) },
			reason: virtq.ReasonAvailIndex, detail: "avail.idx is 9"},
		{name: "avail.idx goes back", size: 8,
			setup:  func(r *ring) { r.driver.SetAvailIdx(65535) },
			reason: virtq.ReasonAvailIndex, detail: "65535"},
		{name: "head is the size", size: 8,
			setup:  func(r *ring) { r.driver.Offer(8); r.driver.Kick() },
			reason: virtq.ReasonHeadRange, detail: "head 8 of 8"},
		{name: "head is the last number", size: 8,
			setup:  func(r *ring) { r.driver.Offer(65535); r.driver.Kick() },
			reason: virtq.ReasonHeadRange, detail: "head 65535"},
		{name: "head twice in flight", size: 8, descs: sequence(1, 1),
			setup:  func(r *ring) { r.driver.Offer(0); r.driver.Offer(0); r.driver.Kick() },
			reason: virtq.ReasonHeadInFlight, detail: "entry 1 has head 0"},
		{name: "head in flight, far up", size: 32768,
			setup: func(r *ring) {
				r.driver.SetDesc(32767, desc{Addr: 0, Len: 1})
				r.driver.Offer(32767)
				r.driver.Offer(32767)
				r.driver.Kick()
			},
			reason: virtq.ReasonHeadInFlight, detail: "head 32767"},
		{name: "next is the size", size: 8,
			descs:  []desc{{Len: 1, Flags: next, Next: 8}},
			reason: virtq.ReasonNextRange, detail: "next 8 of 8"},
		{name: "next far beyond", size: 8,
			descs:  []desc{{Len: 1, Flags: next, Next: 1}, {Len: 1, Flags: next, Next: 65535}},
			reason: virtq.ReasonNextRange, detail: "descriptor 1 has next 65535"},
		{name: "descriptor points at itself", size: 8,
			descs:  []desc{{Len: 1, Flags: next, Next: 0}},
			reason: virtq.ReasonChainLength, detail: "head 0"},
		{name: "descriptor points at itself in a queue of 1", size: 1,
			descs:  []desc{{Len: 1, Flags: next, Next: 0}},
			reason: virtq.ReasonChainLength},
		{name: "loop that misses the head", size: 8,
			descs:  []desc{{Len: 1, Flags: next, Next: 1}, {Len: 1, Flags: next, Next: 2}, {Len: 1, Flags: next, Next: 1}},
			reason: virtq.ReasonChainLength},
		{name: "loop of nothing but empty buffers", size: 8,
			descs:  []desc{{Flags: next, Next: 1}, {Flags: next, Next: 0}},
			reason: virtq.ReasonChainLength},
		{name: "readable after writable", size: 8,
			descs:  []desc{{Len: 1, Flags: next | write, Next: 1}, {Len: 1}},
			reason: virtq.ReasonDirection, detail: "descriptor 1"},
		{name: "readable after an empty writable", size: 8,
			descs:  []desc{{Len: 0, Flags: next | write, Next: 1}, {Len: 1}},
			reason: virtq.ReasonDirection},
		{name: "empty readable after writable", size: 8,
			descs:  []desc{{Len: 1, Flags: next | write, Next: 1}, {}},
			reason: virtq.ReasonDirection},
		{name: "readable in a table after writable before it", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Len: 1, Flags: next | write, Next: 1}, {Addr: 0x10000, Len: 16, Flags: indirect}},
			setup:  func(r *ring) { r.table(0x10000, desc{Len: 1}) },
			reason: virtq.ReasonDirection},
		{name: "address in a hole", size: 8,
			descs:  []desc{{Addr: 0x30000, Len: 1}},
			reason: virtq.ReasonAddress, detail: "head 0"},
		{name: "address beyond memory", size: 8,
			descs:  []desc{{Addr: 0x50000, Len: 1, Flags: write}},
			reason: virtq.ReasonAddress},
		{name: "buffer reaches one byte into a hole", size: 8,
			descs:  []desc{{Addr: 0x1fff0, Len: 17}},
			reason: virtq.ReasonAddress},
		{name: "buffer over a hole", size: 8,
			descs:  []desc{{Addr: 0x1fff0, Len: 0x30000, Flags: write}},
			reason: virtq.ReasonAddress},
		{name: "buffer of the greatest length", size: 8,
			descs:  []desc{{Addr: 0, Len: math.MaxUint32}},
			reason: virtq.ReasonAddress},
		{name: "buffer wraps round the address space", size: 8,
			descs:  []desc{{Addr: math.MaxUint64 - 1, Len: 16}},
			reason: virtq.ReasonAddress},
		{name: "second buffer's address", size: 8,
			descs:  []desc{{Len: 1, Flags: next, Next: 1}, {Addr: 1 << 63, Len: 1}},
			reason: virtq.ReasonAddress},
		{name: "indirect without the feature", size: 8,
			descs:  []desc{{Addr: 0x10000, Len: 16, Flags: indirect}},
			reason: virtq.ReasonIndirectFeature},
		{name: "indirect and next", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 16, Flags: indirect | next, Next: 1}, {Len: 1}},
			reason: virtq.ReasonIndirectNext},
		{name: "indirect in a table", size: 8, features: virtq.FeatureIndirectDesc,
			descs: []desc{{Addr: 0x10000, Len: 32, Flags: indirect}},
			setup: func(r *ring) {
				r.table(0x10000, desc{Len: 1, Flags: next, Next: 1}, desc{Addr: 0x10000, Len: 32, Flags: indirect})
			},
			reason: virtq.ReasonIndirectNested, detail: "table entry 1"},
		{name: "table of length 0", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 0, Flags: indirect}},
			reason: virtq.ReasonIndirectLength, detail: "0 bytes"},
		{name: "table of length 15", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 15, Flags: indirect}},
			reason: virtq.ReasonIndirectLength},
		{name: "table of length 17", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 17, Flags: indirect}},
			reason: virtq.ReasonIndirectLength},
		{name: "table in a hole", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x20000, Len: 16, Flags: indirect}},
			reason: virtq.ReasonAddress, detail: "indirect table"},
		{name: "table reaches into a hole, unused entries only", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x1fff0, Len: 32, Flags: indirect}},
			reason: virtq.ReasonAddress},
		{name: "table of the greatest length", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0, Len: math.MaxUint32 &^ 15, Flags: indirect}},
			reason: virtq.ReasonAddress},
		{name: "next in a table is its length", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 32, Flags: indirect}},
			setup:  func(r *ring) { r.table(0x10000, desc{Len: 1, Flags: next, Next: 2}, desc{Len: 1}) },
			reason: virtq.ReasonNextRange, detail: "next 2 of 2"},
		{name: "loop in a table", size: 8, features: virtq.FeatureIndirectDesc,
			descs: []desc{{Addr: 0x10000, Len: 32, Flags: indirect}},
			setup: func(r *ring) {
				r.table(0x10000, desc{Len: 1, Flags: next, Next: 1}, desc{Len: 1, Flags: next, Next: 0})
			},
			reason: virtq.ReasonChainLength, detail: "1024"},
		{name: "table with one descriptor too many", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 1025 * 16, Flags: indirect}},
			setup:  func(r *ring) { r.table(0x10000, sequence(1025, 1)...) },
			reason: virtq.ReasonChainLength},
		{name: "descriptors before the table count too", size: 8, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Len: 1, Flags: next, Next: 1}, {Addr: 0x10000, Len: 1024 * 16, Flags: indirect}},
			setup:  func(r *ring) { r.table(0x10000, sequence(1024, 1)...) },
			reason: virtq.ReasonChainLength},
		{name: "table of a queue of 2048 with one too many", size: 2048, features: virtq.FeatureIndirectDesc,
			descs:  []desc{{Addr: 0x10000, Len: 2049 * 16, Flags: indirect}},
			setup:  func(r *ring) { r.table(0x10000, sequence(2049, 1)...) },
			reason: virtq.ReasonChainLength},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := brokenRing(t, tc.size, tc.features)
			for i, d := range tc.descs {
				r.driver.SetDesc(i, d)
			}
			if tc.setup != nil {
				tc.setup(r)
			}
			if !r.queue.Pending() {
				r.driver.Offer(0)
				r.driver.Kick()
			}
			r.mustBreak(t, tc.reason, tc.detail)
		})
	}
}

// brokenRing makes a ring whose parts lie in memory of their own, where no test's buffers are.
func brokenRing(t *testing.T, size int, features uint64) *ring {
	t.Helper()
	const at = 1 << 30
	mem := newMem(t, append(slices.Clone(badRanges), virtqtest.Range{GuestPhys: at, Size: 1 << 20})...)
	n := uint64(size)
	return start(t, mem, virtqtest.NewAt(mem, size, features, at, at+16*n, at+20*n+64))
}

// mustBreak pops until the ring breaks, and checks that it stays so and is left alone.
func (r *ring) mustBreak(t *testing.T, reason virtq.Reason, detail string) {
	t.Helper()
	var popped []*virtq.Chain
	var err error
	for {
		c := new(virtq.Chain)
		var ok bool
		if ok, err = r.queue.Pop(c); !ok {
			if len(c.Readable)+len(c.Writable)+c.ReadableLen()+c.WritableLen() != 0 {
				t.Error("a chain that was not popped has buffers")
			}
			break
		}
		popped = append(popped, c)
	}
	var be *virtq.BrokenError
	if !errors.As(err, &be) || be.Reason != reason || !strings.Contains(be.Detail, detail) {
		t.Fatalf("broke with %v\nwant %s: %s", err, reason, detail)
	}
	if !strings.Contains(err.Error(), string(reason)) {
		t.Errorf("%q does not name the reason", err)
	}
	if got := int(r.queue.NextAvail()); got != len(popped) || r.queue.InFlight() != len(popped) {
		t.Errorf("next entry %d, %d in flight; want %d", got, r.queue.InFlight(), len(popped))
	}
	// Whatever the driver does now, the error is the same and the ring is left alone.
	before := bytes.Clone(r.driver.UsedBytes())
	r.driver.SetAvailIdx(r.queue.NextAvail() + 1)
	for range 2 {
		if ok, again := r.queue.Pop(new(virtq.Chain)); ok || again != err {
			t.Errorf("later Pop = %v, %v", ok, again)
		}
	}
	if r.queue.Broken() != err {
		t.Errorf("Broken = %v", r.queue.Broken())
	}
	if r.queue.Pending() || r.queue.EnableNotify() {
		t.Error("a broken ring has something pending")
	}
	r.queue.DisableNotify()
	for _, c := range popped {
		r.queue.Push(c, 0)
	}
	if r.queue.Publish() {
		t.Error("a broken ring calls")
	}
	if r.queue.InFlight() != 0 {
		t.Errorf("%d in flight", r.queue.InFlight())
	}
	if !bytes.Equal(r.driver.UsedBytes(), before) {
		t.Error("a broken ring was written to")
	}
}

func TestAChainOfMoreThan4GiBBreaksTheRing(t *testing.T) {
	// The same 256 KiB 16384 times are 4 GiB exactly, which is allowed.
	for _, extra := range []uint32{0, 1} {
		mem := newMem(t, virtqtest.Range{GuestPhys: 0, Size: 1 << 20})
		d := virtqtest.New(mem, 32768, 0)
		r := start(t, mem, d)
		const n = 1 << 14
		for i := range n {
			d.SetDesc(i, virtqtest.Desc{Len: 1 << 18, Flags: next, Next: uint16(i + 1)})
		}
		d.SetDesc(n, virtqtest.Desc{Len: extra})
		d.Offer(0)
		d.Kick()
		if extra != 0 {
			r.mustBreak(t, virtq.ReasonChainBytes, "0x100000001 bytes")
			continue
		}
		var c virtq.Chain
		r.pop(t, &c)
		if c.ReadableLen() != 1<<32 {
			t.Errorf("%#x bytes", c.ReadableLen())
		}
		r.queue.Push(&c, 0)
	}
}

func TestAChainInTooManyPiecesBreaksTheRing(t *testing.T) {
	// Regions of 16 bytes, and buffers that each lie in 64 of them: 1024 buffers are more pieces
	// than a chain of buffers that do not overlap can have.
	var ranges []virtqtest.Range
	for i := range uint64(64) {
		ranges = append(ranges, virtqtest.Range{GuestPhys: 16 * i, Size: 16})
	}
	ranges = append(ranges, virtqtest.Range{GuestPhys: 1 << 20, Size: 1 << 20})
	mem := newMem(t, ranges...)
	d := virtqtest.NewAt(mem, 1024, 0, 1<<20, 1<<20+0x8000, 1<<20+0x10000)
	r := start(t, mem, d)
	for i := range 1024 {
		d.SetDesc(i, virtqtest.Desc{Len: 1024, Flags: next, Next: uint16(i + 1)})
	}
	d.Offer(0)
	d.Kick()
	r.mustBreak(t, virtq.ReasonChainLength, "pieces")
}

func TestBreakKeepsTheFirstCause(t *testing.T) {
	r := newRing(t, 8, modern)
	cause := errors.New("the device has had enough")
	r.queue.Break(cause)
	r.queue.Break(errors.New("another"))
	var be *virtq.BrokenError
	if err := r.queue.Broken(); !errors.Is(err, cause) || !errors.As(err, &be) || be.Reason != virtq.ReasonDevice {
		t.Errorf("Broken = %v", err)
	}
	own := &virtq.BrokenError{Reason: "own", Detail: "detail"}
	r = newRing(t, 8, modern)
	r.queue.Break(own)
	if r.queue.Broken() != error(own) {
		t.Errorf("Broken = %v", r.queue.Broken())
	}
	if got, want := own.Error(), "virtq: ring broken: own: detail"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAClosedQueueSaysSo(t *testing.T) {
	r := newRing(t, 8, modern)
	r.queue.Close()
	r.queue.Close()
	if ok, err := r.queue.Pop(new(virtq.Chain)); ok || !errors.Is(err, virtq.ErrClosed) {
		t.Errorf("Pop = %v, %v", ok, err)
	}
	if err := r.queue.SetMemory(r.memory); !errors.Is(err, virtq.ErrClosed) {
		t.Errorf("SetMemory = %v", err)
	}
	if r.queue.Pending() || r.queue.EnableNotify() || r.queue.Publish() {
		t.Error("a closed queue has something to do")
	}
}
