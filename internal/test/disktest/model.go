package disktest

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/internal/sys"
)

// Disk is a disk under test, open for reading and writing.
type Disk struct {
	Table *devsw.Table
	Dev   devsw.Dev
	AIO   devsw.AIO    // of the Bufs; nil: none
	Run   func(func()) // runs a function in the context of AIO; nil: here
	// what the disk holds; Check starts from it, and leaves it as the disk is
	Want      []byte
	Sector    int64 // bytes
	NoDiscard bool  // d_discard answers ENODEV or EOPNOTSUPP
	Undefined bool  // what was discarded may read as anything
}

// Check does random transfers, several at a time where they do not overlap, and compares the disk
// with an array of bytes.
func (d *Disk) Check(t *rapid.T) {
	t.Repeat(map[string]func(*rapid.T){
		"transfers": d.transfers,
		"discard":   d.discard,
		"zeroes":    d.zeroes,
		"flush": func(t *rapid.T) {
			if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
				return // it is slow, and changes nothing that can be seen
			}
			if err := d.Table.BdevIoctl(d.Dev, devsw.DIOCCACHESYNC, nil, devsw.FWRITE); err != nil {
				t.Fatalf("flush: %v", err)
			}
		},
		"": func(*rapid.T) {},
	})
	got := make([]byte, len(d.Want))
	if b := d.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 || b.Resid != 0 {
		t.Fatalf("reading the whole disk: error %v, resid %d", b.Error, b.Resid)
	}
	d.compare(t, 0, got)
}

// Transfer does one transfer at byte off, and waits for it.
func (d *Disk) Transfer(op devsw.Op, flags devsw.BufFlag, off int64, data ...[]byte) *devsw.Buf {
	b, done := d.Buf(op, flags, off, data...)
	d.Issue(b)
	d.Wait(done)
	return b
}

// Buf makes a Buf for a transfer at byte off. done is closed by its biodone.
func (d *Disk) Buf(op devsw.Op, flags devsw.BufFlag, off int64, data ...[]byte) (b *devsw.Buf, done chan struct{}) {
	done = make(chan struct{})
	b = &devsw.Buf{Op: op, Flags: flags, Dev: d.Dev, Blkno: off / devsw.DEVBSIZE, Data: data, Iodone: func(*devsw.Buf) { close(done) }}
	for _, p := range data {
		b.Bcount += int64(len(p))
	}
	b.AIO = d.AIO
	return b, done
}

// Issue starts a transfer, in the context of its AIO.
func (d *Disk) Issue(b *devsw.Buf) {
	if d.Run == nil {
		d.Table.BdevStrategy(b)
		return
	}
	d.Run(func() { d.Table.BdevStrategy(b) })
}

// Wait waits until a Buf has ended, and carries out what its AIO has been given where that is one
// of this package.
func (d *Disk) Wait(done chan struct{}) {
	if a, ok := d.AIO.(*AIO); ok {
		a.Drain()
	}
	<-done
}

func (d *Disk) sectors() int64 { return int64(len(d.Want)) / d.Sector }

// extent draws a range of whole sectors, in bytes.
func (d *Disk) extent(t *rapid.T) (off, n int64) {
	first := rapid.Int64Range(0, d.sectors()-1).Draw(t, "first")
	count := rapid.Int64Range(1, min(d.sectors()-first, 40)).Draw(t, "count")
	return first * d.Sector, count * d.Sector
}

// memory makes n bytes of memory in pieces, at addresses of any alignment.
func memory(t *rapid.T, n int64) [][]byte {
	var data [][]byte
	for n > 0 {
		k := n
		if rapid.Bool().Draw(t, "split") {
			k = rapid.Int64Range(1, n).Draw(t, "piece")
		}
		skip := 0
		if rapid.Bool().Draw(t, "unaligned") {
			skip = rapid.IntRange(1, 511).Draw(t, "skip")
		}
		data = append(data, sys.AlignedBuffer(int(k)+skip, 4096)[skip:])
		n -= k
	}
	return data
}

// transfers does up to six transfers at once that do not overlap.
func (d *Disk) transfers(t *rapid.T) {
	type running struct {
		b    *devsw.Buf
		off  int64
		done chan struct{}
	}
	var (
		all   []running
		taken = make([]bool, d.sectors())
	)
	for range rapid.IntRange(1, 6).Draw(t, "transfers") {
		off, n := d.extent(t)
		span := taken[off/d.Sector : (off+n)/d.Sector]
		if slices.Contains(span, true) {
			continue
		}
		for i := range span {
			span[i] = true
		}
		op := rapid.SampledFrom([]devsw.Op{devsw.BRead, devsw.BWrite}).Draw(t, "op")
		var flags devsw.BufFlag
		data := memory(t, n)
		if op == devsw.BWrite {
			if rapid.IntRange(0, 7).Draw(t, "fua") == 0 {
				flags = devsw.BMediaFUA
			}
			src := rand.NewChaCha8([32]byte{byte(rapid.IntRange(1, 255).Draw(t, "seed"))})
			for _, p := range data {
				_, _ = src.Read(p)
			}
		}
		b, done := d.Buf(op, flags, off, data...)
		all = append(all, running{b, off, done})
		d.Issue(b)
		if a, ok := d.AIO.(*AIO); ok && a.Pending() > 0 && rapid.Bool().Draw(t, "step") {
			a.Step(rapid.IntRange(0, a.Pending()-1).Draw(t, "which"))
		}
	}
	for _, r := range all {
		d.Wait(r.done)
		if r.b.Error != 0 || r.b.Resid != 0 {
			t.Fatalf("%v of %d bytes at %d: error %v, resid %d", r.b.Op, r.b.Bcount, r.off, r.b.Error, r.b.Resid)
		}
		data := bytes.Join(r.b.Data, nil)
		if r.b.Op == devsw.BRead {
			d.compare(t, r.off, data)
		} else {
			copy(d.Want[r.off:], data)
		}
	}
}

func (d *Disk) compare(t *rapid.T, off int64, got []byte) {
	want := d.Want[off : off+int64(len(got))]
	if !bytes.Equal(got, want) {
		i := 0
		for got[i] == want[i] {
			i++
		}
		t.Fatalf("byte %d is %#x, want %#x", off+int64(i), got[i], want[i])
	}
}

func (d *Disk) discard(t *rapid.T) {
	off, n := d.extent(t)
	err := d.Table.BdevDiscard(d.Dev, off, n)
	switch {
	case d.NoDiscard:
		if !errors.Is(err, devsw.ENODEV) && !errors.Is(err, devsw.EOPNOTSUPP) {
			t.Fatalf("discard: %v", err)
		}
	case err != nil:
		t.Fatalf("discard of %d bytes at %d: %v", n, off, err)
	case d.Undefined:
		if b := d.Transfer(devsw.BRead, 0, off, d.Want[off:off+n]); b.Error != 0 {
			t.Fatalf("read after discard: %v", b.Error)
		}
	default:
		clear(d.Want[off : off+n])
	}
}

func (d *Disk) zeroes(t *rapid.T) {
	off, n := d.extent(t)
	zr := &devsw.ZeroRange{Pos: off, N: n, Unmap: rapid.Bool().Draw(t, "unmap")}
	if err := d.Table.BdevIoctl(d.Dev, devsw.DIOCWRITEZEROES, zr, devsw.FWRITE); err != nil {
		t.Fatalf("zeroes, %d bytes at %d: %v", n, off, err)
	}
	clear(d.Want[off : off+n])
}
