package vnd

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	_ "pgregory.net/rapid" // for its flags

	"vdev/devsw"
	"vdev/internal/test/disktest"
)

func TestMain(m *testing.M) {
	// The models wait for a real disk; -rapid.checks asks for more.
	if err := flag.Set("rapid.checks", "20"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
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
	fds := func() string {
		var open []string
		names, _ := filepath.Glob("/proc/self/fd/*")
		for _, name := range names {
			if to, err := os.Readlink(name); err == nil {
				open = append(open, to)
			}
		}
		return strings.Join(open, "\n")
	}
	before := fds()
	r := &rig{t: t, table: devsw.NewTable()}
	var err error
	if r.d, err = New(r.table); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.d.Detach(); err != nil {
			t.Errorf("detach: %v", err)
		}
		if after := fds(); after != before {
			t.Errorf("descriptors before:\n%s\nand after:\n%s", before, after)
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
	if err := r.tryOpen(dev); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.close(dev) })
	return r.disk(dev)
}

// tryOpen opens a disk for what it can.
func (r *rig) tryOpen(dev devsw.Dev) error {
	flag := rw
	if r.softc(dev).conf.ReadOnly {
		flag = devsw.FREAD
	}
	return r.table.BdevOpen(dev, flag, devsw.IFBLK)
}

func (r *rig) disk(dev devsw.Dev) *disktest.Disk {
	return &disktest.Disk{Table: r.table, Dev: dev, Sector: r.softc(dev).sector}
}

// close does what a last close does. It may be done twice.
func (r *rig) close(dev devsw.Dev) {
	r.t.Helper()
	if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
		r.t.Errorf("cancel: %v", err)
	}
	if err := r.table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// image gives what an open disk is made of.
func (r *rig) image(dev devsw.Dev) *image {
	_, im, _ := r.d.unit(int(dev.Minor()))
	return im
}

func (r *rig) softc(dev devsw.Dev) *softc {
	sc, _, _ := r.d.unit(int(dev.Minor()))
	return sc
}

// newFile makes a file of the test's with these contents.
func newFile(t testing.TB, data []byte) string {
	t.Helper()
	return fileIn(t, t.TempDir(), data)
}

func fileIn(t testing.TB, dir string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// needRoot skips the test for anybody else, who cannot do what.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skipf("only root can %s", what)
	}
}

// mountTmpfs mounts a tmpfs of size bytes.
func mountTmpfs(t testing.TB, size int64) string {
	t.Helper()
	needRoot(t, "mount a file system")
	dir := t.TempDir()
	if err := syscall.Mount("vdev-test", dir, "tmpfs", 0, "size="+strconv.FormatInt(size, 10)); err != nil {
		t.Fatalf("mounting a tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Errorf("unmounting the tmpfs: %v", err)
		}
	})
	return dir
}
