package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
)

// script is a connection whose server says the same whatever it is told, and then hangs up.
type script struct {
	net.Conn // nil

	say    bytes.Reader
	step   int    // bytes at a time
	told   []byte // what has been written
	broken bool   // the next write gets half of its way, and no further
	closed bool
}

func (s *script) Read(p []byte) (int, error) { return s.say.Read(p[:min(len(p), s.step)]) }

func (s *script) Write(p []byte) (int, error) {
	switch {
	case s.closed:
		return 0, os.ErrClosed
	case s.broken:
		p = p[:len(p)/2]
		s.told = append(s.told, p...)
		return len(p), syscall.EPIPE
	}
	s.told = append(s.told, p...)
	return len(p), nil
}

func (s *script) Close() error                     { s.closed = true; return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// checkTold fails unless what was written is a sequence of requests, the last of which may be cut
// off, and of write's payload.
func (s *script) checkTold(t *testing.T, extended bool, write []byte) {
	t.Helper()
	be := binary.BigEndian
	size, magic := requestSize, uint32(requestMagic)
	if extended {
		size, magic = extendedRequestSize, extendedRequestMagic
	}
	for p := s.told; len(p) >= size; {
		cmd, off, n := be.Uint16(p[6:]), be.Uint64(p[16:]), uint64(be.Uint32(p[24:]))
		if extended {
			n = be.Uint64(p[24:])
		}
		if be.Uint32(p) != magic || cmd > cmdWriteZeroes || off > testSize || n > testSize {
			t.Fatalf("the server was told % x", p[:size])
		}
		p = p[size:]
		if cmd != cmdWrite {
			continue
		}
		here := min(n, uint64(len(p)))
		if off+n > uint64(len(write)) || !bytes.Equal(p[:here], write[off:off+here]) {
			t.Fatalf("the server was told to write something else at %d", off)
		}
		p = p[here:]
	}
}

// Where the fuzzer's bytes stand for what a server says, a byte below packedRun is followed by as
// many as it says, and packedRun by three that say how many bytes of payload come, whatever they
// are. So an input has no more bytes than there is something about.
const packedRun = 0x80

// maxSaid is how many bytes a server says at most.
const maxSaid = 256 << 10

// payloads is what payloads are of.
var payloads = pattern(maxSaid, 3)

// packed packs what a server says. What is part of wanted in it, from a whole block on, is payload.
func packed(say []byte) (p []byte) {
	const window, block = 64, 4096
	raw := 0
	flush := func(to int) {
		for raw < to {
			n := min(to-raw, packedRun-1)
			p = append(append(p, byte(n)), say[raw:raw+n]...)
			raw += n
		}
	}
	for at := 0; at+window <= len(say); at++ {
		for i := 0; i < len(wanted); i += block {
			if !bytes.Equal(say[at:at+window], wanted[i:i+window]) {
				continue
			}
			n := window
			for at+n < len(say) && i+n < len(wanted) && say[at+n] == wanted[i+n] {
				n++
			}
			flush(at)
			p = append(p, packedRun, byte(n>>16), byte(n>>8), byte(n))
			at += n - 1
			raw = at + 1
			break
		}
	}
	flush(len(say))
	return p
}

// unpacked adds what was packed to say.
func unpacked(say, p []byte) []byte {
	for len(p) > 0 && len(say) < maxSaid {
		n := int(p[0])
		p = p[1:]
		if n < packedRun {
			n = min(n, len(p))
			say = append(say, p[:n]...)
			p = p[n:]
			continue
		}
		if len(p) < 3 {
			break
		}
		n = min(int(p[0])<<16|int(p[1])<<8|int(p[2]), maxSaid-len(say))
		say = append(say, payloads[:n]...)
		p = p[3:]
	}
	return say
}

// What FuzzReplies does with a connection while the server speaks.
const (
	fuzzSend = iota
	fuzzReceive
	fuzzCancelRead
	fuzzCancelWrite
	fuzzBreak
	fuzzSteps
)

// FuzzReplies has a client of each kind read what a server may say. It must touch nothing but the
// memory of the reads, send nothing but requests, end each of them once, and come to an end itself.
// One goroutine does what sender and receiver do otherwise, in an order that is as the fuzzer says:
// an execution is always the same.
func FuzzReplies(f *testing.F) {
	const first = 1 // cookie
	for _, tt := range replies {
		for _, mode := range tt.modes {
			c := &fakeConn{exp: &export{structured: mode == structuredMode, extended: mode == extendedMode}}
			var all []byte
			for _, p := range tt.say(c, fakeRequest{cookie: first, off: readAt, n: readSize}) {
				all = append(all, p...)
			}
			all = packed(all)
			f.Add(byte(mode), uint16(7000), []byte{fuzzSend}, all)
			rest := packed(bytes.Join([][]byte{c.ok(first + 1), c.ok(first + 3), c.ok(first + 2)}, nil))
			f.Add(byte(mode)|8, uint16(65535), []byte{fuzzSend}, slices.Concat(rest, all))
			f.Add(byte(mode), uint16(65535), []byte{fuzzSend, fuzzReceive, fuzzCancelRead, fuzzCancelWrite}, slices.Concat(all, rest))
		}
	}
	f.Add(byte(4), uint16(100), []byte{fuzzBreak, fuzzSend}, packed(simpleReply(first, 5)))
	f.Add(byte(4), uint16(100), []byte{fuzzSend, fuzzCancelWrite}, packed(simpleReply(first+1, eShutdown)))

	read, intact := guarded(readSize)
	unread := bytes.Repeat(pattern(64, 4), readSize/64)
	pristine := pattern(20<<10, 2)
	write := bytes.Clone(pristine)
	out, in := make([]byte, 0, bufferSize), make([]byte, bufferSize)
	s := new(script)
	var said []byte
	f.Fuzz(func(t *testing.T, mode byte, step uint16, plan, say []byte) {
		*s = script{step: int(step) + 1, told: s.told[:0]}
		said = unpacked(said[:0], say)
		s.say.Reset(said)
		l := &link{nc: s, raw: s, plain: mode&8 == 0}
		l.exp = export{size: testSize, flags: hasFlags | sendFlush | sendWriteZeroes, minBlock: 1, maxBlock: 1 << 20}
		if mode&4 != 0 {
			l.exp.maxBlock = 32 << 10 // several requests for one read
		}
		switch mode & 3 {
		case structuredMode:
			l.exp.structured = true
		case extendedMode:
			l.exp.extended = true
		}
		nowhere := func(context.Context) (*link, error) { return nil, syscall.ECONNREFUSED }
		cl := newClient(&Config{Server: nobody{}, KillAfter: time.Hour}, nowhere, func(error) {})
		c := newConn(cl, l, out, in)
		cl.use(c)

		for _, d := range read {
			copy(d, unread)
		}
		ends := 0
		iodone := func(b *devsw.Buf) {
			ends++
			if b.Error == 0 && b.Resid != 0 {
				t.Errorf("a transfer ends well with %d bytes left", b.Resid)
			}
			if b.Error == 0 && b.Op == devsw.BRead && slices.ContainsFunc(read, func(d []byte) bool { return bytes.Contains(d, unread[:64]) }) {
				t.Error("a read ends well with bytes that the server has not said")
			}
		}
		r := &devsw.Buf{Op: devsw.BRead, Data: read, Bcount: readSize, Iodone: iodone}
		w := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{write}, Bcount: int64(len(write)), Iodone: iodone}
		cl.transfer(r, readAt, readSize, &l.exp)
		cl.transfer(w, 0, int64(len(write)), &l.exp)
		told := make(chan devsw.Errno, 4)
		cl.mu.Lock()
		for _, cmd := range []uint16{cmdFlush, cmdWriteZeroes} {
			q := cl.newLocked()
			q.cmd, q.total, q.wait = cmd, 4096, told
			cl.enqueueLocked(q)
		}
		cl.unlock(nil)

		send := func() {
			cl.mu.Lock()
			c.sendLocked(false)
			cl.unlock(nil)
		}
		var err error
		for _, p := range plan[:min(len(plan), 32)] {
			switch p % fuzzSteps {
			case fuzzSend:
				send()
			case fuzzReceive:
				err = c.step()
			case fuzzCancelRead:
				cl.cancelBuf(r)
			case fuzzCancelWrite:
				cl.cancelBuf(w)
			case fuzzBreak:
				s.broken = true
			}
			if err != nil {
				break
			}
		}
		for send(); err == nil; send() {
			err = c.step()
		}
		c.over(err)
		cl.lost(c)
		cl.giveUp()
		cl.leave()
		<-cl.done

		if ends != 2 || len(told) != 2 {
			t.Errorf("of 2 transfers %d have ended, and of 2 others %d", ends, len(told))
		}
		if !intact() {
			t.Error("memory beside the read's was touched")
		}
		if !bytes.Equal(write, pristine) {
			t.Error("a write's memory was changed")
		}
		if cl.orphans != 0 || len(c.flight) != 0 || len(cl.conns) != 0 {
			t.Errorf("%d orphans, %d requests and %d connections are left", cl.orphans, len(c.flight), len(cl.conns))
		}
		if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.EPROTO) {
			t.Errorf("the connection ends by %v", err)
		}
		for i, q := range cl.free {
			if slices.Contains(cl.free[:i], q) {
				t.Error("a request was given back twice")
			}
		}
		s.checkTold(t, l.exp.extended, pristine)
	})
}

// FuzzHandshake has a client shake hands with whatever a server may say.
func FuzzHandshake(f *testing.F) {
	for mode := range 3 {
		for _, noGo := range []bool{false, true} {
			server, client := net.Pipe()
			fake := &fake{t: f, noGo: noGo}
			fake.exp = export{size: testSize, flags: hasFlags, minBlock: 1, prefBlock: 4096, maxBlock: 1 << 20, structured: mode == 1, extended: mode == 2}
			go func() {
				_ = fake.shake(server)
				server.Close()
			}()
			said := &recorder{Conn: client}
			if _, err := negotiate(context.Background(), said, &target{export: "x"}); err != nil {
				f.Fatal(err)
			}
			client.Close()
			f.Add(said.said.Bytes())
		}
	}
	f.Fuzz(func(t *testing.T, say []byte) {
		s := &script{step: 1 << 16}
		s.say.Reset(say)
		l, err := negotiate(context.Background(), s, &target{export: "x"})
		if err != nil {
			if devsw.ToErrno(err) == 0 || errors.Is(err, io.ErrNoProgress) {
				t.Errorf("error %v", err)
			}
			return
		}
		e := l.exp
		if e.size < 0 || e.minBlock < 1 || e.minBlock&(e.minBlock-1) != 0 || e.maxBlock < e.minBlock || e.maxBlock%e.minBlock != 0 || e.structured && e.extended {
			t.Errorf("the export is %+v", e)
		}
	})
}

// recorder keeps what is read.
type recorder struct {
	net.Conn
	said bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.said.Write(p[:n])
	return n, err
}
