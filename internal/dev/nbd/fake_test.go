package nbd

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"
)

// fake is a server that shakes hands by itself, and then does what the test tells it.
type fake struct {
	t    testing.TB
	exp  export // what it serves, and how it speaks
	noGo bool   // it has no NBD_OPT_GO
	// refusals is how many times its policy does not allow what a client wants.
	refusals atomic.Int32
	l        net.Listener
	path     string
	conns    chan *fakeConn // those that have shaken hands
	gone     <-chan struct{}
}

// fakeConn is one of its connections.
type fakeConn struct {
	net.Conn
	t   testing.TB
	exp *export
}

// fakeRequest is what the client has sent.
type fakeRequest struct {
	cmd, flags     uint16
	cookie, off, n uint64
}

const (
	simpleMode = iota
	structuredMode
	extendedMode
)

// newFake starts a server of testSize bytes for the length of the test.
func newFake(t testing.TB, mode int) *fake {
	t.Helper()
	f := &fake{t: t, path: filepath.Join(t.TempDir(), "nbd"), conns: make(chan *fakeConn, 64)}
	f.exp = export{
		size: testSize, flags: hasFlags | sendFlush | sendFUA | sendTrim | sendWriteZeroes, minBlock: 1, prefBlock: 4096, maxBlock: 32 << 20,
		structured: mode == structuredMode, extended: mode == extendedMode,
	}
	var err error
	if f.l, err = net.Listen("unix", f.path); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	f.gone = gone
	go f.accept(f.l, gone)
	t.Cleanup(func() {
		f.l.Close()
		<-f.gone
		for len(f.conns) > 0 {
			(<-f.conns).Close()
		}
	})
	return f
}

// accept has who connects shake hands, until l is closed.
func (f *fake) accept(l net.Listener, gone chan<- struct{}) {
	defer close(gone)
	for {
		nc, err := l.Accept()
		if err != nil {
			return
		}
		// a test that waits for nothing is to fail, not to hang
		_ = nc.SetDeadline(time.Now().Add(30 * time.Second))
		c := &fakeConn{Conn: nc, t: f.t, exp: &f.exp}
		if err := f.shake(nc); err != nil {
			nc.Close()
			continue
		}
		f.conns <- c
	}
}

// listenTCP has the server listen on a port of this host instead.
func (f *fake) listenTCP() {
	f.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		f.t.Fatal(err)
	}
	f.l.Close()
	<-f.gone
	f.l, f.path = l, ""
	gone := make(chan struct{})
	f.gone = gone
	go f.accept(l, gone)
}

func (f *fake) uri() string {
	if f.path == "" {
		return "nbd://" + f.l.Addr().String()
	}
	return "nbd+unix:///?socket=" + url.QueryEscape(f.path)
}

// shake is the server's side of the handshake.
func (f *fake) shake(nc net.Conn) error {
	be := binary.BigEndian
	p := be.AppendUint64(nil, nbdMagic)
	p = be.AppendUint64(p, optMagic)
	p = be.AppendUint16(p, flagFixedNewstyle)
	if _, err := nc.Write(p); err != nil {
		return err
	}
	if _, err := io.ReadFull(nc, p[:4]); err != nil {
		return err
	}
	for {
		var h [16]byte
		if _, err := io.ReadFull(nc, h[:]); err != nil {
			return err
		}
		opt := be.Uint32(h[8:])
		data := make([]byte, be.Uint32(h[12:]))
		if _, err := io.ReadFull(nc, data); err != nil {
			return err
		}
		reply := func(kind uint32, data []byte) {
			p := be.AppendUint64(nil, optReplyMagic)
			p = be.AppendUint32(p, opt)
			p = be.AppendUint32(p, kind)
			p = be.AppendUint32(p, uint32(len(data)))
			_, _ = nc.Write(append(p, data...))
		}
		switch {
		case opt == optExtendedHeaders && f.exp.extended, opt == optStructuredReply && f.exp.structured:
			reply(repAck, nil)
		case opt == optExportName:
			p := be.AppendUint64(nil, uint64(f.exp.size))
			p = be.AppendUint16(p, f.exp.flags)
			_, err := nc.Write(append(p, make([]byte, 124)...))
			return err
		case opt == optGo && f.refusals.Add(-1) >= 0:
			reply(repErrPolicy, []byte("too many clients"))
		case opt == optGo && !f.noGo:
			p := be.AppendUint16(nil, infoExport)
			p = be.AppendUint64(p, uint64(f.exp.size))
			reply(repInfo, be.AppendUint16(p, f.exp.flags))
			p = be.AppendUint16(nil, infoBlockSize)
			p = be.AppendUint32(p, uint32(f.exp.minBlock))
			p = be.AppendUint32(p, uint32(f.exp.prefBlock))
			reply(repInfo, be.AppendUint32(p, uint32(f.exp.maxBlock)))
			reply(repAck, nil)
			return nil
		default:
			reply(repErrUnsup, nil)
		}
	}
}

// next waits for the next connection.
func (f *fake) next() *fakeConn {
	f.t.Helper()
	select {
	case c := <-f.conns:
		f.t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(20 * time.Second):
		f.t.Fatal("nobody connects")
		return nil
	}
}

// disk makes and opens a disk of the server, and gives the connection that it uses.
func (f *fake) disk(r *rig, conf Config) (*diskUnderTest, *fakeConn) {
	f.t.Helper()
	conf.URI = f.uri()
	dev := r.create(conf)
	f.next().Close() // the probe
	d := r.open(dev)
	return &diskUnderTest{d, r}, f.next()
}

// request reads what the client sends, and with a write the payload; payload false leaves that to
// the test.
func (c *fakeConn) request(payload bool) (q fakeRequest, data []byte) {
	c.t.Helper()
	q, err := c.readRequest()
	if err != nil {
		c.t.Fatalf("reading a request: %v", err)
	}
	if q.cmd == cmdWrite && payload {
		data = make([]byte, q.n)
		if _, err := io.ReadFull(c, data); err != nil {
			c.t.Fatalf("reading a payload: %v", err)
		}
	}
	return q, data
}

func (c *fakeConn) readRequest() (q fakeRequest, err error) {
	be := binary.BigEndian
	p := make([]byte, requestSize)
	magic := uint32(requestMagic)
	if c.exp.extended {
		p, magic = make([]byte, extendedRequestSize), extendedRequestMagic
	}
	if _, err := io.ReadFull(c, p); err != nil {
		return q, err
	}
	if m := be.Uint32(p); m != magic {
		return q, errors.New("a request with the wrong magic")
	}
	q = fakeRequest{flags: be.Uint16(p[4:]), cmd: be.Uint16(p[6:]), cookie: be.Uint64(p[8:]), off: be.Uint64(p[16:])}
	if c.exp.extended {
		q.n = be.Uint64(p[24:])
	} else {
		q.n = uint64(be.Uint32(p[24:]))
	}
	return q, nil
}

func (c *fakeConn) send(parts ...[]byte) {
	for _, p := range parts {
		if _, err := c.Write(p); err != nil {
			return // the client may have had enough
		}
	}
}

func simpleReply(cookie uint64, code uint32) []byte {
	p := binary.BigEndian.AppendUint32(nil, simpleReplyMagic)
	p = binary.BigEndian.AppendUint32(p, code)
	return binary.BigEndian.AppendUint64(p, cookie)
}

// chunk makes a chunk of a structured or extended reply.
func (c *fakeConn) chunk(flags, kind uint16, cookie uint64, data []byte) []byte {
	return c.chunkOf(flags, kind, cookie, uint64(len(data)), data)
}

func (c *fakeConn) chunkOf(flags, kind uint16, cookie, length uint64, data []byte) []byte {
	be := binary.BigEndian
	magic := uint32(structuredReplyMagic)
	if c.exp.extended {
		magic = extendedReplyMagic
	}
	p := be.AppendUint32(nil, magic)
	p = be.AppendUint16(p, flags)
	p = be.AppendUint16(p, kind)
	p = be.AppendUint64(p, cookie)
	if c.exp.extended {
		p = be.AppendUint64(p, 0)
		p = be.AppendUint64(p, length)
	} else {
		p = be.AppendUint32(p, uint32(length))
	}
	return append(p, data...)
}

// ok makes the reply that says that all went well, to anything but a read.
func (c *fakeConn) ok(cookie uint64) []byte {
	if c.exp.extended || c.exp.structured {
		return c.chunk(replyFlagDone, replyNone, cookie, nil)
	}
	return simpleReply(cookie, 0)
}

func offsetData(off uint64, data []byte) []byte {
	return append(binary.BigEndian.AppendUint64(nil, off), data...)
}

func offsetHole(off uint64, n uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, off), n)
}

func errorChunk(code uint32, message string) []byte {
	p := binary.BigEndian.AppendUint32(nil, code)
	p = binary.BigEndian.AppendUint16(p, uint16(len(message)))
	return append(p, message...)
}

// read answers a read with data.
func (c *fakeConn) read(q fakeRequest, data []byte) []byte {
	if c.exp.extended || c.exp.structured {
		return c.chunk(replyFlagDone, replyOffsetData, q.cookie, offsetData(q.off, data))
	}
	return append(simpleReply(q.cookie, 0), data...)
}
