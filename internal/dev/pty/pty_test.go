package pty

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/term"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/test/linetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open makes a pseudo-terminal for the guest's line.
func open(t testing.TB, g *linetest.Guest, conf Config) *Pty {
	t.Helper()
	p, err := Open(g.Line, line.Main, conf)
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}

// program is one that has opened the pseudo-terminal.
type program struct {
	t testing.TB
	*os.File
}

func dial(t testing.TB, path string) *program {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return &program{t, f}
}

// see reads until the text has come, which is to be the end, and returns all.
func (c *program) see(end string) string {
	c.t.Helper()
	var all []byte
	buf := make([]byte, 64<<10)
	for !bytes.HasSuffix(all, []byte(end)) {
		c.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := c.Read(buf)
		if err != nil {
			c.t.Fatalf("waiting for %q, seen %q: %v", end, all, err)
		}
		all = append(all, buf[:n]...)
	}
	return string(all)
}

func (c *program) type_(text string) {
	c.t.Helper()
	_, err := io.WriteString(c, text)
	must(c.t, err)
}

func (c *program) settings() (s *term.State) {
	c.t.Helper()
	r, err := c.SyscallConn()
	must(c.t, err)
	var callErr error
	must(c.t, r.Control(func(fd uintptr) { s, callErr = term.GetState(int(fd)) }))
	must(c.t, callErr)
	return s
}

func TestBothWays(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	g.Write("before\r\n")
	if g.Attached() {
		t.Fatal("somebody is attached, and nobody has opened it")
	}
	c := dial(t, p.Name())
	c.see("before\r\n")
	g.Await("somebody is attached", g.Attached)
	c.type_("root\r\n\x03\x04\x11\x13\x1a\x7f\xff")
	g.Read("root\r\n\x03\x04\x11\x13\x1a\x7f\xff")
	g.Write("\x1b[2J\nnow\n")
	c.see("\x1b[2J\nnow\n")
	c.Close()
	g.Await("nobody is attached", func() bool { return !g.Attached() })
	g.Write("unseen\r\n")
	c = dial(t, p.Name())
	if got, want := c.see("unseen\r\n"), "before\r\n\x1b[2J\nnow\nunseen\r\n"; got != want {
		t.Errorf("the second one saw %q, want %q", got, want)
	}
	c.type_("again")
	g.Read("again")
}

func TestSecondOneAtTheSameTimeIsNoNewEnd(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	c := dial(t, p.Name())
	g.Write("hello")
	c.see("hello")
	other := dial(t, p.Name())
	other.type_("x")
	g.Read("x")
	other.Close()
	c.type_("y")
	g.Read("y")
	g.Write("still here")
	if got := c.see("still here"); got != "still here" {
		t.Errorf("saw %q", got)
	}
}

func TestInputOfWhoHasGoneIsRead(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	for i := range 50 {
		c := dial(t, p.Name())
		text := fmt.Sprintf("echo %d > pty\n", i)
		c.type_(text)
		c.Close()
		g.Read(text)
	}
	// Several before anybody reads.
	want := ""
	for i := range 50 {
		c := dial(t, p.Name())
		text := fmt.Sprintf("and %d\n", i)
		c.type_(text)
		c.Close()
		want += text
	}
	g.Read(want)
	g.Await("nobody is attached", func() bool { return !g.Attached() })
}

func TestSizeIsThatOfTheWindow(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	is := func(rows, cols uint16) func() bool {
		return func() bool { return g.Size() == devsw.Winsize{Row: rows, Col: cols} }
	}
	if !is(0, 0)() {
		t.Errorf("%+v, and nobody is there", g.Size())
	}
	c := dial(t, p.Name())
	must(t, pty.Setsize(c.File, &pty.Winsize{Rows: 40, Cols: 100}))
	g.Await("40 rows, 100 columns", is(40, 100))
	must(t, pty.Setsize(c.File, &pty.Winsize{Rows: 37, Cols: 111}))
	g.Await("37 rows, 111 columns", is(37, 111))
	// What nobody looked at while nobody was there is known when somebody comes.
	c.Close()
	g.Await("nobody is attached", func() bool { return !g.Attached() })
	dial(t, p.Name())
	g.Await("somebody is attached", g.Attached)
	if !is(37, 111)() {
		t.Errorf("%+v", g.Size())
	}
}

// The settings are given back, and what was not read is thrown away, soon after the line knows that
// nobody is there. So the next one is to find it so if he does not come too soon.

func TestNextOneFindsItRaw(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	c := dial(t, p.Name())
	raw := c.settings()
	r, err := c.SyscallConn()
	must(t, err)
	var callErr error
	must(t, r.Control(func(fd uintptr) { callErr = cook(int(fd)) }))
	must(t, callErr)
	if reflect.DeepEqual(raw, c.settings()) {
		t.Fatal("the settings are as before: this shows nothing")
	}
	c.Close()
	g.Await("nobody is attached", func() bool { return !g.Attached() })
	await(t, "the settings are as before", func() bool {
		c := dial(t, p.Name())
		defer c.Close()
		return reflect.DeepEqual(raw, c.settings())
	})
}

func TestNextOneFindsNothingOfTheOneBefore(t *testing.T) {
	g := linetest.New(t, line.Config{Scrollback: 4096})
	p := open(t, g, Config{})
	await(t, "nothing is left", func() bool {
		c := dial(t, p.Name())
		g.Await("somebody is attached", g.Attached)
		g.Write(strings.Repeat("old", 500))
		must(t, g.Line.Drain(t.Context())) // to the host, where nobody reads it
		c.Close()
		g.Await("nobody is attached", func() bool { return !g.Attached() })
		g.Write(strings.Repeat("n", 4095) + "!") // all that is kept
		time.Sleep(10 * time.Millisecond)
		c = dial(t, p.Name())
		defer c.Close()
		return !strings.Contains(c.see("!"), "old")
	})
}

// cook leaves the settings as no terminal's program should.
func cook(fd int) error {
	master, tty, err := pty.Open() // with what the host has at first
	if err != nil {
		return err
	}
	defer master.Close()
	defer tty.Close()
	r, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var s *term.State
	var callErr error
	if err := r.Control(func(fd uintptr) { s, callErr = term.GetState(int(fd)) }); err != nil || callErr != nil {
		return errors.Join(err, callErr)
	}
	return term.Restore(fd, s)
}

func TestKeepLosesNothing(t *testing.T) {
	g := linetest.New(t, line.Config{Overflow: line.Wait, Scrollback: 4096})
	p := open(t, g, Config{Keep: true})
	var want strings.Builder
	done := make(chan struct{})
	for i := range 20000 {
		fmt.Fprintf(&want, "%d ", i)
	}
	want.WriteString("end")
	go func() {
		defer close(done)
		text := want.String()
		for len(text) > 0 {
			n := g.TryWrite(text)
			if text = text[n:]; n == 0 {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	var got []byte
	buf := make([]byte, 3000)
	for !bytes.HasSuffix(got, []byte("end")) {
		c := dial(t, p.Name())
		c.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := c.Read(buf)
		must(t, err)
		got = append(got, buf[:n]...)
		c.Close()
	}
	<-done
	if string(got) != want.String() {
		t.Errorf("%d bytes, want %d", len(got), want.Len())
	}
}

func TestNobodyReads(t *testing.T) {
	g := linetest.New(t, line.Config{Scrollback: 64 << 10})
	p := open(t, g, Config{})
	c := dial(t, p.Name())
	g.Await("somebody is attached", g.Attached)
	c.type_("\x13") // ^S
	for range 200 {
		if n := g.TryWrite(strings.Repeat("x", 4096)); n != 4096 {
			t.Fatalf("the guest's write of 4096 bytes took %d", n)
		}
	}
	g.Read("\x13")
	c.type_("input goes on")
	g.Read("input goes on")
	must(t, p.Close()) // which waits for nobody
	g.Await("nobody is attached", func() bool { return !g.Attached() })
}

func TestGuestThatDoesNotReadLeavesInputWhereItIs(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	c := dial(t, p.Name())
	if n := g.TryRead(1); n != "" {
		t.Fatalf("read %q", n)
	}
	g.Await("somebody is attached", g.Attached)
	want := strings.Repeat("0123456789", 1000)
	c.SetWriteDeadline(time.Now().Add(time.Minute))
	go io.WriteString(c, want+want+want+want)
	for range 4 {
		g.Read(want)
	}
}

func TestAThousandOpensLeaveNothing(t *testing.T) {
	g := linetest.New(t, line.Config{Scrollback: 100})
	p := open(t, g, Config{})
	g.Write("hello")
	session := func() {
		c := dial(t, p.Name())
		defer c.Close()
		c.see("hello")
		c.type_("x")
		g.Read("x")
	}
	session()
	g.Await("nobody is attached", func() bool { return !g.Attached() })
	before := descriptors(t)
	for range 1000 {
		session()
		g.Await("nobody is attached", func() bool { return !g.Attached() })
	}
	// And as fast as it goes: the line may take many for one.
	for range 1000 {
		dial(t, p.Name()).Close()
	}
	g.Await("nobody is attached", func() bool { return !g.Attached() })
	await(t, "the descriptors are as before", func() bool { return descriptors(t) <= before })
	if n := len(g.Line.Status().Ends); n > 1 {
		t.Errorf("%d ends", n)
	}
}

func TestManyThatLeaveInputAreFewEnds(t *testing.T) {
	g := linetest.New(t, line.Config{Overflow: line.Wait})
	p := open(t, g, Config{Keep: true})
	for range 200 {
		c := dial(t, p.Name())
		g.Await("somebody is attached", g.Attached)
		c.type_("x")
		c.Close()
		g.Await("nobody is attached", func() bool { return !g.Attached() })
	}
	await(t, "few ends", func() bool { return len(g.Line.Status().Ends) <= 2 })
	g.Read(strings.Repeat("x", 200))
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}

func await(t testing.TB, what string, so func() bool) {
	t.Helper()
	for range 6000 {
		if so() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("still not so: %s", what)
}

func TestLink(t *testing.T) {
	// gone gives the name of a pseudo-terminal that there is not.
	gone := func(t *testing.T) string { return "/dev/pts/123456789" }
	for name, tt := range map[string]struct {
		make func(t *testing.T, path string)
		want string // in the error; empty: there is none
	}{
		"nothing":        {func(*testing.T, string) {}, ""},
		"dangling link":  {func(t *testing.T, path string) { must(t, os.Symlink(gone(t), path)) }, ""},
		"file":           {func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("x"), 0o600)) }, "is no link to a pseudo-terminal"},
		"link elsewhere": {func(t *testing.T, path string) { must(t, os.Symlink("/nowhere/at/all", path)) }, "is no link to a pseudo-terminal"},
		"directory":      {func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o700)) }, "is no link to a pseudo-terminal"},
		"link of one that lives": {func(t *testing.T, path string) {
			open(t, linetest.New(t, line.Config{}), Config{Link: path})
		}, "which is in use"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "console")
			tt.make(t, path)
			was, _ := os.Readlink(path)
			g := linetest.New(t, line.Config{})
			before := descriptors(t)
			p, err := Open(g.Line, line.Main, Config{Link: path})
			if tt.want != "" {
				if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), path) {
					t.Fatalf("%v, want something with %q", err, tt.want)
				}
				if now, _ := os.Readlink(path); now != was {
					t.Errorf("the link is to %q, was to %q", now, was)
				}
				if _, err := os.Lstat(path); err != nil {
					t.Error(err)
				}
				if n := descriptors(t); n != before {
					t.Errorf("%d descriptors, %d before", n, before)
				}
				return
			}
			must(t, err)
			if to, err := os.Readlink(path); err != nil || to != p.Name() {
				t.Errorf("a link to %q, %v", to, err)
			}
			dial(t, path).Close()
			must(t, p.Close())
			must(t, p.Close())
			if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
	t.Run("in no directory", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "no", "console")
		if _, err := Open(linetest.New(t, line.Config{}).Line, line.Main, Config{Link: path}); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
	t.Run("to the number that it has itself", func(t *testing.T) {
		// Left by one that was killed, whose number the next one gets.
		path := filepath.Join(t.TempDir(), "console")
		p := &Pty{conf: Config{Link: path}, name: "/dev/pts/ptmx"} // a file that is there
		must(t, os.Symlink(p.name, path))
		must(t, p.link())
		if to, _ := os.Readlink(path); to != p.name {
			t.Errorf("a link to %q", to)
		}
	})
	t.Run("that is somebody else's by now", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "console")
		p := open(t, linetest.New(t, line.Config{}), Config{Link: path})
		must(t, os.Remove(path))
		must(t, os.Symlink(gone(t), path))
		must(t, p.Close())
		if to, err := os.Readlink(path); err != nil || to != gone(t) {
			t.Errorf("a link to %q, %v", to, err)
		}
	})
}

func TestLineThatClosesEndsIt(t *testing.T) {
	g := linetest.New(t, line.Config{})
	p := open(t, g, Config{})
	c := dial(t, p.Name())
	g.Await("somebody is attached", g.Attached)
	g.Line.Close()
	// It is hung up when the Pty is closed, and not before.
	dial(t, p.Name()).Close()
	must(t, p.Close())
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
}
