package disk

import "vdev/devsw"

// zeroes is never changed.
var zeroes [64 << 10]byte

// Zero makes n bytes of the memory of b, a read, zero, from byte off of the transfer on. EFAULT:
// see devsw.Buf.MoveAt.
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

// WriteZeroes writes n zeroes from byte pos of the disk on as transfers of m, for a
// Medium.WriteZeroes that has nothing better, and waits for each. zero is what is written at a
// time: whole sectors of zeroes, which nobody changes. The error is that of the transfer that
// failed, or EIO where the disk has become smaller meanwhile.
func WriteZeroes(m Medium, pos, n int64, zero []byte) error {
	o := opened{m, m.base()}
	done := make(chan struct{}, 1)
	b := devsw.Buf{Op: devsw.BWrite, Iodone: func(*devsw.Buf) { done <- struct{}{} }}
	for n > 0 {
		b.Blkno = pos / devsw.DEVBSIZE
		b.Bcount = min(n, int64(len(zero)))
		b.Data = append(b.Data[:0], zero[:b.Bcount])
		o.start(&b)
		<-done
		switch {
		case b.Error != 0:
			return b.Error
		case b.Resid != 0:
			return devsw.EIO
		}
		pos += b.Bcount
		n -= b.Bcount
		b.Rearm()
	}
	return nil
}
