package sys

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestKindOfNamesWhatIsBehindADescriptor(t *testing.T) {
	open := func(fd int, err error) int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		return fd
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	file, err := os.Create(t.TempDir() + "/anon_inode:[eventfd]")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, c := range []struct {
		fd     int
		byName Kind
		byMode Kind
	}{
		{open(unix.Eventfd(0, unix.EFD_CLOEXEC)), KindEventfd, KindAnonymous},
		{open(unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_SEMAPHORE)), KindEventfd, KindAnonymous},
		{open(unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_CLOEXEC)), "a file of the kind timerfd", KindAnonymous},
		{open(unix.EpollCreate1(unix.EPOLL_CLOEXEC)), "a file of the kind eventpoll", KindAnonymous},
		{open(unix.MemfdCreate("eventfd", unix.MFD_CLOEXEC)), KindMemfd, KindFile},
		{open(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)), KindSocket, KindSocket},
		{int(r.Fd()), KindPipe, KindPipe},
		{int(file.Fd()), KindFile, KindFile},
		{int(null.Fd()), KindFile, KindFile},
	} {
		if kind, err := KindOf(c.fd); kind != c.byName || err != nil {
			t.Errorf("got %q, %v, want %q", kind, err, c.byName)
		}
		if kind, err := kindByMode(c.fd); kind != c.byMode || err != nil {
			t.Errorf("without /proc: got %q, %v, want %q", kind, err, c.byMode)
		}
	}
	if _, err := KindOf(-1); err == nil {
		t.Error("there is a kind of no descriptor")
	}
}

func TestDrainEventfdDoesNotWait(t *testing.T) {
	for _, flags := range []int{0, unix.EFD_NONBLOCK, unix.EFD_SEMAPHORE} {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|flags)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			DrainEventfd(fd)
			if Readable(fd) {
				t.Errorf("flags %#x: the counter is not 0", flags)
			}
		}
		unix.Close(fd)
	}
}

func TestReplaceMakesANumberStandForAnotherFile(t *testing.T) {
	a, err := NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := Replace(a.Int(), b.Int()); err != nil {
		t.Fatal(err)
	}
	if err := EventfdWrite(a.Int()); err != nil {
		t.Fatal(err)
	}
	if n, err := EventfdRead(b.Int()); n != 1 || err != nil {
		t.Errorf("the other eventfd has %d, %v, want 1", n, err)
	}
}
