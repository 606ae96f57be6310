package virtioblk

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// cautious is a disk that is a Keeper. A process has one; a successor's is another one.
type cautious struct {
	volatile bool   // it holds what is written until a flush or a close
	holder   uint64 // then

	mu     sync.Mutex
	fail   devsw.Errno // what flushes and writes fail with
	state  devsw.DiskState
	told   []devsw.DiskState // by SetState
	size   int64
	onSync func()
	closes int
	slow   chan struct{} // where it is not nil, a close waits for its end
}

func (c *cautious) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	if c.volatile {
		c.holder = devsw.NewHolder()
	}
	ok := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
	b := &devsw.Bdevsw{
		Name: "cautious", Flag: devsw.DDisk | devsw.DMPSafe, Open: ok, Cancel: ok,
		Close: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
			c.mu.Lock()
			slow := c.slow
			c.closes++
			c.mu.Unlock()
			if slow != nil {
				<-slow
			}
			return nil
		},
		Strategy: func(b *devsw.Buf) {
			c.mu.Lock()
			e := c.fail
			if e != 0 && b.Flags&devsw.BMediaFUA != 0 {
				c.state.FlushError = e
			}
			c.mu.Unlock()
			if e != 0 && b.Op == devsw.BWrite {
				b.Fail(e)
				return
			}
			b.Resid = 0
			b.Biodone()
		},
		Ioctl: func(_ devsw.Dev, cmd devsw.Cmd, _ any, _ devsw.Flag) error {
			if cmd != devsw.DIOCCACHESYNC {
				return devsw.ENOTTY
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.onSync != nil {
				c.onSync()
			}
			if c.fail != 0 {
				c.state.FlushError = c.fail
			}
			if c.state.FlushError != 0 {
				return c.state.FlushError
			}
			return nil
		},
	}
	bmajor, _, err := table.Attach("cautious", b, devsw.NODEVMAJOR, &devsw.Cdevsw{Name: "cautious"}, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bmajor), 0), func() (devsw.DiskInfo, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		info := devsw.DiskInfo{Size: max(c.size, diskSize), SectorSize: 512}
		if c.volatile {
			info.Holds, info.Holder = devsw.HoldsToClose, c.holder
		}
		return info, nil
	}
}

func (c *cautious) State() devsw.DiskState {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state
}

func (c *cautious) SetState(s devsw.DiskState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told = append(c.told, s)
	c.state = s
}

func (c *cautious) ClearState() (devsw.DiskState, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.state
	c.state = devsw.DiskState{}
	return s, nil
}

func (c *cautious) setFail(e devsw.Errno) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fail = e
}

// heard returns what SetState was told, and forgets it.
func (c *cautious) heard() []devsw.DiskState {
	c.mu.Lock()
	defer c.mu.Unlock()
	told := c.told
	c.told = nil
	return told
}

// cautiousBench connects a front-end to a disk of c, with the region, or a new one.
func cautiousBench(t *testing.T, c *cautious) *bench {
	return newBench(t, reactor.ModeURing, 1, c.disk, func(conf *benchConfig) { conf.Keeper = c })
}

// copyOf makes a file of what is in the region.
func copyOf(i *vhostusertest.Inflight) (*sys.FD, error) {
	p := make([]byte, i.MmapSize)
	if _, errno := sys.Preadv(i.FD(), [][]byte{p}, int64(i.MmapOffset)); errno != 0 {
		return nil, errno
	}
	to, err := sys.NewSealedMemfd("copy", int64(len(p)))
	if err != nil {
		return nil, err
	}
	if _, errno := sys.Pwritev(to.Int(), [][]byte{p}, int64(i.MmapOffset), false); errno != 0 {
		to.Close()
		return nil, errno
	}
	return to, nil
}

// startWith starts the rings with a new region.
func (w *bench) startWith(features uint64) *vhostusertest.Inflight {
	w.t.Helper()
	region := must(w.f.NewInflight(w.dev.NumQueues(), 128))(w.t)
	w.t.Cleanup(region.Close)
	w.start(features)
	return region
}

// TestAFailedFlushIsHandedOn: a successor of this process, a new region of this one, and a
// migration's target know of it before the guest's first request.
func TestAFailedFlushIsHandedOn(t *testing.T) {
	failed := devsw.DiskState{FlushError: devsw.ENOSPC}
	for name, fail := range map[string]func(w *bench, c *cautious){
		"flush": func(w *bench, _ *cautious) {
			if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusIOErr {
				t.Errorf("the flush has status %d", st)
			}
		},
		"stable write": func(w *bench, _ *cautious) {
			w.check(w.f.SetConfig(writebackOff, []byte{0}))
			if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusIOErr {
				t.Errorf("the write has status %d", st)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := &cautious{}
			w := cautiousBench(t, c)
			region := w.startWith(w.all())
			c.setFail(devsw.ENOSPC)
			fail(w, c)
			// As it is when this process is killed now.
			killed := vhostusertest.NewInflight(region.Inflight, must(copyOf(region))(t))
			t.Cleanup(killed.Close)

			next := &cautious{}
			o := cautiousBench(t, next)
			w.moveTo(o)
			o.restart(killed)
			if st, _ := o.do(0, tFlush, 0, nil, nil); st != statusIOErr {
				t.Errorf("the successor's flush has status %d", st)
			}
			if told := next.heard(); !slices.Equal(told, []devsw.DiskState{failed}) {
				t.Errorf("the successor was told %+v", told)
			}

			// The guest is reset; its new region is another process's next.
			o.stopRings()
			o.check(o.f.ResetDevice())
			o.rings[0].Close()
			o.rings = nil
			region = o.startWith(o.all())
			third := &cautious{}
			p := cautiousBench(t, third)
			o.moveTo(p)
			p.restart(region)
			if st, _ := p.do(0, tFlush, 0, nil, nil); st != statusIOErr {
				t.Errorf("the flush after a reset and one process more has status %d", st)
			}
			// The operator knows better.
			if s, err := p.dev.ClearFailure(); s != failed || err != nil {
				t.Errorf("cleared %+v, %v", s, err)
			}
			if s, err := p.dev.ClearFailure(); s != (devsw.DiskState{}) || err != nil {
				t.Errorf("cleared again: %+v, %v", s, err)
			}
			if st, _ := p.do(0, tFlush, 0, nil, nil); st != statusOK {
				t.Errorf("the flush after that has status %d", st)
			}
			killed = vhostusertest.NewInflight(region.Inflight, must(copyOf(region))(t))
			t.Cleanup(killed.Close)
			last := &cautious{}
			q := cautiousBench(t, last)
			p.moveTo(q)
			q.restart(killed)
			if st, _ := q.do(0, tFlush, 0, nil, nil); st != statusOK || last.heard() != nil {
				t.Errorf("the last one's flush has status %d", st)
			}
		})
	}
}

// TestAFailureIsNotForgottenWithItsRegion: the front-end brings another one before the disk is
// opened.
func TestAFailureIsNotForgottenWithItsRegion(t *testing.T) {
	c := &cautious{}
	w := cautiousBench(t, c)
	region := w.startWith(w.all())
	c.setFail(devsw.ENOSPC)
	if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusIOErr {
		t.Fatalf("the flush has status %d", st)
	}
	next := &cautious{}
	o := cautiousBench(t, next)
	w.moveTo(o)
	o.check(o.f.SetFeatures(o.all()))
	o.check(o.f.AddMemory(o.mem))
	o.check(o.f.SetInflightFD(region))
	other := must(o.f.GetInflightFD(1, 128))(t)
	t.Cleanup(other.Close)
	o.startRings(other)
	if st, _ := o.do(0, tFlush, 0, nil, nil); st != statusIOErr {
		t.Errorf("the successor's flush has status %d", st)
	}
	if told := next.heard(); !slices.Equal(told, []devsw.DiskState{{FlushError: devsw.ENOSPC}}) {
		t.Errorf("the successor was told %+v", told)
	}
}

// TestUnflushedWritesAreHandedOn where a process of the disk's holds them, and this one is killed:
// it leaves the page as it is. What became of them the next one knows, or it takes them for lost.
func TestUnflushedWritesAreHandedOn(t *testing.T) {
	write := func(w *bench) {
		w.t.Helper()
		if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
			w.t.Fatalf("write: %d", st)
		}
	}
	flush := func(w *bench) {
		w.t.Helper()
		if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusOK {
			w.t.Fatalf("flush: %d", st)
		}
	}
	for name, c := range map[string]struct {
		volatile bool
		do       func(w *bench, c *cautious)
		want     bool
	}{
		"nothing":              {true, func(*bench, *cautious) {}, false},
		"write":                {true, func(w *bench, _ *cautious) { write(w) }, true},
		"write of a safe disk": {false, func(w *bench, _ *cautious) { write(w) }, false},
		"write, flush":         {true, func(w *bench, _ *cautious) { write(w); flush(w) }, false},
		"write, flush, write":  {true, func(w *bench, _ *cautious) { write(w); flush(w); write(w) }, true},
		"write through": {true, func(w *bench, _ *cautious) {
			w.check(w.f.SetConfig(writebackOff, []byte{0}))
			write(w)
		}, false},
		"write while a flush is under way": {true, func(w *bench, c *cautious) {
			write(w)
			c.mu.Lock()
			c.onSync = w.dev.memory.answered
			c.mu.Unlock()
			flush(w)
		}, true},
		"write, flush that fails": {true, func(w *bench, c *cautious) {
			write(w)
			c.setFail(devsw.EIO)
			w.do(0, tFlush, 0, nil, nil)
		}, true},
		"write, close": {true, func(w *bench, _ *cautious) { write(w); w.stopRings() }, false},
		"write, close that leaves it": {true, func(w *bench, c *cautious) {
			write(w)
			c.mu.Lock()
			c.state.Unflushed = true
			c.mu.Unlock()
			w.stopRings()
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			d := &cautious{volatile: c.volatile}
			w := cautiousBench(t, d)
			region := w.startWith(w.all())
			c.do(w, d)
			// As it is when this process is killed now.
			killed := vhostusertest.NewInflight(region.Inflight, must(copyOf(region))(t))
			t.Cleanup(killed.Close)

			next := &cautious{volatile: c.volatile}
			o := cautiousBench(t, next)
			w.moveTo(o)
			o.restart(killed)
			st, _ := o.do(0, tFlush, 0, nil, nil)
			if got := st != statusOK; got != c.want {
				t.Errorf("the successor's flush has status %d, want it to fail: %v", st, c.want)
			}
			if told := next.heard(); told != nil && told[0].FlushError == 0 {
				t.Errorf("the successor was told %+v", told)
			}
		})
	}
}

// TestWhatBecameOfAHolderDecides whether a guest goes on that has unflushed writes with it.
func TestWhatBecameOfAHolderDecides(t *testing.T) {
	for name, c := range map[string]struct {
		stop         bool // the disk is closed before the kill
		ended, known bool
		want         []byte
	}{
		"killed, it has ended in order":                            {false, true, true, allWell},
		"killed, it has not":                                       {false, false, true, allFail},
		"killed, nothing is known":                                 {false, false, false, allFail},
		"closed, it has ended in order":                            {true, true, true, allWell},
		"closed, it has not":                                       {true, false, true, allFail},
		"closed, nothing is known: the guest comes from elsewhere": {true, false, false, allWell},
	} {
		t.Run(name, func(t *testing.T) {
			d := &cautious{volatile: true}
			w := cautiousBench(t, d)
			region := w.startWith(w.all())
			w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil)
			if c.stop {
				w.stopRings()
			}
			next := &cautious{volatile: true}
			var asked []uint64
			o := newBench(t, reactor.ModeURing, 1, next.disk, func(conf *benchConfig) {
				conf.Keeper = next
				conf.Ended = func(holder uint64) (ended, known bool) {
					asked = append(asked, holder)
					return c.ended, c.known
				}
			})
			region = w.goOnWith(o, region)
			o.expect("with the next vdev", c.want)
			o.stopRings()
			o.startRings(region)
			o.expect("after a pause", c.want)
			if !slices.Equal(asked, []uint64{d.holder}) {
				t.Errorf("asked about %x, want %x once", asked, d.holder)
			}
			// What has ended in order, with nothing new, is not asked for any more.
			o.do(0, tFlush, 0, nil, nil)
			third := &cautious{volatile: true}
			p := cautiousBench(t, third)
			o.goOnWith(p, region)
			p.expect("with one vdev more", c.want)
		})
	}
}

// TestWhatIsSaidOfOneHolderIsNotTakenForAnothers, whose page comes while the first one is asked
// about.
func TestWhatIsSaidOfOneHolderIsNotTakenForAnothers(t *testing.T) {
	const first, second = 4711, 4713
	c := &cautious{volatile: true}
	began, goOn := make(chan struct{}), make(chan struct{})
	w := newBench(t, reactor.ModeURing, 1, c.disk, func(conf *benchConfig) {
		conf.Keeper = c
		conf.Ended = func(holder uint64) (ended, known bool) {
			if holder == first {
				close(began)
				<-goOn
			}
			return holder == first, true
		}
	})
	m := &w.dev.memory
	held := func(holder uint64) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.writes, m.holder = writesHeld, holder
	}
	held(first)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.dev.takeOver()
	}()
	<-began
	held(second)
	close(goOn)
	<-done
	if !m.lost() {
		t.Error("the second one has not ended in order, and its writes are not lost")
	}
}

// TestAnOpenAfterACloseHoldsNothing of before: what held it has ended in order, or the driver says
// that it has not.
func TestAnOpenAfterACloseHoldsNothing(t *testing.T) {
	d := &cautious{volatile: true}
	w := cautiousBench(t, d)
	region := w.startWith(w.all())
	w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil)
	w.stopRings()
	w.startRings(region)
	w.do(0, tIn, 0, nil, []virtqtest.Seg{w.buffer(512)})
	next := &cautious{volatile: true}
	o := cautiousBench(t, next)
	w.goOnWith(o, region)
	o.expect("with the next vdev", allWell)
}

// TestACloseThatTakesLongStillSaysThatNothingIsLost: the region has been dropped meanwhile, and
// waits with the front-end for the next connection.
func TestACloseThatTakesLongStillSaysThatNothingIsLost(t *testing.T) {
	c := &cautious{volatile: true, slow: make(chan struct{})}
	w := cautiousBench(t, c)
	region := w.startWith(w.all())
	if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
		t.Fatalf("write: %d", st)
	}
	unflushed := func() bool {
		t.Helper()
		state := pageState(t, region)
		return state&stateHeld != 0 && state&stateHanded == 0
	}
	w.hangUp()
	if !unflushed() {
		t.Error("nothing is lost although the close has not ended")
	}
	close(c.slow)
	w.waitClosed()
	if unflushed() {
		t.Error("something is lost although the close has ended")
	}
	w.connect(everything)
	for _, r := range w.rings {
		r.Reconnect(w.f)
	}
	w.restart(region)
	w.do(0, tFlush, 0, nil, nil)
	if told := c.heard(); told != nil {
		t.Errorf("the next open was told %+v", told)
	}
}

// TestAStartThatIsOverBeforeTheCloseSaysNothingOfIt: the device is not opened for it, and what the
// guest has written is still with whom the close is to end in order.
func TestAStartThatIsOverBeforeTheCloseSaysNothingOfIt(t *testing.T) {
	c := &cautious{volatile: true, slow: make(chan struct{})}
	w := cautiousBench(t, c)
	region := w.startWith(w.all())
	if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
		t.Fatalf("write: %d", st)
	}
	handed := func() bool { return pageState(t, region)&stateHanded != 0 }
	w.stopRings()
	w.startRings(region)
	w.stopRings()
	if handed() {
		t.Error("the disk counts as closed although its close has not ended")
	}
	close(c.slow)
	w.waitClosed()
	if !handed() {
		t.Error("the disk does not count as closed although its close has ended")
	}
}

// pageState gives the state in the region's page.
func pageState(t *testing.T, region *vhostusertest.Inflight) uint32 {
	t.Helper()
	var state [4]byte // behind the page's mark
	if _, errno := sys.Preadv(region.FD(), [][]byte{state[:]}, int64(region.MmapSize-4096+8)); errno != 0 {
		t.Fatal(errno)
	}
	return binary.LittleEndian.Uint32(state[:])
}

// TestAStatePageMayHoldAnything: it is the front-end's.
func TestAStatePageMayHoldAnything(t *testing.T) {
	for _, state := range []uint32{0, 3, 0xf, 0x10, 0xffff0000, 0xffffffff, 1 << 20} {
		driver, told, disk := parseState(state)
		if driver > cacheWritethrough || told > cacheWritethrough || disk.FlushError > maxErrno {
			t.Errorf("%#x is taken for %v, %v, %+v", state, driver, told, disk)
		}
	}
}
