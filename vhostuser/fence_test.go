package vhostuser_test

import (
	"errors"
	"slices"
	"syscall"
	"testing"

	"vdev/internal/guestmem"
	"vdev/vhostuser"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// late is the half of a request that storage does not complete.
type late struct {
	memory *virtq.Memory
	bufs   [][]byte
}

// lands writes to the buffers, and ends the transfer.
func (l *late) lands(v byte) {
	for _, b := range l.bufs {
		for i := range b {
			b[i] = v
		}
	}
	l.memory.Release()
}

// fencer is a reverser whose rings fence what is held back when they are stopped, and then answer
// it.
type fencer struct {
	*reverser
	late []*late
	err  error // of Fence
	lost int   // chains that could not be popped again
	// seen, where it is set, is called for each chain when it was popped again.
	seen func(old *late, now *virtq.Chain)
}

func newFencer(t testing.TB, queues int) (*fencer, *rig) {
	d := &fencer{reverser: newReverser(queues)}
	d.onStop = d.stopQueue
	g := newRig(t, d.reverser)
	g.handshake()
	d.setHold(true)
	return d, g
}

func (d *fencer) stopQueue(q *vhostuser.Queue, _ vhostuser.Stop) {
	var stuck []vhostuser.Stuck
	var split []*late
	l := q.Data.(*lane)
	q.Loop().Do(func() {
		for _, c := range l.held {
			t := &late{q.Memory(c), slices.Clone(c.Writable)}
			split = append(split, t)
			stuck = append(stuck, vhostuser.Stuck{Memory: t.memory, Bufs: append([][]byte{nil}, t.bufs...)})
			q.Suspend(c)
		}
		l.held = nil
	})
	d.late = append(d.late, split...)
	d.err = q.Fence(stuck)
	q.Do(func() {
		for _, old := range split {
			c := new(virtq.Chain)
			if !q.PopSuspended(c) {
				d.lost++
				continue
			}
			if d.seen != nil {
				d.seen(old, c)
			}
			d.finish(q, c)
		}
	})
}

// extraMem is one more region, far from the others for both sides.
func extraMem(t testing.TB, g *rig) (*virtqtest.Mem, vhostuser.MemoryRegion) {
	t.Helper()
	extra, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 16})
	g.must(err)
	t.Cleanup(extra.Close)
	region := vhostuser.MemoryRegion(extra.Regions()[0])
	region.UserAddr += 1 << 40
	return extra, region
}

// TestAFenceTakesTheRegionsThatAreUsed, and leaves the others where they are: descriptors that are
// left at the end, which newRig looks for, would be of memory that nobody has released.
func TestAFenceTakesTheRegionsThatAreUsed(t *testing.T) {
	d, g := newFencer(t, 1)
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.out[0].Addr = g.mem.AllocIn(1, 16, 16)
	b.fill(1)
	d.seen = func(old *late, now *virtq.Chain) {
		if &old.bufs[0][0] == &now.Writable[0][0] {
			t.Error("the buffer is the old one")
		}
		if (*guestmem.Memory)(old.memory).Holding(now.Readable[0]) == nil {
			t.Error("a region that no transfer uses was mapped anew")
		}
		if (*guestmem.Memory)(old.memory).Holding(now.Writable[0]) != nil {
			t.Error("a region that a transfer uses was not mapped anew")
		}
	}
	r.Add(b.in, b.out)
	g.must(r.Notify())
	d.waitHeld(t, 1)
	g.must(r.Stop())
	if d.err != nil || d.lost != 0 || len(d.late) != 1 {
		t.Fatalf("Fence: %v, %d chains were lost", d.err, d.lost)
	}
	g.must(b.check(1)) // what was answered is in the guest's memory
	d.late[0].lands(0xee)
	g.must(b.check(1))
	// The session goes on in the memory that it has.
	d.setHold(false)
	g.must(r.Start())
	if _, _, ok := r.Used(); !ok {
		t.Error("the request was not shown used")
	}
	g.io(r, 3)
}

// TestAFenceAfterMemoryHasChanged: the transfer lies in a generation that is not the current one.
func TestAFenceAfterMemoryHasChanged(t *testing.T) {
	for _, whole := range []bool{false, true} {
		d, g := newFencer(t, 1)
		r := g.start(0, 8)
		b := newBuffers(g.mem)
		b.fill(1)
		r.Add(b.in, b.out)
		g.must(r.Notify())
		d.waitHeld(t, 1)
		if whole {
			g.must(g.SetMemTable(g.mem)) // all regions are mapped anew already
		}
		extra, region := extraMem(t, g)
		g.must(g.AddMemReg(region, extra.FD()))
		g.must(r.Stop())
		if d.err != nil || d.lost != 0 {
			t.Fatalf("Fence: %v, %d chains were lost", d.err, d.lost)
		}
		g.must(b.check(1))
		d.late[0].lands(0xee)
		g.must(b.check(1))
		d.setHold(false)
		g.must(r.Start())
		r.Used()
		far := extra.Alloc(16, 16)
		if _, err := r.Do(b.in, []virtqtest.Seg{{Addr: far, Len: 16}}); err != nil || extra.Bytes(far, 1)[0] != '1' {
			t.Errorf("memory that was added is not there after the fence: %v", err)
		}
		g.must(g.RemMemReg(region))
		g.must(g.hangUp())
	}
}

// TestAFenceOfMemoryThatWasTakenAway: nothing comes of the request, in the guest's memory least of
// all.
func TestAFenceOfMemoryThatWasTakenAway(t *testing.T) {
	d, g := newFencer(t, 1)
	extra, region := extraMem(t, g)
	g.must(g.AddMemReg(region, extra.FD()))
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	far := extra.Alloc(16, 16)
	r.Add(b.in, []virtqtest.Seg{{Addr: far, Len: 16}})
	g.must(r.Notify())
	d.waitHeld(t, 1)
	g.must(g.RemMemReg(region))
	g.must(r.Stop())
	if d.err != nil || d.lost != 1 || !r.Failed() || r.UsedIdx() != 0 {
		t.Errorf("Fence: %v, %d chains were lost, %d used", d.err, d.lost, r.UsedIdx())
	}
	d.late[0].lands(0xee)
	if got := extra.Bytes(far, 16); slices.ContainsFunc(got, func(c byte) bool { return c != 0 }) {
		t.Errorf("the memory that was taken away has %q", got)
	}
}

// TestAFenceThatCannotBePutUpChangesNothing: the file behind the region is shorter than it was.
func TestAFenceThatCannotBePutUpChangesNothing(t *testing.T) {
	d, g := newFencer(t, 1)
	extra, region := extraMem(t, g)
	g.must(g.AddMemReg(region, extra.FD()))
	r := g.start(0, 8)
	b := newBuffers(g.mem)
	b.fill(1)
	d.seen = func(old *late, now *virtq.Chain) {
		if &old.bufs[0][0] != &now.Writable[0][0] {
			t.Error("the ring has gone over to other memory")
		}
	}
	r.Add(b.in, []virtqtest.Seg{{Addr: extra.Alloc(16, 16), Len: 16}})
	g.must(r.Notify())
	d.waitHeld(t, 1)
	g.must(syscall.Ftruncate(extra.FD(), 1<<15))
	g.must(r.Stop())
	if !errors.Is(d.err, guestmem.ErrShort) || d.lost != 0 || r.Failed() || r.UsedIdx() != 1 {
		t.Errorf("Fence: %v, %d chains were lost, %d used", d.err, d.lost, r.UsedIdx())
	}
	d.late[0].lands(0xee)
	if got := extra.Bytes(region.GuestPhys, 1)[0]; got != 0xee {
		t.Errorf("the transfer has written %#x to its memory", got)
	}
}

// TestARingThatIsNowhereBreaksWhenItIsFenced: the front-end hangs up before it has said where the
// ring's memory is now.
func TestARingThatIsNowhereBreaksWhenItIsFenced(t *testing.T) {
	d, g := newFencer(t, 2)
	extra, region := extraMem(t, g)
	region.UserAddr = extra.Regions()[0].UserAddr
	g.must(g.RemoveMemory(g.mem))
	g.must(g.AddMemReg(region, extra.FD()))
	nowhere, err := g.NewRing(extra, 1, 8)
	g.must(err)
	defer nowhere.Close()
	g.must(nowhere.Start())
	b := newBuffers(extra)
	b.fill(1)
	nowhere.Add(b.in, b.out)
	g.must(nowhere.Notify())
	d.waitHeld(t, 1)
	g.must(g.RemMemReg(region))
	g.must(g.hangUp())
	if d.err != nil || d.lost != 1 || len(d.late) != 1 {
		t.Fatalf("Fence: %v, %d chains were lost", d.err, d.lost)
	}
	if got := len(g.rec.find(vhostuser.EventBreak)); got != 1 {
		t.Errorf("%d rings broke, want 1", got)
	}
	d.late[0].lands(0xee)
	for i, c := range extra.Bytes(b.out[0].Addr, 16) {
		if c == 0xee {
			t.Fatalf("byte %d of the memory that was taken away was written", i)
		}
	}
	if nowhere.UsedIdx() != 0 {
		t.Error("a used request is shown in memory that was taken away")
	}
}
