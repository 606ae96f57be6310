package virtioblk

import (
	"slices"
	"strings"
	"sync"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// lines takes what a device logs.
type lines struct {
	mu  sync.Mutex
	all []string
}

func (l *lines) log(msg string, _ error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, msg)
}

// with counts the lines that have this in them.
func (l *lines) with(text string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.all {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

// goOnWith has the guest go on with another process, which serves a disk of its own, with the
// region as the kill of this process has left it; or without one.
func (w *bench) goOnWith(o *bench, region *vhostusertest.Inflight) *vhostusertest.Inflight {
	w.t.Helper()
	if region == nil {
		w.moveTo(o)
		o.restart(nil)
		return nil
	}
	killed := vhostusertest.NewInflight(region.Inflight, must(copyOf(region))(w.t))
	w.t.Cleanup(killed.Close)
	w.moveTo(o)
	o.restart(killed)
	return killed
}

// statuses does a read, a write and a flush.
func (w *bench) statuses() []byte {
	w.t.Helper()
	var all []byte
	for _, typ := range []uint32{tIn, tOut, tFlush} {
		var out, in []virtqtest.Seg
		switch typ {
		case tIn:
			in = append(in, w.buffer(512))
		case tOut:
			out = append(out, w.buffer(512))
		}
		st, _ := w.do(0, typ, 8, out, in)
		all = append(all, st)
	}
	return all
}

var (
	allWell = []byte{statusOK, statusOK, statusOK}
	allFail = []byte{statusIOErr, statusIOErr, statusIOErr}
)

// expect tells what is wrong with the statuses of a read, a write and a flush.
func (w *bench) expect(when string, want []byte) {
	w.t.Helper()
	if got := w.statuses(); !slices.Equal(got, want) {
		w.t.Errorf("%s: read, write and flush have statuses %v, want %v", when, got, want)
	}
}

// newDriver has the guest be reset.
func (w *bench) newDriver(withRegion bool) (region *vhostusertest.Inflight) {
	w.t.Helper()
	w.stopRings()
	w.check(w.f.ResetDevice())
	for _, r := range w.rings {
		r.Close()
	}
	w.rings = nil
	if withRegion {
		return w.startWith(w.all())
	}
	w.start(w.all())
	return nil
}

// TestAGuestDoesNotGoOnWithADiskThatHasForgottenItsWrites: what a disk in memory has taken ends
// with its process, flushed or not. A guest that goes on with the next one's disk is not to read
// what was there before its writes.
func TestAGuestDoesNotGoOnWithADiskThatHasForgottenItsWrites(t *testing.T) {
	write := func(w *bench) {
		w.t.Helper()
		if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
			w.t.Fatalf("write: %d", st)
		}
	}
	look := func(w *bench) {
		w.t.Helper()
		if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)}); st != statusOK {
			w.t.Fatalf("read: %d", st)
		}
	}
	memory := mdDisk(md.Config{Size: diskSize})
	for name, c := range map[string]struct {
		disk   disk
		region bool
		do     func(w *bench) // what the guest does before its vdev is killed
		want   []byte
	}{
		"write": {memory, true, write, allFail},
		"write, flush": {memory, true, func(w *bench) {
			write(w)
			w.do(0, tFlush, 0, nil, nil)
		}, allFail},
		"write that is stable": {memory, true, func(w *bench) {
			w.check(w.f.SetConfig(writebackOff, []byte{0}))
			write(w)
		}, allFail},
		"discard": {memory, true, func(w *bench) {
			w.do(0, tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 0})}, nil)
		}, allFail},
		"write, pause": {memory, true, func(w *bench) { write(w); w.stopRings() }, allFail},
		"read":         {memory, true, look, allWell},
		"write that fails": {memory, true, func(w *bench) {
			w.do(0, tOut, 1<<40, []virtqtest.Seg{w.buffer(512)}, nil)
		}, allWell},
		"read of what another guest has written": {memory, true, nil, allFail},
		// It is not known then.
		"no region, write":             {memory, false, write, allFail},
		"no region, read":              {memory, false, look, allFail},
		"no region, a disk of no use":  {nullDisk, false, write, allWell},
		"no region, a disk that stays": {vndDisk, false, write, allWell},
		"a disk of no use":             {nullDisk, true, write, allWell},
		"a disk that stays":            {vndDisk, true, write, allWell},
	} {
		t.Run(name, func(t *testing.T) {
			var log lines
			logged := func(conf *benchConfig) { conf.Log = log.log }
			w := newBench(t, reactor.ModeURing, 1, c.disk, nil)
			if !c.region {
				w.again(noInflight)
				must(w.f.GetConfig(0, configSize))(t)
			}
			start := func() *vhostusertest.Inflight {
				if c.region {
					return w.startWith(w.all())
				}
				w.start(w.all())
				return nil
			}
			region := start()
			if c.do != nil {
				c.do(w)
			} else {
				write(w)
				region = w.newDriver(true)
				look(w)
			}

			next := newBench(t, reactor.ModeURing, 1, c.disk, logged)
			if !c.region {
				next.again(noInflight)
			}
			region = w.goOnWith(next, region)
			next.expect("with the next vdev", c.want)
			next.stopRings()
			next.startRings(region)
			next.expect("after a pause", c.want)
			lost := slices.Equal(c.want, allFail)
			if n := log.with("every request fails until the guest resets the device"); lost && n != 1 || !lost && n != 0 {
				t.Errorf("%d lines say that writes are lost: %q", n, log.all)
			}
			if s := next.dev.Status(); s.Lost.Unflushed != lost {
				t.Errorf("the status says %+v", s.Lost)
			}

			third := newBench(t, reactor.ModeURing, 1, c.disk, nil)
			if !c.region {
				third.again(noInflight)
			}
			want := c.want
			if slices.Equal(c.want, allWell) && c.region && c.do != nil && (name == "read" || name == "write that fails") {
				want = allFail // it has written meanwhile
			}
			next.goOnWith(third, region)
			third.expect("with one vdev more", want)
			third.newDriver(c.region)
			third.expect("after a reset", allWell)
		})
	}
}

// TestAGuestGoesOnWithTheDiskInMemoryThatHasItsWrites, whatever comes between.
func TestAGuestGoesOnWithTheDiskInMemoryThatHasItsWrites(t *testing.T) {
	for name, c := range map[string]struct {
		region bool
		then   func(w *bench, region *vhostusertest.Inflight)
	}{
		"pause":                       {true, func(w *bench, region *vhostusertest.Inflight) { w.stopRings(); w.startRings(region) }},
		"pause, no region":            {false, func(w *bench, _ *vhostusertest.Inflight) { w.stopRings(); w.startRings(nil) }},
		"lost connection":             {true, func(w *bench, region *vhostusertest.Inflight) { w.again(everything); w.restart(region) }},
		"lost connection, no region":  {false, func(w *bench, _ *vhostusertest.Inflight) { w.again(noInflight); w.restart(nil) }},
		"reset":                       {true, func(w *bench, _ *vhostusertest.Inflight) { w.newDriver(true) }},
		"region that was not brought": {true, func(w *bench, _ *vhostusertest.Inflight) { w.again(everything); w.restart(nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newBench(t, reactor.ModeURing, 1, mdDisk(md.Config{Size: diskSize}), nil)
			var region *vhostusertest.Inflight
			if c.region {
				region = w.startWith(w.all())
			} else {
				w.again(noInflight)
				w.start(w.all())
			}
			w.expect("at first", allWell)
			c.then(w, region)
			w.expect("afterwards", allWell)
		})
	}
}

// TestTheOperatorLetsAGuestGoOn with a disk that has forgotten its writes.
func TestTheOperatorLetsAGuestGoOn(t *testing.T) {
	memory := mdDisk(md.Config{Size: diskSize})
	w := newBench(t, reactor.ModeURing, 1, memory, nil)
	region := w.startWith(w.all())
	w.expect("at first", allWell)
	next := newBench(t, reactor.ModeURing, 1, memory, nil)
	w.goOnWith(next, region)
	next.expect("with the next vdev", allFail)
	if s, err := next.dev.ClearFailure(); s != (devsw.DiskState{Unflushed: true}) || err != nil {
		t.Errorf("cleared %+v, %v", s, err)
	}
	next.expect("when the operator has said so", allWell)
	if s, err := next.dev.ClearFailure(); s != (devsw.DiskState{}) || err != nil {
		t.Errorf("cleared again: %+v, %v", s, err)
	}
}
