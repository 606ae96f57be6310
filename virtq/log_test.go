package virtq_test

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

const page = guestmem.LogPage

// bitmap is a dirty log with the front-end's view of it.
type bitmap struct {
	*virtq.Log
	mapped *guestmem.Log
	b      []byte
}

func newBitmap(tb interface{ Fatal(...any) }, size uint64) *bitmap {
	fd, err := sys.NewMemfd("log", int64(size))
	if err != nil {
		tb.Fatal(err)
	}
	defer fd.Close()
	l, err := guestmem.NewLog(fd, size, 0)
	if err != nil {
		tb.Fatal(err)
	}
	b, err := sys.Mmap(fd.Int(), 0, int(size+page-1)&^(page-1), true)
	if err != nil {
		tb.Fatal(err)
	}
	return &bitmap{(*virtq.Log)(l), l, b}
}

func (l *bitmap) close() {
	l.mapped.Close()
	if err := sys.Munmap(l.b); err != nil {
		panic(err)
	}
}

// take returns the pages that are marked, and takes the marks away.
func (l *bitmap) take() (pages []uint64) {
	for i, b := range l.b {
		for bit := range 8 {
			if b>>bit&1 != 0 {
				pages = append(pages, uint64(8*i+bit))
			}
		}
		l.b[i] = 0
	}
	return pages
}

// migration is a ring whose guest may be on the way to another host.
type migration struct {
	*ring
	used   uint64 // address of the used ring
	free   []uint64
	flight []*virtq.Chain
	bufs   map[uint16][]virtqtest.Seg // of what is in flight
	may    map[uint64]bool            // pages that the device may ever write to
	log    *bitmap                    // nil before it begins
	old    []*bitmap                  // replaced ones
	target map[uint64][]byte          // what the other host has of those pages
}

const logSlot = 5000 // room for one buffer

// take gives n buffers.
func (m *migration) take(t *rapid.T, n int) (segs []virtqtest.Seg) {
	for range min(n, len(m.free)) {
		last := len(m.free) - 1
		length := rapid.OneOf(rapid.IntRange(0, 2), rapid.IntRange(1, logSlot)).Draw(t, "len")
		segs = append(segs, virtqtest.Seg{Addr: m.free[last], Len: uint32(length)})
		m.free = m.free[:last]
	}
	return segs
}

func (m *migration) content(p uint64) []byte { return m.mem.Bytes(p*page, page) }

// sync copies the pages that are marked in l.
func (m *migration) sync(t *rapid.T, l *bitmap) {
	for _, p := range l.take() {
		if !m.may[p] {
			t.Fatalf("page %#x is marked, in which the device has nothing to write", p)
		}
		copy(m.target[p], m.content(p))
	}
}

func (m *migration) setLog(t *rapid.T, l *bitmap) {
	d := virtq.DirtyLog{Log: l.Log, Data: true, Used: true, UsedAddr: m.used}
	if err := m.queue.SetLog(d); err != nil {
		t.Fatal(err)
	}
	m.log = l
}

// finish writes to the buffers of chain i, and pushes or suspends it.
func (m *migration) finish(t *rapid.T, i int, suspend bool) {
	c := m.flight[i]
	m.flight = append(m.flight[:i], m.flight[i+1:]...)
	for k := range c.Writable {
		if b := c.Writable[k]; len(b) > 0 && rapid.Bool().Draw(t, "write") {
			from := rapid.IntRange(0, len(b)-1).Draw(t, "from")
			to := rapid.IntRange(from+1, len(b)).Draw(t, "to")
			for j := from; j < to; j += 1 + (to-from)/8 {
				b[j] = byte(rand.Uint32())
			}
			// The device may do with its slices what it likes.
			c.Writable[k] = b[from:to]
		}
	}
	if rapid.Bool().Draw(t, "drop slices") {
		c.Writable = nil
	}
	if suspend {
		m.queue.Suspend(c)
		return
	}
	for _, s := range m.bufs[c.Head] {
		m.free = append(m.free, s.Addr)
	}
	delete(m.bufs, c.Head)
	m.queue.Push(c, uint32(c.WritableLen()))
}

// What the device writes while its guest is being copied to another host is all there in the end,
// whatever was in flight when the log began, however often it was looked at, and replaced.
func TestAMigratedGuestHasAllThatTheDeviceWrote(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := 1 << rapid.SampledFrom([]int{0, 2, 5, 9}).Draw(t, "log2 size")
		features := rapid.SampledFrom([]uint64{0, modern, virtq.FeatureIndirectDesc}).Draw(t, "features")
		// Regions that are no pages, so that buffers and tables cross from one into the other.
		const data, regions, regionSize = 0x10000, 12, 0x3010
		var ranges []virtqtest.Range
		for i := range uint64(regions) {
			ranges = append(ranges, virtqtest.Range{GuestPhys: data + i*regionSize, Size: regionSize})
		}
		ranges = append(ranges, virtqtest.Range{GuestPhys: 0x100000, Size: 0x10000}, virtqtest.Range{GuestPhys: 0x200000, Size: 0x10000})
		mem, err := virtqtest.NewMem(ranges...)
		if err != nil {
			t.Fatal(err)
		}
		defer mem.Close()
		n := uint64(size)
		m := &migration{
			bufs: make(map[uint16][]virtqtest.Seg), may: make(map[uint64]bool), target: make(map[uint64][]byte),
			used: 0x200000 + 4*rapid.Uint64Range(0, page/2).Draw(t, "used ring's offset"),
		}
		driver := virtqtest.NewAt(mem, size, features, mem.AllocIn(regions, 16*n, 16), mem.AllocIn(regions, 6+2*n, 2), m.used)
		driver.StartAt(rapid.SampledFrom([]uint16{0, 65530}).Draw(t, "base"))
		memory, err := mem.Memory()
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Release()
		layout := driver.Layout()
		if rapid.Bool().Draw(t, "in-flight region") {
			layout.Inflight = make([]byte, virtq.InflightSize(size))
		}
		q, err := virtq.New(memory, layout)
		if err != nil {
			t.Fatal(err)
		}
		m.ring = &ring{mem, memory, driver, q}
		defer func() {
			q.Close()
			for _, l := range append(m.old, m.log) {
				if l != nil {
					l.close()
				}
			}
		}()
		for i := range regions {
			mem.AllocIn(i, regionSize, 1)
		}
		for i := range uint64(regions * regionSize / logSlot) {
			m.free = append(m.free, data+i*logSlot)
		}
		for p := uint64(data / page); p <= (data+regions*regionSize)/page-1; p++ {
			m.may[p] = true
		}
		event := uint64(0)
		if features&virtq.FeatureEventIdx != 0 {
			event = 2
		}
		for p := m.used / page; p <= (m.used+4+8*n+event-1)/page; p++ {
			m.may[p] = true
		}

		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				readable := m.take(t, rapid.IntRange(0, 2).Draw(t, "readable"))
				writable := m.take(t, rapid.IntRange(0, 3).Draw(t, "writable"))
				segs := append(append([]virtqtest.Seg(nil), readable...), writable...)
				add := driver.Add
				if features&virtq.FeatureIndirectDesc != 0 && len(driver.DescBytes()) > 0 && rapid.Bool().Draw(t, "indirect") {
					add = driver.AddIndirect
				}
				if len(segs) > 0 {
					if head, ok := add(readable, writable); ok {
						driver.Kick()
						m.bufs[head] = segs
						return
					}
				}
				for _, s := range segs {
					m.free = append(m.free, s.Addr)
				}
			},
			"pop": func(t *rapid.T) {
				c := new(virtq.Chain)
				switch ok, err := q.Pop(c); {
				case err != nil:
					t.Fatal(err)
				case ok:
					m.flight = append(m.flight, c)
				}
			},
			"finish": func(t *rapid.T) {
				if n := len(m.flight); n > 0 {
					m.finish(t, rapid.IntRange(0, n-1).Draw(t, "which"), false)
				}
			},
			"suspend": func(t *rapid.T) {
				if n := len(m.flight); n > 0 {
					m.finish(t, rapid.IntRange(0, n-1).Draw(t, "which"), true)
				}
			},
			"unfetch": func(t *rapid.T) { q.Unfetch(nil) },
			"unpop": func(t *rapid.T) {
				if n := len(m.flight); n > 0 && q.CanUnpop(m.flight[n-1]) {
					q.Unpop(m.flight[n-1])
					m.flight = m.flight[:n-1]
				}
			},
			"publish": func(t *rapid.T) { q.Publish() },
			"show":    func(t *rapid.T) { q.Show() },
			"notify":  func(t *rapid.T) { q.EnableNotify(); q.DisableNotify() },
			"reap": func(t *rapid.T) {
				for {
					if _, _, ok := driver.Used(); !ok {
						return
					}
				}
			},
			"begin": func(t *rapid.T) {
				if m.log != nil {
					return
				}
				m.setLog(t, newBitmap(t, 0x210))
				for p := range m.may {
					m.target[p] = bytes.Clone(m.content(p))
				}
			},
			"sync": func(t *rapid.T) {
				if m.log != nil {
					m.sync(t, m.log)
				}
			},
			"replace": func(t *rapid.T) {
				if m.log != nil {
					old := m.log
					m.setLog(t, newBitmap(t, rapid.Uint64Range(0x210, 0x300).Draw(t, "size of the log")))
					m.sync(t, old)
					m.old = append(m.old, old)
				}
			},
			"": func(t *rapid.T) {
				if err := q.Broken(); err != nil {
					t.Fatal(err)
				}
			},
		})
		for len(m.flight) > 0 {
			m.finish(t, 0, layout.Inflight != nil)
		}
		q.Publish()
		q.Close()
		if m.log == nil {
			return
		}
		m.sync(t, m.log)
		for p, got := range m.target {
			if !bytes.Equal(got, m.content(p)) {
				t.Errorf("page %#x was written and not marked", p)
			}
		}
		for _, l := range m.old {
			if pages := l.take(); pages != nil {
				t.Errorf("pages %#x are marked in a log that was replaced", pages)
			}
		}
	})
}

// A chain was in flight when the log began, with its table in two regions, and a descriptor too.
func TestBuffersInATableAcrossRegionsAreMarkedToo(t *testing.T) {
	const end = 0x10008
	mem := newMem(t, virtqtest.Range{Size: end}, virtqtest.Range{GuestPhys: end, Size: 0x10000 - 8})
	r := start(t, mem, virtqtest.New(mem, 4, modern))
	table := uint64(end - 8 - virtqtest.DescSize)
	for i := range uint64(3) {
		d := virtqtest.Desc{Addr: 0x8000 + i*2*page, Len: 1, Flags: virtqtest.DescWrite | virtqtest.DescNext, Next: uint16(i + 1)}
		if i == 2 {
			d.Flags = virtqtest.DescWrite
		}
		b := make([]byte, virtqtest.DescSize)
		d.Put(b)
		for k := range b {
			mem.Bytes(table+virtqtest.DescSize*i+uint64(k), 1)[0] = b[k]
		}
	}
	r.driver.SetDesc(0, virtqtest.Desc{Addr: table, Len: 3 * virtqtest.DescSize, Flags: virtqtest.DescIndirect})
	r.driver.Offer(0)
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	l := logged(t, r, virtq.DirtyLog{Data: true})
	r.queue.Push(&c, 3)
	if pages := l.take(); !slices.Equal(pages, []uint64{8, 10, 12}) {
		t.Errorf("pages %#x are marked, want 8, 10, 12", pages)
	}
}

// logged has a log that covers all of a ring's memory.
func logged(t *testing.T, r *ring, d virtq.DirtyLog) *bitmap {
	t.Helper()
	l := newBitmap(t, 8<<20/page/8)
	t.Cleanup(l.close)
	d.Log = l.Log
	if err := r.queue.SetLog(d); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestDataIsMarkedBeforeItIsPublished(t *testing.T) {
	r := newRing(t, 4, modern)
	l := logged(t, r, virtq.DirtyLog{Data: true})
	data := r.mem.Alloc(2*page, page)
	r.driver.Add(nil, []virtqtest.Seg{{Addr: data + page - 1, Len: 2}})
	r.driver.Kick()
	var c virtq.Chain
	r.pop(t, &c)
	if pages := l.take(); pages != nil {
		t.Errorf("pages %#x are marked before the chain has landed", pages)
	}
	r.queue.Push(&c, 2)
	if pages := l.take(); len(pages) != 2 || pages[0] != data/page || pages[1] != data/page+1 {
		t.Errorf("pages %#x are marked, want %#x and the next", pages, data/page)
	}
	r.queue.Publish()
	r.queue.EnableNotify()
	if pages := l.take(); pages != nil {
		t.Errorf("pages %#x are marked without VHOST_VRING_F_LOG", pages)
	}
}

// A guest may begin to migrate right after its back-end was started anew.
func TestInheritedChainsInFlightAreMarkedWhenTheLogComesOn(t *testing.T) {
	region := make([]byte, virtq.InflightSize(8))
	r := newRing(t, 8, modern).restart(t, region)
	data := r.mem.Alloc(page, page)
	head, _ := r.driver.Add(nil, []virtqtest.Seg{{Addr: data, Len: 8}})
	r.driver.Kick()
	r.mustPop(t, head)
	r = r.restart(t, region)
	c := r.mustPop(t, head)[0]
	l := logged(t, r, virtq.DirtyLog{Data: true})
	r.queue.Push(c, 8)
	if pages := l.take(); !slices.Equal(pages, []uint64{data / page}) {
		t.Errorf("pages %#x are marked, want %#x", pages, data/page)
	}
}

func TestOnlyTheUsedRingIsMarkedWithoutLogAll(t *testing.T) {
	for _, features := range []uint64{modern, virtq.FeatureVersion1} {
		r := newRing(t, 1024, features)
		used := r.driver.UsedPhys()
		l := logged(t, r, virtq.DirtyLog{Used: true, UsedAddr: used})
		if pages := l.take(); len(pages) < 2 || pages[0] != used/page {
			t.Errorf("pages %#x are marked at the beginning, want all of the used ring", pages)
		}
		readable, writable := r.blkSegs()
		r.driver.Add(readable, writable)
		r.driver.Kick()
		var c virtq.Chain
		r.pop(t, &c)
		r.queue.Push(&c, 4097)
		if pages := l.take(); pages != nil {
			t.Errorf("pages %#x are marked with nothing published", pages)
		}
		r.queue.Publish()
		if pages := l.take(); len(pages) != 1 || pages[0] != used/page {
			t.Errorf("pages %#x are marked by Publish, want %#x", pages, used/page)
		}
		r.queue.DisableNotify()
		r.queue.EnableNotify()
		want := used / page // flags
		if features&virtq.FeatureEventIdx != 0 {
			want = (used + 4 + 8*1024) / page // avail_event
		}
		if pages := l.take(); len(pages) != 1 || pages[0] != want {
			t.Errorf("pages %#x are marked by EnableNotify, want %#x", pages, want)
		}
	}
}

func TestNothingIsMarkedOnceTheLogIsOff(t *testing.T) {
	for what, off := range map[string]func(*ring){
		"SetLog": func(r *ring) {
			if err := r.queue.SetLog(virtq.DirtyLog{}); err != nil {
				t.Error(err)
			}
		},
		"Close": func(r *ring) { r.queue.Close() },
	} {
		r := newRing(t, 4, modern)
		l := logged(t, r, virtq.DirtyLog{Data: true, Used: true, UsedAddr: r.driver.UsedPhys()})
		readable, writable := r.blkSegs()
		r.driver.Add(readable, writable)
		r.driver.Kick()
		var c virtq.Chain
		r.pop(t, &c)
		off(r)
		l.take()
		r.queue.Push(&c, 1)
		r.queue.Publish()
		r.queue.EnableNotify()
		if pages := l.take(); pages != nil {
			t.Errorf("pages %#x are marked after %s", pages, what)
		}
	}
}

func TestWhatTheLogHasNoRoomForBreaksTheRing(t *testing.T) {
	wantBroken := func(t *testing.T, err error) {
		t.Helper()
		var broken *virtq.BrokenError
		if !errors.As(err, &broken) || broken.Reason != virtq.ReasonLog {
			t.Errorf("error %v, want %q", err, virtq.ReasonLog)
		}
	}
	short := func(t *testing.T) *bitmap {
		l := newBitmap(t, 1)
		t.Cleanup(l.close)
		return l
	}
	t.Run("a buffer", func(t *testing.T) {
		r := newRing(t, 4, modern)
		if err := r.queue.SetLog(virtq.DirtyLog{Log: short(t).Log, Data: true}); err != nil {
			t.Fatal(err)
		}
		r.driver.Add(nil, []virtqtest.Seg{{Addr: 8*page - 1, Len: 2}})
		r.driver.Kick()
		_, err := r.queue.Pop(new(virtq.Chain))
		wantBroken(t, err)
	})
	t.Run("the used ring", func(t *testing.T) {
		r := newRing(t, 4, modern)
		l := short(t)
		wantBroken(t, r.queue.SetLog(virtq.DirtyLog{Log: l.Log, Data: true, Used: true, UsedAddr: 8*page - 4}))
		wantBroken(t, r.queue.Broken())
		if pages := l.take(); pages != nil {
			t.Errorf("pages %#x are marked", pages)
		}
	})
	t.Run("but not what was taken from the guest since", func(t *testing.T) {
		r := newRing(t, 4, modern)
		logged(t, r, virtq.DirtyLog{Data: true})
		r.driver.Add(nil, []virtqtest.Seg{{Addr: 9 * page, Len: 1}})
		r.driver.Kick()
		var c virtq.Chain
		r.pop(t, &c)
		if err := r.queue.SetLog(virtq.DirtyLog{Log: short(t).Log, Data: true}); err != nil {
			t.Fatal(err)
		}
		r.queue.Push(&c, 1)
		if err := r.queue.Broken(); err != nil {
			t.Error(err)
		}
	})
}

// The descriptors of what is in flight are the guest's to spoil: the walk that finds their buffers
// ends, and stays within the guest's memory.
func TestBadDescriptorsInFlightDoNotDisturbTheLog(t *testing.T) {
	for what, spoil := range map[string]func(*ring, uint16){
		"a loop": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Addr: 0, Len: 1, Flags: virtqtest.DescNext | virtqtest.DescWrite, Next: head})
		},
		"next out of range": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Flags: virtqtest.DescNext, Next: 0xffff})
		},
		"a table outside of memory": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Addr: 1 << 63, Len: 64, Flags: virtqtest.DescIndirect})
		},
		"an empty table": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Len: 15, Flags: virtqtest.DescIndirect})
		},
		"a table at the end of memory": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Addr: 8<<20 - 8, Len: 1 << 31, Flags: virtqtest.DescIndirect})
		},
		"a table in a table": func(r *ring, head uint16) {
			a := r.mem.Alloc(virtqtest.DescSize, 16)
			d := virtqtest.Desc{Addr: a, Len: virtqtest.DescSize, Flags: virtqtest.DescIndirect}
			d.Put(r.mem.Bytes(a, virtqtest.DescSize))
			r.driver.SetDesc(int(head), d)
		},
		"a buffer outside of memory": func(r *ring, head uint16) {
			r.driver.SetDesc(int(head), virtqtest.Desc{Addr: 1<<64 - 1, Len: 1<<32 - 1, Flags: virtqtest.DescWrite})
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRing(t, 4, modern)
			readable, writable := r.blkSegs()
			head, _ := r.driver.Add(readable, writable)
			r.driver.Kick()
			var c virtq.Chain
			r.pop(t, &c)
			spoil(r, head)
			logged(t, r, virtq.DirtyLog{Data: true, Used: true, UsedAddr: r.driver.UsedPhys()})
			r.queue.Push(&c, 1)
			r.queue.Publish()
			if err := r.queue.Broken(); err != nil {
				t.Error(err)
			}
		})
	}
}

// What a driver makes of its descriptors while they are in flight can be more than it could ever
// have made available. That is not to keep the reactor busy, nor to fill our memory.
func TestSpoiltDescriptorsInFlightAreNotFollowedForEver(t *testing.T) {
	t.Run("descriptors", func(t *testing.T) {
		const size = 2048
		r := newRing(t, size, modern)
		heads := r.offer(t, size/2)
		r.popHeads(t, len(heads))
		for i := range size {
			r.driver.SetDesc(i, virtqtest.Desc{Addr: uint64(i%2) * page, Len: 1, Flags: virtqtest.DescNext | virtqtest.DescWrite,
				Next: uint16((i + 1) % size)})
		}
		l := newBitmap(t, 8<<20/page/8)
		t.Cleanup(l.close)
		err := r.queue.SetLog(virtq.DirtyLog{Log: l.Log, Data: true})
		var broken *virtq.BrokenError
		if !errors.As(err, &broken) || broken.Reason != virtq.ReasonLog {
			t.Errorf("error %v, want %q", err, virtq.ReasonLog)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		r := newRing(t, 4, modern)
		r.driver.SetDesc(0, virtqtest.Desc{Len: 1, Flags: virtqtest.DescWrite})
		r.driver.Offer(0)
		r.driver.Kick()
		var c virtq.Chain
		r.pop(t, &c)
		for i, size := range []uint32{1, 1<<32 - 1, 2, 1} {
			r.driver.SetDesc(i, virtqtest.Desc{Addr: uint64(i) * page, Len: size,
				Flags: virtqtest.DescNext | virtqtest.DescWrite, Next: uint16(i + 1)})
		}
		l := logged(t, r, virtq.DirtyLog{Data: true})
		r.queue.Push(&c, 1)
		if pages := l.take(); !slices.Equal(pages, []uint64{0}) {
			t.Errorf("pages %#x are marked, want 0: what follows is too much for a chain", pages)
		}
		if err := r.queue.Broken(); err != nil {
			t.Error(err)
		}
	})
}
