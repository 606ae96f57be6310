package sys_test

import (
	"errors"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
)

// number returns the descriptor of c, which stays c's.
func number(t *testing.T, c syscall.Conn) int {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	n := -1
	if err := raw.Control(func(fd uintptr) { n = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSocketTellsKindsApart(t *testing.T) {
	checkFDs(t)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if got, err := sys.Socket(number(t, ln)); err != nil || got != (sys.SocketInfo{Unix: true, Stream: true, Listening: true}) {
		t.Errorf("listening: %+v, %v", got, err)
	}
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	if got, err := sys.Socket(number(t, a)); err != nil || got != (sys.SocketInfo{Unix: true, Stream: true}) {
		t.Errorf("connected: %+v, %v", got, err)
	}
	e, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := sys.Socket(e.Int()); !errors.Is(err, syscall.ENOTSOCK) {
		t.Errorf("eventfd: %v, want ENOTSOCK", err)
	}
	if _, err := sys.Socket(-1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("no descriptor: %v, want EBADF", err)
	}
}

func TestPeekAndHungUpSeeThePeer(t *testing.T) {
	checkFDs(t)
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	fd := number(t, a)
	if _, err := sys.Peek(fd); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("Peek of a quiet peer: %v, want EAGAIN", err)
	}
	if sys.HungUp(fd) {
		t.Error("a quiet peer has hung up")
	}
	if err := sys.SendNow(number(t, b), []byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, err := sys.Peek(fd); n != 1 || err != nil {
		t.Errorf("Peek = %d, %v, want 1", n, err)
	}
	if _, err := a.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	b.Close()
	if n, err := sys.Peek(fd); n != 0 || err != nil {
		t.Errorf("Peek after the hang-up = %d, %v, want 0", n, err)
	}
	if !sys.HungUp(fd) {
		t.Error("a closed peer has not hung up")
	}
	if err := sys.SendNow(fd, []byte("x")); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("SendNow to a closed peer: %v, want EPIPE", err)
	}
}

func TestSendNowDoesNotWaitForRoom(t *testing.T) {
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	defer b.Close()
	for {
		if err := sys.SendNow(number(t, a), make([]byte, 12)); err != nil {
			if !errors.Is(err, syscall.EAGAIN) {
				t.Errorf("full socket: %v, want EAGAIN", err)
			}
			return
		}
	}
}

func TestDrainEventfdNeverBlocksAndLeavesTheFlags(t *testing.T) {
	checkFDs(t)
	// A blocking eventfd: a read of its empty counter would hang.
	n, _, errno := syscall.Syscall(syscall.SYS_EVENTFD2, 3, syscall.O_CLOEXEC, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	e := sys.NewFD(int(n))
	defer e.Close()
	if nonblock, err := sys.Nonblocking(e.Int()); nonblock || err != nil {
		t.Fatalf("Nonblocking = %v, %v", nonblock, err)
	}
	if !sys.Readable(e.Int()) || !sys.Writable(e.Int()) {
		t.Error("an eventfd with a count is readable and writable")
	}
	sys.DrainEventfd(e.Int())
	if sys.Readable(e.Int()) {
		t.Error("the counter is not 0")
	}
	sys.DrainEventfd(e.Int())
	if err := sys.WaitReadable(e.Int(), time.Millisecond); err != nil {
		t.Error(err)
	}
	if nonblock, _ := sys.Nonblocking(e.Int()); nonblock {
		t.Error("O_NONBLOCK was set")
	}
}
