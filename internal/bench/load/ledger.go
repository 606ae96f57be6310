package load

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
)

// ledger is what a queue knows of its part of the disk where all that is read is looked at
// (Job.Verify): how often each block was written, and what is in flight for it. Blocks count from
// the disk's beginning.
//
// A sector's data is: a number that the run has drawn, the sector's own, how often it was written
// (eight bytes each, little-endian), and what follows from these. So it can be told from anything
// else, and whence it is.
type ledger struct {
	run       uint64
	first     int64 // block of the part
	blockSize int64

	writes []uint32 // of each block, that in flight included
	busy   []uint16 // reads in flight for each block, or writing
}

// writing says of a block that a write is in flight for it.
const writing = math.MaxUint16

// ledgerSize is how many bytes a ledger needs for a block.
const ledgerSize = 4 + 2

func newLedger(run uint64, first, blocks, blockSize int64) *ledger {
	return &ledger{run: run, first: first, blockSize: blockSize, writes: make([]uint32, blocks), busy: make([]uint16, blocks)}
}

// claim returns a block for a request, block or one of those after it, which is that request's
// until it is released: nothing else is in flight for it, or both are reads. There is one where
// fewer requests are in flight than there are blocks, or no writes.
func (l *ledger) claim(block int64, read bool) int64 {
	for i := block - l.first; ; i++ {
		if i == int64(len(l.busy)) {
			i = 0
		}
		switch {
		case read && l.busy[i] != writing:
			l.busy[i]++
		case !read && l.busy[i] == 0:
			l.busy[i] = writing
			l.writes[i]++
		default:
			continue
		}
		return l.first + i
	}
}

// release says that a request for block has ended.
func (l *ledger) release(block int64) {
	if busy := &l.busy[block-l.first]; *busy == writing {
		*busy = 0
	} else {
		*busy--
	}
}

// fill makes p what block is to have.
func (l *ledger) fill(p []byte, block int64) {
	sector, writes := uint64(block*(l.blockSize/sectorSize)), uint64(l.writes[block-l.first])
	for ; len(p) > 0; p = p[sectorSize:] {
		l.stamp(p[:sectorSize], sector, writes)
		sector++
	}
}

// check returns an error where p, which was read, is not what block has.
func (l *ledger) check(p []byte, block int64) error {
	var got, want [sectorSize]byte
	sector, writes := uint64(block*(l.blockSize/sectorSize)), uint64(l.writes[block-l.first])
	for ; len(p) > 0; p = p[sectorSize:] {
		// Who has completed a read too early may still be at it.
		copy(got[:], p)
		if l.stamp(want[:], sector, writes); got != want {
			return l.mismatch(got[:], want[:], sector, writes)
		}
		sector++
	}
	return nil
}

// stamp makes p the data of a sector that was written so often.
func (l *ledger) stamp(p []byte, sector, writes uint64) {
	const step = 0x9e3779b97f4a7c15 // the golden ratio's, so that no two words are alike
	put := binary.LittleEndian.PutUint64
	put(p, l.run)
	put(p[8:], sector)
	put(p[16:], writes)
	word := ((l.run^sector)*step ^ writes) * step
	for at := 24; at < sectorSize; at += 8 {
		word += step
		put(p[at:], word)
	}
}

// mismatch says how got, which was read from a sector, differs from want, and what it is if that
// can be told.
func (l *ledger) mismatch(got, want []byte, sector, writes uint64) error {
	word := func(p []byte, at int) uint64 { return binary.LittleEndian.Uint64(p[at:]) }
	at := 0
	for word(got, at) == word(want, at) {
		at += 8
	}
	var whole [sectorSize]byte
	gotSector, gotWrites := word(got, 8), word(got, 16)
	l.stamp(whole[:], gotSector, gotWrites)
	var what string
	switch {
	case word(got, 0) != l.run:
		what = "nothing of this run"
	case !bytes.Equal(got, whole[:]):
		what = "it is damaged"
	case gotSector != sector:
		what = fmt.Sprintf("another block's data, that of sector %d", gotSector)
	default:
		what = fmt.Sprintf("an older write's data, that of write %d of %d", gotWrites, writes)
	}
	return fmt.Errorf("sector %d, byte %d: read %#x, and %#x was written: %s", sector, at, word(got, at), word(want, at), what)
}
