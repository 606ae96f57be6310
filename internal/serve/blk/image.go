package blk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"vdev/internal/dev/vnd"
)

const (
	// lockPause is how often a lock is tried while it is waited for.
	lockPause = 20 * time.Millisecond
	// aliveWait is how long a process that has the image, and does not seem to be ending, is waited
	// for. It may have been killed a moment ago.
	aliveWait = 200 * time.Millisecond
)

// checkImage looks, with check, whether an image can be opened, and has its lock. It waits for a
// predecessor that was killed: the kernel keeps the locks of a dead process until its last transfer
// has ended, when no process can be seen that has them. An image that is in use by one that lives
// is an error, a *vnd.LockError; or, where inUse is not nil, none, but inUse is told: the guest
// comes from there, and will have given the image up when it starts here.
func checkImage(ctx context.Context, check func() error, ending func(pid int) bool, inUse func(error)) error {
	// To look who has it may take longer than to wait.
	for begun := time.Now(); ; {
		err := check()
		var lock *vnd.LockError
		if !errors.As(err, &lock) {
			return err
		}
		if inUse != nil {
			inUse(err)
			return nil
		}
		patience := vnd.DefaultLockWait
		if lock.PID > 0 && !ending(lock.PID) {
			patience = aliveWait
		}
		if time.Since(begun) >= patience {
			return err
		}
		select {
		case <-time.After(lockPause):
		case <-ctx.Done():
			return err
		}
	}
}

// ending tells whether a process has ended, or is about to and only waits for its transfers.
func ending(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	return endingStat(stat)
}

// endingStat reads it off the process's line (proc_pid_stat(5)): "pid (comm) state ppid pgrp
// session tty_nr tpgid flags ...", where comm may have anything in it.
func endingStat(stat []byte) bool {
	const exiting = 0x4 // PF_EXITING of the kernel
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(fields[6]), 10, 64)
	return fields[0][0] == 'Z' || fields[0][0] == 'X' || err == nil && flags&exiting != 0
}
