package load

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"sync/atomic"
	"time"
)

// Names of hosts that are nobody. A path of the same name is written with a slash in it.
const (
	HostNull = "null" // the port's output goes nowhere
	HostLoop = "loop" // the port's output comes back as its input
)

// Host is the other side of a console's port. It is used for one run after the other.
type Host struct {
	name string
	loop bool // the device itself sends back what it gets

	// Neither is there with HostNull and HostLoop.
	rw   io.ReadWriter
	shut func() error // makes what waits for rw return
	// it can only be read, and is a file to which the output is appended
	onlyOutput bool
}

// OpenHost opens what a port's other side is at: a Unix socket that the back-end listens on, a
// terminal, or a file that it appends to. HostNull and HostLoop are other ones.
func OpenHost(name string) (*Host, error) {
	h := &Host{name: name, shut: func() error { return nil }}
	switch name {
	case HostLoop:
		h.loop = true
		return h, nil
	case HostNull:
		return h, nil
	}
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode&fs.ModeSocket != 0:
		return h, h.dial()
	case mode&fs.ModeCharDevice != 0:
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		h.rw, h.shut = f, f.Close
		return h, nil
	case mode.IsRegular():
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		if _, err := f.Seek(0, io.SeekEnd); err != nil {
			f.Close()
			return nil, err
		}
		grows := &growing{f: f}
		h.rw, h.shut, h.onlyOutput = grows, grows.close, true
		return h, nil
	}
	return nil, fmt.Errorf("%s: is neither a socket, nor a terminal, nor a file", name)
}

// dial connects to a socket. What waits for it holds its thread, so that nothing else has to wake
// up first.
func (h *Host) dial() error {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: h.name, Net: "unix"})
	if err != nil {
		return err
	}
	f, err := c.File() // which blocks
	if err != nil {
		c.Close()
		return err
	}
	h.rw = f
	h.shut = func() error {
		_ = c.CloseRead() // it fails where the other side has gone, and nobody waits then
		_ = c.CloseWrite()
		return errors.Join(c.Close(), f.Close())
	}
	return nil
}

// Close ends the connection, and whatever waits for it.
func (h *Host) Close() error { return h.shut() }

// fits returns an error where the pattern is none for this host.
func (h *Host) fits(p Pattern) error {
	switch {
	case h.rw == nil && !h.loop && p != Output, h.onlyOutput && p != Output:
		return fmt.Errorf("pattern %s: %s takes output only", p, h.name)
	case h.loop && p != Both && p != Echo:
		return fmt.Errorf("pattern %s: with %s there are both and echo", p, h.name)
	}
	return nil
}

// growing is a file that is read while it grows.
type growing struct {
	f      *os.File
	closed atomic.Bool
}

// lookAgain is after what time a file that has not grown is looked at again.
const lookAgain = time.Millisecond

func (g *growing) Read(b []byte) (int, error) {
	for {
		n, err := g.f.Read(b)
		if n > 0 || err != io.EOF {
			return n, err
		}
		if g.closed.Load() {
			return 0, fs.ErrClosed
		}
		time.Sleep(lookAgain)
	}
}

func (g *growing) Write([]byte) (int, error) { return 0, fs.ErrPermission }

func (g *growing) close() error {
	g.closed.Store(true)
	return g.f.Close()
}
