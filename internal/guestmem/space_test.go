package guestmem

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/internal/test/hangfs"
)

func TestWhatMayBeMappedIsAShareOfTheAddressSpace(t *testing.T) {
	const tib = 1 << 40
	for _, c := range []struct {
		space, limit, mappings uint64
		one, all               held
	}{
		{128 * tib, math.MaxUint64, 65530, held{16 * tib, 1024}, held{96 * tib, 32765}},
		{1 << 39, math.MaxUint64, 65530, held{1 << 36, 1024}, held{3 << 37, 32765}},
		{128 * tib, 1 << 36, 65530, held{3 << 34, 1024}, held{3 << 34, 32765}},
		{128 * tib, math.MaxUint64, 1000, held{16 * tib, 500}, held{96 * tib, 500}},
	} {
		got := limitsOf(c.space, c.limit, c.mappings)
		if got.one != c.one || got.all != c.all {
			t.Errorf("of %#x bytes, %#x at most, and %d mappings: %+v, want %+v and %+v", c.space, c.limit, c.mappings, got, c.one, c.all)
		}
		if again := got.again(); again.all.bytes >= min(c.space, c.limit) || again.all.bytes <= got.all.bytes {
			t.Errorf("what is mapped again may take %#x bytes", again.all.bytes)
		}
	}
	if got := hostLimits(); got.one.bytes == 0 || got.one.bytes > got.all.bytes || got.all.bytes >= sys.AddressSpace() {
		t.Errorf("the limits of this host are %+v", got)
	}
}

func TestASpaceTakesNoMoreThanItMay(t *testing.T) {
	page := uint64(sys.PageSize())
	l := limits{one: held{4 * page, 3}, all: held{6 * page, 100}}
	// What other tests of the package have mapped does not count.
	mappings.mu.Lock()
	before := mappings.held
	l.all = l.all.plus(before)
	mappings.mu.Unlock()
	var a, b Space
	try := func(s *Space, pages uint64) *Region {
		t.Helper()
		fd, err := sys.NewMemfd("space", int64(pages*page))
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.mapRegion(0, pages*page, 0, 0, fd, l)
		if err != nil && !errors.Is(err, ErrSpace) {
			t.Fatal(err)
		}
		if err != nil && !strings.Contains(err.Error(), "and may") {
			t.Errorf("%q does not name the bound", err)
		}
		return r
	}
	if try(&a, 5) != nil {
		t.Error("one region larger than the bound was taken")
	}
	first, second := try(&a, 2), try(&a, 2)
	if first == nil || second == nil {
		t.Fatal("what is within the bound was refused")
	}
	if try(&a, 1) != nil {
		t.Error("a front-end has more than it may")
	}
	if try(&b, 3) != nil {
		t.Error("all front-ends together have more than they may")
	}
	third := try(&b, 2)
	if third == nil {
		t.Fatal("one front-end keeps another from what it may have")
	}
	first.Release()
	second.Release()
	var small []*Region
	for r := try(&a, 1); r != nil; r = try(&a, 1) {
		small = append(small, r)
	}
	if len(small) != 3 {
		t.Errorf("%d small mappings, want 3", len(small))
	}
	for _, r := range append(small, third) {
		r.Release()
	}
	if a.held != (held{}) || b.held != (held{}) || mappings.held != before {
		t.Errorf("held after the end: %+v, %+v, %+v", a.held, b.held, mappings.held)
	}
}

func TestARefusedMappingDoesNotCount(t *testing.T) {
	var s Space
	fd, err := sys.NewSealedMemfd("refused", int64(sys.PageSize()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Map(0, uint64(2*sys.PageSize()), 0, 0, fd); !errors.Is(err, ErrShort) {
		t.Errorf("a short file: %v", err)
	}
	read, err := sys.OpenFile("/dev/shm", sys.OpenFlags{})
	if err != nil {
		t.Skipf("there is no tmpfs at /dev/shm: %v", err)
	}
	if _, err := s.Map(0, uint64(sys.PageSize()), 0, 0, read); err == nil {
		t.Error("a folder was mapped")
	}
	// The size fits, and the host refuses.
	file, err := os.CreateTemp("/dev/shm", "vdev-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if err := file.Truncate(int64(sys.PageSize())); err != nil {
		t.Fatal(err)
	}
	if read, err = sys.OpenFile(file.Name(), sys.OpenFlags{}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Map(0, uint64(sys.PageSize()), 0, 0, read); !errors.Is(err, syscall.EACCES) {
		t.Errorf("a file that is open for reading only: %v, want %v", err, syscall.EACCES)
	}
	if s.held != (held{}) {
		t.Errorf("held: %+v", s.held)
	}
}

// TestWhatIsMappedAgainHasRoomBeyondTheBound: a front-end that has all that it may have can be
// fenced.
func TestWhatIsMappedAgainHasRoomBeyondTheBound(t *testing.T) {
	page := uint64(sys.PageSize())
	was := hostLimits
	defer func() { hostLimits = was }()
	mappings.mu.Lock()
	l := limits{one: held{2 * page, 3}, all: mappings.held.plus(held{4 * page, 3})}
	mappings.mu.Unlock()
	hostLimits = func() limits { return l }
	var s Space
	full := func() (*Region, error) {
		fd, err := sys.NewMemfd("again", int64(2*page))
		if err != nil {
			t.Fatal(err)
		}
		return s.Map(0, 2*page, 0, 0, fd)
	}
	r, err := full()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := full(); !errors.Is(err, ErrSpace) {
		t.Errorf("more than it may have: %v, want %v", err, ErrSpace)
	}
	again, err := r.Again()
	if err != nil {
		t.Fatalf("mapped again: %v", err)
	}
	if _, err := r.Again(); !errors.Is(err, ErrSpace) {
		t.Errorf("once more: %v, want %v", err, ErrSpace)
	}
	again.Release()
	r.Release()
}

// TestMemoryIsUnmappedElsewhere where who gives it back must not wait.
func TestMemoryIsUnmappedElsewhere(t *testing.T) {
	space := new(Space)
	const generations = 3
	var all []*Memory
	for range generations {
		fd, err := sys.NewMemfd("guest", 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		r, err := space.Map(0, 1<<20, 0, 0, fd)
		if err != nil {
			t.Fatal(err)
		}
		m, err := New(r)
		if err != nil {
			t.Fatal(err)
		}
		r.Release()
		all = append(all, m)
	}
	held := func() int {
		mappings.mu.Lock()
		defer mappings.mu.Unlock()
		return int(space.held.count)
	}
	if n := held(); n != generations {
		t.Fatalf("%d mappings, want %d", n, generations)
	}
	mappings.mu.Lock() // nothing can be unmapped
	for _, m := range all {
		m.ReleaseSoon()
	}
	mappings.mu.Unlock()
	for end := time.Now().Add(30 * time.Second); held() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d mappings are left", held())
		}
	}
}

// TestNoSpaceWaitsForAnothersMemory where that takes long to be unmapped: here for a file whose
// server does not answer the close.
func TestNoSpaceWaitsForAnothersMemory(t *testing.T) {
	dir, point := t.TempDir(), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "memory"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	fs, err := hangfs.Mount(dir, point, hangfs.Config{})
	if errors.Is(err, hangfs.ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	slow, err := sys.OpenFile(filepath.Join(point, "memory"), sys.OpenFlags{Write: true})
	if err != nil {
		t.Fatal(err)
	}
	fast, err := sys.NewMemfd("guest", 4096)
	if err != nil {
		t.Fatal(err)
	}
	count := func(s *Space) uint64 {
		mappings.mu.Lock()
		defer mappings.mu.Unlock()
		return s.held.count
	}
	spaces := [2]Space{{AnyFiles: true}, {}}
	var all [2]*Memory
	for i, fd := range []*sys.FD{slow, fast} {
		r, err := spaces[i].Map(0, 4096, 0, 0, fd)
		if err != nil {
			t.Fatal(err)
		}
		if all[i], err = New(r); err != nil {
			t.Fatal(err)
		}
		r.Release()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	fs.Hold(hangfs.Flush)
	all[0].ReleaseSoon()
	if err := fs.Await(ctx, hangfs.Flush, 1); err != nil {
		t.Fatal(err)
	}
	all[1].ReleaseSoon()
	for count(&spaces[1]) > 0 {
		if ctx.Err() != nil {
			t.Error("it waits for the other one's")
			break
		}
		time.Sleep(time.Millisecond)
	}
	fs.Release(hangfs.Flush)
}
