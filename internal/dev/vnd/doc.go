// Package vnd makes a disk of a file or of a block device of the host, after NetBSD's vnd(4).
//
// # The image
//
// A regular file or a block device. Its size is the file's, rounded up to 512 bytes as QEMU does, then down to whole
// sectors; what the last sector has and the file has not reads as zeroes, and a write there makes the file longer. With
// O_DIRECT a writable image's size must be a multiple of what the host's transfers have to be aligned to, since the file
// would otherwise grow beyond the disk. A block device that the host itself uses (has mounted, say) is refused for writing.
//
// Transfers go straight to and from the Buf's memory through the issuer's AIO, or through goroutines of the driver's own where
// there is none. With O_DIRECT, what the host cannot take as it is goes through memory of the driver's (bounce.go); sectors
// smaller than the host's blocks are then written by reading and writing whole blocks, one such write at a time per block.
//
// # Locks on the image
//
// From d_open to d_close the driver holds the locks that QEMU's file driver holds for a guest's disk (lock.go), so that QEMU,
// qemu-img and this driver refuse each other's images, and several read-only users go together.
//
// # Flush and its failures
//
// DIOCCACHESYNC is fdatasync(2), which covers every write whose biodone came before. Once one has failed, all later ones fail
// with the same errno until the device is closed, as in QEMU: the host has dropped what it could not write, and its next
// fdatasync would say that all is well.
//
// # One device at a time
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
//
// # Concurrency
//
// Lock order: softc.mu, then the locks of one image (image.mu, threads.mu, ranges.mu, syncer.mu), which are taken one at a
// time. No lock is held over a system call or a call to anybody else. A transfer takes none, but where it leaves the straight
// way: the first of an AIO (to remember it), without an AIO, and writes of sectors smaller than the host's blocks.
package vnd
