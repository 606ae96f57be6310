package sys

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// ReopenTTY opens the terminal behind fd once more, with O_NONBLOCK. The flag belongs to an open
// file, and that of fd is shared with others, such as the shell that has started this process.
func ReopenTTY(fd int) (*FD, error) {
	name := fmt.Sprintf("/proc/self/fd/%d", fd)
	got, err := unix.Open(name, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return NewFD(got), nil
}

// Foreground tells whether this process may change the settings of the terminal fd without being
// stopped for it (SIGTTOU): it is in the terminal's foreground, or the terminal does not control
// it.
func Foreground(fd int) bool {
	group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP)
	return err != nil || group == unix.Getpgrp()
}

// DropOutput throws away what was written to the master fd of a pseudo-terminal and not read at the
// other side (TCFLSH).
func DropOutput(fd int) error {
	return os.NewSyscallError("ioctl(TCFLSH)", unix.IoctlSetInt(fd, unix.TCFLSH, unix.TCOFLUSH))
}

// WatchOpens returns a file from which something can be read after anybody has opened the file at
// path: records that say no more (inotify(7), IN_OPEN). It works with package os's deadlines.
func WatchOpens(path string) (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
		unix.Close(fd)
		return nil, &os.PathError{Op: "inotify_add_watch", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), "inotify of "+path), nil
}

// SetNonblock sets O_NONBLOCK on the open file behind fd, for all who have it.
func SetNonblock(fd int) error { return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true)) }
