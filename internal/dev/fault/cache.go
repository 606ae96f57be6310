package fault

import (
	"maps"
	"slices"
	"sync"

	"vdev/devsw"
)

// cache holds what was written and not flushed.
//
// Nothing leaves it before it is on the lower device, and what is in it is not changed, only
// replaced: a reader that looks here first and at the lower device afterwards finds what was
// written last.
type cache struct {
	sector int64 // bytes
	limit  int64 // bytes

	// writing has room for one: whoever changes the lower device. So an older write cannot overtake
	// a newer one.
	writing chan struct{}

	mu      sync.Mutex
	sectors map[int64][]byte // by number; each of sector bytes
}

// extent is a range of sectors: from first on, before end.
type extent struct{ first, end int64 }

// everything is every sector.
var everything = extent{0, 1<<63 - 1}

// patch is data that belongs at byte off of a transfer.
type patch struct {
	off  int64
	data []byte
}

func newCache(sector, limit int64) *cache {
	return &cache{sector: sector, limit: limit, writing: make(chan struct{}, 1), sectors: make(map[int64][]byte)}
}

// extent gives the sectors that n bytes from off on touch.
func (c *cache) extent(off, n int64) extent {
	return extent{off / c.sector, (off + n + c.sector - 1) / c.sector}
}

// put copies the first n bytes of a write, which belong at off: whole sectors. full: there is now
// more than there should be.
func (c *cache) put(b *devsw.Buf, off, n int64) (full bool, e devsw.Errno) {
	p := make([]byte, n)
	if e := b.MoveAt(p, 0); e != 0 {
		return false, e
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := off / c.sector; len(p) > 0; s++ {
		c.sectors[s] = p[:c.sector:c.sector]
		p = p[c.sector:]
	}
	return int64(len(c.sectors))*c.sector > c.limit, 0
}

// overlay gives what the cache has of the n bytes from off on.
func (c *cache) overlay(off, n int64) (all []patch) {
	for s, data := range c.dirty(c.extent(off, n)) {
		if at := s*c.sector - off; at >= 0 && at+c.sector <= n {
			all = append(all, patch{at, data})
		}
	}
	return all
}

// dirty gives a copy of a part of the map.
func (c *cache) dirty(x extent) map[int64][]byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if x.end-x.first > int64(len(c.sectors)) {
		part := maps.Clone(c.sectors)
		maps.DeleteFunc(part, func(s int64, _ []byte) bool { return s < x.first || s >= x.end })
		return part
	}
	part := make(map[int64][]byte)
	for s := x.first; s < x.end; s++ {
		if data, ok := c.sectors[s]; ok {
			part[s] = data
		}
	}
	return part
}

// clean forgets sectors, except where there are newer ones.
func (c *cache) clean(old map[int64][]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s, data := range old {
		if now, ok := c.sectors[s]; ok && &now[0] == &data[0] {
			delete(c.sectors, s)
		}
	}
}

// size is the number of sectors in the cache.
func (c *cache) size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.sectors)
}

// writeBack writes a part of the cache out, with these flags, and waits for it. On an error what
// was not written stays. It is called with the lower device acquired, and may sleep.
func (sc *softc) writeBack(x extent, flags devsw.BufFlag) devsw.Errno {
	c := sc.cache
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	old := c.dirty(x)
	if e := sc.writeOut(old, flags); e != 0 {
		return e
	}
	c.clean(old)
	return 0
}

// maxWrite bounds a write of writeOut in bytes, and a transfer that is looked up in the cache, or
// put there, in a context.
const maxWrite = 1 << 20

// writeOut writes sectors to the lower device in order, neighbours together, and waits for it.
func (sc *softc) writeOut(sectors map[int64][]byte, flags devsw.BufFlag) devsw.Errno {
	size := sc.cache.sector
	order := slices.Sorted(maps.Keys(sectors))
	done := make(chan struct{}, 1)
	for len(order) > 0 {
		b := devsw.Buf{
			Op: devsw.BWrite, Flags: flags, Dev: sc.conf.Lower, Blkno: order[0] * (size / devsw.DEVBSIZE),
			Iodone: func(*devsw.Buf) { done <- struct{}{} },
		}
		n := int64(0)
		for n < int64(len(order)) && order[n] == order[0]+n && n*size < maxWrite {
			b.Data = append(b.Data, sectors[order[n]])
			n++
		}
		b.Bcount = n * size
		order = order[n:]
		sc.table.BdevStrategy(&b)
		<-done
		switch {
		case b.Error != 0:
			return b.Error
		case b.Resid != 0:
			return devsw.EIO
		}
	}
	return 0
}

// crash loses what is in the cache, but for what chance has put on the medium before: that is
// written out now. ENXIO where the lower device is not open, EINVAL without a cache or for a bad
// Outage.
func (sc *softc) crash(o *Outage) error {
	c := sc.cache
	if c == nil || !(o.Keep >= 0 && o.Keep <= 1) {
		return devsw.EINVAL
	}
	if !sc.lower.Acquire() {
		return devsw.ENXIO
	}
	defer sc.lower.Release()
	c.writing <- struct{}{}
	defer func() { <-c.writing }()
	if o.Off {
		// First, so that nothing is written after the crash as if nothing had been.
		sc.mu.Lock()
		sc.off = true
		sc.rearmLocked()
		sc.mu.Unlock()
	}
	c.mu.Lock()
	lost := c.sectors
	c.sectors = make(map[int64][]byte)
	c.mu.Unlock()

	rng := generator(o.Seed)
	kept := make(map[int64][]byte)
	for _, s := range slices.Sorted(maps.Keys(lost)) {
		if rng.Float64() < o.Keep {
			kept[s] = lost[s]
		}
	}
	o.Kept, o.Dropped = len(kept), len(lost)-len(kept)
	if e := sc.writeOut(kept, 0); e != 0 {
		return e
	}
	return nil
}
