package virtq_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"vdev/internal/guestmem"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestPushedChainsAreSeenAfterPublish(t *testing.T) {
	r := newRing(t, 8, modern)
	var a, b virtq.Chain
	headA, _ := r.driver.Add([]virtqtest.Seg{r.seg(1)}, []virtqtest.Seg{r.seg(100)})
	headB, _ := r.driver.AddIndirect(nil, []virtqtest.Seg{r.seg(5)})
	if r.queue.Pending() {
		t.Error("pending before the driver showed anything")
	}
	r.driver.Kick()
	if !r.queue.Pending() {
		t.Error("nothing pending")
	}
	r.pop(t, &a)
	r.pop(t, &b)
	if a.Head != headA || b.Head != headB || r.queue.InFlight() != 2 {
		t.Errorf("heads %d and %d, %d in flight", a.Head, b.Head, r.queue.InFlight())
	}
	if ok, err := r.queue.Pop(new(virtq.Chain)); ok || err != nil {
		t.Errorf("Pop of an empty ring = %v, %v", ok, err)
	}
	r.queue.Push(&b, 5)
	r.queue.Push(&a, 77)
	if r.driver.PendingUsed() || r.queue.UsedIdx() != 0 {
		t.Error("used before Publish")
	}
	r.queue.Publish()
	for _, want := range []struct {
		head    uint16
		written uint32
	}{{headB, 5}, {headA, 77}} {
		if head, written, ok := r.driver.Used(); !ok || head != want.head || written != want.written {
			t.Errorf("used %d, %d, %v, want %v", head, written, ok, want)
		}
	}
	if r.driver.PendingUsed() || r.queue.UsedIdx() != 2 || r.queue.NextAvail() != 2 || r.queue.InFlight() != 0 {
		t.Error("the indices are wrong")
	}
}

func TestIndicesWrapRound(t *testing.T) {
	for _, size := range []int{1, 2, 256, 32768} {
		for _, first := range []uint16{65535, 65536 - 3, 32767} {
			t.Run(fmt.Sprintf("size=%d/first=%d", size, first), func(t *testing.T) {
				mem := newMem(t, virtqtest.Range{Size: 4 << 20})
				d := virtqtest.New(mem, size, modern)
				d.StartAt(first)
				r := start(t, mem, d)
				seg := []virtqtest.Seg{r.seg(1)}
				chains := make([]virtq.Chain, size)
				for round := range 3 {
					for range size {
						if _, ok := d.Add(seg, nil); !ok {
							t.Fatal("no room")
						}
					}
					d.Kick()
					for i := range chains {
						r.pop(t, &chains[i])
					}
					if r.queue.Pending() || r.queue.InFlight() != size {
						t.Fatal("not all taken")
					}
					for i := range chains {
						r.queue.Push(&chains[i], 0)
					}
					r.queue.Publish()
					for range size {
						if _, _, ok := d.Used(); !ok {
							t.Fatal("not all used")
						}
					}
					want := first + uint16((round+1)*size)
					if r.queue.NextAvail() != want || r.queue.UsedIdx() != want {
						t.Fatalf("indices %d and %d, want %d", r.queue.NextAvail(), r.queue.UsedIdx(), want)
					}
				}
			})
		}
	}
}

func TestUnpopGivesBackNewestFirst(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	d := virtqtest.New(mem, 8, modern)
	d.StartAt(65534)
	r := start(t, mem, d)
	seg := []virtqtest.Seg{r.seg(1)}
	var heads []uint16
	var chains [4]virtq.Chain
	for range chains {
		head, _ := d.Add(seg, nil)
		heads = append(heads, head)
	}
	d.Kick()
	for i := range chains {
		r.pop(t, &chains[i])
	}
	for i := range 3 {
		if r.queue.CanUnpop(&chains[i]) {
			t.Errorf("chain %d can be unpopped", i)
		}
		mustPanic(t, "Unpop of an older chain", func() { r.queue.Unpop(&chains[i]) })
	}
	r.queue.Unpop(&chains[3])
	mustPanic(t, "second Unpop", func() { r.queue.Unpop(&chains[3]) })
	mustPanic(t, "Push after Unpop", func() { r.queue.Push(&chains[3], 0) })
	// With one of them used, those before it can no more be unpopped.
	r.queue.Push(&chains[2], 0)
	if r.queue.CanUnpop(&chains[1]) || r.queue.CanUnpop(&chains[2]) {
		t.Error("a chain older than a used one can be unpopped")
	}
	if r.queue.NextAvail() != 1 || r.queue.InFlight() != 2 || !r.queue.Pending() {
		t.Errorf("next %d, in flight %d", r.queue.NextAvail(), r.queue.InFlight())
	}
	r.pop(t, &chains[3])
	if chains[3].Head != heads[3] {
		t.Errorf("head %d again, want %d", chains[3].Head, heads[3])
	}
	for _, i := range []int{3, 0, 1} {
		r.queue.Push(&chains[i], 0)
	}
	r.queue.Publish()
	for range chains {
		if _, _, ok := d.Used(); !ok {
			t.Error("a chain was lost")
		}
	}
}

func TestMisuseByTheDevicePanics(t *testing.T) {
	r, other := newRing(t, 8, modern), newRing(t, 8, modern)
	var c virtq.Chain
	mustPanic(t, "Push of a chain never popped", func() { r.queue.Push(&c, 0) })
	r.driver.Add(nil, []virtqtest.Seg{r.seg(4)})
	r.driver.Add(nil, []virtqtest.Seg{r.seg(4)})
	r.driver.Kick()
	r.pop(t, &c)
	mustPanic(t, "Pop into a chain in flight", func() { _, _ = r.queue.Pop(&c) })
	mustPanic(t, "Push to another queue", func() { other.queue.Push(&c, 0) })
	mustPanic(t, "Unpop to another queue", func() { other.queue.Unpop(&c) })
	mustPanic(t, "Push of more than there is room for", func() { r.queue.Push(&c, 5) })
	r.queue.Push(&c, 4)
	mustPanic(t, "second Push", func() { r.queue.Push(&c, 4) })
	if r.queue.InFlight() != 0 || other.queue.InFlight() != 0 {
		t.Error("the count is wrong")
	}
}

// needEvent is what 2.7.7.2 and 2.7.10 of virtio 1.2 say in words: a notification is due when one
// of the entries written was at the index event.
func needEvent(event, to, from uint16) bool {
	for i := from; i != to; i++ {
		if i == event {
			return true
		}
	}
	return false
}

func TestPublishCallsAsUsedEventSays(t *testing.T) {
	const size = 8
	for _, first := range []uint16{0, 100, 32764, 65532, 65535} {
		for batch := range size + 1 {
			for d := -10; d <= 10; d++ {
				mem := newMem(t, virtqtest.Range{Size: 0x4000})
				driver := virtqtest.New(mem, size, modern)
				driver.StartAt(first)
				r := start(t, mem, driver)
				// What flags say does not matter with event indices.
				r.driver.AvailBytes()[0] = virtqtest.AvailNoInterrupt
				event := first + uint16(d)
				driver.SetUsedEvent(event)
				// What was shown before is called for as well.
				r.serve(t, batch/2)
				r.queue.Show()
				if got, want := r.queue.UsedIdx(), first+uint16(batch/2); got != want {
					t.Fatalf("used.idx is %d, want %d", got, want)
				}
				r.serve(t, batch-batch/2)
				if got, want := r.queue.Publish(), needEvent(event, first+uint16(batch), first); got != want {
					t.Fatalf("%d from %d, used_event %d: call %v, want %v", batch, first, event, got, want)
				}
				if r.queue.Publish() {
					t.Fatal("call without anything new")
				}
			}
		}
	}
}

// serve adds, pops and pushes n chains.
func (r *ring) serve(tb testing.TB, n int) {
	tb.Helper()
	seg := []virtqtest.Seg{{Addr: 0, Len: 1}}
	var c virtq.Chain
	for range n {
		r.driver.Add(seg, nil)
		r.driver.Kick()
		r.pop(tb, &c)
		r.queue.Push(&c, 0)
	}
}

func TestPublishCallsAsFlagsSay(t *testing.T) {
	r := newRing(t, 8, virtq.FeatureVersion1)
	for _, tc := range []struct {
		flags byte
		want  bool
	}{{0, true}, {1, false}, {2, true}, {3, false}} {
		r.driver.AvailBytes()[0] = tc.flags
		r.serve(t, 2)
		if got := r.queue.Publish(); got != tc.want {
			t.Errorf("flags %d: call %v", tc.flags, got)
		}
		for range 2 {
			r.driver.Used()
		}
	}
}

func TestNotificationsByFlags(t *testing.T) {
	r := newRing(t, 8, 0)
	seg := []virtqtest.Seg{r.seg(1)}
	r.queue.DisableNotify()
	if r.driver.UsedFlags() != virtqtest.UsedNoNotify {
		t.Error("kicks are not suppressed")
	}
	r.driver.Add(seg, nil)
	if r.driver.Kick() {
		t.Error("kick although suppressed")
	}
	if !r.queue.EnableNotify() {
		t.Error("what came meanwhile is not seen")
	}
	if r.driver.UsedFlags() != 0 {
		t.Error("kicks are still suppressed")
	}
	var c virtq.Chain
	r.pop(t, &c)
	if r.queue.EnableNotify() {
		t.Error("pending in an empty ring")
	}
	r.driver.Add(seg, nil)
	if !r.driver.Kick() {
		t.Error("no kick although asked for")
	}
	// Publishing leaves the flags, and the flags leave the index.
	r.queue.Push(&c, 0)
	r.queue.DisableNotify()
	if r.driver.UsedFlags() != virtqtest.UsedNoNotify {
		t.Error("kicks are not suppressed again")
	}
	if r.driver.PendingUsed() {
		t.Error("DisableNotify published")
	}
	r.queue.EnableNotify()
	if r.driver.PendingUsed() {
		t.Error("EnableNotify published")
	}
	r.queue.DisableNotify()
	r.queue.Publish()
	if r.driver.UsedFlags() != virtqtest.UsedNoNotify || !r.driver.PendingUsed() {
		t.Errorf("flags %d, used %v", r.driver.UsedFlags(), r.driver.PendingUsed())
	}
}

func TestNotificationsByEventIndex(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	d := virtqtest.New(mem, 8, modern)
	d.StartAt(65535)
	d.UsedBytes()[0] = virtqtest.UsedNoNotify // left behind by somebody; not ours to leave
	r := start(t, mem, d)
	seg := []virtqtest.Seg{r.seg(1)}
	var c virtq.Chain
	for range 3 {
		if r.queue.EnableNotify() {
			t.Error("pending in an empty ring")
		}
		d.Add(seg, nil)
		if !d.Kick() {
			t.Error("no kick although asked for")
		}
		d.Add(seg, nil)
		if d.Kick() {
			t.Error("second kick without having been asked for")
		}
		if !r.queue.EnableNotify() {
			t.Error("what came meanwhile is not seen")
		}
		for range 2 {
			r.pop(t, &c)
			r.queue.DisableNotify()
			r.queue.Push(&c, 0)
		}
		r.queue.Publish()
		if d.UsedFlags() != 0 {
			t.Error("flags are to be 0 with event indices")
		}
		for range 2 {
			d.Used()
		}
	}
}

func TestAvailEventLeavesWhatStandsBesideIt(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	const used = 0x3000
	d := virtqtest.NewAt(mem, 4, modern, 0x1000, 0x2000, used)
	r := start(t, mem, d)
	beside := mem.Bytes(used+4+8*4, 8)
	for i := range beside {
		beside[i] = 0xee
	}
	r.queue.EnableNotify()
	if string(beside) != "\x00\x00\xee\xee\xee\xee\xee\xee" {
		t.Errorf("after the used ring: %x", beside)
	}
}

// remainsMapped tells whether isMapped stays true: what nobody uses any more is unmapped elsewhere,
// soon.
func remainsMapped(t *testing.T, address string) bool {
	end := time.Now().Add(30 * time.Second)
	for ; time.Now().Before(end); time.Sleep(time.Millisecond) {
		if !isMapped(t, address) {
			return false
		}
	}
	return true
}

// isMapped tells whether the memory at this address, as %p prints it, is mapped in this process.
func isMapped(t *testing.T, address string) bool {
	t.Helper()
	var at uint64
	if _, err := fmt.Sscanf(address, "0x%x", &at); err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if from <= at && at < to {
			// Not what the runtime has put there since.
			return strings.Contains(line, "memfd:virtqtest")
		}
	}
	return false
}

// twoRegions makes a ring in the first of two regions, and memory of the first alone.
func twoRegions(t *testing.T) (r *ring, first *virtq.Memory) {
	t.Helper()
	mem := newMem(t, virtqtest.Range{Size: 0x4000}, virtqtest.Range{GuestPhys: 0x10000, Size: 0x4000})
	r = &ring{mem: mem, driver: virtqtest.New(mem, 8, modern)}
	var err error
	if r.memory, err = mem.Memory(); err != nil {
		t.Fatal(err)
	}
	if r.queue, err = virtq.New(r.memory, r.driver.Layout()); err != nil {
		t.Fatal(err)
	}
	first = without(t, r.memory, mem, 1)
	r.memory.Release()
	return r, first
}

func TestChainsInFlightKeepTheirMemory(t *testing.T) {
	for _, end := range []string{"push", "unpop", "suspend", "push after break", "suspend after break",
		"push after close", "unpop after close", "suspend after close"} {
		t.Run(end, func(t *testing.T) {
			r, first := twoRegions(t)
			seg := virtqtest.Seg{Addr: 0x10000, Len: 16}
			var a, b virtq.Chain
			r.driver.Add(nil, []virtqtest.Seg{seg})
			r.driver.Add(nil, []virtqtest.Seg{seg})
			r.driver.Kick()
			r.pop(t, &a)
			r.pop(t, &b)
			at := fmt.Sprintf("%p", &a.Writable[0][0])
			if err := r.queue.SetMemory(first); err != nil {
				t.Fatal(err)
			}
			first.Release()
			if !isMapped(t, at) {
				t.Fatal("unmapped with two chains in flight")
			}
			copy(a.Writable[0], "still there")
			if string(r.mem.Bytes(0x10000, 11)) != "still there" {
				t.Error("not the guest's memory any more")
			}
			last := func() { r.queue.Push(&a, 1) }
			switch end {
			case "suspend after break":
				r.queue.Break(os.ErrInvalid)
			case "suspend after close":
				r.queue.Close()
			}
			switch end {
			case "suspend", "suspend after break", "suspend after close":
				r.queue.Suspend(&a)
				last = func() { r.queue.Suspend(&b) }
			case "push":
				r.queue.Push(&b, 0)
			case "unpop":
				r.queue.Unpop(&b)
				last = func() { r.queue.Unpop(&a) }
			case "push after break":
				r.queue.Break(os.ErrInvalid)
				r.queue.Push(&b, 0)
			case "push after close":
				r.queue.Close()
				r.queue.Push(&b, 0)
			case "unpop after close":
				r.queue.Close()
				r.queue.Unpop(&b)
				last = func() { r.queue.Unpop(&a) }
			}
			if !isMapped(t, at) {
				t.Fatal("unmapped with a chain in flight")
			}
			last()
			if remainsMapped(t, at) {
				t.Error("still mapped with nothing in flight")
			}
			r.queue.Close()
		})
	}
}

func TestCloseLeavesChainsInFlightTheirMemory(t *testing.T) {
	r, first := twoRegions(t)
	first.Release()
	var c virtq.Chain
	r.driver.Add(nil, []virtqtest.Seg{{Addr: 0x10000, Len: 16}})
	r.driver.Kick()
	r.pop(t, &c)
	at := fmt.Sprintf("%p", &c.Writable[0][0])
	r.queue.Close()
	if !isMapped(t, at) || r.queue.InFlight() != 1 {
		t.Error("unmapped with a chain in flight")
	}
	r.queue.Push(&c, 0)
	if remainsMapped(t, at) || r.queue.InFlight() != 0 {
		t.Error("still mapped with nothing in flight")
	}
	if r.driver.PendingUsed() {
		t.Error("a closed queue wrote to its ring")
	}
}

func TestTheCurrentMemoryStaysWithNothingInFlight(t *testing.T) {
	r, first := twoRegions(t)
	defer r.queue.Close()
	defer first.Release()
	r.driver.Add(nil, []virtqtest.Seg{{Addr: 0x10000, Len: 16}})
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	at := fmt.Sprintf("%p", &c.Writable[0][0])
	r.queue.Push(&c, 0)
	if !isMapped(t, at) {
		t.Fatal("the memory in use is unmapped")
	}
	if err := r.queue.SetMemory(first); err != nil {
		t.Fatal(err)
	}
	if remainsMapped(t, at) {
		t.Error("memory that nobody uses is mapped")
	}
}

func TestAfterAChangeOfMemoryTheNewOneIsUsed(t *testing.T) {
	r, first := twoRegions(t)
	defer r.queue.Close()
	seg := []virtqtest.Seg{{Addr: 0x10000, Len: 16}}
	var c virtq.Chain
	r.driver.Add(nil, seg)
	r.driver.Kick()
	r.pop(t, &c)
	// The ring goes on, in the new mapping: what is pushed there the driver sees.
	if err := r.queue.SetMemory(first); err != nil {
		t.Fatal(err)
	}
	first.Release()
	r.queue.Push(&c, 3)
	r.queue.Publish()
	if _, written, ok := r.driver.Used(); !ok || written != 3 {
		t.Errorf("used %d, %v", written, ok)
	}
	r.driver.Add(nil, seg)
	r.driver.Kick()
	r.mustBreakNow(t, virtq.ReasonAddress)
}

// mustBreakNow pops once, which must break the ring.
func (r *ring) mustBreakNow(t *testing.T, reason virtq.Reason) {
	t.Helper()
	_, err := r.queue.Pop(new(virtq.Chain))
	if be, ok := err.(*virtq.BrokenError); !ok || be.Reason != reason {
		t.Errorf("Pop: %v, want %s", err, reason)
	}
}

func TestMemoryWithoutTheRingBreaksIt(t *testing.T) {
	r, first := twoRegions(t)
	defer first.Release()
	r.driver.Add(nil, []virtqtest.Seg{{Addr: 0x10000, Len: 16}})
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	at := fmt.Sprintf("%p", &c.Writable[0][0])
	empty, err := guestmem.New()
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Release()
	err = r.queue.SetMemory((*virtq.Memory)(empty))
	if be, ok := err.(*virtq.BrokenError); !ok || be.Reason != virtq.ReasonRingMemory || r.queue.Broken() != err {
		t.Fatalf("SetMemory: %v", err)
	}
	if !isMapped(t, at) {
		t.Error("the chain's memory is unmapped")
	}
	r.queue.Push(&c, 0)
	r.queue.Publish()
	if remainsMapped(t, at) {
		t.Error("memory that nobody uses is mapped")
	}
	// A broken queue still goes over to new memory, so that it does not hold on to the old.
	if got := r.queue.SetMemory(first); got != err {
		t.Errorf("SetMemory: %v", got)
	}
	r.queue.Close()
}
