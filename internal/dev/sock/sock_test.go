package sock

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/sys"
	"vdev/specfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	rw = devsw.FREAD | devsw.FWRITE
	nb = rw | devsw.FNONBLOCK
)

// rig is a line that is open, and a socket of it.
type rig struct {
	testing.TB
	line *line.Line
	node *specfs.Node
	sock *Socket

	mu     sync.Mutex
	logged []error
}

func newRig(t testing.TB, lc line.Config, sc Config) *rig {
	t.Helper()
	r := &rig{TB: t, line: line.New(lc)}
	table := devsw.NewTable()
	d, err := line.Attach(table, "line", devsw.NODEVMAJOR)
	must(t, err)
	dev, err := d.Create(0, r.line)
	must(t, err)
	r.node = specfs.New(table).Node(devsw.IFCHR, dev)
	must(t, r.node.Open(t.Context(), rw))
	if sc.Log == nil {
		sc.Log = func(err error) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.logged = append(r.logged, err)
		}
	}
	r.sock, err = New(r.line, sc)
	must(t, err)
	t.Cleanup(func() {
		r.sock.Close()
		must(t, r.node.Close(rw))
		must(t, d.Detach())
		must(t, r.line.Wait(context.Background()))
	})
	return r
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// on has a test for each kind of socket.
func on(t *testing.T, f func(t *testing.T, sc Config)) {
	t.Run("unix", func(t *testing.T) {
		f(t, Config{Network: "unix", Address: filepath.Join(t.TempDir(), "s"), Watchers: 1})
	})
	t.Run("tcp", func(t *testing.T) { f(t, Config{Network: "tcp", Address: "127.0.0.1:0", Watchers: 1}) })
}

// dial connects to the socket.
func (r *rig) dial() net.Conn {
	r.Helper()
	a := r.sock.Addr()
	c, err := net.Dial(a.Network(), a.String())
	must(r, err)
	r.Cleanup(func() { c.Close() })
	return c
}

// until waits until ok says so of the line's status.
func (r *rig) until(ok func(line.Status) bool) {
	r.Helper()
	look := make(chan struct{}, 1)
	kn := &devsw.Knote{Filter: devsw.EVFILTLine, Activate: func(int64) {
		select {
		case look <- struct{}{}:
		default:
		}
	}}
	must(r, r.node.Kqfilter(kn))
	defer kn.Detach()
	for !ok(r.line.Status()) {
		<-look
	}
}

// attached waits until so many ends are there.
func (r *rig) attached(n int) {
	r.Helper()
	r.until(func(s line.Status) bool { return len(s.Ends) == n })
}

func (r *rig) write(s string) {
	r.Helper()
	must(r, r.node.Write(devsw.NewUio(devsw.UIOWrite, []byte(s)), rw))
}

// read reads n bytes.
func (r *rig) read(n int) string {
	r.Helper()
	u := devsw.NewUio(devsw.UIORead, make([]byte, n))
	p := u.Iov[0]
	for u.Resid > 0 {
		must(r, r.node.Read(u, rw))
	}
	return string(p)
}

func expect(t testing.TB, c io.Reader, want string) {
	t.Helper()
	p := make([]byte, len(want))
	n, err := io.ReadFull(c, p)
	if string(p[:n]) != want {
		t.Fatalf("got %q (%v), want %q", p[:n], err, want)
	}
}

func send(t testing.TB, c net.Conn, s string) {
	t.Helper()
	_, err := c.Write([]byte(s))
	must(t, err)
}

func TestTheFirstClientWritesAndOthersWatch(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{}, sc)
		r.write("before ")
		a := r.dial()
		expect(t, a, "before ")
		b := r.dial()
		expect(t, b, "before ")
		send(t, b, strings.Repeat("nobody reads this", 1000))
		send(t, a, "hello")
		if got := r.read(5); got != "hello" {
			t.Errorf("the guest reads %q", got)
		}
		r.write("live")
		expect(t, a, "live")
		expect(t, b, "live")
		c := r.dial()
		if n, err := c.Read(make([]byte, 1)); err == nil {
			t.Errorf("one more than may watch gets %d bytes", n)
		}

		a.Close()
		r.attached(1)
		d := r.dial()
		expect(t, d, "before live")
		send(t, d, "next")
		if got := r.read(4); got != "next" {
			t.Errorf("the guest reads %q", got)
		}
		if e := r.line.Status().Ends; len(e) != 2 || e[0].Role != line.Watcher || e[1].Role != line.Main {
			t.Errorf("ends: %+v", e)
		}
	})
}

func TestWhatAClientHasSentIsReadWhenItHasGone(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Overflow: line.Wait}, sc)
		a := r.dial()
		send(t, a, "first ")
		a.Close()
		r.until(func(s line.Status) bool { return len(s.Ends) == 1 && s.Ends[0].Hungup })
		if e := r.node.Poll(devsw.POLLIN, nil); e != devsw.POLLIN|devsw.POLLHUP {
			t.Errorf("poll: %#x", e)
		}
		b := r.dial()
		r.until(func(s line.Status) bool { return len(s.Ends) == 2 })
		send(t, b, "second")
		r.write("to the second")
		expect(t, b, "to the second")
		if got := r.read(12); got != "first second" {
			t.Errorf("the guest reads %q", got)
		}
		r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), nb) // finds the end of the first
		r.attached(1)
	})
}

// TestAClientThatHasNoMoreToSayGoesOnReceiving: as far as that can be told from one that has gone.
func TestAClientThatHasNoMoreToSayGoesOnReceiving(t *testing.T) {
	r := newRig(t, line.Config{Overflow: line.Wait}, Config{Network: "unix", Address: filepath.Join(t.TempDir(), "s")})
	a := r.dial().(*net.UnixConn)
	send(t, a, "question")
	must(t, a.CloseWrite())
	if got := r.read(8); got != "question" {
		t.Errorf("the guest reads %q", got)
	}
	if err := r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), nb); !errors.Is(err, devsw.EAGAIN) {
		t.Errorf("a read at the end: %v", err)
	}
	r.write("answer")
	expect(t, a, "answer")
	a.Close()
	r.attached(0)
}

// TestAClientThatDoesNotReceiveGoesOnSending: the first byte for it must not end its input.
func TestAClientThatDoesNotReceiveGoesOnSending(t *testing.T) {
	r := newRig(t, line.Config{}, Config{Network: "unix", Address: filepath.Join(t.TempDir(), "s")})
	a := r.dial().(*net.UnixConn)
	must(t, a.CloseRead())
	send(t, a, "one ")
	if got := r.read(4); got != "one " {
		t.Errorf("the guest reads %q", got)
	}
	r.write("for nobody")
	r.until(func(s line.Status) bool { return len(s.Ends) == 0 || s.Ends[0].Hungup })
	if _, err := a.Write([]byte("two")); err != nil {
		t.Fatalf("it was cut off: %v", err)
	}
	if got := r.read(3); got != "two" {
		t.Errorf("the guest reads %q", got)
	}
	a.Close()
	r.attached(0)
}

// TestWhatCameBeforeAResetIsRead: over TCP a client that ends may be seen as a reset.
func TestWhatCameBeforeAResetIsRead(t *testing.T) {
	r := newRig(t, line.Config{Overflow: line.Wait}, Config{Network: "tcp", Address: "127.0.0.1:0"})
	for range 100 {
		a := r.dial().(*net.TCPConn)
		r.until(func(s line.Status) bool { return len(s.Ends) > 0 && !s.Ends[len(s.Ends)-1].Hungup })
		send(t, a, "before")
		must(t, a.SetLinger(0))
		a.Close()
		if got := r.read(6); got != "before" {
			t.Fatalf("the guest reads %q", got)
		}
		r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), nb)
		r.attached(0)
	}
}

func TestBytesWaitForTheNextClient(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		const total = 32 << 20
		r := newRig(t, line.Config{Overflow: line.Wait, Scrollback: 100_000}, sc)
		want := make([]byte, total)
		for i := range want {
			want[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
		}
		wrote := make(chan error)
		go func() { wrote <- r.node.Write(devsw.NewUio(devsw.UIOWrite, bytes.Clone(want)), rw) }()
		a := r.dial()
		got := make([]byte, total)
		_, err := io.ReadFull(a, got[:total/3])
		must(t, err)
		// It stops reading, and goes when the line is full: what the kernel has taken for it is
		// gone with it, and nothing else.
		stalled(r)
		r.sock.mu.Lock()
		first := r.sock.writer
		r.sock.mu.Unlock()
		a.Close()
		<-first.Done()
		st := r.line.Status()
		n := int(st.Written) - st.Waiting
		b := r.dial()
		_, err = io.ReadFull(b, got[n:])
		must(t, err)
		must(t, <-wrote)
		if !bytes.Equal(got[n:], want[n:]) {
			t.Error("the next client gets something else")
		}
		if s := r.line.Status(); s.Dropped != 0 || s.Written != total {
			t.Errorf("status %+v", s)
		}
	})
}

// TestOutputIsInOrder, whether the line keeps it or gives it to the client directly: writes of many
// sizes, and a client that reads now slowly, now fast.
func TestOutputIsInOrder(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		const total = 64 << 20
		r := newRig(t, line.Config{Overflow: line.Wait, Scrollback: 200_000}, sc)
		c := r.dial()
		r.attached(1)
		rnd := rand.New(rand.NewPCG(15, 15))
		want := make([]byte, total)
		for i := range want {
			want[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16)
		}
		wrote := make(chan error, 1)
		go func() {
			for p := want; len(p) > 0; {
				u := devsw.NewUio(devsw.UIOWrite, p[:min(len(p), 1+rnd.IntN(1<<(1+rnd.IntN(20))))])
				n := u.Resid
				if err := r.node.Write(u, rw); err != nil {
					wrote <- err
					return
				}
				p = p[n:]
			}
			wrote <- nil
		}()
		got := make([]byte, total)
		for n, piece := 0, 1; n < total; {
			k, err := c.Read(got[n:min(total, n+piece)])
			must(t, err)
			n += k
			if piece *= 2; piece > 1<<20 {
				piece = 1000
				runtime.Gosched()
			}
		}
		must(t, <-wrote)
		if !bytes.Equal(got, want) {
			t.Error("it is something else")
		}
		must(t, r.line.Drain(t.Context()))
		if s := r.line.Status(); s.Written != total || s.Kept != 0 || s.Ends[0].Sent != total {
			t.Errorf("status %+v", s)
		}
	})
}

// TestOutputWhoseMemoryVanishesIsEFAULT, also where it is large enough to be given directly.
func TestOutputWhoseMemoryVanishesIsEFAULT(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Overflow: line.Wait}, sc)
		c := r.dial()
		r.attached(1)
		f, err := os.Create(filepath.Join(t.TempDir(), "gone"))
		must(t, err)
		defer f.Close()
		gone, err := sys.Mmap(int(f.Fd()), 0, 64<<10, true)
		must(t, err)
		defer sys.Munmap(gone)
		u := devsw.NewUio(devsw.UIOWrite, []byte("before"), gone)
		for err == nil {
			err = r.node.Write(u, nb) // the first one may have moved what can be moved
		}
		if err != devsw.EFAULT || u.Resid != len(gone) {
			t.Errorf("%d bytes are left, %v", u.Resid, err)
		}
		r.write(" and now")
		expect(t, c, "before and now")
	})
}

// stalled waits until the line is full.
func stalled(r *rig) {
	for r.node.Poll(devsw.POLLOUT, nil)&devsw.POLLOUT != 0 {
	}
}

func TestAClientThatStopsReadingStopsNobody(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Scrollback: 1 << 20}, sc)
		stuck := r.dial()
		r.attached(1)
		watcher := r.dial()
		r.attached(2)
		block := strings.Repeat("0123456789abcdef", 4096)
		for range 256 {
			r.write(block)
			expect(t, watcher, block)
		}
		s := r.line.Status()
		if s.Ends[0].Lost == 0 || s.Ends[1].Lost != 0 || s.Dropped != 0 {
			t.Errorf("status %+v", s)
		}
		stuck.Close()
		r.attached(1)
	})
}

func TestAThousandClientsComeAndGo(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		ln, err := net.Listen("tcp", "127.0.0.1:0") // has Go take what it takes once
		must(t, err)
		ln.Close()
		before := descriptors(t)
		r := newRig(t, line.Config{Scrollback: 8 << 10}, sc)
		r.write(strings.Repeat("x", 8<<10))
		for i := range 1000 {
			c := r.dial()
			switch i % 5 {
			case 0: // goes at once
			case 1:
				// A host that is busy may tell of it before it tells that the last one has gone.
				p := make([]byte, 4)
				if _, err := io.ReadFull(c, p); sc.Network == "unix" && string(p) != "xxxx" {
					t.Fatalf("got %q, %v", p, err)
				}
			case 2:
				send(t, c, "unread")
			case 3:
				send(t, c, "half")
				c.(interface{ CloseWrite() error }).CloseWrite()
			case 4:
				send(t, c, "read")
				r.node.Read(devsw.NewUio(devsw.UIORead, make([]byte, 3)), nb)
			}
			c.Close()
		}
		// They are accepted in order: when the last one is there, all were.
		last := r.dial()
		send(t, last, "last")
		for got := ""; !strings.Contains(got, "last"); {
			u := devsw.NewUio(devsw.UIORead, make([]byte, 64))
			p := u.Iov[0]
			must(t, r.node.Read(u, rw))
			got += string(p[:64-u.Resid])
		}
		last.Close()
		r.sock.Close()
		r.attached(0)
		r.line.Close()
		must(t, r.line.Wait(context.Background()))
		for descriptors(t) > before { // what waits for all of them ends of itself
			runtime.Gosched()
		}
		for _, err := range r.logged {
			if sc.Network == "unix" || !errors.Is(err, errFull) {
				t.Errorf("logged: %v", err)
			}
		}
	})
}

// descriptors counts the sockets that are open here.
func descriptors(t *testing.T) (n int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && (strings.HasPrefix(to, "socket:") || strings.Contains(to, "event")) {
			n++
		}
	}
	return n
}

// TestAClientThatGoesAtOnceIsGone: also where that is told before the line knows it, and though
// nobody reads or writes.
func TestAClientThatGoesAtOnceIsGone(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Overflow: line.Wait}, sc)
		for i := range 300 {
			r.dial().Close()
			for gone := false; !gone; runtime.Gosched() {
				r.sock.mu.Lock()
				gone = r.sock.number == i+1 && len(r.sock.clients) == 0
				r.sock.mu.Unlock()
			}
		}
	})
}

// TestAClientThatComesWhileTheSocketClosesDoesNotStay: Close did not find it on the line.
func TestAClientThatComesWhileTheSocketClosesDoesNotStay(t *testing.T) {
	r := newRig(t, line.Config{}, Config{Network: "unix", Address: filepath.Join(t.TempDir(), "s")})
	a, b, err := sys.SocketPair()
	must(t, err)
	defer b.Close()
	r.sock.quit()
	r.sock.places <- struct{}{}
	r.sock.attach(a)
	if n := len(r.line.Status().Ends); n != 0 {
		t.Errorf("%d ends are there", n)
	}
}

func TestClosingWaitsForNoClient(t *testing.T) {
	on(t, func(t *testing.T, sc Config) {
		r := newRig(t, line.Config{Overflow: line.Wait}, sc)
		r.dial()
		r.attached(1)
		for {
			if err := r.node.Write(devsw.NewUio(devsw.UIOWrite, make([]byte, 1<<20)), nb); errors.Is(err, devsw.EAGAIN) {
				if r.line.Status().Ends[0].Sent > 0 {
					break
				}
			}
		}
		ended := make(chan error)
		go func() { ended <- r.node.Write(devsw.NewUio(devsw.UIOWrite, make([]byte, 32<<20)), rw) }()
		r.sock.Close()
		r.line.Close()
		must(t, r.line.Wait(context.Background()))
		if err := <-ended; !errors.Is(err, devsw.ENXIO) {
			t.Errorf("a write that waits ends with %v", err)
		}
	})
}

func TestTheNameIsRemovedIfItIsStillOurs(t *testing.T) {
	sc := Config{Network: "unix", Address: filepath.Join(t.TempDir(), "s")}
	t.Run("used", func(t *testing.T) {
		newRig(t, line.Config{}, sc)
		l := line.New(line.Config{})
		if _, err := New(l, sc); !errors.Is(err, sys.ErrInUse) || !strings.Contains(err.Error(), sc.Address) {
			t.Errorf("listening on it again: %v", err)
		}
	})
	if _, err := os.Lstat(sc.Address); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("afterwards: %v", err)
	}
	must(t, os.WriteFile(sc.Address, []byte("precious"), 0o600))
	if _, err := New(line.New(line.Config{}), sc); err == nil {
		t.Error("it listens where a file is")
	}
	if p, err := os.ReadFile(sc.Address); string(p) != "precious" {
		t.Errorf("the file is %q, %v", p, err)
	}
	if _, err := New(line.New(line.Config{}), Config{Network: "tcp", Address: "127.0.0.1:nowhere"}); err == nil {
		t.Error("it listens on no port")
	}
}

func TestItConnectsAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	r := newRig(t, line.Config{Overflow: line.Wait}, Config{Network: "unix", Address: path, Connect: true})
	r.write("one")
	for _, what := range []string{"one", "two"} {
		ln, err := net.Listen("unix", path)
		must(t, err)
		c, err := ln.Accept()
		must(t, err)
		expect(t, c, what)
		send(t, c, "in "+what)
		if got := r.read(6); got != "in "+what {
			t.Errorf("the guest reads %q", got)
		}
		ln.Close()
		c.Close()
		r.attached(0)
		r.write("two")
	}
}
