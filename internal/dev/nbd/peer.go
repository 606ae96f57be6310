package nbd

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"

	"vdev/internal/sys"
)

// process is one of the host's, told from all others that there are or were.
type process struct {
	pid int
	// when it began, in clock ticks since the host did; 0: it has ended, and is not known
	start uint64
}

// listenerOf gives the process that has made the socket at the other end of a connection, which is
// the server's, or one that began it. ok is false where that cannot be told: with TCP, for a
// process that cannot be seen from here, and for a service manager, which makes sockets for others.
func listenerOf(nc net.Conn) (p process, ok bool) {
	uc, isUnix := nc.(*net.UnixConn)
	if !isUnix {
		return p, false
	}
	peer, err := sys.PeerOf(uc)
	if err != nil || peer.PID <= 1 {
		return p, false
	}
	p.pid = peer.PID
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if err != nil {
		return p, true // it has begun a server and ended
	}
	name, start := readStat(stat)
	p.start = start
	return p, name != "systemd"
}

// readStat reads a process's line (proc_pid_stat(5)): "pid (comm) state ppid ... starttime", where
// comm may have anything in it.
func readStat(stat []byte) (comm string, start uint64) {
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return "", 0
	}
	const startTime = 22 - 3 // the field's number, from that of the first one behind comm
	if fields := bytes.Fields(stat[end+1:]); len(fields) > startTime {
		start, _ = strconv.ParseUint(string(fields[startTime]), 10, 64)
	}
	return string(stat[open+1 : end]), start
}

// same tells whether two are, or were, the same process.
func (p process) same(q process) bool {
	return p.pid == q.pid && (p.start == q.start || p.start == 0 || q.start == 0)
}

// identify says which generation of a server that is somebody else's has accepted the connection l,
// as far as that can be told.
func (sc *softc) identify(l *link) {
	if sc.conf.Unflushed == UnflushedKept {
		return
	}
	p, ok := listenerOf(l.raw)
	if !ok {
		l.unidentified = true
		return
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.listener.pid != 0 && !sc.listener.same(p) {
		sc.generation++
	}
	if sc.listener.pid != p.pid || p.start != 0 {
		sc.listener = p
	}
	l.generation = sc.generation
}
