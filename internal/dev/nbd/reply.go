package nbd

import (
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/disk"
)

// input is what has been read of a connection and not been looked at. It is the receiver's.
type input struct {
	buf  []byte
	r, w int // buf[r:w]
}

// receive is the receiver: it takes the server's replies until the connection is over, and gives the reason. EPROTO: the server has
// broken the protocol.
func (c *conn) receive() error {
	for {
		if err := c.reply(); err != nil {
			return err
		}
	}
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
		k, err := c.nc.Read(in.buf[in.w:])
		in.w += k
		if err != nil && k == 0 {
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, err
			}
			c.woken()
		}
	}
	return in.buf[in.r : in.r+n], nil
}

func (c *conn) take(n int) { c.in.r += n }

// woken is for a read whose deadline is over, which only means that something has changed.
func (c *conn) woken() {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	_ = c.nc.SetReadDeadline(time.Time{})
}

// skip drops n bytes.
func (c *conn) skip(n int64) error {
	for n > 0 {
		if c.in.r == c.in.w {
			if _, err := c.fill(1); err != nil {
				return err
			}
		}
		k := min(n, int64(c.in.w-c.in.r))
		c.take(int(k))
		n -= k
	}
	return nil
}

// reply takes one reply, or one chunk of one.
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
		if err := c.payload(r, 0, r.n); err != nil {
			return err
		}
		r.got.add(0, r.n)
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
	c.take(header)
	r, err := c.find(cookie)
	if err != nil {
		return err
	}
	var code uint32
	switch {
	case kind == replyNone:
		if length != 0 || flags&replyFlagDone == 0 {
			return protocolError("NBD_REPLY_TYPE_NONE of %d bytes with flags %#x", length, flags)
		}
	case kind == replyOffsetData && r.cmd == cmdRead:
		err = c.data(r, length)
	case kind == replyOffsetHole && r.cmd == cmdRead:
		err = c.hole(r, length)
	case kind&replyErrorBit != 0:
		code, err = c.failure(kind, length)
	default:
		return protocolError("a chunk of type %d to a command of type %d", kind, r.cmd)
	}
	if err != nil {
		return err
	}
	if flags&replyFlagDone != 0 {
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

// place checks that a chunk's n bytes from byte off of the disk on belong to the read, have not come before, and gives where in it.
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

// data is NBD_REPLY_TYPE_OFFSET_DATA: an offset, and the data there.
func (c *conn) data(r *request, length uint64) error {
	if length <= 8 {
		return protocolError("a data chunk of %d bytes", length)
	}
	p, err := c.fill(8)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(p)
	c.take(8)
	at, err := c.place(r, off, length-8)
	if err != nil {
		return err
	}
	return c.payload(r, at, int64(length-8))
}

// hole is NBD_REPLY_TYPE_OFFSET_HOLE: an offset, and the length of the zeroes there.
func (c *conn) hole(r *request, length uint64) error {
	if length != 12 {
		return protocolError("a hole chunk of %d bytes", length)
	}
	p, err := c.fill(12)
	if err != nil {
		return err
	}
	off, n := binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[8:])
	c.take(12)
	at, err := c.place(r, off, uint64(n))
	if err != nil {
		return err
	}
	for left := int64(n); left > 0; {
		k := min(left, 1<<20)
		b := c.pin(r)
		if b == nil {
			return nil
		}
		e := disk.Zero(b, r.pos+at, k)
		c.unpin(r, e)
		at += k
		left -= k
	}
	return nil
}

// failure takes an error chunk: an NBD error, the length of a message, the message, and for NBD_REPLY_TYPE_ERROR_OFFSET an offset.
// The types to come begin alike.
func (c *conn) failure(kind uint16, length uint64) (code uint32, err error) {
	if length < 6 || length > 6+maxString+8 {
		return 0, protocolError("an error chunk of %d bytes", length)
	}
	p, err := c.fill(6)
	if err != nil {
		return 0, err
	}
	code = binary.BigEndian.Uint32(p)
	message := uint64(binary.BigEndian.Uint16(p[4:]))
	c.take(6)
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
	return code, c.skip(int64(length - 6))
}

// pin gives the transfer of r, whose memory the receiver may touch until unpin; nil where it was given up.
func (c *conn) pin(r *request) *devsw.Buf {
	c.cl.mu.Lock()
	defer c.cl.mu.Unlock()
	if r.finished {
		return nil
	}
	r.busy = true
	return r.buf
}

// unpin undoes pin.
func (c *conn) unpin(r *request, e devsw.Errno) {
	c.cl.mu.Lock()
	r.busy = false
	if e != 0 && r.err == 0 {
		r.err = e
	}
	if r.gone {
		c.disownLocked(r)
	}
	c.cl.unlock()
}

// payload moves the next n bytes of the connection to byte at of the read that is being answered, or drops them where it was
// given up or its memory is gone.
func (c *conn) payload(r *request, at, n int64) error {
	for n > 0 {
		var b *devsw.Buf
		have := int64(c.in.w - c.in.r)
		if have == 0 && !(c.plain && n >= directSize) {
			if _, err := c.fill(1); err != nil {
				return err
			}
			have = int64(c.in.w - c.in.r)
		}
		if b = c.pin(r); b == nil {
			return c.skip(n)
		}
		if have == 0 {
			p := segment(b, r.pos+at, n)
			if len(p) >= directSize {
				k, err := c.nc.Read(p)
				var e devsw.Errno
				if errors.Is(err, syscall.EFAULT) {
					e, err = devsw.EFAULT, nil
				}
				c.unpin(r, e)
				at += int64(k)
				n -= int64(k)
				switch {
				case e != 0:
					return c.skip(n)
				case errors.Is(err, os.ErrDeadlineExceeded):
					c.woken()
				case err != nil && k == 0:
					return err
				}
				continue
			}
			c.unpin(r, 0)
			if _, err := c.fill(1); err != nil {
				return err
			}
			continue
		}
		k := min(n, have)
		e := b.MoveAt(c.in.buf[c.in.r:c.in.r+int(k)], r.pos+at)
		c.unpin(r, e)
		c.take(int(k))
		at += k
		n -= k
		if e != 0 {
			return c.skip(n)
		}
	}
	return nil
}

// segment gives the memory of b from byte at of the transfer on, at most n bytes in one piece.
func segment(b *devsw.Buf, at, n int64) []byte {
	for _, d := range b.Data {
		if at < int64(len(d)) {
			d = d[at:]
			return d[:min(int64(len(d)), n)]
		}
		at -= int64(len(d))
	}
	return nil
}

// end takes the server's last word on r.
func (c *conn) end(r *request, code uint32) error {
	c.cl.mu.Lock()
	defer c.cl.unlock()
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
