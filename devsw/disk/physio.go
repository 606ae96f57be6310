package disk

import (
	"vdev/devsw"
)

// maxPhys is the largest transfer that physio makes of a read or write, in bytes. NetBSD: MAXPHYS.
const maxPhys = 1 << 20

// physio is d_read and d_write of a disk's character device: it moves u to or from the disk, in
// transfers of its own that strategy gets and whose end it waits for. Offset and lengths must be
// made of whole sectors, as strategy sees to. A read that reaches the end is short. NetBSD:
// physio(9).
func physio(strategy func(*devsw.Buf), dev devsw.Dev, u *devsw.Uio) error {
	if u.Offset < 0 || u.Offset%devsw.DEVBSIZE != 0 {
		return devsw.EINVAL
	}
	b := devsw.Buf{Op: devsw.BRead, Dev: dev}
	if u.Rw == devsw.UIOWrite {
		b.Op = devsw.BWrite
	}
	done := make(chan struct{}, 1)
	b.Iodone = func(*devsw.Buf) { done <- struct{}{} }
	for u.Resid > 0 {
		b.Blkno = u.Offset / devsw.DEVBSIZE
		b.Data, b.Bcount = b.Data[:0], 0
		for _, p := range u.Iov {
			p = p[:min(int64(len(p)), maxPhys-b.Bcount)]
			if len(p) > 0 {
				b.Data = append(b.Data, p)
				b.Bcount += int64(len(p))
			}
		}
		strategy(&b)
		<-done
		moved := b.Bcount - b.Resid
		advance(u, int(moved))
		if b.Error != 0 {
			return b.Error
		}
		if moved < b.Bcount {
			return nil
		}
		b.Rearm()
	}
	return nil
}

// advance moves u on by n bytes that a transfer has moved already.
func advance(u *devsw.Uio, n int) {
	u.Offset += int64(n)
	u.Resid -= n
	for n > 0 || (len(u.Iov) > 0 && len(u.Iov[0]) == 0) {
		k := min(n, len(u.Iov[0]))
		n -= k
		if u.Iov[0] = u.Iov[0][k:]; len(u.Iov[0]) == 0 {
			u.Iov = u.Iov[1:]
		}
	}
}
