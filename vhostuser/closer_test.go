package vhostuser

import (
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

// TestManyClosesThatHangAreWaitedFor, and few are not.
func TestManyClosesThatHangAreWaitedFor(t *testing.T) {
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
	for range maxClosing - 1 {
		k.close(pipe())
	}
	k.mu.Lock()
	if len(k.queue) != maxClosing {
		t.Errorf("%d wait to be closed behind one that hangs, want %d", len(k.queue), maxClosing)
	}
	k.mu.Unlock()
	done := make(chan struct{})
	last := pipe()
	go func() {
		defer close(done)
		k.close(last)
	}()
	select {
	case <-done:
		t.Error("one more is not waited for")
	case <-time.After(20 * time.Millisecond):
	}
	peer.Close() // it is reset
	<-done
	for running := true; running; time.Sleep(time.Millisecond) {
		k.mu.Lock()
		running = k.running
		k.mu.Unlock()
	}
}
