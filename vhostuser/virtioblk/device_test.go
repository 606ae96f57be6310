package virtioblk

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/null"
	"vdev/internal/dev/vnd"
	"vdev/internal/reactor"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const diskSize = 8 << 20

// bench is a device with everything in front of it and behind it: driver, specfs, reactors,
// back-end, front-end, guest.
type bench struct {
	t        testing.TB
	reactors *vhostuser.Reactors
	dev      *Device
	b        *vhostuser.Backend
	f        *vhostusertest.Frontend
	mem      *virtqtest.Mem
	rings    []*vhostusertest.Ring
	trace    struct {
		sync.Mutex
		events []specfs.Event
	}
	suspended [256]atomic.Int64 // by ring: requests that its last stop has left
	offered   uint64
	ended     chan error
	cancel    context.CancelFunc
}

// disk makes a unit of a driver and tells how to ask for its description.
type disk func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error))

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func mdDisk(conf md.Config) disk {
	return func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
		d := must(md.New(table))(t)
		dev := must(d.Create(0, conf))(t)
		t.Cleanup(func() {
			if err := d.Destroy(0); err != nil {
				t.Errorf("the device is still open: %v", err)
			}
		})
		return dev, func() (devsw.DiskInfo, error) { return d.Info(0) }
	}
}

func nullDisk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	d := must(null.New(table))(t)
	dev := must(d.Create(0, null.Config{Size: diskSize}))(t)
	return dev, func() (devsw.DiskInfo, error) { return d.Info(0) }
}

func vndDisk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	return vndWith(t, table, t.TempDir(), vnd.Config{Discard: true})
}

// vndWith makes a vnd of a new file in dir.
func vndWith(t testing.TB, table *devsw.Table, dir string, conf vnd.Config) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	conf.Path = filepath.Join(dir, "disk")
	if err := os.WriteFile(conf.Path, make([]byte, diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	d := must(vnd.New(table))(t)
	dev := must(d.Create(0, conf))(t)
	t.Cleanup(func() {
		if err := d.Destroy(0); err != nil {
			t.Errorf("the device is still open: %v", err)
		}
	})
	return dev, func() (devsw.DiskInfo, error) { return d.Info(0) }
}

// benchConfig is what a bench is made of.
type benchConfig struct {
	Config
	// Of the Backend.
	CancelAfter, StopGap time.Duration
	Migratable           bool

	around func(*Device) vhostuser.Device // what is served instead of the Device; nil for itself
}

// newBench connects a front-end; no ring is started.
func newBench(t testing.TB, mode reactor.Mode, queues int, make disk, change func(*benchConfig)) *bench {
	t.Helper()
	return newBenchOn(t, vhostuser.ReactorConfig{Reactors: 2, Mode: vhostuser.Mode(mode)}, queues, make, change)
}

// newBenchOn is newBench on reactors of this kind.
func newBenchOn(t testing.TB, reactors vhostuser.ReactorConfig, queues int, make disk, change func(*benchConfig)) *bench {
	t.Helper()
	w := &bench{t: t, ended: make2()}
	pool := must(vhostuser.NewReactors(reactors))(t)
	t.Cleanup(pool.Close)
	w.reactors = pool
	table := devsw.NewTable()
	dev, info := make(t, table)
	fs := specfs.New(table, specfs.WithTrace(func(e specfs.Event) {
		w.trace.Lock()
		defer w.trace.Unlock()
		w.trace.events = append(w.trace.events, e)
	}))
	c := benchConfig{Config: Config{FS: fs, Dev: dev, Info: info, Serial: "vdev-test", NumQueues: queues}}
	if change != nil {
		change(&c)
	}
	if c.Pool == nil {
		c.Pool = NewPool(0, 0)
		t.Cleanup(c.Pool.Close)
	}
	w.dev = must(New(c.Config))(t)
	t.Cleanup(w.dev.Close)
	served := vhostuser.Device(w.dev)
	if c.around != nil {
		served = c.around(w.dev)
	}
	w.b = must(vhostuser.New(vhostuser.Config{
		Device: served, Reactors: pool, NotMigratable: !c.Migratable, CancelAfter: c.CancelAfter, StopGap: c.StopGap, Trace: w.stopped,
	}))(t)
	t.Cleanup(w.close)
	w.connect(vhostusertest.AllProtocolFeatures)
	must(w.f.GetConfig(0, configSize))(t) // as a front-end does that makes its device
	w.mem = must(virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: 64 << 20}))(t)
	t.Cleanup(w.mem.Close)
	return w
}

// stopped notes what a stop has left suspended.
func (w *bench) stopped(e vhostuser.Event) {
	if e.Kind != vhostuser.EventStop {
		return
	}
	n := 0
	for _, f := range e.Fields {
		if f.Name == "suspended" {
			n = f.Value.(int)
		}
	}
	w.suspended[e.Ring].Store(int64(n))
}

// ring asks the back-end about a ring.
func (w *bench) ring(i int) vhostuser.RingStatus {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), vhostusertest.Timeout)
	defer cancel()
	st := w.b.Status(ctx)
	if st.FrontEnd == nil {
		w.t.Fatal("no front-end is told of")
	}
	return st.FrontEnd.Rings[i]
}

// connect connects a front-end that knows these protocol features.
func (w *bench) connect(want vhostuser.ProtocolFeatures) {
	w.t.Helper()
	w.dial()
	w.offered = must(w.f.Handshake(want))(w.t)
}

// dial connects a front-end that has yet to say anything.
func (w *bench) dial() {
	w.t.Helper()
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		w.t.Fatal(err)
	}
	w.f = f
	ctx, cancel := context.WithCancel(context.Background())
	w.cancel = cancel
	go func(c *net.UnixConn) { w.ended <- w.b.ServeConn(ctx, c) }(conn)
}

func make2() chan error { return make(chan error, 1) }

// hangUp hangs up and waits for the back-end to have taken everything down.
func (w *bench) hangUp() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
		<-w.ended
		w.cancel()
	}
}

// close hangs up, and ends the guest.
func (w *bench) close() {
	w.hangUp()
	for _, r := range w.rings {
		r.Close()
	}
	w.rings = nil
	w.waitClosed()
}

// waitClosed waits for a close that the machine was too busy for.
func (w *bench) waitClosed() {
	w.t.Helper()
	if err := w.dev.WaitClosed(context.Background()); err != nil {
		w.t.Error(err)
	}
}

func (w *bench) start(features uint64) {
	w.t.Helper()
	if err := w.f.SetFeatures(features); err != nil {
		w.t.Fatal(err)
	}
	if err := w.f.AddMemory(w.mem); err != nil {
		w.t.Fatal(err)
	}
	for i := range w.dev.NumQueues() {
		r := must(w.f.NewRing(w.mem, i, 128))(w.t)
		w.rings = append(w.rings, r)
		if err := r.Start(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// startedQueues gives the queues that are started.
func (d *Device) startedQueues() (all []*queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q := range d.queues {
		all = append(all, q)
	}
	return all
}

// all is every feature the device offers.
func (w *bench) all() uint64 { return w.offered }

func (w *bench) buffer(n int) virtqtest.Seg {
	return virtqtest.Seg{Addr: w.mem.Alloc(uint64(n), 512), Len: uint32(n)}
}

func (w *bench) bytes(s virtqtest.Seg) []byte { return w.mem.Bytes(s.Addr, uint64(s.Len)) }

func (w *bench) header(typ uint32, sector uint64) virtqtest.Seg {
	s := w.buffer(headerSize)
	h := w.bytes(s)
	binary.LittleEndian.PutUint32(h, typ)
	binary.LittleEndian.PutUint32(h[4:], 0)
	binary.LittleEndian.PutUint64(h[8:], sector)
	return s
}

// do runs one request on ring q and returns its status and the number of bytes written.
func (w *bench) do(q int, typ uint32, sector uint64, out, in []virtqtest.Seg) (status uint8, written uint32) {
	w.t.Helper()
	s := w.buffer(1)
	w.bytes(s)[0] = 0xff
	written, err := w.rings[q].Do(append([]virtqtest.Seg{w.header(typ, sector)}, out...), append(in, s))
	if err != nil {
		w.t.Fatal(err)
	}
	return w.bytes(s)[0], written
}

func (w *bench) rangeSeg(ranges ...[3]uint64) virtqtest.Seg {
	s := w.buffer(rangeSize * len(ranges))
	p := w.bytes(s)
	for i, r := range ranges {
		binary.LittleEndian.PutUint64(p[i*rangeSize:], r[0])
		binary.LittleEndian.PutUint32(p[i*rangeSize+8:], uint32(r[1]))
		binary.LittleEndian.PutUint32(p[i*rangeSize+12:], uint32(r[2]))
	}
	return s
}

func eachMode(t *testing.T, f func(t *testing.T, mode reactor.Mode)) {
	for _, mode := range []reactor.Mode{reactor.ModeURing, reactor.ModeThreads} {
		t.Run(string(mode), func(t *testing.T) { f(t, mode) })
	}
}

func TestWhatIsWrittenIsReadBackFromEveryQueueAndDriver(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for name, d := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
			t.Run(name, func(t *testing.T) {
				w := newBench(t, mode, 4, d, nil)
				w.start(w.all())
				for q := range w.rings {
					a, b := w.buffer(1536), w.buffer(4096-1536)
					for _, s := range []virtqtest.Seg{a, b} {
						for i := range w.bytes(s) {
							w.bytes(s)[i] = byte(rand.Uint32())
						}
					}
					if st, n := w.do(q, tOut, uint64(q*8), []virtqtest.Seg{a, b}, nil); st != statusOK || n != 1 {
						t.Fatalf("queue %d: write: status %d, written %d", q, st, n)
					}
					c := w.buffer(4096)
					if st, n := w.do(3-q, tIn, uint64(q*8), nil, []virtqtest.Seg{c}); st != statusOK || n != 4097 {
						t.Fatalf("queue %d: read: status %d, written %d", q, st, n)
					}
					if want := append(bytes.Clone(w.bytes(a)), w.bytes(b)...); !bytes.Equal(w.bytes(c), want) {
						t.Fatalf("queue %d: the data differ", q)
					}
				}
				if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusOK {
					t.Fatalf("flush: status %d", st)
				}
			})
		}
	})
}

func TestDiscardAndWriteZeroesMakeZeroes(t *testing.T) {
	for name, d := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
		t.Run(name, func(t *testing.T) {
			w := newBench(t, reactor.ModeURing, 1, d, nil)
			w.start(w.all())
			const n = 64 << 10
			buf := w.buffer(n)
			for _, typ := range []uint32{tDiscard, tWriteZeroes} {
				for i := range w.bytes(buf) {
					w.bytes(buf)[i] = 0xa5
				}
				if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{buf}, nil); st != statusOK {
					t.Fatal(st)
				}
				ranges := w.rangeSeg([3]uint64{8, 8, 0}, [3]uint64{32, 16, 0})
				if st, _ := w.do(0, typ, 0, []virtqtest.Seg{ranges}, nil); st != statusOK {
					t.Fatalf("type %d: status %d", typ, st)
				}
				if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{buf}); st != statusOK {
					t.Fatal(st)
				}
				for i, v := range w.bytes(buf) {
					sector := i / 512
					want := byte(0xa5)
					if sector >= 8 && sector < 16 || sector >= 32 && sector < 48 {
						want = 0
					}
					if v != want {
						t.Fatalf("type %d: byte %d is %#x, want %#x", typ, i, v, want)
					}
				}
			}
		})
	}
}

// TestBadRequestsGetTheStatusTheyDeserve has each of them between two good ones.
func TestBadRequestsGetTheStatusTheyDeserve(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 1, mdDisk(md.Config{Size: diskSize}), nil)
	w.start(w.all())
	sectors := uint64(diskSize / 512)
	buf, odd := w.buffer(1024), w.buffer(1000)
	for name, c := range map[string]struct {
		typ    uint32
		sector uint64
		out    []virtqtest.Seg
		in     []virtqtest.Seg
		want   uint8
	}{
		"read beyond the end":              {tIn, sectors, nil, []virtqtest.Seg{buf}, statusIOErr},
		"read across the end":              {tIn, sectors - 1, nil, []virtqtest.Seg{buf}, statusIOErr},
		"read at a sector near 2^64":       {tIn, ^uint64(0), nil, []virtqtest.Seg{buf}, statusIOErr},
		"read of odd length":               {tIn, 0, nil, []virtqtest.Seg{odd}, statusIOErr},
		"read into readable buffers":       {tIn, 0, []virtqtest.Seg{buf}, []virtqtest.Seg{buf}, statusIOErr},
		"write from writable buffers":      {tOut, 0, []virtqtest.Seg{buf}, []virtqtest.Seg{buf}, statusIOErr},
		"write beyond the end":             {tOut, sectors, []virtqtest.Seg{buf}, nil, statusIOErr},
		"unknown type":                     {77, 0, nil, nil, statusUnsupp},
		"discard without ranges":           {tDiscard, 0, nil, nil, statusIOErr},
		"discard with half a range":        {tDiscard, 0, []virtqtest.Seg{{Addr: buf.Addr, Len: 24}}, nil, statusIOErr},
		"discard with unmap":               {tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 1})}, nil, statusUnsupp},
		"discard with an unknown flag":     {tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 2})}, nil, statusUnsupp},
		"discard beyond the end":           {tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{sectors - 1, 8, 0})}, nil, statusIOErr},
		"discard of more than a range has": {tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, maxRangeSectors + 1, 0})}, nil, statusIOErr},
		"zeroes with an unknown flag":      {tWriteZeroes, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 4})}, nil, statusUnsupp},
		"serial number into 10 bytes":      {tGetID, 0, nil, []virtqtest.Seg{{Addr: buf.Addr, Len: 10}}, statusIOErr},
	} {
		if st, _ := w.do(0, c.typ, c.sector, c.out, c.in); st != c.want {
			t.Errorf("%s: status %d, want %d", name, st, c.want)
		}
		if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{buf}); st != statusOK {
			t.Fatalf("after %s: a good read has status %d", name, st)
		}
	}
}

func TestAnyFramingIsTaken(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 1, mdDisk(md.Config{Size: diskSize}), nil)
	w.start(w.all())
	// The header in three pieces, the last one together with the data.
	h := w.header(tOut, 5)
	data := w.buffer(8 + 512)
	copy(w.bytes(data), w.bytes(h)[8:])
	for i := range 512 {
		w.bytes(data)[8+i] = byte(i)
	}
	s := w.buffer(1)
	if _, err := w.rings[0].Do([]virtqtest.Seg{{Addr: h.Addr, Len: 3}, {Addr: h.Addr + 3, Len: 5}, data}, []virtqtest.Seg{s}); err != nil || w.bytes(s)[0] != statusOK {
		t.Fatal(err, w.bytes(s)[0])
	}
	// The status byte in one buffer with the data.
	in := w.buffer(513)
	if _, err := w.rings[0].Do([]virtqtest.Seg{w.header(tIn, 5)}, []virtqtest.Seg{in}); err != nil || w.bytes(in)[512] != statusOK {
		t.Fatal(err, w.bytes(in)[512])
	}
	if !bytes.Equal(w.bytes(in)[:512], w.bytes(data)[8:]) {
		t.Fatal("the data differ")
	}
	// A short header.
	w.bytes(s)[0] = 0xff
	if _, err := w.rings[0].Do([]virtqtest.Seg{{Addr: h.Addr, Len: 15}}, []virtqtest.Seg{s}); err != nil || w.bytes(s)[0] != statusIOErr {
		t.Fatal(err, w.bytes(s)[0])
	}
}

func TestARequestWithoutAStatusByteBreaksItsRingAlone(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 2, mdDisk(md.Config{Size: diskSize}), nil)
	w.start(w.all())
	if _, ok := w.rings[0].Add([]virtqtest.Seg{w.header(tIn, 0)}, nil); !ok {
		t.Fatal("no room")
	}
	if err := w.rings[0].Notify(); err != nil {
		t.Fatal(err)
	}
	for !w.rings[0].Failed() {
		runtime.Gosched()
	}
	if st, _ := w.do(1, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
		t.Fatalf("the other ring: status %d", st)
	}
}

func TestGetIDGivesTheSerialNumber(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 1, nullDisk, nil)
	w.start(w.all())
	a, b := w.buffer(7), w.buffer(13)
	if st, n := w.do(0, tGetID, 0, nil, []virtqtest.Seg{a, b}); st != statusOK || n != 21 {
		t.Fatal(st, n)
	}
	if got := string(append(bytes.Clone(w.bytes(a)), w.bytes(b)...)); got != "vdev-test"+string(make([]byte, 11)) {
		t.Fatalf("%q", got)
	}
}

func TestAReadOnlyDiskRefusesEveryChange(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 1, mdDisk(md.Config{Size: diskSize, ReadOnly: true}), nil)
	if w.offered&fRO == 0 || w.offered&(fDiscard|fWriteZeroes) != 0 {
		t.Fatalf("features %#x", w.offered)
	}
	w.start(w.all())
	if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusIOErr {
		t.Fatalf("write: %d", st)
	}
	if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
		t.Fatalf("read: %d", st)
	}
}

func TestConfigurationSpaceIsWhatTheSpecificationLaysOut(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 4, mdDisk(md.Config{Size: diskSize, SectorSize: 4096}), nil)
	p := must(w.f.GetConfig(0, configSize))(t)
	le := binary.LittleEndian
	for name, c := range map[string][2]uint64{
		"capacity":        {le.Uint64(p), diskSize / 512},
		"size_max":        {uint64(le.Uint32(p[8:])), 0},
		"seg_max":         {uint64(le.Uint32(p[12:])), 126},
		"blk_size":        {uint64(le.Uint32(p[20:])), 4096},
		"writeback":       {uint64(p[32]), 1},
		"num_queues":      {uint64(le.Uint16(p[34:])), 4},
		"max_discard_seg": {uint64(le.Uint32(p[40:])), maxRanges},
		// 2 GiB both, since whoever zeroes a disk may split no more than it does for a discard.
		"max_discard_sectors":      {uint64(le.Uint32(p[36:])), 1 << 22},
		"max_write_zeroes_sectors": {uint64(le.Uint32(p[48:])), 1 << 22},
	} {
		if c[0] != c[1] {
			t.Errorf("%s is %d, want %d", name, c[0], c[1])
		}
	}
	if err := w.f.SetConfig(writebackOff, []byte{0}); err != nil {
		t.Fatal(err)
	}
	if p := must(w.f.GetConfig(writebackOff, 1))(t); p[0] != 0 {
		t.Error("writeback was not changed")
	}
}

// order is what specfs said, the last time the device was taken down.
func (w *bench) order() (kinds []specfs.Kind) {
	w.trace.Lock()
	defer w.trace.Unlock()
	for _, e := range w.trace.events {
		kinds = append(kinds, e.Kind)
	}
	return kinds
}

func TestTheDeviceIsOpenFromTheFirstRingsStartToTheLastOnesStop(t *testing.T) {
	w := newBench(t, reactor.ModeURing, 2, mdDisk(md.Config{Size: diskSize}), nil)
	w.start(w.all())
	buf := w.buffer(512)
	for range 3 {
		w.do(0, tIn, 0, nil, []virtqtest.Seg{buf})
		w.do(1, tIn, 0, nil, []virtqtest.Seg{buf})
		for _, r := range w.rings {
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range w.rings {
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.close()
	var got []specfs.Kind
	for _, k := range w.order() {
		switch k {
		case specfs.EventOpen, specfs.EventCancel, specfs.EventDrained, specfs.EventClose:
			got = append(got, k)
		}
	}
	one := []specfs.Kind{specfs.EventOpen, specfs.EventCancel, specfs.EventDrained, specfs.EventClose}
	for i, k := range got {
		if k != one[i%4] {
			t.Fatalf("event %d is %v: %v", i, k, got)
		}
	}
	if len(got) != 16 {
		t.Fatalf("%d events: %v", len(got), got)
	}
}
