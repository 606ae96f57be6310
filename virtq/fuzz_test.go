package virtq_test

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// The memory of the fuzz target: two regions that follow one another, and one apart. Everything is
// small, so that chance hits what is there: descriptor table at 0, available ring at 0x200, used
// ring at 0x280, and the rest for indirect tables and buffers.
var fuzzRanges = []virtqtest.Range{{GuestPhys: 0, Size: 0x800}, {GuestPhys: 0x800, Size: 0x400}, {GuestPhys: 0x1000, Size: 0x400}}

const (
	fuzzMem   = 0x1000 // bytes in all regions
	fuzzSize  = 16
	fuzzAvail = 0x200
	fuzzUsed  = 0x280
)

// snapshot returns the guest's memory as one piece.
func snapshot(mem *virtqtest.Mem) []byte {
	var b []byte
	for _, r := range fuzzRanges {
		b = append(b, mem.Bytes(r.GuestPhys, r.Size)...)
	}
	return b
}

// FuzzQueue lets a device work on memory that is as the fuzzer says, and changes as the fuzzer
// says: ops are what the device does, or a byte to change. Whatever they are, nothing panics, every
// walk ends, and every buffer lies in the guest's memory.
func FuzzQueue(f *testing.F) {
	mem, err := virtqtest.NewMem(fuzzRanges...)
	if err != nil {
		f.Fatal(err)
	}
	defer mem.Close()
	memory, err := mem.Memory()
	if err != nil {
		f.Fatal(err)
	}
	defer memory.Release()

	// Sound rings, of all kinds, to start from.
	for _, features := range []byte{0, 1, 2, 3, 7} {
		clear(mem.Bytes(0, 0xc00))
		clear(mem.Bytes(0x1000, 0x400))
		d := virtqtest.NewAt(mem, fuzzSize, fuzzFeatures(features), 0, fuzzAvail, fuzzUsed)
		d.StartAt(65534)
		table := []virtqtest.Desc{{Addr: 0x7f0, Len: 0x20, Flags: next, Next: 2}, {Addr: 0x1000, Len: 8, Flags: write}, {Addr: 0x1010, Len: 4, Flags: next, Next: 1}}
		for i, desc := range table {
			desc.Put(mem.Bytes(0x400+16*uint64(i), 16))
		}
		d.Add([]virtqtest.Seg{{Addr: 0x500, Len: 16}, {Addr: 0x700, Len: 0x200}}, []virtqtest.Seg{{Addr: 0x1000, Len: 0x400}, {Addr: 0x600, Len: 1}})
		d.SetDesc(10, virtqtest.Desc{Addr: 0x400, Len: 48, Flags: indirect})
		d.Offer(10)
		d.Add(nil, []virtqtest.Seg{{Addr: 0, Len: 0xc00}})
		d.Kick()
		f.Add(features, snapshot(mem), []byte{0, 0, 0, 1, 3, 4, 0x81, 0x00, 0xff, 0, 2, 0, 0, 3, 5, 6, 1, 1, 3})
		f.Add(features, snapshot(mem), []byte{0, 0, 1, 3, 7, 3, 8, 0, 2, 0, 1, 3, 8})
		f.Add(features, snapshot(mem), []byte{0, 0, 0, 9, 7, 0, 9, 10, 0, 1, 3, 7, 8, 0, 0, 7, 9, 10, 8, 0})
	}

	f.Fuzz(func(t *testing.T, features byte, data, ops []byte) {
		image := make([]byte, fuzzMem)
		copy(image, data)
		at := 0
		for _, r := range fuzzRanges {
			at += copy(mem.Bytes(r.GuestPhys, r.Size), image[at:])
		}
		cfg := virtq.Config{
			Size:     fuzzSize >> (features >> 4 & 3),
			Desc:     mem.UserAddr(0),
			Avail:    mem.UserAddr(fuzzAvail),
			Used:     mem.UserAddr(fuzzUsed),
			Features: fuzzFeatures(features),
			Base:     65534,
		}
		if features&4 != 0 {
			cfg.Inflight = make([]byte, virtq.InflightSize(fuzzSize))
		}
		q, err := virtq.New(memory, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { q.Close() }()
		var flight, idle []*virtq.Chain
		for len(ops) > 0 {
			op := ops[0]
			ops = ops[1:]
			switch {
			case op == 0: // pop
				if len(idle) == 0 {
					idle = append(idle, new(virtq.Chain))
				}
				c := idle[len(idle)-1]
				ok, err := q.Pop(c)
				if ok && err != nil || err != q.Broken() {
					t.Fatalf("Pop = %v, %v; Broken = %v", ok, err, q.Broken())
				}
				if ok {
					checkBuffers(t, memory, cfg.Size, c)
					flight, idle = append(flight, c), idle[:len(idle)-1]
				}
			case op == 1 && len(flight) > 0: // push the oldest
				c := flight[0]
				for _, b := range c.Writable {
					b[0], b[len(b)-1] = 1, 1
				}
				q.Push(c, uint32(min(c.WritableLen(), 1<<20)))
				flight, idle = flight[1:], append(idle, c)
			case op == 2 && len(flight) > 0: // give the newest back
				if c := flight[len(flight)-1]; q.CanUnpop(c) {
					q.Unpop(c)
					flight, idle = flight[:len(flight)-1], append(idle, c)
				}
			case op == 3:
				q.Publish()
			case op == 4:
				if pending := q.EnableNotify(); pending != q.Pending() {
					t.Fatalf("EnableNotify = %v, Pending = %v", pending, q.Pending())
				}
			case op == 5:
				q.DisableNotify()
			case op == 6:
				if err := q.SetMemory(memory); err != q.Broken() {
					t.Fatalf("SetMemory: %v, Broken: %v", err, q.Broken())
				}
			case op == 7 && len(flight) > 0: // suspend the oldest
				q.Suspend(flight[0])
				flight, idle = flight[1:], append(idle, flight[0])
			case op == 9 && len(flight) > 0: // suspend the newest
				last := len(flight) - 1
				q.Suspend(flight[last])
				flight, idle = flight[:last], append(idle, flight[last])
			case op == 10:
				if before, n := q.Suspended(), q.Unfetch(nil); n < 0 || q.Suspended() != before-n {
					t.Fatalf("Unfetch = %d, of %d suspended %d are left", n, before, q.Suspended())
				}
			case op == 8: // stop in the midst of it, and start again
				q.Close()
				for _, c := range flight {
					q.Push(c, 0)
				}
				flight, idle = nil, append(idle, flight...)
				next, err := virtq.New(memory, cfg)
				if err != nil {
					if cfg.Inflight == nil || !errors.Is(err, virtq.ErrInflight) {
						t.Fatal(err)
					}
					return // the guest has changed used.idx
				}
				q = next
			case op >= 0x80 && len(ops) >= 2: // the guest writes a byte
				addr := uint64(op&0x7f)<<8 | uint64(ops[0])
				if addr < 0xc00 {
					mem.Bytes(addr, 1)[0] = ops[1]
				}
				ops = ops[2:]
			}
			if q.InFlight() != len(flight) || q.InFlight()+q.Suspended() > int(cfg.Size) {
				t.Fatalf("%d in flight, want %d; %d suspended", q.InFlight(), len(flight), q.Suspended())
			}
		}
		for _, c := range flight {
			q.Push(c, 0)
		}
	})
}

// fuzzFeatures makes features of the lowest two bits.
func fuzzFeatures(b byte) (features uint64) {
	if b&1 != 0 {
		features |= virtq.FeatureIndirectDesc
	}
	if b&2 != 0 {
		features |= virtq.FeatureEventIdx | virtq.FeatureVersion1
	}
	return features
}

// checkBuffers fails unless c is bounded and lies in memory.
func checkBuffers(t *testing.T, memory *virtq.Memory, size uint32, c *virtq.Chain) {
	t.Helper()
	if n := len(c.Readable) + len(c.Writable); n > 1024+len(fuzzRanges) {
		t.Fatalf("%d buffers", n)
	}
	if uint32(c.Head) >= size {
		t.Fatalf("head %d", c.Head)
	}
	for i, list := range [][][]byte{c.Readable, c.Writable} {
		total := 0
		for _, b := range list {
			total += len(b)
			if len(b) == 0 || cap(b) != len(b) {
				t.Fatalf("buffer of %d bytes with capacity %d", len(b), cap(b))
			}
			at, in := reflect.ValueOf(b).Pointer(), false
			for _, r := range guest(memory).Regions() {
				start := reflect.ValueOf(r.Bytes()).Pointer()
				in = in || at >= start && at-start+uintptr(len(b)) <= uintptr(r.Size)
			}
			if !in {
				t.Fatalf("buffer at %#x is outside the guest's memory", at)
			}
		}
		if want := []int{c.ReadableLen(), c.WritableLen()}[i]; total != want {
			t.Fatalf("%d bytes, want %d", total, want)
		}
	}
	// Reading all of it must not fault.
	_ = bytes.Join(c.Readable, nil)
}
