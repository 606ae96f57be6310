package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of linux/unix_diag.h.
const (
	udiagShowPeer = 0x4 // UDIAG_SHOW_PEER
	unixDiagPeer  = 2   // UNIX_DIAG_PEER
	unixDiagReq   = 24  // bytes of struct unix_diag_req
	unixDiagMsg   = 16  // bytes of struct unix_diag_msg
)

// PeerInode returns the inode number of the socket at the other end of the connected Unix socket c,
// by which it is found among the descriptors of whoever has it now: there /proc/PID/fd/N is a link
// to "socket:[INODE]" (proc_pid_fd(5)). 0 where it has none: nobody has accepted the connection
// yet, or it is closed. The error is the system's where that does not tell (sock_diag(7)).
func PeerInode(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var stat unix.Stat_t
	var callErr error
	err = raw.Control(func(fd uintptr) { callErr = unix.Fstat(int(fd), &stat) })
	if err = errors.Join(err, os.NewSyscallError("fstat", callErr)); err != nil {
		return 0, err
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, peerRequest(uint32(stat.Ino)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, os.NewSyscallError("sendto", err)
	}
	// The kernel has answered when sendto returns.
	p := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
	if err != nil {
		return 0, os.NewSyscallError("recvfrom", err)
	}
	return peerIn(p[:n])
}

// peerRequest asks for the peer of one Unix socket.
func peerRequest(inode uint32) []byte {
	host := binary.NativeEndian
	p := make([]byte, unix.NLMSG_HDRLEN+unixDiagReq)
	host.PutUint32(p, uint32(len(p)))
	host.PutUint16(p[4:], unix.SOCK_DIAG_BY_FAMILY)
	host.PutUint16(p[6:], unix.NLM_F_REQUEST)
	req := p[unix.NLMSG_HDRLEN:]
	req[0] = unix.AF_UNIX
	host.PutUint32(req[8:], inode)
	host.PutUint32(req[12:], udiagShowPeer)
	host.PutUint64(req[16:], ^uint64(0)) // no cookie: whatever socket has the inode
	return p
}

// peerIn finds the peer's inode in the answer; 0 where it does not tell of any.
func peerIn(p []byte) (uint32, error) {
	host := binary.NativeEndian
	if len(p) < unix.NLMSG_HDRLEN+4 {
		return 0, fmt.Errorf("sock_diag: an answer of %d bytes", len(p))
	}
	kind := host.Uint16(p[4:])
	p = p[unix.NLMSG_HDRLEN:]
	switch {
	case kind == unix.NLMSG_ERROR:
		return 0, os.NewSyscallError("sock_diag", syscall.Errno(-int32(host.Uint32(p))))
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(p) < unixDiagMsg:
		return 0, fmt.Errorf("sock_diag: an answer of type %d and %d bytes", kind, len(p))
	}
	const header = 4 // length and type
	for p = p[unixDiagMsg:]; len(p) >= header; {
		n := int(host.Uint16(p))
		if n < header || n > len(p) {
			return 0, fmt.Errorf("sock_diag: an attribute of %d bytes, of which %d are there", n, len(p))
		}
		if host.Uint16(p[2:]) == unixDiagPeer && n >= header+4 {
			return host.Uint32(p[header:]), nil
		}
		p = p[min((n+3)&^3, len(p)):]
	}
	return 0, nil
}
