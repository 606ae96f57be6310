package disk

import (
	"fmt"

	"vdev/devsw"
)

// Bounds say where transfers of a disk end.
type Bounds struct {
	Size     int64 // bytes, a multiple of Sector
	High     int64 // bytes, the largest Size since the device was opened; never below Size
	Sector   int64 // bytes, a power of two of 512 or more
	ReadOnly bool  // writes are EROFS
}

// Check looks whether b, which a d_strategy has just been given, may be transferred. It gives the
// byte offset on the disk and how many bytes are to be transferred, which is more than 0 and may be
// less than b.Bcount. Where there is nothing to transfer, Check has ended b, and ok is false.
//
// It does what NetBSD's vndstrategy and bounds_check_with_mediasize do (sys/dev/vnd.c,
// sys/kern/subr_disk.c). EINVAL: b is not made of whole sectors, begins before the start, or begins
// beyond the end. What begins exactly at the end transfers nothing and is no error. What crosses
// the end is cut off there, and the driver's Resid tells.
//
// It differs from NetBSD in three ways. A write to a read-only disk is EROFS (vnd says EACCES).
// Blkno must be a multiple of the sector size too. And on a disk that has shrunk under its user,
// whatever reaches beyond the new end but not beyond the old one is EIO, with nothing transferred:
// to that user it is no mistake, and it must not look like success either.
func Check(b *devsw.Buf, m Bounds) (off, n int64, ok bool) {
	b.Error, b.Resid = 0, 0
	n = b.Bcount
	switch {
	case n < 0 || n&(m.Sector-1) != 0:
		b.Fail(devsw.EINVAL)
	case m.ReadOnly && b.Op == devsw.BWrite:
		b.Fail(devsw.EROFS)
	case n == 0:
		b.Biodone()
	case b.Blkno < 0 || b.Blkno&(m.Sector/devsw.DEVBSIZE-1) != 0:
		b.Fail(devsw.EINVAL)
	case b.Blkno > m.High/devsw.DEVBSIZE:
		b.Fail(devsw.EINVAL)
	default:
		off = b.Blkno * devsw.DEVBSIZE
		left := m.Size - off
		if n <= left {
			return off, n, true
		}
		switch {
		case m.Size < m.High && n <= m.High-off:
			b.Fail(devsw.EIO)
		case left > 0:
			return off, left, true
		case left == 0:
			b.Resid = n
			b.Biodone()
		default:
			b.Fail(devsw.EINVAL)
		}
	}
	return 0, 0, false
}

// checkRange looks at the range of a d_discard or a DIOCWRITEZEROES: EINVAL unless it is made of
// whole sectors and lies within the disk, EROFS where nothing may be written, EIO where the disk
// has shrunk (as for Check).
func checkRange(pos, n int64, m Bounds) error {
	switch {
	case pos < 0 || n < 0 || pos&(m.Sector-1) != 0 || n&(m.Sector-1) != 0:
		return devsw.EINVAL
	case m.ReadOnly:
		return devsw.EROFS
	case pos <= m.Size && n <= m.Size-pos:
		return nil
	case pos <= m.High && n <= m.High-pos:
		return devsw.EIO
	}
	return devsw.EINVAL
}

// CheckSector looks at a configured sector size in bytes, of which 0 means 512, and returns it:
// EINVAL unless it is 512 or 4096.
func CheckSector(size uint32) (int64, error) {
	switch size {
	case 0, 512:
		return 512, nil
	case 4096:
		return 4096, nil
	}
	return 0, fmt.Errorf("sector size %d: must be 512 or 4096: %w", size, devsw.EINVAL)
}
