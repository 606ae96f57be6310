package virtq_test

import (
	"errors"
	"math"
	"strings"
	"testing"

	"vdev/internal/guestmem"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestNewRefusesAConfigItCannotServe(t *testing.T) {
	mem := newMem(t, virtqtest.Range{GuestPhys: 0x10000, Size: 0x4000}, virtqtest.Range{GuestPhys: 0x14000, Size: 0x4000})
	memory, err := mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Release()
	at := mem.UserAddr(0x10000)
	end := at + 0x4000 // of the first region; the second follows
	good := virtq.Config{Size: 8, Desc: at, Avail: at + 0x1000, Used: at + 0x2000}
	if q, err := virtq.New(memory, good); err != nil {
		t.Fatal(err)
	} else {
		q.Close()
	}
	for _, tc := range []struct {
		name   string
		change func(*virtq.Config)
		field  string
		want   error
	}{
		{"size 0", func(c *virtq.Config) { c.Size = 0 }, "Size", virtq.ErrSize},
		{"size 3", func(c *virtq.Config) { c.Size = 3 }, "Size", virtq.ErrSize},
		{"size 255", func(c *virtq.Config) { c.Size = 255 }, "Size", virtq.ErrSize},
		{"size 65536", func(c *virtq.Config) { c.Size = 65536 }, "Size", virtq.ErrSize},
		{"size 2^31", func(c *virtq.Config) { c.Size = 1 << 31 }, "Size", virtq.ErrSize},
		{"packed", func(c *virtq.Config) { c.Features = virtq.FeatureRingPacked }, "Features", virtq.ErrFeature},
		{"desc misaligned", func(c *virtq.Config) { c.Desc += 8 }, "Desc", virtq.ErrAlign},
		{"avail misaligned", func(c *virtq.Config) { c.Avail++ }, "Avail", virtq.ErrAlign},
		{"used misaligned", func(c *virtq.Config) { c.Used += 2 }, "Used", virtq.ErrAlign},
		{"desc before memory", func(c *virtq.Config) { c.Desc -= 16 }, "Desc", virtq.ErrMemory},
		{"desc across regions", func(c *virtq.Config) { c.Desc = end - 16 }, "Desc", virtq.ErrMemory},
		{"desc at the end of the address space", func(c *virtq.Config) { c.Desc = math.MaxUint64 - 15 }, "Desc", virtq.ErrMemory},
		{"avail beyond memory", func(c *virtq.Config) { c.Avail = at + 0x8000 }, "Avail", virtq.ErrMemory},
		{"avail one entry short", func(c *virtq.Config) { c.Avail = end - (4 + 2*8) + 2 }, "Avail", virtq.ErrMemory},
		{"used at 0", func(c *virtq.Config) { c.Used = 0 }, "Used", virtq.ErrMemory},
		{"used one element short", func(c *virtq.Config) { c.Used = end - (4 + 8*8) + 4 }, "Used", virtq.ErrMemory},
		{"no room for used_event", func(c *virtq.Config) {
			c.Avail = end - (4 + 2*8)
			c.Features = virtq.FeatureEventIdx
		}, "Avail", virtq.ErrMemory},
		{"no room for avail_event", func(c *virtq.Config) {
			c.Used = end - (4 + 8*8)
			c.Features = virtq.FeatureEventIdx
		}, "Used", virtq.ErrMemory},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := good
			tc.change(&cfg)
			q, err := virtq.New(memory, cfg)
			var ce *virtq.ConfigError
			if q != nil || !errors.Is(err, tc.want) || !errors.As(err, &ce) || ce.Field != tc.field {
				t.Errorf("New: %v, want %s: %v", err, tc.field, tc.want)
			}
			if err != nil && !strings.Contains(err.Error(), tc.field) {
				t.Errorf("%q does not name the field", err)
			}
		})
	}
}

func TestNewRefusesARingThatIsMisalignedInOurMemory(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	whole, err := mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Release()
	for _, tc := range []struct {
		offset uint64
		field  string
	}{{1, "Avail"}, {2, "Used"}} {
		dup, err := guest(whole).Regions()[0].FD().Dup()
		if err != nil {
			t.Fatal(err)
		}
		// The front-end's addresses are multiples of a page, the file's offsets are not.
		r, err := guestmem.Map(0, 0x3000, 0x70000, tc.offset, dup)
		if err != nil {
			t.Fatal(err)
		}
		memory, err := guestmem.New(r)
		r.Release()
		if err != nil {
			t.Fatal(err)
		}
		_, err = virtq.New((*virtq.Memory)(memory), virtq.Config{Size: 8, Desc: 0x70000, Avail: 0x71000, Used: 0x72000})
		var ce *virtq.ConfigError
		if !errors.Is(err, virtq.ErrAlign) || !errors.As(err, &ce) || ce.Field != tc.field {
			t.Errorf("offset %d: %v, want %s: %v", tc.offset, err, tc.field, virtq.ErrAlign)
		}
		memory.Release()
	}
}

// TestRingsMayEndWithTheirRegion puts each ring at the very end of its region, where the words
// around its last field reach beyond, and the available ring at addresses that are even only.
func TestRingsMayEndWithTheirRegion(t *testing.T) {
	for _, features := range []uint64{0, virtq.FeatureEventIdx} {
		for _, size := range []int{1, 2, 4, 64} {
			event := uint64(0)
			if features != 0 {
				event = 2
			}
			n := uint64(size)
			usedLen, availLen := 4+8*n+event, 4+2*n+event
			// The used ring is a multiple of 4 long, or 2 more. The guest's memory may be, too.
			mem := newMem(t,
				virtqtest.Range{GuestPhys: 0, Size: 0x4000},
				virtqtest.Range{GuestPhys: 0x10000, Size: 0x1000 + usedLen%4},
				virtqtest.Range{GuestPhys: 0x20000, Size: 0x1000})
			d := virtqtest.NewAt(mem, size, features, 0x4000-16*n, 0x21000-availLen, 0x11000+usedLen%4-usedLen)
			d.StartAt(65535)
			r := start(t, mem, d)
			buf := r.mem.AllocIn(0, 8, 1)
			var c virtq.Chain
			for i := range 3 * size {
				d.Add(nil, []virtqtest.Seg{{Addr: buf, Len: 8}})
				d.Kick()
				r.pop(t, &c)
				r.queue.Push(&c, uint32(i%8))
				r.queue.Publish()
				if r.queue.EnableNotify() {
					t.Errorf("size %d, features %#x: pending", size, features)
				}
				if features != 0 && d.AvailEvent() != r.queue.NextAvail() {
					t.Errorf("size %d: avail_event %d, want %d", size, d.AvailEvent(), r.queue.NextAvail())
				}
				if _, written, ok := d.Used(); !ok || written != uint32(i%8) {
					t.Errorf("size %d, features %#x: used %d, %v, want %d", size, features, written, ok, i%8)
				}
			}
		}
	}
}

func TestANewQueueGoesOnFromTheRingsOwnUsedIndex(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	d := virtqtest.New(mem, 8, modern)
	d.StartAt(40)
	seg := []virtqtest.Seg{{Addr: mem.Alloc(4, 1), Len: 4}}
	first := start(t, mem, d)
	var lost, c virtq.Chain
	for range 4 {
		d.Add(seg, nil)
	}
	d.Kick()
	first.pop(t, &lost)
	first.pop(t, &c)
	first.queue.Push(&c, 0)
	first.queue.Publish()
	first.pop(t, &c)
	first.queue.Unpop(&c)
	cfg := d.Layout()
	cfg.Base = first.queue.NextAvail()
	first.queue.Close()
	first.queue.Push(&lost, 0)
	if cfg.Base != 42 {
		t.Fatalf("next entry %d, want 42", cfg.Base)
	}
	second, err := virtq.New(first.memory, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if second.UsedIdx() != 41 || second.NextAvail() != 42 {
		t.Errorf("used index %d and next entry %d, want 41 and 42", second.UsedIdx(), second.NextAvail())
	}
	for range 2 {
		if ok, err := second.Pop(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		second.Push(&c, 0)
	}
	second.Publish()
	for range 3 {
		if _, _, ok := d.Used(); !ok {
			t.Fatal("a used element was lost")
		}
	}
	if d.PendingUsed() || d.InFlight() != 1 {
		t.Errorf("%d in flight, want the one that was lost", d.InFlight())
	}
}
