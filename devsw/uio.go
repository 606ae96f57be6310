package devsw

// UioRw is the direction of a Uio, as the caller of the operation sees it.
type UioRw uint8

// The directions.
const (
	UIORead  UioRw = iota // d_read: from the driver into Iov
	UIOWrite              // d_write: from Iov to the driver
)

// Uio is the memory of one d_read or d_write, and how much of it is still to be
// done. NetBSD: struct uio, uiomove(9).
//
// It is the caller's, and the driver's while the operation runs: the driver may
// keep neither it nor the memory once the operation has returned.
type Uio struct {
	Iov    [][]byte // what is left; Uiomove shortens it
	Offset int64    // where on the device, bytes; Uiomove adds to it
	Resid  int      // bytes left: the sum of the lengths in Iov
	Rw     UioRw    // which way the bytes go
}

// NewUio makes a Uio over the given memory at offset 0.
func NewUio(rw UioRw, iov ...[]byte) *Uio {
	u := &Uio{Rw: rw, Iov: iov}
	for _, p := range iov {
		u.Resid += len(p)
	}
	return u
}

// Uiomove copies between p and the memory of u, in u's direction, as much as
// the smaller of both has, moves u on and returns the number of bytes. It
// writes to p when u is a write, and reads p when u is a read.
func (u *Uio) Uiomove(p []byte) int {
	moved := 0
	for len(p) > 0 && len(u.Iov) > 0 {
		var n int
		if u.Rw == UIOWrite {
			n = copy(p, u.Iov[0])
		} else {
			n = copy(u.Iov[0], p)
		}
		p = p[n:]
		u.Advance(n)
		moved += n
	}
	return moved
}

// Advance moves u on by n bytes, at most Resid, without copying: the memory was
// read or written in another way.
func (u *Uio) Advance(n int) {
	u.Offset += int64(n)
	u.Resid -= n
	for len(u.Iov) > 0 && n >= len(u.Iov[0]) {
		n -= len(u.Iov[0])
		u.Iov = u.Iov[1:]
	}
	if n > 0 {
		u.Iov[0] = u.Iov[0][n:]
	}
}
