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
// with the same errno: the host has dropped what it could not write, and its next fdatasync would say that all is well. A close
// changes nothing in that, nor does the end of the process (Config.Failures): it lasts until the image is another one, or somebody
// says that it is to be forgotten (ClearState).
//
// # One device at a time
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
//
// # A host that does not answer
//
// The host may keep a transfer for as long as it likes, and d_cancel gets back what it can: with io_uring what has not begun,
// and a little of what waits for a file system's server. What it keeps cannot touch memory that somebody maps over the Buf's,
// since it goes by addresses: so whoever takes the disk down need not wait for it. That is not so with Direct, where the host
// holds the pages themselves from the transfer's beginning on: DiskInfo.Pinned says so. With Direct and Bounce they are the
// driver's own, at the price of a copy. Where a file system makes transfers direct though nobody asked for it (FUSE's
// FOPEN_DIRECT_IO), the driver sees that when it opens the image, and bounces by itself.
//
// No memory helps against a write that the host keeps and carries out in the end: d_close waits for it, and the image stays
// locked until then. Nor does anything against an open, an fdatasync or a close that the host does not end: they hold up
// nobody but d_open, DIOCCACHESYNC and d_close.
//
// Transfers of a file on a file system that waits for others (FUSE, a network's) say BMayBlock, so that an AIO shared
// with other disks keeps going.
//
// # Concurrency
//
// Lock order: softc.mu, then the locks of one image (image.mu, threads.mu, ranges.mu, syncer.mu), which are taken one at a
// time. No lock is held over a system call or a call to anybody else. A transfer takes none, but where it leaves the straight
// way: the first of an AIO (to remember it), without an AIO, and writes of sectors smaller than the host's blocks.
package vnd
