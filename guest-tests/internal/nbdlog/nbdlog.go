// Package nbdlog stands between an NBD client and its server, writes down what passes, and holds
// the client to the order of its writes.
//
// The log is like blktrace's: a line for each step of a request, with the time in seconds, the
// connection and the step: Q, the client has sent it; D, it goes to the server; A, the server has
// answered; C, the answer goes to the client.
//
// What the client sends is read at once, whatever becomes of it, so that the log tells when it was
// sent. The line can be stopped and slowed down, and cut: then the server sees the end of the
// connection, and the client learns of it when the server has closed its side, which it does when
// it has nothing more to do on it. TRIM and WRITE_ZEROES are written down, but not checked.
//
// Lock order: source.mu, then Proxy.mu.
package nbdlog

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxFindings bounds what is remembered of a client that does everything wrong.
const maxFindings = 20

// Proxy serves clients, each connection with one of its own to the server.
type Proxy struct {
	server   string
	listener *net.UnixListener
	begin    time.Time
	served   sync.WaitGroup

	mu      sync.Mutex
	changed sync.Cond // of anything below
	out     *bufio.Writer
	file    *os.File
	conns   []*conn
	last    int  // connection's number
	stopped bool // nothing passes, either way
	closed  bool
	slow    [2]time.Duration // bounds of what an answer takes longer
	quiet   bool
	checker checker
	report  Report
}

// Report is what a Proxy has seen so far.
type Report struct {
	Connections int // that came to transmission
	Reads       int
	Writes      int
	Flushes     int
	Others      int // commands
	Failed      int // answers with an error
	Lost        int // requests whose connection ended before the answer
	Late        int // answers to writes after Quiet
	Repeated    int // writes of what the server had already
	Quiets      int
	// Findings says what the client did that it must not.
	Findings []string
	// Dropped counts the findings beyond those.
	Dropped int
}

func (r Report) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "connections=%d reads=%d writes=%d flushes=%d others=%d failed=%d lost=%d late=%d repeated=%d quiets=%d findings=%d\n",
		r.Connections, r.Reads, r.Writes, r.Flushes, r.Others, r.Failed, r.Lost, r.Late, r.Repeated, r.Quiets, len(r.Findings)+r.Dropped)
	for _, f := range r.Findings {
		fmt.Fprintln(&b, f)
	}
	return b.String()
}

// request is one that the client has sent.
type request struct {
	header
	conn   int
	blocks []block // of a write
}

func (r *request) String() string {
	s := fmt.Sprintf("%s %d+%d #%d", commandName(r.cmd), r.off, r.length, r.cookie)
	if r.cmd == cmdWrite && r.flags&cmdFlagFUA != 0 {
		s += " fua"
	}
	if len(r.blocks) > 0 {
		s += fmt.Sprintf(" version %#x hash %016x", r.blocks[0].version, r.blocks[0].hash)
	}
	return s
}

// Listen makes a proxy at socket for the server that listens at server, now or later, and writes
// the log to a file.
func Listen(socket, server, log string) (*Proxy, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		f.Close()
		return nil, err
	}
	p := &Proxy{server: server, listener: l, begin: time.Now(), file: f, out: bufio.NewWriter(f), checker: newChecker()}
	p.changed.L = &p.mu
	p.served.Go(p.accept)
	return p, nil
}

// Close ends the proxy and the connections through it, waits for that, and completes the log.
func (p *Proxy) Close() error {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	for _, c := range p.conns {
		c.client.Close()
		c.server.Close()
	}
	p.changed.Broadcast()
	p.mu.Unlock()
	p.served.Wait()
	return errors.Join(p.out.Flush(), p.file.Close())
}

// Report returns what was seen so far, and brings the log's file up to it.
func (p *Proxy) Report() Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = p.out.Flush()
	r := p.report
	r.Findings = slices.Clone(r.Findings)
	return r
}

// Stop lets nothing more pass, on no connection, until Go.
func (p *Proxy) Stop() { p.set(func() { p.stopped = true }) }

// Hold keeps what the client sends on the connections that there are from the server, until Go.
// Answers pass, and so does everything on new connections.
func (p *Proxy) Hold() {
	p.set(func() {
		for _, c := range p.conns {
			c.up.held = true
		}
	})
}

// Go undoes Stop and Hold.
func (p *Proxy) Go() {
	p.set(func() {
		p.stopped = false
		for _, c := range p.conns {
			c.up.held = false
		}
	})
}

// Slow has each answer take longer by a random time between the two.
func (p *Proxy) Slow(from, to time.Duration) { p.set(func() { p.slow = [2]time.Duration{from, to} }) }

// Cut cuts the connections that there are. What is still on its way is lost.
func (p *Proxy) Cut() {
	p.set(func() {
		for _, c := range p.conns {
			c.cut = true
			c.up.items, c.down.items = nil, nil
			c.up.ended = true
			p.noteLocked(c, "cut")
		}
	})
}

func (p *Proxy) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	p.changed.Broadcast()
}

// Quiet says that the client must send no request from now on, until Wake.
func (p *Proxy) Quiet() { p.mark(true) }

// Wake undoes Quiet.
func (p *Proxy) Wake() { p.mark(false) }

func (p *Proxy) mark(quiet bool) {
	p.mu.Lock()
	conns := slices.Clone(p.conns)
	p.mu.Unlock()
	var held []*source
	for _, c := range conns {
		c.from.mu.Lock()
		held = append(held, c.from)
	}
	defer func() {
		for _, s := range held {
			s.mu.Unlock()
		}
	}()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quiet == quiet {
		return
	}
	p.quiet = quiet
	if quiet {
		p.report.Quiets++
	}
	// What the client has sent by now may not have been read.
	for _, c := range conns {
		c.marks = append(c.marks, c.from.sentLocked())
	}
	for _, c := range p.conns {
		if !slices.Contains(conns, c) {
			c.marks = append(c.marks, 0)
		}
	}
	fmt.Fprintf(p.out, "%12.6f quiet=%v\n", time.Since(p.begin).Seconds(), quiet)
}

// source is what a client sends. It knows how much that is.
type source struct {
	raw syscall.RawConn

	mu  sync.Mutex
	got int64 // bytes read
}

func newSource(c *net.UnixConn) (*source, error) {
	raw, err := c.SyscallConn()
	return &source{raw: raw}, err
}

func (s *source) Read(p []byte) (n int, err error) {
	failed := s.raw.Read(func(fd uintptr) bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		n, err = syscall.Read(int(fd), p)
		if n > 0 {
			s.got += int64(n)
		}
		return err != syscall.EAGAIN && err != syscall.EINTR
	})
	switch {
	case failed != nil:
		return 0, failed
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// sentLocked returns how many bytes the client has sent, read or not.
func (s *source) sentLocked() int64 {
	n := s.got
	_ = s.raw.Control(func(fd uintptr) {
		waiting, _, err := syscall.Recvfrom(int(fd), make([]byte, 1<<20), syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		if err == nil {
			n += int64(waiting)
		}
	})
	return n
}

// conn is one connection of a client. Fields without a comment on who uses them are under Proxy.mu.
type conn struct {
	p              *Proxy
	number         int           // does not change
	client, server *net.UnixConn // do not change
	from           *source       // of the client; does not change
	up, down       line

	flight map[uint64]*request // not answered, by cookie
	cut    bool
	// marks are places in what the client sends: from the first to the second it must send no
	// request, from the third to the fourth, and so on.
	marks []int64
}

// line is one direction of a connection: what was read and is to be written.
type line struct {
	step  string // in the log, when something was written
	items []item
	held  bool
	ended bool // no more items come
}

type item struct {
	due time.Time
	raw []byte
	of  *request // whose step this is; nil: none's
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.AcceptUnix()
		if err != nil {
			return
		}
		p.served.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client *net.UnixConn) {
	defer client.Close()
	p.mu.Lock()
	for p.stopped && !p.closed {
		p.changed.Wait()
	}
	closed := p.closed
	p.mu.Unlock()
	if closed {
		return
	}
	server, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: p.server, Net: "unix"})
	if err != nil {
		return // the client tries again, or does not
	}
	defer server.Close()
	from, err := newSource(client)
	if err != nil {
		return
	}
	c := &conn{p: p, client: client, server: server, from: from, flight: map[uint64]*request{}, up: line{step: "D"}, down: line{step: "C"}}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	if p.quiet {
		c.marks = []int64{0}
	}
	p.last++
	c.number = p.last
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	defer p.set(func() {
		p.conns = slices.DeleteFunc(p.conns, func(x *conn) bool { return x == c })
		for _, r := range c.flight {
			p.checker.end(r)
			p.report.Lost++
		}
		p.noteLocked(c, "ends, with %d requests that were not answered", len(c.flight))
	})

	requests, answers := bufio.NewReaderSize(from, 256<<10), bufio.NewReaderSize(server, 256<<10)
	extended, err := shake(requests, answers, client, server)
	if err != nil {
		return
	}
	p.set(func() {
		p.report.Connections++
		p.noteLocked(c, "begins")
	})
	c.relay(requests, answers, extended)
}

// relay hands on requests and answers until the server has closed its side.
func (c *conn) relay(requests, answers *bufio.Reader, extended bool) {
	var all sync.WaitGroup
	all.Go(func() { c.requests(requests, extended) })
	all.Go(func() { c.pass(&c.up, c.server) })
	all.Go(func() { c.pass(&c.down, c.client) })
	c.answers(answers)
	// Whatever the client sends now goes nowhere. Its own side ends when all answers have gone out.
	c.server.Close()
	c.p.set(func() { c.up.items, c.up.ended = nil, true; c.down.ended = true })
	all.Wait()
}

// requests reads what the client sends.
func (c *conn) requests(r *bufio.Reader, extended bool) {
	p := c.p
	for {
		c.from.mu.Lock()
		start := c.from.got - int64(r.Buffered())
		c.from.mu.Unlock()
		h, raw, err := readRequest(r, extended)
		p.mu.Lock()
		switch {
		case c.cut:
		case err != nil && len(raw) > 0:
			// It may end within a request, by the other side or, when the server has gone, by this
			// one.
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, net.ErrClosed) {
				p.findLocked("connection %d: %v", c.number, err)
			}
			c.up.items = append(c.up.items, item{raw: raw})
		case err == nil:
			req := &request{header: h, conn: c.number}
			c.sentLocked(req, start, raw)
			c.up.items = append(c.up.items, item{raw: raw, of: req})
		}
		if err != nil {
			c.up.ended = true
			p.noteLocked(c, "the client sends no more, and is owed %d answers", len(c.flight))
		}
		p.changed.Broadcast()
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// sentLocked takes note of a request that begins at a place of what the client has sent.
func (c *conn) sentLocked(r *request, start int64, raw []byte) {
	p := c.p
	if r.cmd == cmdWrite {
		r.blocks = blocks(raw[int64(len(raw))-r.length:], r.off)
	}
	p.noteLocked(c, "Q %v", r)
	if r.cmd == cmdDisc {
		return
	}
	for i := 0; i < len(c.marks); i += 2 {
		if start >= c.marks[i] && (i+1 == len(c.marks) || start < c.marks[i+1]) {
			p.findLocked("connection %d: %v was sent when all rings had stopped", c.number, r)
		}
	}
	if c.flight[r.cookie] != nil {
		p.findLocked("connection %d: %v has the cookie of a request that is not answered", c.number, r)
	}
	c.flight[r.cookie] = r
	switch r.cmd {
	case cmdRead:
		p.report.Reads++
	case cmdWrite:
		p.report.Writes++
		repeated, wrong := p.checker.begin(r)
		if repeated > 0 {
			p.report.Repeated++
		}
		if wrong != "" {
			p.findLocked("%s", wrong)
		}
	case cmdFlush:
		p.report.Flushes++
	default:
		p.report.Others++
	}
}

// answers reads what the server sends, until its end.
func (c *conn) answers(r *bufio.Reader) {
	p := c.p
	length := func(cookie uint64) int64 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if req := c.flight[cookie]; req != nil && req.cmd == cmdRead {
			return req.length
		}
		return 0
	}
	for {
		a, raw, err := readAnswer(r, length)
		if err != nil {
			return
		}
		p.mu.Lock()
		req := c.flight[a.cookie]
		i := item{raw: raw}
		if req != nil && a.errno != 0 {
			p.report.Failed++
			p.noteLocked(c, "A %v error %d", req, a.errno)
		}
		if req != nil && a.done {
			p.noteLocked(c, "A %v", req)
			i.of = req
		}
		if p.slow[1] > 0 {
			i.due = time.Now().Add(p.slow[0] + rand.N(p.slow[1]-p.slow[0]+1))
		}
		if !c.cut {
			c.down.items = append(c.down.items, i)
		}
		p.changed.Broadcast()
		p.mu.Unlock()
	}
}

// answeredLocked takes note of a request that the client will not wait for any more.
func (c *conn) answeredLocked(r *request) {
	delete(c.flight, r.cookie)
	c.p.checker.end(r)
	if c.p.quiet && r.cmd == cmdWrite {
		c.p.report.Late++
	}
}

// pass writes what a direction has, and ends that side of the connection when no more comes.
func (c *conn) pass(l *line, to *net.UnixConn) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	broken := false
	for {
		for !p.closed && (p.stopped && !c.cut || l.held && !c.cut || len(l.items) == 0 && !l.ended) {
			p.changed.Wait()
		}
		if p.closed || len(l.items) == 0 {
			break
		}
		i := l.items[0]
		l.items = l.items[1:]
		p.mu.Unlock()
		time.Sleep(time.Until(i.due))
		p.mu.Lock()
		if i.of != nil && !broken {
			p.noteLocked(c, "%s %v", l.step, i.of)
		}
		if i.of != nil && l == &c.down {
			c.answeredLocked(i.of)
		}
		if !broken {
			p.mu.Unlock()
			_, err := to.Write(i.raw)
			p.mu.Lock()
			broken = err != nil
		}
	}
	p.mu.Unlock()
	if l == &c.down {
		to.Close() // the client may be sending still
	} else {
		to.CloseWrite()
	}
	p.mu.Lock()
}

func (p *Proxy) noteLocked(c *conn, format string, args ...any) {
	fmt.Fprintf(p.out, "%12.6f %d %s\n", time.Since(p.begin).Seconds(), c.number, fmt.Sprintf(format, args...))
}

func (p *Proxy) findLocked(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintf(p.out, "%12.6f finding: %s\n", time.Since(p.begin).Seconds(), text)
	if len(p.report.Findings) < maxFindings {
		p.report.Findings = append(p.report.Findings, text)
	} else {
		p.report.Dropped++
	}
}
