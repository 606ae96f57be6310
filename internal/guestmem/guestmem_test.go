package guestmem_test

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

const page = 4096

// file returns a memory file of size bytes, in which the first byte of each page is the page's
// number.
func file(t interface{ Fatal(...any) }, name string, size int64) *sys.FD {
	fd, err := sys.NewMemfd(name, size)
	if err != nil {
		t.Fatal(err)
	}
	for p := int64(0); p*page < size; p++ {
		if _, err := syscall.Pwrite(fd.Int(), []byte{byte(p)}, p*page); err != nil {
			t.Fatal(err)
		}
	}
	return fd
}

func mustMap(t interface{ Fatal(...any) }, gpa, size, uva, off uint64, fd *sys.FD) *guestmem.Region {
	r, err := guestmem.Map(gpa, size, uva, off, fd)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mapped counts the mappings of the memory file of that name in this process.
func mapped(t *testing.T, name string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:"+name+" ")
}

func TestMapShowsTheFileFromItsOffset(t *testing.T) {
	fd := file(t, "offset", 4*page)
	r := mustMap(t, 0x1000, page, 0x7000, 2*page, fd)
	defer r.Release()
	if got := r.Bytes(); len(got) != page || cap(got) != page || got[0] != 2 {
		t.Errorf("len %d, cap %d, first byte %d; want %d, %d, 2", len(got), cap(got), got[0], page, page)
	}
	r.Bytes()[7] = 77
	b := make([]byte, 1)
	if _, err := syscall.Pread(r.FD().Int(), b, 2*page+7); err != nil || b[0] != 77 {
		t.Errorf("the file has %d, %v; want 77: not shared", b[0], err)
	}
}

func TestMappedKnowsWhatAFrontEndShares(t *testing.T) {
	at := func(b []byte) uintptr { return reflect.ValueOf(b).Pointer() }
	r := mustMap(t, 0x1000, 3*page, 0x7000, 0, file(t, "mapped", 4*page))
	other := mustMap(t, 0x8000, page, 0x9000, 0, file(t, "mappedtoo", page))
	defer other.Release()
	first := at(r.Bytes())
	own := make([]byte, page)
	for _, tc := range []struct {
		what string
		addr uintptr
		want bool
	}{
		{"the first byte", first, true},
		{"the last byte", first + 3*page - 1, true},
		{"Go's memory", at(own), false},
		{"0", 0, false},
		{"the first page", 8, false},
		{"the last address", math.MaxUint, false},
	} {
		if got := guestmem.Mapped(tc.addr); got != tc.want {
			t.Errorf("%s: %v, want %v", tc.what, got, tc.want)
		}
	}
	runtime.KeepAlive(own)
	r.Release()
	if guestmem.Mapped(first) || !guestmem.Mapped(at(other.Bytes())) {
		t.Error("the region that is gone is mapped, or the one that is left is not")
	}
}

func TestMapTakesAnOffsetAndASizeThatAreNoPages(t *testing.T) {
	fd := file(t, "odd", 4*page)
	r := mustMap(t, 0x1003, page+5, 0x7003, page+3, fd)
	r.Bytes()[page-3] = 42 // the first byte of page 2
	b := make([]byte, 1)
	if _, err := syscall.Pread(fd.Int(), b, 2*page); err != nil || b[0] != 42 {
		t.Errorf("the file has %d, %v; want 42", b[0], err)
	}
	if len(r.Bytes()) != page+5 || cap(r.Bytes()) != page+5 {
		t.Errorf("len %d, cap %d, want %d", len(r.Bytes()), cap(r.Bytes()), page+5)
	}
	r.Release()
	if n := mapped(t, "odd"); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

func TestMapRefusesAndClosesTheDescriptor(t *testing.T) {
	for _, tc := range []struct {
		name                string
		gpa, size, uva, off uint64
		want                error
	}{
		{"size 0", 0, 0, 0, 0, guestmem.ErrSize},
		{"guest range overflows", math.MaxUint64 - page + 1, page, 0, 0, guestmem.ErrOverflow},
		{"guest range far over", math.MaxUint64, page, 0, 0, guestmem.ErrOverflow},
		{"user range overflows", 0, page, math.MaxUint64 - page + 1, 0, guestmem.ErrOverflow},
		{"size above the sign", 0, 1 << 63, 0, 0, guestmem.ErrOverflow},
		{"offset above the sign", 0, page, 0, 1 << 63, guestmem.ErrOverflow},
		{"offset at the limit", 0, page, 0, math.MaxInt64 - page + 1, guestmem.ErrOverflow},
		{"offset at the last number", 0, page, 0, math.MaxUint64, guestmem.ErrOverflow},
		{"offset and size overflow together", 0, 1 << 62, 0, 1 << 62, guestmem.ErrOverflow},
		{"rounding overflows", 0, math.MaxInt64 - page, 0, page - 1, guestmem.ErrOverflow},
		{"file ends before the offset", 0, page, 0, 4 * page, guestmem.ErrShort},
		{"file ends one byte early", 0, page + 1, 0, 3 * page, guestmem.ErrShort},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fd := file(t, "refused", 4*page)
			r, err := guestmem.Map(tc.gpa, tc.size, tc.uva, tc.off, fd)
			if r != nil || !errors.Is(err, tc.want) {
				t.Errorf("Map = %v, %v, want %v", r, err, tc.want)
			}
			var re *guestmem.RegionError
			if !errors.As(err, &re) || re.GuestPhys != tc.gpa || re.Size != tc.size {
				t.Errorf("error %v does not name the region", err)
			}
			if fd.Int() != -1 {
				t.Error("the descriptor is still open")
			}
			if n := mapped(t, "refused"); n != 0 {
				t.Errorf("%d mappings left", n)
			}
		})
	}
}

func TestMapRefusesWhatCannotBeMapped(t *testing.T) {
	efd, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guestmem.Map(0, page, 0, 0, efd); !errors.Is(err, guestmem.ErrFile) {
		t.Errorf("eventfd: %v, want %v", err, guestmem.ErrFile)
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd, err := syscall.Dup(int(null.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := guestmem.Map(0, page, 0, 0, sys.NewFD(fd)); err == nil {
		t.Error("a descriptor open for reading was mapped writable")
	}
	if _, err := guestmem.Map(0, page, 0, 0, sys.NewFD(-1)); !errors.Is(err, syscall.EBADF) {
		t.Errorf("closed descriptor: %v, want EBADF", err)
	}
}

func TestRegionIsUnmappedWithItsLastReference(t *testing.T) {
	fd := file(t, "life", 2*page)
	r := mustMap(t, 0, 2*page, 0x7000, 0, fd)
	a, err := guestmem.New(r)
	if err != nil {
		t.Fatal(err)
	}
	other := mustMap(t, 0x10000, page, 0x20000, 0, file(t, "life2", page))
	b, err := a.With(other)
	if err != nil {
		t.Fatal(err)
	}
	other.Release()
	c, err := b.Without(0, 2*page, 0x7000)
	if err != nil {
		t.Fatal(err)
	}
	a.Retain()
	for _, step := range []struct {
		name    string
		release func()
		n, n2   int
	}{
		{"creator's", r.Release, 1, 1},
		{"first generation's", a.Release, 1, 1},
		{"second generation's", b.Release, 1, 1},
		{"first generation's second", a.Release, 0, 1},
		{"third generation's", c.Release, 0, 0},
	} {
		step.release()
		if n, n2 := mapped(t, "life"), mapped(t, "life2"); n != step.n || n2 != step.n2 {
			t.Fatalf("after the %s release: %d and %d mappings, want %d and %d", step.name, n, n2, step.n, step.n2)
		}
	}
	if fd.Int() != -1 {
		t.Error("the descriptor is still open")
	}
}

func TestReleasingTooOftenPanics(t *testing.T) {
	r := mustMap(t, 0, page, 0, 0, file(t, "twice", page))
	m, err := guestmem.New(r)
	if err != nil {
		t.Fatal(err)
	}
	m.Release()
	r.Release()
	for name, f := range map[string]func(){
		"Region.Release": r.Release,
		"Memory.Release": m.Release,
		"Memory.Retain":  m.Retain,
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s after the last release did not panic", name)
				}
			}()
			f()
		}()
	}
	defer func() {
		if recover() == nil {
			t.Error("New with a released region did not panic")
		}
	}()
	_, _ = guestmem.New(r)
}

func TestNewRefusesRegionsThatOverlap(t *testing.T) {
	base := mustMap(t, 0x10000, 2*page, 0x70000, 0, file(t, "base", 2*page))
	defer base.Release()
	for _, tc := range []struct {
		name     string
		gpa, uva uint64
		ok       bool
	}{
		{"next to it on both sides", 0x10000 + 2*page, 0x70000 - 2*page, true},
		{"guest addresses, above", 0x10000 + page, 0x90000, false},
		{"guest addresses, below", 0x10000 - page, 0x90000, false},
		{"guest addresses, the same", 0x10000, 0x90000, false},
		{"user addresses, above", 0x90000, 0x70000 + 2*page - 1, false},
		{"user addresses, below", 0x90000, 0x70000 - 2*page + 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := mustMap(t, tc.gpa, 2*page, tc.uva, 0, file(t, "over", 2*page))
			m, err := guestmem.New(base, r)
			if tc.ok != (err == nil) || !tc.ok && !errors.Is(err, guestmem.ErrOverlap) {
				t.Errorf("New: %v", err)
			}
			if m != nil {
				m.Release()
			}
			r.Release()
			if n := mapped(t, "over"); n != 0 {
				t.Error("a refused region is still referred to")
			}
		})
	}
}

func TestMemoryHas509RegionsAndNoMore(t *testing.T) {
	var regions []*guestmem.Region
	for i := range uint64(guestmem.MaxRegions + 1) {
		regions = append(regions, mustMap(t, i*page, page, i*page, 0, file(t, "many", page)))
	}
	defer func() {
		for _, r := range regions {
			r.Release()
		}
	}()
	m, err := guestmem.New(regions[:guestmem.MaxRegions]...)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	if _, err := m.With(regions[guestmem.MaxRegions]); !errors.Is(err, guestmem.ErrTooMany) {
		t.Errorf("With: %v, want ErrTooMany", err)
	}
	all, err := m.AppendSlices(nil, 0, guestmem.MaxRegions*page)
	if err != nil || len(all) != guestmem.MaxRegions {
		t.Errorf("all of it in %d slices, %v", len(all), err)
	}
}

func TestWithoutNamesTheRegionItDoesNotFind(t *testing.T) {
	r := mustMap(t, 0x1000, page, 0x7000, 0, file(t, "r", page))
	m, err := guestmem.New(r)
	r.Release()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	for _, id := range [][3]uint64{{0, page, 0x7000}, {0x1000, 2 * page, 0x7000}, {0x1000, page, 0}} {
		if _, err := m.Without(id[0], id[1], id[2]); !errors.Is(err, guestmem.ErrUnknown) ||
			!strings.Contains(err.Error(), fmt.Sprintf("%#x", id[0])) {
			t.Errorf("Without(%#x): %v", id, err)
		}
	}
}

func TestEmptyMemoryTranslatesNothing(t *testing.T) {
	m, err := guestmem.New()
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	v := m.View()
	if _, ok := m.Slice(0, 1); ok {
		t.Error("Slice")
	}
	if _, ok := v.Slice(0, 0); ok {
		t.Error("View.Slice")
	}
	if _, ok := m.UserSlice(0, 0); ok {
		t.Error("UserSlice")
	}
	if _, err := m.AppendSlices(nil, 0, 1); err == nil {
		t.Error("AppendSlices")
	}
}

// TestTranslationAgreesWithAByteByByteModel compares every way of translating with a table that
// knows for each byte of a small address space which file's byte it is.
func TestTranslationAgreesWithAByteByByteModel(t *testing.T) {
	const space = 12 // pages
	rapid.Check(t, func(t *rapid.T) {
		type where struct{ region, off int }
		var (
			regions []*guestmem.Region
			byGuest = make(map[uint64]where)
			byUser  = make(map[uint64]where)
		)
		defer func() {
			for _, r := range regions {
				r.Release()
			}
		}()
		// Guest addresses are near the end of the address space in some runs.
		base := rapid.SampledFrom([]uint64{0, 1 << 32, math.MaxUint64 - space*page}).Draw(t, "base")
		order := rapid.Permutation([]int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}).Draw(t, "order")
		for p := 0; p < space; {
			n := rapid.IntRange(1, 3).Draw(t, "pages")
			if p+n > space {
				break
			}
			if rapid.Bool().Draw(t, "hole") {
				p += n
				continue
			}
			size := uint64(n * page)
			if rapid.Bool().Draw(t, "odd") {
				size -= 100
			}
			gpa, uva := base+uint64(p*page), uint64(order[p])<<20
			r := mustMap(t, gpa, size, uva, 0, file(t, "model", int64(n*page)))
			for i := range size {
				byGuest[gpa+i] = where{len(regions), int(i)}
				byUser[uva+i] = where{len(regions), int(i)}
			}
			regions = append(regions, r)
			p += n
		}
		m, err := guestmem.New(slices.Clone(regions)...)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Release()
		// oneRegion tells whether the n bytes are in one region, and gives them.
		oneRegion := func(at map[uint64]where, addr, n uint64) ([]byte, bool) {
			w, ok := at[addr]
			if !ok {
				return nil, false
			}
			for i := range n {
				if x, ok := at[addr+i]; !ok || x.region != w.region {
					return nil, false
				}
			}
			return regions[w.region].Bytes()[w.off:][:n], true
		}
		check := func(name string, got []byte, ok bool, want []byte, wantOK bool, addr, n uint64) {
			if ok != wantOK || len(got) != len(want) || cap(got) != len(got) ||
				ok && n > 0 && &got[0] != &want[0] {
				t.Fatalf("%s(%#x, %d) = %d bytes, cap %d, %v; want %d, %v", name, addr, n, len(got), cap(got), ok, len(want), wantOK)
			}
		}
		view := m.View()
		for range 20 {
			off := rapid.Uint64Range(0, space*page+10).Draw(t, "off")
			n := rapid.OneOf(rapid.Uint64Range(0, 40), rapid.Uint64Range(page-2, page+2),
				rapid.Uint64Range(0, 4*page)).Draw(t, "n")
			if rapid.Bool().Draw(t, "edge") {
				off = (off + page/2) / page * page
				off -= min(off, rapid.Uint64Range(0, 3).Draw(t, "before"))
			}
			addr := base + off
			want, wantOK := oneRegion(byGuest, addr, n)
			got, ok := m.Slice(addr, n)
			check("Slice", got, ok, want, wantOK, addr, n)
			got, ok = view.Slice(addr, n)
			check("View.Slice", got, ok, want, wantOK, addr, n)

			uva := uint64(rapid.IntRange(0, space-1).Draw(t, "user"))<<20 + off%(2*page)
			want, wantOK = oneRegion(byUser, uva, n)
			got, ok = m.UserSlice(uva, n)
			check("UserSlice", got, ok, want, wantOK, uva, n)

			var all []byte
			wantOK = true
			for i := range n {
				w, ok := byGuest[addr+i]
				if !ok || addr+i < addr {
					wantOK = false
					break
				}
				all = append(all, regions[w.region].Bytes()[w.off])
			}
			first := [][]byte{{1}}
			list, err := m.AppendSlices(first, addr, n)
			if (err == nil) != wantOK {
				t.Fatalf("AppendSlices(%#x, %d): %v, want ok %v", addr, n, err, wantOK)
			}
			if err != nil {
				var re *guestmem.RangeError
				if len(list) != 1 || !errors.As(err, &re) || re.Addr != addr || re.Len != n {
					t.Fatalf("AppendSlices(%#x, %d): %d slices, %v", addr, n, len(list), err)
				}
			} else if len(list) > 1+len(regions) || !bytes.Equal(bytes.Join(list[1:], nil), all) {
				t.Fatalf("AppendSlices(%#x, %d): wrong bytes, in %d slices", addr, n, len(list))
			}
		}
		for off := range uint64(3) {
			if _, ok := view.Slice(base+off, -off-1); ok {
				t.Fatalf("View.Slice of %#x bytes at %#x", -off-1, base+off)
			}
			if _, ok := view.Slice(base+1+off, -off-1); ok {
				t.Fatalf("View.Slice of %#x bytes at %#x", -off-1, base+1+off)
			}
		}
		for _, n := range []uint64{math.MaxUint64, math.MaxUint64 - base, 1 << 63} {
			if _, ok := view.Slice(base, n); ok {
				t.Fatalf("View.Slice of %#x bytes", n)
			}
			if _, ok := m.UserSlice(0, n); ok {
				t.Fatalf("UserSlice of %#x bytes", n)
			}
			if _, err := m.AppendSlices(nil, base, n); err == nil {
				t.Fatalf("AppendSlices of %#x bytes", n)
			}
		}
	})
}

func TestUint16LeavesItsNeighboursAlone(t *testing.T) {
	r := mustMap(t, 0, page, 0, 0, file(t, "u16", page))
	defer r.Release()
	b := r.Bytes()
	for _, at := range []int{0, 2, 4, 6, page - 4, page - 2} {
		for i := range b {
			b[i] = 0xa5
		}
		f, ok := guestmem.AtUint16(b[at:])
		if !ok {
			t.Fatalf("offset %d refused", at)
		}
		if got := f.Load(); got != 0xa5a5 {
			t.Errorf("offset %d: Load = %#x", at, got)
		}
		if !f.Store(0x1234) || f.Load() != 0x1234 {
			t.Errorf("offset %d: stored 0x1234, Load = %#x", at, f.Load())
		}
		for i := range b {
			want := byte(0xa5)
			switch i {
			case at:
				want = 0x34
			case at + 1:
				want = 0x12
			}
			if b[i] != want {
				t.Errorf("offset %d: byte %d is %#x, want %#x", at, i, b[i], want)
			}
		}
	}
	if _, ok := guestmem.AtUint16(b[1:]); ok {
		t.Error("odd address taken")
	}
	for at := range 4 {
		if _, ok := guestmem.AtUint32(b[at:]); ok != (at == 0) {
			t.Errorf("AtUint32 at %d: %v", at, ok)
		}
	}
	w, _ := guestmem.AtUint32(b[8:])
	w.Store(0x01020304)
	if w.Load() != 0x01020304 || b[8] != 4 || b[11] != 1 {
		t.Errorf("word %#x, bytes %x", w.Load(), b[8:12])
	}
}

func TestUint16HalvesOfAWordAreWrittenIndependently(t *testing.T) {
	r := mustMap(t, 0, page, 0, 0, file(t, "halves", page))
	defer r.Release()
	var wg sync.WaitGroup
	for _, at := range []int{0, 2} {
		f, _ := guestmem.AtUint16(r.Bytes()[at:])
		wg.Go(func() {
			for i := range uint16(20000) {
				if !f.Store(i) {
					continue // it gave up; the next turn tries again
				}
				if got := f.Load(); got != i {
					t.Errorf("offset %d: wrote %d, read %d", at, i, got)
					return
				}
			}
		})
	}
	wg.Wait()
}
