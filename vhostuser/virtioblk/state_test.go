package virtioblk

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// stableWrite does a write and tells whether it was to be stable when it is answered.
func (w *bench) stableWrite(h *held) bool {
	w.t.Helper()
	w.rings[0].Add([]virtqtest.Seg{w.header(tOut, 0), w.buffer(512)}, []virtqtest.Seg{w.buffer(1)})
	w.check(w.rings[0].Notify())
	flags := <-h.more
	h.end()
	if _, _, err := w.rings[0].Wait(); err != nil {
		w.t.Fatal(err)
	}
	return flags&devsw.BMediaFUA != 0
}

// dup duplicates the file of a region.
func dup(i *vhostusertest.Inflight) (*sys.FD, error) { return sys.Dup(i.FD()) }

// moveTo has the guest go on with the back-end of o.
func (w *bench) moveTo(o *bench) {
	w.t.Helper()
	w.hangUp()
	o.mem, o.rings, w.rings = w.mem, w.rings, nil
	for _, r := range o.rings {
		r.Reconnect(o.f)
	}
}

// TestWritesAreStableUnlessTheGuestIsKnownToFlush, whatever comes between the guest's choice and
// the write: a front-end that comes back, or goes on elsewhere, keeps the guest's choice to
// itself.
func TestWritesAreStableUnlessTheGuestIsKnownToFlush(t *testing.T) {
	const through, back = true, false
	choose := func(w *bench, through bool) {
		v := byte(1)
		if through {
			v = 0
		}
		w.check(w.f.SetConfig(writebackOff, []byte{v}))
	}
	newDriver := func(w *bench) {
		for _, r := range w.rings {
			r.Close()
		}
		w.rings = nil
	}
	type world struct {
		*bench
		h      *held
		region *vhostusertest.Inflight
	}
	for name, c := range map[string]struct {
		through bool // the guest's choice at first
		then    func(t *testing.T, w *world)
		stable  bool
	}{
		"pause, back": {back, func(_ *testing.T, w *world) { w.stopRings(); w.startRings(w.region) }, false},
		"pause without a region, through": {through, func(_ *testing.T, w *world) {
			w.stopRings()
			w.startRings(nil)
		}, true},
		"lost connection, through":                  {through, func(_ *testing.T, w *world) { w.again(everything); w.restart(w.region) }, true},
		"lost connection, back":                     {back, func(_ *testing.T, w *world) { w.again(everything); w.restart(w.region) }, false},
		"lost connection without a region, through": {through, func(_ *testing.T, w *world) { w.again(noInflight); w.restart(nil) }, true},
		"lost connection without a region, back":    {back, func(_ *testing.T, w *world) { w.again(noInflight); w.restart(nil) }, true},
		"lost connection, another's region, through": {through, func(t *testing.T, w *world) {
			w.again(everything)
			d := w.region.Inflight
			d.MmapSize = 2112 // as one that has no state page
			w.restart(vhostusertest.NewInflight(d, must(dup(w.region))(t)))
		}, true},
		"lost connection, new size read, through": {through, func(t *testing.T, w *world) {
			w.again(noInflight)
			w.restart(nil)
			must(w.f.GetConfig(0, configSize))(t)
		}, true},
		"reset, through": {through, func(t *testing.T, w *world) {
			w.stopRings()
			w.check(w.f.ResetDevice())
			newDriver(w.bench)
			t.Cleanup(must(w.f.NewInflight(1, 128))(t).Close)
			w.start(w.all())
		}, true},
		"reset, back": {back, func(t *testing.T, w *world) {
			w.stopRings()
			w.check(w.f.ResetDevice())
			newDriver(w.bench)
			t.Cleanup(must(w.f.NewInflight(1, 128))(t).Close)
			w.start(w.all())
		}, false},
		"reset and lost connection, through": {through, func(t *testing.T, w *world) {
			w.stopRings()
			w.check(w.f.ResetDevice())
			w.again(everything)
			newDriver(w.bench)
			t.Cleanup(must(w.f.NewInflight(1, 128))(t).Close)
			w.start(w.all())
		}, true},
		"another front-end, through": {through, func(t *testing.T, w *world) {
			w.again(everything)
			newDriver(w.bench)
			must(w.f.GetConfig(0, configSize))(t)
			t.Cleanup(must(w.f.NewInflight(1, 128))(t).Close)
			w.start(w.all())
		}, false},
		"snapshot of another time, back": {back, func(_ *testing.T, w *world) {
			w.stopRings()
			w.check(w.f.ResetDevice())
			w.check(w.f.SetFeatures(w.all())) // which are gone with the reset, EVENT_IDX too
			w.startRings(nil)
		}, true},
		// A migration's target asks for the configuration first of all.
		"migration without the region, through": {through, func(t *testing.T, w *world) {
			w.again(everything)
			must(w.f.GetConfig(0, configSize))(t)
			w.restart(nil)
		}, true},
		"migration with the region, through": {through, func(t *testing.T, w *world) {
			w.again(everything)
			must(w.f.GetConfig(0, configSize))(t)
			w.restart(w.region)
		}, true},
		"migration with the region, back": {back, func(t *testing.T, w *world) {
			w.again(everything)
			must(w.f.GetConfig(0, configSize))(t)
			w.restart(w.region)
		}, false},
		"migration without the region, and a reboot": {through, func(t *testing.T, w *world) {
			w.again(everything)
			must(w.f.GetConfig(0, configSize))(t)
			w.restart(nil)
			w.stableWrite(w.h)
			w.stopRings()
			newDriver(w.bench)
			w.start(w.all())
		}, false},
		// That read is for the size: the front-end's copy of the mode is the guest's choice, which
		// is not known.
		"lost connection, new size read, and a reboot, through": {through, func(t *testing.T, w *world) {
			w.again(noInflight)
			w.restart(nil)
			must(w.f.GetConfig(0, configSize))(t)
			w.stableWrite(w.h)
			w.stopRings()
			newDriver(w.bench)
			w.start(w.all())
		}, true},
		"migration without the region, and the guest's choice": {through, func(t *testing.T, w *world) {
			w.again(everything)
			must(w.f.GetConfig(0, configSize))(t)
			w.restart(nil)
			choose(w.bench, back)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeld()
			bench, region := newSuspendBench(t, reactor.ModeURing, 1, h.disk, everything, nil)
			w := &world{bench, h, region}
			if c.through {
				choose(w.bench, through)
			}
			if got := w.stableWrite(h); got != c.through {
				t.Errorf("the first write is stable: %v", got)
			}
			c.then(t, w)
			if got := w.stableWrite(h); got != c.stable {
				t.Errorf("the write is stable: %v, want %v", got, c.stable)
			}
		})
	}
}

// TestTheGuestsChoiceIsKnownAfterAKill right after it: the process that is killed leaves the page
// as it is.
func TestTheGuestsChoiceIsKnownAfterAKill(t *testing.T) {
	for name, c := range map[string]struct {
		choices []byte // of writeback
		stable  bool
	}{
		"through":           {[]byte{0}, true},
		"through, and back": {[]byte{0, 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w, region := newSuspendBench(t, reactor.ModeURing, 1, newHeld().disk, everything, nil)
			for _, v := range c.choices {
				w.check(w.f.SetConfig(writebackOff, []byte{v}))
			}
			killed := vhostusertest.NewInflight(region.Inflight, must(copyOf(region))(t))
			t.Cleanup(killed.Close)
			h := newHeld()
			o := newBench(t, reactor.ModeURing, 1, h.disk, nil)
			w.moveTo(o)
			o.restart(killed)
			if got := o.stableWrite(h); got != c.stable {
				t.Errorf("the write is stable: %v, want %v", got, c.stable)
			}
		})
	}
}

// TestASessionBeginsWithTheSizeThatStorageHasNow, and with the one that is known while storage
// does not answer; once it does, the front-end is told.
func TestASessionBeginsWithTheSizeThatStorageHasNow(t *testing.T) {
	c := &cautious{}
	changed := make(chan struct{}, 10)
	told := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Errorf("the front-end is not told of another size: %s", what)
		}
	}
	stuck := make(chan struct{})
	var hang atomic.Bool
	var looks atomic.Int64 // that hang
	w := newBench(t, reactor.ModeURing, 1, c.disk, func(conf *benchConfig) {
		info := conf.Info
		conf.Info = func() (devsw.DiskInfo, error) {
			if hang.Load() {
				looks.Add(1)
				<-stuck
			}
			return info()
		}
		conf.SizeChanged = func() { changed <- struct{}{} }
	})
	capacity := func(want int64) {
		t.Helper()
		if got := binary.LittleEndian.Uint64(must(w.f.GetConfig(0, 8))(t)); got != uint64(want/512) {
			t.Errorf("the capacity is %d sectors, want %d", got, want/512)
		}
	}
	resize := func(n int64) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.size = n
	}
	capacity(diskSize)
	resize(2 * diskSize)
	capacity(diskSize)
	w.hangUp()
	w.connect(everything)
	capacity(2 * diskSize)
	told("one that has come back would not ask")

	letGo := sync.OnceFunc(func() { close(stuck) })
	t.Cleanup(letGo) // before the bench is closed
	resize(3 * diskSize)
	hang.Store(true)
	for range 2 { // the second one does not even wait
		w.hangUp()
		w.connect(everything)
		capacity(2 * diskSize)
	}
	if got := looks.Load(); got != 1 {
		t.Errorf("storage that does not answer was asked %d times, want once", got)
	}
	hang.Store(false)
	letGo()
	told("once storage has answered")
	capacity(3 * diskSize)

	// While a guest has begun with another size, the open finds the one of now.
	w.start(w.all())
	resize(4 * diskSize)
	w.stopRings()
	w.startRings(nil)
	told("by the open")
	capacity(4 * diskSize)
}
