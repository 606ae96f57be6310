package sys

import "golang.org/x/sys/unix"

// MaxProcesses gives RLIMIT_NPROC (getrlimit(2)): how many tasks the process's user may have, at
// most; ^uint64(0) without a limit.
func MaxProcesses() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NPROC, &l); err != nil {
		return ^uint64(0)
	}
	return l.Cur
}
