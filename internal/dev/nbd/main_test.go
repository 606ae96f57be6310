package nbd

import (
	"flag"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	_ "pgregory.net/rapid" // for its flags

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/test/disktest"
)

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(twice{m})
}

// contexts are those that transfers come from. The tests run without any, and then with them.
var contexts *reactor.Pool

type twice struct{ m *testing.M }

func (t twice) Run() int {
	if code := t.m.Run(); code != 0 || flag.Lookup("test.fuzz").Value.String() != "" {
		return code
	}
	var err error
	if contexts, err = reactor.NewPool(reactor.Config{Reactors: 2}); err != nil {
		contexts, err = reactor.NewPool(reactor.Config{Reactors: 2, Mode: reactor.ModeThreads})
	}
	if err != nil {
		panic(err)
	}
	defer contexts.Close()
	return t.m.Run()
}

// aio gives the AIO of a transfer, or nil.
func aio() devsw.AIO {
	if contexts == nil {
		return nil
	}
	return contexts.Pick()
}

const rw = devsw.FREAD | devsw.FWRITE

// rig is a driver on a table of its own.
type rig struct {
	t     testing.TB
	d     *Driver
	table *devsw.Table
	units int
}

// newRig attaches a driver for the length of the test, which must leave no descriptor behind.
func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, table: devsw.NewTable()}
	var err error
	if r.d, err = New(r.table); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.d.Detach(); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	return r
}

// create makes a disk, with the next number.
func (r *rig) create(conf Config) devsw.Dev {
	r.t.Helper()
	dev, err := r.d.Create(r.units, conf)
	if err != nil {
		r.t.Fatal(err)
	}
	r.units++
	return dev
}

// open opens a disk for the length of the test.
func (r *rig) open(dev devsw.Dev) *disktest.Disk {
	r.t.Helper()
	return r.openWith(dev, rw)
}

// resume is open, by somebody who goes on where he was.
func (r *rig) resume(dev devsw.Dev) *disktest.Disk {
	r.t.Helper()
	return r.openWith(dev, rw|devsw.FRESUME)
}

func (r *rig) openWith(dev devsw.Dev, flag devsw.Flag) *disktest.Disk {
	r.t.Helper()
	if err := r.table.BdevOpen(dev, flag, devsw.IFBLK); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.close(dev) })
	return &disktest.Disk{Table: r.table, Dev: dev, Sector: 512, AIO: aio()}
}

// softc returns what the driver has of a disk.
func (r *rig) softc(dev devsw.Dev) *softc {
	r.t.Helper()
	sc, err := r.d.unit(int(dev.Minor()))
	if err != nil {
		r.t.Fatal(err)
	}
	return sc
}

// cancel does d_cancel.
func (r *rig) cancel(dev devsw.Dev) {
	r.t.Helper()
	if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
		r.t.Errorf("cancel: %v", err)
	}
}

// close does what a last close does. It may be done twice.
func (r *rig) close(dev devsw.Dev) {
	r.t.Helper()
	r.cancel(dev)
	if err := r.table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// server is a program that serves NBD on a Unix socket.
type server struct {
	t    testing.TB
	cmd  *exec.Cmd
	path string // of the socket
}

// start starts a program for the length of the test, and waits until it listens on path.
func start(t testing.TB, path, name string, args ...string) *server {
	t.Helper()
	s := &server{t: t, cmd: exec.Command(name, args...), path: path}
	var out strings.Builder
	s.cmd.Stdout, s.cmd.Stderr = &out, &out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.kill()
		if t.Failed() {
			t.Logf("%s said: %s", name, out.String())
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			return s
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not listen on %s: %s", name, path, out.String())
		}
	}
}

func (s *server) kill() {
	if s.cmd.ProcessState == nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		_ = os.Remove(s.path)
	}
}

func (s *server) uri() string { return "nbd+unix:///?socket=" + url.QueryEscape(s.path) }

// nbdkit starts nbdkit with these arguments, or skips the test.
func nbdkit(t testing.TB, args ...string) *server {
	t.Helper()
	return nbdkitAt(t, filepath.Join(t.TempDir(), "nbd"), args...)
}

func nbdkitAt(t testing.TB, path string, args ...string) *server {
	t.Helper()
	name, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skip("there is no nbdkit (Debian: nbdkit)")
	}
	return start(t, path, name, append([]string{"--foreground", "--exit-with-parent", "--unix", path}, args...)...)
}

// qemuNBDs are the command lines of the qemu-nbd programs to be found.
func qemuNBDs() map[string][]string {
	found := map[string][]string{}
	if home, err := os.UserHomeDir(); err == nil {
		root := filepath.Join(home, ".cache/vdev/qemu-11.1/usr")
		if _, err := os.Stat(filepath.Join(root, "bin/qemu-nbd")); err == nil {
			libs, _ := filepath.Glob(filepath.Join(root, "lib/*-linux-gnu"))
			found["11.1"] = []string{filepath.Join(root, "bin/ld.so"), "--library-path", strings.Join(libs, ":"), filepath.Join(root, "bin/qemu-nbd")}
		}
	}
	if path, err := exec.LookPath("qemu-nbd"); err == nil {
		found["installed"] = []string{path}
	}
	return found
}
