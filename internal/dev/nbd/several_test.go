package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
)

// serveMemory answers what a client asks for with a disk in memory, until the client goes.
func (c *fakeConn) serveMemory(mu *sync.Mutex, disk []byte, asked func(q fakeRequest)) {
	for {
		q, err := c.readRequest()
		if err != nil || q.cmd == cmdDisc {
			return
		}
		asked(q)
		data := make([]byte, q.n)
		switch q.cmd {
		case cmdWrite:
			if _, err := io.ReadFull(c, data); err != nil {
				return
			}
			mu.Lock()
			copy(disk[q.off:], data)
			mu.Unlock()
			c.send(c.ok(q.cookie))
		case cmdRead:
			mu.Lock()
			copy(data, disk[q.off:])
			mu.Unlock()
			c.send(c.read(q, data))
		default:
			c.send(c.ok(q.cookie))
		}
	}
}

// memories is a server that claims CAN_MULTI_CONN, with one disk for all connections, or one for
// each.
type memories struct {
	f       *fake
	shared  bool
	serving sync.WaitGroup
	stop    chan struct{}

	mu    sync.Mutex
	disk  []byte
	asked map[*fakeConn]int // requests but NBD_CMD_DISC
}

func newMemories(t *testing.T, shared bool) *memories {
	m := &memories{
		f: newFake(t, structuredMode), shared: shared, stop: make(chan struct{}),
		disk: make([]byte, testSize), asked: map[*fakeConn]int{},
	}
	m.f.exp.flags |= canMultiConn
	m.serving.Go(func() {
		for {
			select {
			case c := <-m.f.conns:
				disk := m.disk
				if !shared {
					disk = make([]byte, testSize)
				}
				m.serving.Go(func() {
					defer c.Close()
					c.serveMemory(&m.mu, disk, func(fakeRequest) {
						m.mu.Lock()
						defer m.mu.Unlock()
						m.asked[c]++
					})
				})
			case <-m.stop:
				return
			}
		}
	})
	t.Cleanup(func() { close(m.stop); m.serving.Wait() })
	return m
}

// used is how many connections were asked for anything.
func (m *memories) used() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.asked)
}

// opened opens a disk of several connections, and waits for all of them.
func (r *rig) opened(conf Config) *diskUnderTest {
	r.t.Helper()
	d := &diskUnderTest{r.open(r.create(conf)), r}
	d.AIO = nil
	for deadline := time.Now().Add(20 * time.Second); d.connections() < conf.Connections; {
		if time.Sleep(time.Millisecond); time.Now().After(deadline) {
			r.t.Fatal("there are not all connections")
		}
	}
	return d
}

// awaitProof writes until it is known whether the server's connections show one disk.
func (d *diskUnderTest) awaitProof() proof {
	d.r.t.Helper()
	cl := d.r.softc(d.Dev).last.Load()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		cl.mu.Lock()
		p, lost := cl.proof, cl.flushed.lost
		cl.mu.Unlock()
		if p == proofGiven || p == proofLacks && lost > 0 {
			return p
		}
		d.Transfer(devsw.BWrite, 0, 0, pattern(4096, 1))
		if time.Now().After(deadline) {
			d.r.t.Fatalf("nothing is known of the connections: %d", p)
		}
	}
}

// TestWhatOneConnectionHasWrittenIsReadByAll, or nothing is read at all.
func TestWhatOneConnectionHasWrittenIsReadByAll(t *testing.T) {
	for _, shared := range []bool{true, false} {
		t.Run(fmt.Sprintf("shared %v", shared), func(t *testing.T) {
			m := newMemories(t, shared)
			r := newRig(t)
			told := make(chan error, 8)
			r.d.Notify(func(_ int, err error) { told <- err })
			d := r.opened(Config{URI: m.f.uri(), Connections: 3})
			checkConnections(t, d, told, shared)
			if used := m.used(); shared && used != 3 {
				t.Errorf("%d connections are used, want 3", used)
			}
		})
	}
}

// checkConnections writes, and looks that what is read is what was written.
func checkConnections(t *testing.T, d *diskUnderTest, told <-chan error, shared bool) {
	t.Helper()
	zero := make([]byte, 4096)
	// Zeroes prove nothing.
	if b := d.Transfer(devsw.BWrite, 0, 64<<10, zero); b.Error != 0 {
		t.Fatal(b.Error)
	}
	want := pattern(4096, 1)
	var wrong int
	for i := range int64(8) {
		b := d.Transfer(devsw.BWrite, 0, i*4096, want)
		if b.Error != 0 && (shared || b.Error != devsw.ESTALE) {
			t.Fatalf("write: %v", b.Error)
		}
		var reads []chan struct{}
		var bufs []*devsw.Buf
		var got [][]byte
		for range 6 {
			p := make([]byte, 4096)
			rb, done := d.begin(devsw.BRead, 0, i*4096, p)
			reads, bufs, got = append(reads, done), append(bufs, rb), append(got, p)
		}
		for j, done := range reads {
			d.Wait(done)
			switch e := bufs[j].Error; {
			case e == 0 && !bytes.Equal(got[j], want):
				wrong++
			case e != 0 && (shared || e != devsw.ESTALE):
				t.Errorf("read: %v", e)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%d of 48 reads do not give what was written", wrong)
	}
	if p := d.awaitProof(); p == proofGiven != shared {
		t.Fatalf("several connections: %v", p)
	}
	if !shared {
		err := <-told
		var lost *LostError
		if !errors.As(err, &lost) || !lost.Split || !strings.Contains(err.Error(), "connections=1") {
			t.Errorf("told of %v", err)
		}
		if b := d.Transfer(devsw.BRead, 0, 0, zero); b.Error != devsw.ESTALE {
			t.Errorf("a read then ends with %v", b.Error)
		}
		return
	}
	// Enough at once for all connections to be used.
	var dones []chan struct{}
	for range 64 {
		_, done := d.begin(devsw.BRead, 0, 0, make([]byte, 4096))
		dones = append(dones, done)
	}
	for _, done := range dones {
		d.Wait(done)
	}
}

// nbdServer starts nbd-server with these exports, in the words of nbd-server(5), or skips the test.
// It goes to the background.
func nbdServer(t *testing.T, exports string) (uri func(export string) string) {
	t.Helper()
	program, err := exec.LookPath("nbd-server")
	if err != nil {
		t.Skip("there is no nbd-server (Debian: nbd-server)")
	}
	dir := t.TempDir()
	sock, pid := filepath.Join(dir, "nbd"), filepath.Join(dir, "pid")
	conf := filepath.Join(dir, "conf")
	// With a Unix socket there is none of TCP.
	text := "[generic]\nunixsock = " + sock + "\n" + strings.ReplaceAll(exports, "DIR", dir)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-C", conf, "-p", pid).CombinedOutput(); err != nil {
		t.Fatalf("nbd-server: %v: %s", err, out)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		p, _ := os.ReadFile(pid)
		if n, err := strconv.Atoi(strings.TrimSpace(string(p))); err == nil {
			t.Cleanup(func() { _ = syscall.Kill(n, syscall.SIGTERM) })
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nbd-server does not say who it is")
		}
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nbd-server does not listen")
		}
	}
	return func(export string) string { return "nbd+unix:///" + export + "?socket=" + sock }
}

func TestTemporaryExportOfNBDServerIsNotTakenForOneDisk(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for a server that ends its child")
	}
	uri := nbdServer(t, "[temp]\nexportname = DIR/tempXXXXXX\ntemporary = true\n"+
		"filesize = 1048576\nflush = true\n")
	r := newRig(t)
	told := make(chan error, 8)
	r.d.Notify(func(_ int, err error) { told <- err })
	checkConnections(t, r.opened(Config{URI: uri("temp"), Connections: 3}), told, false)
}

// TestWhoGoesOnHasTheConnectionThatIsThere: a pause does not empty an export whose content goes
// with its connection.
func TestWhoGoesOnHasTheConnectionThatIsThere(t *testing.T) {
	uri := nbdServer(t, "[temp]\nexportname = DIR/tempXXXXXX\ntemporary = true\n"+
		"filesize = 1048576\nflush = true\n")
	r := newRig(t)
	dev := r.create(Config{URI: uri("temp"), Connections: 1})
	d := r.open(dev)
	written, got := bytes.Repeat([]byte{7}, 512), make([]byte, 512)
	if b := d.Transfer(devsw.BWrite, 0, 0, written); b.Error != 0 {
		t.Fatal(b.Error)
	}
	r.close(dev)
	for range 2 {
		d = r.resume(dev)
		if b := d.Transfer(devsw.BRead, 0, 0, got); b.Error != 0 || !bytes.Equal(got, written) {
			t.Fatalf("after a pause a read ends with %v and gives %x", b.Error, got[:8])
		}
		r.close(dev)
	}
}
