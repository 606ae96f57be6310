package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Identity names what is behind the descriptor of a regular file or block device, in letters that a
// file name can have. Another file has another identity, even where it has the inode number of one
// that is gone (by its time of birth, where the file system knows it). So has another device under
// the same number (by its sequence number, where the kernel has it: Linux 5.15). The identity may
// change when the host is started again.
func (f *FD) Identity() (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(f.Int(), "", unix.AT_EMPTY_PATH, unix.STATX_TYPE|unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		return fmt.Sprintf("block-%d-%d-%d", st.Rdev_major, st.Rdev_minor, diskSequence(f.Int())), nil
	}
	name := fmt.Sprintf("file-%d-%d-%d", st.Dev_major, st.Dev_minor, st.Ino)
	if st.Mask&unix.STATX_BTIME != 0 {
		name += fmt.Sprintf("-%d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return name, nil
}
