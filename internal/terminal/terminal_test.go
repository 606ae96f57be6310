package terminal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"vdev/internal/child"
	"vdev/internal/sys"
)

// person is a pseudo-terminal: what a person types and sees is at the side of p.
type person struct {
	t      testing.TB
	p, tty *os.File
	before *term.State
}

func newPerson(t testing.TB) *person {
	t.Helper()
	p, tty, err := pty.Open()
	must(t, err)
	t.Cleanup(func() { p.Close(); tty.Close() })
	w := &person{t: t, p: p, tty: tty}
	must(t, pty.Setsize(p, &pty.Winsize{Rows: 40, Cols: 100}))
	w.before = w.settings()
	return w
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// control calls f with a descriptor's number, and leaves its flags alone.
func control(f *os.File, do func(fd int)) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return c.Control(func(fd uintptr) { do(int(fd)) })
}

func (w *person) settings() (s *term.State) {
	w.t.Helper()
	var err error
	must(w.t, control(w.tty, func(fd int) { s, err = term.GetState(fd) }))
	must(w.t, err)
	return s
}

// raw tells whether the settings differ from those at first.
func (w *person) raw() bool { return !reflect.DeepEqual(w.settings(), w.before) }

// await waits until what is to hold does.
func (w *person) await(what string, holds func() bool) {
	w.t.Helper()
	for range 6000 {
		if holds() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	w.t.Fatalf("still not so: %s", what)
}

// see waits until the person has seen text, and returns all that was shown.
func (w *person) see(text string) string {
	w.t.Helper()
	var all []byte
	for !bytes.Contains(all, []byte(text)) {
		p := make([]byte, 64<<10)
		w.p.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := w.p.Read(p)
		if err != nil {
			w.t.Fatalf("waiting for %q, seen %q: %v", text, all, err)
		}
		all = append(all, p[:n]...)
	}
	return string(all)
}

// shows tells whether there is something to see, without looking at it.
func (w *person) shows() (yes bool) {
	w.t.Helper()
	must(w.t, control(w.p, func(fd int) { yes = sys.Readable(fd) }))
	return yes
}

func (w *person) type_(text string) {
	w.t.Helper()
	_, err := w.p.WriteString(text)
	must(w.t, err)
}

func (w *person) open(conf Config) *Terminal {
	w.t.Helper()
	conf.In, conf.Out = w.tty, w.tty
	t, err := Open(conf)
	must(w.t, err)
	w.t.Cleanup(func() { must(w.t, t.Close()) })
	return t
}

// roles are what the test's own program does as a child.
var roles = map[string]func(){
	// raw has a terminal raw until a signal comes.
	"raw": func() { stayRaw(nil) },
	// own has SIGTERM for its own.
	"own": func() { stayRaw([]os.Signal{syscall.SIGTERM}) },
	// winch is raw that tells when it is told of the window's size, until it is killed.
	"winch": func() {
		_, err := Open(Config{In: os.Stdin, Out: os.Stdout, Resized: func() { fmt.Println("told of the size") }})
		if err != nil {
			panic(err)
		}
		fmt.Printf("ready (%d)", os.Getpid())
		time.Sleep(time.Hour)
	},
	// panic has a terminal attached to what panics.
	"panic": func() {
		_ = Run(context.Background(), Config{In: os.Stdin, Out: os.Stdout, Escape: true}, panics{})
	},
}

func stayRaw(own []os.Signal) {
	t, err := Open(Config{In: os.Stdin, Out: os.Stdout, Own: own})
	if err != nil {
		panic(err)
	}
	fmt.Fprint(t, "ready")
	p := make([]byte, 100)
	for {
		n, err := t.Read(p)
		if err != nil {
			return
		}
		t.Write(p[:n])
	}
}

type panics struct{}

func (panics) Read([]byte) (int, error)    { panic("as it was told to") }
func (panics) Write(p []byte) (int, error) { return len(p), nil }
func (panics) Close() error                { return nil }
func (panics) Resize(_, _ uint16) error    { return nil }

// start starts the test's program in a role, on the person's terminal.
func (w *person) start(role string) (*exec.Cmd, *child.Process) {
	w.t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "TERMINAL_TEST="+role)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = w.tty, w.tty, io.Discard
	c, err := child.Start(cmd, syscall.SIGKILL)
	must(w.t, err)
	return cmd, c
}

func TestSettingsAreAsBeforeAfterEverySignal(t *testing.T) {
	for _, s := range ending {
		t.Run(s.String(), func(t *testing.T) {
			t.Parallel()
			w := newPerson(t)
			cmd, c := w.start("raw")
			w.see("ready")
			if !w.raw() {
				t.Error("not raw")
			}
			must(t, cmd.Process.Signal(s))
			<-c.Ended()
			if w.raw() {
				t.Error("the settings are not as before")
			}
			if cmd.ProcessState.Success() {
				t.Errorf("ended with %v: the signal was lost", cmd.ProcessState)
			}
		})
	}
}

func TestSignalOfTheProgramsOwnChangesNothing(t *testing.T) {
	w := newPerson(t)
	cmd, c := w.start("own")
	w.see("ready")
	// The child says so, and does not handle it: it ends with the settings as they are.
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	<-c.Ended()
	if !w.raw() {
		t.Error("the settings were changed")
	}
}

func TestSettingsAreAsBeforeAfterAPanic(t *testing.T) {
	w := newPerson(t)
	cmd, c := w.start("panic")
	<-c.Ended()
	if w.raw() || cmd.ProcessState.ExitCode() != 2 {
		t.Errorf("raw: %v, %v", w.raw(), cmd.ProcessState)
	}
}

func TestStopAndGoOn(t *testing.T) {
	w := newPerson(t)
	cmd, c := w.start("raw")
	w.see("ready")
	for range 3 {
		must(t, cmd.Process.Signal(syscall.SIGTSTP))
		w.await("the child stands still, with the settings as before", func() bool {
			stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
			must(t, err)
			return strings.Contains(string(stat), ") T ") && !w.raw()
		})
		must(t, cmd.Process.Signal(syscall.SIGCONT))
		w.await("raw again", w.raw)
		w.type_("still here\r")
		w.see("still here\r")
	}
	must(t, cmd.Process.Signal(syscall.SIGTERM))
	<-c.Ended()
	if w.raw() {
		t.Error("the settings are not as before")
	}
}

func TestGoingOnInTheBackgroundLeavesTheTerminalAlone(t *testing.T) {
	// A shell with job control: it takes the terminal back when the child stops.
	sh := exec.Command("sh", "-c", `set -m; "$0"; echo the shell has it; read x`, os.Args[0])
	sh.Env = append(os.Environ(), "TERMINAL_TEST=winch")
	p, err := pty.Start(sh)
	must(t, err)
	w := &person{t: t, p: p}
	defer p.Close()
	defer sh.Wait()
	defer sh.Process.Kill()
	var pid int
	_, rest, _ := strings.Cut(w.see(")"), "ready (")
	if _, err := fmt.Sscan(strings.TrimSuffix(rest, ")"), &pid); err != nil {
		t.Fatal(err)
	}
	c, err := os.FindProcess(pid)
	must(t, err)
	defer c.Release()
	defer c.Kill()
	must(t, c.Signal(syscall.SIGTSTP))
	w.see("the shell has it\r\n") // by the settings as they were
	// It looks at the signals in this order. Changing the settings would stop it before the second.
	must(t, c.Signal(syscall.SIGCONT))
	must(t, c.Signal(syscall.SIGWINCH))
	w.see("told of the size\r\n")
}

func TestFlagsOfTheGivenDescriptorsStay(t *testing.T) {
	w := newPerson(t)
	cmd, c := w.start("raw")
	w.see("ready")
	for fd := range 2 {
		info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", cmd.Process.Pid, fd))
		must(t, err)
		var ours string
		must(t, control(w.tty, func(fd int) {
			b, e := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
			ours, err = string(b), e
		}))
		must(t, err)
		if a, b := flagsOf(t, string(info)), flagsOf(t, ours); a != b {
			t.Errorf("descriptor %d: flags %s, %s at first", fd, a, b)
		}
	}
	must(t, cmd.Process.Kill())
	<-c.Ended()
}

// flagsOf gives the flags in an fdinfo, without O_CLOEXEC, which is the descriptor's.
func flagsOf(t *testing.T, info string) string {
	t.Helper()
	var pos, flags int
	if _, err := fmt.Sscanf(info, "pos: %d\nflags: %o", &pos, &flags); err != nil {
		t.Fatalf("%q: %v", info, err)
	}
	return fmt.Sprintf("%o", flags&^0o2000000)
}

func TestEverythingTypedIsReadAsItIs(t *testing.T) {
	w := newPerson(t)
	term := w.open(Config{Escape: true})
	want := "\x03\x1a\x1c\x11\x13\x04\r\n\x7f\x00\xff~."
	w.type_(want)
	got := make([]byte, 0, 100)
	for len(got) < len(want) {
		n, err := term.Read(got[len(got):cap(got)])
		must(t, err)
		got = got[:len(got)+n]
	}
	if string(got) != want {
		t.Errorf("read %q, want %q", got, want)
	}
}

func TestEscape(t *testing.T) {
	for _, keys := range []string{"\x1d", "\x1b[93;5u", "\x1b[93;133u", "\x1b[93::93;5:1u", "\x1b[27;5;93~"} {
		t.Run(fmt.Sprintf("%q", keys), func(t *testing.T) {
			w := newPerson(t)
			term := w.open(Config{Escape: true})
			w.type_("ab" + keys + "cd")
			p := make([]byte, 100)
			n, err := term.Read(p)
			if string(p[:n]) != "ab" || err != nil {
				t.Errorf("read %q, %v", p[:n], err)
			}
			for range 2 {
				if n, err := term.Read(p); n != 0 || err != ErrEscape {
					t.Errorf("after it: %d, %v", n, err)
				}
			}
		})
	}
	// What is not the key: others, the key released, and without Escape also the key itself.
	for keys, esc := range map[string]bool{"]": true, "\x1b[93;5:3u": true, "\x1b[93;1u": true, "\x1b[93u": true, "\x1d": false} {
		w := newPerson(t)
		term := w.open(Config{Escape: esc})
		w.type_(keys)
		p := make([]byte, 100)
		if n, err := term.Read(p); string(p[:n]) != keys || err != nil {
			t.Errorf("%q: %q, %v", keys, p[:n], err)
		}
	}
}

func TestSize(t *testing.T) {
	w := newPerson(t)
	resized := make(chan struct{}, 100)
	term := w.open(Config{Resized: func() { resized <- struct{}{} }})
	if rows, cols, ok := term.Size(); rows != 40 || cols != 100 || !ok {
		t.Errorf("%d rows, %d columns, %v", rows, cols, ok)
	}
	must(t, pty.Setsize(w.p, &pty.Winsize{Rows: 37, Cols: 111}))
	// This process is not in the terminal's foreground, and is told by the test.
	raise(syscall.SIGWINCH)
	<-resized
	if rows, cols, ok := term.Size(); rows != 37 || cols != 111 || !ok {
		t.Errorf("%d rows, %d columns, %v", rows, cols, ok)
	}
	must(t, pty.Setsize(w.p, &pty.Winsize{}))
	if _, _, ok := term.Size(); ok {
		t.Error("a size of nothing")
	}
}

func TestTerminalThatTakesNothing(t *testing.T) {
	w := newPerson(t)
	term := w.open(Config{Escape: true})
	w.type_("\x13") // ^S is the guest's
	p := make([]byte, 10)
	if n, err := term.Read(p); n != 1 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	ended := make(chan error)
	go func() {
		_, err := term.Write(make([]byte, 1<<20))
		ended <- err
	}()
	read := make(chan error)
	go func() {
		_, err := term.Read(make([]byte, 1))
		read <- err
	}()
	w.await("something is shown", w.shows)
	must(t, term.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write ended with %v", err)
	}
	if err := <-read; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Read ended with %v", err)
	}
	if w.raw() {
		t.Error("the settings are not as before")
	}
	if _, _, ok := term.Size(); ok {
		t.Error("a closed one has a size")
	}
}

func TestTerminalThatGoesEndsTheInput(t *testing.T) {
	w := newPerson(t)
	term := w.open(Config{})
	w.p.Close()
	if _, err := term.Read(make([]byte, 10)); err != io.EOF {
		t.Errorf("Read: %v", err)
	}
	must(t, term.Close())
}

func TestPipesNeedNoTerminal(t *testing.T) {
	in, typed, err := os.Pipe()
	must(t, err)
	defer in.Close()
	defer typed.Close()
	shown, out, err := os.Pipe()
	must(t, err)
	defer shown.Close()
	defer out.Close()
	term, err := Open(Config{In: in, Out: out, Escape: true})
	must(t, err)
	defer term.Close()
	if _, _, ok := term.Size(); ok || term.IsTerminal() {
		t.Error("a pipe is a terminal")
	}
	must(t, feed(typed, "a\x1db"))
	p := make([]byte, 100)
	if n, err := term.Read(p); string(p[:n]) != "a\x1db" || err != nil {
		t.Errorf("read %q, %v", p[:n], err)
	}
	typed.Close()
	if _, err := term.Read(p); err != io.EOF {
		t.Errorf("the input's end: %v", err)
	}
	// A pipe that nobody reads holds up a Write, and not a Close.
	ended := make(chan error)
	go func() {
		_, err := term.Write(make([]byte, 1<<20))
		ended <- err
	}()
	_, err = io.ReadFull(shown, p)
	must(t, err)
	must(t, term.Close())
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("Write ended with %v", err)
	}
}

func feed(f *os.File, text string) error {
	_, err := f.WriteString(text)
	return err
}

// peer is what a terminal is attached to, from the test's side.
type peer struct {
	io.Reader
	io.Writer
	sizes chan [2]uint16
	close func() error
}

func (p *peer) Close() error { return p.close() }
func (p *peer) Resize(rows, cols uint16) error {
	p.sizes <- [2]uint16{rows, cols}
	return nil
}

// run runs a terminal attached to what is returned.
func (w *person) run(ctx context.Context) (ended chan error, show *io.PipeWriter, typed *io.PipeReader, p *peer) {
	r, show := io.Pipe()
	typed, wr := io.Pipe()
	p = &peer{Reader: r, Writer: wr, sizes: make(chan [2]uint16, 100), close: func() error { return errors.Join(r.Close(), wr.Close()) }}
	ended = make(chan error, 1)
	go func() { ended <- Run(ctx, Config{In: w.tty, Out: w.tty, Escape: true}, p) }()
	if s := <-p.sizes; s != [2]uint16{40, 100} {
		w.t.Errorf("size %v", s)
	}
	return ended, show, typed, p
}

func TestRun(t *testing.T) {
	t.Run("both ways, and a new size", func(t *testing.T) {
		w := newPerson(t)
		ended, show, typed, p := w.run(t.Context())
		go fmt.Fprint(show, "login: ")
		w.see("login: ")
		w.type_("root\r")
		got := make([]byte, 5)
		_, err := io.ReadFull(typed, got)
		must(t, err)
		if string(got) != "root\r" {
			t.Errorf("typed %q", got)
		}
		must(t, pty.Setsize(w.p, &pty.Winsize{Rows: 50, Cols: 132}))
		raise(syscall.SIGWINCH)
		if s := <-p.sizes; s != [2]uint16{50, 132} {
			t.Errorf("size %v", s)
		}
		w.type_("\x1d")
		if err := <-ended; err != ErrEscape && !errors.Is(err, ErrEscape) {
			t.Errorf("ended with %v", err)
		}
		if w.raw() {
			t.Error("the settings are not as before")
		}
	})
	t.Run("the peer ends", func(t *testing.T) {
		w := newPerson(t)
		ended, show, _, _ := w.run(t.Context())
		go func() {
			show.Write(bytes.Repeat([]byte("x"), 100<<10))
			fmt.Fprint(show, "bye")
			show.Close()
		}()
		if got := w.see("bye"); len(got) != 100<<10+3 {
			t.Errorf("shown: %d bytes", len(got))
		}
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
		if w.raw() {
			t.Error("the settings are not as before")
		}
	})
	t.Run("what was typed before Ctrl-] is taken late", func(t *testing.T) {
		w := newPerson(t)
		ended, _, typed, _ := w.run(t.Context())
		want := strings.Repeat("0123456789", 150)
		w.type_(want + "\x1dmore")
		w.await("the settings are as before", func() bool { return !w.raw() })
		got, _ := io.ReadAll(typed)
		if string(got) != want {
			t.Errorf("%d bytes are typed, want %d", len(got), len(want))
		}
		if err := <-ended; !errors.Is(err, ErrEscape) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("Ctrl-] while the peer takes nothing", func(t *testing.T) {
		w := newPerson(t)
		ended, _, _, _ := w.run(t.Context())
		// More than a pipe and the terminal hold, so that it is read and not taken.
		for range 20 {
			w.type_(strings.Repeat("x", 1000))
		}
		w.type_("\x1d")
		if err := <-ended; !errors.Is(err, ErrEscape) {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("an input that ends", func(t *testing.T) {
		in, typing, err := os.Pipe()
		must(t, err)
		defer in.Close()
		w := newPerson(t)
		r, show := io.Pipe()
		typed, wr := io.Pipe()
		p := &peer{Reader: r, Writer: wr, close: func() error { return errors.Join(r.Close(), wr.Close()) }, sizes: make(chan [2]uint16, 1)}
		ended := make(chan error)
		go func() { ended <- Run(t.Context(), Config{In: in, Out: w.tty, Escape: true}, p) }()
		want := strings.Repeat("one line\n", 2000)
		go func() {
			typing.WriteString(want)
			typing.Close()
		}()
		got := make([]byte, len(want))
		_, err = io.ReadFull(typed, got)
		must(t, err)
		if string(got) != want {
			t.Error("not what was typed")
		}
		fmt.Fprint(show, "still shown")
		w.see("still shown")
		show.Close()
		if err := <-ended; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
	t.Run("the context ends while the terminal takes nothing", func(t *testing.T) {
		w := newPerson(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		ended, show, _, _ := w.run(ctx)
		go func() {
			for {
				if _, err := show.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}()
		w.await("something is shown", w.shows)
		why := errors.New("why")
		cancel(why)
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("ended with %v", err)
		}
		if w.raw() {
			t.Error("the settings are not as before")
		}
	})
}

func TestNoDescriptorIsLeft(t *testing.T) {
	w := newPerson(t)
	open := func() {
		term, err := Open(Config{In: w.tty, Out: w.tty, Escape: true})
		must(t, err)
		must(t, term.Close())
		must(t, term.Close())
	}
	open()
	before := descriptors(t)
	for range 100 {
		open()
	}
	runtime.GC()
	if n := descriptors(t); n > before {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(all)
}
