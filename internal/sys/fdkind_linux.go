package sys

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Kind says what is behind a descriptor.
type Kind string

// The kinds that somebody asks for, or that are worth a name in an error.
const (
	KindEventfd Kind = "an eventfd"
	KindFile    Kind = "a file"
	KindMemfd   Kind = "a memfd"
	KindPipe    Kind = "a pipe"
	KindSocket  Kind = "a socket"
	// KindAnonymous is a file without an inode of its own, such as an eventfd, a timerfd or an
	// epoll instance, where there is no /proc to tell which.
	KindAnonymous Kind = "an anonymous file"
)

// anonInode is how /proc names files without an inode of their own (anon_inode_getfile in the
// kernel).
const anonInode = "anon_inode:"

// KindOf tells what is behind fd. It never waits: neither call asks the file system that fd may be
// a file of.
func KindOf(fd int) (Kind, error) {
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err == nil {
		return kindByName(name), nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	// No such descriptor, or no /proc.
	return kindByMode(fd)
}

// kindByName reads what /proc/self/fd has as the target of a link (proc_pid_fd(5)).
func kindByName(name string) Kind {
	switch kind, _, _ := strings.Cut(name, ":"); {
	case name == anonInode+"[eventfd]":
		return KindEventfd
	case strings.HasPrefix(name, anonInode):
		return Kind("a file of the kind " + strings.Trim(strings.TrimPrefix(name, anonInode), "[]"))
	case strings.HasPrefix(name, "/memfd:"):
		return KindMemfd
	case kind == "pipe":
		return KindPipe
	case kind == "socket":
		return KindSocket
	}
	return KindFile
}

// kindByMode is KindOf without /proc.
func kindByMode(fd int) (Kind, error) {
	var st unix.Statx_t
	// What is known of the file, without asking a server for it.
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if err != nil {
		return "", os.NewSyscallError("statx", err)
	}
	switch st.Mode & unix.S_IFMT {
	case 0:
		return KindAnonymous, nil
	case unix.S_IFIFO:
		return KindPipe, nil
	case unix.S_IFSOCK:
		return KindSocket, nil
	}
	return KindFile, nil
}

// IsEventfd tells whether fd is an eventfd, and otherwise what it is. Where there is no /proc, any
// file without an inode of its own passes: no other kind of those makes a write of 8 bytes wait.
func IsEventfd(fd int) (bool, Kind, error) {
	kind, err := KindOf(fd)
	return kind == KindEventfd || kind == KindAnonymous, kind, err
}
