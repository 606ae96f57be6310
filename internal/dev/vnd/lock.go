package vnd

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"vdev/devsw"
	"vdev/internal/sys"
)

// QEMU's block/file-posix.c locks single bytes of the image, each standing for one permission
// (include/block/block-common.h): a shared lock on lockPermBase + i by everybody who has permission
// i, and one on lockSharedBase + i by everybody who does not let others have it. After taking its
// own, each looks whether somebody else holds a lock that speaks against them.
const (
	lockPermBase   = 100 // RAW_LOCK_PERM_BASE
	lockSharedBase = 200 // RAW_LOCK_SHARED_BASE

	permConsistentRead = 0 // BLK_PERM_CONSISTENT_READ is 1 << 0
	permWrite          = 1 // BLK_PERM_WRITE is 1 << 1
)

// permNames are QEMU's names for the permissions.
var permNames = [...]string{permConsistentRead: "consistent read", permWrite: "write"}

// LockError tells that an image is in use. It wraps EBUSY.
type LockError struct {
	Path    string
	Perm    string // the permission that could not be had, by QEMU's name
	Shared  bool   // it could not be had for ourselves alone: somebody else has it already
	PID     int    // who has the image, 0 where that cannot be told
	Command string // what that process calls itself

	at int64 // the byte of the image whose lock is in the way
}

// Error names the image, who has it where that is known, and the lock as QEMU names it.
func (e *LockError) Error() string {
	who := "another process"
	switch {
	case e.PID == os.Getpid():
		who = "this process already"
	case e.PID > 0 && e.Command != "":
		who = fmt.Sprintf("another process (%s, pid %d)", e.Command, e.PID)
	case e.PID > 0:
		who = fmt.Sprintf("another process (pid %d)", e.PID)
	}
	shared := ""
	if e.Shared {
		shared = "shared "
	}
	return fmt.Sprintf("%s: in use by %s: failed to get %s%q lock", e.Path, who, shared, e.Perm)
}

// Unwrap gives EBUSY.
func (e *LockError) Unwrap() error { return devsw.EBUSY }

// lockImage takes the locks that QEMU takes for a guest's disk, on the open file description of fd:
// for a writable one the permissions to read consistently and to write, for a read-only one the
// first alone; nobody else may write in either case. The locks go when fd is closed. A *LockError
// tells that somebody else's are in the way; fd must then be closed, since others take the locks it
// has meanwhile for real.
func lockImage(fd int, path string, readOnly bool) error {
	perms := []int64{permConsistentRead, permWrite}
	if readOnly {
		perms = perms[:1]
	}
	unshared := []int64{permWrite}

	for _, p := range perms {
		if err := lockByte(fd, path, lockPermBase+p, p, false); err != nil {
			return err
		}
	}
	for _, p := range unshared {
		if err := lockByte(fd, path, lockSharedBase+p, p, true); err != nil {
			return err
		}
	}
	for _, p := range perms {
		if err := checkByte(fd, path, lockSharedBase+p, p, false); err != nil {
			return err
		}
	}
	for _, p := range unshared {
		if err := checkByte(fd, path, lockPermBase+p, p, true); err != nil {
			return err
		}
	}
	return nil
}

func lockByte(fd int, path string, at, perm int64, shared bool) error {
	err := sys.LockShared(fd, at, 1)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EACCES):
		return &LockError{Path: path, Perm: permNames[perm], Shared: shared, at: at}
	}
	return fmt.Errorf("%s: cannot be locked: %w", path, err)
}

func checkByte(fd int, path string, at, perm int64, shared bool) error {
	held, pid, err := sys.LockHeld(fd, at, 1)
	if err != nil {
		return fmt.Errorf("%s: its locks cannot be read: %w", path, err)
	}
	if !held {
		return nil
	}
	return &LockError{Path: path, Perm: permNames[perm], Shared: shared, PID: max(pid, 0), at: at}
}

// identify completes a *LockError in err with the process that has the image, as far as /proc lets
// us see it, and returns err. The kernel does not tell the owner of an open file description's
// lock.
func identify(err error) error {
	var le *LockError
	if !errors.As(err, &le) {
		return err
	}
	if le.PID == 0 {
		le.PID = holder(le.Path, le.at)
	}
	if le.PID > 0 {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", le.PID))
		le.Command = strings.TrimSpace(string(comm))
	}
	return err
}

// holder looks for a process with a lock on byte at of the file at path, 0 where none can be seen.
// It touches nobody else's file: that may be on storage which does not answer.
func holder(path string, at int64) int {
	file, err := lockedFile(path)
	if err != nil {
		return 0
	}
	infos, _ := filepath.Glob("/proc/[0-9]*/fdinfo/*")
	for _, name := range infos {
		text, err := os.ReadFile(name)
		if err != nil || !locks(text, file, at) {
			continue
		}
		dir, _ := filepath.Split(name)
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Clean(dir)))); err == nil {
			return pid
		}
	}
	return 0
}

// lockedFile gives what stands for a file where its locks are listed: the device of its file
// system, which stat(2) need not tell (btrfs), and the inode.
func lockedFile(path string) (string, error) {
	f, err := sys.OpenPath(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Int()))
	if err != nil {
		return "", err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	_, mount, _ := strings.Cut(string(info), "mnt_id:")
	mount, _, _ = strings.Cut(strings.TrimSpace(mount), "\n")
	for line := range strings.Lines(string(mounts)) {
		// mount ID, parent ID, major:minor, ... (proc_pid_mountinfo(5))
		var major, minor uint32
		f := strings.Fields(line)
		if len(f) < 3 || f[0] != mount {
			continue
		}
		if _, err := fmt.Sscanf(f[2], "%d:%d", &major, &minor); err != nil {
			return "", err
		}
		return fmt.Sprintf("%02x:%02x:%d", major, minor, st.Ino), nil
	}
	return "", fmt.Errorf("%s: mount %q is not listed", path, mount)
}

// locks reports whether the text of an fdinfo file (proc_pid_fdinfo(5)) has a lock on byte at of a
// file that lockedFile names. Such a line reads
//
//	lock:	1: OFDLCK ADVISORY  READ -1 fe:00:9994298 100 101
func locks(fdinfo []byte, file string, at int64) bool {
	for sc := bufio.NewScanner(bytes.NewReader(fdinfo)); sc.Scan(); {
		f := strings.Fields(sc.Text())
		if len(f) != 9 || f[0] != "lock:" || f[2] != "OFDLCK" && f[2] != "POSIX" || f[6] != file {
			continue
		}
		first, err := strconv.ParseInt(f[7], 10, 64)
		if err != nil || at < first {
			continue
		}
		if last, err := strconv.ParseInt(f[8], 10, 64); f[8] == "EOF" || err == nil && at <= last {
			return true
		}
	}
	return false
}
