// Package proxy stands between QEMU and a vhost-user back-end. It hands on every message and
// descriptor, and keeps what it takes to hold the back-end to its word: guest memory mapped, the
// places of the rings, the in-flight region, and an eventfd of its own in place of each call
// eventfd.
//
// When the back-end answers GET_VRING_BASE, the answer is held back for a while. QEMU waits for it
// and the ring is stopped: nobody but the back-end would write to the ring's used part or to the
// buffers of requests that are still under way. Those are filled with a pattern, looked at again,
// and given their contents back. When QEMU has gone and the back-end has closed its side, nobody at
// all may write to guest memory; all of it is looked at twice. Whoever knows that a machine is
// paused can ask for the same with Freeze.
//
// Lock order: session.mu, then Proxy.mu.
package proxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
)

// Of the messages that the package vhostuser may not know by name.
const (
	getInflightFD vhostuser.Request = 31
	setInflightFD vhostuser.Request = 32
)

const (
	headerSize = 12
	flagReply  = 1 << 2
	maxPayload = 4096
	maxFDs     = 8
	// maxFindings bounds what is remembered of a back-end that writes all over the place.
	maxFindings = 20
	// brokenLimit is how long a back-end may take to close its side after QEMU has gone.
	brokenLimit = 60 * time.Second
)

// Proxy serves one front-end after the other.
type Proxy struct {
	socket   string
	backend  string
	listener *net.UnixListener // of who calls Up and Down
	served   sync.WaitGroup

	mu      sync.Mutex
	hold    time.Duration
	stopped func() // called while an answer is held back
	rings   func(run bool)
	now     *session
	report  Report
}

// Report is what a Proxy has seen so far.
type Report struct {
	Sessions int // front-ends that had a back-end
	Starts   int // rings that were started (SET_VRING_KICK)
	Stops    int // answers to GET_VRING_BASE
	Pending  int // requests that were under way at those
	Watched  int // bytes of their buffers that were watched
	Ends     int // ends of a front-end after which all its memory was watched
	Frozen   int // pauses during which all memory was watched
	// LongestStop is the longest that the back-end took to answer GET_VRING_BASE.
	LongestStop time.Duration
	// Completed counts used elements of all rings, those of earlier starts included.
	Completed uint64
	// Findings says what the back-end did that it must not.
	Findings []string
	// Dropped counts the findings beyond those.
	Dropped int
}

func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sessions=%d starts=%d stops=%d pending=%d watched=%d ends=%d frozen=%d longest-stop=%.3fs findings=%d\n",
		r.Sessions, r.Starts, r.Stops, r.Pending, r.Watched, r.Ends, r.Frozen, r.LongestStop.Seconds(), len(r.Findings)+r.Dropped)
	for _, f := range r.Findings {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

// Listen makes a proxy at socket for the back-end that listens at backend, now or later.
func Listen(socket, backend string) (*Proxy, error) {
	p := &Proxy{socket: socket, backend: backend, hold: 5 * time.Millisecond}
	return p, p.Up()
}

// Down keeps front-ends from connecting, as they cannot connect to a back-end that is not there:
// QEMU 7.2 does not try again after a connection that was closed at once. A connection that there
// is stays. Up undoes it.
func (p *Proxy) Down() { p.listener.Close() }

// Up waits for the end of the connection that there was before Down, which the back-end's end has
// ended.
func (p *Proxy) Up() error {
	p.served.Wait()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.socket, Net: "unix"})
	if err != nil {
		return err
	}
	p.listener = l
	p.served.Go(func() { p.accept(l) })
	return nil
}

// Close ends the proxy and the connections through it, and waits for that.
func (p *Proxy) Close() {
	p.listener.Close()
	p.mu.Lock()
	if p.now != nil {
		p.now.shut()
	}
	p.mu.Unlock()
	p.served.Wait()
}

// Hold sets for how long each answer to GET_VRING_BASE is held back, and what is called at the
// beginning of that time; nil is nothing.
func (p *Proxy) Hold(d time.Duration, stopped func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hold, p.stopped = d, stopped
}

// Rings has fn be told of the start of each ring, before the back-end is, and that the last one has
// stopped, before the front-end is; where the front-end has gone, they have stopped when the
// back-end has closed its side. nil is nothing. fn must not call the Proxy.
func (p *Proxy) Rings(fn func(run bool)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rings = fn
}

// running tells who wants to know.
func (p *Proxy) running(run bool) {
	p.mu.Lock()
	fn := p.rings
	p.mu.Unlock()
	if fn != nil {
		fn(run)
	}
}

// Report returns what was seen so far.
func (p *Proxy) Report() Report {
	p.mu.Lock()
	r, s := p.report, p.now
	r.Findings = append([]string(nil), r.Findings...)
	p.mu.Unlock()
	if s != nil {
		r.Completed += s.completed()
	}
	return r
}

// Freeze says that the machine is paused, its rings are stopped, and will be until thaw is called:
// thaw says how many bytes of guest memory have changed meanwhile, as a finding and as its result.
func (p *Proxy) Freeze() (thaw func() (int, error), err error) {
	p.mu.Lock()
	s := p.now
	p.mu.Unlock()
	if s == nil {
		return nil, errors.New("no front-end is connected")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, err := s.snapshot()
	if err != nil {
		return nil, err
	}
	return func() (int, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		pages, err := s.compare(before, "while the machine was paused")
		if err == nil {
			p.update(func(r *Report) { r.Frozen++ })
		}
		return pages, err
	}, nil
}

func (p *Proxy) update(f func(*Report)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f(&p.report)
}

// find records something that the back-end must not do.
func (p *Proxy) find(format string, args ...any) {
	p.update(func(r *Report) {
		if len(r.Findings) < maxFindings {
			r.Findings = append(r.Findings, fmt.Sprintf(format, args...))
		} else {
			r.Dropped++
		}
	})
}

func (p *Proxy) accept(l *net.UnixListener) {
	for {
		front, err := l.AcceptUnix()
		if err != nil {
			return
		}
		back, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.backend, Net: "unix"})
		if err != nil {
			front.Close() // QEMU tries again, where it was told to
			continue
		}
		s, err := newSession(p, front, back)
		if err != nil {
			front.Close()
			back.Close()
			p.find("the proxy cannot serve: %v", err)
			continue
		}
		p.mu.Lock()
		p.now = s
		p.report.Sessions++
		p.mu.Unlock()
		s.run()
		n := s.completed()
		p.mu.Lock()
		p.now = nil
		p.report.Completed += n
		p.mu.Unlock()
		s.release()
	}
}

// message is one message with the descriptors that came with it, which belong to the message.
type message struct {
	request vhostuser.Request
	flags   uint32
	payload []byte
	fds     []*sys.FD
}

func receive(c *net.UnixConn) (*message, error) {
	var header [headerSize]byte
	m := new(message)
	ok := false
	defer func() {
		if !ok {
			sys.CloseAll(m.fds)
		}
	}()
	read := func(p []byte) error {
		for len(p) > 0 {
			oob := make([]byte, sys.RightsSpace(maxFDs))
			n, oobn, _, _, err := c.ReadMsgUnix(p, oob)
			if err != nil {
				return err
			}
			if n == 0 {
				return io.EOF
			}
			fds, err := sys.ParseRights(oob[:oobn])
			if err != nil {
				return err
			}
			m.fds = append(m.fds, fds...)
			p = p[n:]
		}
		return nil
	}
	if err := read(header[:]); err != nil {
		return nil, err
	}
	m.request = vhostuser.Request(binary.NativeEndian.Uint32(header[:]))
	m.flags = binary.NativeEndian.Uint32(header[4:])
	size := binary.NativeEndian.Uint32(header[8:])
	if size > maxPayload {
		return nil, fmt.Errorf("%v has a payload of %d bytes", m.request, size)
	}
	m.payload = make([]byte, size)
	if err := read(m.payload); err != nil {
		return nil, err
	}
	ok = true
	return m, nil
}

// send sends m and closes its descriptors.
func (m *message) send(c *net.UnixConn) error {
	b := make([]byte, headerSize, headerSize+len(m.payload))
	binary.NativeEndian.PutUint32(b, uint32(m.request))
	binary.NativeEndian.PutUint32(b[4:], m.flags)
	binary.NativeEndian.PutUint32(b[8:], uint32(len(m.payload)))
	b = append(b, m.payload...)
	var nums []int
	for _, f := range m.fds {
		nums = append(nums, f.Int())
	}
	defer sys.CloseAll(m.fds)
	n, _, err := c.WriteMsgUnix(b, sys.Rights(nums...), nil)
	for err == nil && n < len(b) {
		b = b[n:]
		n, err = c.Write(b)
	}
	return err
}
