package control

import (
	"bufio"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// upgrade is what the connection of an attached client becomes: see the package comment.
const upgrade = "vdev-terminal"

const (
	// Unread is how many bytes that a client has sent may wait for the guest: as many as a terminal
	// keeps of what is typed (N_TTY_BUF_SIZE of Linux).
	Unread = 4096
	// maxShown is how many bytes one frame of output has.
	maxShown = 16 << 10
	// maxWhy is how many bytes the reason has for which vdev ends a connection.
	maxWhy = 1024
	// byePatience is how long a client may take to be told why. It waits only where its socket is
	// full.
	byePatience = 3 * time.Second
)

// The types of a frame, which is a byte of type, two with the length of what follows, the higher
// one first, and that.
const (
	frameData  = 'd' // bytes: typed, or to be shown
	frameSize  = 's' // rows and columns of the client's window, two bytes each
	frameTaken = 't' // two bytes: so many of the bytes that were typed the guest has taken
	frameEnd   = 'e' // why vdev ends the connection
)

const frameHead = 3

// putHead writes a frame's head.
func putHead(b []byte, typ byte, n int) {
	b[0] = typ
	binary.BigEndian.PutUint16(b[1:], uint16(n))
}

// readHead reads a frame's head.
func readHead(r io.Reader) (typ byte, n int, err error) {
	var b [frameHead]byte
	if _, err = io.ReadFull(r, b[:]); err != nil {
		return 0, 0, err
	}
	return b[0], int(binary.BigEndian.Uint16(b[1:])), nil
}

// Terminal is a client that has attached to a port. Its methods are called on any goroutine.
type Terminal struct {
	conn net.Conn
	in   io.Reader

	taken atomic.Int64  // bytes of the input, in all
	tell  chan struct{} // has one when the client is to be told of them

	writing sync.Mutex // held for a frame
	frame   []byte     // of data
	cut     bool       // a frame was written in part: nothing can follow

	mu     sync.Mutex
	closed bool
	why    string
}

func newTerminal(conn net.Conn, in io.Reader) *Terminal {
	return &Terminal{conn: conn, in: in, tell: make(chan struct{}, 1)}
}

// Write shows p to the client. It waits until the client's socket has it, for as long as that
// takes, or until Close. n is how many bytes it has.
func (t *Terminal) Write(p []byte) (n int, err error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	for n < len(p) && err == nil {
		piece := p[n:min(n+maxShown, len(p))]
		if t.frame == nil {
			t.frame = make([]byte, frameHead, frameHead+maxShown)
		}
		putHead(t.frame, frameData, len(piece))
		var m int
		m, err = t.send(append(t.frame, piece...))
		n += max(0, m-frameHead)
	}
	return n, err
}

// send writes a frame. writing is held.
func (t *Terminal) send(frame []byte) (n int, err error) {
	if t.cut {
		return 0, net.ErrClosed
	}
	n, err = t.conn.Write(frame)
	t.cut = n > 0 && n < len(frame)
	return n, err
}

// Taken says that n more bytes of the input were taken. It does not wait.
func (t *Terminal) Taken(n int) {
	t.taken.Add(int64(n))
	select {
	case t.tell <- struct{}{}:
	default:
	}
}

// Serve gives what the client types to input, and the size of its window to size, until the client
// has gone, or Close. There are never more than Unread bytes that input was given and Taken was not
// told of. Both must not wait. p is input's until it returns.
func (t *Terminal) Serve(input func(p []byte), size func(rows, cols uint16)) {
	quit := make(chan struct{})
	var told sync.WaitGroup
	told.Go(func() { t.tellTaken(quit) })
	t.receive(input, size)
	close(quit)
	t.Close("") // a client that takes nothing more must not hold up who tells it
	told.Wait()
}

// receive reads frames until there are no more, or one is none that a client may send.
func (t *Terminal) receive(input func([]byte), size func(rows, cols uint16)) {
	buf := make([]byte, Unread)
	for typed := int64(0); ; {
		typ, n, err := readHead(t.in)
		switch {
		case err != nil:
			return
		case typ == frameData && typed+int64(n)-t.taken.Load() <= Unread, typ == frameSize && n == 4:
		default:
			t.Close(fmt.Sprintf("a frame of type %q and length %d is none that a client may send now", typ, n))
			return
		}
		if _, err := io.ReadFull(t.in, buf[:n]); err != nil {
			return
		}
		if typ == frameData {
			typed += int64(n)
			input(buf[:n])
		} else {
			size(binary.BigEndian.Uint16(buf), binary.BigEndian.Uint16(buf[2:]))
		}
	}
}

// tellTaken tells the client what Taken is told, until quit is closed.
func (t *Terminal) tellTaken(quit <-chan struct{}) {
	for told := int64(0); ; {
		select {
		case <-t.tell:
		case <-quit:
			return
		}
		n := t.taken.Load() - told // Unread at most
		told += n
		frame := make([]byte, frameHead, frameHead+2)
		putHead(frame, frameTaken, 2)
		t.writing.Lock()
		_, err := t.send(binary.BigEndian.AppendUint16(frame, uint16(n)))
		t.writing.Unlock()
		if err != nil {
			return // and so has the client gone, or been closed
		}
	}
}

// Close ends Serve and Write. The client is told why, if it was not closed before. It does not
// wait.
func (t *Terminal) Close(why string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed, t.why = true, why
		// It cannot fail but on a connection that is closed.
		_ = t.conn.SetDeadline(time.Unix(1, 0))
	}
}

// bye tells the client why it was closed, and closes the connection.
func (t *Terminal) bye() {
	t.Close("")
	t.writing.Lock()
	defer t.writing.Unlock()
	why := t.why[:min(len(t.why), maxWhy)]
	_ = t.conn.SetDeadline(time.Now().Add(byePatience))
	frame := make([]byte, frameHead, frameHead+len(why))
	putHead(frame, frameEnd, len(why))
	// A client that has gone does not hear it.
	_, _ = t.send(append(frame, why...))
	_ = t.conn.Close()
}

// terminals are the clients that are attached.
type terminals struct {
	mu     sync.Mutex
	closed bool
	all    map[*Terminal]bool
	served sync.WaitGroup
}

// enter adds one, if none was told that vdev ends.
func (a *terminals) enter(t *Terminal) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return false
	}
	if a.all == nil {
		a.all = map[*Terminal]bool{}
	}
	a.all[t] = true
	a.served.Add(1)
	return true
}

func (a *terminals) leave(t *Terminal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.all, t)
	a.served.Done()
}

// close ends all, and waits for that.
func (a *terminals) close() {
	a.mu.Lock()
	a.closed = true
	for t := range a.all {
		t.Close("vdev ends")
	}
	a.mu.Unlock()
	a.served.Wait()
}

// attach makes of a request's connection a Terminal, and serves that.
func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	serve, err := s.attachable(r)
	if err == nil && r.Header.Get("Upgrade") != upgrade {
		err = Wrong("what is attached is to be upgraded to %s", upgrade)
	}
	if err != nil {
		fail(w, err)
		return
	}
	if err := s.stay(); err != nil {
		fail(w, err)
		return
	}
	defer s.leave()
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		fail(w, err)
		return
	}
	t := newTerminal(conn, buffered.Reader)
	if !s.terminals.enter(t) {
		conn.Close()
		return
	}
	defer s.terminals.leave(t)
	defer t.bye()
	_, err = fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", upgrade)
	if err == nil {
		serve(t)
	}
}

// attachable gives what serves the terminal that a request asks to attach.
func (s *Server) attachable(r *http.Request) (func(*Terminal), error) {
	watch, err := strconv.ParseBool(cmp.Or(r.FormValue("watch"), "false"))
	if err != nil {
		return nil, Wrong("watch=%s: must be true or false", r.FormValue("watch"))
	}
	t, err := s.target(r)
	if err != nil {
		return nil, err
	}
	m, err := part[Ported](t, "ports")
	if err != nil {
		return nil, err
	}
	return m.Attach(r.FormValue("port"), watch)
}

// Attachment is a client's side of a Terminal. Write, Resize and Close are called on any goroutine,
// and Read on one. Read alone tells of the end, which has a reason: what is written then is lost.
type Attachment struct {
	conn io.ReadWriteCloser
	in   *bufio.Reader
	left int    // bytes of a frame that are not read
	why  string // of the end

	writing sync.Mutex // held for a frame

	mu     sync.Mutex
	unread int // bytes that are sent and not taken
	taken  chan struct{}
	ended  bool
}

// errGone is why a Read fails when the connection has ended and nobody has said why.
var errGone = errors.New("vdev has gone")

func newAttachment(conn io.ReadWriteCloser) *Attachment {
	return &Attachment{conn: conn, in: bufio.NewReaderSize(conn, frameHead+maxShown), taken: make(chan struct{}, 1)}
}

// Read gives what is to be shown. At the end, which Why tells of, it gives io.EOF.
func (a *Attachment) Read(p []byte) (int, error) {
	for a.left == 0 {
		typ, n, err := readHead(a.in)
		if err != nil {
			return 0, a.end(err)
		}
		if typ == frameData {
			a.left = n
			continue
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(a.in, b); err != nil {
			return 0, a.end(err)
		}
		switch {
		case typ == frameTaken && n == 2:
			a.mu.Lock()
			a.unread -= int(binary.BigEndian.Uint16(b))
			a.wakeLocked()
			a.mu.Unlock()
		case typ == frameEnd:
			a.why = string(b)
			_ = a.end(nil)
			return 0, io.EOF
		default:
			return 0, a.end(fmt.Errorf("a frame of type %q and length %d is none that vdev sends", typ, n))
		}
	}
	n, err := a.in.Read(p[:min(len(p), a.left)])
	a.left -= n
	if err != nil {
		return n, a.end(err)
	}
	return n, nil
}

// end ends who waits in Write.
func (a *Attachment) end(err error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	a.wakeLocked()
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errGone
	}
	return err
}

func (a *Attachment) wakeLocked() {
	select {
	case a.taken <- struct{}{}:
	default:
	}
}

// Why tells why vdev has ended the connection, once Read has given io.EOF.
func (a *Attachment) Why() string { return a.why }

// Write types p. It waits while the guest takes nothing. One goroutine calls it at a time.
func (a *Attachment) Write(p []byte) (n int, err error) {
	for n < len(p) {
		room := a.room(len(p) - n)
		if room == 0 {
			break
		}
		a.send(frameData, p[n:n+room])
		n += room
	}
	return len(p), nil
}

// room waits until at least one byte can be sent, and gives how many of want may be; 0: the
// connection has ended.
func (a *Attachment) room(want int) int {
	for {
		a.mu.Lock()
		n, ended := min(want, Unread-a.unread), a.ended
		if !ended && n > 0 {
			a.unread += n
		}
		a.mu.Unlock()
		switch {
		case ended:
			return 0
		case n > 0:
			return n
		}
		<-a.taken
	}
}

// Resize tells vdev the size of the window in characters.
func (a *Attachment) Resize(rows, cols uint16) error {
	a.send(frameSize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, rows), cols))
	return nil
}

func (a *Attachment) send(typ byte, p []byte) {
	frame := make([]byte, frameHead, frameHead+len(p))
	putHead(frame, typ, len(p))
	a.writing.Lock()
	defer a.writing.Unlock()
	// Where it fails, the connection has ended.
	_, _ = a.conn.Write(append(frame, p...))
}

// Close ends the connection, and whoever waits for it.
func (a *Attachment) Close() error {
	err := a.conn.Close()
	_ = a.end(nil)
	return err
}
