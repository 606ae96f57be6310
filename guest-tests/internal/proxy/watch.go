package proxy

import (
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"slices"

	"vdev/internal/sys"
)

// watch is what must not change, and what it was.
type watch struct {
	ring    uint32
	pending int
	areas   []area
}

type area struct {
	what     string
	mem      []byte
	expected []byte
	original []byte // what is put back; nil: it was not changed
}

func (w *watch) bytes() (n int) {
	for _, a := range w.areas {
		n += len(a.mem)
	}
	return n
}

const poison = 0xa5

// watch prepares the look at a stopped ring: the used part as it is, and the buffers of what is
// under way, poisoned.
func (s *session) watch(index uint32, r *ring) *watch {
	w := &watch{ring: index}
	if used, ok := s.usedArea(r); ok {
		w.areas = append(w.areas, area{"the used ring", used, append([]byte(nil), used...), nil})
	}
	seen := map[*byte]bool{}
	for _, head := range s.underWay(index, r) {
		w.pending++
		for i, mem := range s.writable(r, head) {
			if len(mem) == 0 || seen[&mem[0]] {
				continue
			}
			seen[&mem[0]] = true
			a := area{fmt.Sprintf("buffer %d of head %d", i, head), mem, make([]byte, len(mem)), append([]byte(nil), mem...)}
			for i := range a.expected {
				a.expected[i] = poison
			}
			copy(mem, a.expected)
			w.areas = append(w.areas, a)
		}
	}
	return w
}

// look compares, reports, and puts back what was there.
func (w *watch) look(p *Proxy) {
	for _, a := range w.areas {
		changed, first := 0, 0
		for i := range a.mem {
			if a.mem[i] != a.expected[i] {
				if changed == 0 {
					first = i
				}
				changed++
			}
		}
		if changed > 0 {
			p.find("ring %d: %d of the %d bytes of %s were written after the answer to GET_VRING_BASE, from byte %d on",
				w.ring, changed, len(a.mem), a.what, first)
		} else if a.original != nil {
			copy(a.mem, a.original)
		}
	}
}

// underWay returns the heads that the driver has made available and not got back. Those recorded in
// flight are known; without a region, of the ring's last entries those that are not among the last
// used elements.
func (s *session) underWay(index uint32, r *ring) []uint16 {
	avail, ok := s.user(r.addr.Avail, 6+2*int(r.num))
	used, ok2 := s.usedArea(r)
	if !ok || !ok2 || r.num == 0 {
		return nil
	}
	num := uint16(r.num)
	availIdx, usedIdx := binary.LittleEndian.Uint16(avail[2:]), binary.LittleEndian.Uint16(used[2:])
	pending := availIdx - usedIdx
	if pending > num {
		return nil
	}
	var heads []uint16
	if s.inflight != nil {
		heads = s.inflight.marked(int(index))
	}
	// Of the newest entries, half a ring of them, those heads that were made available more often
	// than used. An element of the used ring is gone after a whole ring, so that none of these can
	// be missing as long as less than half a ring is under way.
	if pending > num/2 {
		return heads
	}
	open := map[uint16]int{}
	for i := range num {
		open[uint16(binary.LittleEndian.Uint32(used[4+8*int((usedIdx-1-i)%num):]))]--
	}
	var order []uint16
	for i := range min(num/2, availIdx) {
		h := binary.LittleEndian.Uint16(avail[4+2*int((availIdx-1-i)%num):])
		open[h]++
		order = append(order, h)
	}
	for _, h := range order {
		if open[h] > 0 && !slices.Contains(heads, h) {
			heads = append(heads, h)
		}
	}
	return heads
}

// Descriptor flags (virtio 1.3, 2.7.5).
const (
	descNext     = 1
	descWrite    = 2
	descIndirect = 4
	descSize     = 16
)

// writable returns the buffers of a chain that the device writes.
func (s *session) writable(r *ring, head uint16) (list [][]byte) {
	table, ok := s.user(r.addr.Desc, descSize*int(r.num))
	if !ok {
		return nil
	}
	next := int(head)
	for range 2 * int(r.num) {
		if (next+1)*descSize > len(table) {
			return list
		}
		d := table[next*descSize:]
		addr, n := binary.LittleEndian.Uint64(d), int(binary.LittleEndian.Uint32(d[8:]))
		flags := binary.LittleEndian.Uint16(d[12:])
		if flags&descIndirect != 0 {
			if table, ok = s.phys(addr, n); !ok {
				return list
			}
			next = 0
			continue
		}
		if flags&descWrite != 0 {
			if mem, ok := s.phys(addr, n); ok {
				list = append(list, mem)
			}
		}
		if flags&descNext == 0 {
			return list
		}
		next = int(binary.LittleEndian.Uint16(d[14:]))
	}
	return list
}

const pageSize = 4096

// page names a page of guest memory.
type page struct {
	region *region
	number int
}

var (
	hashSeed = maphash.MakeSeed()
	zeroPage = maphash.Bytes(hashSeed, make([]byte, pageSize))
)

// snapshot returns a hash of each page of guest memory that was ever used. It does not touch the
// others, which would make them.
func (s *session) snapshot() (map[page]uint64, error) {
	pages := map[page]uint64{}
	for _, r := range s.regions {
		begin, end := int64(r.MmapOffset), int64(r.MmapOffset+r.Size)
		for at := begin; at < end; {
			from, err := sys.SeekData(r.fd.Int(), at)
			if err != nil || from >= end {
				break // a hole up to the end (ENXIO)
			}
			to, err := sys.SeekHole(r.fd.Int(), from)
			if err != nil {
				return nil, err
			}
			at = min(to, end)
			for off := from &^ (pageSize - 1); off < at; off += pageSize {
				n := int(off - begin)
				pages[page{r, n / pageSize}] = maphash.Bytes(hashSeed, r.mem[n:min(n+pageSize, len(r.mem))])
			}
		}
	}
	return pages, nil
}

// compare reports pages that are not what they were.
func (s *session) compare(before map[page]uint64, when string) (changed int, err error) {
	after, err := s.snapshot()
	if err != nil {
		return 0, err
	}
	var example uint64
	for p, hash := range after {
		was, known := before[p]
		if !known {
			was = zeroPage
		}
		if hash != was {
			changed++
			example = p.region.GuestPhys + uint64(p.number)*pageSize
		}
	}
	if changed > 0 {
		s.proxy.find("%d pages of guest memory were written %s, one of them at %#x", changed, when, example)
	}
	return changed, nil
}
