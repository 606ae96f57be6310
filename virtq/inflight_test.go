package virtq_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// restart ends the device side, with whatever it has in flight, and begins a new one with an
// in-flight region.
func (r *ring) restart(tb testing.TB, region []byte) *ring {
	tb.Helper()
	r.queue.Close()
	cfg := r.driver.Layout()
	cfg.Inflight = region
	q, err := virtq.New(r.memory, cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(q.Close)
	return &ring{r.mem, r.memory, r.driver, q}
}

// offer adds n chains of 8 readable and 8 writable bytes, and shows them.
func (r *ring) offer(tb testing.TB, n int) (heads []uint16) {
	tb.Helper()
	for range n {
		head, ok := r.driver.Add([]virtqtest.Seg{r.seg(8)}, []virtqtest.Seg{r.seg(8)})
		if !ok {
			tb.Fatal("no room")
		}
		heads = append(heads, head)
	}
	r.driver.Kick()
	return heads
}

// popHeads pops n chains, and returns their heads and them.
func (r *ring) popHeads(tb testing.TB, n int) (heads []uint16, chains []*virtq.Chain) {
	tb.Helper()
	for range n {
		c := new(virtq.Chain)
		r.pop(tb, c)
		heads, chains = append(heads, c.Head), append(chains, c)
	}
	return heads, chains
}

func TestInflightSizeIsThatOfTheLayout(t *testing.T) {
	for size, want := range map[int]int{1: 64, 3: 64, 4: 128, 128: 2112, 32768: 524352} {
		if got := virtq.InflightSize(size); got != want {
			t.Errorf("InflightSize(%d) = %d, want %d", size, got, want)
		}
	}
}

// The bytes are written down from the specification.
func TestRegionIsLaidOutByTheSpecification(t *testing.T) {
	// what is not initialised may be anything
	region := bytes.Repeat([]byte{0xee}, virtq.InflightSize(4))
	region[8], region[9] = 0, 0
	r := newRing(t, 8, modern).restartAt(t, 4, 65535, region)
	le := binary.LittleEndian
	want := make([]byte, 16+4*16)
	le.PutUint16(want[8:], 1)      // version
	le.PutUint16(want[10:], 4)     // desc_num
	le.PutUint16(want[14:], 65535) // used_idx
	check := func(when string) {
		t.Helper()
		if !bytes.Equal(region[:len(want)], want) {
			t.Fatalf("%s:\n%x, want\n%x", when, region[:len(want)], want)
		}
	}
	check("new")
	r.offer(t, 2)
	heads, chains := r.popHeads(t, 2)
	desc := func(i int) []byte { return want[16+16*int(heads[i]):] }
	desc(0)[0], desc(1)[0] = 1, 1 // inflight
	le.PutUint64(desc(1)[8:], 1)  // counter
	check("popped")
	r.queue.Push(chains[1], 8)
	le.PutUint16(want[12:], heads[1]) // last_batch_head, and next is 0
	check("pushed")
	r.queue.Push(chains[0], 8)
	le.PutUint16(want[12:], heads[0])
	le.PutUint16(desc(0)[6:], heads[1])
	check("pushed the other one")
	r.queue.Publish()
	desc(0)[0], desc(1)[0] = 0, 0
	le.PutUint16(want[14:], 1) // 65535 + 2
	check("published")
}

// restartAt is restart on a new ring of another size and index in the same memory.
func (r *ring) restartAt(tb testing.TB, size int, idx uint16, region []byte) *ring {
	tb.Helper()
	r.queue.Close()
	r.driver = virtqtest.New(r.mem, size, modern)
	r.driver.StartAt(idx)
	return r.restart(tb, region)
}

func TestRequestsInFlightComeAgainInTheirOrder(t *testing.T) {
	region := make([]byte, virtq.InflightSize(8))
	r := newRing(t, 16, modern).restartAt(t, 8, 65534, region)
	heads := r.offer(t, 4)
	_, chains := r.popHeads(t, 3)
	r.queue.Push(chains[1], 3)
	r.queue.Publish()

	r = r.restart(t, region)
	if n := r.queue.Suspended(); n != 2 {
		t.Errorf("%d to resubmit, want 2", n)
	}
	if !r.queue.Pending() || !r.queue.EnableNotify() {
		t.Error("nothing pending")
	}
	if got := r.queue.NextAvail(); got != 65535 {
		t.Errorf("next is %d, want 65535, before what is resubmitted", got)
	}
	got, chains := r.popHeads(t, 3)
	if want := []uint16{heads[0], heads[2], heads[3]}; !slices.Equal(got, want) {
		t.Errorf("popped %v, want %v", got, want)
	}
	if r.queue.Pending() || r.queue.EnableNotify() || r.queue.Suspended() != 0 {
		t.Error("still something pending")
	}
	// Given back, they come again in the same order, and still are what they were for the next
	// life.
	for _, c := range slices.Backward(chains) {
		r.queue.Unpop(c)
	}
	if again, _ := r.popHeads(t, 1); again[0] != heads[0] {
		t.Errorf("popped %v, want %d", again, heads[0])
	}
	r = r.restart(t, region)
	if again, _ := r.popHeads(t, 3); !slices.Equal(again, got) {
		t.Errorf("popped %v, want %v", again, got)
	}
}

func TestSuspendedChainsAreTakenOffTheNextIndex(t *testing.T) {
	region := make([]byte, virtq.InflightSize(8))
	r := newRing(t, 8, modern).restart(t, region)
	heads := r.offer(t, 4)
	_, chains := r.popHeads(t, 4)
	r.queue.Suspend(chains[2])
	if r.queue.CanUnpop(chains[1]) || !r.queue.CanUnpop(chains[3]) {
		t.Error("only the newest can be unpopped")
	}
	r.queue.Unpop(chains[3])
	r.queue.Push(chains[0], 0)
	r.queue.Suspend(chains[1])
	r.queue.Publish()
	if r.queue.InFlight() != 0 || r.queue.Suspended() != 2 || r.queue.NextAvail() != 1 {
		t.Errorf("%d in flight, %d suspended, next %d, want 0, 2 and 1", r.queue.InFlight(), r.queue.Suspended(), r.queue.NextAvail())
	}
	r = r.restart(t, region)
	if got, _ := r.popHeads(t, 3); !slices.Equal(got, heads[1:]) {
		t.Errorf("popped %v, want %v", got, heads[1:])
	}
}

// On a broken ring nothing is shown and nothing recorded any more: what was not shown comes again.
func TestBrokenRingKeepsItsRequestsInFlight(t *testing.T) {
	region := make([]byte, virtq.InflightSize(8))
	r := newRing(t, 8, modern).restart(t, region)
	heads := r.offer(t, 4)
	_, chains := r.popHeads(t, 4)
	r.queue.Push(chains[0], 0)
	r.queue.Publish()
	r.queue.Push(chains[1], 0)
	before := bytes.Clone(region)
	r.queue.Break(errors.New("test"))
	r.queue.Push(chains[2], 0)
	r.queue.Unpop(chains[3])
	r.queue.Publish()
	if !bytes.Equal(region, before) {
		t.Error("a broken ring wrote to its region")
	}
	if got := r.queue.NextAvail(); got != 1 {
		t.Errorf("next is %d, want 1", got)
	}
	r = r.restart(t, region)
	if got, _ := r.popHeads(t, 3); !slices.Equal(got, heads[1:]) {
		t.Errorf("popped %v, want %v", got, heads[1:])
	}
}

// A driver that makes a head available again before it has got it back would make the region wrong.
func TestHeadIsInFlightUntilItIsPublished(t *testing.T) {
	r := newRing(t, 8, modern).restart(t, make([]byte, virtq.InflightSize(8)))
	heads := r.offer(t, 1)
	_, chains := r.popHeads(t, 1)
	r.queue.Push(chains[0], 0)
	r.driver.Offer(heads[0])
	r.driver.Kick()
	var be *virtq.BrokenError
	if _, err := r.queue.Pop(new(virtq.Chain)); !errors.As(err, &be) || be.Reason != virtq.ReasonHeadInFlight {
		t.Errorf("Pop: %v, want a head in flight", err)
	}
}

// foreign is a region of 8 descriptors with used_idx 10, as a back-end leaves it.
func foreign(change func(region []byte)) []byte {
	region := make([]byte, virtq.InflightSize(8))
	binary.LittleEndian.PutUint16(region[8:], 1)
	binary.LittleEndian.PutUint16(region[10:], 8)
	binary.LittleEndian.PutUint16(region[14:], 10)
	change(region)
	return region
}

func TestRegionsThatCannotBeAreRefused(t *testing.T) {
	put16 := func(off int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[off:], v) }
	}
	for _, c := range []struct {
		name   string
		region []byte
		want   string
	}{
		{"too short", make([]byte, 16+8*16-1), "0x8f: in-flight region: that many bytes"},
		{"empty", []byte{}, "too few"},
		{"version of the future", foreign(put16(8, 2)), "0x2: in-flight region: unknown version"},
		{"features", foreign(func(b []byte) { b[7] = 1 }), "unknown features"},
		{"smaller ring", foreign(put16(10, 7)), "0x7: in-flight region: desc_num"},
		{"more entries than room", foreign(put16(10, 12)), "0xc: in-flight region: desc_num"},
		{"used_idx ahead", foreign(put16(14, 11)), "0xb: in-flight region: used_idx"},
		{"used_idx far behind", foreign(put16(14, 1)), "used_idx"},
		{"batch with a head out of range", foreign(func(b []byte) { put16(14, 9)(b); put16(12, 8)(b) }), "0x8: in-flight region: head in the list"},
		{"batch that leads out of range", foreign(func(b []byte) { put16(14, 8)(b); put16(16+6, 500)(b) }), "0x1f4: in-flight region: head in the list"},
		{"more than was made available", foreign(func(b []byte) { b[16+16*2], b[16+16*5] = 1, 1 }), "0x2: in-flight region: that many heads in flight, of 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRing(t, 16, modern)
			r.queue.Close()
			d := virtqtest.New(r.mem, 8, modern)
			d.StartAt(10)
			d.SetAvailIdx(11)
			cfg := d.Layout()
			cfg.Inflight = c.region
			_, err := virtq.New(r.memory, cfg)
			var ce *virtq.ConfigError
			if !errors.As(err, &ce) || ce.Field != "Inflight" || !errors.Is(err, virtq.ErrInflight) {
				t.Fatalf("New: %v, want a ConfigError of Inflight", err)
			}
			if !bytes.Contains([]byte(err.Error()), []byte(c.want)) {
				t.Errorf("New: %q, want %q in it", err, c.want)
			}
		})
	}
	// A head that only a larger ring has.
	r := newRing(t, 16, modern)
	r.queue.Close()
	d := virtqtest.New(r.mem, 4, modern)
	d.StartAt(10)
	cfg := d.Layout()
	cfg.Inflight = foreign(func(b []byte) { b[16+16*5] = 1 })
	if _, err := virtq.New(r.memory, cfg); !errors.Is(err, virtq.ErrInflight) {
		t.Errorf("New: %v, want a refusal of head 5", err)
	}
}

// A bad chain in the region is the guest's doing, as one in the available ring is.
func TestBadChainInTheRegionBreaksTheRing(t *testing.T) {
	r := newRing(t, 16, modern)
	r = r.restartAt(t, 8, 10, nil)
	r.driver.SetDesc(3, virtqtest.Desc{Addr: 1 << 60, Len: 8})
	r.driver.Offer(3)
	r.driver.Kick()
	r = r.restart(t, foreign(func(b []byte) { b[16+16*3] = 1 }))
	var be *virtq.BrokenError
	if _, err := r.queue.Pop(new(virtq.Chain)); !errors.As(err, &be) || be.Reason != virtq.ReasonAddress {
		t.Errorf("Pop: %v, want a bad address", err)
	}
}

// FuzzInflight takes over any region: New refuses it, or each head comes once, and all can be given
// back.
func FuzzInflight(f *testing.F) {
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 14})
	if err != nil {
		f.Fatal(err)
	}
	defer mem.Close()
	memory, err := mem.Memory()
	if err != nil {
		f.Fatal(err)
	}
	defer memory.Release()
	const size = 8
	d := virtqtest.New(mem, size, modern)
	for i := range size {
		d.SetDesc(i, virtqtest.Desc{Addr: 0, Len: 8})
	}
	f.Add([]byte(nil), uint16(0))
	f.Add(make([]byte, virtq.InflightSize(size)), uint16(3))
	for _, change := range []func([]byte){
		func([]byte) {},
		func(b []byte) { b[16], b[16+16*7], b[16+16*7+8] = 1, 1, 9 },
		func(b []byte) { b[14], b[12], b[16+16*2], b[16+16*2+6] = 8, 2, 1, 5 },
		func(b []byte) { b[10] = 11; b[16+16*10] = 1 },
	} {
		f.Add(foreign(change), uint16(10))
	}
	f.Fuzz(func(t *testing.T, region []byte, used uint16) {
		region = append(make([]byte, 0, len(region)), region...)
		binary.LittleEndian.PutUint16(d.UsedBytes()[2:], used)
		d.SetAvailIdx(used + size)
		cfg := d.Layout()
		if cfg.Inflight = region; region == nil {
			cfg.Inflight = []byte{}
		}
		q, err := virtq.New(memory, cfg)
		if err != nil {
			if !errors.Is(err, virtq.ErrInflight) {
				t.Fatal(err)
			}
			return
		}
		defer q.Close()
		n := q.Suspended()
		d.SetAvailIdx(used + uint16(n))
		seen := make(map[uint16]bool)
		chains := make([]virtq.Chain, size)
		for i := range n {
			if ok, err := q.Pop(&chains[i]); !ok || err != nil {
				t.Fatalf("Pop %d of %d = %v, %v", i, n, ok, err)
			}
			if seen[chains[i].Head] {
				t.Fatalf("head %d comes twice", chains[i].Head)
			}
			seen[chains[i].Head] = true
		}
		if ok, err := q.Pop(new(virtq.Chain)); ok || err != nil {
			t.Fatalf("Pop behind the last = %v, %v", ok, err)
		}
		// Suspended in any order they come again as they did, and never go to the available ring.
		for i := range n {
			q.Suspend(&chains[(i+int(used))%n])
			if i%2 == 1 && q.Unfetch(nil) != 0 {
				t.Fatal("what was inherited was unfetched")
			}
		}
		heads := make([]uint16, n)
		for i := range n {
			heads[i] = chains[i].Head
		}
		for i := range n {
			if ok, err := q.Pop(&chains[i]); !ok || err != nil || chains[i].Head != heads[i] {
				t.Fatalf("Pop %d = %v, %v, head %d, want %d", i, ok, err, chains[i].Head, heads[i])
			}
		}
		for i := range n {
			q.Push(&chains[i], 0)
		}
		q.Publish()
		q.Close()
		if q, err = virtq.New(memory, cfg); err != nil || q.Suspended() != 0 {
			t.Fatalf("after all were unfetched: %v, %v", q, fmt.Sprint(err))
		}
	})
}
