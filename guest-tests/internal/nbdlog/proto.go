package nbdlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// The numbers of the protocol: doc/proto.md of the NetworkBlockDevice project. Everything is
// big-endian.
const (
	greetingSize  = 18 // NBDMAGIC, IHAVEOPT, handshake flags
	optHead       = 16 // IHAVEOPT, option, length
	optReplyHead  = 20 // magic, option, type, length
	optExportName = 1
	optAbort      = 2
	optGo         = 7
	optStructured = 8
	optExtended   = 11
	repAck        = 1
	repErrorBit   = 1 << 31

	flagNoZeroes = 1 << 1

	requestMagic         = 0x25609513
	extendedRequestMagic = 0x21e41c71
	requestSize          = 28
	extendedRequestSize  = 32

	simpleMagic     = 0x67446698
	structuredMagic = 0x668e33ef
	extendedMagic   = 0x6e8a278c
	simpleSize      = 16
	structuredSize  = 20
	extendedSize    = 32

	replyDone     = 1 << 0
	replyErrorBit = 1 << 15

	cmdRead  = 0
	cmdWrite = 1
	cmdDisc  = 2
	cmdFlush = 3

	cmdFlagFUA = 1 << 0

	// maxPayload bounds what is believed of a length.
	maxPayload = 64 << 20
)

var commandNames = map[uint16]string{0: "read", 1: "write", 2: "disconnect", 3: "flush", 4: "trim", 6: "zeroes"}

func commandName(cmd uint16) string {
	if name, ok := commandNames[cmd]; ok {
		return name
	}
	return fmt.Sprintf("command %d", cmd)
}

// errNoTransmission says that a handshake has ended in good order, and without a disk.
var errNoTransmission = errors.New("the client does not go on")

// shake hands on a handshake, and tells whether requests have extended headers. from reads what the
// client sends, back what the server sends.
func shake(from, back *bufio.Reader, client, server net.Conn) (extended bool, err error) {
	pass := func(r io.Reader, to io.Writer, n int) ([]byte, error) {
		if n > maxPayload {
			return nil, fmt.Errorf("%d bytes in a handshake", n)
		}
		p := make([]byte, n)
		if _, err := io.ReadFull(r, p); err != nil {
			return nil, err
		}
		_, err := to.Write(p)
		return p, err
	}
	be := binary.BigEndian
	if _, err := pass(back, client, greetingSize); err != nil {
		return false, err
	}
	flags, err := pass(from, server, 4)
	if err != nil {
		return false, err
	}
	for {
		head, err := pass(from, server, optHead)
		if err != nil {
			return false, err
		}
		opt := be.Uint32(head[8:])
		if _, err := pass(from, server, int(be.Uint32(head[12:]))); err != nil {
			return false, err
		}
		if opt == optExportName {
			n := 10 // size, transmission flags
			if be.Uint32(flags)&flagNoZeroes == 0 {
				n += 124
			}
			_, err := pass(back, client, n)
			return extended, err
		}
		for {
			head, err := pass(back, client, optReplyHead)
			if err != nil {
				return false, err
			}
			if _, err := pass(back, client, int(be.Uint32(head[16:]))); err != nil {
				return false, err
			}
			typ := be.Uint32(head[12:])
			if typ == repAck {
				switch opt {
				case optGo:
					return extended, nil
				case optAbort:
					return false, errNoTransmission
				case optExtended:
					extended = true
				}
			}
			if typ == repAck || typ&repErrorBit != 0 {
				break
			}
		}
	}
}

// header is that of a request.
type header struct {
	cmd, flags  uint16
	cookie      uint64
	off, length int64
}

// readRequest reads one request, whole: its header and all its bytes. An error comes with what of
// it there was.
func readRequest(r io.Reader, extended bool) (h header, raw []byte, err error) {
	be := binary.BigEndian
	size, magic := requestSize, uint32(requestMagic)
	if extended {
		size, magic = extendedRequestSize, extendedRequestMagic
	}
	raw = make([]byte, size)
	if n, err := io.ReadFull(r, raw); err != nil {
		return h, raw[:n], err
	}
	if m := be.Uint32(raw); m != magic {
		return h, raw, fmt.Errorf("a request begins with %#x", m)
	}
	h = header{cmd: be.Uint16(raw[6:]), flags: be.Uint16(raw[4:]), cookie: be.Uint64(raw[8:]), off: int64(be.Uint64(raw[16:]))}
	if extended {
		h.length = int64(be.Uint64(raw[24:]))
	} else {
		h.length = int64(be.Uint32(raw[24:]))
	}
	if h.cmd != cmdWrite {
		return h, raw, nil
	}
	if h.length > maxPayload {
		return h, raw, fmt.Errorf("a write of %d bytes", h.length)
	}
	raw = append(raw, make([]byte, h.length)...)
	n, err := io.ReadFull(r, raw[size:])
	return h, raw[:size+n], err
}

// answer is a reply, or a chunk of one.
type answer struct {
	cookie uint64
	errno  uint32
	done   bool
}

// readAnswer reads a reply, or a chunk of one, whole. length gives how many bytes come with a
// simple reply that is good.
func readAnswer(r io.Reader, length func(cookie uint64) int64) (a answer, raw []byte, err error) {
	be := binary.BigEndian
	raw = make([]byte, simpleSize, structuredSize)
	if n, err := io.ReadFull(r, raw); err != nil {
		return a, raw[:n], err
	}
	a.cookie = be.Uint64(raw[8:])
	var n int64
	switch m := be.Uint32(raw); m {
	case simpleMagic:
		a.errno, a.done = be.Uint32(raw[4:]), true
		if a.errno == 0 {
			n = length(a.cookie)
		}
	case structuredMagic, extendedMagic:
		size := structuredSize
		if m == extendedMagic {
			size = extendedSize
		}
		raw = append(raw, make([]byte, size-len(raw))...)
		if k, err := io.ReadFull(r, raw[simpleSize:]); err != nil {
			return a, raw[:simpleSize+k], err
		}
		a.done = be.Uint16(raw[4:])&replyDone != 0
		if m == extendedMagic {
			n = int64(be.Uint64(raw[24:]))
		} else {
			n = int64(be.Uint32(raw[16:]))
		}
	default:
		return a, raw, fmt.Errorf("an answer begins with %#x", m)
	}
	if n < 0 || n > maxPayload {
		return a, raw, fmt.Errorf("an answer of %d bytes", n)
	}
	at := len(raw)
	raw = append(raw, make([]byte, n)...)
	k, err := io.ReadFull(r, raw[at:])
	if err == nil && at > simpleSize && be.Uint16(raw[6:])&replyErrorBit != 0 && n >= 4 {
		a.errno = be.Uint32(raw[at:])
	}
	return a, raw[:at+k], err
}
