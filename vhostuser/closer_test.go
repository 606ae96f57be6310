package vhostuser

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

// TestManyClosesThatHangKeepFrontEndsAway, and few do not; nobody waits for them.
func TestManyClosesThatHangKeepFrontEndsAway(t *testing.T) {
	// A socket that lingers is closed when the peer has taken what was sent.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	file, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	dup, err := sys.Dup(int(file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	if err := syscall.SetsockoptLinger(dup.Int(), syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1, Linger: 60}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(dup.Int(), true); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = syscall.Write(dup.Int(), make([]byte, 1<<20))
	}
	if err := syscall.SetNonblock(dup.Int(), false); err != nil {
		t.Fatal(err)
	}

	var k closer
	k.close(dup)
	pipe := func() *sys.FD {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		f, err := sys.Dup(int(r.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for range maxClosing - 2 {
		k.close(pipe())
	}
	if err := k.check(); err != nil {
		t.Errorf("with %d: %v", maxClosing-1, err)
	}
	k.close(pipe())
	k.mu.Lock()
	if len(k.queue) != maxClosing {
		t.Errorf("%d wait to be closed behind one that hangs, want %d", len(k.queue), maxClosing)
	}
	k.mu.Unlock()
	k.close(pipe()) // what else came with the message does not wait
	for range 2 {
		if err := k.check(); !errors.Is(err, ErrClosing) {
			t.Errorf("with %d: %v", maxClosing+1, err)
		}
	}
	peer.Close() // it is reset
	for running := true; running; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		running = k.running
		k.mu.Unlock()
	}
	if err := k.check(); err != nil {
		t.Errorf("with none: %v", err)
	}
}
