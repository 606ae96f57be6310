package load

import (
	"fmt"
	"net"
	"os"
	"strconv"

	"vdev/internal/sys"
)

// serverOf returns the process that serves a connection, which must have been accepted: it has the
// socket at the other end. That need not be who began to listen (SO_PEERCRED): a service manager
// may do that for others. 0 where it cannot be seen from here.
func serverOf(c *net.UnixConn) int {
	inode, err := sys.PeerInode(c)
	if err != nil || inode == 0 {
		return 0
	}
	peer, err := sys.PeerOf(c)
	if err != nil {
		return 0
	}
	return holder(inode, peer.PID)
}

// holder returns the process that has a socket: probable, where that has it (0 is nobody), or else
// the only one that has it, among those that can be looked at; 0 where there is none, or there are
// several.
func holder(inode uint32, probable int) int {
	if probable != 0 && holds(probable, inode) {
		return probable
	}
	found := 0
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !holds(pid, inode) {
			continue
		}
		if found != 0 {
			return 0
		}
		found = pid
	}
	return found
}

// holds tells whether a process is seen to have a socket.
func holds(pid int, inode uint32) bool {
	dir, socket := fmt.Sprintf("/proc/%d/fd/", pid), fmt.Sprintf("socket:[%d]", inode)
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if to, err := os.Readlink(dir + e.Name()); err == nil && to == socket {
			return true
		}
	}
	return false
}
