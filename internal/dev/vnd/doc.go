// Package vnd makes a disk of a file or of a block device of the host, after NetBSD's vnd(4).
//
// # The image
//
// The image is a regular file or a block device. The disk's size is the file's, rounded up to 512
// bytes as QEMU does, then down to whole sectors. The part of the last sector that the file does
// not have reads as zeroes, and a write there makes the file longer. With O_DIRECT the size of a
// writable image must be a multiple of the alignment of the host's transfers, since the file would
// otherwise grow beyond the disk. A block device that the host itself uses (has mounted, say) is
// refused for writing.
//
// Transfers go straight to and from the Buf's memory through the issuer's AIO, or through
// goroutines of the driver's own where there is none. With O_DIRECT, what the host cannot take as
// it is goes through memory of the driver's (bounce.go); sectors smaller than the host's blocks are
// then written by reading and writing whole blocks, one such write at a time per block.
//
// # Locks on the image
//
// From d_open to d_close the driver holds the locks that QEMU's file driver holds for a guest's
// disk (lock.go), so that QEMU, qemu-img and this driver refuse each other's images, and several
// read-only users go together.
//
// # Flush and its failures
//
// DIOCCACHESYNC is fdatasync(2), which covers every write whose biodone came before. Once one has
// failed, all later ones fail with the same errno: the host has dropped what it could not write,
// and its next fdatasync would succeed. Neither a close nor the end of the process
// (Config.Failures) changes that. It lasts until the image is another one, or somebody says that it
// is to be forgotten (ClearState).
//
// # One device at a time
//
// A unit is open through its block device or through its character device, not through both: EBUSY.
//
// # A host that does not answer
//
// The host may take as long as it likes for a transfer. d_cancel ends what it can: with io_uring,
// transfers that have not begun, and a few that wait for a file system's server. The others go by
// addresses, and so cannot touch memory that somebody maps over the Buf's: whoever takes the disk
// down need not wait for them. With Direct that is not so: there the host holds the pages
// themselves from the transfer's beginning on, and DiskInfo.Pinned says so. With Direct and Bounce
// those pages are the driver's own, at the price of a copy. A file system may make transfers direct
// though nobody asked for it (FUSE's FOPEN_DIRECT_IO). The driver sees that when it opens the
// image, and bounces by itself.
//
// The host may carry out such a write in the end. So d_close waits for it, and the image stays
// locked until then. An open, an fdatasync or a close that the host does not end holds up only
// d_open, DIOCCACHESYNC and d_close.
//
// Transfers of a file on a file system that waits for others (FUSE, a network's) have the flag
// BMayBlock, so that an AIO shared with other disks goes on.
//
// # Concurrency
//
// Lock order: softc.mu, then the locks of one image (image.mu, threads.mu, ranges.mu, syncer.mu),
// which are taken one at a time. No lock is held over a system call or a call to anybody else. A
// transfer takes a lock only in these cases: it is the first of an AIO (to remember the AIO), it
// has no AIO, or it writes sectors smaller than the host's blocks.
package vnd
