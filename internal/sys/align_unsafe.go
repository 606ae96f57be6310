package sys

import "unsafe"

// Aligned reports whether b begins at an address that is a multiple of align, a power of two.
func Aligned(b []byte, align int64) bool {
	return uintptr(unsafe.Pointer(unsafe.SliceData(b)))&uintptr(align-1) == 0
}

// addressOf returns where b begins.
func addressOf(b []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(b))) }

// AlignedBuffer allocates n bytes, at least one, that begin at an address that is a multiple of
// align, a power of two.
func AlignedBuffer(n int, align int64) []byte {
	b := make([]byte, n+int(align)-1)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) & uintptr(align-1)
	return b[skip : int(skip)+n : int(skip)+n]
}
