package devsw

import "fmt"

// Dev is a device number: the number of a driver (major) and of a device of
// that driver (minor). Block and character devices have numbers of their own,
// so a Dev means something only together with a Mode. NetBSD: dev_t.
type Dev uint64

// NODEV is no device's number.
const NODEV = ^Dev(0)

// NODEVMAJOR stands for "no major": the table chooses one (Attach), or there
// is none (lookups).
const NODEVMAJOR = -1

// MAXDEVSW is the number of majors of each kind: a major is below it.
// NetBSD: MAXDEVSW in sys/kern/subr_devsw.c.
const MAXDEVSW = 512

// Makedev makes a device number. NetBSD: makedev(3).
func Makedev(major, minor uint32) Dev {
	return Dev(major)<<32 | Dev(minor)
}

// Major is the number of the driver.
func (d Dev) Major() uint32 { return uint32(d >> 32) }

// Minor is the number of the device among those of its driver.
func (d Dev) Minor() uint32 { return uint32(d) }

// String gives "major,minor", as ls -l prints it.
func (d Dev) String() string {
	if d == NODEV {
		return "nodev"
	}
	return fmt.Sprintf("%d,%d", d.Major(), d.Minor())
}

// Mode is the kind of a device. NetBSD: the devtype argument of d_open, and
// the file type bits of mode_t, whose values these are.
type Mode uint32

// The kinds of devices.
const (
	IFCHR Mode = 0o020000 // a character device (S_IFCHR)
	IFBLK Mode = 0o060000 // a block device (S_IFBLK)
)

// String gives "block" or "character".
func (m Mode) String() string {
	switch m {
	case IFCHR:
		return "character"
	case IFBLK:
		return "block"
	}
	return fmt.Sprintf("mode %#o", uint32(m))
}

// Flag says how a device is opened, and how a read or write is meant.
// NetBSD: <sys/fcntl.h>, whose values these are.
type Flag int

// The flags.
const (
	FREAD     Flag = 0x1 // for reading
	FWRITE    Flag = 0x2 // for writing
	FNONBLOCK Flag = 0x4 // do not sleep: EAGAIN (EWOULDBLOCK) instead

	// FRESUME, at an open, says that the opener goes on where it was when it closed the device
	// last, and trusts that all it has written is there. A driver that has lost some of it fails
	// every operation with ESTALE, until an open without this flag: its opener begins with what it
	// finds. vdev's own.
	FRESUME Flag = 1 << 30
)

// DFlag is a driver's type, and the properties it declares.
// NetBSD: d_flag, <sys/conf.h>.
type DFlag int

// The types of a driver (one of them), and its properties (any of them).
const (
	DOther DFlag = iota // anything else
	DTape
	DDisk
	DTTY

	dTypeMask DFlag = 0xff

	// DMPSafe says that the driver's operations may be called on several
	// goroutines at once. Without it they run under the table's one lock
	// (Table.Lock), which an operation lets go only while it sleeps.
	DMPSafe DFlag = 0x100
)

// Type is the driver's type alone: DOther, DTape, DDisk or DTTY.
func (f DFlag) Type() DFlag { return f & dTypeMask }
