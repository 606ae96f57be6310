package initrd

import (
	"bytes"
	"fmt"
)

// File types as stat(2) has them; cpio uses the same.
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
	modeLink = 0o120000
)

// device is a character device's number; zero for everything else.
type device struct{ major, minor uint32 }

// archive is a cpio archive in the "newc" format (Linux, Documentation/driver-api/early-userspace/
// buffer-format.rst). Every file belongs to root and has no date, so that equal contents give equal
// archives.
type archive struct {
	buf bytes.Buffer
	ino uint32
}

// add appends a file. A link's data is where it points.
func (a *archive) add(name string, mode uint32, dev device, data []byte) {
	a.ino++
	a.buf.WriteString("070701")
	for _, field := range []uint32{a.ino, mode, 0, 0, 1, 0, uint32(len(data)), 0, 0, dev.major, dev.minor, uint32(len(name) + 1), 0} {
		fmt.Fprintf(&a.buf, "%08X", field)
	}
	a.buf.WriteString(name + "\x00")
	a.pad()
	a.buf.Write(data)
	a.pad()
}

// pad fills up to a multiple of 4 bytes.
func (a *archive) pad() {
	for a.buf.Len()%4 != 0 {
		a.buf.WriteByte(0)
	}
}

func (a *archive) finish() []byte {
	a.add("TRAILER!!!", 0, device{}, nil)
	return a.buf.Bytes()
}
