package nbd

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/test/disktest"
)

// untouched starts a program for the length of the test, which nobody connects to before the test
// does.
func untouched(t *testing.T, sock, name string, args ...string) *server {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("there is no %s", name)
	}
	s := &server{t: t, cmd: exec.Command(path, args...), path: sock}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	return s
}

// createWhenThere makes a disk of a server that is being started.
func (r *rig) createWhenThere(conf Config) devsw.Dev {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		dev, err := r.d.Create(r.units, conf)
		if err == nil {
			r.units++
			return dev
		}
		if !hasEnded(err) || time.Now().After(deadline) {
			r.t.Fatal(err)
		}
	}
}

// lastClient are servers that end with their last client.
func lastClient(t *testing.T, sock, img string) map[string][]string {
	return map[string][]string{
		"qemu-nbd":               {"qemu-nbd", "--socket=" + sock, "--format=raw", img},
		"qemu-nbd, many clients": {"qemu-nbd", "--socket=" + sock, "--format=raw", "--shared=8", img},
		"nbdkit exitlast": {"nbdkit", "--foreground", "--exit-with-parent", "--unix", sock,
			"--filter=exitlast", "file", img},
	}
}

// TestServerThatEndsWithItsLastClientStaysFromTheStartToTheEnd: over the look at the start, opens
// and closes.
func TestServerThatEndsWithItsLastClientStaysFromTheStartToTheEnd(t *testing.T) {
	for name := range lastClient(t, "", "") {
		t.Run(name, func(t *testing.T) {
			sock := filepath.Join(t.TempDir(), "nbd")
			command := lastClient(t, sock, image(t))[name]
			s := untouched(t, sock, command[0], command[1:]...)
			r := newRig(t)
			// One, since qemu-nbd does not end where the last client to go is one in the midst of
			// the handshake, as a second connection can be.
			dev := r.createWhenThere(Config{URI: s.uri(), Connections: 1})
			r.softc(dev).patience = 300 * time.Millisecond
			want, got := pattern(4096, 1), make([]byte, 4096)
			for i, open := range []func(devsw.Dev) *disktest.Disk{r.open, r.open, r.resume, r.open} {
				d := open(dev)
				if i == 0 {
					if b := d.Transfer(devsw.BWrite, 0, 0, want); b.Error != 0 {
						t.Fatalf("write: %v", b.Error)
					}
				}
				b := d.Transfer(devsw.BRead, 0, 0, got)
				if b.Error != 0 || !bytes.Equal(got, want) {
					t.Fatalf("read after %d closes: %v", i, b.Error)
				}
				r.close(dev)
				r.gone(dev)
			}
			ended := make(chan error, 1)
			go func() { ended <- s.cmd.Wait() }()
			r.softc(dev).Destroy()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("the server has not been told that its client has gone")
			}
		})
	}
}

// TestServerOfOneClientIsUsedByTheConnectionThatIsThere, and the error of what needs another one
// says so.
func TestServerOfOneClientIsUsedByTheConnectionThatIsThere(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "nbd")
	s := untouched(t, sock, "qemu-nbd", "--socket="+sock, "--format=raw", "--persistent", image(t))
	r := newRig(t)
	dev := r.createWhenThere(Config{URI: s.uri()})
	r.softc(dev).patience = 300 * time.Millisecond
	for range 2 {
		d := r.open(dev)
		if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
			t.Fatal(b.Error)
		}
		err := r.table.BdevIoctl(dev, devsw.DIOCGROW, nil, devsw.FREAD)
		if !errors.Is(err, devsw.ETIMEDOUT) || !strings.Contains(err.Error(), "--shared=N") {
			t.Errorf("looking at the size ends with %v", err)
		}
		if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
			t.Fatal(b.Error)
		}
		r.close(dev)
		r.gone(dev)
	}
}

func TestSizeIsReadAgainBetweenOpens(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	dev := r.create(Config{URI: f.uri()})
	first := f.next()
	size := func(want int64) {
		t.Helper()
		if info, err := r.d.Info(0); err != nil || info.Size != want {
			t.Errorf("size %d, %v; want %d", info.Size, err, want)
		}
	}
	f.exp.size = 2 * testSize
	size(testSize)
	if err := r.d.Reread(0); err != nil {
		t.Fatal(err)
	}
	size(2 * testSize)
	if q, err := first.readRequest(); err != nil || q.cmd != cmdDisc {
		t.Errorf("the first connection ends with %+v, %v", q, err)
	}
	f.next()
	f.exp.size = 3 * testSize
	r.open(dev)
	size(3 * testSize)
	if err := r.d.Reread(0); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("while it is open: %v", err)
	}
}

func TestServerThatHasEndedSinceIsNamedAsTheCause(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	dev := r.create(Config{URI: f.uri()})
	f.next().Close()
	f.l.Close()
	err := r.table.BdevOpen(dev, rw, devsw.IFBLK)
	if err == nil || !strings.Contains(err.Error(), "if it ends with its last client") {
		t.Errorf("it opens with %v", err)
	}
}

// TestRefusalByPolicyIsTriedAgain for as long as the Config says, since clients of others go.
func TestRefusalByPolicyIsTriedAgain(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	f.refusals.Store(2)
	if _, err := r.d.Create(0, Config{URI: f.uri()}); !refusedForNow(err) {
		t.Errorf("without a delay: %v", err)
	}
	f.refusals.Store(2)
	dev := r.create(Config{URI: f.uri(), ReconnectDelay: time.Minute})
	f.next().Close()
	f.refusals.Store(2)
	d := r.open(dev)
	c := f.next()
	f.refusals.Store(2)
	c.Close()
	c = f.next()
	b, done := d.Buf(devsw.BRead, 0, 0, make([]byte, 512))
	d.Issue(b)
	q, _ := c.request(true)
	c.send(c.read(q, make([]byte, 512)))
	d.Wait(done)
	if b.Error != 0 {
		t.Error(b.Error)
	}
}

// sized is a Server that knows the size.
type sized struct {
	keeper
	size int64
}

func (s *sized) Size() (int64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.size, s.size > 0, s.err
}

// TestSizeIsTheServersOwnBetweenOpens, where the server is the driver's: the image may be another
// one now.
func TestSizeIsTheServersOwnBetweenOpens(t *testing.T) {
	f := newFake(t, structuredMode)
	s := &sized{}
	r := newRig(t)
	dev := r.create(Config{URI: f.uri(), Server: s})
	f.next()
	size := func(want int64) {
		t.Helper()
		if info, err := r.d.Info(0); err != nil || info.Size != want {
			t.Errorf("size %d, %v; want %d", info.Size, err, want)
		}
	}
	size(testSize)
	s.set(func() { s.size = 2 * testSize })
	size(2 * testSize)
	r.open(dev)
	f.next()
	size(testSize) // as the server says that runs
	r.close(dev)
	s.set(func() { s.err = devsw.ENOENT })
	if info, err := r.d.Info(0); !errors.Is(err, devsw.ENOENT) {
		t.Errorf("size %d, %v", info.Size, err)
	}
	s.set(func() { s.err = nil })
}
