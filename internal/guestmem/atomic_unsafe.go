//go:build amd64 || arm64

package guestmem

import (
	"sync/atomic"
	"unsafe"
)

// The constraint above stands for little-endian hosts: the place of a 16-bit field in its word
// depends on it, and virtio's legacy devices have the guest's byte order, which this project takes
// to be the host's.

// Uint16 is a 16-bit field of memory shared with a guest, in the host's byte order, accessed
// atomically. sync/atomic has no 16-bit operations, so it goes through the aligned 32-bit word that
// holds the field. That word may reach two bytes before or behind the field, but not over a page's
// end: so it is mapped wherever the field is.
//
// The zero value points nowhere.
type Uint16 struct {
	word  *uint32
	shift uint8 // 0 or 16
}

// AtUint16 returns the field at the start of b, which must be mapped memory of at least 2 bytes
// (not Go's own, since the word around the field may belong to somebody else). It reports false at
// an odd address.
func AtUint16(b []byte) (Uint16, bool) {
	_ = b[1]
	p := unsafe.Pointer(&b[0])
	low := uintptr(p) & 3
	if low&1 != 0 {
		return Uint16{}, false
	}
	return Uint16{(*uint32)(unsafe.Add(p, -int(low))), uint8(8 * low)}, true
}

// Load reads the field, sequentially consistent like all of sync/atomic.
func (f Uint16) Load() uint16 {
	return uint16(atomic.LoadUint32(f.word) >> (f.shift & 31))
}

// maxTries is more than any neighbour that behaves makes necessary.
const maxTries = 1000

// Store writes the field and leaves what stands beside it as it is, sequentially consistent. It
// reports false, and has written nothing, when the bytes beside the field changed so often that it
// gave up: a guest may do that on purpose, and must not keep its device busy for ever.
func (f Uint16) Store(v uint16) bool {
	shift := f.shift & 31
	for range maxTries {
		old := atomic.LoadUint32(f.word)
		if atomic.CompareAndSwapUint32(f.word, old, old&^(0xffff<<shift)|uint32(v)<<shift) {
			return true
		}
	}
	return false
}

// Uint32 is a 32-bit word of memory shared with a guest, in the host's byte order, accessed
// atomically. The zero value points nowhere.
type Uint32 struct {
	word *uint32
}

// AtUint32 returns the word at the start of b, which must have at least 4 bytes. It reports false
// at an address that is not a multiple of 4.
func AtUint32(b []byte) (Uint32, bool) {
	_ = b[3]
	p := unsafe.Pointer(&b[0])
	if uintptr(p)&3 != 0 {
		return Uint32{}, false
	}
	return Uint32{(*uint32)(p)}, true
}

// Load reads the word, sequentially consistent.
func (f Uint32) Load() uint32 { return atomic.LoadUint32(f.word) }

// Store writes the word, sequentially consistent. It is a Swap because under the race detector
// sync/atomic's Store only releases, and a load after it may overtake it: the other side's
// notification would be lost. In an ordinary build both are the same instruction on amd64.
func (f Uint32) Store(v uint32) { atomic.SwapUint32(f.word, v) }

// Swap writes the word, sequentially consistent, and returns what was there.
func (f Uint32) Swap(v uint32) uint32 { return atomic.SwapUint32(f.word, v) }

// Store64 writes v to the start of b by one store: who looks finds what was there before, or all of
// it. b must have at least 8 bytes and lie at a multiple of 8.
func Store64(b []byte, v uint64) {
	_ = b[7]
	p := unsafe.Pointer(&b[0])
	if uintptr(p)&7 != 0 {
		panic("guestmem: misaligned word")
	}
	atomic.StoreUint64((*uint64)(p), v)
}
