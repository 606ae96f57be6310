package virtq_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// mustPop pops what has these heads, in order, and nothing after it.
func (r *ring) mustPop(tb testing.TB, heads ...uint16) (chains []*virtq.Chain) {
	tb.Helper()
	got, chains := r.popHeads(tb, len(heads))
	if !slices.Equal(got, heads) {
		tb.Fatalf("popped %v, want %v", got, heads)
	}
	if ok, err := r.queue.Pop(new(virtq.Chain)); ok || err != nil {
		tb.Fatalf("Pop = %v, %v behind the last one", ok, err)
	}
	return chains
}

func TestSuspendedChainsComeAgainOnTheSameQueueInTheirOrder(t *testing.T) {
	for _, tracked := range []bool{false, true} {
		t.Run(fmt.Sprintf("region=%v", tracked), func(t *testing.T) {
			r := newRing(t, 16, modern)
			if tracked {
				r = r.restart(t, make([]byte, virtq.InflightSize(16)))
			}
			heads := r.offer(t, 4)
			chains := r.mustPop(t, heads...)
			r.queue.Suspend(chains[2])
			r.queue.Suspend(chains[0])
			// The ring goes on, and what is new comes behind.
			more := r.offer(t, 2)
			if !r.queue.Pending() || !r.queue.EnableNotify() || r.queue.Suspended() != 2 || r.queue.InFlight() != 2 {
				t.Error("what is suspended is not pending, or in flight")
			}
			again := r.mustPop(t, heads[0], heads[2], more[0], more[1])
			// Popped again it is as old as it was.
			for _, c := range []*virtq.Chain{again[3], again[1], chains[3], again[0]} {
				r.queue.Suspend(c)
			}
			for _, c := range r.mustPop(t, heads[0], heads[2], heads[3], more[1]) {
				r.queue.Push(c, 0)
			}
			r.queue.Push(chains[1], 0)
			r.queue.Push(again[2], 0)
			r.queue.Publish()
			if got := r.queue.NextAvail(); got != 6 || r.queue.UsedIdx() != 6 || r.queue.Suspended() != 0 {
				t.Errorf("next %d, used %d, want 6; %d suspended", got, r.queue.UsedIdx(), r.queue.Suspended())
			}
		})
	}
}

func TestUnfetchGivesBackWhatNothingNewerOvertook(t *testing.T) {
	r := newRing(t, 16, modern)
	heads := r.offer(t, 6)
	chains := r.mustPop(t, heads...)
	for _, i := range []int{1, 5, 4} {
		r.queue.Suspend(chains[i])
	}
	if n := r.queue.Unfetch(nil); n != 2 || r.queue.Suspended() != 1 || r.queue.NextAvail() != 3 {
		t.Errorf("Unfetch = %d, %d suspended, next %d, want 2, 1 and 3", n, r.queue.Suspended(), r.queue.NextAvail())
	}
	if n := r.queue.Unfetch(nil); n != 0 {
		t.Errorf("Unfetch = %d with chains in flight behind it", n)
	}
	r.queue.Push(chains[3], 0)
	r.queue.Suspend(chains[2])
	if n := r.queue.Unfetch(nil); n != 0 {
		t.Errorf("Unfetch = %d, but a newer one was pushed", n)
	}
	r.mustPop(t, heads[1], heads[2], heads[4], heads[5])
}

func TestUnfetchStopsAtWhatMayNotGoBack(t *testing.T) {
	r := newRing(t, 16, modern)
	heads := r.offer(t, 4)
	for _, c := range r.mustPop(t, heads...) {
		r.queue.Suspend(c)
	}
	if n := r.queue.Unfetch(func(head uint16) bool { return head != heads[1] }); n != 2 || r.queue.NextAvail() != 0 {
		t.Errorf("Unfetch = %d, next %d, want 2 and 0", n, r.queue.NextAvail())
	}
	if n := r.queue.Suspended(); n != 2 {
		t.Errorf("%d suspended, want 2", n)
	}
	r.mustPop(t, heads...)
}

// What was pushed before the region was handed on shows in used.idx alone: a chain that is left may
// have been overtaken.
func TestInheritedChainsAreNotUnfetched(t *testing.T) {
	region := make([]byte, virtq.InflightSize(8))
	r := newRing(t, 8, modern).restart(t, region)
	heads := r.offer(t, 2)
	chains := r.mustPop(t, heads...)
	r.queue.Push(chains[1], 0)
	r.queue.Publish()
	r = r.restart(t, region)
	if n := r.queue.Unfetch(nil); n != 0 {
		t.Fatalf("Unfetch = %d of what was inherited", n)
	}
	c := r.mustPop(t, heads[0])[0]
	r.queue.Unpop(c)
	if r.queue.Suspended() != 1 || r.queue.NextAvail() != 1 {
		t.Errorf("%d suspended, next %d, want 1 and 1", r.queue.Suspended(), r.queue.NextAvail())
	}
	r.queue.Suspend(r.mustPop(t, heads[0])[0])
	if n := r.queue.Unfetch(nil); n != 0 {
		t.Errorf("Unfetch = %d of what was inherited", n)
	}
	r = r.restart(t, region)
	r.mustPop(t, heads[0])
}

// A chain that is held for long has others go round the ring's index behind it.
func TestAnOldChainIsNotTheNewestWhenTheIndexHasGoneRound(t *testing.T) {
	r := newRing(t, 4, 0)
	r.offer(t, 1)
	_, old := r.popHeads(t, 1)
	var c virtq.Chain
	seg := []virtqtest.Seg{r.seg(1)}
	for range 1 << 16 {
		r.driver.Add(seg, nil)
		r.driver.Kick()
		r.pop(t, &c)
		r.queue.Push(&c, 0)
		r.queue.Publish()
		r.driver.Used()
	}
	if r.queue.CanUnpop(old[0]) {
		t.Error("the oldest can be unpopped")
	}
	r.queue.Suspend(old[0])
	if n := r.queue.Unfetch(nil); n != 0 {
		t.Errorf("Unfetch = %d of the oldest", n)
	}
}

func TestTheHeadOfASuspendedChainIsNotTheDrivers(t *testing.T) {
	r := newRing(t, 8, modern)
	heads := r.offer(t, 1)
	r.queue.Suspend(r.mustPop(t, heads...)[0])
	r.driver.Offer(heads[0])
	r.driver.Kick()
	_, chains := r.popHeads(t, 1)
	var be *virtq.BrokenError
	if _, err := r.queue.Pop(new(virtq.Chain)); !errors.As(err, &be) || be.Reason != virtq.ReasonHeadInFlight {
		t.Errorf("Pop: %v, want a head in flight", err)
	}
	r.queue.Suspend(chains[0])
}

// An inherited chain is the device's as any other: its head is not the guest driver's, before it is
// popped again and after.
func TestTheHeadOfAnInheritedChainIsNotTheDrivers(t *testing.T) {
	for _, flying := range []bool{false, true} {
		t.Run(fmt.Sprintf("in flight=%v", flying), func(t *testing.T) {
			region := make([]byte, virtq.InflightSize(8))
			r := newRing(t, 8, modern).restart(t, region)
			heads := r.offer(t, 1)
			r.mustPop(t, heads...)
			r = r.restart(t, region)
			if flying {
				r.mustPop(t, heads...)
			}
			r.driver.Offer(heads[0])
			r.driver.Kick()
			if !flying {
				r.popHeads(t, 1)
			}
			var be *virtq.BrokenError
			if _, err := r.queue.Pop(new(virtq.Chain)); !errors.As(err, &be) || be.Reason != virtq.ReasonHeadInFlight {
				t.Errorf("Pop: %v, want a head in flight", err)
			}
		})
	}
}

// What the driver has changed meanwhile is seen, and checked.
func TestDescriptorsOfASuspendedChainAreReadAnew(t *testing.T) {
	r := newRing(t, 8, 0)
	heads := r.offer(t, 2)
	for _, c := range slices.Backward(r.mustPop(t, heads...)) {
		r.queue.Suspend(c)
	}
	r.driver.SetDesc(int(heads[0]), virtqtest.Desc{Addr: 0x100, Len: 3})
	r.driver.SetDesc(int(heads[1]), virtqtest.Desc{Addr: 1 << 60, Len: 3})
	_, chains := r.popHeads(t, 1)
	if c := chains[0]; c.Head != heads[0] || c.ReadableLen() != 3 || c.WritableLen() != 0 {
		t.Errorf("head %d with %d and %d bytes", c.Head, c.ReadableLen(), c.WritableLen())
	}
	var be *virtq.BrokenError
	if _, err := r.queue.Pop(new(virtq.Chain)); !errors.As(err, &be) || be.Reason != virtq.ReasonAddress {
		t.Errorf("Pop: %v, want a bad address", err)
	}
	// On a ring that is broken the counts go on, and nothing is given out or back.
	r.queue.Suspend(chains[0])
	if ok, err := r.queue.Pop(new(virtq.Chain)); ok || err != r.queue.Broken() || r.queue.Unfetch(nil) != 0 {
		t.Errorf("Pop of a broken ring = %v, %v", ok, err)
	}
	if r.queue.InFlight() != 0 || r.queue.Suspended() != 2 || r.queue.Pending() {
		t.Errorf("%d in flight, %d suspended, want 0 and 2", r.queue.InFlight(), r.queue.Suspended())
	}
}

func TestASuspendedChainHoldsNoMemory(t *testing.T) {
	r, first := twoRegions(t)
	first.Release()
	defer r.queue.Close()
	r.driver.Add(nil, []virtqtest.Seg{{Addr: 0x10000, Len: 16}})
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	old := fmt.Sprintf("%p", &c.Writable[0][0])
	next, err := r.mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer next.Release()
	if err := r.queue.SetMemory(next); err != nil {
		t.Fatal(err)
	}
	if !isMapped(t, old) {
		t.Fatal("unmapped with a chain in it")
	}
	r.queue.Suspend(&c)
	if remainsMapped(t, old) {
		t.Error("still mapped with nothing in flight there")
	}
	r.pop(t, &c)
	if now := fmt.Sprintf("%p", &c.Writable[0][0]); now == old {
		t.Error("popped again in the old memory")
	}
	copy(c.Writable[0], "data")
	if got := r.mem.Bytes(0x10000, 4); string(got) != "data" {
		t.Errorf("the driver finds %q", got)
	}
	r.queue.Push(&c, 4)
}

func TestOnlyChainsInFlightAreSuspended(t *testing.T) {
	r := newRing(t, 8, modern)
	mustPanic(t, "Suspend of a chain that was never popped", func() { r.queue.Suspend(new(virtq.Chain)) })
	r.offer(t, 1)
	_, chains := r.popHeads(t, 1)
	r.queue.Suspend(chains[0])
	mustPanic(t, "second Suspend", func() { r.queue.Suspend(chains[0]) })
	mustPanic(t, "Push of a suspended chain", func() { r.queue.Push(chains[0], 0) })
	_, chains = r.popHeads(t, 1)
	r.offer(t, 1)
	mustPanic(t, "Pop into a chain in flight", func() { _, _ = r.queue.Pop(chains[0]) })
	var c virtq.Chain
	r.pop(t, &c)
	r.queue.Suspend(&c)
	mustPanic(t, "Pop of what is suspended into a chain in flight", func() { _, _ = r.queue.Pop(chains[0]) })
}
