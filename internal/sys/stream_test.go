package sys

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// newStream gives both ends of a connection, the first as a Stream.
func newStream(t *testing.T) (*Stream, net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	nc, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	s := NewStream(nc)
	if s == nil {
		t.Fatal("the connection is not taken")
	}
	t.Cleanup(func() { s.Close(); peer.Close() })
	return s, peer
}

func TestStreamCarriesBytesBothWays(t *testing.T) {
	s, peer := newStream(t)
	large := bytes.Repeat([]byte("a stream"), 1<<18)
	go func() { _, _ = s.Write(large) }()
	got := make([]byte, len(large))
	if _, err := io.ReadFull(peer, got); err != nil || !bytes.Equal(got, large) {
		t.Errorf("the peer gets something else, %v", err)
	}
	a, b := make([]byte, 3), make([]byte, 3)
	if n, err := s.Readv([][]byte{a, b}, true); n != 0 || err != syscall.EAGAIN {
		t.Errorf("with nothing to read: %d, %v", n, err)
	}
	go func() { _, _ = peer.Write([]byte("12345")) }()
	if n, err := s.Readv([][]byte{a, b}, false); n != 5 || err != nil || string(a)+string(b[:2]) != "12345" {
		t.Errorf("it reads %d bytes, %q and %q, %v", n, a, b, err)
	}
	for err := error(nil); err != syscall.EAGAIN; {
		if _, err = s.Writev([][]byte{large}, true); err != nil && err != syscall.EAGAIN {
			t.Fatal(err)
		}
	}
	peer.Close()
	if n, err := s.Read(a); n != 0 || err == nil {
		t.Errorf("after the end: %d, %v", n, err)
	}
}

func TestStreamThatWaitsIsWoken(t *testing.T) {
	for name, tt := range map[string]struct {
		wake func(s *Stream)
		want error
	}{
		"deadline": {func(s *Stream) { s.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
		"soon":     {func(s *Stream) { s.SetReadDeadline(time.Now().Add(time.Millisecond)) }, os.ErrDeadlineExceeded},
		"close":    {func(s *Stream) { s.Close() }, net.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			s, peer := newStream(t)
			ended := make(chan error, 1)
			go func() {
				_, err := s.Read(make([]byte, 1))
				ended <- err
			}()
			tt.wake(s)
			if err := <-ended; !errors.Is(err, tt.want) {
				t.Errorf("it ends with %v", err)
			}
			if name == "close" {
				if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the peer reads %v", err)
				}
				return
			}
			// It is none for ever.
			s.SetReadDeadline(time.Time{})
			go func() { _, _ = peer.Write([]byte("x")) }()
			if _, err := s.Read(make([]byte, 1)); err != nil {
				t.Errorf("without a deadline: %v", err)
			}
		})
	}
}

func TestCloseIsSeenByThePeerWhoeverElseHoldsTheConnection(t *testing.T) {
	s, peer := newStream(t)
	held, err := Dup(s.fd.Int())
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := peer.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, not the end", err)
	}
}
