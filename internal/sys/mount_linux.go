package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// MountFUSE mounts a FUSE file system of this process at the folder path, and returns the
// connection that its server answers on (fuse(4)), CLOEXEC and the caller's. subtype is what the
// host calls it behind "fuse."; maxRead is the longest read in bytes. ENOENT, EACCES, ENODEV,
// EPERM: the host has no FUSE, or does not let this user mount it.
func MountFUSE(path, subtype string, maxRead int) (*FD, error) {
	fd, err := OpenFile("/dev/fuse", OpenFlags{Write: true})
	if err != nil {
		return nil, fmt.Errorf("/dev/fuse: %w", err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=%o,user_id=%d,group_id=%d,allow_other,max_read=%d", fd.Int(), unix.S_IFDIR,
		os.Geteuid(), os.Getegid(), maxRead)
	if err := unix.Mount(subtype, path, "fuse."+subtype, unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		fd.Close()
		return nil, os.NewSyscallError("mount", err)
	}
	return fd, nil
}

// UnmountFUSE unmounts the FUSE file system at path, also where it is in use and its server does
// not answer. What is in progress then fails, and so does later use of open files. EINVAL where
// nothing is mounted there, EPERM without the right to.
func UnmountFUSE(path string) error {
	err := unix.Unmount(path, 0)
	if err == unix.EBUSY {
		// MNT_FORCE ends the connection, and fails while files are open. MNT_DETACH alone would
		// leave them as they are.
		_ = unix.Unmount(path, unix.MNT_FORCE)
		err = unix.Unmount(path, unix.MNT_DETACH)
	}
	return os.NewSyscallError("umount2", err)
}

// Mount mounts the file system on dev, which is of this kind, at dir (mount(2)).
func Mount(dev, dir, kind string) error {
	return os.NewSyscallError("mount", unix.Mount(dev, dir, kind, 0, ""))
}

// Unmount unmounts what is mounted at dir (umount2(2)). EBUSY while it is in use.
func Unmount(dir string) error { return os.NewSyscallError("umount2", unix.Unmount(dir, 0)) }

// Freeze freezes the file system that f is on, or thaws it: while it is frozen every write to it
// sleeps (ioctl_fsfreeze(2)).
func (f *FD) Freeze(frozen bool) error {
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE, FITHAW (linux/fs.h)
	req := uint(thaw)
	if frozen {
		req = freeze
	}
	return os.NewSyscallError("ioctl", unix.IoctlSetInt(f.Int(), req, 0))
}
