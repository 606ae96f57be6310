package vhostuser_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// Steps of FuzzMemoryChanges: the step is the byte's lowest three bits, its argument the rest.
const (
	memRequest = iota // 0 to 2: where its readable buffer is, 3 to 4: its writable one
	memRemove         // of that region
	memAdd            // of that region
	memTable          // those regions whose bits are set
	memHold           // from now on the device holds requests back, or not
	memFinish         // what it has held back
	memBarrier        // a message that is not about memory
	memOverlap        // a region that overlaps that one
)

const memSteps = 12 // that are done: what comes later makes nothing new

// the ring lies in the first; buffers in the other two, which follow one another
const memRegions = 3

// memWorld is a guest whose memory comes and goes, and what has to become of its requests.
type memWorld struct {
	*fuzzSession
	t       *testing.T
	d       *virtqtest.Driver
	regions []vhostuser.MemoryRegion
	there   *[memRegions]bool
	hold    bool
	broken  bool
	waiting []memBuffers // not fetched: the ring has no memory
	held    []memBuffers
	all     map[uint16]memBuffers
	done    uint16 // requests that are answered
}

// memBuffers are a request's, of 16 bytes each, and the regions that they need.
type memBuffers struct {
	in, out uint64
	needs   []int
	data    []byte
}

// add offers a request to the device.
func (w *memWorld) add(arg byte) {
	if w.d.Room() < 2 || w.broken {
		return
	}
	n := uint64(len(w.all))
	b := memBuffers{data: make([]byte, 16)}
	switch region := w.regions; arg & 3 {
	case 0, 3:
		b.in, b.needs = region[1].GuestPhys+16*n, []int{1}
	case 1:
		b.in, b.needs = region[2].GuestPhys+2048+16*n, []int{2}
	case 2: // in both
		b.in, b.needs = region[2].GuestPhys-8, []int{1, 2}
	}
	if arg&4 == 0 {
		b.out, b.needs = w.regions[1].GuestPhys+1024+16*n, append(b.needs, 1)
	} else {
		b.out, b.needs = w.regions[2].GuestPhys+1024+16*n, append(b.needs, 2)
	}
	// Others may read the same bytes.
	copy(b.data, w.mem.Bytes(b.in, min(16, w.regions[2].GuestPhys-b.in)))
	if k := w.regions[2].GuestPhys - b.in; b.in < w.regions[2].GuestPhys && k < 16 {
		copy(b.data[k:], w.mem.Bytes(b.in+k, 16-k))
	}
	head, _ := w.d.Add([]virtqtest.Seg{{Addr: b.in, Len: 16}}, []virtqtest.Seg{{Addr: b.out, Len: 16}})
	w.all[head] = b
	w.waiting = append(w.waiting, b)
	w.d.Kick()
	if err := sys.EventfdWrite(w.kick.Int()); err != nil {
		w.t.Fatal(err)
	}
	w.fetch()
}

// fetch does with the model what the device does with the ring.
func (w *memWorld) fetch() {
	for w.there[0] && !w.broken && len(w.waiting) > 0 {
		b := w.waiting[0]
		w.waiting = w.waiting[1:]
		switch {
		case slices.ContainsFunc(b.needs, func(i int) bool { return !w.there[i] }):
			w.breaks("a buffer that is nowhere")
		case w.hold:
			w.held = append(w.held, b)
		default:
			w.done++
		}
	}
	w.settle()
}

// breaks looks whether the device says that the ring is broken.
func (w *memWorld) breaks(why string) {
	w.reactors.Step()
	if _, err := sys.EventfdRead(w.errs.Int()); err != nil {
		w.t.Helper()
		w.t.Fatalf("%s does not break the ring", why)
	}
	w.broken = true
}

// settle looks whether the device has done what the model has.
func (w *memWorld) settle() {
	if w.broken {
		return // what was not shown before is not shown any more
	}
	w.reactors.Step()
	if used := w.d.UsedIdx(); w.dev.held != len(w.held) || used != w.done {
		w.t.Helper()
		w.t.Fatalf("%d requests are answered, want %d, and %d held back, want %d", used, w.done, w.dev.held, len(w.held))
	}
}

// table sends SET_MEM_TABLE with the regions whose bits are set.
func (w *memWorld) table(bits byte) {
	var regions []vhostuser.MemoryRegion
	var fds []int
	for i, r := range w.regions {
		if bits>>i&1 != 0 {
			regions, fds = append(regions, r), append(fds, w.mem.FD())
		}
	}
	if len(regions) == 0 {
		return
	}
	w.must(w.front.Tell(vhostuser.SetMemTable, vhostuser.AppendMemoryTable(nil, regions), fds...))
	for i := range w.there {
		w.there[i] = bits>>i&1 != 0
	}
}

func (w *memWorld) must(err error) {
	if err != nil {
		w.t.Helper()
		w.t.Fatal(err)
	}
}

func (w *memWorld) refused(what string, err error) {
	if !errors.Is(err, vhostusertest.ErrRefused) {
		w.t.Helper()
		w.t.Fatalf("%s: %v, want a refusal", what, err)
	}
}

// step does one step, by the byte that says which.
func (w *memWorld) step(op byte) {
	arg := op >> 3
	region := int(arg) % memRegions
	switch op & 7 {
	case memRequest:
		w.add(arg)
		return
	case memRemove:
		err := w.front.RemMemReg(w.regions[region])
		if !w.there[region] {
			w.refused("REM_MEM_REG of a region that is not there", err)
			return
		}
		w.must(err)
		w.there[region] = false
	case memAdd:
		w.must(w.front.AddMemReg(w.regions[region], w.mem.FD()))
		w.there[region] = true
	case memTable:
		w.table(arg & 7)
	case memHold:
		w.hold = arg&1 != 0
		w.dev.setHold(w.hold)
		return
	case memFinish:
		w.finish()
		return
	case memBarrier:
		_, err := w.front.GetFeatures()
		w.must(err)
		if !w.there[0] && !w.broken {
			w.breaks("a message that is not about memory, while the ring has none,")
		}
		return
	case memOverlap:
		r := w.regions[region]
		r.Size /= 2
		if err := w.front.AddMemReg(r, w.mem.FD()); w.there[region] {
			w.refused("a region that overlaps another", err)
		} else {
			w.must(err)
			w.must(w.front.RemMemReg(r))
		}
	}
	w.fetch()
}

// finish ends what is held back, wherever its memory is by now.
func (w *memWorld) finish() {
	q := w.dev.queue()
	q.Do(func() { w.dev.finishHeld(q) })
	w.done += uint16(len(w.held))
	w.held = nil
	w.dev.held = 0
	w.settle()
}

// FuzzMemoryChanges changes a guest's memory while its requests are in flight, by all messages that
// there are for it. A request is fetched while the ring has memory, done in the memory that it was
// fetched in, and answered once; one whose buffers are nowhere breaks the ring, and so does
// whatever is not about memory while the ring lies in none.
func FuzzMemoryChanges(f *testing.F) {
	step := func(op, arg byte) byte { return op | arg<<3 }
	const both, out2 = 2, 4
	f.Add([]byte{step(memRequest, 0), step(memRequest, both|out2), step(memBarrier, 0)})
	f.Add([]byte{step(memHold, 1), step(memRequest, 1), step(memRequest, both), step(memRemove, 1), step(memRemove, 2), step(memFinish, 0)})
	f.Add([]byte{step(memHold, 1), step(memRequest, both|out2), step(memTable, 1), step(memTable, 7), step(memRequest, 0), step(memFinish, 0)})
	f.Add([]byte{step(memRemove, 0), step(memRequest, 0), step(memRequest, 1), step(memAdd, 0), step(memRequest, 0)})
	f.Add([]byte{step(memHold, 1), step(memRequest, 0), step(memRemove, 0), step(memFinish, 0), step(memRequest, 0), step(memBarrier, 0), step(memAdd, 0)})
	f.Add([]byte{step(memRemove, 1), step(memRequest, 1), step(memRequest, both)})
	f.Add([]byte{step(memRemove, 1), step(memRemove, 1), step(memOverlap, 1), step(memOverlap, 2), step(memAdd, 2), step(memAdd, 1), step(memRequest, both)})
	f.Add([]byte{step(memTable, 6), step(memRequest, 0), step(memTable, 7), step(memTable, 7), step(memRequest, 0)})

	reactors, err := fuzzReactors()
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(reactors.Close)
	const size = 0x2000
	session := newFuzzSession(f, reactors, virtqtest.Range{GuestPhys: 0, Size: size},
		virtqtest.Range{GuestPhys: 1 << 32, Size: size}, virtqtest.Range{GuestPhys: 1<<32 + size, Size: size})
	f.Cleanup(session.close)
	var pristine [memRegions][]byte
	for i := range pristine {
		for at := range size {
			pristine[i] = append(pristine[i], byte(at*7+i))
		}
	}
	before := countFDs(f)
	there := [memRegions]bool{true, true, true}
	f.Fuzz(func(t *testing.T, steps []byte) {
		w := &memWorld{fuzzSession: session, t: t, there: &there, all: make(map[uint16]memBuffers)}
		for i, r := range w.mem.Regions() {
			w.regions = append(w.regions, vhostuser.MemoryRegion(r))
			copy(w.mem.Bytes(r.GuestPhys, r.Size), pristine[i])
		}
		w.must(w.begin())
		for i, r := range w.regions {
			if !there[i] {
				w.must(w.front.AddMemReg(r, w.mem.FD()))
				there[i] = true
			}
		}
		clear(w.mem.Bytes(0, size))
		w.d = w.ring(0)
		w.dev.hold, w.dev.held, w.dev.log = false, 0, nil
		_, _ = sys.EventfdRead(w.errs.Int())
		w.must(w.start(w.d))
		w.must(w.front.Barrier())
		for _, op := range steps[:min(len(steps), memSteps)] {
			w.step(op)
		}
		// With the answer all has been done that is going to be.
		base, err := w.front.GetVringBase(0)
		w.must(err)
		if !w.broken {
			if w.done += uint16(len(w.held)); !w.there[0] {
				// The message found the ring without memory.
				w.breaks("GET_VRING_BASE while the ring has no memory")
			} else if base != w.done {
				t.Fatalf("the ring stops at %d, want %d", base, w.done)
			}
		}
		answered := w.d.UsedIdx()
		if answered > w.done || !w.broken && answered != w.done {
			t.Fatalf("%d requests are answered, want %d", answered, w.done)
		}
		for i := range answered {
			head := binary.LittleEndian.Uint32(w.d.UsedBytes()[4+8*(int(i)%fuzzRing):])
			b, ok := w.all[uint16(head)]
			if !ok || head >= fuzzRing {
				t.Fatalf("head %d is answered, which is none, or is for the second time", head)
			}
			delete(w.all, uint16(head))
			slices.Reverse(b.data)
			if got := w.mem.Bytes(b.out, 16); !bytes.Equal(got, b.data) {
				t.Fatalf("the answer is % x, want % x", got, b.data)
			}
		}
		awaitFDs(t, before+memRegions+2)
	})
}
