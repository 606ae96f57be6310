package sys

import (
	"os"

	"golang.org/x/sys/unix"
)

// Rights returns the control message that sends fds over a Unix socket (SCM_RIGHTS). The
// descriptors stay the caller's. Without any it returns nil, which sends no control message.
func Rights(fds ...int) []byte {
	if len(fds) == 0 {
		return nil
	}
	return unix.UnixRights(fds...)
}

// ParseRights takes ownership of every descriptor in the control messages oob, as recvmsg(2) filled
// them in, in their order. Control messages of other kinds are skipped. On an error all descriptors
// found are closed and none is returned. CLOEXEC is set by the receiver: package net's ReadMsgUnix
// does so.
//
// What the kernel cut off for want of room (MSG_CTRUNC) it has closed by itself; the rest is found
// here.
func ParseRights(oob []byte) ([]*FD, error) {
	var fds []*FD
	for len(oob) > 0 {
		hdr, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			CloseAll(fds)
			return nil, os.NewSyscallError("recvmsg(SCM_RIGHTS)", err)
		}
		oob = rest
		if hdr.Level != unix.SOL_SOCKET || hdr.Type != unix.SCM_RIGHTS {
			continue
		}
		nums, err := unix.ParseUnixRights(&unix.SocketControlMessage{Header: hdr, Data: data})
		if err != nil {
			CloseAll(fds)
			return nil, os.NewSyscallError("recvmsg(SCM_RIGHTS)", err)
		}
		for _, n := range nums {
			fds = append(fds, NewFD(n))
		}
	}
	return fds, nil
}

// CloseAll closes each of fds; nil entries are skipped. It is for paths that give up: errors are
// dropped.
func CloseAll(fds []*FD) {
	for _, f := range fds {
		if f != nil {
			f.Close()
		}
	}
}
