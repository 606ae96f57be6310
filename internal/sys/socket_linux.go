package sys

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// MaxRights is how many descriptors one message can carry (SCM_MAX_FD of the kernel).
const MaxRights = 253

// MsgTruncated is the flag of recvmsg(2) that control data was cut off for want of room, or of free
// descriptors.
const MsgTruncated = unix.MSG_CTRUNC

// RightsSpace returns the room in bytes that a control message with n descriptors needs.
func RightsSpace(n int) int { return unix.CmsgSpace(4 * n) }

// Nonblocking tells whether O_NONBLOCK is set on the open file behind fd, which other processes may
// share.
func Nonblocking(fd int) (bool, error) {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return false, os.NewSyscallError("fcntl(F_GETFL)", err)
	}
	return flags&unix.O_NONBLOCK != 0, nil
}

// SocketInfo says what a socket is.
type SocketInfo struct {
	Unix      bool // of the AF_UNIX family
	Stream    bool // of type SOCK_STREAM
	Listening bool // listen(2) was called
}

// Socket describes the socket fd. Its error is ENOTSOCK for another kind of file, EBADF for no
// file.
func Socket(fd int) (SocketInfo, error) {
	var s SocketInfo
	for _, o := range []struct {
		opt  int
		want int
		to   *bool
	}{
		{unix.SO_DOMAIN, unix.AF_UNIX, &s.Unix},
		{unix.SO_TYPE, unix.SOCK_STREAM, &s.Stream},
		{unix.SO_ACCEPTCONN, 1, &s.Listening},
	} {
		v, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.opt)
		if err != nil {
			return SocketInfo{}, os.NewSyscallError("getsockopt", err)
		}
		*o.to = v == o.want
	}
	return s, nil
}

// SendNow sends p over the stream socket fd without waiting, whatever the socket's flags: EAGAIN
// where there is no room. There is no SIGPIPE. EMSGSIZE: a part of p was sent. A few bytes are sent
// wholly or not at all.
func SendNow(fd int, p []byte) error {
	for {
		n, err := unix.SendmsgN(fd, p, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil && n < len(p):
			err = unix.EMSGSIZE
		}
		return os.NewSyscallError("sendmsg", err)
	}
}

// Peek looks at the first byte that waits on the stream socket fd, without taking it and without
// waiting: 1 where there is one, 0 where the peer has hung up, EAGAIN where neither.
func Peek(fd int) (int, error) {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		return max(n, 0), os.NewSyscallError("recvfrom", err)
	}
}

// SocketPair returns two Unix stream sockets that are connected to each other.
func SocketPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		// FileConn duplicates the descriptor.
		f := os.NewFile(uintptr(fd), "socketpair")
		c, cerr := net.FileConn(f)
		f.Close()
		if cerr != nil {
			err = cerr
			continue
		}
		conns[i] = c.(*net.UnixConn)
	}
	if err != nil {
		for _, c := range conns {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return conns[0], conns[1], nil
}
