package devsw

import (
	"fmt"
	"math/rand/v2"
)

// Cmd is an ioctl command. The numbers are vdev's own: commands never cross a
// process, and data is a Go value of the type the command names. A driver
// answers ENOTTY to a command it does not know, and EINVAL where data has
// another type. Drivers with commands of their own number them from CmdDriver.
type Cmd uint32

// The commands of disks and of terminals. Those NetBSD has (dkio(9), <sys/dkio.h>, tty(4)) have
// its names.
const (
	// DIOCCACHESYNC puts everything written so far on stable storage. data nil.
	DIOCCACHESYNC Cmd = iota + 1
	// DIOCGMEDIASIZE gives the size. data *int64, bytes.
	DIOCGMEDIASIZE
	// DIOCGSECTORSIZE gives the logical sector size. data *uint32, bytes.
	DIOCGSECTORSIZE
	// DIOCGDISKINFO describes the device. data *DiskInfo.
	DIOCGDISKINFO
	// DIOCWRITEZEROES writes zeroes. data *ZeroRange. vdev's own.
	DIOCWRITEZEROES
	// DIOCGROW makes the driver read the size of what is behind it again.
	// data nil, or *int64: the new size in bytes. vdev's own.
	DIOCGROW

	// TIOCGWINSZ gives the size of a terminal's window. data *Winsize. ENOTTY: none is known.
	// NetBSD: tty(4).
	TIOCGWINSZ

	// CmdDriver is the first number for commands of one driver's own.
	CmdDriver Cmd = 1 << 16
)

// String gives the command's name.
func (c Cmd) String() string {
	switch c {
	case DIOCCACHESYNC:
		return "DIOCCACHESYNC"
	case DIOCGMEDIASIZE:
		return "DIOCGMEDIASIZE"
	case DIOCGSECTORSIZE:
		return "DIOCGSECTORSIZE"
	case DIOCGDISKINFO:
		return "DIOCGDISKINFO"
	case DIOCWRITEZEROES:
		return "DIOCWRITEZEROES"
	case DIOCGROW:
		return "DIOCGROW"
	case TIOCGWINSZ:
		return "TIOCGWINSZ"
	}
	if c >= CmdDriver {
		return fmt.Sprintf("CmdDriver+%d", uint32(c-CmdDriver))
	}
	return fmt.Sprintf("command %d", uint32(c))
}

// Winsize is the size of a terminal's window, in characters. NetBSD: struct winsize,
// <sys/ttycom.h>.
type Winsize struct {
	Row, Col uint16
}

// ZeroRange is the argument of DIOCWRITEZEROES.
type ZeroRange struct {
	Pos, N int64 // bytes, multiples of the sector size
	Unmap  bool  // the range may be discarded, if it reads as zeroes then
}

// DiskInfo describes a disk.
type DiskInfo struct {
	Size         int64  // bytes
	SectorSize   uint32 // logical sector size, bytes
	ReadOnly     bool   // writes fail
	Discard      bool   // d_discard works
	WriteZeroes  bool   // DIOCWRITEZEROES works
	DiscardAlign uint32 // what discarded ranges should be aligned to, bytes; 0 unknown
	OptIOSize    uint32 // what the device likes best to be given at once, bytes; 0 unknown
	Rotational   bool   // seeks take time, as on a hard disk

	// Holds says for how long what was written ends with Holder.
	Holds Holding
	// Holder names the memory, or the process, that holds what was written: no
	// other one, of whatever process, has the number. 0 where Holds is
	// HoldsNothing.
	Holder uint64

	// Pinned: the host may hold the pages of a Buf's memory from a transfer's beginning on, and not
	// go by its addresses. So what is mapped there later does not keep the transfer from its pages.
	Pinned bool
}

// Holding says for how long writes that have succeeded depend on something that
// may end before the host does.
type Holding uint8

const (
	HoldsNothing Holding = iota // the host has them
	HoldsToClose                // until a flush, or until d_close and an end in order
	HoldsAlways                 // also when they were flushed: the disk is in memory
)

// DiskState is what the next one to serve a disk has to know of it.
type DiskState struct {
	// FlushError, where it is not 0, is the errno of a flush that has failed: writes that had
	// succeeded are lost. All later flushes have to fail with it too, until the disk is another
	// one, or until somebody who knows about it says that it is to be forgotten.
	FlushError Errno
	// Unflushed: writes had succeeded, and what held them (DiskInfo.Holder) is
	// gone.
	Unflushed bool
}

// NewHolder makes a number for DiskInfo.Holder.
func NewHolder() uint64 { return rand.Uint64() | 1 }
