package vhostuser_test

import (
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// A fuzzPipe is a connection within one goroutine. The back-end is a coroutine, which runs while
// the front-end receives, until it has handled all that was sent and receives, too.
type fuzzPipe struct {
	sent    []fuzzMessage // by the front-end, not received yet
	answers []byte        // not received yet
	resume  func() (error, bool)
	wait    func(error) bool // of the back-end, for more; false where it is to end
	hungUp  bool             // by the back-end
	over    atomic.Bool      // the back-end has set a deadline, which is past
}

type fuzzMessage struct {
	b      []byte
	rights []byte
}

// newFuzzPipe connects a front-end to b. end hangs up, and returns what Serve does.
func newFuzzPipe(b *vhostuser.Backend) (front *vhostusertest.Frontend, end func() error) {
	p := new(fuzzPipe)
	var stop func()
	p.resume, stop = iter.Pull(func(yield func(error) bool) {
		p.wait = yield
		yield(b.ServeSocket(context.Background(), fuzzBack{p}))
	})
	return vhostusertest.New(fuzzFront{p}), func() error {
		p.wait = func(error) bool { return false }
		err, _ := p.resume()
		stop()
		return err
	}
}

// run runs the back-end until it wants to receive more than was sent.
func (p *fuzzPipe) run() {
	if !p.hungUp {
		_, _ = p.resume()
	}
}

// fuzzFront is the front-end's end.
type fuzzFront struct{ *fuzzPipe }

// WriteMsgUnix implements vhostusertest.Socket. Whoever receives the descriptors gets copies, as
// from a socket.
func (p fuzzFront) WriteMsgUnix(b, oob []byte, _ *net.UnixAddr) (n, oobn int, err error) {
	if p.hungUp {
		return 0, 0, syscall.EPIPE
	}
	m := fuzzMessage{b: append([]byte(nil), b...)}
	if len(oob) > 0 {
		all, err := syscall.ParseSocketControlMessage(oob)
		if err != nil {
			return 0, 0, err
		}
		fds, err := syscall.ParseUnixRights(&all[0])
		if err != nil {
			return 0, 0, err
		}
		for i, fd := range fds {
			d, err := sys.NewFD(fd).Dup()
			if err != nil {
				return 0, 0, err
			}
			fds[i] = d.Int()
		}
		m.rights = sys.Rights(fds...)
	}
	p.sent = append(p.sent, m)
	return len(b), len(oob), nil
}

func (p fuzzFront) Write(b []byte) (int, error) {
	n, _, err := p.WriteMsgUnix(b, nil, nil)
	return n, err
}

func (p fuzzFront) Read(b []byte) (int, error) {
	if len(p.answers) == 0 {
		p.run()
	}
	if len(p.answers) == 0 {
		return 0, errors.New("the back-end waits for more, and does not answer")
	}
	n := copy(b, p.answers)
	p.answers = p.answers[n:]
	return n, nil
}

func (p fuzzFront) ReadMsgUnix(b, _ []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	n, err = p.Read(b)
	return n, 0, 0, nil, err
}

func (p fuzzFront) SetReadDeadline(time.Time) error  { return nil }
func (p fuzzFront) SetWriteDeadline(time.Time) error { return nil }
func (p fuzzFront) Close() error                     { return nil }

// fuzzBack is the back-end's end.
type fuzzBack struct{ *fuzzPipe }

func (p fuzzBack) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	for len(p.sent) == 0 && !p.over.Load() {
		if !p.wait(nil) {
			return 0, 0, 0, nil, io.EOF
		}
	}
	if p.over.Load() {
		return 0, 0, 0, nil, os.ErrDeadlineExceeded
	}
	m := &p.sent[0]
	n, oobn = copy(b, m.b), copy(oob, m.rights)
	if m.b, m.rights = m.b[n:], nil; len(m.b) == 0 {
		p.sent = p.sent[1:]
	}
	return n, oobn, 0, nil, nil
}

func (p fuzzBack) Write(b []byte) (int, error) {
	p.answers = append(p.answers, b...)
	return len(b), nil
}

func (p fuzzBack) WriteMsgUnix(b, oob []byte, _ *net.UnixAddr) (n, oobn int, err error) {
	n, err = p.Write(b)
	return n, len(oob), err
}

func (p fuzzBack) SetDeadline(t time.Time) error {
	p.over.Store(!t.IsZero())
	return nil
}

func (p fuzzBack) SetReadDeadline(t time.Time) error     { return p.SetDeadline(t) }
func (p fuzzBack) SyscallConn() (syscall.RawConn, error) { return nil, os.ErrInvalid }
func (p fuzzBack) Close() error                          { p.hungUp = true; return nil }
