package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
)

// script is a connection whose server says the same whatever it is told, and then hangs up.
type script struct {
	net.Conn // nil

	mu   sync.Mutex
	say  *bytes.Reader
	step int // bytes at a time
	gone chan struct{}
	once sync.Once
}

func (s *script) Read(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.say.Read(p[:min(len(p), s.step)])
}

func (s *script) Write(p []byte) (int, error) {
	select {
	case <-s.gone:
		return 0, os.ErrClosed
	default:
		return len(p), nil
	}
}

func (s *script) Close() error                     { s.once.Do(func() { close(s.gone) }); return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// FuzzReplies has a client of each kind read what a server may say. It must touch nothing but the memory of the reads, end every
// transfer once, and come to an end itself.
func FuzzReplies(f *testing.F) {
	const first = 1 // cookie
	for _, tt := range replies {
		for _, mode := range tt.modes {
			c := &fakeConn{exp: &export{structured: mode == structuredMode, extended: mode == extendedMode}}
			var all []byte
			for _, p := range tt.say(c, fakeRequest{cookie: first, off: readAt, n: readSize}) {
				all = append(all, p...)
			}
			f.Add(byte(mode), uint16(7000), true, all)
		}
	}
	f.Fuzz(func(t *testing.T, mode byte, step uint16, plain bool, say []byte) {
		s := &script{say: bytes.NewReader(say), step: int(step) + 1, gone: make(chan struct{})}
		l := &link{nc: s, raw: s, plain: plain}
		l.exp = export{size: testSize, flags: hasFlags, minBlock: 1, maxBlock: 1 << 20}
		switch mode % 3 {
		case structuredMode:
			l.exp.structured = true
		case extendedMode:
			l.exp.extended = true
		}
		cl := newClient(&Config{Server: nobody{}}, func(context.Context) (*link, error) { return nil, syscall.ECONNREFUSED }, func(error) {})
		c := cl.attach(l)

		read, intact := guarded(readSize)
		write := pattern(20<<10, 2)
		ends := make(chan *devsw.Buf, 8)
		iodone := func(b *devsw.Buf) { ends <- b }
		exp := l.exp
		cl.transfer(&devsw.Buf{Op: devsw.BRead, Data: read, Bcount: readSize, Iodone: iodone}, readAt, readSize, &exp)
		cl.transfer(&devsw.Buf{Op: devsw.BWrite, Data: [][]byte{write}, Bcount: int64(len(write)), Iodone: iodone}, 0, int64(len(write)), &exp)
		cl.mu.Lock()
		for _, r := range append(requests{}, c.queue...) {
			c.queue = c.queue[1:]
			c.issueLocked(r)
		}
		cl.unlock(nil)
		c.serve()
		cl.lost(c)
		cl.giveUp()
		cl.leave()
		<-cl.done
		for range 2 {
			if b := <-ends; b.Error == 0 && b.Resid != 0 {
				t.Errorf("a transfer ends well with %d bytes left", b.Resid)
			}
		}
		if len(ends) != 0 {
			t.Error("a transfer has ended twice")
		}
		if !intact() {
			t.Error("memory beside the read's was touched")
		}
		if !bytes.Equal(write, pattern(20<<10, 2)) {
			t.Error("a write's memory was changed")
		}
		if cl.orphans != 0 || len(c.flight) != 0 {
			t.Errorf("%d orphans and %d requests are left", cl.orphans, len(c.flight))
		}
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
		s := &script{say: bytes.NewReader(say), step: 1 << 16, gone: make(chan struct{})}
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
