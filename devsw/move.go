package devsw

import (
	"runtime"
	"runtime/debug"
)

// MoveAt copies between p and the transfer's memory, in the transfer's
// direction: from p into Data for a read, from Data into p for a write. off is
// where in the transfer p belongs, in bytes; what lies outside of it is not
// copied.
//
// It is how a driver touches Data with the CPU. Data may be memory shared with
// another process, which can take it away at any time, and touching it then is a
// fault: MoveAt catches that and answers EFAULT, with an unknown part copied.
// NetBSD: copyin(9), copyout(9).
func (b *Buf) MoveAt(p []byte, off int64) (err Errno) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !isFault(r) {
				panic(r)
			}
			err = EFAULT
		}
	}()
	for _, d := range b.Data {
		if off >= int64(len(d)) {
			off -= int64(len(d))
			continue
		}
		if len(p) == 0 {
			break
		}
		var n int
		if b.Op == BRead {
			n = copy(d[off:], p)
		} else {
			n = copy(p, d[off:])
		}
		p = p[n:]
		off = 0
	}
	return 0
}

// Kcopy copies src to dst, as copy does, where either may be memory that can vanish: see
// Buf.MoveAt. It answers EFAULT then, and an unknown part was copied. NetBSD: kcopy(9).
func Kcopy(dst, src []byte) (n int, err Errno) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if !isFault(r) {
				panic(r)
			}
			n, err = 0, EFAULT
		}
	}()
	return copy(dst, src), 0
}

// Move is Uiomove for memory that can vanish: it copies by Kcopy. After EFAULT, n bytes were moved,
// and u is behind them.
func (u *Uio) Move(p []byte) (n int, err Errno) {
	for len(p) > 0 && len(u.Iov) > 0 {
		to, from := p, u.Iov[0]
		if u.Rw == UIORead {
			to, from = from, to
		}
		k, err := Kcopy(to, from)
		if err != 0 {
			return n, err
		}
		p = p[k:]
		u.Advance(k)
		n += k
	}
	return n, 0
}

// isFault tells a fault on an address that is not mapped from other run-time
// panics; only its error has an Addr, as debug.SetPanicOnFault documents.
func isFault(r any) bool {
	e, ok := r.(runtime.Error)
	if !ok {
		return false
	}
	_, ok = e.(interface{ Addr() uintptr })
	return ok
}
