package qemunbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// What an image's header says of the disk and of other files. The formats are public: QEMU's
// docs/interop/qcow2.rst and qed_spec.rst, block/qcow.c, and the VMware Virtual Disk Format 5.0.
// Only what leads to other files is read.

const (
	// maxName is the longest name of a backing file (qcow2.rst: 1023 bytes), and of a data file
	// here.
	maxName = 1023
	// maxExtensions is how many header extensions are looked at; QEMU writes four.
	maxExtensions = 64
	// maxDescriptor is how much of a VMDK's descriptor is read, in bytes. QEMU looks for a parent
	// in 20 sectors.
	maxDescriptor = 64 << 10
)

// header is what was read.
type header struct {
	size      int64    // of the disk, bytes; 0 where the format is none whose size is read here
	encrypted string   // how, or empty
	parents   []parent // in the order in which they stand in it
	elsewhere string   // why it may lead to other files that are not in parents, or empty
}

// parent is another file that a header names.
type parent struct {
	name   string
	kind   string // "backing file", "data file"
	format string // of a backing file; empty: QEMU looks at its content
}

var (
	errHeader = errors.New("its header is damaged")
	errNotOne = errors.New("it does not begin like one of its format")
)

// readHeader reads the header of an image of a format. A format of which nothing leads to other
// files gives nothing.
func readHeader(r io.ReaderAt, format string) (header, error) {
	switch format {
	case "qcow2":
		return readQcow2(r)
	case "qcow":
		return readQcow(r)
	case "qed":
		return readQED(r)
	case "vmdk":
		return readVMDK(r)
	}
	return header{}, nil
}

// readUpTo reads n bytes at off, or what there is of them.
func readUpTo(r io.ReaderAt, off int64, n int) ([]byte, error) {
	p := make([]byte, n)
	k, err := r.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return p[:k], err
}

// nameAt reads a name of n bytes.
func nameAt(r io.ReaderAt, off uint64, n uint32) (string, error) {
	if n == 0 || n > maxName || off > 1<<62 {
		return "", fmt.Errorf("%w: a name of %d bytes at %d", errHeader, n, off)
	}
	p, err := readUpTo(r, int64(off), int(n))
	if err != nil {
		return "", err
	}
	if len(p) < int(n) || bytes.IndexByte(p, 0) >= 0 {
		return "", fmt.Errorf("%w: a name that is cut off, or has a zero in it", errHeader)
	}
	return string(p), nil
}

// Of a qcow2 image.
const (
	qcow2Header2     = 72  // bytes of version 2's header
	qcow2Header3     = 104 // at least, of version 3's
	incompatDataFile = 1 << 2
	extBackingFormat = 0xe2792aca
	extDataFile      = 0x44415441
	cryptAES         = 1
	cryptLUKS        = 2
	maxHeaderLength  = 64 << 10
	qcowHeader       = 48
	qedHeader        = 64
	qedBackingFile   = 1 << 0
	qedBackingIsRaw  = 1 << 2
	vmdkSector       = 512
	vmdkHeader       = 4 + 4 + 4 + 8 + 8 + 8 + 8 // up to desc_size
)

func readQcow2(r io.ReaderAt) (h header, err error) {
	be := binary.BigEndian
	p, err := readUpTo(r, 0, qcow2Header3)
	if err != nil {
		return h, err
	}
	if len(p) < qcow2Header2 || string(p[:4]) != "QFI\xfb" {
		return h, errNotOne
	}
	version := be.Uint32(p[4:])
	h.size = int64(be.Uint64(p[24:]))
	switch crypt := be.Uint32(p[32:]); crypt {
	case 0:
	case cryptAES:
		h.encrypted = "AES"
	case cryptLUKS:
		h.encrypted = "LUKS"
	default:
		h.encrypted = fmt.Sprintf("method %d", crypt)
	}
	length, incompat := uint32(qcow2Header2), uint64(0)
	if version >= 3 {
		if len(p) < qcow2Header3 {
			return h, fmt.Errorf("%w: it ends after %d bytes", errHeader, len(p))
		}
		incompat, length = be.Uint64(p[72:]), be.Uint32(p[100:])
	}
	if h.size < 0 || length > maxHeaderLength {
		return h, fmt.Errorf("%w: a size of %d bytes, a header of %d", errHeader, h.size, length)
	}
	bits := be.Uint32(p[20:])
	if bits < 9 || bits > 21 {
		return h, fmt.Errorf("%w: clusters of 2^%d bytes", errHeader, bits)
	}
	end := uint64(1) << bits
	if backing := be.Uint64(p[8:]); backing != 0 {
		end = backing
	}
	var format, data string
	hasData := false
	for off, n := int64(length), 0; uint64(off) < end; n++ {
		p, err := readUpTo(r, off, 8)
		if err != nil {
			return h, err
		}
		if len(p) < 8 || be.Uint32(p) == 0 {
			break
		}
		kind, size := be.Uint32(p), be.Uint32(p[4:])
		if n == maxExtensions || size > maxHeaderLength {
			return h, fmt.Errorf("%w: extension %d has %d bytes", errHeader, n+1, size)
		}
		switch kind {
		case extBackingFormat:
			format, err = nameAt(r, uint64(off+8), size)
		case extDataFile:
			hasData = true
			data, err = nameAt(r, uint64(off+8), size)
		}
		if err != nil {
			return h, err
		}
		off += 8 + int64(size+7)&^7
	}
	if off, n := be.Uint64(p[8:]), be.Uint32(p[16:]); off != 0 {
		name, err := nameAt(r, off, n)
		if err != nil {
			return h, err
		}
		h.parents = append(h.parents, parent{name, "backing file", format})
	}
	// The name alone is not used, but who wants to trust in that?
	if hasData || incompat&incompatDataFile != 0 {
		h.parents = append(h.parents, parent{data, "data file", Raw})
	}
	return h, nil
}

func readQcow(r io.ReaderAt) (h header, err error) {
	be := binary.BigEndian
	p, err := readUpTo(r, 0, qcowHeader)
	if err != nil {
		return h, err
	}
	if len(p) < qcowHeader || string(p[:4]) != "QFI\xfb" {
		return h, errNotOne
	}
	if be.Uint32(p[36:]) != 0 {
		h.encrypted = "AES"
	}
	if off, n := be.Uint64(p[8:]), be.Uint32(p[16:]); off != 0 {
		name, err := nameAt(r, off, n)
		if err != nil {
			return h, err
		}
		h.parents = append(h.parents, parent{name, "backing file", ""})
	}
	return h, nil
}

func readQED(r io.ReaderAt) (h header, err error) {
	le := binary.LittleEndian
	p, err := readUpTo(r, 0, qedHeader)
	if err != nil {
		return h, err
	}
	if len(p) < qedHeader || string(p[:4]) != "QED\x00" {
		return h, errNotOne
	}
	if features := le.Uint64(p[16:]); features&qedBackingFile != 0 {
		name, err := nameAt(r, uint64(le.Uint32(p[56:])), le.Uint32(p[60:]))
		if err != nil {
			return h, err
		}
		format := ""
		if features&qedBackingIsRaw != 0 {
			format = Raw
		}
		h.parents = append(h.parents, parent{name, "backing file", format})
	}
	return h, nil
}

// parentHint is the word before the name of a VMDK's parent.
var parentHint = []byte("parentFileNameHint")

// readVMDK looks whether the image can lead elsewhere, but not where to: QEMU reads the text that
// says so (the descriptor) by rules of its own, and who reads it by others allows what QEMU does
// not open, and the other way round. An image in one piece, without a parent, leads nowhere.
func readVMDK(r io.ReaderAt) (h header, err error) {
	p, err := readUpTo(r, 0, vmdkHeader)
	if err != nil {
		return h, err
	}
	// Without a size of its own it is but a descriptor (vmdk_open_vmdk4). Nor is anything else in
	// one piece.
	if len(p) < vmdkHeader || string(p[:4]) != "KDMV" || binary.LittleEndian.Uint64(p[12:]) == 0 {
		h.elsewhere = "is described by a text, as parts of a VMDK are, which may name any file"
		return h, nil
	}
	at := binary.LittleEndian.Uint64(p[28:])
	if at > 1<<50 {
		return h, fmt.Errorf("%w: a descriptor at sector %d", errHeader, at)
	}
	// QEMU looks for a parent behind the header, wherever the descriptor is.
	for _, off := range []int64{vmdkSector, int64(at) * vmdkSector} {
		text, err := readUpTo(r, off, maxDescriptor)
		if err != nil {
			return h, err
		}
		if bytes.Contains(text, parentHint) {
			h.elsewhere = "has a parent, which may be any file"
		}
	}
	return h, nil
}
