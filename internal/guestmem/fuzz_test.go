package guestmem_test

import (
	"encoding/binary"
	"errors"
	"math"
	"os"
	"reflect"
	"syscall"
	"testing"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// The file behind all regions of FuzzGenerations: each of its 8-byte words is the word's own
// number.
const (
	fuzzFile = 16 * page
	fuzzMaps = 6  // regions that an execution makes at most
	fuzzOps  = 64 // steps that it makes at most
)

// Steps of FuzzGenerations. Each has its arguments behind it.
const (
	opAdd     = iota // a region, described by four words
	opRemove         // the region of that number
	opReplace        // all regions: those whose bits are set
	// a chain: an address and a length, translated in the current generation, which it holds
	opHold
	opEnd       // of the chain of that number
	opTranslate // an address and a length, in each way
	opMiss      // removes what is not there
	opCount
)

// fuzzRegion is a region and what the model knows of it.
type fuzzRegion struct {
	r                   *guestmem.Region
	at                  uintptr // of its memory
	gpa, size, uva, off uint64
	refs                int // live generations that have it
}

// fuzzGeneration is a Memory and what the model knows of it.
type fuzzGeneration struct {
	m    *guestmem.Memory
	has  []*fuzzRegion
	refs int
}

// fuzzChain holds a generation, for buffers in it.
type fuzzChain struct {
	g      *fuzzGeneration
	bufs   [][]byte
	places []place
}

// place is where a buffer has to be.
type place struct {
	r      *fuzzRegion
	off, n uint64 // in the region
}

type fuzzGuest struct {
	t       *testing.T
	file    *sys.FD
	all     []*fuzzRegion
	current *fuzzGeneration
	chains  []*fuzzChain
}

// find is the naive way to find an address.
func (g *fuzzGeneration) find(addr uint64, start func(*fuzzRegion) uint64) (*fuzzRegion, uint64) {
	for _, r := range g.has {
		if s := start(r); addr >= s && addr-s < r.size {
			return r, addr - s
		}
	}
	return nil, 0
}

func (r *fuzzRegion) byPhys() uint64 { return r.gpa }
func (r *fuzzRegion) byUser() uint64 { return r.uva }

// places is where n bytes at gpa are, and false where some of them are nowhere.
func (g *fuzzGeneration) places(gpa, n uint64) (all []place, ok bool) {
	for n > 0 {
		r, off := g.find(gpa, (*fuzzRegion).byPhys)
		if r == nil {
			return nil, false
		}
		k := min(n, r.size-off)
		all = append(all, place{r, off, k})
		gpa, n = gpa+k, n-k
	}
	return all, true
}

// check fails unless b is at p, and is what the file has there.
func (g *fuzzGuest) check(b []byte, p place) {
	g.t.Helper()
	if p.n == 0 && len(b) == 0 && cap(b) == 0 {
		return // it is nowhere
	}
	start := reflect.ValueOf(b).Pointer()
	if start != p.r.at+uintptr(p.off) || uint64(len(b)) != p.n || cap(b) != len(b) {
		g.t.Fatalf("%d bytes with capacity %d at %#x, want %d at %#x", len(b), cap(b), start, p.n, p.r.at+uintptr(p.off))
	}
	in := p.r.off + p.off // the file
	for _, i := range []uint64{0, p.n - 1} {
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], (in+i)/8)
		if b[i] != word[(in+i)%8] {
			g.t.Fatalf("byte %d of the file reads %#x", in+i, b[i])
		}
	}
}

// use makes m, which was made of these regions, the current generation.
func (g *fuzzGuest) use(m *guestmem.Memory, has []*fuzzRegion) {
	for _, r := range has {
		r.refs++
	}
	old := g.current
	g.current = &fuzzGeneration{m: m, has: has, refs: 1}
	if old != nil {
		g.release(old)
	}
}

func (g *fuzzGuest) release(old *fuzzGeneration) {
	if old.refs--; old.refs == 0 {
		for _, r := range old.has {
			r.refs--
		}
	}
	old.m.Release()
}

// clash tells whether regions cannot be in one generation.
func clash(has []*fuzzRegion) bool {
	overlap := func(a, b, an, bn uint64) bool { return a < b+bn && b < a+an }
	for i, a := range has {
		for _, b := range has[:i] {
			if overlap(a.gpa, b.gpa, a.size, b.size) || overlap(a.uva, b.uva, a.size, b.size) {
				return true
			}
		}
	}
	return false
}

func (g *fuzzGuest) add(gpa, size, uva, off uint64) {
	if len(g.all) == fuzzMaps {
		return
	}
	fd, err := syscall.Dup(g.file.Int())
	if err != nil {
		g.t.Fatal(err)
	}
	r, err := guestmem.Map(gpa, size, uva, off, sys.NewFD(fd))
	var wrong error
	switch {
	case size == 0:
		wrong = guestmem.ErrSize
	case gpa > math.MaxUint64-size || uva > math.MaxUint64-size:
		wrong = guestmem.ErrOverflow
	case off > fuzzFile || size > fuzzFile-off:
		wrong = guestmem.ErrShort
	}
	var refused *guestmem.RegionError
	if (err != nil) != (wrong != nil) || err != nil && !errors.As(err, &refused) {
		g.t.Fatalf("Map(%#x, %#x, %#x, %#x): %v, want %v", gpa, size, uva, off, err, wrong)
	}
	if err != nil {
		return
	}
	made := &fuzzRegion{r: r, at: reflect.ValueOf(r.Bytes()).Pointer(), gpa: gpa, size: size, uva: uva, off: off}
	g.all = append(g.all, made)
	has := append(append([]*fuzzRegion{}, g.current.has...), made)
	m, err := g.current.m.With(r)
	if (err != nil) != clash(has) || err != nil && !errors.Is(err, guestmem.ErrOverlap) {
		g.t.Fatalf("With(%#x, %#x, %#x): %v, want an overlap: %v", gpa, size, uva, err, clash(has))
	}
	if err == nil {
		g.use(m, has)
	}
	r.Release() // it was the creator's
}

func (g *fuzzGuest) remove(r *fuzzRegion) {
	m, err := g.current.m.Without(r.gpa, r.size, r.uva)
	if err != nil {
		g.t.Fatalf("Without: %v", err)
	}
	var rest []*fuzzRegion
	for _, other := range g.current.has {
		if other != r {
			rest = append(rest, other)
		}
	}
	g.use(m, rest)
}

func (g *fuzzGuest) replace(bits byte) {
	var has []*fuzzRegion
	var regions []*guestmem.Region
	for i, r := range g.current.has {
		if bits>>i&1 != 0 {
			has, regions = append(has, r), append(regions, r.r)
		}
	}
	m, err := guestmem.New(regions...)
	if err != nil {
		g.t.Fatalf("New of a part: %v", err)
	}
	g.use(m, has)
}

func (g *fuzzGuest) translate(gpa, n uint64) {
	m, cur := g.current.m, g.current
	view := m.View()
	r, off := cur.find(gpa, (*fuzzRegion).byPhys)
	for range 2 { // with a search, and with what it has found
		b, ok := view.Slice(gpa, n)
		if ok != (r != nil && n <= r.size-off) {
			g.t.Fatalf("View.Slice(%#x, %#x) = %v", gpa, n, ok)
		}
		if ok {
			g.check(b, place{r, off, n})
		}
	}
	if b, ok := m.Slice(gpa, n); ok != (r != nil && n <= r.size-off) {
		g.t.Fatalf("Slice(%#x, %#x) = %v", gpa, n, ok)
	} else if ok {
		g.check(b, place{r, off, n})
	}
	r, off = cur.find(gpa, (*fuzzRegion).byUser)
	if b, ok := m.UserSlice(gpa, n); ok != (r != nil && n <= r.size-off) {
		g.t.Fatalf("UserSlice(%#x, %#x) = %v", gpa, n, ok)
	} else if ok {
		g.check(b, place{r, off, n})
	}
}

func (g *fuzzGuest) hold(gpa, n uint64) {
	places, ok := g.current.places(gpa, n)
	before := [][]byte{nil}
	bufs, err := g.current.m.AppendSlices(before, gpa, n)
	var wrong *guestmem.RangeError
	if (err == nil) != ok || err != nil && (!errors.As(err, &wrong) || len(bufs) != 1) {
		g.t.Fatalf("AppendSlices(%#x, %#x): %d buffers, %v, want one: %v", gpa, n, len(bufs), err, ok)
	}
	if !ok {
		return
	}
	g.current.m.Retain()
	g.current.refs++
	g.chains = append(g.chains, &fuzzChain{g: g.current, bufs: bufs[1:], places: places})
}

// verify checks everything that is held, and that just that is mapped.
func (g *fuzzGuest) verify() {
	g.t.Helper()
	for _, c := range g.chains {
		if len(c.bufs) != len(c.places) {
			g.t.Fatalf("%d buffers, want %d", len(c.bufs), len(c.places))
		}
		for i, b := range c.bufs {
			g.check(b, c.places[i])
		}
	}
	for _, r := range g.all {
		if there := r.r.Bytes() != nil; there != (r.refs > 0) {
			g.t.Fatalf("region %#x is mapped: %v; %d generations have it", r.gpa, there, r.refs)
		}
		if r.refs > 0 && !guestmem.Mapped(r.at) {
			g.t.Fatalf("region %#x is not known to be mapped", r.gpa)
		}
	}
}

// FuzzGenerations changes a guest's memory while chains are held in it. A translation gives what is
// in the regions, all of it and nothing else; a chain's buffers stay what they were; a region is
// mapped for as long as a generation has it that somebody holds, and unmapped then, once.
func FuzzGenerations(f *testing.F) {
	const near = 0xff00
	add := func(gpa, size, uva, off uint16) []byte {
		b := []byte{opAdd}
		for _, v := range []uint16{gpa, size, uva, off} {
			b = binary.LittleEndian.AppendUint16(b, v)
		}
		return b
	}
	two := func(op byte, a, n uint16) []byte {
		return binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16([]byte{op}, a), n)
	}
	join := func(parts ...[]byte) (b []byte) {
		for _, p := range parts {
			b = append(b, p...)
		}
		return b
	}
	first, next, apart := add(0x10, 0x20, 0x110, 0), add(0x30, 0x10, 0x200, 0x40), add(0x80, 0x10, 0x300, 0x11)
	across := two(opHold, 0x28, 0x10)
	f.Add(join(first, next, apart, across, []byte{opRemove, 0, opRemove, 0}, two(opTranslate, 0x30, 1), []byte{opEnd, 0}))
	f.Add(join(first, across, next, across, two(opHold, 0x38, 0x10), []byte{opReplace, 2, opReplace, 0}, apart, []byte{opEnd, 0, opEnd, 0}))
	f.Add(join(first, first, add(0x2f, 2, 0x400, 0), add(0x400, 1, 0x12f, 0), two(opTranslate, 0x110, 0x21)))
	f.Add(join(add(near+0xf0, 0x0f, 0x10, 0), add(near+0xf0, 0x10, 0x10, 0), add(0x10, 0x10, near+0xf8, 0), two(opHold, near+0xfe, 1), two(opTranslate, near+0xff, near)))
	f.Add(join(add(0, 0, 0, 0), add(0, 0x101, 0, 0), add(0, 1, 0, 0xffff), []byte{opMiss}))
	f.Add(join(first, two(opHold, 0x10, 0), two(opHold, 0, 0), two(opTranslate, 0x30, 0), []byte{opReplace, 0, opEnd, 1}))

	backing, err := sys.NewMemfd("generations", fuzzFile)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { backing.Close() })
	words := make([]byte, fuzzFile)
	for i := 0; i < fuzzFile; i += 8 {
		binary.LittleEndian.PutUint64(words[i:], uint64(i/8))
	}
	if n, err := syscall.Pwrite(backing.Int(), words, 0); n != fuzzFile || err != nil {
		f.Fatal(n, err)
	}
	open := func(t testing.TB) int64 {
		// Linux gives the number of descriptors as the folder's size, since 6.2; before, it is 0.
		info, err := os.Stat("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	f.Fuzz(func(t *testing.T, steps []byte) {
		before := open(t)
		empty, err := guestmem.New()
		if err != nil {
			t.Fatal(err)
		}
		g := &fuzzGuest{t: t, file: backing}
		g.use(empty, nil)
		byte1 := func() (v byte) {
			if len(steps) > 0 {
				v, steps = steps[0], steps[1:]
			}
			return v
		}
		word := func() uint16 { return uint16(byte1()) | uint16(byte1())<<8 }
		// Addresses and lengths are in units that are no whole number of pages, and near either end
		// of what there is.
		number := func() uint64 {
			v := word()
			if v >= near {
				return math.MaxUint64 - uint64(0xffff-v)
			}
			return uint64(v) * 0x101
		}
		for n := 0; n < fuzzOps && len(steps) > 0; n++ {
			switch byte1() % opCount {
			case opAdd:
				g.add(number(), number(), number(), number())
			case opRemove:
				if n := len(g.current.has); n > 0 {
					g.remove(g.current.has[int(byte1())%n])
				}
			case opReplace:
				g.replace(byte1())
			case opHold:
				g.hold(number(), number())
			case opEnd:
				if n := len(g.chains); n > 0 {
					i := int(byte1()) % n
					c := g.chains[i]
					g.chains = append(g.chains[:i:i], g.chains[i+1:]...)
					g.release(c.g)
				}
			case opTranslate:
				g.translate(number(), number())
			case opMiss:
				if _, err := g.current.m.Without(1, 1, 1); !errors.Is(err, guestmem.ErrUnknown) {
					t.Fatalf("Without a region that there is not: %v", err)
				}
			}
			g.verify()
		}
		for _, c := range g.chains {
			g.release(c.g)
		}
		g.chains = nil
		g.release(g.current)
		g.verify()
		if now := open(t); now != before {
			t.Fatalf("%d descriptors are open, and %d were", now, before)
		}
	})
}
