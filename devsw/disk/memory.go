package disk

import "vdev/devsw"

// zeroes is never changed.
var zeroes [64 << 10]byte

// Zero makes n bytes of the memory of b, a read, zero, from byte off of the transfer on. EFAULT: see Buf.MoveAt.
func Zero(b *devsw.Buf, off, n int64) devsw.Errno {
	for n > 0 {
		k := min(n, int64(len(zeroes)))
		if e := b.MoveAt(zeroes[:k], off); e != 0 {
			return e
		}
		off += k
		n -= k
	}
	return 0
}
