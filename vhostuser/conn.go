package vhostuser

import (
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"vdev/internal/sys"
)

// message is one message from the front-end.
type message struct {
	req     Request
	flags   uint32
	payload []byte    // a part of the conn's buffer, valid until the next read
	fds     []*sys.FD // owned by the message, except those that were taken
	closer  *closer   // of descriptors that nobody took
	reply   *sys.FD   // what is sent along with the reply, if not nil; owned by the message
}

// takeFD returns the i-th descriptor, which is the caller's from then on.
func (m *message) takeFD(i int) *sys.FD {
	f := m.fds[i]
	m.fds[i] = nil
	return f
}

// takeEventfd is takeFD for the message's first descriptor, which must be an eventfd. A pipe or a
// file could make whoever writes to it or watches it wait, or be ready all the time. (QEMU sends
// pipes where the host has no eventfds, which every Linux has.)
func (m *message) takeEventfd() (*sys.FD, error) {
	ok, kind, err := sys.IsEventfd(m.fds[0].Int())
	switch {
	case err != nil:
		return nil, err
	case !ok:
		return nil, &DescriptorError{Kind: string(kind), Want: string(sys.KindEventfd)}
	}
	return m.takeFD(0), nil
}

// close closes the descriptors that nobody took, and the reply's.
func (m *message) close() {
	for _, f := range m.fds {
		if f != nil {
			m.closer.close(f)
		}
	}
	m.fds = nil
	closeFD(&m.reply)
}

// socket is the part of a *net.UnixConn that is used. A fuzz target has one that says what is in
// memory.
type socket interface {
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
	Write(b []byte) (int, error)
	SetDeadline(t time.Time) error
	SetReadDeadline(t time.Time) error
	syscall.Conn
	io.Closer
}

// conn frames messages.
type conn struct {
	uc     socket
	closer *closer
	header [HeaderSize]byte
	buf    [maxPayload]byte
	oob    []byte
	out    []byte
}

func newConn(uc socket, c *closer) *conn {
	// Room for as many descriptors as can come at all, so that all of them are received, and
	// closed.
	return &conn{uc: uc, closer: c, oob: make([]byte, sys.RightsSpace(sys.MaxRights))}
}

// errTruncated says that descriptors of a message were lost on the way.
var errTruncated = errors.New("descriptors were cut off (out of file descriptors?)")

// read reads the next message into m. io.EOF is a hang-up between two messages. On an error no
// descriptor stays open.
//
// Header and payload are read exactly, so that a read never reaches into the next message:
// descriptors arrive with the first byte of what was sent with them, and are this message's whether
// the sender sent it in one piece or more. begun is called when the header is there.
func (c *conn) read(m *message, begun func()) error {
	*m = message{closer: c.closer}
	if err := c.readFull(m, c.header[:]); err != nil {
		m.close()
		return err
	}
	begun()
	h := ParseHeader(c.header[:])
	m.req, m.flags = Request(h.Request), h.Flags
	switch {
	case h.Flags&versionMask != FlagVersion:
		m.close()
		return &ProtocolError{m.req, field("flags", uint64(h.Flags), "of version 1")}
	case h.Flags&^(versionMask|FlagNeedReply) != 0:
		m.close()
		return &ProtocolError{m.req, field("flags", uint64(h.Flags), "version and need_reply only")}
	case h.Size > maxPayload:
		m.close()
		return &ProtocolError{m.req, field("size", uint64(h.Size), "at most %d", maxPayload)}
	}
	m.payload = c.buf[:h.Size]
	if err := c.readFull(m, m.payload); err != nil {
		m.close()
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return &ProtocolError{m.req, err}
	}
	return nil
}

// readFull fills b. io.EOF means that nothing came at all.
func (c *conn) readFull(m *message, b []byte) error {
	for n := 0; n < len(b); {
		k, oobn, flags, _, err := c.uc.ReadMsgUnix(b[n:], c.oob)
		// Descriptors first: they are there whatever else happened.
		if oobn > 0 {
			fds, perr := sys.ParseRights(c.oob[:oobn])
			m.fds = append(m.fds, fds...)
			if perr != nil && err == nil {
				err = perr
			}
		}
		n += k
		switch {
		case errors.Is(err, io.EOF) && n > 0:
			return fmt.Errorf("vhostuser: message: %w", io.ErrUnexpectedEOF)
		case err != nil:
			return err
		case flags&sys.MsgTruncated != 0:
			return fmt.Errorf("vhostuser: message: %w", errTruncated)
		case len(m.fds) > sys.MaxRights:
			return fmt.Errorf("vhostuser: message: more than %d descriptors", sys.MaxRights)
		}
	}
	return nil
}

// reply answers req. A descriptor that is sent along stays the caller's.
func (c *conn) reply(req Request, payload []byte, fd *sys.FD) error {
	c.out = Header{Request: uint32(req), Flags: FlagVersion | FlagReply, Size: uint32(len(payload))}.Append(c.out[:0])
	c.out = append(c.out, payload...)
	if fd == nil {
		_, err := c.uc.Write(c.out)
		return err
	}
	n, _, err := c.uc.WriteMsgUnix(c.out, sys.Rights(fd.Int()), nil)
	if err == nil && n < len(c.out) {
		_, err = c.uc.Write(c.out[n:])
	}
	return err
}
