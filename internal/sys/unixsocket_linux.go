package sys

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse is wrapped by the error of ListenUnix when another process listens on the path already.
var ErrInUse = errors.New("another process listens on it")

// ListenUnix listens on a Unix stream socket at path. mode, where it is not 0, are the permissions
// that the socket has from its first moment on, less the process's umask. A socket that nobody
// listens on any more, left by a process that was killed, is replaced; anything else that is there
// is an error, ErrInUse for a socket in use. Closing the listener removes the socket, if it is
// still the one that was made here.
func ListenUnix(path string, mode fs.FileMode) (*UnixListener, error) {
	ln, err := bindUnix(path, mode)
	if err == nil || !errors.Is(err, syscall.EADDRINUSE) {
		return ln, err
	}
	info, statErr := os.Lstat(path)
	if statErr != nil {
		return nil, statErr
	}
	if info.Mode().Type() != fs.ModeSocket {
		return nil, errors.New("there is a file that is no socket")
	}
	c, dialErr := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	switch {
	case dialErr == nil:
		c.Close()
		return nil, ErrInUse
	case !errors.Is(dialErr, syscall.ECONNREFUSED):
		// EAGAIN: somebody listens, and is behind with accepting. EACCES: it is somebody else's.
		return nil, fmt.Errorf("%w (%w)", ErrInUse, dialErr)
	}
	// Somebody else may have found it, too, and have made one of his own in its place.
	if err := removeSame(path, info); err != nil {
		return nil, err
	}
	return bindUnix(path, mode)
}

// removeSame removes what is at path if that is still the file that info is of. A file that is put
// there between the look and the removal is lost: no call of Linux removes a name only where it
// stands for a certain file.
func removeSame(path string, info fs.FileInfo) error {
	now, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, info) {
		return nil
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// UnixListener listens on a socket that ListenUnix has made.
type UnixListener struct {
	*net.UnixListener
	path  string
	made  fs.FileInfo // what is at path; nil where it is not known, and then nothing is removed
	close sync.Once
	err   error
}

// Close ends it, and removes the socket's name. A socket that somebody has put in its place, by
// removing the name or by renaming another one to it, stays.
func (l *UnixListener) Close() error {
	l.close.Do(func() {
		// While the socket is open its file keeps its number, so that no other one has it.
		if l.made != nil {
			l.err = removeSame(l.path, l.made)
		}
		l.err = errors.Join(l.err, l.UnixListener.Close())
	})
	return l.err
}

// SetUnlinkOnClose says whether Close removes the name, which it does unless told otherwise. Before
// Close.
func (l *UnixListener) SetUnlinkOnClose(remove bool) {
	if !remove {
		l.made = nil
	}
}

func bindUnix(path string, mode fs.FileMode) (*UnixListener, error) {
	var config net.ListenConfig
	if mode != 0 {
		// Linux makes the socket's file with the permissions that the socket itself has when it is
		// bound (unix_bind).
		config.Control = func(_, _ string, c syscall.RawConn) error {
			var err error
			if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode.Perm())) }); cerr != nil {
				return cerr
			}
			return os.NewSyscallError("fchmod", err)
		}
	}
	ln, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, err
	}
	u := &UnixListener{UnixListener: ln.(*net.UnixListener), path: path}
	u.UnixListener.SetUnlinkOnClose(false)
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() == fs.ModeSocket {
		u.made = info
	}
	return u, nil
}

// Peer is the process at the other end of a Unix socket, as it was when it connected (SO_PEERCRED,
// unix(7)). It may have passed the socket on since.
type Peer struct {
	PID int // 0 where it is in a process namespace that cannot be seen from here
	UID int
}

// PeerOf asks who is at the other end of the connected Unix socket c.
func PeerOf(c syscall.Conn) (Peer, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return Peer{}, err
	}
	var cred *unix.Ucred
	var callErr error
	err = raw.Control(func(fd uintptr) {
		cred, callErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err = errors.Join(err, os.NewSyscallError("getsockopt(SO_PEERCRED)", callErr)); err != nil {
		return Peer{}, err
	}
	return Peer{PID: int(cred.Pid), UID: int(cred.Uid)}, nil
}
