package sys

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// inodeOf is the inode number of a socket.
func inodeOf(t *testing.T, c *net.UnixConn) uint32 {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return uint32(info.Sys().(*syscall.Stat_t).Ino)
}

func TestThePeerOfAConnectionIsKnownWhenItIsAccepted(t *testing.T) {
	ln, err := ListenUnix(filepath.Join(t.TempDir(), "s"), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.DialUnix("unix", nil, ln.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	inode, err := PeerInode(c)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EPROTONOSUPPORT) || errors.Is(err, syscall.EAFNOSUPPORT) {
		t.Skipf("the system does not tell: %v", err)
	}
	if inode != 0 || err != nil {
		t.Errorf("before it is accepted: %d, %v", inode, err)
	}
	accepted, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for _, pair := range [][2]*net.UnixConn{{c, accepted}, {accepted, c}} {
		want := inodeOf(t, pair[1])
		if inode, err := PeerInode(pair[0]); inode != want || err != nil {
			t.Errorf("the peer is %d, %v; want %d", inode, err, want)
		}
	}
	// What it is good for.
	f, err := accepted.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := fmt.Sprintf("socket:[%d]", inodeOf(t, accepted))
	if to, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd())); to != want || err != nil {
		t.Errorf("its descriptor is a link to %s, %v; want %s", to, err, want)
	}
}

func TestAnAnswerOfSockDiagIsBounded(t *testing.T) {
	ok := []byte{36, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
		1, 1, 1, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // unix_diag_msg
		5, 0, 7, 0, 1, 0, 0, 0, // an attribute of one byte
		8, 0, 2, 0, 4, 3, 2, 1}
	if inode, err := peerIn(ok); inode != 0x01020304 || err != nil {
		t.Errorf("%#x, %v", inode, err)
	}
	for n := range len(ok) {
		if inode, err := peerIn(ok[:n]); inode != 0 {
			t.Errorf("the first %d bytes: %#x, %v", n, inode, err)
		}
	}
	failed := append([]byte{36, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0xfe, 0xff, 0xff, 0xff)
	if _, err := peerIn(failed); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("error %v, want %v", err, syscall.ENOENT)
	}
}
