package virtioconsole

import (
	"bytes"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/vhostuser/vhostusertest"
)

// line is a character device that does as a test says. Its driver keeps what the package's comment
// asks for, but for what the test breaks.
type line struct {
	klist devsw.Klist

	mu      sync.Mutex
	cv      *devsw.Cv
	opens   int
	asleep  bool  // d_open sleeps until d_cancel
	stuck   bool  // and after that, until the test sets this to false
	openErr error // what d_open answers
	slow    bool  // d_close sleeps until the test sets this to false
	hungUp  bool  // nobody is at the other side
	size    devsw.Winsize
	input   []byte // what d_read gives
	piece   int    // bytes that one d_read gives at most; 0: no matter
	output  []byte // what d_write has taken
	room    int    // how much more it takes; below 0: no matter
	eager   int    // bytes that one d_write takes, which says at once that there is room again
	err     error  // what d_read and d_write answer
	writes  int    // calls of d_write
	reads   int    // likewise
	discard bool   // d_write notes nothing
	endless bool   // d_read has always something
	changed chan struct{}
}

func newLine() *line {
	l := &line{room: -1, changed: make(chan struct{})}
	l.cv = devsw.NewCv(&l.mu)
	return l
}

// do changes the line, and tells whoever waits for it.
func (l *line) do(change func()) {
	l.mu.Lock()
	change()
	l.noteLocked()
	l.mu.Unlock()
	for _, f := range []devsw.Filter{devsw.EVFILTRead, devsw.EVFILTWrite, devsw.EVFILTLine} {
		l.klist.Notify(f, -1)
	}
}

func (l *line) noteLocked() {
	close(l.changed)
	l.changed = make(chan struct{})
	l.cv.Broadcast()
}

// await waits until the line is as cond, which is called with mu held, wants it.
func (l *line) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	timeout := time.NewTimer(vhostusertest.Timeout)
	defer timeout.Stop()
	for {
		l.mu.Lock()
		ok, changed := cond(), l.changed
		l.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout.C:
			t.Fatalf("%s: it did not come", what)
		}
	}
}

// awaitOutput waits until the line has got just this since the last time.
func (l *line) awaitOutput(t testing.TB, want string) {
	t.Helper()
	l.await(t, "output", func() bool { return len(l.output) >= len(want) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if string(l.output) != want {
		t.Fatalf("the line has got %.100q, want %.100q", l.output, want)
	}
	l.output = nil
}

// awaitWrites waits until d_write was called that many more times.
func (l *line) awaitWrites(t testing.TB, more int) {
	t.Helper()
	l.mu.Lock()
	want := l.writes + more
	l.mu.Unlock()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		l.mu.Lock()
		got := l.writes
		l.mu.Unlock()
		if got >= want {
			return
		}
		if time.Since(began) > vhostusertest.Timeout {
			t.Fatalf("d_write was called %d times less than it should be", want-got)
		}
	}
}

func (l *line) say(s string) { l.do(func() { l.input = append(l.input, s...) }) }

// lines is their driver: a unit is a line.
type lines []*line

func (ls lines) cdevsw() *devsw.Cdevsw {
	unit := func(dev devsw.Dev) *line { return ls[dev.Minor()] }
	return &devsw.Cdevsw{
		Flag: devsw.DTTY | devsw.DMPSafe,
		Open: func(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.opens++
			l.noteLocked()
			if err := l.cv.Wait(func() bool { return !l.asleep }); err != nil {
				for l.stuck {
					changed := l.changed
					l.mu.Unlock()
					<-changed
					l.mu.Lock()
				}
				return err
			}
			return l.openErr
		},
		Cancel: func(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.cv.Cancel()
			return nil
		},
		Close: func(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			for l.slow {
				changed := l.changed
				l.mu.Unlock()
				<-changed
				l.mu.Lock()
			}
			l.cv.Reset()
			return nil
		},
		Read: func(dev devsw.Dev, u *devsw.Uio, flag devsw.Flag) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.reads++
			switch {
			case flag&devsw.FNONBLOCK == 0:
				panic("d_read that may sleep")
			case l.cv.Cancelled():
				return devsw.ECANCELED
			case l.err != nil:
				return l.err
			case l.endless:
				u.Advance(1)
				return nil
			case len(l.input) == 0:
				return devsw.EAGAIN
			}
			p := l.input
			if l.piece > 0 {
				p = p[:min(l.piece, len(p))]
			}
			l.input = l.input[u.Uiomove(p):]
			l.noteLocked()
			return nil
		},
		Write: func(dev devsw.Dev, u *devsw.Uio, flag devsw.Flag) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.writes++
			switch {
			case flag&devsw.FNONBLOCK == 0:
				panic("d_write that may sleep")
			case l.cv.Cancelled():
				return devsw.ECANCELED
			case l.err != nil:
				return l.err
			case l.discard:
				u.Advance(u.Resid)
				return nil
			}
			n := u.Resid
			if l.room >= 0 {
				n = min(n, l.room)
				l.room -= n
			}
			if l.eager > 0 && n > l.eager {
				n = l.eager
				defer l.klist.Notify(devsw.EVFILTWrite, -1)
			}
			if n == 0 && u.Resid > 0 {
				return devsw.EAGAIN
			}
			at := len(l.output)
			l.output = append(l.output, make([]byte, n)...)
			u.Uiomove(l.output[at:])
			l.noteLocked()
			return nil
		},
		Ioctl: func(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			if cmd != devsw.TIOCGWINSZ || l.size == (devsw.Winsize{}) {
				return devsw.ENOTTY
			}
			*data.(*devsw.Winsize) = l.size
			return nil
		},
		Poll: func(dev devsw.Dev, events devsw.PollEvents, _ func()) devsw.PollEvents {
			l := unit(dev)
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.hungUp {
				return devsw.POLLHUP
			}
			return events & (devsw.POLLIN | devsw.POLLOUT)
		},
		Kqfilter: func(dev devsw.Dev, kn *devsw.Knote) error {
			unit(dev).klist.Insert(kn)
			return nil
		},
	}
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i ^ i>>8 ^ i>>16)
	}
	return b
}

func sameBytes(t testing.TB, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes, want %d; they differ from byte %d on", what, len(got), len(want), at)
}
