package virtq_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// request is what the model knows of a chain.
type request struct {
	head               uint16
	readable, writable []virtqtest.Seg
	text               []byte // in the readable buffers
	answer             []byte // what the device wrote
}

// slotSize is the room for one buffer.
const slotSize = 256

// machine is a ring, and a model of what its two sides have done: each request is in exactly one of
// the lists.
type machine struct {
	mem     *virtqtest.Mem
	memory  *virtq.Memory
	driver  *virtqtest.Driver
	queue   *virtq.Queue
	free    []uint64 // slots of guest memory no request has
	serial  uint64
	base    uint16
	offered []*request // added, and not fetched; in order
	shown   int        // how many of them Kick has shown, and nothing after them
	flight  []popped   // in the order of popping
	waiting []fetched  // suspended, in the order of fetching
	ended   []*request // pushed, in order
	public  int        // how many of them Publish has shown
	fetches int        // fetched and not returned, ever
	pops    int        // popped and not unpopped, ever
	pushes  int
	event   bool
}

type fetched struct {
	*request
	seq int // how many were fetched before it
}

type popped struct {
	fetched
	chain *virtq.Chain
	pos   int // how many were popped before it
}

// pending is how many Pop can give out.
func (m *machine) pending() int { return len(m.waiting) + m.shown }

// take gives n buffers of at most slotSize bytes each.
func (m *machine) take(t *rapid.T, n int) []virtqtest.Seg {
	var segs []virtqtest.Seg
	for range n {
		last := len(m.free) - 1
		length := rapid.OneOf(rapid.Just(0), rapid.IntRange(1, slotSize)).Draw(t, "len")
		segs = append(segs, virtqtest.Seg{Addr: m.free[last], Len: uint32(length)})
		m.free = m.free[:last]
	}
	return segs
}

func (m *machine) total(segs []virtqtest.Seg) (n int) {
	for _, s := range segs {
		n += int(s.Len)
	}
	return n
}

// join gives the bytes of segs as the driver sees them.
func (m *machine) join(segs []virtqtest.Seg) []byte {
	var b []byte
	for _, s := range segs {
		b = append(b, m.mem.Bytes(s.Addr, uint64(s.Len))...)
	}
	return b
}

// TestEveryChainIsUsedOnceWithItsOwnContents drives both sides by chance, against the model.
func TestEveryChainIsUsedOnceWithItsOwnContents(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 1 << rapid.IntRange(0, 5).Draw(t, "log2 size")
		features := rapid.SampledFrom([]uint64{0, virtq.FeatureVersion1, modern, virtq.FeatureIndirectDesc,
			virtq.FeatureVersion1 | virtq.FeatureEventIdx}).Draw(t, "features")
		// Small regions next to one another, so that buffers and tables cross from one into the
		// other.
		var ranges []virtqtest.Range
		for i := range uint64(8) {
			ranges = append(ranges, virtqtest.Range{GuestPhys: 0x10000 + i*0x1010, Size: 0x1010})
		}
		ranges = append(ranges, virtqtest.Range{GuestPhys: 0x100000, Size: 0x100000})
		mem, err := virtqtest.NewMem(ranges...)
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		m := &machine{mem: mem, event: features&virtq.FeatureEventIdx != 0}
		last := len(ranges) - 1
		n := uint64(size)
		m.driver = virtqtest.NewAt(mem, size, features,
			mem.AllocIn(last, 16*n, 16), mem.AllocIn(last, 6+2*n, 2), mem.AllocIn(last, 6+8*n, 4))
		m.base = rapid.SampledFrom([]uint16{0, 65535, 65530, 32760}).Draw(t, "base")
		m.driver.StartAt(m.base)
		if m.memory, err = mem.Memory(); err != nil {
			t.Fatal(err)
		}
		if m.queue, err = virtq.New(m.memory, m.driver.Layout()); err != nil {
			t.Fatal(err)
		}
		defer func() {
			m.queue.Close()
			m.memory.Release()
		}()
		for i := range last {
			mem.AllocIn(i, 0x1010, 1)
		}
		for i := range uint64(8 * 0x1010 / slotSize) {
			m.free = append(m.free, 0x10000+i*slotSize)
		}
		t.Repeat(map[string]func(*rapid.T){
			"":        m.check,
			"add":     func(t *rapid.T) { m.add(t, m.driver.Add, 4) },
			"add2":    func(t *rapid.T) { m.addIndirect(t, features) },
			"kick":    m.kick,
			"pop":     m.pop,
			"popAll":  m.popAll,
			"push":    m.push,
			"unpop":   m.unpop,
			"suspend": m.suspend,
			"unfetch": m.unfetch,
			"publish": m.publish,
			"show":    m.show,
			"take":    m.takeUsed,
			"memory":  m.newMemory,
			"notify":  m.notify,
			"calls":   m.calls,
		})
	})
}

func (m *machine) add(t *rapid.T, add func(r, w []virtqtest.Seg) (uint16, bool), most int) {
	room := min(m.driver.Room(), most)
	if room == 0 || len(m.free) < most {
		t.Skip("no room")
	}
	n := rapid.IntRange(1, min(room, most)).Draw(t, "buffers")
	m.enter(t, add, n)
}

func (m *machine) addIndirect(t *rapid.T, features uint64) {
	if features&virtq.FeatureIndirectDesc == 0 || m.driver.Room() == 0 || len(m.free) < 12 {
		t.Skip("no indirect tables, or no room")
	}
	m.enter(t, m.driver.AddIndirect, rapid.IntRange(1, 12).Draw(t, "buffers"))
}

// enter adds a chain of n buffers.
func (m *machine) enter(t *rapid.T, add func(r, w []virtqtest.Seg) (uint16, bool), n int) {
	segs := m.take(t, n)
	k := rapid.IntRange(0, n).Draw(t, "readable")
	r := &request{readable: segs[:k], writable: segs[k:]}
	for _, s := range segs {
		b := m.mem.Bytes(s.Addr, uint64(s.Len))
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
	}
	m.serial++
	if len(r.readable) > 0 && r.readable[0].Len >= 8 {
		binary.LittleEndian.PutUint64(m.mem.Bytes(r.readable[0].Addr, 8), m.serial)
	}
	r.text = m.join(r.readable)
	var ok bool
	if r.head, ok = add(r.readable, r.writable); !ok {
		t.Fatal("no room, the driver says")
	}
	m.offered = append(m.offered, r)
}

func (m *machine) kick(*rapid.T) {
	m.driver.Kick()
	m.shown = len(m.offered)
}

func (m *machine) pop(t *rapid.T) {
	c := new(virtq.Chain)
	ok, err := m.queue.Pop(c)
	if err != nil {
		t.Fatal(err)
	}
	if ok != (m.pending() > 0) {
		t.Fatalf("Pop = %v with %d to take", ok, m.pending())
	}
	if !ok {
		return
	}
	var r fetched
	if len(m.waiting) > 0 {
		r, m.waiting = m.waiting[0], m.waiting[1:]
	} else {
		r = fetched{m.offered[0], m.fetches}
		m.offered, m.shown = m.offered[1:], m.shown-1
		m.fetches++
	}
	if c.Head != r.head {
		t.Fatalf("head %d, want %d", c.Head, r.head)
	}
	if got := bytes.Join(c.Readable, nil); !bytes.Equal(got, r.text) || c.ReadableLen() != len(r.text) {
		t.Fatalf("head %d: %d readable bytes, want %d, or not the same", r.head, len(got), len(r.text))
	}
	if want := m.total(r.writable); c.WritableLen() != want || len(bytes.Join(c.Writable, nil)) != want {
		t.Fatalf("head %d: %d writable bytes, want %d", r.head, c.WritableLen(), want)
	}
	m.flight = append(m.flight, popped{r, c, m.pops})
	m.pops++
}

func (m *machine) popAll(t *rapid.T) {
	for m.pending() > 0 {
		m.pop(t)
	}
}

func (m *machine) push(t *rapid.T) {
	if len(m.flight) == 0 {
		t.Skip("nothing in flight")
	}
	i := rapid.IntRange(0, len(m.flight)-1).Draw(t, "which")
	p := m.flight[i]
	// The contents are still what they were, whatever memory was set meanwhile.
	if got := bytes.Join(p.chain.Readable, nil); !bytes.Equal(got, p.text) {
		t.Fatalf("head %d: the contents changed", p.head)
	}
	p.answer = make([]byte, rapid.IntRange(0, p.chain.WritableLen()).Draw(t, "written"))
	for k := range p.answer {
		p.answer[k] = byte(rand.Uint32())
	}
	if n, err := p.chain.Write(p.answer); n != len(p.answer) || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	m.queue.Push(p.chain, uint32(len(p.answer)))
	m.flight = slices.Delete(m.flight, i, i+1)
	m.ended = append(m.ended, p.request)
	m.pushes++
}

func (m *machine) unpop(t *rapid.T) {
	for _, p := range m.flight {
		if got, want := m.queue.CanUnpop(p.chain), p.pos == m.pops-1; got != want {
			t.Fatalf("head %d, number %d of %d: CanUnpop = %v", p.head, p.pos, m.pops, got)
		}
	}
	if len(m.flight) == 0 || m.flight[len(m.flight)-1].pos != m.pops-1 {
		t.Skip("nothing to unpop")
	}
	p := m.flight[len(m.flight)-1]
	m.queue.Unpop(p.chain)
	m.flight = m.flight[:len(m.flight)-1]
	m.pops--
	if p.seq == m.fetches-1 {
		m.unfetched(p.fetched)
	} else {
		m.wait(p.fetched)
	}
}

// suspend suspends some, in any order. What was written to them before does not count.
func (m *machine) suspend(t *rapid.T) {
	if len(m.flight) == 0 {
		t.Skip("nothing in flight")
	}
	for n := rapid.IntRange(1, len(m.flight)).Draw(t, "how many"); n > 0; n-- {
		i := rapid.IntRange(0, len(m.flight)-1).Draw(t, "which")
		p := m.flight[i]
		for _, b := range p.chain.Writable {
			b[0] = byte(rand.Uint32())
		}
		m.queue.Suspend(p.chain)
		if p.chain.InFlight() {
			t.Fatal("a suspended chain is in flight")
		}
		m.flight = slices.Delete(m.flight, i, i+1)
		m.wait(p.fetched)
	}
}

// wait enters f among those that are suspended.
func (m *machine) wait(f fetched) {
	i := len(m.waiting)
	for i > 0 && m.waiting[i-1].seq > f.seq {
		i--
	}
	m.waiting = slices.Insert(m.waiting, i, f)
}

// unfetched has f, the newest, in the ring again.
func (m *machine) unfetched(f fetched) {
	m.offered, m.shown = slices.Insert(m.offered, 0, f.request), m.shown+1
	m.fetches--
}

func (m *machine) unfetch(t *rapid.T) {
	want := 0
	for n := len(m.waiting) - 1; n >= 0 && m.waiting[n].seq == m.fetches-1; n-- {
		m.unfetched(m.waiting[n])
		m.waiting = m.waiting[:n]
		want++
	}
	if got := m.queue.Unfetch(nil); got != want {
		t.Fatalf("Unfetch = %d, want %d", got, want)
	}
}

func (m *machine) publish(*rapid.T) {
	m.queue.Publish()
	m.public = len(m.ended)
}

func (m *machine) show(*rapid.T) {
	m.queue.Show()
	m.public = len(m.ended)
}

func (m *machine) takeUsed(t *rapid.T) {
	head, written, ok := m.driver.Used()
	if ok != (m.public > 0) {
		t.Fatalf("Used = %v with %d published", ok, m.public)
	}
	if !ok {
		return
	}
	r := m.ended[0]
	m.ended, m.public = m.ended[1:], m.public-1
	if head != r.head || int(written) != len(r.answer) {
		t.Fatalf("used %d with %d bytes, want %d with %d", head, written, r.head, len(r.answer))
	}
	if got := m.join(r.writable); !bytes.Equal(got[:len(r.answer)], r.answer) {
		t.Fatalf("head %d: not what the device wrote", head)
	}
	if !bytes.Equal(m.join(r.readable), r.text) {
		t.Fatalf("head %d: readable buffers were written to", head)
	}
	for _, s := range slices.Concat(r.readable, r.writable) {
		m.free = append(m.free, s.Addr)
	}
}

// newMemory goes over to another mapping of the same memory.
func (m *machine) newMemory(t *rapid.T) {
	memory, err := m.mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.queue.SetMemory(memory); err != nil {
		t.Fatal(err)
	}
	m.memory.Release()
	m.memory = memory
}

func (m *machine) notify(t *rapid.T) {
	if rapid.Bool().Draw(t, "off") {
		m.queue.DisableNotify()
		if !m.event && m.driver.UsedFlags() != virtqtest.UsedNoNotify {
			t.Fatal("kicks are not suppressed")
		}
		return
	}
	if pending := m.queue.EnableNotify(); pending != (m.pending() > 0) {
		t.Fatalf("EnableNotify = %v with %d to take", pending, m.pending())
	}
	// From here on the next chain shown is worth a kick.
	if m.pending() > 0 || len(m.offered) == 0 {
		return
	}
	if !m.driver.Kick() {
		t.Fatal("no kick although asked for")
	}
	m.shown = len(m.offered)
}

func (m *machine) calls(t *rapid.T) {
	if rapid.Bool().Draw(t, "off") {
		m.driver.DisableCalls()
		return
	}
	if pending := m.driver.EnableCalls(); pending != (m.public > 0) {
		t.Fatalf("EnableCalls = %v with %d published", pending, m.public)
	}
	if m.public > 0 || len(m.ended) == 0 {
		return
	}
	if !m.queue.Publish() {
		t.Fatal("no call although asked for")
	}
	m.public = len(m.ended)
}

func (m *machine) check(t *rapid.T) {
	if got, want := m.queue.InFlight(), len(m.flight); got != want {
		t.Fatalf("InFlight = %d, want %d", got, want)
	}
	if got, want := m.queue.Suspended(), len(m.waiting); got != want {
		t.Fatalf("Suspended = %d, want %d", got, want)
	}
	if got, want := m.queue.NextAvail(), m.base+uint16(m.fetches-len(m.waiting)); got != want {
		t.Fatalf("NextAvail = %d, want %d", got, want)
	}
	if got, want := m.queue.UsedIdx(), m.base+uint16(m.pushes-(len(m.ended)-m.public)); got != want {
		t.Fatalf("UsedIdx = %d, want %d", got, want)
	}
	if got, want := m.queue.Pending(), m.pending() > 0; got != want {
		t.Fatalf("Pending = %v with %d to take", got, m.pending())
	}
	if err := m.queue.Broken(); err != nil {
		t.Fatal(err)
	}
}
