package guestmem

import "unsafe"

// within tells where in mem the whole of p is.
func within(mem, p []byte) (off uint64, ok bool) {
	off = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p))) - uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	size := uint64(len(mem))
	return off, off < size && uint64(len(p)) <= size-off
}
