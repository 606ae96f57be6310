package scale

import (
	"context"
	"encoding/binary"
	"fmt"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// guest is a front-end with one ring. One thread can serve many of them.
type guest struct {
	f     *vhostusertest.Frontend
	mem   *virtqtest.Mem
	ring  *vhostusertest.Ring
	slots []slot
	of    map[uint16]int // the slot of each head in flight
	done  uint64         // requests answered
}

// slot is a request's place in guest memory.
type slot struct {
	header, data []virtqtest.Seg
	status       []byte
}

// guestBlock is how much a guest's request reads, in bytes. All are of the disk's start, which has
// that much for each slot.
const guestBlock = 4096

// guestMemory is the size of a guest's memory, in bytes.
const guestMemory = 2 << 20

// newGuest makes guest memory for f, which stays the caller's, and starts a ring with room for
// depth requests.
func newGuest(f *vhostusertest.Frontend, depth int) (_ *guest, err error) {
	g := &guest{f: f, of: make(map[uint16]int, depth)}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	offered, err := g.f.Handshake(vhostusertest.AllProtocolFeatures)
	if err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	if err := g.f.SetFeatures(offered & (vhostuser.FProtocolFeatures | virtq.FeatureVersion1 | virtq.FeatureEventIdx)); err != nil {
		return nil, err
	}
	if g.mem, err = virtqtest.NewMem(virtqtest.Range{Size: guestMemory}); err != nil {
		return nil, err
	}
	if err := g.f.AddMemory(g.mem); err != nil {
		return nil, err
	}
	n := 4
	for n < 3*depth {
		n *= 2
	}
	if g.ring, err = g.f.NewRing(g.mem, 0, n); err != nil {
		return nil, err
	}
	const header, status = 16, 1
	for i := range uint64(depth) {
		h, data, st := g.mem.Alloc(header, 16), g.mem.Alloc(guestBlock, guestBlock), g.mem.Alloc(status, 1)
		// VIRTIO_BLK_T_IN is 0.
		binary.LittleEndian.PutUint64(g.mem.Bytes(h, header)[8:], i*guestBlock/512)
		g.slots = append(g.slots, slot{
			header: []virtqtest.Seg{{Addr: h, Len: header}},
			data:   []virtqtest.Seg{{Addr: data, Len: guestBlock}, {Addr: st, Len: status}},
			status: g.mem.Bytes(st, status),
		})
	}
	return g, g.ring.Start()
}

// close lets go of the ring and of guest memory.
func (g *guest) close() {
	if g.ring != nil {
		g.ring.Close()
	}
	if g.mem != nil {
		g.mem.Close()
	}
}

// issue asks for the block of slot i.
func (g *guest) issue(i int) {
	s := &g.slots[i]
	s.status[0] = 0xff
	head, ok := g.ring.Add(s.header, s.data)
	if !ok {
		panic("scale: no room in a ring that has room for all slots")
	}
	g.of[head] = i
}

// fill issues all slots.
func (g *guest) fill() error {
	for i := range g.slots {
		g.issue(i)
	}
	return g.ring.Notify()
}

// turn takes what was answered, without waiting, and asks for as much again.
func (g *guest) turn() error {
	for {
		head, _, ok := g.ring.Used()
		if !ok {
			return g.ring.Notify()
		}
		if err := g.answered(head); err != nil {
			return err
		}
		g.issue(g.of[head])
	}
}

// answered counts a request that has ended, and looks how.
func (g *guest) answered(head uint16) error {
	if status := g.slots[g.of[head]].status[0]; status != 0 {
		return fmt.Errorf("a read ended with status %d", status)
	}
	g.done++
	return nil
}

// read does one request, with all others answered, and sleeps meanwhile, unless ctx ends, whose
// cause it then returns.
func (g *guest) read(ctx context.Context) error {
	g.issue(0)
	if err := g.ring.Notify(); err != nil {
		return err
	}
	return g.wait(ctx)
}

// again starts the ring after a stop, and waits for what the stop has left in it.
func (g *guest) again(ctx context.Context) error {
	if err := g.ring.Start(); err != nil {
		return err
	}
	for g.ring.InFlight() > 0 {
		if err := g.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for the next answer, or until ctx ends, whose cause it then returns.
func (g *guest) wait(ctx context.Context) error {
	head, _, err := g.ring.WaitContext(ctx)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx) // not how a read ends when the connection does
	case err != nil:
		return err
	}
	return g.answered(head)
}
