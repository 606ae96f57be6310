package virtioblk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/vnd"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// life is one start of all rings, and what the guest asked for in it.
type life struct {
	t      *testing.T
	f      *vhostusertest.Frontend
	mem    *virtqtest.Mem
	rings  []*vhostusertest.Ring
	used   []int           // requests that each ring has answered
	buffer []virtqtest.Seg // where data and status bytes of the requests go
}

const lifeMemory = 8 << 20

func newLife(t *testing.T, f *vhostusertest.Frontend, rings int) *life {
	l := &life{t: t, f: f, used: make([]int, rings)}
	l.mem = must(virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: lifeMemory}))(t)
	l.check(f.AddMemory(l.mem))
	for i := range rings {
		r := must(f.NewRing(l.mem, i, 64))(t)
		l.rings = append(l.rings, r)
		l.check(r.Start())
	}
	return l
}

func (l *life) check(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *life) close() {
	for _, r := range l.rings {
		r.Close()
	}
	l.mem.Close()
}

func (l *life) seg(n int) virtqtest.Seg {
	return virtqtest.Seg{Addr: l.mem.Alloc(uint64(n), 1), Len: uint32(n)}
}

// ask adds one request of any kind to ring i.
func (l *life) ask(i int) {
	h := virtqtest.Seg{Addr: l.mem.Alloc(headerSize, 16), Len: headerSize}
	p := l.mem.Bytes(h.Addr, headerSize)
	n := 512 << rand.IntN(7)
	sector := uint64(rand.IntN(diskSize/512 - n/512))
	typ := []uint32{tIn, tIn, tIn, tOut, tOut, tOut, tFlush, tGetID, tDiscard, tWriteZeroes}[rand.IntN(10)]
	out, in := []virtqtest.Seg{h}, []virtqtest.Seg(nil)
	switch typ {
	case tIn:
		in = append(in, l.seg(n))
	case tOut:
		out = append(out, l.seg(n))
	case tGetID:
		in = append(in, l.seg(idSize))
	case tDiscard, tWriteZeroes:
		r := l.seg(rangeSize)
		b := l.mem.Bytes(r.Addr, rangeSize)
		binary.LittleEndian.PutUint64(b, sector)
		binary.LittleEndian.PutUint32(b[8:], uint32(n/512))
		out = append(out, r)
		sector = 0
	}
	binary.LittleEndian.PutUint32(p, typ)
	binary.LittleEndian.PutUint64(p[8:], sector)
	status := l.seg(1)
	l.mem.Bytes(status.Addr, 1)[0] = 0xff
	in = append(in, status)
	if _, ok := l.rings[i].Add(out, in); ok {
		l.buffer = append(l.buffer, in...)
	}
}

// reap takes what ring i has used.
func (l *life) reap(i int) {
	for {
		if _, _, ok := l.rings[i].Used(); !ok {
			return
		}
		l.used[i]++
	}
}

// work has requests on all rings for a while.
func (l *life) work() {
	for range 1 + rand.IntN(4) {
		for range rand.IntN(10) {
			l.ask(rand.IntN(len(l.rings)))
		}
		for i, r := range l.rings {
			l.check(r.Notify())
			if rand.IntN(3) == 0 {
				l.reap(i)
			}
		}
		if rand.IntN(2) == 0 {
			time.Sleep(time.Duration(rand.IntN(300)) * time.Microsecond)
		}
	}
}

// stop stops all rings as QEMU does.
func (l *life) stop() {
	l.t.Helper()
	for _, r := range l.rings {
		l.check(l.f.SetVringEnable(r.Index, false))
	}
	for i, r := range l.rings {
		base := must(l.f.GetVringBase(i))(l.t)
		l.reap(i)
		if int(base) != l.used[i] {
			l.t.Errorf("ring %d: %d requests were taken, and %d answered", r.Index, base, l.used[i])
		}
	}
	l.untouched("GET_VRING_BASE")
}

// untouched looks for a while whether what the back-end promised to leave alone is left alone. It
// is called at once after that promise.
func (l *life) untouched(when string) {
	l.t.Helper()
	all := l.mem.Bytes(0, lifeMemory)
	for _, s := range l.buffer {
		for i := range s.Len {
			all[s.Addr+uint64(i)] = 0xee
		}
	}
	for _, r := range l.rings {
		r.Called()
	}
	before := bytes.Clone(all)
	time.Sleep(3 * time.Millisecond)
	if !bytes.Equal(before, all) {
		l.t.Errorf("%s: guest memory was written", when)
	}
	for i, r := range l.rings {
		if r.Called() {
			l.t.Errorf("%s: ring %d was signalled", when, i)
		}
	}
}

// TestNothingHappensAfterAStopInTheMiddleOfEverything ends what runs in each of the ways a
// front-end has, with requests of all kinds in flight, and looks whether guest memory and the call
// descriptors are left alone from then on, and whether each request that was taken was answered.
func TestNothingHappensAfterAStopInTheMiddleOfEverything(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	file := func(direct bool) disk {
		return func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
			d := must(vnd.New(table))(t)
			dev := must(d.Create(0, vnd.Config{Path: path, Discard: true, Direct: direct}))(t)
			t.Cleanup(func() {
				if err := d.Destroy(0); err != nil {
					t.Errorf("the device is still open: %v", err)
				}
			})
			return dev, func() (devsw.DiskInfo, error) { return d.Info(0) }
		}
	}
	disks := map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": file(false)}
	// not every file system has it
	if fd, err := sys.OpenFile(path, sys.OpenFlags{Direct: true}); err == nil {
		fd.Close()
		disks["vnd direct"] = file(true)
	}
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for name, d := range disks {
			for _, after := range []time.Duration{0, time.Millisecond, time.Hour} {
				t.Run(fmt.Sprintf("%s, cancel after %v", name, after), func(t *testing.T) { stopAnyhow(t, mode, d, after) })
			}
		}
	})
}

func stopAnyhow(t *testing.T, mode reactor.Mode, d disk, after time.Duration) {
	const rings = 3
	pool := must(vhostuser.NewReactors(vhostuser.ReactorConfig{Reactors: 2, Mode: vhostuser.Mode(mode)}))(t)
	t.Cleanup(pool.Close)
	table := devsw.NewTable()
	dev, info := d(t, table)
	device := must(New(Config{FS: specfs.New(table), Dev: dev, Info: info, NumQueues: rings,
		Log: func(msg string, err error) {
			// A busy machine may take its time to close the device.
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Error(msg, err)
			}
		}}))(t)
	b := must(vhostuser.New(vhostuser.Config{Device: device, Reactors: pool, NotMigratable: true, CancelAfter: after}))(t)

	var f *vhostusertest.Frontend
	var features uint64
	var cancel context.CancelFunc
	ended := make(chan error, 1)
	connect := func() {
		front, conn, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		f = front
		var ctx context.Context
		ctx, cancel = context.WithCancel(context.Background())
		go func() { ended <- b.ServeConn(ctx, conn) }()
		features = must(f.Handshake(vhostusertest.AllProtocolFeatures))(t)
	}
	wait := func() {
		t.Helper()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		cancel()
	}
	connect()
	for range 5 {
		if rand.IntN(4) == 0 {
			features &^= fEventIdx
		}
		if err := f.SetFeatures(features); err != nil {
			t.Fatal(err)
		}
		l := newLife(t, f, rings)
		l.work()
		switch rand.IntN(7) {
		case 0:
			l.stop()
			l.check(f.RemoveMemory(l.mem))
		case 1: // one ring by itself first, while the others go on
			one := l.rings[rand.IntN(rings)]
			l.check(one.Stop())
			for i, r := range l.rings {
				if r != one {
					l.ask(i)
					l.check(r.Notify())
				}
			}
			l.check(one.Start())
			l.work()
			l.stop()
			l.check(f.RemoveMemory(l.mem))
		case 2:
			l.stop()
			l.check(f.ResetDevice())
			l.check(f.RemoveMemory(l.mem))
		case 3:
			l.check(f.ResetDevice())
			l.untouched("RESET_DEVICE")
			l.check(f.RemoveMemory(l.mem))
		case 4:
			features = must(f.Handshake(vhostusertest.AllProtocolFeatures))(t)
			l.untouched("a new session")
		case 5:
			f.Close()
			wait()
			l.untouched("a hang-up")
			connect()
		case 6:
			cancel()
			wait()
			l.untouched("the end")
			f.Close()
			connect()
		}
		l.close()
	}
	f.Close()
	wait()
	if err := device.WaitClosed(t.Context()); err != nil {
		t.Error(err)
	}
}
