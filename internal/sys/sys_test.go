package sys_test

import (
	"errors"
	"os"
	"syscall"
	"testing"

	"vdev/internal/sys"
)

// openFDs counts the process's descriptors, the one that reads the folder apart.
func openFDs(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func checkFDs(t *testing.T) {
	t.Helper()
	before := openFDs(t)
	t.Cleanup(func() {
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors open after the test, %d before", after, before)
		}
	})
}

func TestFDClosesOnceAndForgetsItsNumber(t *testing.T) {
	checkFDs(t)
	f, err := sys.NewMemfd("fd", 0)
	if err != nil {
		t.Fatal(err)
	}
	n := f.Int()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The number goes to the next descriptor opened, which a second Close must leave alone.
	g, err := sys.NewMemfd("fd", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if g.Int() != n {
		t.Fatalf("expected descriptor %d to be given again, got %d", n, g.Int())
	}
	if err := f.Close(); err != nil {
		t.Fatalf("second Close: %v", err)
	}
	if f.Int() != -1 {
		t.Errorf("Int after Close = %d, want -1", f.Int())
	}
	if _, _, err := g.Size(); err != nil {
		t.Errorf("the second Close closed somebody else's descriptor: %v", err)
	}
	if _, err := f.Dup(); !errors.Is(err, syscall.EBADF) {
		t.Errorf("Dup of a closed FD: %v, want EBADF", err)
	}
}

func TestNewFDOfNegativeNumberIsClosed(t *testing.T) {
	f := sys.NewFD(-7)
	if f.Int() != -1 {
		t.Errorf("Int = %d, want -1", f.Int())
	}
	if err := f.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestEventfdCountsAndAnswersEAGAINWhenEmpty(t *testing.T) {
	checkFDs(t)
	f, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := sys.EventfdRead(f.Int()); !errors.Is(err, syscall.EAGAIN) {
		t.Fatalf("read of an empty eventfd: %v, want EAGAIN", err)
	}
	for range 3 {
		if err := sys.EventfdWrite(f.Int()); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := sys.EventfdRead(f.Int()); n != 3 || err != nil {
		t.Fatalf("read = %d, %v, want 3", n, err)
	}
}

func TestEventfdAtItsLimitIsStillSignalled(t *testing.T) {
	f, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := syscall.Write(f.Int(), []byte{0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
		t.Fatal(err)
	}
	if err := sys.EventfdWrite(f.Int()); err != nil {
		t.Errorf("write at the limit: %v", err)
	}
}

func TestEventfdReadOfAnotherKindOfFileIsAnError(t *testing.T) {
	f, err := sys.NewMemfd("empty", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := sys.EventfdRead(f.Int()); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read: %v, want EINVAL", err)
	}
}

func TestMmapSharesTheFileAndOutlivesTheDescriptor(t *testing.T) {
	checkFDs(t)
	f, err := sys.NewMemfd("mem", int64(2*sys.PageSize()))
	if err != nil {
		t.Fatal(err)
	}
	if n, regular, err := f.Size(); n != int64(2*sys.PageSize()) || !regular || err != nil {
		t.Fatalf("Size = %d, %v, %v", n, regular, err)
	}
	rw, err := sys.Mmap(f.Int(), 0, 2*sys.PageSize(), true)
	if err != nil {
		t.Fatal(err)
	}
	ro, err := sys.Mmap(f.Int(), int64(sys.PageSize()), sys.PageSize(), false)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	rw[sys.PageSize()] = 7
	if ro[0] != 7 {
		t.Errorf("the second mapping reads %d, want 7", ro[0])
	}
	if err := sys.Munmap(rw); err != nil {
		t.Error(err)
	}
	if err := sys.Munmap(ro); err != nil {
		t.Error(err)
	}
	if err := sys.Munmap(ro); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("second Munmap: %v, want EINVAL", err)
	}
}

// receive sends oob over a fresh pair of sockets and returns the control bytes that arrive, at most
// room of them.
func receive(t *testing.T, oob []byte, room int) []byte {
	t.Helper()
	p, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(p[0])
	defer syscall.Close(p[1])
	if err := syscall.Sendmsg(p[0], []byte{1}, oob, nil, 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, room)
	_, n, _, _, err := syscall.Recvmsg(p[1], make([]byte, 1), buf, syscall.MSG_CMSG_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

func TestParseRightsOwnsWhatWasSent(t *testing.T) {
	checkFDs(t)
	a, _ := sys.NewMemfd("a", 1)
	b, _ := sys.NewMemfd("b", 2)
	oob := receive(t, sys.Rights(a.Int(), b.Int()), 1024)
	a.Close()
	b.Close()
	fds, err := sys.ParseRights(oob)
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) != 2 {
		t.Fatalf("%d descriptors, want 2", len(fds))
	}
	for i, f := range fds {
		if n, _, err := f.Size(); n != int64(i+1) || err != nil {
			t.Errorf("descriptor %d: size %d, %v, want %d", i, n, err, i+1)
		}
	}
	sys.CloseAll(append(fds, nil))
}

func TestParseRightsTakesWhatATruncatedMessageLeft(t *testing.T) {
	checkFDs(t)
	a, _ := sys.NewMemfd("a", 1)
	defer a.Close()
	fds, err := sys.ParseRights(receive(t, sys.Rights(a.Int(), a.Int(), a.Int()), syscall.CmsgSpace(4)))
	if err != nil {
		t.Fatal(err)
	}
	if len(fds) == 0 {
		t.Error("no descriptor found")
	}
	sys.CloseAll(fds)
}

func TestParseRightsClosesEverythingOnError(t *testing.T) {
	checkFDs(t)
	a, _ := sys.NewMemfd("a", 1)
	defer a.Close()
	oob := receive(t, sys.Rights(a.Int()), 1024)
	// A header that claims more than there is.
	bad := syscall.UnixRights(0)
	bad[0] = 0xff
	fds, err := sys.ParseRights(append(oob, bad...))
	if !errors.Is(err, syscall.EINVAL) || fds != nil {
		t.Errorf("ParseRights = %v, %v, want EINVAL", fds, err)
	}
}

func TestRightsOfNothingSendsNoControlMessage(t *testing.T) {
	if b := sys.Rights(); b != nil {
		t.Errorf("Rights() = %v", b)
	}
	if fds, err := sys.ParseRights(nil); fds != nil || err != nil {
		t.Errorf("ParseRights(nil) = %v, %v", fds, err)
	}
}
