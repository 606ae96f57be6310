package guestmem_test

import (
	"errors"
	"math"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// bitmap reads the n bytes of a log's file from off on.
func bitmap(t interface{ Fatal(...any) }, fd *sys.FD, off int64, n int) []byte {
	b := make([]byte, n)
	if k, err := syscall.Pread(fd.Int(), b, off); err != nil || k != n {
		t.Fatal(k, err)
	}
	return b
}

func newLog(t interface{ Fatal(...any) }, size, off uint64) (*guestmem.Log, *sys.FD) {
	fd, err := sys.NewMemfd("log", int64(off+size))
	if err != nil {
		t.Fatal(err)
	}
	l, err := guestmem.NewLog(fd, size, off)
	if err != nil {
		t.Fatal(err)
	}
	return l, fd
}

// The bit of a page is where the specification has it: log[page / 8] |= 1 << page % 8.
func TestMarkSetsTheBitsOfThePagesWrittenAndNoOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Uint64Range(1, 2*page).Draw(t, "bytes")
		off := 8 * rapid.Uint64Range(0, page/4).Draw(t, "offset / 8")
		l, fd := newLog(t, size, off)
		defer fd.Close()
		defer l.Close()
		want := make([]byte, size)
		for range rapid.IntRange(1, 8).Draw(t, "marks") {
			addr := rapid.Uint64Range(0, size*8*page).Draw(t, "addr")
			n := rapid.OneOf(rapid.Uint64Range(0, 3), rapid.Uint64Range(0, 200*page)).Draw(t, "bytes written")
			covered := n == 0 || addr+n <= size*8*page
			if got := l.Covers(addr, n); got != covered {
				t.Fatalf("Covers(%#x, %#x) = %v", addr, n, got)
			}
			if got := l.Mark(addr, n); got != covered {
				t.Fatalf("Mark(%#x, %#x) = %v", addr, n, got)
			}
			for a := addr / page; covered && n > 0 && a <= (addr+n-1)/page; a++ {
				want[a/8] |= 1 << (a % 8)
			}
		}
		got := bitmap(t, fd, int64(off), int(size))
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("byte %d of the log is %08b, want %08b", i, got[i], want[i])
			}
		}
		for i, b := range bitmap(t, fd, 0, int(off)) {
			if b != 0 {
				t.Fatalf("byte %d before the log is %08b", i, b)
			}
		}
	})
}

func TestMarkRefusesWhatTheLogDoesNotCover(t *testing.T) {
	// The file has more bytes in the bitmap's last word, which are not the log's.
	fd, err := sys.NewMemfd("log", page)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	l, err := guestmem.NewLog(fd, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, r := range [][2]uint64{
		{8 * page, 1}, {8*page - 1, 2}, {0, 8*page + 1}, {9 * page, page}, {32 * page, 1}, {math.MaxUint64, 1},
		{math.MaxUint64, 2}, {math.MaxUint64 - page, 2 * page}, {1, math.MaxUint64},
	} {
		if l.Covers(r[0], r[1]) || l.Mark(r[0], r[1]) {
			t.Errorf("%#x bytes from %#x are covered", r[1], r[0])
		}
	}
	for i, b := range bitmap(t, fd, 0, page) {
		if b != 0 {
			t.Errorf("byte %d is %08b", i, b)
		}
	}
	if !l.Mark(0, 8*page) {
		t.Error("the whole log is not covered")
	}
	if b := bitmap(t, fd, 0, 2); b[0] != 0xff || b[1] != 0 {
		t.Errorf("all pages marked: %08b", b)
	}
}

// Queues on other CPUs, and other back-ends of the same front-end, mark in the same words.
func TestMarksAreNotLostToOthersInTheSameWord(t *testing.T) {
	const size = 1 << 18
	l, fd := newLog(t, size, 0)
	defer fd.Close()
	defer l.Close()
	other, err := guestmem.NewLog(fd, size, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	// Step in step, so that they meet.
	var arrived atomic.Uint64
	var wg sync.WaitGroup
	for i, l := range []*guestmem.Log{l, other} {
		wg.Go(func() {
			for word := uint64(0); word < size/4; word++ {
				arrived.Add(1)
				for spins := 0; arrived.Load() < 2*(word+1); spins++ {
					if spins > 1000 {
						runtime.Gosched()
					}
				}
				for p := uint64(i); p < 32; p += 2 {
					l.Mark((32*word+p)*page, 1)
				}
			}
		})
	}
	wg.Wait()
	for i, b := range bitmap(t, fd, 0, size) {
		if b != 0xff {
			t.Fatalf("marks are missing in byte %d: %08b", i, b)
		}
	}
}

func TestNewLogRefusesAndLeavesTheDescriptor(t *testing.T) {
	for _, tc := range []struct {
		name      string
		size, off uint64
		want      error
	}{
		{"size 0", 0, 0, guestmem.ErrSize},
		{"odd offset", 8, 4, guestmem.ErrAlign},
		{"file ends before the offset", 8, 4 * page, guestmem.ErrShort},
		{"file ends one byte early", 2*page + 1, 2 * page, guestmem.ErrShort},
		{"size overflows", math.MaxUint64, 8, guestmem.ErrOverflow},
		{"size above the sign", 1 << 63, 0, guestmem.ErrOverflow},
		{"offset above the sign", 8, 1 << 63, guestmem.ErrOverflow},
		{"both overflow", 1 << 62, 1 << 62, guestmem.ErrOverflow},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fd := file(t, "refusedlog", 4*page)
			defer fd.Close()
			l, err := guestmem.NewLog(fd, tc.size, tc.off)
			if l != nil || !errors.Is(err, tc.want) {
				t.Errorf("NewLog = %v, %v, want %v", l, err, tc.want)
			}
			var le *guestmem.LogError
			if !errors.As(err, &le) || le.Size != tc.size || le.Offset != tc.off {
				t.Errorf("error %v does not name the log", err)
			}
			if n := mapped(t, "refusedlog"); n != 0 {
				t.Errorf("%d mappings left", n)
			}
		})
	}
	efd, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer efd.Close()
	if _, err := guestmem.NewLog(efd, 8, 0); !errors.Is(err, guestmem.ErrFile) {
		t.Errorf("eventfd: %v, want %v", err, guestmem.ErrFile)
	}
}

func TestALogOutlivesItsDescriptorAndIsUnmappedByClose(t *testing.T) {
	fd, err := sys.NewMemfd("closedlog", page)
	if err != nil {
		t.Fatal(err)
	}
	l, err := guestmem.NewLog(fd, page, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd.Close()
	if !l.Mark(0, 1) || mapped(t, "closedlog") != 1 {
		t.Error("the log is gone with its descriptor")
	}
	l.Close()
	if n := mapped(t, "closedlog"); n != 0 {
		t.Errorf("%d mappings left", n)
	}
}

func BenchmarkMark(b *testing.B) {
	for _, bc := range []struct {
		name string
		n    uint64
	}{{"one page", 1}, {"64 KiB", 64 << 10}} {
		b.Run(bc.name, func(b *testing.B) {
			l, fd := newLog(b, page, 0)
			defer fd.Close()
			defer l.Close()
			b.ReportAllocs()
			for b.Loop() {
				l.Mark(0x123456, bc.n)
			}
		})
	}
}
