package disk

import (
	"bytes"
	"math"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"vdev/devsw"
)

func TestCheckAnswersAsNetBSDDoes(t *testing.T) {
	const kib = 1024
	plain := Bounds{Size: 64 * kib, High: 64 * kib, Sector: 512}
	large := Bounds{Size: 64 * kib, High: 64 * kib, Sector: 4096}
	readOnly := Bounds{Size: 64 * kib, High: 64 * kib, Sector: 512, ReadOnly: true}
	shrunk := Bounds{Size: 32 * kib, High: 64 * kib, Sector: 512}
	for _, c := range []struct {
		name   string
		m      Bounds
		op     devsw.Op
		blkno  int64
		bcount int64
		n      int64 // 0: ended
		err    devsw.Errno
		resid  int64
	}{
		{"the first sector", plain, devsw.BRead, 0, 512, 512, 0, 0},
		{"the whole disk", plain, devsw.BWrite, 0, 64 * kib, 64 * kib, 0, 0},
		{"the last sector", plain, devsw.BWrite, 127, 512, 512, 0, 0},
		{"nothing", plain, devsw.BRead, 5, 0, 0, 0, 0},
		{"nothing, far beyond the end", plain, devsw.BRead, 1 << 40, 0, 0, 0, 0},
		{"part of a sector", plain, devsw.BRead, 0, 513, 0, devsw.EINVAL, 513},
		{"a negative length", plain, devsw.BRead, 0, -512, 0, devsw.EINVAL, -512},
		{"before the start", plain, devsw.BRead, -1, 512, 0, devsw.EINVAL, 512},
		{"at the end", plain, devsw.BRead, 128, 512, 0, 0, 512},
		{"a write at the end", plain, devsw.BWrite, 128, 512, 0, 0, 512},
		{"across the end", plain, devsw.BRead, 127, 1024, 512, 0, 0},
		{"beyond the end", plain, devsw.BRead, 129, 512, 0, devsw.EINVAL, 512},
		{"where bytes no longer count", plain, devsw.BRead, math.MaxInt64, 512, 0, devsw.EINVAL, 512},
		{"as long as it goes", plain, devsw.BRead, 1, math.MaxInt64 &^ 511, 63*kib + 512, 0, 0},
		{"half of a large sector", large, devsw.BRead, 0, 512, 0, devsw.EINVAL, 512},
		{"between large sectors", large, devsw.BRead, 1, 4096, 0, devsw.EINVAL, 4096},
		{"a large sector", large, devsw.BRead, 8, 4096, 4096, 0, 0},
		{"a write to a read-only disk", readOnly, devsw.BWrite, 0, 512, 0, devsw.EROFS, 512},
		{"a read of a read-only disk", readOnly, devsw.BRead, 0, 512, 512, 0, 0},
		{"within what has gone", shrunk, devsw.BRead, 100, 512, 0, devsw.EIO, 512},
		{"where what has gone began", shrunk, devsw.BWrite, 64, 512, 0, devsw.EIO, 512},
		{"into what has gone", shrunk, devsw.BWrite, 63, 1024, 0, devsw.EIO, 1024},
		{"across the old end", shrunk, devsw.BRead, 127, 1024, 0, devsw.EINVAL, 1024},
		{"across both ends", shrunk, devsw.BRead, 0, 65 * kib, 32 * kib, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			ended := false
			b := &devsw.Buf{Op: c.op, Blkno: c.blkno, Bcount: c.bcount, Iodone: func(*devsw.Buf) { ended = true }}
			off, n, ok := Check(b, c.m)
			if ok == ended {
				t.Fatalf("ok %v, and biodone %v", ok, ended)
			}
			if ok {
				if off != c.blkno*512 || n != c.n {
					t.Fatalf("%d bytes at %d, want %d at %d", n, off, c.n, c.blkno*512)
				}
				return
			}
			if c.n != 0 || b.Error != c.err || b.Resid != c.resid {
				t.Fatalf("ended with error %v and resid %d, want %d bytes, error %v and resid %d", b.Error, b.Resid, c.n, c.err, c.resid)
			}
		})
	}
}

func TestCheckNeverLetsATransferOutOfTheMedium(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sector := rapid.SampledFrom([]int64{512, 4096}).Draw(t, "sector")
		size := rapid.Int64Range(0, math.MaxInt64/sector).Draw(t, "size") * sector
		high := size
		if rapid.Bool().Draw(t, "shrunk") {
			high = rapid.Int64Range(size/sector, math.MaxInt64/sector).Draw(t, "high") * sector
		}
		blkno := rapid.Int64().Draw(t, "blkno")
		if rapid.Bool().Draw(t, "near") {
			blkno = size/512 + rapid.Int64Range(-16, 16).Draw(t, "around")
		}
		b := &devsw.Buf{Blkno: blkno, Bcount: rapid.Int64().Draw(t, "bcount")}
		if rapid.Bool().Draw(t, "whole") {
			b.Bcount = rapid.Int64Range(0, 1<<20).Draw(t, "count") * sector
		}
		off, n, ok := Check(b, Bounds{Size: size, High: high, Sector: sector})
		if !ok {
			return
		}
		if off < 0 || n <= 0 || n > b.Bcount || off > size || n > size-off || off%sector != 0 || n%sector != 0 {
			t.Fatalf("%d bytes at %d of %d", n, off, size)
		}
	})
}

// TestWithinIsCheckForTheUsualCase: what within lets through Check lets through whole, and nothing
// that Check lets through whole is left to it.
func TestWithinIsCheckForTheUsualCase(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sector := rapid.SampledFrom([]uint32{512, 4096}).Draw(t, "sector")
		m := NewBase(devsw.DiskInfo{SectorSize: sector, ReadOnly: rapid.Bool().Draw(t, "read-only"),
			Size: rapid.Int64Range(0, 1<<24).Draw(t, "size") * int64(sector)})
		if rapid.Bool().Draw(t, "shrunk") {
			m.Resize(m.size.Load() / 2)
		}
		b := &devsw.Buf{Op: rapid.SampledFrom([]devsw.Op{devsw.BRead, devsw.BWrite}).Draw(t, "op"), Bcount: rapid.Int64().Draw(t, "bcount")}
		b.Blkno = rapid.OneOf(rapid.Int64(), rapid.Int64Range(-16, m.size.Load()/512+16)).Draw(t, "blkno")
		switch rapid.IntRange(0, 3).Draw(t, "like") {
		case 0:
		case 1: // the byte offset is too large to count
			b.Blkno |= math.MaxInt64/512 + 1
			fallthrough
		default:
			b.Blkno &^= int64(sector)/512 - 1
			b.Bcount = rapid.Int64Range(0, 64).Draw(t, "count") * int64(sector)
		}
		off, ok := m.within(b)
		checked, n, all := Check(b, m.Bounds())
		if all = all && n == b.Bcount; ok != all || ok && off != checked {
			t.Fatalf("%v at %d, Check says %v at %d", ok, off, all, checked)
		}
	})
}

func TestCheckRange(t *testing.T) {
	m := Bounds{Size: 8192, High: 16384, Sector: 4096}
	for _, c := range []struct {
		pos, n int64
		want   error
	}{
		{0, 8192, nil},
		{4096, 0, nil},
		{8192, 0, nil},
		{0, 512, devsw.EINVAL},
		{512, 4096, devsw.EINVAL},
		{-4096, 4096, devsw.EINVAL},
		{0, -4096, devsw.EINVAL},
		{4096, 8192, devsw.EIO},
		{12288, 8192, devsw.EINVAL},
		{4096, math.MaxInt64 &^ 4095, devsw.EINVAL},
		{math.MaxInt64 &^ 4095, 4096, devsw.EINVAL},
	} {
		if err := checkRange(c.pos, c.n, m); err != c.want {
			t.Errorf("%d bytes at %d: %v, want %v", c.n, c.pos, err, c.want)
		}
	}
	m.ReadOnly = true
	if err := checkRange(0, 4096, m); err != devsw.EROFS {
		t.Errorf("read-only: %v, want EROFS", err)
	}
}

// ram is a strategy over memory, whose end it respects as Check has it, on a goroutine of its own.
func ram(mem []byte, wg *sync.WaitGroup) func(*devsw.Buf) {
	return func(b *devsw.Buf) {
		wg.Go(func() {
			off, n, ok := Check(b, Bounds{Size: int64(len(mem)), High: int64(len(mem)), Sector: 512})
			if !ok {
				return
			}
			b.Error = b.MoveAt(mem[off:off+n], 0)
			b.Resid = b.Bcount - n
			b.Biodone()
		})
	}
}

func TestPhysioMovesWhatAUioHasAndIsShortAtTheEnd(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	mem := make([]byte, 3<<20)
	strategy := ram(mem, &wg)

	data := bytes.Repeat([]byte("0123456789abcdef"), 2<<20/16)
	w := devsw.NewUio(devsw.UIOWrite, data[:100], nil, data[100:1<<20], data[1<<20:])
	w.Offset = 512
	if err := physio(strategy, 0, w); err != nil || w.Resid != 0 || w.Offset != 512+2<<20 || len(w.Iov) != 0 {
		t.Fatalf("write: %v, resid %d, offset %d, %d pieces left", err, w.Resid, w.Offset, len(w.Iov))
	}
	if !bytes.Equal(mem[512:512+2<<20], data) {
		t.Error("the disk does not have what was written")
	}

	got := make([]byte, 4<<20)
	r := devsw.NewUio(devsw.UIORead, got)
	r.Offset = 1 << 20
	if err := physio(strategy, 0, r); err != nil || r.Resid != 2<<20 || r.Offset != 3<<20 {
		t.Fatalf("read to the end: %v, resid %d, offset %d", err, r.Resid, r.Offset)
	}
	if !bytes.Equal(got[:2<<20], mem[1<<20:]) {
		t.Error("what was read is not what the disk has")
	}
	if err := physio(strategy, 0, r); err != nil || r.Resid != 2<<20 {
		t.Errorf("read at the end: %v, resid %d", err, r.Resid)
	}
}

func TestPhysioRefusesPartsOfSectors(t *testing.T) {
	var wg sync.WaitGroup
	defer wg.Wait()
	strategy := ram(make([]byte, 4096), &wg)
	for _, off := range []int64{-512, 1, 511} {
		u := devsw.NewUio(devsw.UIORead, make([]byte, 512))
		u.Offset = off
		if err := physio(strategy, 0, u); err != devsw.EINVAL || u.Resid != 512 {
			t.Errorf("at %d: %v, resid %d, want EINVAL and 512", off, err, u.Resid)
		}
	}
	u := devsw.NewUio(devsw.UIOWrite, make([]byte, 100))
	if err := physio(strategy, 0, u); err != devsw.EINVAL || u.Resid != 100 {
		t.Errorf("100 bytes: %v, resid %d, want EINVAL and 100", err, u.Resid)
	}
}

func TestZeroClearsPartOfATransfer(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var data [][]byte
		for range rapid.IntRange(1, 5).Draw(t, "pieces") {
			data = append(data, bytes.Repeat([]byte{1}, rapid.IntRange(0, 100<<10).Draw(t, "length")))
		}
		total := int64(len(bytes.Join(data, nil)))
		off := rapid.Int64Range(0, total).Draw(t, "off")
		n := rapid.Int64Range(0, total-off).Draw(t, "n")
		if e := Zero(&devsw.Buf{Op: devsw.BRead, Data: data, Bcount: total}, off, n); e != 0 {
			t.Fatal(e)
		}
		want := bytes.Repeat([]byte{1}, int(total))
		clear(want[off : off+n])
		if !bytes.Equal(bytes.Join(data, nil), want) {
			t.Fatal("something else was cleared")
		}
	})
}
