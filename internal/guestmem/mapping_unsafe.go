package guestmem

import "unsafe"

// address returns where mapping begins.
func address(mapping []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(mapping))) }
