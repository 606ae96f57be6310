package nbd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vdev/devsw"
)

const (
	// dialTimeout is how long one attempt to connect may take, handshake included.
	dialTimeout = 10 * time.Second
	// maxInfos is how many answers to one option a server may give.
	maxInfos = 128
)

// export is what the server has told of the disk, and how the two have agreed to speak of it.
type export struct {
	size       int64  // bytes
	flags      uint16 // transmission flags
	minBlock   int64  // what offsets and lengths must be multiples of, bytes
	prefBlock  int64  // what they should be multiples of, bytes; 0: unknown
	maxBlock   int64  // the largest payload, bytes
	structured bool   // structured replies, and not extended ones
	extended   bool   // extended headers
}

func (e *export) has(flag uint16) bool { return e.flags&flag != 0 }

// onlyFUA tells whether the server can make one write stable, but not all that came before. Then
// each write is made so, and a flush has nothing to do.
func (e *export) onlyFUA() bool { return e.has(sendFUA) && !e.has(sendFlush) }

// fua is the flag for what changes the disk without a payload.
func (e *export) fua() uint16 {
	if e.onlyFUA() {
		return cmdFlagFUA
	}
	return 0
}

// RefusedError says that the server does not want to serve. It wraps an Errno.
type RefusedError struct {
	What    string // what the client wanted
	Reason  string // why the server did not
	Message string // what the server says itself, or empty; untrusted
	Errno   devsw.Errno
	Again   bool // it may serve another time; else asking again changes nothing
}

func (e *RefusedError) Error() string {
	s := fmt.Sprintf("%s: the server refuses: %s", e.What, e.Reason)
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

// Unwrap gives the Errno.
func (e *RefusedError) Unwrap() error { return e.Errno }

// protocolError says that the server does not keep to the protocol.
func protocolError(format string, args ...any) error {
	return fmt.Errorf("the server breaks the protocol: "+format+": %w", append(args, syscall.EPROTO)...)
}

// link is a connection that has been agreed upon.
type link struct {
	nc    net.Conn // what is read and written: raw, or TLS on it
	raw   net.Conn
	exp   export
	plain bool // nc is raw: the memory of transfers can be given to it

	generation   uint64 // of the server; see Server
	unidentified bool   // which it is nobody knows: see client.attach
}

// dial connects to t and shakes hands, once, for at most dialTimeout or until ctx is done. The
// errors name the address.
func dial(ctx context.Context, t *target) (*link, error) {
	l, err := dialOnce(ctx, t)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%s: %w", t.address, err)
	}
	return l, nil
}

func dialOnce(ctx context.Context, t *target) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 6}}
	raw, err := d.DialContext(ctx, t.network, t.address)
	if err != nil {
		var oe *net.OpError
		if errors.As(err, &oe) {
			err = oe.Err // the rest only says the address again
		}
		return nil, err
	}
	// Whatever waits in the handshake is woken when ctx is done.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	l, err := negotiate(ctx, raw, t)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		raw.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v (if the server has another client, it may take one at "+
				"a time; qemu-nbd takes more with --shared=N): %w", dialTimeout, devsw.ETIMEDOUT)
		}
		return nil, err
	}
	return l, nil
}

// negotiate is the handshake.
func negotiate(ctx context.Context, raw net.Conn, t *target) (*link, error) {
	l := &link{nc: raw, raw: raw, plain: !t.tls}
	h := haggle{rw: raw}
	zeroes, err := h.begin()
	if err != nil {
		return nil, err
	}
	if t.tls {
		if l.nc, err = h.startTLS(ctx, raw, t); err != nil {
			return nil, err
		}
		h.rw = l.nc
	}
	l.exp = export{minBlock: 1, maxBlock: defaultMaxBlock}
	if l.exp.extended, err = h.ask(optExtendedHeaders, "extended headers"); err != nil {
		return nil, err
	}
	if !l.exp.extended {
		if l.exp.structured, err = h.ask(optStructuredReply, "structured replies"); err != nil {
			return nil, err
		}
	}
	known, err := h.goExport(t.export, &l.exp)
	if err == nil && !known {
		err = h.exportName(t.export, zeroes, &l.exp)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// haggle is the phase of options.
type haggle struct {
	rw  io.ReadWriter
	buf [64]byte
}

func (h *haggle) read(n int) ([]byte, error) {
	p := h.buf[:n]
	if _, err := io.ReadFull(h.rw, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("the server hangs up during the handshake: %w", syscall.ECONNRESET)
		}
		return nil, err
	}
	return p, nil
}

// begin exchanges greetings, and tells whether the server sends zeroes after NBD_OPT_EXPORT_NAME.
func (h *haggle) begin() (zeroes bool, err error) {
	p, err := h.read(16)
	if err != nil {
		return false, err
	}
	if m := binary.BigEndian.Uint64(p); m != nbdMagic {
		return false, fmt.Errorf("this is no NBD server: it begins with %#x: %w", m, syscall.EPROTO)
	}
	switch m := binary.BigEndian.Uint64(p[8:]); m {
	case optMagic:
	case oldStyleMagic:
		return false, fmt.Errorf("the server speaks the oldstyle protocol only: %w", devsw.EOPNOTSUPP)
	default:
		return false, protocolError("%#x instead of IHAVEOPT", m)
	}
	if p, err = h.read(2); err != nil {
		return false, err
	}
	flags := binary.BigEndian.Uint16(p)
	if flags&flagFixedNewstyle == 0 {
		return false, fmt.Errorf("the server speaks the newstyle protocol, but not the fixed one: %w", devsw.EOPNOTSUPP)
	}
	flags &= flagFixedNewstyle | flagNoZeroes
	_, err = h.rw.Write(binary.BigEndian.AppendUint32(nil, uint32(flags)))
	return flags&flagNoZeroes == 0, err
}

func (h *haggle) send(opt uint32, data []byte) error {
	p := binary.BigEndian.AppendUint64(nil, optMagic)
	p = binary.BigEndian.AppendUint32(p, opt)
	p = binary.BigEndian.AppendUint32(p, uint32(len(data)))
	_, err := h.rw.Write(append(p, data...))
	return err
}

// reply reads one reply to an option. data is cut at what anybody here wants to know; the rest is
// read and dropped.
func (h *haggle) reply(opt uint32) (kind uint32, data []byte, err error) {
	p, err := h.read(20)
	if err != nil {
		return 0, nil, err
	}
	if m := binary.BigEndian.Uint64(p); m != optReplyMagic {
		return 0, nil, protocolError("an option's reply begins with %#x", m)
	}
	if o := binary.BigEndian.Uint32(p[8:]); o != opt {
		return 0, nil, protocolError("a reply to option %d where one to option %d is due", o, opt)
	}
	kind = binary.BigEndian.Uint32(p[12:])
	n := binary.BigEndian.Uint32(p[16:])
	if n > 4*maxString {
		return 0, nil, protocolError("a reply of %d bytes to option %d", n, opt)
	}
	data = make([]byte, n)
	if _, err := io.ReadFull(h.rw, data); err != nil {
		return 0, nil, fmt.Errorf("the server hangs up during the handshake: %w", syscall.ECONNRESET)
	}
	return kind, data, nil
}

// ask asks for something that a server may have or not.
func (h *haggle) ask(opt uint32, what string) (bool, error) {
	if err := h.send(opt, nil); err != nil {
		return false, err
	}
	kind, data, err := h.reply(opt)
	switch {
	case err != nil:
		return false, err
	case kind == repAck:
		return true, nil
	case kind == repErrTLSReqd || kind == repErrShutdown:
		return false, refused(what, kind, data)
	case kind&(1<<31) != 0:
		return false, nil
	}
	return false, protocolError("reply %#x to the option for %s", kind, what)
}

// startTLS turns the connection into a TLS one.
func (h *haggle) startTLS(ctx context.Context, raw net.Conn, t *target) (net.Conn, error) {
	conf, err := tlsConfig(t)
	if err != nil {
		return nil, err
	}
	if err := h.send(optStartTLS, nil); err != nil {
		return nil, err
	}
	kind, data, err := h.reply(optStartTLS)
	switch {
	case err != nil:
		return nil, err
	case kind&(1<<31) != 0:
		return nil, refused("TLS", kind, data)
	case kind != repAck:
		return nil, protocolError("reply %#x to NBD_OPT_STARTTLS", kind)
	}
	c := tls.Client(raw, conf)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return c, nil
}

// tlsConfig reads the certificates. The names of the files are those of QEMU, libnbd and nbdkit.
func tlsConfig(t *target) (*tls.Config, error) {
	conf := &tls.Config{ServerName: t.hostname, InsecureSkipVerify: t.noVerify}
	if t.certificates == "" {
		return conf, nil
	}
	ca := filepath.Join(t.certificates, "ca-cert.pem")
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	conf.RootCAs = x509.NewCertPool()
	if !conf.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("TLS: %s: there is no certificate in it: %w", ca, devsw.EINVAL)
	}
	cert, key := filepath.Join(t.certificates, "client-cert.pem"), filepath.Join(t.certificates, "client-key.pem")
	pair, err := tls.LoadX509KeyPair(cert, key)
	switch {
	case err == nil:
		conf.Certificates = []tls.Certificate{pair}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("TLS: %s: %w", cert, err)
	}
	return conf, nil
}

// goExport chooses the export with NBD_OPT_GO. known is false where the server does not know that
// option.
func (h *haggle) goExport(name string, exp *export) (known bool, err error) {
	data := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
	data = append(data, name...)
	data = binary.BigEndian.AppendUint16(data, 1)
	data = binary.BigEndian.AppendUint16(data, infoBlockSize)
	if err := h.send(optGo, data); err != nil {
		return false, err
	}
	described := false
	for range maxInfos {
		kind, data, err := h.reply(optGo)
		switch {
		case err != nil:
			return false, err
		case kind == repAck && described:
			return true, nil
		case kind == repAck:
			return false, protocolError("NBD_OPT_GO succeeds without NBD_INFO_EXPORT")
		case kind == repErrUnsup:
			return false, nil
		case kind&(1<<31) != 0:
			return false, refused(fmt.Sprintf("export %q", name), kind, data)
		case kind != repInfo || len(data) < 2:
			return false, protocolError("reply %#x of %d bytes to NBD_OPT_GO", kind, len(data))
		}
		switch binary.BigEndian.Uint16(data) {
		case infoExport:
			if len(data) != 12 {
				return false, protocolError("NBD_INFO_EXPORT of %d bytes", len(data))
			}
			described = true
			err = exp.setSize(binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:]))
		case infoBlockSize:
			if len(data) != 14 {
				return false, protocolError("NBD_INFO_BLOCK_SIZE of %d bytes", len(data))
			}
			err = exp.setBlockSizes(binary.BigEndian.Uint32(data[2:]), binary.BigEndian.Uint32(data[6:]), binary.BigEndian.Uint32(data[10:]))
		}
		if err != nil {
			return false, err
		}
	}
	return false, protocolError("more than %d replies to NBD_OPT_GO", maxInfos)
}

// exportName chooses the export in the way that every server knows, which cannot say why it
// refuses.
func (h *haggle) exportName(name string, zeroes bool, exp *export) error {
	if err := h.send(optExportName, []byte(name)); err != nil {
		return err
	}
	p, err := h.read(10)
	if err != nil {
		return fmt.Errorf("export %q: %w", name, err)
	}
	if err := exp.setSize(binary.BigEndian.Uint64(p), binary.BigEndian.Uint16(p[8:])); err != nil {
		return err
	}
	if zeroes {
		if _, err := io.CopyN(io.Discard, h.rw, 124); err != nil {
			return err
		}
	}
	return nil
}

func (e *export) setSize(size uint64, flags uint16) error {
	if size > math.MaxInt64 {
		return protocolError("an export of %d bytes", size)
	}
	if flags&hasFlags == 0 {
		flags = 0
	}
	e.size, e.flags = int64(size), flags
	return nil
}

func (e *export) setBlockSizes(low, pref, high uint32) error {
	pow2 := func(n uint32) bool { return n != 0 && n&(n-1) == 0 }
	if !pow2(low) || low > 64<<10 || !pow2(pref) || pref < max(low, 512) || high < low || high != math.MaxUint32 && high%low != 0 {
		return protocolError("block sizes of at least %d, best %d, at most %d bytes", low, pref, high)
	}
	e.minBlock, e.prefBlock = int64(low), int64(pref)
	// A preferred size may be larger than what one can have at most; nobody gains from larger
	// payloads than the usual ones.
	e.maxBlock = min(int64(high), defaultMaxBlock) &^ (e.minBlock - 1)
	return nil
}

// refused makes an error of a reply to an option.
func refused(what string, kind uint32, data []byte) error {
	e := &RefusedError{What: what, Errno: devsw.EACCES, Message: printable(data)}
	switch kind {
	case repErrUnsup:
		e.Reason, e.Errno = "it does not know this option", devsw.EOPNOTSUPP
	case repErrPolicy:
		// So a server answers that has as many clients as it wants.
		e.Reason, e.Again = "its policy does not allow it, perhaps as it has other clients", true
	case repErrInvalid:
		e.Reason, e.Errno = "it finds the request invalid", devsw.EINVAL
	case repErrPlatform:
		e.Reason, e.Errno = "its platform cannot do it", devsw.EOPNOTSUPP
	case repErrTLSReqd:
		e.Reason = "it demands TLS (nbds:// instead of nbd://)"
	case repErrUnknown:
		e.Reason, e.Errno = "there is no such export", devsw.ENOENT
	case repErrShutdown:
		// This one may go better the next time.
		return fmt.Errorf("%s: the server is shutting down: %w", what, syscall.ESHUTDOWN)
	case repErrBlockSizeReqd:
		e.Reason, e.Errno = "it wants the client to keep to its block sizes", devsw.EINVAL
	case repErrTooBig:
		e.Reason, e.Errno = "the request is too large", devsw.EFBIG
	case repErrExtHeaderReqd:
		e.Reason, e.Errno = "it demands extended headers", devsw.EOPNOTSUPP
	default:
		e.Reason = fmt.Sprintf("error %#x", kind)
	}
	return e
}

// printable makes something that can be shown of a server's message.
func printable(data []byte) string {
	return strings.ToValidUTF8(string(data[:min(len(data), 256)]), "?")
}
