package sys

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// LockShared puts a shared lock (F_RDLCK) on n bytes of fd from start on, and does not wait: EAGAIN
// or EACCES say that somebody holds an exclusive one. The lock belongs to fd's open file
// description (F_OFD_SETLK, fcntl(2)). It ends when the last descriptor of that description is
// closed and the last operation on it has ended; the process's other descriptors of the file do not
// matter. fd must be open for reading.
func LockShared(fd int, start, n int64) error {
	return ofd(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: start, Len: n})
}

// LockHeld reports whether another open file description, or a process with traditional locks,
// holds any lock on n bytes of fd from start on. pid is the holder's where the kernel tells, which
// it does only of traditional locks, and else -1.
func LockHeld(fd int, start, n int64) (held bool, pid int, err error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: start, Len: n}
	if err := ofd(fd, unix.F_OFD_GETLK, &lk); err != nil {
		return false, -1, err
	}
	return lk.Type != unix.F_UNLCK, int(lk.Pid), nil
}

func ofd(fd, cmd int, lk *unix.Flock_t) error {
	for {
		err := unix.FcntlFlock(uintptr(fd), cmd, lk)
		switch {
		case err == nil:
			return nil
		case err == unix.EINTR:
		case cmd == unix.F_OFD_GETLK:
			return os.NewSyscallError("fcntl(F_OFD_GETLK)", err)
		default:
			return os.NewSyscallError("fcntl(F_OFD_SETLK)", err)
		}
	}
}
