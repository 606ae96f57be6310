package virtq_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// fill writes text to consecutive bytes at gpa.
func (r *ring) fill(gpa uint64, text string) { copy(r.mem.Bytes(gpa, uint64(len(text))), text) }

// lens returns the lengths of bufs.
func lens(bufs [][]byte) []int {
	var n []int
	for _, b := range bufs {
		n = append(n, len(b))
	}
	return n
}

func TestPopGivesTheBuffersInOrder(t *testing.T) {
	type desc = virtqtest.Desc
	for _, tc := range []struct {
		name               string
		descs              []desc
		table              []desc // at 0x10000
		readable, writable []int
		text               string
	}{
		{name: "one readable", descs: []desc{{Len: 3}}, readable: []int{3}, text: "abc"},
		{name: "one writable", descs: []desc{{Len: 3, Flags: write}}, writable: []int{3}},
		{name: "both", descs: []desc{{Len: 2, Flags: next, Next: 2}, {}, {Addr: 4, Len: 1, Flags: next, Next: 1 + 4},
			{}, {}, {Addr: 8, Len: 7, Flags: write | next, Next: 4}}, readable: []int{2, 1}, writable: []int{7, 0}[:1], text: "abe"},
		{name: "as many descriptors as the queue has", descs: sequence(8, 1), readable: []int{1, 1, 1, 1, 1, 1, 1, 1}, text: "AAAAAAAA"},
		{name: "empty buffers are none", descs: []desc{{Addr: 1 << 60, Flags: next, Next: 1}, {Len: 1, Flags: next, Next: 2},
			{Addr: 1 << 60, Flags: write}}, readable: []int{1}, text: "a"},
		{name: "empty buffers with an address are none, too", descs: []desc{{Addr: 1, Flags: next, Next: 1}, {Len: 1, Flags: next, Next: 2},
			{Addr: 1, Flags: write | next, Next: 3}, {Addr: 1, Len: 1, Flags: write}}, readable: []int{1}, writable: []int{1}, text: "a"},
		{name: "nothing but an empty buffer", descs: []desc{{}}},
		{name: "flags of other formats are ignored", descs: []desc{{Len: 1, Flags: 0xfff8}}, readable: []int{1}, text: "a"},
		{name: "over two regions", descs: []desc{{Addr: 0xfffe, Len: 5, Flags: next, Next: 1}, {Addr: 0xffff, Len: 0x10001, Flags: write}},
			readable: []int{2, 3}, writable: []int{1, 0x10000}, text: "yzABC"},
		{name: "indirect", descs: []desc{{Addr: 0x10010, Len: 32, Flags: indirect}},
			table:    []desc{{}, {Len: 2, Flags: next, Next: 1}, {Addr: 9, Len: 4, Flags: write}},
			readable: []int{2}, writable: []int{4}, text: "ab"},
		{name: "indirect, marked writable", descs: []desc{{Addr: 0x10010, Len: 16, Flags: indirect | write}},
			table: []desc{{}, {Len: 2}}, readable: []int{2}, text: "ab"},
		{name: "indirect, next ignored at its end", descs: []desc{{Addr: 0x10010, Len: 16, Flags: indirect, Next: 77}},
			table: []desc{{}, {Len: 2, Next: 99}}, readable: []int{2}, text: "ab"},
		{name: "indirect, at an odd address", descs: []desc{{Addr: 0x10001, Len: 16, Flags: indirect}},
			table: nil, readable: nil},
		{name: "descriptors and then a table", descs: []desc{{Len: 1, Flags: next, Next: 1}, {Addr: 1, Len: 1, Flags: next, Next: 2},
			{Addr: 0x10010, Len: 32, Flags: indirect}},
			table:    []desc{{}, {Addr: 2, Len: 1, Flags: next, Next: 1}, {Addr: 3, Len: 1, Flags: write}},
			readable: []int{1, 1, 1}, writable: []int{1}, text: "abc"},
		{name: "table over two regions", descs: []desc{{Addr: 0xfff8, Len: 48, Flags: indirect}},
			readable: []int{1, 1, 1}, text: "cba"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := brokenRing(t, 8, virtq.FeatureIndirectDesc)
			r.fill(0, "abcdefghijklmnop")
			r.fill(0xfffe, "yzABC")
			r.fill(0x40000, "AAAA")
			for i, d := range tc.descs {
				r.driver.SetDesc(i, d)
			}
			switch tc.name {
			case "indirect, at an odd address":
				clear(r.mem.Bytes(0x10001, 16))
			case "table over two regions":
				// Entries 0, 2, 1; the first lies across the regions itself.
				r.table(0xfff8, desc{Addr: 2, Len: 1, Flags: next, Next: 2}, desc{Addr: 0, Len: 1}, desc{Addr: 1, Len: 1, Flags: next, Next: 1})
			default:
				r.table(0x10000, tc.table...)
			}
			if tc.name == "both" {
				r.driver.SetDesc(4, desc{Addr: 1 << 60, Flags: write})
			}
			r.driver.Offer(0)
			r.driver.Kick()
			var c virtq.Chain
			r.pop(t, &c)
			if c.Head != 0 || !slices.Equal(lens(c.Readable), tc.readable) || !slices.Equal(lens(c.Writable), tc.writable) {
				t.Errorf("head %d, readable %d, writable %d; want 0, %d, %d", c.Head, lens(c.Readable), lens(c.Writable), tc.readable, tc.writable)
			}
			for _, b := range slices.Concat(c.Readable, c.Writable) {
				if cap(b) != len(b) {
					t.Errorf("a buffer of %d bytes has capacity %d", len(b), cap(b))
				}
			}
			if got := string(bytes.Join(c.Readable, nil)); got != tc.text {
				t.Errorf("text %q, want %q", got, tc.text)
			}
			sum := func(n []int) (s int) {
				for _, x := range n {
					s += x
				}
				return s
			}
			if c.ReadableLen() != sum(tc.readable) || c.WritableLen() != sum(tc.writable) {
				t.Errorf("lengths %d and %d, want %d and %d", c.ReadableLen(), c.WritableLen(), sum(tc.readable), sum(tc.writable))
			}
			r.queue.Push(&c, 0)
		})
	}
}

func TestALongIndirectTableIsTakenInASmallQueue(t *testing.T) {
	// Linux makes such chains, the specification notwithstanding.
	for _, n := range []int{9, 1023, 1024} {
		r := brokenRing(t, 8, virtq.FeatureIndirectDesc)
		r.driver.SetDesc(0, virtqtest.Desc{Addr: 0x10000, Len: uint32(16 * n), Flags: indirect})
		r.table(0x10000, sequence(n, 1)...)
		r.driver.Offer(0)
		r.driver.Kick()
		var c virtq.Chain
		r.pop(t, &c)
		if len(c.Readable) != n {
			t.Errorf("%d buffers, want %d", len(c.Readable), n)
		}
		r.queue.Push(&c, 0)
	}
}

func TestAQueueTakesTablesAsLongAsItIsTold(t *testing.T) {
	const longest = 2048 // what splice(2) of a pipe of 8 MiB makes
	for n, fits := range map[int]bool{1025: true, longest: true, longest + 1: false} {
		r := brokenRing(t, 8, virtq.FeatureIndirectDesc)
		cfg := r.driver.Layout()
		cfg.MaxIndirect = longest
		q, err := virtq.New(r.memory, cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer q.Close()
		r.driver.SetDesc(0, virtqtest.Desc{Addr: 0x10000, Len: uint32(16 * n), Flags: indirect})
		r.table(0x10000, sequence(n, 1)...)
		r.driver.Offer(0)
		r.driver.Kick()
		var c virtq.Chain
		if ok, err := q.Pop(&c); ok != fits || fits && len(c.Readable) != n {
			t.Errorf("%d: %v, %v, %d buffers", n, ok, err, len(c.Readable))
		}
		if fits {
			q.Push(&c, 0)
		}
	}
}

func TestAHugeTableOverTwoRegionsIsReadAsFarAsNextReaches(t *testing.T) {
	const border = 1 << 20
	mem := newMem(t, virtqtest.Range{Size: border}, virtqtest.Range{GuestPhys: border, Size: 2 << 20})
	r := start(t, mem, virtqtest.New(mem, 8, virtq.FeatureIndirectDesc))
	// More entries than next can name. The first entry lies across the regions; the second is the
	// last that next can name.
	const at, entries = border - 8, 65536 + 100
	put := func(i int, d virtqtest.Desc) { d.Put(mem.Bytes(uint64(at+16*i), 16)) }
	put(0, virtqtest.Desc{Addr: border + 8, Len: 8, Flags: next, Next: 65535})
	put(65535, virtqtest.Desc{Addr: 0x80000, Len: 8})
	r.fill(0x80000, "the last")
	r.driver.SetDesc(0, virtqtest.Desc{Addr: at, Len: 16 * entries, Flags: indirect})
	var c virtq.Chain
	for range 2 {
		r.driver.Offer(0)
		r.driver.Kick()
		r.pop(t, &c)
		if len(c.Readable) != 2 || string(c.Readable[1]) != "the last" {
			t.Errorf("buffers %q", c.Readable)
		}
		r.queue.Push(&c, 0)
		r.fill(0x80000, "THE LAST")
		put(65535, virtqtest.Desc{Addr: 0x80010, Len: 8})
		r.fill(0x80010, "the last")
	}
}

func TestChainReadsAsOneStream(t *testing.T) {
	r := newRing(t, 8, 0)
	const text = "thirty-one bytes in four buffers"
	var segs []virtqtest.Seg
	for i, n := range []int{1, 10, 0, 21} {
		s := r.seg(uint32(n))
		copy(r.mem.Bytes(s.Addr, uint64(n)), text[[]int{0, 1, 11, 11}[i]:])
		segs = append(segs, s)
	}
	var c virtq.Chain
	for range 2 { // the second time in the same Chain, from the start again
		r.driver.Add(segs, nil)
		r.driver.Kick()
		r.pop(t, &c)
		if err := iotest.TestReader(&c, []byte(text)); err != nil {
			t.Error(err)
		}
		if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("at the end: %d, %v", n, err)
		}
		r.queue.Push(&c, 0)
	}
}

func TestChainWritesAsOneStreamAndSaysWhatDidNotFit(t *testing.T) {
	r := newRing(t, 8, 0)
	a, b := r.seg(3), r.seg(4)
	r.driver.Add(nil, []virtqtest.Seg{a, b})
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	for _, step := range []struct {
		text string
		n    int
		err  error
	}{{"ab", 2, nil}, {"", 0, nil}, {"cde", 3, nil}, {"fghi", 2, io.ErrShortWrite}, {"j", 0, io.ErrShortWrite}, {"", 0, nil}} {
		if n, err := c.Write([]byte(step.text)); n != step.n || !errors.Is(err, step.err) {
			t.Errorf("Write(%q) = %d, %v, want %d, %v", step.text, n, err, step.n, step.err)
		}
	}
	if got := string(r.mem.Bytes(a.Addr, 3)) + string(r.mem.Bytes(b.Addr, 4)); got != "abcdefg" {
		t.Errorf("wrote %q", got)
	}
	r.queue.Push(&c, 7)
}

// TestALongTableOverTwoRegionsTakesNoMemory: of a table as long as can be, for a chain of three,
// nothing but those is looked at.
func TestALongTableOverTwoRegionsTakesNoMemory(t *testing.T) {
	const half = 1 << 20
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: half},
		virtqtest.Range{GuestPhys: half, Size: half})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	memory, err := mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Release()
	d := virtqtest.New(mem, 8, virtq.FeatureIndirectDesc)
	q, err := virtq.New(memory, d.Layout())
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	const at, entries = half / 2, half / 16
	put := func(i int, d virtqtest.Desc) { d.Put(mem.Bytes(at+16*uint64(i), 16)) }
	put(0, virtqtest.Desc{Addr: 8, Len: 1, Flags: 1, Next: entries - 1})
	put(entries-1, virtqtest.Desc{Addr: 9, Len: 1, Flags: 1, Next: entries / 2})
	put(entries/2, virtqtest.Desc{Addr: 10, Len: 1, Flags: 2})
	pop := func() (c virtq.Chain) {
		d.SetDesc(0, virtqtest.Desc{Addr: at, Len: 16 * entries, Flags: 4})
		d.Offer(0)
		d.Kick()
		if ok, err := q.Pop(&c); !ok {
			t.Fatal(err)
		}
		if c.ReadableLen() != 2 || c.WritableLen() != 1 {
			t.Fatalf("%d and %d bytes, want 2 and 1", c.ReadableLen(), c.WritableLen())
		}
		return c
	}
	c := pop()
	q.Push(&c, 0)
	q.Publish()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fresh, err := virtq.New(memory, func() virtq.Config { l := d.Layout(); l.Base = 1; return l }())
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	q = fresh
	c = pop()
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 64<<10 {
		t.Errorf("%d bytes were allocated", n)
	}
	if w := c.Work(); w < 3 || w > 10 {
		t.Errorf("it was the work of %d descriptors, want about 3", w)
	}
	q.Push(&c, 0)
}

// TestDescriptorsWithoutABufferAreWork, too.
func TestDescriptorsWithoutABufferAreWork(t *testing.T) {
	r := brokenRing(t, 8, virtq.FeatureIndirectDesc)
	r.driver.SetDesc(0, virtqtest.Desc{Addr: 0, Len: 1, Flags: 1, Next: 1})
	r.driver.SetDesc(1, virtqtest.Desc{Addr: 0, Len: 0, Flags: 1, Next: 2})
	r.driver.SetDesc(2, virtqtest.Desc{Addr: 0, Len: 0, Flags: 2})
	r.driver.Offer(0)
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	if c.Work() != 3 {
		t.Errorf("work of %d, want 3", c.Work())
	}
	r.queue.Push(&c, 0)
}
