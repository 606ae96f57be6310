//go:build amd64 || arm64

package guestmem

import "unsafe"

// words returns the words that b, which is mapped and begins at a multiple of 4, lies in. On a
// little-endian host, as the constraint above says, bit 8*i+j of the words is bit j of byte i. The
// last word may reach beyond b, but not over a page's end.
func words(b []byte) []uint32 {
	return unsafe.Slice((*uint32)(unsafe.Pointer(unsafe.SliceData(b))), (len(b)+3)/4)
}
