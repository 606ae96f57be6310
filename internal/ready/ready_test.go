package ready

import (
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"vdev/internal/sys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// sockets returns two sockets that are connected to each other.
func sockets(t *testing.T) (a, b *sys.Stream) {
	t.Helper()
	c, d, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	a, b = sys.NewStream(c), sys.NewStream(d)
	if a == nil || b == nil {
		t.Fatal("no streams")
	}
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

// pair is two sockets, of which the first is watched.
func pair(t *testing.T) (w *Watcher, fd, peer int, events chan Events) {
	t.Helper()
	a, b := sockets(t)
	events = make(chan Events, 100)
	w, err := Watch(a.Int(), func(_ *Watcher, e Events) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w, a.Int(), b.Int(), events
}

func send(t *testing.T, fd int, s string) {
	t.Helper()
	if err := sys.SendNow(fd, []byte(s)); err != nil {
		t.Fatal(err)
	}
}

func arm(t *testing.T, w *Watcher) {
	t.Helper()
	if err := w.Arm(); err != nil {
		t.Fatal(err)
	}
}

func want(t *testing.T, events chan Events, want Events) {
	t.Helper()
	if got := <-events; got != want {
		t.Fatalf("told of %b, want %b", got, want)
	}
}

func TestReadableIsToldOnceForEachArm(t *testing.T) {
	w, _, peer, events := pair(t)
	send(t, peer, "a")
	arm(t, w)
	want(t, events, Readable)
	send(t, peer, "b") // nobody has asked
	arm(t, w)          // it is there already
	want(t, events, Readable)
	other, _, peerOfOther, otherEvents := pair(t)
	arm(t, other)
	send(t, peerOfOther, "x")
	want(t, otherEvents, Readable)
	if len(events) != 0 {
		t.Errorf("told of %b, and was not asked", <-events)
	}
}

func TestAPeerThatGoesIsToldOfOnceThoughNobodyReads(t *testing.T) {
	w, fd, peer, events := pair(t)
	send(t, peer, "unread")
	if err := syscall.Shutdown(peer, syscall.SHUT_WR); err != nil {
		t.Fatal(err)
	}
	want(t, events, Readable|ReadClosed)
	arm(t, w)
	want(t, events, Readable)
	if err := syscall.Shutdown(peer, syscall.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	want(t, events, Readable|Hangup)
	arm(t, w)
	want(t, events, Readable)
	if n, err := sys.Peek(fd); n != 1 || err != nil {
		t.Errorf("what was sent: %d, %v", n, err)
	}
	if len(events) != 0 {
		t.Errorf("told of %b again", <-events)
	}
}

func TestAWatchThatIsClosedTellsNothing(t *testing.T) {
	w, fd, peer, events := pair(t)
	arm(t, w)
	w.Close()
	w.Close()
	// The number may be another file's by now.
	other, err := Watch(fd, func(*Watcher, Events) { t.Error("the other one is told of something") })
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Arm(); err != nil {
		t.Error(err)
	}
	send(t, peer, "a")
	other.Close()
	again, err := Watch(fd, func(_ *Watcher, e Events) { events <- e })
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	arm(t, again)
	want(t, events, Readable)
}

// TestWhatFindsNothingIsTold: whoever arms it after a read of nothing is told of what comes,
// however that falls together.
func TestWhatFindsNothingIsTold(t *testing.T) {
	told := make(chan struct{}, 1)
	a, b := sockets(t)
	w, err := Watch(a.Int(), func(_ *Watcher, e Events) {
		if e&Readable != 0 {
			select {
			case told <- struct{}{}:
			default:
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	const total = 20000
	go func() {
		for n := 0; n < total; {
			if sys.SendNow(b.Int(), []byte{1}) == nil {
				n++
			}
		}
	}()
	p := make([]byte, 3)
	for n := 0; n < total; {
		k, e := sys.Readv(a.Int(), [][]byte{p})
		switch e {
		case 0:
			n += k
		case syscall.EAGAIN:
			if err := w.Arm(); err != nil {
				t.Fatal(err)
			}
			<-told
		default:
			t.Fatal(e)
		}
	}
}

func TestADescriptorThatCannotBeWatchedIsAnError(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/file")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := Watch(int(f.Fd()), func(*Watcher, Events) {}); err == nil {
		t.Error("a file is watched")
	}
}
