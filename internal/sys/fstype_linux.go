package sys

import (
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// mayBlock are the file systems that wait for somebody else, a server or a daemon, wherever they are touched: also where others
// answer at once, with EAGAIN if they must (statfs(2); linux/magic.h and the file systems' own headers).
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

// MayBlock tells whether the file behind fd is on a file system whose every operation may wait for a server or a daemon, without
// an end. The answer may take as long. fd is not a block device, whose name lies on a file system that it has nothing to do with.
func MayBlock(fd int) (bool, error) {
	var st unix.Statfs_t
	for {
		switch err := unix.Fstatfs(fd, &st); err {
		case nil:
			return slices.Contains(mayBlock, int64(uint32(st.Type))), nil
		case unix.EINTR:
		default:
			return false, os.NewSyscallError("fstatfs", err)
		}
	}
}
