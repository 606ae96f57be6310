package virtioblk

import (
	"slices"
	"sync"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
)

// openFlags is a disk that notes what it is opened with.
type openFlags struct {
	mu    sync.Mutex
	flags []devsw.Flag
}

func (o *openFlags) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	lower, info := mdDisk(md.Config{Size: diskSize})(t, table)
	bmajor, _, err := table.Attach("flags", &devsw.Bdevsw{
		Open: func(_ devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.flags = append(o.flags, flag&devsw.FRESUME)
			return table.BdevOpen(lower, flag, mode)
		},
		Cancel: func(_ devsw.Dev, flag devsw.Flag, mode devsw.Mode) error { return table.BdevCancel(lower, flag, mode) },
		Close:  func(_ devsw.Dev, flag devsw.Flag, mode devsw.Mode) error { return table.BdevClose(lower, flag, mode) },
		Strategy: func(b *devsw.Buf) {
			b.Dev = lower
			table.BdevStrategy(b)
		},
		Flag: devsw.DDisk | devsw.DMPSafe,
	}, devsw.NODEVMAJOR, &devsw.Cdevsw{}, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bmajor), 0), info
}

// take gives the opens since it was called last.
func (o *openFlags) take() []devsw.Flag {
	o.mu.Lock()
	defer o.mu.Unlock()
	flags := o.flags
	o.flags = nil
	return flags
}

// TestDriverIsToldWhetherTheGuestGoesOn: a driver that has lost writes serves a guest that begins
// anew, and fails one that goes on.
func TestDriverIsToldWhetherTheGuestGoesOn(t *testing.T) {
	var o openFlags
	w := newBench(t, reactor.ModeThreads, 2, o.disk, nil)
	w.start(w.all())
	check := func(what string, want ...devsw.Flag) {
		t.Helper()
		for q := range w.rings {
			w.do(q, tIn, 0, nil, nil) // the open is over
		}
		if got := o.take(); !slices.Equal(got, want) {
			t.Errorf("%s: opened with %v, want %v", what, got, want)
		}
	}
	stop := func() {
		t.Helper()
		for _, r := range w.rings {
			if err := r.Stop(); err != nil {
				t.Fatal(err)
			}
		}
	}
	start := func() {
		t.Helper()
		for _, r := range w.rings {
			if err := r.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	check("the first start", 0)
	for range 2 {
		stop()
		start()
		check("after a pause", devsw.FRESUME)
	}
	stop()
	if err := w.f.ResetDevice(); err != nil {
		t.Fatal(err)
	}
	for _, r := range w.rings {
		r.Close()
	}
	w.rings = nil
	w.start(w.all())
	check("after a reset", 0)

	// A device that is closed because one ring alone was stopped, and opened again for the other.
	if err := w.rings[0].Stop(); err != nil {
		t.Fatal(err)
	}
	w.dev.takeDown(w.dev.startedQueues(), false)
	if err := w.rings[0].Start(); err != nil {
		t.Fatal(err)
	}
	check("in the midst", devsw.FRESUME)
}

// TestDriverIsToldOfAGuestThatItsSecondRingShows to go on: the first one has never had a request.
func TestDriverIsToldOfAGuestThatItsSecondRingShows(t *testing.T) {
	w := newBench(t, reactor.ModeThreads, 2, mdDisk(md.Config{Size: diskSize}), nil)
	w.start(w.all())
	w.do(1, tIn, 0, nil, nil)
	var o openFlags
	next := newBench(t, reactor.ModeThreads, 2, o.disk, nil)
	w.moveTo(next)
	before := next.dev.lives.Begin()
	<-before.Began()
	o.take()
	before.Hold() // the open waits until both have started
	before.Close(0)
	next.restart(nil)
	next.check(next.f.Barrier())
	before.Release()
	next.do(1, tIn, 0, nil, nil)
	if got := o.take(); !slices.Equal(got, []devsw.Flag{devsw.FRESUME}) {
		t.Errorf("opened with %v, want %v", got, devsw.FRESUME)
	}
}
