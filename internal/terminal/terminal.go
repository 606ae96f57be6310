// Package terminal is the terminal of whoever has started this process: its standard input and
// output, in raw mode, so that what is typed goes to a guest as it is. It works without raw mode
// where they are no terminal.
//
// # Settings
//
// The terminal has the settings it had before once Close has returned, before the process ends by a
// signal that can be caught, and while it is stopped by one. That does not hold for SIGKILL, nor
// for a panic on a goroutine that does not close the Terminal.
//
// O_NONBLOCK is left alone on the descriptors that were given: it would be the shell's, too.
//
// # Concurrency
//
// One goroutine at a time may Read, and one may Write. All else may be called on any goroutine.
// Nothing waits for the terminal but Read and Write, and Close ends both. There is one exception: a
// terminal that may not be opened a second time (it is another user's) and takes nothing more holds
// up a Write in the host.
//
// Terminal.mu is held for the calls of the host that change settings, and for nothing else.
package terminal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/term"

	"vdev/internal/sys"
)

// ErrEscape is what Read ends with when Ctrl-] was typed.
var ErrEscape = errors.New("left with Ctrl-]")

// Config says what a Terminal is.
type Config struct {
	In, Out *os.File // they stay the caller's
	// Escape: Ctrl-] ends Read, where In is a terminal. All else that can be typed goes to the
	// guest, ^C and ^Z too, so without it a person cannot leave.
	Escape bool
	// Own are the signals that the program handles itself. Where they end it, it calls Close. All
	// others that end a process do so after the settings are as they were.
	Own []os.Signal
	// Resized is called, if it is not nil, when the size of the window has changed. It must not
	// call Close.
	Resized func()
}

// Terminal is what Open has opened.
type Terminal struct {
	conf    Config
	in, out *sys.FD     // its own
	shared  *sys.Shared // in, out: ended by Close
	tty     bool        // in is a terminal
	signals chan os.Signal
	watched chan struct{} // closed when nobody looks at signals any more

	escaped bool // of Read

	mu     sync.Mutex
	before *term.State // while the terminal is raw; else nil
	closed bool
}

// ending are the signals that end a Go program which does not handle them, and that it can handle
// (os/signal).
var ending = []os.Signal{syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGABRT, syscall.SIGTERM}

// Open makes the terminal raw, if In is one.
func Open(conf Config) (*Terminal, error) {
	in, tty, err := own(conf.In)
	if err != nil {
		return nil, err
	}
	out, _, err := own(conf.Out)
	if err != nil {
		in.Close()
		return nil, err
	}
	shared, err := sys.NewShared(in, out)
	if err != nil {
		return nil, err
	}
	t := &Terminal{conf: conf, in: in, out: out, shared: shared, tty: tty,
		signals: make(chan os.Signal, 8), watched: make(chan struct{})}
	watch := []os.Signal{syscall.SIGWINCH}
	if tty {
		watch = append(watch, syscall.SIGTSTP, syscall.SIGCONT)
		watch = append(watch, ending...)
		// What is ignored (by nohup(1), say) would be so no longer.
		watch = slices.DeleteFunc(watch, func(s os.Signal) bool { return slices.Contains(conf.Own, s) || signal.Ignored(s) })
	}
	// Before the terminal is raw: a signal that comes in between finds somebody.
	signal.Notify(t.signals, watch...)
	go t.watch()
	if err := t.makeRaw(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// own makes a descriptor of one's own for f, and tells whether it is a terminal.
func own(f *os.File) (fd *sys.FD, tty bool, err error) {
	c, err := f.SyscallConn()
	if err != nil {
		return nil, false, err
	}
	cerr := c.Control(func(n uintptr) {
		if tty = term.IsTerminal(int(n)); tty {
			if fd, err = sys.ReopenTTY(int(n)); err == nil {
				return
			}
		}
		fd, err = sys.Dup(int(n))
	})
	if err = errors.Join(cerr, err); err != nil {
		return nil, false, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return fd, tty, nil
}

// makeRaw makes the terminal raw, if it is one and is not raw.
func (t *Terminal) makeRaw() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.tty || t.before != nil || t.closed {
		return nil
	}
	before, err := term.MakeRaw(t.in.Int())
	if err != nil {
		return fmt.Errorf("%s: raw mode: %w", t.conf.In.Name(), err)
	}
	t.before = before
	return nil
}

// restore gives the terminal the settings that it had before makeRaw. In the background it leaves
// it alone: whoever has the terminal now has settings of his own, and this process would be
// stopped.
func (t *Terminal) restore() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.restoreLocked()
}

func (t *Terminal) restoreLocked() error {
	if t.before == nil {
		return nil
	}
	before := t.before
	t.before = nil
	if !sys.Foreground(t.in.Int()) {
		return nil
	}
	return term.Restore(t.in.Int(), before)
}

// watch does what signals ask for, until Close.
func (t *Terminal) watch() {
	defer close(t.watched)
	for s := range t.signals {
		switch s {
		case syscall.SIGWINCH:
			if t.conf.Resized != nil {
				t.conf.Resized()
			}
		case syscall.SIGCONT:
			// Whoever had the terminal meanwhile may have changed it. In the background it is still
			// somebody else's, and there will be another SIGCONT.
			if sys.Foreground(t.in.Int()) {
				_ = t.restore()
				_ = t.makeRaw()
			}
		case syscall.SIGTSTP:
			_ = t.restore()
			raise(syscall.SIGSTOP)
		default:
			_ = t.restore()
			signal.Reset(s)
			raise(s)
		}
	}
}

// raise sends a signal to this process.
func raise(s os.Signal) {
	if p, err := os.FindProcess(os.Getpid()); err == nil {
		_ = p.Signal(s)
		p.Release()
	}
}

// IsTerminal tells whether In is a terminal.
func (t *Terminal) IsTerminal() bool { return t.tty }

// Size gives the window's size in characters; ok is false where neither end is a terminal, or one
// that has no size.
func (t *Terminal) Size() (rows, cols uint16, ok bool) {
	if t.shared.Enter() != nil {
		return 0, 0, false
	}
	defer t.shared.Leave()
	for _, fd := range []*sys.FD{t.out, t.in} {
		if c, r, err := term.GetSize(fd.Int()); err == nil {
			return uint16(r), uint16(c), r > 0 && c > 0
		}
	}
	return 0, 0, false
}

// escape matches what terminals send for Ctrl-]: the control character; with the keyboard protocol
// of kitty(1), with or without a lock key; with xterm(1)'s modifyOtherKeys. A program in the guest
// can ask for both.
var escape = regexp.MustCompile(`\x1d|\x1b\[93[:\d]*;(?:5|69|133|197)(?::[12])?(?:;[:\d]*)?u|\x1b\[27;5;93~`)

// Read reads what was typed, once. It waits until there is something. Errors: io.EOF at the input's
// end, also where the terminal has gone; ErrEscape; os.ErrClosed after Close.
func (t *Terminal) Read(p []byte) (int, error) {
	if t.escaped {
		return 0, ErrEscape
	}
	n, err := t.shared.Transfer(t.in, false, sys.Readv, [][]byte{p})
	if errors.Is(err, syscall.EIO) || n == 0 && err == nil && len(p) > 0 {
		err = io.EOF // EIO is the end where the terminal has hung up
	}
	if t.conf.Escape && t.tty {
		if at := escape.FindIndex(p[:n]); at != nil {
			t.escaped = true
			n = at[0]
			if n == 0 {
				err = ErrEscape
			}
		}
	}
	return n, err
}

// most is how much a terminal, pipe or socket that has room takes at once without waiting, where
// its descriptor waits otherwise, in bytes: PIPE_BUF.
const most = 4096

// Write writes all of p, and waits where the terminal takes nothing. os.ErrClosed after Close.
func (t *Terminal) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = t.shared.Transfer(t.out, true, sys.Writev, [][]byte{p[n:min(len(p), n+most)]})
		n += k
	}
	return n, err
}

// Close gives the terminal the settings it had, and ends a Read and a Write that wait. It returns
// an error where the settings could not be given back. More than one call does no harm. It must not
// be called by Config.Resized.
func (t *Terminal) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		<-t.watched
		return nil
	}
	err := t.restoreLocked()
	t.closed = true
	t.mu.Unlock()

	signal.Stop(t.signals)
	close(t.signals)
	<-t.watched
	t.shared.End()
	if errors.Is(err, syscall.EIO) {
		err = nil // it has hung up: there is nothing to give back
	}
	return err
}
