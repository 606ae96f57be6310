package vnd

import (
	"slices"
	"syscall"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/internal/sys"
)

// zeroes is what is written where the host has nothing better, page-aligned and never changed.
var zeroes = sys.AlignedBuffer(1<<20, 4096)

// Discard implements disk.Medium. EOPNOTSUPP where the host has no such thing. A part of one of the
// host's blocks stays as it is.
func (im *image) Discard(pos, n int64) error {
	if im.Cancelled() {
		return devsw.ECANCELED
	}
	lo, hi := im.inner(pos, n)
	if lo >= hi {
		return nil
	}
	var e devsw.Errno
	if im.file.Block {
		e = sys.BlockDiscard(im.fd, lo, hi-lo)
	} else {
		e = sys.PunchHole(im.fd, lo, hi-lo)
	}
	if e == 0 {
		return nil
	}
	if unsupported(e) {
		e = devsw.EOPNOTSUPP
	}
	return e
}

// WriteZeroes implements disk.Medium.
func (im *image) WriteZeroes(pos, n int64, unmap bool) error {
	lo, hi := im.inner(pos, n)
	if lo >= hi {
		return im.zeroByWriting(pos, n)
	}
	if err := im.zeroByWriting(pos, lo-pos); err != nil {
		return err
	}
	if im.Cancelled() {
		return devsw.ECANCELED
	}
	switch e := im.zeroBlocks(lo, hi-lo, unmap && im.conf.Discard); {
	case unsupported(e):
		if err := im.zeroByWriting(lo, hi-lo); err != nil {
			return err
		}
	case e != 0:
		return e
	}
	return im.zeroByWriting(hi, pos+n-hi)
}

// inner gives the largest part of a range that the host takes to zero or discard.
func (im *image) inner(pos, n int64) (lo, hi int64) {
	mask := im.geo.zeroAlign - 1
	return (pos + mask) &^ mask, (pos + n) &^ mask
}

// zeroBlocks has the host zero a range.
func (im *image) zeroBlocks(pos, n int64, unmap bool) devsw.Errno {
	if unmap {
		// Of a block device this discards blocks only where they read as zeroes then.
		if e := sys.PunchHole(im.fd, pos, n); !unsupported(e) {
			return e
		}
	}
	if im.file.Block {
		return sys.BlockZeroOut(im.fd, pos, n)
	}
	return sys.ZeroRange(im.fd, pos, n)
}

// unsupported reports whether e says that the host cannot do this to this image at all. Some file
// systems say EINVAL of ranges that they find badly aligned.
func unsupported(e devsw.Errno) bool {
	return slices.Contains([]devsw.Errno{devsw.EOPNOTSUPP, syscall.ENOSYS, devsw.ENOTTY, devsw.ENODEV, devsw.EINVAL}, e)
}

// zeroByWriting writes zeroes, as transfers like any other.
func (im *image) zeroByWriting(pos, n int64) error { return disk.WriteZeroes(im, pos, n, zeroes) }
