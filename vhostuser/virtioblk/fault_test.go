package virtioblk

import (
	"bytes"
	"encoding/binary"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// faulty is a fault driver on another disk.
type faulty struct {
	t     testing.TB
	lower disk
	conf  fault.Config
	d     *fault.Driver
	make  func(*devsw.Table) (*fault.Driver, error)
}

func newFaulty(t testing.TB, lower disk, rules ...string) *faulty {
	t.Helper()
	f := &faulty{t: t, lower: lower, make: fault.New}
	for _, s := range rules {
		f.conf.Rules = append(f.conf.Rules, must(fault.ParseRule(s))(t))
	}
	return f
}

func (f *faulty) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	f.conf.Lower, f.conf.Info = f.lower(t, table)
	f.d = must(f.make(table))(t)
	dev := must(f.d.Create(0, f.conf))(t)
	t.Cleanup(func() {
		if err := f.d.Destroy(0); err != nil {
			t.Errorf("the device is still open: %v", err)
		}
	})
	return dev, func() (devsw.DiskInfo, error) { return f.d.Info(0) }
}

func (f *faulty) control(cmd devsw.Cmd, data any) {
	f.t.Helper()
	if err := f.d.Control(0, cmd, data); err != nil {
		f.t.Fatal(err)
	}
}

// waitHeld waits until n operations are held.
func (f *faulty) waitHeld(n int) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		var s fault.State
		f.control(fault.FAULTGET, &s)
		if len(s.Held) == n {
			return
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("%d operations are held, want %d: %+v", len(s.Held), n, s)
		}
	}
}

// kinds are the requests that reach a driver.
var kinds = []uint32{tIn, tOut, tFlush, tDiscard, tWriteZeroes}

// request adds a request of this type to ring q, for one sector, and gives the place of its
// status.
func (w *bench) request(q int, typ uint32) (status virtqtest.Seg) {
	w.t.Helper()
	out := []virtqtest.Seg{w.header(typ, 0)}
	var in []virtqtest.Seg
	switch typ {
	case tIn:
		in = append(in, w.buffer(512))
	case tOut:
		out = append(out, w.buffer(512))
	case tDiscard, tWriteZeroes:
		out = append(out, w.rangeSeg([3]uint64{0, 1, 0}))
	}
	status = w.buffer(1)
	w.bytes(status)[0] = 0xff
	if _, ok := w.rings[q].Add(out, append(in, status)); !ok {
		w.t.Fatal("no room")
	}
	if err := w.rings[q].Notify(); err != nil {
		w.t.Fatal(err)
	}
	return status
}

func eachLower(t *testing.T, f func(t *testing.T, mode reactor.Mode, lower disk)) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for name, lower := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
			t.Run(name, func(t *testing.T) { f(t, mode, lower) })
		}
	})
}

// TestAStopEndsRequestsThatHang: once CancelAfter is over they end with IOERR and GET_VRING_BASE
// is answered, whether the driver has a d_cancel or not.
func TestAStopEndsRequestsThatHang(t *testing.T) {
	eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
		for name, c := range map[string]struct {
			make func(*devsw.Table) (*fault.Driver, error)
			rule string
		}{
			"hang":              {fault.New, "hang:any"},
			"delay":             {fault.New, "delay:any:time=1h"},
			"no d_cancel":       {fault.NewWithoutCancel, "hang:any"},
			"d_cancel is slow":  {fault.New, "delay:cancel:time=5ms"},
			"d_close is slow":   {fault.New, "delay:close:time=5ms"},
			"d_cancel refuses":  {fault.New, "error:cancel"},
			"with write-behind": {fault.New, "hang:any:prob=1"},
		} {
			t.Run(name, func(t *testing.T) {
				f := newFaulty(t, lower, c.rule, "hang:any")
				f.make = c.make
				if name == "with write-behind" {
					f.conf.Cache = 1 << 20
				}
				w := newBench(t, mode, 1, f.disk, func(c *benchConfig) { c.CancelAfter = 10 * time.Millisecond })
				w.start(w.all())
				for range 2 {
					var status []virtqtest.Seg
					for _, typ := range kinds {
						status = append(status, w.request(0, typ))
					}
					f.waitHeld(len(kinds))
					if err := w.rings[0].Stop(); err != nil {
						t.Fatal(err)
					}
					for i, s := range status {
						if got := w.bytes(s)[0]; got != statusIOErr {
							t.Errorf("%s has status %d, want IOERR", typeName(kinds[i]), got)
						}
					}
					if err := w.rings[0].Start(); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 * len(kinds) {
					if _, _, err := w.rings[0].Wait(); err != nil {
						t.Fatal(err)
					}
				}
				f.control(fault.FAULTCLEAR, nil)
				if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
					t.Errorf("a write after all that: status %d", st)
				}
			})
		}
	})
}

// TestAStopWaitsForRequestsThatAreSlow, as the specification wants: they complete.
func TestAStopWaitsForRequestsThatAreSlow(t *testing.T) {
	eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
		f := newFaulty(t, lower, "hang:any")
		w := newBench(t, mode, 2, f.disk, func(c *benchConfig) { c.CancelAfter = time.Hour })
		w.start(w.all())
		var status []virtqtest.Seg
		for i, typ := range kinds {
			status = append(status, w.request(i%2, typ))
		}
		f.waitHeld(len(kinds))
		stopped := make(chan error)
		go func() {
			err := w.rings[0].Stop()
			if err == nil {
				err = w.rings[1].Stop()
			}
			stopped <- err
		}()
		f.control(fault.FAULTRELEASE, nil)
		if err := <-stopped; err != nil {
			t.Fatal(err)
		}
		for i, s := range status {
			if got := w.bytes(s)[0]; got != statusOK {
				t.Errorf("%s has status %d, want OK", typeName(kinds[i]), got)
			}
		}
	})
}

func TestAFrontEndThatGoesAwayWaitsForNothingThatHangs(t *testing.T) {
	eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
		f := newFaulty(t, lower, "hang:any")
		w := newBench(t, mode, 2, f.disk, func(c *benchConfig) { c.CancelAfter = time.Hour })
		w.start(w.all())
		for i, typ := range kinds {
			w.request(i%2, typ)
		}
		f.waitHeld(len(kinds))
		w.close()
		f.waitHeld(0)
	})
}

func TestAnOpenThatHangsIsGivenUpByAStop(t *testing.T) {
	for name, end := range map[string]func(w *bench) error{
		"stop":       func(w *bench) error { return w.rings[0].Stop() },
		"disconnect": func(w *bench) error { w.close(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t, vndDisk, "hang:open:count=1")
			w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
			w.start(w.all())
			f.waitHeld(1)
			if err := end(w); err != nil {
				t.Fatal(err)
			}
			f.waitHeld(0)
		})
	}
}

func TestAnUncancellableHangEndsWhenItIsReleased(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:write:uncancellable")
	w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
	w.start(w.all())
	status := w.request(0, tOut)
	f.waitHeld(1)
	stopped := make(chan error, 1)
	go func() { stopped <- w.rings[0].Stop() }()
	// Its d_cancel has been when the close drains.
	for order := w.order(); len(order) == 0 || order[len(order)-1].String() != "drain"; order = w.order() {
		runtime.Gosched()
	}
	f.waitHeld(1)
	if len(stopped) != 0 {
		t.Error("the ring was answered with a write in flight")
	}
	f.control(fault.FAULTRELEASE, nil)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if got := w.bytes(status)[0]; got != statusIOErr { // vnd was cancelled
		t.Errorf("status %d, want IOERR", got)
	}
}

func TestFaultsAreErrorsToTheGuest(t *testing.T) {
	for rule, c := range map[string]struct {
		typ  uint32
		want uint8
	}{
		"error:read":                          {tIn, statusIOErr},
		"error:write:errno=ENOSPC":            {tOut, statusIOErr},
		"error:flush":                         {tFlush, statusIOErr},
		"error:discard:errno=ENODEV":          {tDiscard, statusUnsupp},
		"error:zeroes:errno=EOPNOTSUPP":       {tWriteZeroes, statusUnsupp},
		"short:read":                          {tIn, statusIOErr},
		"short:write":                         {tOut, statusIOErr},
		"delay:read:time=1ms-2ms:seed=1":      {tIn, statusOK},
		"delay:flush+discard:time=1ms:prob=1": {tFlush, statusOK},
	} {
		t.Run(rule, func(t *testing.T) {
			f := newFaulty(t, vndDisk, rule)
			w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
			w.start(w.all())
			status := w.request(0, c.typ)
			if _, _, err := w.rings[0].Wait(); err != nil {
				t.Fatal(err)
			}
			if got := w.bytes(status)[0]; got != c.want {
				t.Errorf("status %d, want %d", got, c.want)
			}
		})
	}
}

// TestAGuestSeesAPowerFailure: what it has not flushed is lost, and nothing works until the device
// is started again.
func TestAGuestSeesAPowerFailure(t *testing.T) {
	f := newFaulty(t, vndDisk)
	f.conf.Cache = 1 << 20
	w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
	w.start(w.all())
	data := w.buffer(4096)
	fill := func(v byte) { copy(w.bytes(data), bytes.Repeat([]byte{v}, 4096)) }
	for v, typ := range []uint32{tOut, tFlush, tOut} {
		out := []virtqtest.Seg{data}
		if fill(byte(v + 1)); typ == tFlush {
			out = nil
		}
		if st, _ := w.do(0, typ, 0, out, nil); st != statusOK {
			t.Fatalf("%s: status %d", typeName(typ), st)
		}
	}
	o := fault.Outage{Off: true}
	f.control(fault.FAULTCRASH, &o)
	if o.Dropped != 8 {
		t.Errorf("%+v", o)
	}
	if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{data}); st != statusIOErr {
		t.Errorf("a read without power: status %d", st)
	}
	if err := w.rings[0].Stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.rings[0].Start(); err != nil {
		t.Fatal(err)
	}
	if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{data}); st != statusOK || w.bytes(data)[0] != 1 || w.bytes(data)[4095] != 1 {
		t.Errorf("status %d; the guest reads %d, and has flushed 1", st, w.bytes(data)[0])
	}
}

// TestAFailedReadSaysThatNothingWasWritten looks at the length in the used ring.
func TestAFailedReadSaysThatNothingWasWritten(t *testing.T) {
	f := newFaulty(t, vndDisk, "error:read+flush:errno=EIO")
	w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
	w.start(w.all())
	data := []virtqtest.Seg{w.buffer(4096)}
	for name, c := range map[string]struct {
		typ     uint32
		sector  uint64
		in      []virtqtest.Seg
		status  uint8
		written uint32
	}{
		"a read":                      {tIn, 0, data, statusIOErr, 0},
		"a read beyond the end":       {tIn, diskSize, data, statusIOErr, 0},
		"a flush":                     {tFlush, 0, nil, statusIOErr, 1},
		"a serial number":             {tGetID, 0, []virtqtest.Seg{w.buffer(idSize)}, statusOK, idSize + 1},
		"a serial number with room":   {tGetID, 0, data, statusOK, idSize},
		"what is not known":           {99, 0, nil, statusUnsupp, 1},
		"what is not known with room": {99, 0, data, statusUnsupp, 0},
	} {
		if st, n := w.do(0, c.typ, c.sector, nil, c.in); st != c.status || n != c.written {
			t.Errorf("%s: status %d and %d bytes, want %d and %d", name, st, n, c.status, c.written)
		}
	}
}

// TestARingThatIsTooSmallForItsRequestsIsTold starts rings of several sizes.
func TestARingThatIsTooSmallForItsRequestsIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		size, segMax int
		without      uint64 // features
		told         bool
	}{
		"QEMU's default":             {128, 0, fIndirect, false},
		"small":                      {64, 0, fIndirect, true},
		"small, with the option":     {64, 62, fIndirect, false},
		"small, indirect":            {16, 0, 0, false},
		"small, one segment":         {16, 0, fIndirect | fSegMax, false},
		"large, and more is allowed": {256, 1022, fIndirect, true},
	} {
		t.Run(name, func(t *testing.T) {
			var logged []string
			w := newBench(t, reactor.ModeURing, 1, nullDisk, func(conf *benchConfig) {
				conf.SegMax, conf.Log = c.segMax, func(text string, _ error) { logged = append(logged, text) }
			})
			want := c.segMax
			if want == 0 {
				want = 126
			}
			config := must(w.f.GetConfig(0, configSize))(t)
			if got := binary.LittleEndian.Uint32(config[12:]); got != uint32(want) {
				t.Errorf("seg_max is %d, want %d", got, want)
			}
			w.offered &^= c.without
			w.startSized(c.size, nil)
			w.do(0, tFlush, 0, nil, nil)
			w.close()
			told := slices.ContainsFunc(logged, func(s string) bool { return strings.Contains(s, "--seg-max") })
			if told != c.told {
				t.Errorf("told: %v, want %v: %q", told, c.told, logged)
			}
		})
	}
}
