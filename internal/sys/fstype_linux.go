package sys

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// mayBlock are the file systems whose every operation may wait for a server or a daemon, also where
// other file systems answer at once, with EAGAIN if they must (statfs(2); linux/magic.h and the
// file systems' own headers).
var mayBlock = []int64{
	unix.FUSE_SUPER_MAGIC,
	unix.NFS_SUPER_MAGIC,
	unix.CIFS_SUPER_MAGIC,
	unix.SMB2_SUPER_MAGIC,
	unix.V9FS_MAGIC,
	unix.CEPH_SUPER_MAGIC,
	unix.AFS_FS_MAGIC,
	unix.AFS_SUPER_MAGIC,
	unix.CODA_SUPER_MAGIC,
	unix.OCFS2_SUPER_MAGIC,
	0x517b,     // SMB_SUPER_MAGIC
	0x01161970, // GFS2_MAGIC
	0x0bd00bd0, // Lustre
	0x20030528, // ORANGEFS_SUPER_MAGIC
	0x47504653, // GPFS
	0x19830326, // BeeGFS
	0x786f4256, // VBOXSF_SUPER_MAGIC
}

// MayBlock tells whether the file behind fd is on a file system whose every operation may wait for
// a server or a daemon, without an end. The answer may take as long. fd is not a block device,
// whose name lies on a file system that it has nothing to do with.
func MayBlock(fd int) (bool, error) {
	var st unix.Statfs_t
	for n := interrupts(0); ; {
		err := unix.Fstatfs(fd, &st)
		if err == nil {
			return slices.Contains(mayBlock, int64(uint32(st.Type))), nil
		}
		if !n.again(&err) {
			return false, os.NewSyscallError("fstatfs", err)
		}
	}
}

// punches are the file systems that are known to punch holes. overlayfs does if the file system
// that it writes to does.
var punches = []int64{
	unix.EXT4_SUPER_MAGIC,
	unix.XFS_SUPER_MAGIC,
	unix.BTRFS_SUPER_MAGIC,
	unix.TMPFS_MAGIC,
	unix.F2FS_SUPER_MAGIC,
	unix.OVERLAYFS_SUPER_MAGIC,
}

// CanPunch tells whether PunchHole works for the file behind fd, which is open for writing and has
// size bytes. An unknown file system is asked to punch a hole behind the file's end: that changes
// nothing, but on some the time of the last change. It may take as long as a server likes.
func CanPunch(fd int, size int64) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) == nil && slices.Contains(punches, int64(uint32(st.Type))) {
		return true
	}
	const block = 4096
	switch PunchHole(fd, (size+block-1)&^(block-1), block) {
	case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENOTTY, unix.ENODEV:
		return false
	}
	return true
}
