package devsw

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// sectionFunc is a Section made of a function.
type sectionFunc func()

func (f sectionFunc) Leave(bool) { f() }

// mustPanic runs f and gives what it panicked with.
func mustPanic(t *testing.T, f func()) (msg string) {
	t.Helper()
	defer func() {
		r := recover()
		if r == nil {
			t.Fatal("no panic")
		}
		msg, _ = r.(string)
	}()
	f()
	return ""
}

func TestBiodoneCallsIodoneThenLeavesTheSection(t *testing.T) {
	var order []string
	b := &Buf{Iodone: func(*Buf) { order = append(order, "iodone") }}
	b.SetSection(sectionFunc(func() { order = append(order, "leave") }))
	b.Biodone()
	if want := []string{"iodone", "leave"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestBiodoneTwicePanics(t *testing.T) {
	for _, inContext := range []bool{false, true} {
		calls := 0
		b := &Buf{Op: BWrite, Dev: Makedev(19, 3), InContext: inContext, Iodone: func(*Buf) { calls++ }}
		b.Biodone()
		msg := mustPanic(t, b.Biodone)
		if !strings.Contains(msg, "biodone twice") || !strings.Contains(msg, "write") || !strings.Contains(msg, "19,3") {
			t.Errorf("the panic says %q, which does not name the transfer", msg)
		}
		if calls != 1 {
			t.Errorf("in context %v: Iodone was called %d times", inContext, calls)
		}
	}
}

func TestBiodoneOnManyGoroutinesSucceedsOnce(t *testing.T) {
	for range 100 {
		calls := make(chan struct{}, 8)
		b := &Buf{Iodone: func(*Buf) { calls <- struct{}{} }}
		panics := make(chan bool)
		for range 4 {
			go func() {
				defer func() { panics <- recover() != nil }()
				b.Biodone()
			}()
		}
		n := 0
		for range 4 {
			if <-panics {
				n++
			}
		}
		if n != 3 || len(calls) != 1 {
			t.Fatalf("%d panics and %d Iodone calls, want 3 and 1", n, len(calls))
		}
	}
}

// An issuer may use the Buf again from within Iodone; the old section is left
// all the same, and the new one is not.
func TestBufMayBeRearmedInIodone(t *testing.T) {
	var left []int
	b := &Buf{Bcount: 512}
	b.Iodone = func(b *Buf) {
		if b.Error != EIO || b.Resid != 512 {
			t.Errorf("Error %v and Resid %d, want EIO and 512", b.Error, b.Resid)
		}
		b.Rearm()
		b.Iodone = nil
		b.SetSection(sectionFunc(func() { left = append(left, 2) }))
	}
	b.SetSection(sectionFunc(func() { left = append(left, 1) }))
	b.Fail(EIO)
	if want := []int{1}; !slices.Equal(left, want) {
		t.Errorf("sections left: %v, want %v", left, want)
	}
	if b.Error != 0 || b.Resid != 0 {
		t.Errorf("Rearm left Error %v and Resid %d", b.Error, b.Resid)
	}
	b.Biodone()
	if want := []int{1, 2}; !slices.Equal(left, want) {
		t.Errorf("sections left: %v, want %v", left, want)
	}
}

func TestResetKeepsOnlyTheCapacityOfData(t *testing.T) {
	b := &Buf{Op: BWrite, Flags: BMediaFUA, Dev: 1, Blkno: 2, Data: make([][]byte, 3, 8), Bcount: 4,
		Iodone: func(*Buf) {}, Context: 5, Resid: 6, Error: EIO}
	b.Data[0] = make([]byte, 1)
	b.Biodone()
	b.Reset()
	if len(b.Data) != 0 || cap(b.Data) != 8 || b.Data[:1][0] != nil {
		t.Errorf("Data after Reset: len %d cap %d %v", len(b.Data), cap(b.Data), b.Data[:1])
	}
	b.Data = nil
	if b.Op != 0 || b.Flags != 0 || b.Dev != 0 || b.Blkno != 0 || b.Bcount != 0 || b.Iodone != nil ||
		b.AIO != nil || b.Context != nil || b.Resid != 0 || b.Error != 0 {
		t.Errorf("after Reset: %+v", b)
	}
	b.Biodone() // may end again
}

func TestMoveAtCopiesInTheTransfersDirection(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		data := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 5), 0, 6).Draw(t, "data")
		off := rapid.Int64Range(0, 24).Draw(t, "off")
		p := rapid.SliceOfN(rapid.Byte(), 0, 24).Draw(t, "p")
		op := rapid.SampledFrom([]Op{BRead, BWrite}).Draw(t, "op")

		whole := bytes.Join(data, nil)
		wantP := slices.Clone(p)
		if off < int64(len(whole)) {
			if op == BRead {
				copy(whole[off:], p)
			} else {
				copy(wantP, whole[off:])
			}
		}
		b := &Buf{Op: op, Data: data}
		if err := b.MoveAt(p, off); err != 0 {
			t.Fatalf("MoveAt: %v", err)
		}
		if got := bytes.Join(data, nil); !bytes.Equal(got, whole) {
			t.Fatalf("Data %v, want %v", got, whole)
		}
		if !bytes.Equal(p, wantP) {
			t.Fatalf("p %v, want %v", p, wantP)
		}
	})
}

func TestMoveAtDoesNotHideOtherPanics(t *testing.T) {
	b := &Buf{Data: [][]byte{make([]byte, 4)}}
	defer func() {
		if recover() == nil {
			t.Error("MoveAt at a negative offset did not panic")
		}
	}()
	b.MoveAt(make([]byte, 4), -1)
}

// BenchmarkMoveAt tells what catching faults costs: the copy itself is of 512
// bytes.
func BenchmarkMoveAt(b *testing.B) {
	buf := &Buf{Data: [][]byte{make([]byte, 512)}}
	p := make([]byte, 512)
	b.ReportAllocs()
	for b.Loop() {
		if err := buf.MoveAt(p, 0); err != 0 {
			b.Fatal(err)
		}
	}
}
