package sys

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pollNow asks poll(2) for events on fd without waiting, and returns what it found; 0 also when it
// failed.
func pollNow(fd int, events int16) int16 {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: events}}
	for {
		n, err := unix.Poll(p[:], 0)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return 0
		default:
			return p[0].Revents
		}
	}
}

// Readable tells whether fd has something to read at this moment, so that one read does not block
// if nobody else reads. It does not wait.
func Readable(fd int) bool { return pollNow(fd, unix.POLLIN)&unix.POLLIN != 0 }

// Writable tells whether fd takes something at this moment, so that one small write does not block
// if nobody else writes. It does not wait.
func Writable(fd int) bool { return pollNow(fd, unix.POLLOUT)&unix.POLLOUT != 0 }

// HungUp tells whether the peer of the socket fd has closed it, or shut down its sending side. It
// does not wait.
func HungUp(fd int) bool {
	return pollNow(fd, unix.POLLRDHUP)&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
}

// Closed tells whether the peer of the socket fd has closed it altogether. It does not wait.
func Closed(fd int) bool { return pollNow(fd, 0)&(unix.POLLHUP|unix.POLLERR) != 0 }

// DrainEventfd sets the counter of an eventfd to 0, or takes 1 from it with EFD_SEMAPHORE. It does
// not wait, with or without O_NONBLOCK. It leaves that flag alone, which belongs to all who have
// the file.
func DrainEventfd(fd int) {
	var b [8]byte
	for {
		_, err := unix.Preadv2(fd, [][]byte{b[:]}, -1, unix.RWF_NOWAIT)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOSYS:
			// Linux before 5.8. Somebody else may read between the two.
			if Readable(fd) {
				_, _ = EventfdRead(fd)
			}
		}
		return
	}
}

// WaitReadable waits until fd has something to read, or for timeout, which is no error.
func WaitReadable(fd int, timeout time.Duration) error {
	p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for end := time.Now().Add(timeout); ; {
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		if _, err := unix.Poll(p[:], int(left.Milliseconds())+1); err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
}

// await waits until fd has something to read, or takes something if write is true, or has hung up
// or failed; or until the eventfd end was signalled, and then ended is true.
func await(fd int, write bool, end int) (ended bool, err error) {
	p := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(end), Events: unix.POLLIN}}
	if write {
		p[0].Events = unix.POLLOUT
	}
	for {
		_, err := unix.Poll(p[:], -1)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return false, os.NewSyscallError("poll", err)
		default:
			return p[1].Revents != 0, nil
		}
	}
}
