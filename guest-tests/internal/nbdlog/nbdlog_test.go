package nbdlog

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/guest-tests/internal/pattern"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var be = binary.BigEndian

// world is a server, in the test's hands, with a Proxy before it.
type world struct {
	t      *testing.T
	proxy  *Proxy
	log    string
	listen *net.UnixListener
	socket string
	opt    uint32 // what comes before NBD_OPT_GO; 0: nothing
}

func newWorld(t *testing.T, opt uint32) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, opt: opt, socket: filepath.Join(dir, "p"), log: filepath.Join(dir, "log")}
	var err error
	if w.listen, err = net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.listen.Close() })
	if w.proxy, err = Listen(w.socket, filepath.Join(dir, "s"), w.log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.proxy.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// pair is a connection, seen from both ends.
type pair struct {
	*world
	client, server *net.UnixConn
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// exchange has from send p, and to receive it.
func (w *world) exchange(from, to net.Conn, p []byte) {
	w.t.Helper()
	_, err := from.Write(p)
	w.check(err)
	got := make([]byte, len(p))
	_, err = io.ReadFull(to, got)
	w.check(err)
	if string(got) != string(p) {
		w.t.Fatalf("% x came as % x", p, got)
	}
}

func (w *world) connect() *pair {
	w.t.Helper()
	client, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: w.socket, Net: "unix"})
	w.check(err)
	w.t.Cleanup(func() { client.Close() })
	server, err := w.listen.AcceptUnix()
	w.check(err)
	w.t.Cleanup(func() { server.Close() })
	w.exchange(server, client, []byte("NBDMAGICIHAVEOPT\x00\x03"))
	w.exchange(client, server, be.AppendUint32(nil, 3))
	for _, opt := range []uint32{w.opt, optGo} {
		if opt == 0 {
			continue
		}
		data := make([]byte, 6)
		p := be.AppendUint32(be.AppendUint32([]byte("IHAVEOPT"), opt), uint32(len(data)))
		w.exchange(client, server, append(p, data...))
		reply := func(typ uint32, data ...byte) {
			p := be.AppendUint32(be.AppendUint32(be.AppendUint64(nil, 0x3e889045565a9), opt), typ)
			w.exchange(server, client, append(be.AppendUint32(p, uint32(len(data))), data...))
		}
		if opt == optGo {
			reply(3, make([]byte, 12)...) // NBD_REP_INFO
		}
		reply(repAck)
	}
	return &pair{w, client, server}
}

func (p *pair) request(cmd uint16, cookie uint64, off int64, n int, data []byte) []byte {
	b := be.AppendUint32(nil, requestMagic)
	if p.opt == optExtended {
		b = be.AppendUint32(nil, extendedRequestMagic)
	}
	b = be.AppendUint64(be.AppendUint64(be.AppendUint16(be.AppendUint16(b, 0), cmd), cookie), uint64(off))
	if p.opt == optExtended {
		b = be.AppendUint64(b, uint64(n))
	} else {
		b = be.AppendUint32(b, uint32(n))
	}
	return append(b, data...)
}

// write sends a write of the pattern with that seed, which the server gets.
func (p *pair) write(cookie uint64, off int64, seed uint64) {
	p.t.Helper()
	data := make([]byte, 2*pattern.BlockSize)
	pattern.Fill(data, seed, off)
	p.exchange(p.client, p.server, p.request(cmdWrite, cookie, off, len(data), data))
}

// answer has the server answer, and the client get it.
func (p *pair) answer(cookie uint64, errno uint32, data []byte) {
	p.t.Helper()
	b := be.AppendUint32(be.AppendUint32(nil, simpleMagic), errno)
	if p.opt != 0 {
		b = be.AppendUint16(be.AppendUint16(be.AppendUint32(nil, structuredMagic), replyDone), 1)
	}
	b = be.AppendUint64(b, cookie)
	if p.opt != 0 {
		b = be.AppendUint32(b, uint32(len(data)))
	}
	if p.opt == optExtended {
		b = be.AppendUint16(be.AppendUint16(be.AppendUint32(nil, extendedMagic), replyDone), 1)
		b = be.AppendUint64(be.AppendUint64(be.AppendUint64(b, cookie), 0), uint64(len(data)))
	}
	p.exchange(p.server, p.client, append(b, data...))
}

// found gives the one finding, "" where there is none.
func (w *world) found() string {
	w.t.Helper()
	r := w.proxy.Report()
	if len(r.Findings) > 1 {
		w.t.Errorf("findings %q", r.Findings)
	}
	return strings.Join(r.Findings, "; ")
}

// await waits until the report is so.
func (w *world) await(what string, ok func(Report) bool) {
	w.t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(w.proxy.Report()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("%s: %v", what, w.proxy.Report())
		}
	}
}

const v1, v2 = 1 << epochShift, 1<<epochShift + 1

func TestRequestsAndAnswersPassAndAreCounted(t *testing.T) {
	for name, opt := range map[string]uint32{"simple": 0, "structured": optStructured, "extended": optExtended} {
		t.Run(name, func(t *testing.T) {
			p := newWorld(t, opt).connect()
			p.write(1, 4096, v1)
			p.answer(1, 0, nil)
			p.exchange(p.client, p.server, p.request(cmdRead, 2, 4096, 1024, nil))
			p.answer(2, 0, make([]byte, 1024))
			p.exchange(p.client, p.server, p.request(cmdFlush, 3, 0, 0, nil))
			p.answer(3, 0, nil)
			p.exchange(p.client, p.server, p.request(4, 4, 0, 1<<20, nil))
			p.answer(4, 0, nil)
			p.write(5, 4096, v2)
			p.answer(5, 0, nil)
			r := p.proxy.Report()
			if want := (Report{Connections: 1, Reads: 1, Writes: 2, Flushes: 1, Others: 1}); r.String() != want.String() {
				t.Errorf("report %vwant %v", r, want)
			}
			log, err := os.ReadFile(p.log)
			p.check(err)
			for _, step := range []string{"1 Q write 4096+1024 #1 version 0x1000000 ", "1 D write 4096+1024", "1 A read 4096+1024 #2", "1 C flush"} {
				if !strings.Contains(string(log), step) {
					t.Errorf("the log has no %q:\n%s", step, log)
				}
			}
		})
	}
}

func TestAWriteBesideAnotherIsFound(t *testing.T) {
	w := newWorld(t, 0)
	a, b := w.connect(), w.connect()
	a.write(1, 4096, v1)
	b.write(1, 4096+pattern.BlockSize, v2) // the second block of one is the first of the other
	if text := w.found(); !strings.Contains(text, "block 9 is written (version 0x1000001, connection 2) while the server owes") {
		t.Errorf("found %q", text)
	}
}

func TestTheSameWriteOnceMoreIsNoOffence(t *testing.T) {
	w := newWorld(t, 0)
	a, b := w.connect(), w.connect()
	a.write(1, 4096, v1)
	b.write(1, 4096, v1)
	if text := w.found(); text != "" || w.proxy.Report().Repeated != 1 {
		t.Errorf("found %q: %v", text, w.proxy.Report())
	}
}

func TestAnOldWriteAfterANewerOneIsFound(t *testing.T) {
	p := newWorld(t, 0).connect()
	p.write(1, 4096, v2)
	p.answer(1, 0, nil)
	p.write(2, 4096, v1)
	if text := p.found(); !strings.Contains(text, "block 8 is written with version 0x1000000 (connection 1) after version 0x1000001") {
		t.Errorf("found %q", text)
	}
}

func TestAConnectionOwesUntilTheServerHasClosedIt(t *testing.T) {
	w := newWorld(t, 0)
	a := w.connect()
	a.write(1, 4096, v1)
	a.client.Close()
	if _, err := a.server.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the server reads %v", err)
	}
	b := w.connect()
	b.write(1, 4096, v2)
	if text := w.found(); !strings.Contains(text, "owes") {
		t.Errorf("found %q", text)
	}

	w = newWorld(t, 0)
	a = w.connect()
	a.write(1, 4096, v1)
	a.server.Close()
	if _, err := a.client.Read(make([]byte, 1)); err == nil {
		t.Fatal("the client was sent something")
	}
	w.await("the end", func(r Report) bool { return r.Lost == 1 })
	w.connect().write(1, 4096, v2)
	if text := w.found(); text != "" {
		t.Errorf("found %q", text)
	}
}

func TestJournalsHaveVersions(t *testing.T) {
	journal := func(epoch uint64, acked ...uint64) []byte {
		p := make([]byte, pattern.BlockSize)
		le := binary.LittleEndian
		le.PutUint64(p, journalMagic)
		le.PutUint64(p[8:], epoch)
		le.PutUint64(p[16:], uint64(len(acked)))
		for i, v := range acked {
			le.PutUint64(p[journalHead+8*i:], v)
		}
		return p
	}
	ascending := [][]byte{journal(1, 0, 0), journal(1, v1, 0), journal(1, v1, v1), journal(1, v1, v2), journal(2, v1, v2)}
	for i, p := range ascending[1:] {
		if a, b := version(ascending[i], 0), version(p, 0); a >= b {
			t.Errorf("journal %d is of version %#x, and %d of %#x", i, a, i+1, b)
		}
	}
	other := make([]byte, pattern.BlockSize)
	if pattern.Fill(other, 99, 512); version(other, 512) != 0 || version(make([]byte, pattern.BlockSize), 0) != 0 {
		t.Error("what is no load's has a version")
	}
}

func TestWhatIsSentWhileQuietIsFoundThoughItIsReadLater(t *testing.T) {
	w := newWorld(t, 0)
	p := w.connect()
	w.proxy.Quiet()
	p.exchange(p.client, p.server, p.request(cmdDisc, 1, 0, 0, nil))
	w.proxy.Wake()
	p.write(2, 4096, v1)
	p.answer(2, 0, nil)
	w.proxy.Quiet()
	if text := w.found(); text != "" {
		t.Fatalf("found %q", text)
	}
	p.write(3, 4096, v2)
	w.proxy.Wake()
	if text := w.found(); !strings.Contains(text, "#3 version 0x1000001") || !strings.Contains(text, "all rings had stopped") {
		t.Errorf("found %q", text)
	}

	// Sent before, read after.
	w = newWorld(t, 0)
	p = w.connect()
	s := w.proxy.conns[0].from
	s.mu.Lock()
	data := make([]byte, 100<<10)
	_, err := p.client.Write(p.request(cmdWrite, 1, 0, len(data), data))
	w.check(err)
	if n := s.sentLocked() - s.got; n < 100<<10 {
		t.Errorf("%d bytes wait to be read", n)
	}
	s.mu.Unlock()
}

func TestTheLineCanBeStoppedHeldAndCut(t *testing.T) {
	w := newWorld(t, 0)
	p := w.connect()
	w.proxy.Hold()
	_, err := p.client.Write(p.request(cmdFlush, 1, 0, 0, nil))
	w.check(err)
	w.await("held", func(r Report) bool { return r.Flushes == 1 })
	q := w.connect() // new connections pass
	q.exchange(q.client, q.server, q.request(cmdFlush, 1, 0, 0, nil))
	q.answer(1, 0, nil)
	nothing := func(c *net.UnixConn) {
		t.Helper()
		w.check(c.SetReadDeadline(time.Now().Add(10 * time.Millisecond)))
		if n, err := c.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read %d bytes, %v", n, err)
		}
		w.check(c.SetReadDeadline(time.Time{}))
	}
	nothing(p.server)
	w.proxy.Go()
	_, err = io.ReadFull(p.server, make([]byte, requestSize))
	w.check(err)

	w.proxy.Stop()
	_, err = p.server.Write(be.AppendUint64(be.AppendUint64(nil, simpleMagic<<32), 1))
	w.check(err)
	nothing(p.client)
	w.proxy.Go()
	_, err = io.ReadFull(p.client, make([]byte, simpleSize))
	w.check(err)

	// The server has more to do.
	p.write(2, 4096, v1)
	w.proxy.Cut()
	if _, err := p.server.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the server reads %v", err)
	}
	nothing(p.client)
	p.server.Close()
	if _, err := p.client.Read(make([]byte, 1)); err == nil {
		t.Error("the client was sent something")
	}
}
