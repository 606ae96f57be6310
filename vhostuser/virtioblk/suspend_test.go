package virtioblk

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

const (
	noInflight  = ^(vhostuser.ProtocolInflightSHMFD | vhostuser.ProtocolGetVringBaseInflight)
	noMigration = ^vhostuser.ProtocolGetVringBaseInflight
	everything  = vhostusertest.AllProtocolFeatures
)

// again connects anew, as a front-end that knows these protocol features.
func (w *bench) again(want vhostuser.ProtocolFeatures) {
	w.t.Helper()
	w.hangUp()
	w.connect(want)
	for _, r := range w.rings {
		r.Reconnect(w.f)
	}
}

// restart negotiates, gives the back-end memory and in-flight region (which may be nil), and
// starts the rings where they were.
func (w *bench) restart(region *vhostusertest.Inflight) {
	w.t.Helper()
	w.check(w.f.SetFeatures(w.all()))
	w.check(w.f.AddMemory(w.mem))
	w.startRings(region)
}

func (w *bench) startRings(region *vhostusertest.Inflight) {
	w.t.Helper()
	if region != nil {
		w.check(w.f.SetInflightFD(region))
	}
	for _, r := range w.rings {
		w.check(r.Start())
	}
}

func (w *bench) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// newSuspendBench connects a front-end that knows these protocol features, and starts its rings,
// with an in-flight region where it knows what that is.
func newSuspendBench(t *testing.T, mode reactor.Mode, queues int, make disk, want vhostuser.ProtocolFeatures, change func(*benchConfig)) (*bench, *vhostusertest.Inflight) {
	t.Helper()
	w := newBench(t, mode, queues, make, change)
	if want != everything {
		w.hangUp()
		w.connect(want)
		must(w.f.GetConfig(0, configSize))(t) // as a front-end does that makes its device
	}
	var region *vhostusertest.Inflight
	if want&vhostuser.ProtocolInflightSHMFD != 0 {
		region = must(w.f.GetInflightFD(queues, 128))(t)
		t.Cleanup(region.Close)
		w.check(w.f.SetInflightFD(region))
	}
	w.start(w.all())
	return w, region
}

// disable disables all rings, as QEMU does before it stops them one by one.
func (w *bench) disable() {
	w.t.Helper()
	for _, r := range w.rings {
		w.check(w.f.SetVringEnable(r.Index, false))
	}
}

func (w *bench) stopRings() {
	w.t.Helper()
	w.disable()
	for _, r := range w.rings {
		w.check(r.Stop())
	}
}

// watch poisons all that the guest has used of its memory, the rings as well, runs what might have
// somebody write there, and looks. It is called right after the back-end has promised to leave the
// memory alone, and leaves it as it was.
func (w *bench) watch(provoke func()) {
	w.t.Helper()
	for _, r := range w.rings {
		r.Called()
	}
	all := w.mem.Bytes(0, w.mem.Alloc(1, 1))
	before := bytes.Clone(all)
	poison := bytes.Repeat([]byte{0xee}, len(all))
	copy(all, poison)
	provoke()
	for range 20 {
		time.Sleep(200 * time.Microsecond)
	}
	if !bytes.Equal(all, poison) {
		w.t.Error("guest memory was written after the stop")
	}
	for i, r := range w.rings {
		if r.Called() {
			w.t.Errorf("ring %d was signalled after the stop", i)
		}
	}
	copy(all, before)
}

// expectOrder looks whether the device's life since the last look was this.
func (w *bench) expectOrder(what string, want ...specfs.Kind) {
	w.t.Helper()
	w.waitClosed()
	w.trace.Lock()
	defer w.trace.Unlock()
	var got []specfs.Kind
	for _, e := range w.trace.events {
		got = append(got, e.Kind)
	}
	w.trace.events = nil
	if !slices.Equal(got, want) {
		w.t.Errorf("%s: the device has gone through %v, want %v", what, got, want)
	}
}

func (w *bench) waitStop() {
	w.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		if !w.dev.Status().CancelAt.IsZero() {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal("no stop has begun")
		}
	}
}

var (
	opens   = []specfs.Kind{specfs.EventOpen, specfs.EventOpened}
	closes  = []specfs.Kind{specfs.EventCancel, specfs.EventCanceled, specfs.EventDrain, specfs.EventDrained, specfs.EventClose, specfs.EventClosed}
	revokes = slices.Concat([]specfs.Kind{specfs.EventRevoke}, closes, []specfs.Kind{specfs.EventRevoked})
)

// TestWhatAStopDoesWithRequestsThatHang goes through the branches of the stop sequence: what ends
// the rings, what the front-end knows of in-flight regions, and whether the guest can be migrated.
// Whoever waits where it must cancel at once waits for an hour.
func TestWhatAStopDoesWithRequestsThatHang(t *testing.T) {
	const never = time.Hour
	byBase := func(w *bench) { w.stopRings() }
	byReset := func(w *bench) { w.check(w.f.ResetDevice()) }
	byHangUp := func(w *bench) { w.hangUp() }
	byNewOwner := func(w *bench) {
		w.check(w.f.SetOwner())
		w.check(w.f.Barrier())
	}
	byHangUpInTheStop := func(w *bench) {
		go func(f *vhostusertest.Frontend) { _, _ = f.GetVringBase(0) }(w.f)
		w.waitStop()
		w.hangUp()
	}
	// More messages are on their way, as from a front-end that asks for no acknowledgement.
	byHangUpInTheDisable := func(w *bench) {
		for i := range w.rings {
			w.check(w.f.Request(vhostuser.SetVringEnable, 0, vhostuser.VringState{Index: uint32(i)}.Append(nil)))
		}
		w.waitStop()
		w.hangUp()
	}
	rows := map[string]struct {
		end        func(*bench)
		knows      vhostuser.ProtocolFeatures
		migratable bool
		after      time.Duration
		suspended  bool
		life       []specfs.Kind
		lost       bool // the region goes as well
	}{
		"base, the region travels":               {byBase, everything, true, never, true, closes, false},
		"base, the region travels, not migrated": {byBase, everything, false, never, true, closes, false},
		"base, the region stays":                 {byBase, noMigration, true, 10 * time.Millisecond, false, closes, false},
		"base, the region stays, not migrated":   {byBase, noMigration, false, 10 * time.Millisecond, true, closes, false},
		"base, not migrated, at once":            {byBase, noMigration, false, 0, true, closes, false},
		"base, no region":                        {byBase, noInflight, true, 10 * time.Millisecond, false, closes, false},
		"base, no region, not migrated":          {byBase, noInflight, false, 10 * time.Millisecond, false, closes, false},
		"base, no region, at once":               {byBase, noInflight, true, 0, false, closes, false},
		"reset, the region travels":              {byReset, everything, false, never, false, revokes, true},
		"reset, no region":                       {byReset, noInflight, true, never, false, revokes, true},
		"disconnect, the region travels":         {byHangUp, everything, true, never, true, revokes, false},
		"disconnect, the region stays":           {byHangUp, noMigration, true, never, true, revokes, false},
		"disconnect, no region":                  {byHangUp, noInflight, true, never, false, revokes, false},
		"disconnect in a stop, the region stays": {byHangUpInTheStop, noMigration, true, never, true, closes, false},
		"disconnect in a stop, no region":        {byHangUpInTheStop, noInflight, true, never, false, closes, false},
		"disconnect in a disable, with a region": {byHangUpInTheDisable, noMigration, true, never, true, closes, false},
		"disconnect in a disable, no region":     {byHangUpInTheDisable, noInflight, true, never, false, closes, false},
		"another owner, the region travels":      {byNewOwner, everything, true, never, true, revokes, true},
		"another owner, no region":               {byNewOwner, noInflight, true, never, false, revokes, true},
	}
	for name, c := range rows {
		t.Run(name, func(t *testing.T) {
			eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
				const queues = 2
				f := newFaulty(t, lower, "hang:any")
				w, region := newSuspendBench(t, mode, queues, f.disk, c.knows, func(conf *benchConfig) {
					conf.CancelAfter, conf.Migratable = c.after, c.migratable
				})
				var status [queues][]virtqtest.Seg
				for q := range queues {
					for _, typ := range kinds {
						status[q] = append(status[q], w.request(q, typ))
					}
				}
				f.waitHeld(queues * len(kinds))
				w.expectOrder("start", opens...)
				c.end(w)
				w.expectOrder("stop", c.life...)
				w.watch(func() {
					f.control(fault.FAULTCLEAR, nil)
					f.control(fault.FAULTRELEASE, nil)
				})
				for q, r := range w.rings {
					want, used := uint8(statusIOErr), len(kinds)
					if c.suspended {
						want, used = 0xff, 0
					}
					for i, s := range status[q] {
						if got := w.bytes(s)[0]; got != want {
							t.Errorf("ring %d: %s has status %#x, want %#x", q, typeName(kinds[i]), got, want)
						}
					}
					if got := int(r.UsedIdx()); got != used {
						t.Errorf("ring %d: %d requests were used, want %d", q, got, used)
					}
					if w.f != nil && !c.lost && int(r.Base) != used {
						t.Errorf("ring %d: the next one to fetch is %d, want %d", q, r.Base, used)
					}
					if got := int(w.suspended[q].Load()); got != len(kinds)-used {
						t.Errorf("ring %d: %d are said to be suspended, want %d", q, got, len(kinds)-used)
					}
				}
				if c.lost {
					return
				}
				if w.f == nil {
					w.again(c.knows)
					w.restart(region)
				} else {
					w.startRings(region)
				}
				for q, r := range w.rings {
					for range kinds {
						if _, _, err := r.Wait(); err != nil {
							t.Fatal(err)
						}
					}
					for i, s := range status[q] {
						if got := w.bytes(s)[0]; c.suspended && got != statusOK {
							t.Errorf("ring %d: %s, begun again, has status %#x", q, typeName(kinds[i]), got)
						}
					}
					if st, _ := w.do(q, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
						t.Errorf("ring %d: a read after all that has status %d", q, st)
					}
					if _, _, more := r.Used(); more {
						t.Errorf("ring %d: a request was used twice", q)
					}
				}
				var s fault.State
				f.control(fault.FAULTGET, &s)
				again := uint64(0)
				if c.suspended {
					again = queues
				}
				for _, op := range []fault.Ops{fault.Read, fault.Write, fault.Flush, fault.Discard, fault.Zeroes} {
					want := queues + again
					if op == fault.Read {
						want += queues
					}
					if s.Ops[op] != want {
						t.Errorf("the driver has seen %d of %v, want %d", s.Ops[op], op, want)
					}
				}
				w.stopRings()
				w.expectOrder("restart and stop", slices.Concat(opens, closes)...)
			})
		})
	}
}

// TestAStopLeavesWhatCompletesAlone: what ends in time, though the stop has begun, ends well,
// suspending or not.
func TestAStopLeavesWhatCompletesAlone(t *testing.T) {
	for _, knows := range []vhostuser.ProtocolFeatures{noInflight, noMigration} {
		for _, migratable := range []bool{false, true} {
			f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:any")
			w, _ := newSuspendBench(t, reactor.ModeURing, 1, f.disk, knows, func(c *benchConfig) {
				c.CancelAfter, c.Migratable = time.Hour, migratable
			})
			var status []virtqtest.Seg
			for _, typ := range kinds {
				status = append(status, w.request(0, typ))
			}
			f.waitHeld(len(kinds))
			stopped := make(chan error, 1)
			go func() { stopped <- w.rings[0].Stop() }()
			w.waitStop()
			f.control(fault.FAULTRELEASE, nil)
			w.check(<-stopped)
			for i, s := range status {
				if got := w.bytes(s)[0]; got != statusOK {
					t.Errorf("%s has status %#x, want OK", typeName(kinds[i]), got)
				}
			}
			w.close()
		}
	}
}

// recorder is a driver that writes down the transfers that come, by block, and holds them while it
// is told to.
type recorder struct {
	noCancelBuf bool

	mu   sync.Mutex
	hold bool
	// blocks whose transfers a cancel ends with ENXIO, as if they had never reached the driver
	refuse  map[int64]bool
	opens   int
	came    []int64
	pending []*devsw.Buf
}

func (d *recorder) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	b := &devsw.Bdevsw{
		Name: "recorder", Flag: devsw.DDisk | devsw.DMPSafe,
		Open: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.opens++
			return nil
		},
		Cancel:    func(devsw.Dev, devsw.Flag, devsw.Mode) error { d.cancel(nil); return nil },
		CancelBuf: d.cancel,
		Strategy:  d.strategy,
	}
	if d.noCancelBuf {
		b.CancelBuf = nil
	}
	return attach(t, table, b)
}

func (d *recorder) strategy(b *devsw.Buf) {
	d.mu.Lock()
	d.came = append(d.came, b.Blkno)
	if d.hold {
		d.pending = append(d.pending, b)
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	b.InContext, b.Resid = true, 0
	b.Biodone()
}

// cancel ends b, or all where it is nil, the newest first: what has a good order must get it
// elsewhere.
func (d *recorder) cancel(b *devsw.Buf) {
	d.mu.Lock()
	var all []*devsw.Buf
	d.pending = slices.DeleteFunc(d.pending, func(p *devsw.Buf) bool {
		if b != nil && p != b {
			return false
		}
		all = append(all, p)
		return true
	})
	refuse := d.refuse
	d.mu.Unlock()
	for _, b := range slices.Backward(all) {
		e := devsw.ECANCELED
		if refuse[b.Blkno] {
			e = devsw.ENXIO
		}
		b.Fail(e)
	}
}

// end ends the transfer of one block well.
func (d *recorder) end(block int64) {
	d.mu.Lock()
	i := slices.IndexFunc(d.pending, func(b *devsw.Buf) bool { return b.Blkno == block })
	b := d.pending[i]
	d.pending = slices.Delete(d.pending, i, i+1)
	d.mu.Unlock()
	b.Resid = 0
	b.Biodone()
}

func (d *recorder) setHold(hold bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold = hold
}

// take waits until n transfers have come since the last look, and gives their blocks.
func (d *recorder) take(t testing.TB, n int) []int64 {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		d.mu.Lock()
		came := d.came
		if len(came) >= n {
			d.came = nil
			d.mu.Unlock()
			return came
		}
		d.mu.Unlock()
		if time.Now().After(deadline) {
			t.Fatalf("the transfers of %v have come, want %d", came, n)
		}
	}
}

// readAt adds a read of one block to ring q.
func (w *bench) readAt(q int, block uint64) (status virtqtest.Seg) {
	w.t.Helper()
	status = w.buffer(1)
	w.bytes(status)[0] = 0xff
	if _, ok := w.rings[q].Add([]virtqtest.Seg{w.header(tIn, block)}, []virtqtest.Seg{w.buffer(512), status}); !ok {
		w.t.Fatal("no room")
	}
	w.check(w.rings[q].Notify())
	return status
}

// TestSuspendedRequestsGoOnInTheirOrderOnce, over several stops, of which each leaves some.
func TestSuspendedRequestsGoOnInTheirOrderOnce(t *testing.T) {
	d := &recorder{hold: true}
	w, region := newSuspendBench(t, reactor.ModeURing, 1, d.disk, everything, nil)
	var status []virtqtest.Seg
	for i := range 6 {
		status = append(status, w.readAt(0, uint64(i)))
	}
	expect := func(what string, want ...int64) {
		t.Helper()
		if got := d.take(t, len(want)); !slices.Equal(got, want) {
			t.Errorf("%s: the driver gets %v, want %v", what, got, want)
		}
	}
	expect("the start", 0, 1, 2, 3, 4, 5)
	d.end(3)
	w.stopRings()
	w.startRings(region)
	expect("the second start", 0, 1, 2, 4, 5)
	status = append(status, w.readAt(0, 6))
	expect("a new one", 6)
	d.end(0)
	d.end(5)
	w.hangUp()
	w.again(everything)
	w.restart(region)
	expect("the third start, of another front-end", 1, 2, 4, 6)
	w.stopRings()
	d.setHold(false)
	w.startRings(region)
	expect("the last start", 1, 2, 4, 6)
	for range status {
		if _, _, err := w.rings[0].Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range status {
		if got := w.bytes(s)[0]; got != statusOK {
			t.Errorf("request %d has status %#x", i, got)
		}
	}
	if got := w.rings[0].UsedIdx(); int(got) != len(status) {
		t.Errorf("%d requests were used of %d", got, len(status))
	}
}

// TestWhatDidNotReachTheDriverIsUnfetched as far as it was fetched last; the ring then begins
// there again, also where there is no in-flight region.
func TestWhatDidNotReachTheDriverIsUnfetched(t *testing.T) {
	for name, c := range map[string]struct {
		knows    vhostuser.ProtocolFeatures
		refuse   map[int64]bool
		base     uint16
		statuses []uint8
	}{
		"suspended":        {everything, map[int64]bool{2: true, 3: true}, 0, []uint8{0xff, 0xff, 0xff, 0xff}},
		"suspended around": {everything, map[int64]bool{1: true, 3: true}, 0, []uint8{0xff, 0xff, 0xff, 0xff}},
		"failed":           {noInflight, map[int64]bool{2: true, 3: true}, 2, []uint8{1, 1, 0xff, 0xff}},
		"failed around":    {noInflight, map[int64]bool{1: true, 3: true}, 3, []uint8{1, 1, 1, 0xff}},
		"all unfetched":    {noInflight, map[int64]bool{0: true, 1: true, 2: true, 3: true}, 0, []uint8{0xff, 0xff, 0xff, 0xff}},
		"none unfetched":   {noInflight, map[int64]bool{0: true, 1: true, 2: true}, 4, []uint8{1, 1, 1, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			d := &recorder{hold: true, refuse: c.refuse}
			w, region := newSuspendBench(t, reactor.ModeURing, 1, d.disk, c.knows, nil)
			var status []virtqtest.Seg
			for i := range c.statuses {
				status = append(status, w.readAt(0, uint64(i)))
			}
			d.take(t, len(status))
			w.stopRings()
			if got := w.rings[0].Base; got != c.base {
				t.Errorf("the next one to fetch is %d, want %d", got, c.base)
			}
			for i, want := range c.statuses {
				if got := w.bytes(status[i])[0]; got != want {
					t.Errorf("request %d has status %#x, want %#x", i, got, want)
				}
			}
			suspended := 0
			if region != nil {
				suspended = 4 - len(c.refuse)
				if !c.refuse[2] {
					suspended = 3 // only the last can be unfetched
				}
			}
			if got := w.ring(0).Suspended; got != suspended {
				t.Errorf("%d are suspended, want %d", got, suspended)
			}
			d.setHold(false)
			w.startRings(region)
			for range status {
				if _, _, err := w.rings[0].Wait(); err != nil {
					t.Fatal(err)
				}
			}
			for i, was := range c.statuses {
				if got := w.bytes(status[i])[0]; was == 0xff && got != statusOK {
					t.Errorf("request %d, begun again, has status %#x", i, got)
				}
			}
		})
	}
}

// TestNoStaleWriteLandsAfterANewerOne: a write hangs when the ring is stopped; whatever becomes of
// it, what the guest writes to the same block after the next start is what stays, also when
// everything that hung is let go.
func TestNoStaleWriteLandsAfterANewerOne(t *testing.T) {
	eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
		for name, c := range map[string]struct {
			knows vhostuser.ProtocolFeatures
			end   func(*bench)
		}{
			"suspended by a stop":       {everything, func(w *bench) { w.stopRings() }},
			"failed by a stop":          {noInflight, func(w *bench) { w.stopRings() }},
			"suspended by a disconnect": {everything, func(w *bench) { w.hangUp() }},
			"failed by a disconnect":    {noInflight, func(w *bench) { w.hangUp() }},
		} {
			t.Run(name, func(t *testing.T) {
				f := newFaulty(t, lower, "hang:write")
				w, region := newSuspendBench(t, mode, 1, f.disk, c.knows, nil)
				write := func(v byte) virtqtest.Seg {
					data, status := w.buffer(512), w.buffer(1)
					copy(w.bytes(data), bytes.Repeat([]byte{v}, 512))
					w.bytes(status)[0] = 0xff
					w.rings[0].Add([]virtqtest.Seg{w.header(tOut, 0), data}, []virtqtest.Seg{status})
					w.check(w.rings[0].Notify())
					return status
				}
				write(1)
				f.waitHeld(1)
				c.end(w)
				if w.f == nil {
					w.again(c.knows)
					w.check(w.f.SetFeatures(w.all()))
					w.check(w.f.AddMemory(w.mem))
				}
				w.startRings(region)
				left := 1
				if region != nil {
					f.waitHeld(1) // the old one, begun again
					left = 2
				} else if _, _, err := w.rings[0].Wait(); err != nil {
					t.Fatal(err)
				}
				f.control(fault.FAULTCLEAR, nil)
				if left == 2 {
					// The guest knows that it has not ended, and does not overtake it.
					f.control(fault.FAULTRELEASE, nil)
					if _, _, err := w.rings[0].Wait(); err != nil {
						t.Fatal(err)
					}
				}
				newer := write(2)
				if _, _, err := w.rings[0].Wait(); err != nil {
					t.Fatal(err)
				}
				f.control(fault.FAULTRELEASE, nil)
				if got := w.bytes(newer)[0]; got != statusOK {
					t.Fatalf("the newer write has status %#x", got)
				}
				data := w.buffer(512)
				for range 10 {
					if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{data}); st != statusOK || w.bytes(data)[0] != 2 || w.bytes(data)[511] != 2 {
						t.Fatalf("status %d; the guest reads %d, and has written 2 last", st, w.bytes(data)[0])
					}
				}
			})
		}
	})
}

// hasty is a Device that is told to disable rings as if the deadline had passed.
type hasty struct {
	*Device
	passed atomic.Bool
}

func (d *hasty) around(of *Device) vhostuser.Device {
	d.Device = of
	return d
}

func (d *hasty) PauseQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	if d.passed.Load() {
		how.Deadline = time.Now()
	}
	d.Device.PauseQueue(q, how)
}

// TestOneDeadlineForAllRings: the first ring that is disabled with a request in flight sets it,
// those that are disabled or stopped after it do not set it anew, and when it is over, the device
// is closed for all of them, once.
func TestOneDeadlineForAllRings(t *testing.T) {
	d := &recorder{hold: true}
	hasty := new(hasty)
	w, _ := newSuspendBench(t, reactor.ModeURing, 4, d.disk, noInflight, func(c *benchConfig) {
		c.CancelAfter, c.StopGap, c.around = 10*time.Minute, time.Hour, hasty.around
	})
	var status []virtqtest.Seg
	for q := 1; q < 4; q++ {
		status = append(status, w.readAt(q, uint64(q)))
	}
	d.take(t, 3)
	disable := func(q int) (disabled chan error) {
		disabled = make(chan error, 1)
		go func() { disabled <- w.f.SetVringEnable(q, false) }()
		return disabled
	}
	w.check(<-disable(0)) // has nothing in flight
	if at := w.dev.Status().CancelAt; !at.IsZero() {
		t.Error("a ring with nothing in flight has set a deadline")
	}
	disabled := disable(1)
	w.waitStop()
	first := w.dev.Status().CancelAt
	d.end(1)
	w.check(<-disabled)
	disabled = disable(2)
	w.waitStop()
	if at := w.dev.Status().CancelAt; !at.Equal(first) {
		t.Errorf("the deadline has moved by %v", at.Sub(first))
	}
	w.expectOrder("disables", opens...)
	d.end(2)
	w.check(<-disabled)
	hasty.passed.Store(true)
	w.check(<-disable(3))
	w.expectOrder("the last disable", closes...)
	for _, r := range w.rings {
		w.check(r.Stop())
	}
	w.expectOrder("the stops")
	for i, want := range []uint8{statusOK, statusOK, statusIOErr} {
		if got := w.bytes(status[i])[0]; got != want {
			t.Errorf("the request of ring %d has status %#x, want %#x", i+1, got, want)
		}
	}
	if at := w.dev.Status().CancelAt; !at.IsZero() {
		t.Error("the deadline stands after the last stop")
	}
}

// TestADisabledRingGoesOnAfterTheDeviceWasClosed for the stop of the other one: what it had in
// flight is begun again, and the guest sees no error.
func TestADisabledRingGoesOnAfterTheDeviceWasClosed(t *testing.T) {
	for name, knows := range map[string]vhostuser.ProtocolFeatures{"the region travels": everything, "it stays": noMigration} {
		t.Run(name, func(t *testing.T) {
			d := &recorder{hold: true}
			w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, knows, nil)
			var status []virtqtest.Seg
			for i := range 3 {
				status = append(status, w.readAt(1, uint64(10+i)))
			}
			w.readAt(0, 0)
			d.take(t, 4)
			w.disable()
			w.check(w.rings[0].Stop())
			w.expectOrder("the first stop", slices.Concat(opens, closes)...)
			status = append(status, w.readAt(1, 13)) // not fetched: the ring is disabled
			if r, s := w.ring(1), w.dev.Status(); r.Suspended != 3 || r.InFlight != 0 || s.State != StateClosed {
				t.Errorf("the disabled ring has %+v, the device is %v", r, s.State)
			}
			d.setHold(false)
			w.check(w.f.SetVringEnable(1, true))
			for range status {
				if _, _, err := w.rings[1].Wait(); err != nil {
					t.Fatal(err)
				}
			}
			if got, want := d.take(t, 4), []int64{10, 11, 12, 13}; !slices.Equal(got, want) {
				t.Errorf("the driver gets %v, want %v", got, want)
			}
			for i, s := range status {
				if got := w.bytes(s)[0]; got != statusOK {
					t.Errorf("request %d has status %#x", i, got)
				}
			}
			w.expectOrder("enabled again", opens...)
			w.check(w.rings[1].Stop())
			w.expectOrder("the last stop", closes...)
		})
	}
}

// TestADisabledRingThatIsEnabledHasATimeOfItsOwn: the deadline of a stop that went on without it
// is not its.
func TestADisabledRingThatIsEnabledHasATimeOfItsOwn(t *testing.T) {
	d := &recorder{hold: true}
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, noInflight, func(c *benchConfig) {
		c.CancelAfter, c.StopGap = 10*time.Minute, time.Hour
	})
	w.readAt(0, 0)
	d.take(t, 1)
	disabled := make(chan error, 1)
	go func() { disabled <- w.f.SetVringEnable(0, false) }()
	w.waitStop()
	first := w.dev.Status().CancelAt
	d.end(0)
	w.check(<-disabled)
	w.check(w.f.SetVringEnable(1, false))
	w.check(w.rings[0].Stop())
	w.check(w.f.SetVringEnable(1, true))
	status := w.readAt(1, 1)
	d.take(t, 1)
	stopped := make(chan error, 1)
	go func() { stopped <- w.rings[1].Stop() }()
	w.waitStop()
	if at := w.dev.Status().CancelAt; at.Equal(first) {
		t.Error("it has the deadline of the stop before")
	}
	d.end(1)
	w.check(<-stopped)
	if got := w.bytes(status)[0]; got != statusOK {
		t.Errorf("status %#x", got)
	}
}

// TestARingThatWaitsForTheEndOfAStopGoesOnWithIt: the device was closed for a ring that was
// disabled, and that ring is enabled again. No further one is to be expected to be disabled.
func TestARingThatWaitsForTheEndOfAStopGoesOnWithIt(t *testing.T) {
	d := &recorder{hold: true, noCancelBuf: true}
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, noInflight, func(c *benchConfig) {
		c.CancelAfter, c.StopGap = time.Millisecond, time.Hour
	})
	w.readAt(0, 0)
	status := w.readAt(1, 1)
	d.take(t, 2)
	d.setHold(false)
	w.check(w.f.SetVringEnable(0, false))
	w.expectOrder("the disable", slices.Concat(opens, closes)...)
	w.check(w.f.SetVringEnable(0, true))
	if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Errorf("%v; the other ring's read has status %#x", err, w.bytes(status)[0])
	}
}

// TestARingStoppedAloneCancelsItsOwnTransfers, wherever they are, with the device open and the
// other ring's going on.
func TestARingStoppedAloneCancelsItsOwnTransfers(t *testing.T) {
	eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
		for name, c := range map[string]struct {
			rule      string
			cache     int64
			suspended bool
		}{
			"fails": {"hang:read+write", 0, false}, "suspended": {"hang:read+write", 0, true},
			"delayed": {"delay:read+write:time=1h", 0, false}, "with a cache": {"hang:read+write", 1 << 20, true},
		} {
			t.Run(name, func(t *testing.T) {
				f := newFaulty(t, lower, c.rule)
				f.conf.Cache = c.cache
				knows, want := noInflight, uint8(statusIOErr)
				if c.suspended {
					knows, want = everything, 0xff
				}
				w, _ := newSuspendBench(t, mode, 2, f.disk, knows, nil)
				own := []virtqtest.Seg{w.request(0, tIn), w.request(0, tOut)}
				other := []virtqtest.Seg{w.request(1, tIn), w.request(1, tOut)}
				f.waitHeld(4)
				w.check(w.rings[0].Stop())
				f.waitHeld(2)
				w.expectOrder("the stop of one ring", opens...)
				for i, s := range own {
					if got := w.bytes(s)[0]; got != want {
						t.Errorf("request %d of the ring has status %#x, want %#x", i, got, want)
					}
				}
				f.control(fault.FAULTCLEAR, nil)
				if name == "delayed" {
					w.check(w.rings[1].Stop())
					return
				}
				f.control(fault.FAULTRELEASE, nil)
				for i, s := range other {
					if _, _, err := w.rings[1].Wait(); err != nil {
						t.Fatal(err)
					}
					if i == 1 && (w.bytes(other[0])[0] != statusOK || w.bytes(s)[0] != statusOK) {
						t.Error("the other ring's requests have failed")
					}
				}
			})
		}
	})
}

// TestWhatARingStoppedAloneCannotCancelHasTheDeviceTakenDown: the other ring goes on with its
// requests when the device has been opened again.
func TestWhatARingStoppedAloneCannotCancelHasTheDeviceTakenDown(t *testing.T) {
	t.Run("a flush", func(t *testing.T) {
		f := newFaulty(t, vndDisk, "hang:any")
		w, _ := newSuspendBench(t, reactor.ModeURing, 2, f.disk, noInflight, func(c *benchConfig) { c.StopGap = time.Millisecond })
		own := w.request(0, tFlush)
		var other []virtqtest.Seg
		for _, typ := range kinds {
			other = append(other, w.request(1, typ))
		}
		f.waitHeld(1 + len(kinds))
		f.control(fault.FAULTCLEAR, nil)
		w.check(w.rings[0].Stop())
		if got := w.bytes(own)[0]; got != statusIOErr {
			t.Errorf("the flush has status %#x", got)
		}
		for range kinds {
			if _, _, err := w.rings[1].Wait(); err != nil {
				t.Fatal(err)
			}
		}
		for i, s := range other {
			if got := w.bytes(s)[0]; got != statusOK {
				t.Errorf("%s of the other ring has status %#x", typeName(kinds[i]), got)
			}
		}
		w.expectOrder("the stop of one ring", slices.Concat(opens, closes, opens)...)
	})
	t.Run("a driver without CancelBuf", func(t *testing.T) {
		d := &recorder{hold: true, noCancelBuf: true}
		w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, everything, nil)
		own, other := w.readAt(0, 0), w.readAt(1, 1)
		d.take(t, 2)
		stopped := make(chan error, 1)
		go func() { stopped <- w.rings[0].Stop() }()
		w.check(<-stopped)
		d.take(t, 1)
		d.end(1)
		if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(other)[0] != statusOK || w.bytes(own)[0] != 0xff {
			t.Error(err, w.bytes(own)[0], w.bytes(other)[0])
		}
		w.expectOrder("the stop of one ring", slices.Concat(opens, closes, opens)...)
	})
}

// TestStatusTellsWhatADeviceWaitsFor, while it does.
func TestStatusTellsWhatADeviceWaitsFor(t *testing.T) {
	f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:open", "hang:any")
	w := newBench(t, reactor.ModeURing, 2, f.disk, func(c *benchConfig) { c.CancelAfter = time.Hour })
	status := w.dev.Status
	if s := status(); s.State != StateClosed || len(s.Oldest) != 2 || s.Oldest[1] != 0 {
		t.Errorf("before the start: %+v", s)
	}
	w.start(w.all())
	f.waitHeld(1)
	if s := status(); s.State != StateOpening || len(s.Operations) != 1 {
		t.Errorf("while it is being opened: %+v", s)
	}
	f.control(fault.FAULTRELEASE, nil)
	w.request(1, tIn)
	w.request(1, tFlush)
	f.waitHeld(2)
	s := status()
	if s.State != StateOpen || s.Oldest[0] != 0 || s.Oldest[1] <= 0 || w.ring(0).InFlight != 0 || w.ring(1).InFlight != 2 {
		t.Errorf("with requests in flight: %+v", s)
	}
	if later := status().Oldest[1]; later <= s.Oldest[1] {
		t.Errorf("the oldest was in flight for %v, and is for %v", s.Oldest[1], later)
	}
	if len(s.Operations) != 2 { // the transfer and the flush
		t.Errorf("operations: %+v", s.Operations)
	}
	w.check(w.f.SetVringEnable(0, false))
	stopped := make(chan error, 1)
	go func() { stopped <- errors.Join(w.f.SetVringEnable(1, false), w.rings[1].Stop()) }()
	w.waitStop()
	if s, r := status(), w.ring(1); s.State != StateOpen || r.InFlight != 2 {
		t.Errorf("in the stop: %+v, %+v", s, r)
	}
	f.control(fault.FAULTRELEASE, nil)
	w.check(<-stopped)
	w.check(w.rings[0].Stop())
	if s := status(); s.State != StateClosed || !s.CancelAt.IsZero() || s.Oldest[1] != 0 {
		t.Errorf("after the stop: %+v", s)
	}
}

// guest writes blocks and reads them back, and knows what must be there.
type guest struct {
	*bench
	rng     *rand.Rand
	asked   []map[uint16]*asked // by ring and head
	busy    map[uint64]bool     // blocks with a request in flight
	acked   map[uint64]byte     // what was written last and answered well
	maybe   map[uint64][]byte   // what has failed since, and may have been written
	failed  int
	version byte
	lives   int
}

type asked struct {
	typ          uint32
	block        uint64
	data, status virtqtest.Seg
	value        byte
}

const guestBlocks = 64

func newGuest(w *bench, seed uint64) *guest {
	g := &guest{bench: w, rng: rand.New(rand.NewPCG(seed, 1)), busy: make(map[uint64]bool), acked: make(map[uint64]byte),
		maybe: make(map[uint64][]byte)}
	for range w.rings {
		g.asked = append(g.asked, make(map[uint16]*asked))
	}
	return g
}

// ask adds some requests to the rings. No two in flight are of the same block.
func (g *guest) ask(n int) {
	g.t.Helper()
	for range n {
		q := g.rng.IntN(len(g.rings))
		a := &asked{typ: []uint32{tIn, tOut, tOut, tFlush}[g.rng.IntN(4)], block: g.rng.Uint64N(guestBlocks),
			data: g.buffer(512), status: g.buffer(1)}
		if a.typ != tFlush && g.busy[a.block] {
			continue
		}
		g.bytes(a.status)[0] = 0xff
		out, in := []virtqtest.Seg{g.header(a.typ, a.block)}, []virtqtest.Seg{a.status}
		switch a.typ {
		case tIn:
			in = append([]virtqtest.Seg{a.data}, in...)
		case tOut:
			g.version++
			a.value = g.version
			copy(g.bytes(a.data), bytes.Repeat([]byte{a.value}, 512))
			out = append(out, a.data)
		}
		head, ok := g.rings[q].Add(out, in)
		if !ok {
			continue
		}
		if a.typ != tFlush {
			g.busy[a.block] = true
		}
		g.asked[q][head] = a
		g.check(g.rings[q].Notify())
	}
}

// reap takes what was answered, and checks it.
func (g *guest) reap() {
	g.t.Helper()
	for q, r := range g.rings {
		for {
			head, _, ok := r.Used()
			if !ok {
				break
			}
			a := g.asked[q][head]
			if a == nil {
				g.t.Fatalf("ring %d: head %d was used twice", q, head)
			}
			delete(g.asked[q], head)
			g.answered(a)
		}
	}
}

func (g *guest) answered(a *asked) {
	g.t.Helper()
	if a.typ != tFlush {
		delete(g.busy, a.block)
	}
	switch st := g.bytes(a.status)[0]; {
	case st != statusOK:
		g.failed++
		if a.typ == tOut {
			g.maybe[a.block] = append(g.maybe[a.block], a.value)
		}
		if st != statusIOErr {
			g.t.Errorf("%s of block %d has status %#x", typeName(a.typ), a.block, st)
		}
	case a.typ == tOut:
		g.acked[a.block], g.maybe[a.block] = a.value, nil
	case a.typ == tIn:
		got := g.bytes(a.data)
		if bytes.Count(got, got[:1]) != 512 || got[0] != g.acked[a.block] && !slices.Contains(g.maybe[a.block], got[0]) {
			g.t.Errorf("block %d has %d, want %d or one of %v", a.block, got[0], g.acked[a.block], g.maybe[a.block])
		}
	}
}

func (g *guest) inFlight() (n int) {
	for _, m := range g.asked {
		n += len(m)
	}
	return n
}

// finish waits until everything is answered.
func (g *guest) finish() {
	g.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); g.inFlight() > 0; runtime.Gosched() {
		if g.reap(); time.Now().After(deadline) {
			g.t.Fatalf("%d requests were never answered", g.inFlight())
		}
	}
}

// stopsOfAllKinds are what a front-end may know in such stops, and whether no request fails then.
var stopsOfAllKinds = map[string]struct {
	knows     vhostuser.ProtocolFeatures
	faultless bool
}{"the region travels": {everything, true}, "the region stays": {noMigration, true}, "no region": {noInflight, false}}

// TestEachRequestIsAnsweredOnceOverStopsOfAllKinds, with the right data, on a disk that is slow,
// hangs, and has a cache; and where the region travels with the guest, or nothing else needs what
// is in it, without an error.
func TestEachRequestIsAnsweredOnceOverStopsOfAllKinds(t *testing.T) {
	if testing.Short() {
		t.Skip("it stops a busy disk many times")
	}
	for name, c := range stopsOfAllKinds {
		t.Run(name, func(t *testing.T) {
			eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
				for seed := range uint64(3) {
					f := newFaulty(t, lower, fmt.Sprintf("delay:any:time=1us-500us:prob=0.5:seed=%d", seed),
						fmt.Sprintf("hang:any:prob=0.1:seed=%d", seed))
					f.conf.Cache = int64(seed%2) << 14
					more := func(g *guest) bool { return g.lives < 15 }
					stopInAllWays(t, mode, f, seed, c.knows, c.faultless, more, nil)
				}
			})
		})
	}
}

// TestEachRequestIsAnsweredOnceThatWasFenced, or has come back at whatever moment of a stop, on a
// disk that cannot be interrupted.
func TestEachRequestIsAnsweredOnceThatWasFenced(t *testing.T) {
	if testing.Short() {
		t.Skip("it stops a busy disk many times")
	}
	for name, c := range stopsOfAllKinds {
		t.Run(name, func(t *testing.T) {
			const seed = 1
			f := newFaulty(t, mdDisk(md.Config{Size: diskSize}),
				fmt.Sprintf("delay:any:time=1us-500us:prob=0.5:seed=%d", seed),
				fmt.Sprintf("hang:any:uncancellable:prob=0.3:seed=%d", seed))
			quit, ended := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(ended)
				rng := rand.New(rand.NewPCG(seed, 2))
				for {
					select {
					case <-quit:
						return
					case <-time.After(closeWait/2 + time.Duration(rng.Int64N(int64(2*closeWait)))):
						f.control(fault.FAULTRELEASE, nil)
					}
				}
			}()
			defer func() {
				close(quit)
				<-ended
			}()
			var log lines
			more := func(g *guest) bool {
				// A start waits for what was fenced. What is stopped before is not open.
				g.until("the device is open", func() bool { return g.dev.Status().State == StateOpen })
				return log.with("they were fenced") < 4
			}
			stopInAllWays(t, reactor.ModeURing, f, seed, c.knows, c.faultless, more, log.log)
		})
	}
}

// stopInAllWays has a guest work on a disk that f serves, and stops it, for as long as more says.
func stopInAllWays(t *testing.T, mode reactor.Mode, f *faulty, seed uint64,
	knows vhostuser.ProtocolFeatures, faultless bool, more func(*guest) bool, log func(string, error)) {
	t.Helper()
	w, region := newSuspendBench(t, mode, 3, f.disk, knows, func(c *benchConfig) {
		c.CancelAfter, c.StopGap, c.Log = time.Millisecond, time.Duration(seed)*time.Millisecond, log
		if c.StopGap == 0 {
			c.StopGap = time.Nanosecond
		}
	})
	g := newGuest(w, seed)
	for ; more(g); g.lives++ {
		g.life(knows, region)
	}
	f.control(fault.FAULTCLEAR, nil)
	f.control(fault.FAULTRELEASE, nil)
	g.finish()
	for block := range uint64(guestBlocks) {
		data := w.buffer(512)
		if st, _ := w.do(0, tIn, block, nil, []virtqtest.Seg{data}); st != statusOK {
			t.Fatalf("block %d: status %d", block, st)
		}
		if v := w.bytes(data)[0]; v != g.acked[block] && !slices.Contains(g.maybe[block], v) {
			t.Errorf("block %d has %d, want %d or one of %v", block, v, g.acked[block], g.maybe[block])
		}
	}
	if faultless && g.failed > 0 {
		t.Errorf("%d requests have failed", g.failed)
	}
	for _, q := range w.dev.startedQueues() {
		q.vq.Do(func() {
			if q.held != 0 || len(q.free) != len(q.requests) {
				t.Errorf("ring %d: %d units are held, and %d requests of %d are free",
					q.vq.Index(), q.held, len(q.free), len(q.requests))
			}
		})
	}
	w.stopRings()
	w.close()
}

// life has the guest work for a while, and then stops its rings in some way, and starts them
// again.
func (g *guest) life(knows vhostuser.ProtocolFeatures, region *vhostusertest.Inflight) {
	g.t.Helper()
	for range 3 {
		g.ask(g.rng.IntN(12))
		if g.rng.IntN(2) == 0 {
			time.Sleep(time.Duration(g.rng.IntN(500)) * time.Microsecond)
		}
		g.reap()
	}
	switch g.rng.IntN(4) {
	case 0: // pause and go on
		g.stopRings()
		g.reap()
		g.startRings(region)
	case 1: // the connection is lost
		g.hangUp()
		g.reap()
		g.again(knows)
		g.restart(region)
	case 2: // one ring is stopped by itself
		r := g.rings[g.rng.IntN(len(g.rings))]
		g.check(r.Stop())
		g.reap()
		g.check(r.Start())
	case 3: // all are disabled, some are stopped, and all go on
		g.disable()
		var stopped []*vhostusertest.Ring
		for _, r := range g.rings {
			if g.rng.IntN(2) == 0 {
				g.check(r.Stop())
				stopped = append(stopped, r)
			}
		}
		for _, r := range g.rings {
			if slices.Contains(stopped, r) {
				g.check(r.Start())
			} else {
				g.check(g.f.SetVringEnable(r.Index, true))
			}
		}
	}
}

// TestWhatASessionForgetsIsNotBegunAgain: what was suspended goes with a reset, and with the
// session, since the guest has forgotten it, too. The next start, with a region of its own, begins
// with nothing.
func TestWhatASessionForgetsIsNotBegunAgain(t *testing.T) {
	reset := func(w *bench) { w.check(w.f.ResetDevice()) }
	for name, end := range map[string]func(*bench){
		"a reset": reset,
		"a pause, and then a reset": func(w *bench) {
			w.stopRings()
			for range 3 { // as often as QEMU sends it
				reset(w)
			}
		},
		"another owner": func(w *bench) {
			w.stopRings()
			w.offered = must(w.f.Handshake(everything))(w.t)
		},
		"another front-end": func(w *bench) {
			w.hangUp()
			w.connect(everything)
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:write")
			w, _ := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, nil)
			status := w.request(0, tOut)
			f.waitHeld(1)
			end(w)
			f.control(fault.FAULTCLEAR, nil)
			was := w.bytes(status)[0]

			w.rings[0].Close()
			w.rings = nil
			next := must(w.f.NewInflight(1, 128))(t)
			t.Cleanup(next.Close)
			w.start(w.all())
			if s := w.ring(0); s.Resubmitted != 0 || s.InFlight+s.Suspended != 0 || !s.Known {
				t.Errorf("the ring begins with %+v", s)
			}
			if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
				t.Errorf("a read has status %d", st)
			}
			var s fault.State
			f.control(fault.FAULTGET, &s)
			if s.Ops[fault.Write] != 1 || w.bytes(status)[0] != was {
				t.Errorf("the write that was forgotten was begun %d times, its status is %#x, and was %#x", s.Ops[fault.Write], w.bytes(status)[0], was)
			}
		})
	}
}

// TestADisabledRingCompletesWhatItHas, and fetches nothing.
func TestADisabledRingCompletesWhatItHas(t *testing.T) {
	d := &recorder{hold: true}
	w, _ := newSuspendBench(t, reactor.ModeURing, 1, d.disk, everything, nil)
	first := w.readAt(0, 0)
	d.take(t, 1)
	w.disable()
	second := w.readAt(0, 1)
	d.end(0)
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(first)[0] != statusOK {
		t.Error(err, w.bytes(first)[0])
	}
	if s := w.ring(0); s.InFlight+s.Suspended != 0 || !s.Known || w.bytes(second)[0] != 0xff {
		t.Errorf("the disabled ring has %+v", s)
	}
	d.setHold(false)
	w.check(w.f.SetVringEnable(0, true))
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(second)[0] != statusOK {
		t.Error(err, w.bytes(second)[0])
	}
	w.expectOrder("all that", opens...)
}

// TestRequestsWaitForAnOpenAndFailWithIt until the next start, which tries again.
func TestRequestsWaitForAnOpenAndFailWithIt(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:open", "error:open:count=1")
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, f.disk, everything, nil)
	for _, c := range []struct {
		state  State
		status uint8
	}{{StateFailed, statusIOErr}, {StateOpen, statusOK}} {
		status := []virtqtest.Seg{w.request(0, tOut), w.request(1, tFlush)}
		f.waitHeld(1)
		if s := w.dev.Status(); s.State != StateOpening || w.inFlight() != 0 {
			t.Errorf("while it is being opened: %+v", s)
		}
		f.control(fault.FAULTRELEASE, nil)
		for i, s := range status {
			if _, _, err := w.rings[i].Wait(); err != nil || w.bytes(s)[0] != c.status {
				t.Errorf("%v, status %#x, want %#x", err, w.bytes(s)[0], c.status)
			}
		}
		if s := w.dev.Status(); s.State != c.state || (s.Err != nil) != (c.state == StateFailed) {
			t.Errorf("the device is %v, with %v", s.State, s.Err)
		}
		w.stopRings()
		w.startRings(nil)
	}
	f.waitHeld(1)
}

// TestADisabledRingWhoseDeviceCannotBeOpenedAgainFails what it had, as every request of a device
// that could not be opened does.
func TestADisabledRingWhoseDeviceCannotBeOpenedAgainFails(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:any", "error:open:skip=1")
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, f.disk, everything, nil)
	w.request(0, tOut)
	var status []virtqtest.Seg
	for _, typ := range kinds {
		status = append(status, w.request(1, typ))
	}
	f.waitHeld(1 + len(kinds))
	w.disable()
	w.check(w.rings[0].Stop())
	w.check(w.f.SetVringEnable(1, true))
	for range kinds {
		if _, _, err := w.rings[1].Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range status {
		if got := w.bytes(s)[0]; got != statusIOErr {
			t.Errorf("%s has status %#x", typeName(kinds[i]), got)
		}
	}
}

// TestAnOperationThatCannotBeInterruptedDoesNotHoldTheReply where it does not use the guest's
// memory. The device stays closing until it has ended, and what the guest does after the next
// start waits for that: nothing newer is overtaken.
func TestAnOperationThatCannotBeInterruptedDoesNotHoldTheReply(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for storage that hangs")
	}
	for name, c := range map[string]struct {
		knows vhostuser.ProtocolFeatures
		end   func(*bench)
	}{
		"a stop, suspending":       {everything, func(w *bench) { w.stopRings() }},
		"a stop, failing":          {noInflight, func(w *bench) { w.stopRings() }},
		"a disconnect, suspending": {everything, func(w *bench) { w.hangUp() }},
		"a disconnect, failing":    {noInflight, func(w *bench) { w.hangUp() }},
	} {
		t.Run(name, func(t *testing.T) {
			eachLower(t, func(t *testing.T, mode reactor.Mode, lower disk) {
				f := newFaulty(t, lower, "hang:flush+discard+zeroes:uncancellable")
				logged := make(chan error, 100)
				w, region := newSuspendBench(t, mode, 2, f.disk, c.knows, func(c *benchConfig) {
					c.Log = func(_ string, err error) { logged <- err }
				})
				var status []virtqtest.Seg
				stuck := []uint32{tFlush, tDiscard, tWriteZeroes}
				for _, typ := range stuck {
					status = append(status, w.request(0, typ))
				}
				f.waitHeld(len(stuck))
				c.end(w)
				if got := w.dev.Status().State; got != StateClosing {
					t.Errorf("the device is %v", got)
				}
				told := 0
				for len(logged) > 0 {
					if drain := (*specfs.DrainError)(nil); errors.As(<-logged, &drain) && len(drain.Waiting) == len(stuck) {
						told++
					}
				}
				if told != 1 {
					t.Errorf("what is still in progress was told %d times", told)
				}
				want, answered := uint8(statusIOErr), len(stuck)
				if region != nil {
					want, answered = 0xff, 0
				}
				if got := int(w.rings[0].UsedIdx()); got != answered {
					t.Errorf("%d were used, want %d", got, answered)
				}
				for i, s := range status {
					if got := w.bytes(s)[0]; got != want {
						t.Errorf("%s has status %#x, want %#x", typeName(stuck[i]), got, want)
					}
				}
				f.control(fault.FAULTCLEAR, nil)
				// Starts and stops meanwhile wait for nothing, and leave nothing behind.
				for range 3 {
					if w.f == nil {
						w.again(c.knows)
						w.restart(region)
					} else {
						w.startRings(region)
					}
					if got := w.dev.Status().State; got != StateClosing {
						t.Errorf("the device is %v", got)
					}
					c.end(w)
				}
				if w.f == nil {
					w.again(c.knows)
					w.restart(region)
				} else {
					w.startRings(region)
				}
				data, done := w.buffer(512), w.buffer(1)
				copy(w.bytes(data), bytes.Repeat([]byte{7}, 512))
				w.bytes(done)[0] = 0xff
				w.rings[1].Add([]virtqtest.Seg{w.header(tOut, 0), data}, []virtqtest.Seg{done})
				w.check(w.rings[1].Notify())
				if s, r := w.dev.Status(), w.ring(1); r.InFlight != 0 || s.State != StateClosing {
					t.Errorf("a request has not waited: %+v", s)
				}
				// What was suspended is begun again; the guest, which knows that it has not ended,
				// would not overtake it.
				for range answered {
					w.rings[0].Used()
				}
				f.control(fault.FAULTRELEASE, nil)
				if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(done)[0] != statusOK {
					t.Fatal(err, w.bytes(done)[0])
				}
				if region != nil {
					for range stuck {
						if _, _, err := w.rings[0].Wait(); err != nil {
							t.Fatal(err)
						}
					}
					w.do(1, tOut, 0, []virtqtest.Seg{data}, nil)
				}
				clear(w.bytes(data))
				if st, _ := w.do(1, tIn, 0, nil, []virtqtest.Seg{data}); st != statusOK || w.bytes(data)[0] != 7 {
					t.Errorf("status %d; the guest reads %d, and has written 7 last", st, w.bytes(data)[0])
				}
			})
		})
	}
}

// TestACloseThatHangsDoesNotHoldTheReply: the next start waits for it.
func TestACloseThatHangsDoesNotHoldTheReply(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:close:count=1")
	w, region := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, nil)
	w.stopRings()
	f.waitHeld(1)
	w.startRings(region)
	status := w.request(0, tOut)
	if s, r := w.dev.Status(), w.ring(0); s.State != StateClosing || r.InFlight != 0 {
		t.Errorf("while it is being closed: %+v", s)
	}
	f.control(fault.FAULTRELEASE, nil)
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Error(err, w.bytes(status)[0])
	}
	w.expectOrder("all that", slices.Concat(opens, closes, opens)...)
}
