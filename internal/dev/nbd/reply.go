package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// input is what has been read of a connection and not been looked at, and what is being done about
// it. It is the receiver's.
type input struct {
	buf   []byte
	r, w  int // buf[r:w]
	ahead int // how many bytes to read, where one does not know what comes

	pay  *request // whose payload comes next, or nil
	at   int64    // to which byte of the read it goes
	left int64    // bytes
	drop bool     // nowhere: it was given up, or its memory is gone
	last bool     // it ends the answer

	nowait bool     // errAgain where there is nothing to read
	iov    [][]byte // where readv reads to
}

// readv reads into iov, once, and lets go of it.
func (c *conn) readv() (n int, err error) {
	in := &c.in
	defer clear(in.iov)
	if c.stream == nil {
		return c.nc.Read(in.iov[0])
	}
	n, err = c.stream.Readv(in.iov, in.nowait)
	switch {
	case err == syscall.EAGAIN:
		return 0, errAgain
	case n == 0 && err == nil:
		return 0, io.EOF
	}
	return n, err
}

// tailSize is how many bytes are read with a large payload of what comes after it: the beginning of
// the next reply, but not much of a payload, which would have to be copied.
const tailSize = 1 << 10

// errAgain says that there is nothing to read now, to one who does not wait; errMove, that another
// context is to receive. What was being received goes on with the next call, as if nothing had
// been.
var (
	errAgain = errors.New("nothing to read")
	errMove  = errors.New("received elsewhere")
)

// receive is the receiver: it takes the server's replies until the connection is over, and gives
// the reason. EPROTO: the server has broken the protocol.
func (c *conn) receive() error {
	for {
		switch err := c.step(); err {
		case nil:
		case errMove:
			if err := c.stayAway(); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// step takes a reply, or a part of one.
func (c *conn) step() error {
	if c.in.pay != nil {
		return c.payload()
	}
	return c.reply()
}

// fill reads until there are n bytes to look at, and returns them. They stay until take.
func (c *conn) fill(n int) ([]byte, error) {
	in := &c.in
	for in.w-in.r < n {
		if in.r == in.w {
			in.r, in.w = 0, 0
		} else if in.r+n > len(in.buf) {
			in.w = copy(in.buf, in.buf[in.r:in.w])
			in.r = 0
		}
		in.iov = append(in.iov[:0], in.buf[in.w:min(len(in.buf), max(in.w+in.ahead, in.r+n))])
		k, err := c.readv()
		in.w += k
		if err != nil && k == 0 {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, err
			}
			if err := c.woken(in.r == in.w); err != nil {
				return nil, err
			}
		}
	}
	return in.buf[in.r : in.r+n], nil
}

func (c *conn) take(n int) { c.in.r += n }

// woken is for a read whose deadline is over, which only means that something has changed.
// between says that nothing has been read of the next reply.
func (c *conn) woken(between bool) error {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	switch {
	case c.spare && between:
		return errKept
	case c.spare:
		return protocolError("an answer to nothing")
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	if c.next != nil && c.watch == nil {
		return errMove
	}
	return nil
}

// reply takes one reply, or one chunk of one, up to its payload.
func (c *conn) reply() error {
	p, err := c.fill(4)
	if err != nil {
		return err
	}
	magic := binary.BigEndian.Uint32(p)
	switch {
	case magic == simpleReplyMagic && !c.exp.extended:
		return c.simple()
	case magic == structuredReplyMagic && c.exp.structured:
		return c.chunk(structuredReplySize)
	case magic == extendedReplyMagic && c.exp.extended:
		return c.chunk(extendedReplySize)
	}
	return protocolError("a reply begins with %#x", magic)
}

// find gives the request that a reply is for.
func (c *conn) find(cookie uint64) (*request, error) {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	r := c.flight[cookie]
	if r == nil || r.answered {
		return nil, protocolError("a reply to request %d, which there is not", cookie)
	}
	return r, nil
}

func (c *conn) simple() error {
	p, err := c.fill(simpleReplySize)
	if err != nil {
		return err
	}
	code, cookie := binary.BigEndian.Uint32(p[4:]), binary.BigEndian.Uint64(p[8:])
	c.take(simpleReplySize)
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	if r.cmd == cmdRead && code == 0 {
		if c.exp.structured {
			return protocolError("a simple reply to a read, after structured ones were agreed upon")
		}
		r.got.add(0, r.n)
		c.expect(r, 0, r.n, true)
		return nil
	}
	return c.end(r, code)
}

// chunk takes a chunk of a structured or extended reply.
func (c *conn) chunk(header int) error {
	p, err := c.fill(header)
	if err != nil {
		return err
	}
	be := binary.BigEndian
	flags, kind, cookie := be.Uint16(p[4:]), be.Uint16(p[6:]), be.Uint64(p[8:])
	length := uint64(be.Uint32(p[16:]))
	if header == extendedReplySize {
		length = be.Uint64(p[24:])
	}
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	last := flags&replyFlagDone != 0
	var code uint32
	switch {
	case kind == replyNone:
		if length != 0 || !last {
			return protocolError("NBD_REPLY_TYPE_NONE of %d bytes with flags %#x", length, flags)
		}
		c.take(header)
	case kind == replyOffsetData && r.cmd == cmdRead:
		return c.data(r, header, length, last)
	case kind == replyOffsetHole && r.cmd == cmdRead:
		err = c.hole(r, header, length)
	case kind&replyErrorBit != 0:
		code, err = c.failure(kind, header, length)
	default:
		return protocolError("a chunk of type %d to a command of type %d", kind, r.cmd)
	}
	if err != nil {
		return err
	}
	if last {
		return c.end(r, code)
	}
	if code != 0 {
		c.fail(r, errno(code))
	}
	return nil
}

// fail notes an error, unless there was one before.
func (c *conn) fail(r *request, e devsw.Errno) {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	if r.err == 0 {
		r.err = e
	}
}

// place checks that a chunk's n bytes from byte off of the disk on belong to the read, have not
// come before, and gives where in it.
func (c *conn) place(r *request, off, n uint64) (int64, error) {
	lo := off - uint64(r.off+r.pos)
	if off < uint64(r.off+r.pos) || lo > uint64(r.n) || n > uint64(r.n)-lo || n == 0 {
		return 0, protocolError("a chunk of %d bytes at byte %d, for a read of %d at %d", n, off, r.n, r.off+r.pos)
	}
	if !r.got.add(int64(lo), int64(lo+n)) {
		return 0, protocolError("chunks that overlap, or too many of them: %d bytes at byte %d", n, off)
	}
	return int64(lo), nil
}

// data is NBD_REPLY_TYPE_OFFSET_DATA, behind its header: an offset, and the data there.
func (c *conn) data(r *request, header int, length uint64, last bool) error {
	if length <= 8 {
		return protocolError("a data chunk of %d bytes", length)
	}
	p, err := c.fill(header + 8)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(p[header:])
	c.take(header + 8)
	at, err := c.place(r, off, length-8)
	if err != nil {
		return err
	}
	c.expect(r, at, int64(length-8), last)
	return nil
}

// hole is NBD_REPLY_TYPE_OFFSET_HOLE, behind its header: an offset, and the length of the zeroes
// there.
func (c *conn) hole(r *request, header int, length uint64) error {
	if length != 12 {
		return protocolError("a hole chunk of %d bytes", length)
	}
	p, err := c.fill(header + 12)
	if err != nil {
		return err
	}
	off, n := binary.BigEndian.Uint64(p[header:]), binary.BigEndian.Uint32(p[header+8:])
	c.take(header + 12)
	at, err := c.place(r, off, uint64(n))
	if err != nil {
		return err
	}
	for left := int64(n); left > 0; {
		k := min(left, 1<<20)
		b := c.borrow(r)
		if b == nil {
			return nil
		}
		e := disk.Zero(b, r.pos+at, k)
		c.endBorrow(r, e)
		at += k
		left -= k
	}
	return nil
}

// failure takes an error chunk, behind its header: an NBD error, the length of a message, the
// message, and for NBD_REPLY_TYPE_ERROR_OFFSET an offset. The types to come begin alike.
func (c *conn) failure(kind uint16, header int, length uint64) (code uint32, err error) {
	if length < 6 || length > 6+maxString+8 {
		return 0, protocolError("an error chunk of %d bytes", length)
	}
	p, err := c.fill(header + int(length))
	if err != nil {
		return 0, err
	}
	code = binary.BigEndian.Uint32(p[header:])
	message := uint64(binary.BigEndian.Uint16(p[header+4:]))
	want := 6 + message
	if kind == replyErrorOffset {
		want += 8
	}
	if length < want || (kind == replyError || kind == replyErrorOffset) && length != want {
		return 0, protocolError("an error chunk of %d bytes, with a message of %d", length, message)
	}
	if code == 0 {
		return 0, protocolError("an error chunk without an error")
	}
	c.take(header + int(length))
	return code, nil
}

// borrow gives the transfer of r, whose memory the receiver may touch until endBorrow; nil where it
// was given up.
func (c *conn) borrow(r *request) *devsw.Buf {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	if r.finished {
		return nil
	}
	r.busy = true
	return r.buf
}

// endBorrow undoes borrow.
func (c *conn) endBorrow(r *request, e devsw.Errno) {
	c.cl.mu.Lock()
	r.busy = false
	if e != 0 && r.err == 0 {
		r.err = e
	}
	if r.gone {
		c.disownLocked(r)
	}
	c.cl.unlock(c.receiver())
}

// expect says that n bytes for byte at of a read come next.
func (c *conn) expect(r *request, at, n int64, last bool) {
	in := &c.in
	in.pay, in.at, in.left, in.drop, in.last = r, at, n, false, last
	in.ahead = len(in.buf)
	if c.plain && n >= directSize {
		in.ahead = tailSize // the next one may be as large
	}
}

// payload moves what was expected to the read that is being answered, or drops it where that was
// given up or its memory is gone.
func (c *conn) payload() error {
	in := &c.in
	r := in.pay
	direct := c.plain && in.ahead == tailSize
	for in.left > 0 {
		have := int64(in.w - in.r)
		if have == 0 && (in.drop || !direct || in.left <= tailSize) {
			if _, err := c.fill(1); err != nil {
				return err
			}
			have = int64(in.w - in.r)
		}
		if in.drop {
			k := min(in.left, have)
			c.take(int(k))
			in.left -= k
			continue
		}
		b := c.borrow(r)
		if b == nil {
			in.drop = true
			continue
		}
		var k int64
		var e devsw.Errno
		var err error
		if have > 0 {
			k = min(in.left, have)
			e = b.MoveAt(in.buf[in.r:in.r+int(k)], r.pos+in.at)
			c.take(int(k))
		} else if k, err = c.direct(b, r.pos+in.at, in.left); errors.Is(err, syscall.EFAULT) {
			e, err = devsw.EFAULT, nil
		}
		c.endBorrow(r, e)
		in.at += k
		in.left -= k
		in.drop = e != 0
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = c.woken(false)
		}
		if err != nil {
			return err
		}
	}
	in.pay = nil
	if in.last {
		return c.end(r, 0)
	}
	return nil
}

// direct reads at most n bytes to byte at of the transfer b, and a little of what comes behind
// them, of which nothing has been read.
func (c *conn) direct(b *devsw.Buf, at, n int64) (int64, error) {
	in := &c.in
	iov, left := pieces(in.iov[:0], b, at, n)
	if left == 0 {
		iov = append(iov, in.buf[:tailSize])
	}
	in.iov = iov
	k, err := c.readv()
	here := min(int64(k), n-left)
	in.r, in.w = 0, k-int(here)
	return here, err
}

// maxPieces is how many pieces of memory go with one system call, but for one more.
const maxPieces = 1000

// pieces adds the memory of b from byte at of the transfer on, n bytes of it, to iov; left is what
// is too much for one system call.
func pieces(iov [][]byte, b *devsw.Buf, at, n int64) (_ [][]byte, left int64) {
	for _, d := range b.Data {
		if at >= int64(len(d)) {
			at -= int64(len(d))
			continue
		}
		d = d[at:]
		at = 0
		d = d[:min(int64(len(d)), n)]
		iov = append(iov, d)
		if n -= int64(len(d)); n == 0 || len(iov) == maxPieces {
			break
		}
	}
	return iov, n
}

// end takes the server's last word on r.
func (c *conn) end(r *request, code uint32) error {
	c.cl.mu.Lock()
	defer c.cl.unlock(c.receiver())
	if c.flight[r.cookie] != r {
		return protocolError("an answer to request %d, before it was sent", r.cookie)
	}
	if code != 0 && r.err == 0 {
		r.err = errno(code)
	}
	if r.err == 0 && r.cmd == cmdRead && !r.got.all(r.n) {
		return protocolError("a read of %d bytes at %d ends without all of them", r.n, r.off+r.pos)
	}
	r.answered = true
	if code == eShutdown {
		// The rest goes to the server that comes after it.
		c.quit, r.retry = true, true
		c.more.Signal()
	} else if !c.quit {
		c.useful = true
		c.cl.answeredLocked()
	}
	if r.busy || !r.finished && r.cmd == cmdWrite && r.sent < r.n || r.rest != nil && r.sent < r.n {
		return nil // the sender is not done with it
	}
	c.completeLocked(r)
	return nil
}
