package nbd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

const (
	// bufferSize is how many bytes a connection gathers for one system call, each way.
	bufferSize = 128 << 10
	// directSize is from how many bytes on a payload goes straight between the socket and the
	// transfer's memory.
	directSize = 16 << 10
	// farewell is how long a server that has nothing left to change gets to answer reads, and then
	// to take the good-bye.
	farewell = 1 * time.Second
)

var errHungUp = fmt.Errorf("the server has hung up: %w", syscall.ECONNRESET)

// past is a deadline that is over.
var past = time.Unix(1, 0)

// conn is one connection. Two goroutines serve it, a sender and a receiver. Fields without a
// comment on who uses them are under client.mu.
type conn struct {
	cl    *client
	nc    net.Conn
	raw   net.Conn
	exp   export
	plain bool
	// stream is nc where that is plain, and not a test's.
	stream *sys.Stream

	generation   uint64 // of the server
	unidentified bool   // see link

	more   sync.Cond // for the sender: something has changed
	queue  requests
	flight map[uint64]*request // by cookie
	last   uint64              // cookie
	// nothing more is to be sent; the connection goes when nothing is owed to it
	quit bool
	dead bool // the receiver has ended
	// the connection is over for the client, but is to stay: see leaveLocked
	spare  bool
	rogue  bool // because the server broke the protocol
	useful bool // the server has answered something

	// Of the sender, who alone changes them; written under client.mu, too.
	storage []byte      // of out
	out     []byte      // bytes on their way to the server, gathered
	staged  int64       // where in the stream out ends
	written int64       // where in the stream it begins: that many bytes have been sent
	vec     net.Buffers // of a direct write
	iov     [][]byte    // its storage

	in input // the receiver's

	// Where the connection is looked after by the context of those who use it, that does what
	// sender and receiver do otherwise.
	next    devsw.Watcher // it is to be that one's
	watch   func()        // wakes the context, whose it is; nil: it is nobody's
	poked   bool          // that has been done
	back    chan error    // the context gives it back, with the reason where the connection is over
	reason  error         // the context's
	sending bool          // somebody is in the middle of sending
	handed  bool          // the sender does it nevertheless, since the socket was full
	nowait  bool          // who sends does not wait
	full    bool          // so it has stopped
	current *request      // in the middle of this payload
}

// newConn takes a link over, and two buffers of bufferSize bytes: for what is sent, which is empty,
// and for what is received.
func newConn(cl *client, l *link, out, in []byte) *conn {
	c := &conn{cl: cl, nc: l.nc, raw: l.raw, exp: l.exp, plain: l.plain, generation: l.generation,
		unidentified: l.unidentified, flight: make(map[uint64]*request)}
	c.more.L = &cl.mu
	c.storage = out
	c.out = c.storage
	c.in.buf = in
	c.in.ahead = bufferSize
	if c.plain {
		s, ok := l.raw.(*sys.Stream)
		if !ok {
			s = sys.NewStream(l.raw)
		}
		if s != nil {
			c.nc, c.raw, c.stream = s, s, s
		}
	}
	c.back = make(chan error, 1)
	return c
}

// serve does what there is to do on the connection until it is over, and tells whether the server
// has answered anything, and why it is over.
func (c *conn) serve() (useful bool, err error) {
	sender := make(chan struct{})
	go func() {
		defer close(sender)
		c.send()
	}()
	err = c.receive()
	useful = c.over(err)
	<-sender
	if errors.Is(err, io.EOF) {
		err = errHungUp
	}
	return useful, err
}

// over ends the connection, from which nothing more is received for the reason err, and with it the
// sender. It tells whether the server has answered anything.
func (c *conn) over(err error) (useful bool) {
	c.cl.mu.Lock()
	c.dead, c.quit = true, true
	c.rogue = errors.Is(err, syscall.EPROTO)
	useful = c.useful
	c.more.Signal()
	c.cl.mu.Unlock()
	if err != errKept {
		c.raw.Close() // it wakes the sender, too
	}
	return useful
}

// giveUpLocked is the connection's part in client.giveUp.
func (c *conn) giveUpLocked() {
	c.quit = true
	for _, r := range c.flight {
		if !r.finished {
			c.interruptLocked(r)
		}
	}
	// The sender may be in the middle of anything.
	_ = c.nc.SetWriteDeadline(past)
	c.more.Signal()
	c.pokeLocked()
}

// interruptLocked ends a request in flight with ECANCELED, now or as soon as nobody touches its
// memory, which it sees to.
func (c *conn) interruptLocked(r *request) {
	if !r.busy {
		c.disownLocked(r)
		return
	}
	r.gone = true
	switch {
	case !c.plain:
		// The memory is being copied, which takes no time; and a TLS connection does not survive a
		// deadline.
	case r.cmd == cmdWrite:
		_ = c.nc.SetWriteDeadline(past)
	default:
		_ = c.nc.SetReadDeadline(past)
	}
}

// disownLocked ends a request in flight with ECANCELED, whose memory nobody touches. What of its
// payload has not been sent, and has to be so that the connection can go on, is copied.
func (c *conn) disownLocked(r *request) {
	if r.cmd == cmdWrite && r.sent < r.n && !c.quit {
		r.rest = make([]byte, r.n-r.sent)
		if r.buf.MoveAt(r.rest, r.pos+r.sent) != 0 {
			c.quit = true
			c.more.Signal()
		}
	}
	c.cl.abandonLocked(r, devsw.ECANCELED)
}

// owedLocked is the number of requests that the server has, whole, and has not answered, and that
// change the disk, or are flushes: of their errors nobody else would hear. With reads these count,
// too.
func (c *conn) owedLocked(reads bool) (n int) {
	for _, r := range c.flight {
		if (reads || r.cmd != cmdRead) && !r.retry && r.end <= c.written {
			n++
		}
	}
	return n
}

// cutLocked tells whether the server has only a part of a request that would change the disk.
func (c *conn) cutLocked() bool {
	for _, r := range c.flight {
		if r.modifies() && r.start < c.written && c.written < r.end {
			return true
		}
	}
	return false
}

// send is the sender.
func (c *conn) send() {
	cl := c.cl
	cl.mu.Lock()
	for !c.quit || c.sending {
		switch {
		case c.sending || c.watch != nil && !c.handed:
			c.more.Wait()
		case c.sendLocked(false):
		case c.handed:
			c.handed = false
		default:
			c.more.Wait()
		}
	}
	c.leaveLocked()
	cl.unlock(nil)
}

// sendLocked sends what there is, and tells whether there was anything. Nobody else may be at it.
func (c *conn) sendLocked(nowait bool) (worked bool) {
	c.sending, c.nowait, c.full = true, nowait, false
	for !c.quit && !c.full {
		switch {
		case c.current != nil:
			c.payloadLocked()
		case len(c.queue) > 0 && cap(c.out)-len(c.out) < extendedRequestSize:
			c.flushLocked() // before a request is taken, which would be nowhere meanwhile
		case len(c.queue) > 0:
			r := c.queue[0]
			// Not queue[1:], which would give its room away bit by bit.
			c.queue = slices.Delete(c.queue, 0, 1)
			c.issueLocked(r)
		case len(c.out) > 0:
			c.flushLocked()
		default:
			c.sending, c.nowait = false, false
			return worked
		}
		worked = true
		if c.cl.endings != nil {
			c.cl.unlock(c.sender())
			c.cl.mu.Lock()
		}
	}
	c.sending, c.nowait = false, false
	if c.quit {
		c.more.Signal()
	}
	return worked
}

// leaveLocked ends the connection from this side. As long as the server owes answers to what may
// change the disk it waits; a server that has been sent a part of a request learns that there will
// be no more, and has to hang up by itself: then that is all it has done about it.
func (c *conn) leaveLocked() {
	for !c.dead && c.owedLocked(false) > 0 {
		c.more.Wait()
	}
	if !c.dead && c.owedLocked(true) > 0 {
		// Not all servers bear it that somebody leaves without his answers (nbdkit 1.32); but for
		// reads one does not wait long.
		late := false
		patience := time.AfterFunc(farewell, func() {
			c.cl.mu.Lock()
			defer c.cl.mu.Unlock()
			late = true
			c.more.Signal()
		})
		for !c.dead && !late && c.owedLocked(true) > 0 {
			c.more.Wait()
		}
		patience.Stop()
	}
	if c.dead {
		return
	}
	if c.cl.keep != nil && c.cl.givenUp && c.stream != nil && len(c.flight) == 0 && len(c.out) == 0 {
		// The receiver ends with errKept, unless something comes that nobody has asked for.
		c.spare = true
		_ = c.nc.SetReadDeadline(past)
		for !c.dead {
			c.more.Wait()
		}
		return
	}
	cut := c.cutLocked()
	goodbye := c.boundaryLocked()
	c.cl.unlock(c.sender())
	if half, ok := c.raw.(interface{ CloseWrite() error }); cut && ok {
		if half.CloseWrite() != nil {
			c.hangUp()
		}
	} else {
		if goodbye {
			c.last++
			_ = c.nc.SetWriteDeadline(time.Now().Add(farewell))
			_, _ = c.nc.Write(c.exp.header(nil, cmdDisc, 0, c.last, 0, 0))
		}
		c.hangUp()
	}
	c.cl.mu.Lock()
}

// errKept is why a connection is over that stays for the next open.
var errKept = errors.New("kept")

// handOn keeps the connection for the next open, or says good-bye.
func (c *conn) handOn() {
	_ = c.nc.SetDeadline(time.Time{})
	l := &link{nc: c.nc, raw: c.raw, exp: c.exp, plain: c.plain, generation: c.generation,
		unidentified: c.unidentified}
	if !c.cl.keep(l) {
		l.leave()
	}
}

// hangUp closes the connection, of which the receiver learns.
func (c *conn) hangUp() {
	c.raw.Close()
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	c.pokeLocked()
}

// boundaryLocked tells whether what was sent ends with the end of a request.
func (c *conn) boundaryLocked() bool {
	for _, r := range c.flight {
		if r.start < c.written && c.written < r.end {
			return false
		}
	}
	return true
}

// header adds a request's header to p.
func (e *export) header(p []byte, cmd, flags uint16, cookie uint64, off, n int64) []byte {
	be := binary.BigEndian
	if e.extended {
		if cmd == cmdWrite {
			flags |= cmdFlagPayloadLen
		}
		p = be.AppendUint32(p, extendedRequestMagic)
	} else {
		p = be.AppendUint32(p, requestMagic)
	}
	p = be.AppendUint16(p, flags)
	p = be.AppendUint16(p, cmd)
	p = be.AppendUint64(p, cookie)
	p = be.AppendUint64(p, uint64(off))
	if e.extended {
		return be.AppendUint64(p, uint64(n))
	}
	return be.AppendUint32(p, uint32(n))
}

// issueLocked puts a request in flight, and its header and payload on their way. There is room for
// the header.
func (c *conn) issueLocked(r *request) {
	off := r.off + r.pos
	r.n = r.total - r.pos
	if r.cmd == cmdRead || r.cmd == cmdWrite {
		r.n = min(r.n, c.exp.maxBlock)
	}
	if r.cmd == cmdFlush {
		off, r.n = 0, 0
		r.covers = c.cl.flushed.acked
	}
	c.last++
	r.cookie = c.last
	c.flight[r.cookie] = r
	r.start = c.staged
	before := len(c.out)
	c.out = c.exp.header(c.out, r.cmd, r.flags, r.cookie, off, r.n)
	c.staged += int64(len(c.out) - before)
	r.end = c.staged
	if r.cmd == cmdWrite {
		r.end += r.n
		c.current = r
		c.payloadLocked()
	}
}

// payloadLocked sends the payload of the current write, straight from the transfer's memory or
// gathered with other requests.
func (c *conn) payloadLocked() {
	r := c.current
	for r.sent < r.n && !c.quit && !c.full {
		switch left := r.n - r.sent; {
		case r.rest != nil:
			p := r.rest[int64(len(r.rest))-left:]
			k := min(len(p), cap(c.out)-len(c.out))
			c.stageLocked(r, append(c.out, p[:k]...))
		case r.finished:
			c.current = nil
			return // given up, and the connection with it
		case c.plain && left >= directSize:
			if !c.directLocked(r) {
				c.current = nil
				return
			}
		default:
			at := len(c.out)
			p := c.out[at : at+int(min(left, int64(cap(c.out)-at)))]
			r.busy = true
			c.cl.mu.Unlock()
			e := r.buf.MoveAt(p, r.pos+r.sent)
			c.cl.mu.Lock()
			r.busy = false
			if e != 0 {
				c.current = nil
				c.faultLocked(r)
				return
			}
			c.stageLocked(r, c.out[:at+len(p)])
		}
		if r.gone && !r.finished {
			c.disownLocked(r)
		}
		if r.sent < r.n && len(c.out) == cap(c.out) {
			c.flushLocked()
		}
	}
	if r.sent < r.n && !c.quit {
		return // when there is room
	}
	c.current = nil
	if r.answered && c.flight[r.cookie] == r {
		// The server was quicker than this goroutine.
		c.completeLocked(r)
	}
}

// stageLocked says that out has become longer by a part of a payload.
func (c *conn) stageLocked(r *request, out []byte) {
	k := int64(len(out) - len(c.out))
	c.out = out
	r.sent += k
	c.staged += k
}

// flushLocked sends what has been gathered. mu is let go meanwhile.
func (c *conn) flushLocked() {
	c.cl.unlock(c.sender())
	var n int
	var err error
	if c.nowait {
		c.iov = append(c.iov[:0], c.out)
		n, err = c.stream.Writev(c.iov, true)
	} else {
		n, err = c.nc.Write(c.out)
	}
	c.cl.mu.Lock()
	c.full = c.nowait && n < len(c.out)
	c.wroteLocked(n)
	if err != nil {
		c.failedLocked(err)
	}
}

// wroteLocked says that so many bytes of out have been sent.
func (c *conn) wroteLocked(n int) {
	c.written += int64(n)
	c.out = append(c.storage, c.out[n:]...)
}

// failedLocked looks at an error from writing. A deadline that is over only means that something
// has changed.
func (c *conn) failedLocked(err error) {
	if err == syscall.EAGAIN {
		return // see full
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		if !c.quit {
			_ = c.nc.SetWriteDeadline(time.Time{})
		}
		return
	}
	// The peer is not there any more; so the receiver learns of it.
	c.quit = true
	c.raw.Close()
	c.pokeLocked()
}

// directLocked sends what has been gathered and the rest of a payload from where it is, or a part
// of that. It is false where the memory is gone, and r with it.
func (c *conn) directLocked(r *request) bool {
	iov, _ := pieces(append(c.iov[:0], c.out), r.buf, r.pos+r.sent, r.n-r.sent)
	c.iov, c.vec = iov, iov
	r.busy = true
	c.cl.unlock(c.sender())
	var written int64
	var err error
	if c.stream != nil {
		var n int
		n, err = c.stream.Writev(iov, c.nowait)
		written = int64(n)
	} else {
		written, err = c.vec.WriteTo(c.nc)
	}
	c.cl.mu.Lock()
	c.full = err == syscall.EAGAIN
	r.busy = false
	clear(c.iov)

	gathered := min(int(written), len(c.out))
	c.wroteLocked(gathered)
	k := written - int64(gathered)
	r.sent += k
	c.staged += k
	c.written += k
	switch {
	case errors.Is(err, syscall.EFAULT):
		c.faultLocked(r)
		return false
	case err != nil:
		c.failedLocked(err)
	}
	return true
}

// faultLocked ends a write whose memory cannot be read. Where a part of it has been sent, the
// connection ends with it: the server must not be given something else instead.
func (c *conn) faultLocked(r *request) {
	if r.start >= c.written {
		// It is the last that was gathered.
		c.out = c.out[:r.start-c.written]
		c.staged = r.start
		delete(c.flight, r.cookie)
		// It is not used again: the receiver may have it in its hands, of a server that answers
		// what it has not been asked.
		c.cl.finishLocked(r, devsw.EFAULT)
		return
	}
	c.quit = true
	c.cl.abandonLocked(r, devsw.EFAULT)
}

// completeLocked takes a request out of flight, of which the server has said its last word and
// whose memory nobody touches.
func (c *conn) completeLocked(r *request) {
	cl := c.cl
	if r.retry && !r.finished && !cl.givenUp && cl.delay > 0 {
		return // it stays in flight until the connection is lost
	}
	delete(c.flight, r.cookie)
	if c.quit {
		c.more.Signal()
	}
	switch {
	case r.cmd != cmdFlush:
	case r.err == 0:
		cl.flushed.flushed(c.generation, r.covers)
	case !r.retry && cl.flushed.failed == 0:
		cl.flushed.failed = r.err
	}
	if r.finished {
		orphan, off, n := r.orphan(), r.off+r.pos, r.n
		cl.dropLocked(r)
		if orphan {
			cl.resumeLocked(off, n)
		}
		return
	}
	e := r.err
	if r.gone {
		e = devsw.ECANCELED
	}
	pos, n, flush := r.pos, r.n, r.thenFlush && r.cmd == cmdWrite
	switch {
	case e != 0:
	case r.cmd == cmdFlush && !r.thenFlush:
		e = cl.flushed.failed
	case (r.cmd == cmdWrite || r.cmd == cmdWriteZeroes) && !flush && r.flags&cmdFlagFUA == 0:
		if cl.flushed.answered(c.generation) {
			cl.lostLocked()
		}
	}
	if e == 0 && r.cmd == cmdWrite && cl.proof == proofLacks {
		cl.proveLocked(c, r.off+pos, n)
	}
	if e == 0 && cl.flushed.lost > 0 {
		e = devsw.ESTALE
	}
	switch {
	case e != 0:
		cl.finishLocked(r, e)
		cl.releaseLocked(r)
	case pos+n < r.total && r.cmd != cmdFlush:
		r.unsent()
		r.pos = pos + n
		cl.enqueueLocked(r)
	case flush:
		r.unsent()
		r.cmd = cmdFlush
		cl.enqueueLocked(r)
	default:
		cl.finishLocked(r, 0)
		cl.releaseLocked(r)
	}
}
