package sys_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vdev/internal/sys"
)

func TestListenUnixGivesTheSocketItsPermissions(t *testing.T) {
	checkFDs(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := sys.ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode(); got != os.ModeSocket|0o600 {
		t.Errorf("the socket's mode is %v, want %v", got, os.ModeSocket|0o600)
	}
	if _, err := sys.ListenUnix(path, 0o600); !errors.Is(err, sys.ErrInUse) {
		t.Errorf("a second listener: %v, want ErrInUse", err)
	}
	ln.SetUnlinkOnClose(false)
	ln.Close()
	if ln, err = sys.ListenUnix(path, 0o600); err != nil {
		t.Fatalf("a socket that nobody listens on is not replaced: %v", err)
	}
	ln.Close()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a closed listener has left its socket: %v", err)
	}
}

func TestAClosedListenerRemovesOnlyItsOwnSocket(t *testing.T) {
	checkFDs(t)
	path := filepath.Join(t.TempDir(), "s")
	for name, put := range map[string]func() error{
		"removed and bound anew":     func() error { return os.Remove(path) },
		"renamed, and another bound": func() error { return os.Rename(path, path+".old") },
	} {
		old, err := sys.ListenUnix(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		newer, err := sys.ListenUnix(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := old.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: the newer socket is gone: %v", name, err)
		}
		if err := newer.Close(); err != nil {
			t.Error(err)
		}
		if err := newer.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: a closed listener has left its socket: %v", name, err)
		}
	}
	// A socket that took the name by a rename.
	old, err := sys.ListenUnix(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	newer, err := sys.ListenUnix(path+".new", 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	for _, l := range []*sys.UnixListener{old, newer} {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("the socket that was renamed is gone: %v", err)
		}
	}
}

func TestListenUnixTouchesNoOtherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sys.ListenUnix(path, 0); err == nil {
		t.Error("listens in place of a file")
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "kept" {
		t.Errorf("the file is %q, %v", text, err)
	}
}

func TestPeerIsWhoConnected(t *testing.T) {
	checkFDs(t)
	a, b, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	want := sys.Peer{PID: os.Getpid(), UID: os.Geteuid()}
	if got, err := sys.PeerOf(a); err != nil || got != want {
		t.Errorf("peer is %+v, %v; want %+v", got, err, want)
	}
	b.Close()
	a.Close()
	if _, err := sys.PeerOf(a); err == nil {
		t.Error("a closed socket has a peer")
	}
}
