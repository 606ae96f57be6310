// Package pattern makes data that tells where it belongs. Each 512-byte block of a pattern depends
// on a seed and on the block's own place, so that a block which was lost, went to the wrong place,
// is older than it should be or is partly overwritten is found, and can be named.
package pattern

import (
	"encoding/binary"
	"fmt"
)

// BlockSize is the unit of a pattern in bytes.
const BlockSize = 512

// A block begins with its number and the pattern's seed, so that a wrong one can say where it comes
// from. The rest is a Weyl sequence that starts from a hash of both: cheap, because the guest
// computes it under emulation.
func start(seed, block uint64) uint64 {
	x := (block + 0x9e3779b97f4a7c15) ^ seed*0xd6e8feb86659fd93
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	return x
}

const step = 0x9e3779b97f4a7c15

// Fill writes the pattern of seed for the bytes from offset off on into p. Both off and the length
// of p are multiples of BlockSize.
func Fill(p []byte, seed uint64, off int64) {
	check(p, off)
	block := uint64(off) / BlockSize
	for ; len(p) > 0; p = p[BlockSize:] {
		b := p[:BlockSize]
		binary.LittleEndian.PutUint64(b, block)
		binary.LittleEndian.PutUint64(b[8:], seed)
		x := start(seed, block)
		for i := 16; i < BlockSize; i += 8 {
			x += step
			binary.LittleEndian.PutUint64(b[i:], x)
		}
		block++
	}
}

// Verify says where p differs from the pattern of seed at offset off, and what is there instead.
// Both off and the length of p are multiples of BlockSize.
func Verify(p []byte, seed uint64, off int64) error {
	check(p, off)
	block := uint64(off) / BlockSize
	for ; len(p) > 0; p = p[BlockSize:] {
		b := p[:BlockSize]
		x := start(seed, block)
		wrong := binary.LittleEndian.Uint64(b) != block || binary.LittleEndian.Uint64(b[8:]) != seed
		for i := 16; i < BlockSize && !wrong; i += 8 {
			x += step
			wrong = binary.LittleEndian.Uint64(b[i:]) != x
		}
		if wrong {
			return &MismatchError{Offset: int64(block) * BlockSize, Seed: seed, Found: describe(b)}
		}
		block++
	}
	return nil
}

// MismatchError names the first block that does not hold what it should.
type MismatchError struct {
	Offset int64 // of the block, in bytes
	Seed   uint64
	Found  string // what the block holds
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("block at byte %d (pattern %d) holds %s", e.Offset, e.Seed, e.Found)
}

func describe(b []byte) string {
	zero := true
	for _, c := range b {
		zero = zero && c == 0
	}
	if zero {
		return "zeros"
	}
	block, seed := binary.LittleEndian.Uint64(b), binary.LittleEndian.Uint64(b[8:])
	x := start(seed, block)
	for i := 16; i < BlockSize; i += 8 {
		x += step
		if binary.LittleEndian.Uint64(b[i:]) != x {
			if i > 16 {
				return fmt.Sprintf("the first %d bytes of the block for byte %d of pattern %d", i, block*BlockSize, seed)
			}
			return fmt.Sprintf("something else: % x...", b[:16])
		}
	}
	return fmt.Sprintf("the block for byte %d of pattern %d", block*BlockSize, seed)
}

func check(p []byte, off int64) {
	if len(p)%BlockSize != 0 || off%BlockSize != 0 {
		panic(fmt.Sprintf("pattern: %d bytes at %d are not whole blocks", len(p), off))
	}
}
