package virtq_test

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// moving is a ring with chains in flight whose queue has gone over to another mapping of the same
// memory, but for what is missing.
type moving struct {
	*ring
	seg virtqtest.Seg
	old string // an address of the old mapping
}

// flight pops n chains of two buffers, and goes over to new memory, which lacks the buffers if
// missing is set.
func flight(t *testing.T, n int, missing bool) (m *moving, chains []virtq.Chain) {
	t.Helper()
	r, first := twoRegions(t)
	first.Release()
	m = &moving{ring: r, seg: virtqtest.Seg{Addr: 0x10000, Len: 64}}
	chains = make([]virtq.Chain, n)
	for i := range chains {
		if _, ok := r.driver.Add([]virtqtest.Seg{m.seg}, []virtqtest.Seg{{Addr: 0x11000, Len: 32}}); !ok {
			t.Fatal("no room")
		}
		r.driver.Kick()
		r.pop(t, &chains[i])
	}
	m.old = fmt.Sprintf("%p", &chains[0].Writable[0][0])
	next, err := r.mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if missing {
		whole := next
		next = without(t, whole, r.mem, 1)
		whole.Release()
	}
	if err := r.queue.SetMemory(next); err != nil {
		t.Fatal(err)
	}
	next.Release()
	return m, chains
}

func TestARehomedChainLiesInTheCurrentMemory(t *testing.T) {
	m, chains := flight(t, 2, false)
	defer m.queue.Close()
	a, b := &chains[0], &chains[1]
	readable, writable := a.Readable, a.Writable
	// The owner has split the status byte off, and taken a header away.
	status := a.Writable[0][31:]
	a.Writable[0] = a.Writable[0][:31:31]
	a.Readable[0] = a.Readable[0][16:]
	kept := [][]byte{a.Writable[0], a.Readable[0]}
	memory := m.queue.Memory(a)
	moved, ok := m.queue.Rehome(a, [][]byte{nil, status})
	if !ok || len(moved) != 2 || len(moved[0]) != 0 || len(moved[1]) != 1 {
		t.Fatalf("Rehome = %v, %v", moved, ok)
	}
	if len(a.Readable) != 1 || len(a.Readable[0]) != 48 || len(a.Writable) != 1 || len(a.Writable[0]) != 31 {
		t.Fatalf("the chain has %d and %d bytes", len(a.Readable[0]), len(a.Writable[0]))
	}
	if &a.Writable[0][0] == &kept[0][0] || &a.Readable[0][0] == &kept[1][0] {
		t.Error("the buffers are the old ones")
	}
	if &a.Writable[0] == &writable[0] || &a.Readable[0] == &readable[0] || &writable[0][0] != &kept[0][0] || &readable[0][0] != &kept[1][0] {
		t.Error("the old lists were not left as they are")
	}
	copy(m.mem.Bytes(0x10000+16, 4), "here")
	copy(a.Writable[0], "data")
	moved[1][0] = 7
	if got := m.mem.Bytes(0x11000, 32); string(a.Readable[0][:4]) != "here" || string(got[:4]) != "data" || got[31] != 7 {
		t.Error("the buffers are not those of the guest")
	}
	// Once more it has nothing to do.
	at := &a.Writable[0][0]
	if same, ok := m.queue.Rehome(a, moved); !ok || &same[1][0] != &moved[1][0] || &a.Writable[0][0] != at {
		t.Error("a chain that is there already was moved")
	}

	// The old memory goes with the last chain in it, and the last reference to it.
	if _, ok := m.queue.Rehome(b, nil); !ok {
		t.Fatal("b was not moved")
	}
	if !isMapped(t, m.old) {
		t.Fatal("unmapped with a reference to it")
	}
	memory.Release()
	if remainsMapped(t, m.old) {
		t.Error("still mapped with nobody in it")
	}
	now := fmt.Sprintf("%p", at)
	m.queue.Push(a, 32)
	m.queue.Push(b, 0)
	m.queue.Publish()
	for _, want := range []uint32{32, 0} {
		if _, written, ok := m.driver.Used(); !ok || written != want {
			t.Errorf("used %d, %v, want %d", written, ok, want)
		}
	}
	m.queue.Close()
	if remainsMapped(t, now) || m.queue.InFlight() != 0 {
		t.Error("the current memory is still held")
	}
}

// TestRehomingOneChainLeavesTheOthers: the last one that ends in the old memory releases it,
// rehomed or not.
func TestRehomingOneChainLeavesTheOthers(t *testing.T) {
	m, chains := flight(t, 3, false)
	defer m.queue.Close()
	for i := range 2 {
		if _, ok := m.queue.Rehome(&chains[i], nil); !ok {
			t.Fatal("not moved")
		}
		m.queue.Push(&chains[i], 0)
		if !isMapped(t, m.old) {
			t.Fatal("unmapped with a chain in it")
		}
	}
	m.queue.Push(&chains[2], 0)
	if remainsMapped(t, m.old) {
		t.Error("still mapped with nothing in flight there")
	}
}

func TestAChainWhoseMemoryIsGoneIsNotRehomed(t *testing.T) {
	m, chains := flight(t, 1, true)
	c := &chains[0]
	readable, writable := slices.Clone(c.Readable), slices.Clone(c.Writable)
	if moved, ok := m.queue.Rehome(c, nil); ok || moved != nil {
		t.Fatalf("Rehome = %v, %v", moved, ok)
	}
	if &c.Readable[0][0] != &readable[0][0] || &c.Writable[0][0] != &writable[0][0] || m.queue.Broken() != nil {
		t.Error("the chain has changed, or the ring")
	}
	copy(c.Writable[0], "old")
	if !bytes.HasPrefix(m.mem.Bytes(0x11000, 32), []byte("old")) {
		t.Error("its memory is not there any more")
	}
	m.queue.Push(c, 0)
	if remainsMapped(t, m.old) {
		t.Error("still mapped with nothing in flight")
	}
	m.queue.Close()
}

// TestChainsOfABrokenRingAreRehomed too: they must leave the memory that is fenced.
func TestChainsOfABrokenRingAreRehomed(t *testing.T) {
	r, first := twoRegions(t)
	first.Release()
	var c virtq.Chain
	r.driver.Add(nil, []virtqtest.Seg{{Addr: 0x10000, Len: 16}})
	r.driver.Kick()
	r.pop(t, &c)
	old := fmt.Sprintf("%p", &c.Writable[0][0])
	r.queue.Break(os.ErrInvalid)
	next, err := r.mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.queue.SetMemory(next); err == nil {
		t.Error("the ring is not broken any more")
	}
	next.Release()
	if _, ok := r.queue.Rehome(&c, nil); !ok {
		t.Fatal("not moved")
	}
	if remainsMapped(t, old) {
		t.Error("the old memory is still mapped")
	}
	now := fmt.Sprintf("%p", &c.Writable[0][0])
	r.queue.Push(&c, 0)
	r.queue.Close()
	if remainsMapped(t, now) {
		t.Error("the new memory is still mapped")
	}
}

func TestOnlyChainsInFlightAreRehomed(t *testing.T) {
	m, chains := flight(t, 1, false)
	m.queue.Push(&chains[0], 0)
	mustPanic(t, "Rehome of a chain that has ended", func() { m.queue.Rehome(&chains[0], nil) })
	mustPanic(t, "Memory of a chain that has ended", func() { m.queue.Memory(&chains[0]) })
	m.queue.Close()
}
