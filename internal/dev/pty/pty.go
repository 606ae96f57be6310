// Package pty is the end of a line that is a pseudo-terminal: whoever opens it, such as minicom(1),
// is at the other side of the line.
//
// The pseudo-terminal is there from Open to Close, whether somebody has it open or not, and so is a
// symbolic link to it. While nobody has it open, nobody is attached to the line, and nothing is
// done.
//
// Each time that somebody opens it while nobody has it open, an End is added to the line, which
// sees the output from the oldest that is kept on. It is removed when the last one has closed the
// pseudo-terminal, which then is as at first: raw, so that it neither changes nor echoes anything.
// Input that is left by then is read all the same.
//
// If all close it and somebody opens it again before that was seen, it was not closed: there is no
// End anew.
//
// A program that has it for itself alone (TIOCEXCL), as screen(1) does, leaves it so: the host then
// lets nobody open it again who has not CAP_SYS_ADMIN, and this process neither.
package pty

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/term"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/ready"
	"vdev/internal/sys"
)

// look is the time from one look at the window's size to the next while somebody is attached: the
// host tells the side that a program has, and not this one.
const look = 500 * time.Millisecond

// Config describes a pseudo-terminal.
type Config struct {
	// Link is the path of a symbolic link to it; empty: none. A link to a pseudo-terminal that is
	// not there any more is replaced. Anything else there is an error.
	Link string
	// Keep: what is written to whoever has it open, and not read, is there for who comes next, and
	// not thrown away. It is for a line with the overflow Wait, which gives its bytes once.
	Keep bool
}

// Pty is a pseudo-terminal that belongs to a line. Its methods may be called on any goroutine.
type Pty struct {
	line *line.Line
	role line.Role
	conf Config
	name string // of the side that others open

	master *sys.FD
	opens  *os.File // tells of opens
	opened chan struct{}
	gone   chan struct{} // some client's other side has gone
	end    chan struct{} // closed by Close
	once   sync.Once
	all    sync.WaitGroup
}

// Open makes a pseudo-terminal, with its link, for l.
func Open(l *line.Line, role line.Role, conf Config) (*Pty, error) {
	p := &Pty{line: l, role: role, conf: conf,
		opened: make(chan struct{}, 1), gone: make(chan struct{}, 1), end: make(chan struct{})}
	if err := p.create(); err != nil {
		return nil, fmt.Errorf("pty: %w", err)
	}
	if err := p.link(); err != nil {
		p.master.Close()
		p.opens.Close()
		return nil, fmt.Errorf("pty: %w", err)
	}
	p.all.Go(p.listen)
	p.all.Go(p.serve)
	return p, nil
}

// Name is the path of the side that others open, such as /dev/pts/3.
func (p *Pty) Name() string { return p.name }

// create makes the pseudo-terminal. When it returns nobody has the other side open, and that shows.
func (p *Pty) create() (err error) {
	master, tty, err := pty.Open()
	if err != nil {
		return err
	}
	// To have a descriptor that Go's poller does not know.
	defer master.Close()
	defer tty.Close()
	p.name = tty.Name()
	c, err := master.SyscallConn()
	if err != nil {
		return err
	}
	cerr := c.Control(func(fd uintptr) {
		if err = sys.SetNonblock(int(fd)); err == nil {
			p.master, err = sys.Dup(int(fd))
		}
	})
	if err = errors.Join(cerr, err); err != nil {
		return err
	}
	if p.opens, err = sys.WatchOpens(p.name); err != nil {
		p.master.Close()
		return err
	}
	p.raw()
	return nil
}

// raw makes the pseudo-terminal raw. The host lets its settings stay as the last one left them.
func (p *Pty) raw() { _, _ = term.MakeRaw(p.master.Int()) }

// ptys is where the host has the sides that others open.
const ptys = "/dev/pts/"

// link makes the symbolic link. It replaces one to a pseudo-terminal that is gone, or whose name is
// this one's: whoever made that had it before.
func (p *Pty) link() error {
	path := p.conf.Link
	if path == "" {
		return nil
	}
	err := os.Symlink(p.name, path)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	to, err := os.Readlink(path)
	if err != nil || !strings.HasPrefix(to, ptys) {
		return fmt.Errorf("%s: it is there already, and is no link to a pseudo-terminal; remove it, or choose another path", path)
	}
	if _, err := os.Lstat(to); to != p.name && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: is a link to %s, which is in use; remove it if that has nothing to do with it any more", path, to)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(p.name, path)
}

// unlink removes the link, if it is still the one to this pseudo-terminal.
func (p *Pty) unlink() error {
	if p.conf.Link == "" {
		return nil
	}
	if to, err := os.Readlink(p.conf.Link); err != nil || to != p.name {
		return nil
	}
	return os.Remove(p.conf.Link)
}

// Close removes the link, and takes the pseudo-terminal out of the line. It does not wait for
// whoever has it open, who finds it hung up. More than one call does no harm.
func (p *Pty) Close() (err error) {
	p.once.Do(func() {
		err = p.unlink()
		close(p.end)
		p.opens.Close()
		p.all.Wait()
		p.master.Close()
	})
	return err
}

// listen tells serve of opens. Many may be one.
func (p *Pty) listen() {
	buf := make([]byte, 4096)
	for {
		if _, err := p.opens.Read(buf); err != nil {
			return
		}
		told(p.opened)
	}
}

func told(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// serve adds Ends to the line, and looks at the window's size.
func (p *Pty) serve() {
	var at *client   // for as long as somebody has it open; or nil
	var rest *client // for input that is left when nobody has it open; or nil
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		var err error
		closed := sys.Closed(p.master.Int())
		switch {
		case at == nil && !closed:
			at, err = p.attach(p.role, false)
		case at == nil && rest == nil && sys.Readable(p.master.Int()):
			if rest, err = p.attach(line.Watcher, true); err == nil {
				rest.Hangup()
			}
		}
		switch {
		case errors.Is(err, devsw.ENXIO):
			return
		case at != nil || err != nil:
			tick.Reset(look) // to look at the size, or to try again
		default:
			tick.Stop()
		}
		select {
		case <-p.end:
			for _, c := range []*client{at, rest} {
				if c != nil {
					c.Remove()
				}
			}
			return
		case <-p.opened:
		case <-p.gone:
		case <-over(rest):
			rest = nil
		case <-tick.C:
			if at != nil {
				at.size()
			}
		}
		if at != nil && at.hungup.Load() {
			// When the line has done with it, it also knows how much was written.
			at.Remove()
			<-at.Done()
			at = nil
			// The next one is to find it as at first.
			p.raw()
			if !p.conf.Keep {
				_ = sys.DropOutput(p.master.Int())
			}
		}
	}
}

// over is closed when the line has done with c; nil, where there is no c.
func over(c *client) <-chan struct{} {
	if c == nil {
		return nil
	}
	return c.Done()
}

// attach adds an End to the line, to which nothing is written if hungup is true. ENXIO: the line is
// closed.
func (p *Pty) attach(role line.Role, hungup bool) (*client, error) {
	fd, err := p.master.Dup()
	if err != nil {
		return nil, err
	}
	shared, err := sys.NewShared(fd)
	if err != nil {
		return nil, err
	}
	c := &client{pty: p, fd: fd, shared: shared}
	c.hungup.Store(hungup)
	if !hungup {
		c.size()
	}
	if c.watch, err = ready.Watch(fd.Int(), c.event); err == nil {
		if err = p.line.Add(c, p.name, role); err == nil {
			return c, nil
		}
		c.watch.Close()
	}
	shared.End()
	return nil, err
}

// client is an End.
type client struct {
	line.Base
	pty    *Pty
	fd     *sys.FD // of its own
	shared *sys.Shared
	watch  *ready.Watcher
	hungup atomic.Bool // nobody has it open any more, or the line has done with it
}

// size tells the line of the window's size.
func (c *client) size() {
	var size devsw.Winsize // none where there is no answer
	if cols, rows, err := term.GetSize(c.pty.master.Int()); err == nil {
		size = devsw.Winsize{Row: uint16(rows), Col: uint16(cols)}
	}
	c.SetSize(size)
}

// event is what the watch tells.
func (c *client) event(_ *ready.Watcher, ev ready.Events) {
	if ev&ready.Readable != 0 {
		c.Ready()
	}
	if ev&ready.Hangup != 0 {
		c.hangup()
	}
}

// hangup says that nobody has the pseudo-terminal open any more.
func (c *client) hangup() {
	c.hungup.Store(true)
	told(c.pty.gone)
}

// Writev implements line.End. It writes what the terminal takes, and waits where that is nothing.
func (c *client) Writev(p [][]byte) (int, error) {
	if err := c.shared.Enter(); err != nil {
		return 0, err
	}
	defer c.shared.Leave()
	for {
		if c.hungup.Load() {
			return 0, io.ErrClosedPipe
		}
		n, errno := sys.Writev(c.fd.Int(), p)
		switch {
		case errno == 0:
			return n, nil
		case errno != syscall.EAGAIN:
			return 0, errno
		case sys.Closed(c.fd.Int()):
			c.hangup() // a wait would end at once
			return 0, io.ErrClosedPipe
		}
		if err := c.shared.Await(c.fd, true); err != nil {
			return 0, err
		}
	}
}

// Readv implements line.Input.
func (c *client) Readv(p [][]byte) (int, error) {
	if err := c.shared.Enter(); err != nil {
		return 0, io.EOF
	}
	defer c.shared.Leave()
	// First: what is there when it has hung up is read before the end.
	hungup := c.hungup.Load()
	n, errno := sys.Readv(c.fd.Int(), p)
	switch {
	case errno == 0:
		return n, nil
	case errno == syscall.EFAULT:
		return 0, errno
	case errno == syscall.EAGAIN && !hungup:
		if err := c.watch.Arm(); err != nil {
			return 0, err
		}
		return 0, devsw.EAGAIN
	}
	return 0, io.EOF
}

// Close implements line.End.
func (c *client) Close() {
	c.watch.Close()
	c.shared.End()
	c.hangup()
}
