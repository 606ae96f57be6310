// Package disk is a kit for disk drivers: what they have in common, so that a driver is its storage
// and nothing else. Above it stands specfs, which opens, cancels, drains and closes a disk, and
// above that a device such as vhostuser/virtioblk, whose Config takes an FS, a device and
// Driver.Info.
//
// There are three ways to write a driver:
//
//   - A Storage has functions that may block: ReadAt, WriteAt, Flush. NewDisk does the rest. It
//     copies each transfer, and runs the functions on goroutines of its own. That is right for
//     whatever is much slower than a copy. A context tells the functions of a cancel.
//   - A Medium starts each transfer and ends it later, wherever it likes: on the event loop that
//     has issued the transfer (devsw.Buf.AIO), or when an answer comes. devsw.BufSet helps it to
//     cancel. A Medium that only copies memory is a Copier.
//   - A Switch is the two devices and the units alone, for a driver that needs all functions of a
//     device switch for itself.
//
// With the first two, Attach makes a Driver: the functions of the block and the character device,
// the units and their numbers, who has which disk open, what an open, a cancel and a close mean for
// an open that waits, the disk's end, read-only disks, and the ioctls of a disk
// (devsw.DIOCGDISKINFO and so on). Transfers of the character device (d_read, d_write) are made of
// transfers of the block device.
//
// On the way of a transfer there is no lock and no allocation of this package's, but for a
// Storage's.
//
// Numbers: a unit's minor number is its unit number, 0 to 65535, for the block and the character
// device alike. NetBSD's DISKUNIT(dev) is minor / MAXPARTITIONS, with the whole disk as partition
// RAW_PART. There are no partitions here: the guest makes its own. NetBSD: sys/dev/dksubr.c and
// struct dkdriver.
//
// Locks: a claim's mutex is held for a few instructions, and while nothing else of this package is
// locked. A Medium's functions are called without any.
package disk
