package nbd

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/test/halt"
)

// qemuNBD starts a qemu-nbd that serves a raw image.
func qemuNBD(t testing.TB, program []string, sock, img string) *server {
	t.Helper()
	return start(t, sock, program[0], append(program[1:], "--socket="+sock, "--format=raw", "--persistent", "--shared=8", img)...)
}

// image makes a file of testSize bytes.
func image(t testing.TB) string {
	t.Helper()
	img := filepath.Join(t.TempDir(), "img")
	if err := os.WriteFile(img, make([]byte, testSize), 0o600); err != nil {
		t.Fatal(err)
	}
	return img
}

func (s *server) halt() {
	s.t.Helper()
	halt.Process(s.t, s.cmd.Process.Pid)
}

func (s *server) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Error(err)
	}
}

// sluggish are servers that stop answering for a while, or take their time.
func sluggish(t *testing.T) map[string]func(t *testing.T) (s *server, hold, release func()) {
	stopped := func(s *server) (*server, func(), func()) {
		return s, s.halt, func() { s.signal(syscall.SIGCONT) }
	}
	all := map[string]func(t *testing.T) (*server, func(), func()){
		"nbdkit stopped": func(t *testing.T) (*server, func(), func()) { return stopped(nbdkit(t, "memory", "size=1M")) },
		"nbdkit paused": func(t *testing.T) (*server, func(), func()) {
			control := filepath.Join(t.TempDir(), "control")
			s := nbdkit(t, "--filter=pause", "memory", "size=1M", "pause-control="+control)
			say := func(word string) {
				c, err := net.Dial("unix", control)
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				_, _ = c.Write([]byte(word))
				_, _ = c.Read(make([]byte, 1)) // until it is so
			}
			return s, func() { say("p") }, func() { say("r") }
		},
		"nbdkit at a low rate": func(t *testing.T) (*server, func(), func()) {
			return nbdkit(t, "--filter=rate", "memory", "size=1M", "rate=16M"), func() {}, func() {}
		},
	}
	for name, program := range qemuNBDs() {
		all["qemu-nbd "+name+" stopped"] = func(t *testing.T) (*server, func(), func()) {
			return stopped(qemuNBD(t, program, filepath.Join(t.TempDir(), "nbd"), image(t)))
		}
	}
	return all
}

// TestDiskOfAServerThatStopsAnsweringIsTakenDown, and what was given up does not land after what is
// written then.
func TestDiskOfAServerThatStopsAnsweringIsTakenDown(t *testing.T) {
	for name, begin := range sluggish(t) {
		t.Run(name, func(t *testing.T) {
			s, hold, release := begin(t)
			r := newRig(t)
			dev := r.create(Config{URI: s.uri()})
			d := &diskUnderTest{r.open(dev), r}
			if b := d.Transfer(devsw.BWrite, 0, 0, make([]byte, 4096)); b.Error != 0 {
				t.Fatal(b.Error)
			}
			hold()
			var bufs []*devsw.Buf
			var ends []chan struct{}
			for i := range 8 {
				b, done := d.begin(devsw.BWrite, 0, int64(i)<<16, bytes.Repeat([]byte{1}, 64<<10))
				bufs, ends = append(bufs, b), append(ends, done)
				b, done = d.begin(devsw.BRead, 0, int64(i)<<16, make([]byte, 64<<10))
				bufs, ends = append(bufs, b), append(ends, done)
			}
			time.Sleep(20 * time.Millisecond) // some are with the server, some on their way
			r.cancel(dev)
			cancelled := 0
			for i, b := range bufs {
				d.Wait(ends[i])
				switch b.Error {
				case devsw.ECANCELED:
					cancelled++
				case 0: // it was answered before the server stood still
				default:
					t.Errorf("a %v ends with %v", b.Op, b.Error)
				}
			}
			if cancelled == 0 && name != "nbdkit at a low rate" {
				t.Error("nothing was given up")
			}
			r.close(dev)
			opened := make(chan error, 1)
			go func() { opened <- r.table.BdevOpen(dev, rw, devsw.IFBLK) }()
			for !r.claimed(dev) {
				time.Sleep(time.Millisecond)
			}
			release()
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte{2}, 512<<10)
			got := make([]byte, len(want))
			if b := d.Transfer(devsw.BWrite, 0, 0, want); b.Error != 0 {
				t.Fatal(b.Error)
			}
			time.Sleep(50 * time.Millisecond) // for what was given up
			if b := d.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 {
				t.Fatal(b.Error)
			}
			if !bytes.Equal(got, want) {
				t.Error("a write that was given up has landed after a newer one")
			}
			r.close(dev)
		})
	}
}

func TestRequestsSurviveAQemuNBDThatIsKilledAndComesBack(t *testing.T) {
	for name, program := range qemuNBDs() {
		t.Run(name, func(t *testing.T) {
			img, sock := image(t), filepath.Join(t.TempDir(), "nbd")
			s := qemuNBD(t, program, sock, img)
			r := newRig(t)
			d := &diskUnderTest{r.open(r.create(Config{URI: s.uri(), ReconnectDelay: 30 * time.Second})), r}
			for i := range 2 {
				s.halt() // so that it is killed in the middle
				want := bytes.Repeat([]byte{byte(i + 1)}, 512<<10)
				b, done := d.begin(devsw.BWrite, devsw.BMediaFUA, 0, want)
				s.kill()
				s = qemuNBD(t, program, sock, img)
				d.Wait(done)
				got := make([]byte, len(want))
				if rb := d.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 || rb.Error != 0 || !bytes.Equal(got, want) {
					t.Fatalf("round %d: write %v, read %v, the same: %v", i, b.Error, rb.Error, bytes.Equal(got, want))
				}
			}
		})
	}
}

// leaver is a Server: an nbdkit that ends by itself when nobody is connected any more.
type leaver struct {
	path, img string

	mu     sync.Mutex
	cmd    *exec.Cmd
	ended  chan struct{} // closed when the last one has; nil at first
	starts int
}

func (l *leaver) Start(context.Context) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		select {
		case <-l.ended:
		default:
			return 0, nil
		}
	}
	cmd := exec.Command("nbdkit", "--foreground", "--exit-with-parent", "--unix", l.path, "--filter=exitlast", "file", l.img)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
		_ = os.Remove(l.path)
	}()
	l.cmd, l.ended = cmd, ended
	l.starts++
	for { // a look by connecting would be the first connection, and the last
		if listening(l.path) {
			return 0, nil
		}
		select {
		case <-ended:
			return 0, devsw.EIO
		case <-time.After(time.Millisecond):
		}
	}
}

// listening asks the kernel whether anybody listens on a socket: it is there a moment before.
func listening(path string) bool {
	const acceptsConnections = "00010000"
	table, _ := os.ReadFile("/proc/net/unix")
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) == 8 && f[3] == acceptsConnections && f[7] == path {
			return true
		}
	}
	return false
}

func (l *leaver) Stop() {
	if l.ended == nil {
		return
	}
	select {
	case <-l.ended:
	case <-time.After(time.Second): // nbdkit overlooks the end of a connection now and then
		_ = l.cmd.Process.Kill()
		<-l.ended
	}
}

func (l *leaver) Kill() {}

// TestServerThatEndsWithItsLastConnectionIsStartedAnew has nbdkit end by itself: it does when the
// driver has hung up.
func TestServerThatEndsWithItsLastConnectionIsStartedAnew(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		t.Skip("there is no nbdkit (Debian: nbdkit)")
	}
	l := &leaver{path: filepath.Join(t.TempDir(), "nbd"), img: image(t)}
	r := newRig(t)
	dev := r.create(Config{URI: (&server{path: l.path}).uri(), Server: l, ReconnectDelay: 30 * time.Second, Connections: 1})
	for i := range 2 {
		d := r.open(dev)
		want := bytes.Repeat([]byte{byte(i + 1)}, 4096)
		if b := d.Transfer(devsw.BWrite, 0, 0, want); b.Error != 0 {
			t.Fatal(b.Error)
		}
		r.close(dev)
		r.gone(dev)
		if got, err := os.ReadFile(l.img); err != nil || !bytes.Equal(got[:4096], want) {
			t.Errorf("the image has something else, %v", err)
		}
	}
	if l.starts < 3 {
		t.Errorf("it was started %d times", l.starts)
	}
}

// TestTransferThatTheSenderIsAboutToSendIsCancelled, too: while the sender waits for a server that
// takes nothing, each transfer is found, wherever it is.
func TestTransferThatTheSenderIsAboutToSendIsCancelled(t *testing.T) {
	f := newFake(t, simpleMode)
	r := newRig(t)
	d, c := f.disk(r, Config{})
	d.AIO = nil
	p := make([]byte, 512)
	var bufs []*devsw.Buf
	var dones []chan struct{}
	begin := func() {
		b, done := d.begin(devsw.BRead, 0, 0, p)
		bufs, dones = append(bufs, b), append(dones, done)
	}
	cl := r.softc(d.Dev).last.Load()
	// Until the sender is stuck with more than it can gather.
	for stuck := false; !stuck; {
		for range 2 * bufferSize / requestSize {
			begin()
		}
		written := int64(-1)
		for range 20 {
			time.Sleep(5 * time.Millisecond)
			cl.mu.Lock()
			conn := cl.conns[0]
			stuck = conn.written == written && len(conn.queue) > bufferSize/requestSize
			written = conn.written
			cl.mu.Unlock()
		}
	}
	// They are sent in order: those around the last one that was.
	cl.mu.Lock()
	sent := len(cl.conns[0].flight)
	cl.mu.Unlock()
	for i := sent - 5; i < sent+5; i++ {
		_ = r.table.BdevCancelBuf(bufs[i])
	}
	late := time.After(time.Minute)
	for i := sent - 5; i < sent+5; i++ {
		select {
		case <-dones[i]:
		case <-late:
			t.Fatalf("transfer %d was not cancelled, after %d that were sent", i, sent)
		}
		if bufs[i].Error != devsw.ECANCELED {
			t.Fatalf("transfer %d ends with %v", i, bufs[i].Error)
		}
	}
	c.Close()
}
