package fault

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
	_ "pgregory.net/rapid" // for its flags

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/vnd"
	"vdev/specfs"
)

func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "60"); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const (
	rw      = devsw.FREAD | devsw.FWRITE
	size    = 64 << 10 // of the disks, bytes
	mdName  = "md"
	vndName = "vnd"
)

// lowers are what the tests that look at data stand on.
var lowers = []string{mdName, vndName}

// rig is a disk on another one, and the node to use it by.
type rig struct {
	t     testing.TB
	table *devsw.Table
	fs    *specfs.FS
	d     *Driver
	dev   devsw.Dev
	node  *specfs.Node

	mu     sync.Mutex
	events []specfs.Kind
}

// newRig makes a disk that is not open, with the Config's Lower and Info filled in, on a driver
// with or without d_cancel.
func newRig(t testing.TB, lower string, conf Config, attach func(*devsw.Table) (*Driver, error)) *rig {
	t.Helper()
	r := &rig{t: t, table: devsw.NewTable()}
	var detach func() error
	var err error
	switch lower {
	case mdName:
		d, e := md.New(r.table)
		must(t, e)
		conf.Lower, err = d.Create(0, md.Config{Size: size})
		conf.Info = func() (devsw.DiskInfo, error) { return d.Info(0) }
		detach = d.Detach
	case vndName:
		path := filepath.Join(t.TempDir(), "disk")
		must(t, os.WriteFile(path, make([]byte, size), 0o600))
		d, e := vnd.New(r.table)
		must(t, e)
		conf.Lower, err = d.Create(0, vnd.Config{Path: path, Discard: true})
		conf.Info = func() (devsw.DiskInfo, error) { return d.Info(0) }
		detach = d.Detach
	}
	must(t, err)
	r.stack(conf, attach)
	if detach != nil {
		t.Cleanup(func() { must(t, r.d.Detach()); must(t, detach()) })
	}
	return r
}

// stack makes the disk on what the Config says.
func (r *rig) stack(conf Config, attach func(*devsw.Table) (*Driver, error)) {
	r.t.Helper()
	var err error
	r.d, err = attach(r.table)
	must(r.t, err)
	r.dev, err = r.d.Create(0, conf)
	must(r.t, err)
	r.fs = specfs.New(r.table, specfs.WithTrace(func(e specfs.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.events = append(r.events, e.Kind)
	}))
	r.node = r.fs.Node(devsw.IFBLK, r.dev)
}

// softc returns the state of a disk of the driver.
func (r *rig) softc(unit int) *softc {
	r.t.Helper()
	sc, err := r.d.Unit(unit)
	must(r.t, err)
	return sc
}

// opened is newRig with the disk open.
func opened(t testing.TB, lower string, rules ...string) *rig {
	t.Helper()
	r := newRig(t, lower, Config{Rules: parse(t, rules...)}, New)
	r.open()
	return r
}

func parse(t testing.TB, texts ...string) (rules []Rule) {
	t.Helper()
	for _, s := range texts {
		rule, err := ParseRule(s)
		must(t, err)
		rules = append(rules, rule)
	}
	return rules
}

func (r *rig) open() { r.t.Helper(); must(r.t, r.node.Open(r.t.Context(), rw)) }

func (r *rig) close() { r.t.Helper(); must(r.t, r.node.Close(rw)) }

func (r *rig) order() []specfs.Kind {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// start issues a transfer at a block; what is returned is closed by its biodone.
func (r *rig) start(op devsw.Op, flags devsw.BufFlag, blkno int64, p []byte) (*devsw.Buf, chan struct{}) {
	done := make(chan struct{})
	b := &devsw.Buf{Op: op, Flags: flags, Blkno: blkno, Data: [][]byte{p}, Bcount: int64(len(p)),
		Iodone: func(*devsw.Buf) { close(done) }}
	r.node.Strategy(nil, b)
	return b, done
}

func (r *rig) transfer(op devsw.Op, flags devsw.BufFlag, blkno int64, p []byte) *devsw.Buf {
	b, done := r.start(op, flags, blkno, p)
	<-done
	return b
}

// write writes whole blocks, without an error.
func (r *rig) write(blkno int64, p []byte) {
	r.t.Helper()
	if b := r.transfer(devsw.BWrite, 0, blkno, p); b.Error != 0 || b.Resid != 0 {
		r.t.Fatalf("write: error %v, resid %d", b.Error, b.Resid)
	}
}

// read reads n bytes, without an error.
func (r *rig) read(blkno int64, n int) []byte {
	r.t.Helper()
	p := make([]byte, n)
	if b := r.transfer(devsw.BRead, 0, blkno, p); b.Error != 0 || b.Resid != 0 {
		r.t.Fatalf("read: error %v, resid %d", b.Error, b.Resid)
	}
	return p
}

func (r *rig) flush() error { return r.node.Ioctl(devsw.DIOCCACHESYNC, nil, rw) }

func (r *rig) zero(pos, n int64) error {
	return r.node.Ioctl(devsw.DIOCWRITEZEROES, &devsw.ZeroRange{Pos: pos, N: n}, rw)
}

func (r *rig) set(rule string) int {
	r.t.Helper()
	p := parse(r.t, rule)[0]
	must(r.t, r.d.Control(0, FAULTSET, &p))
	return p.ID
}

func (r *rig) release() { r.t.Helper(); must(r.t, r.d.Control(0, FAULTRELEASE, nil)) }

func (r *rig) state() (s State) {
	r.t.Helper()
	must(r.t, r.d.Control(0, FAULTGET, &s))
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func is(t testing.TB, what string, err error, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func ended(done chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}
