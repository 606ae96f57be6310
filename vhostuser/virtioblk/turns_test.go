package virtioblk

import (
	"sync/atomic"
	"testing"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// TestARingIsLookedAtForSoManyBytes, before the others on the reactor have their turn.
func TestARingIsLookedAtForSoManyBytes(t *testing.T) {
	const length, n = 1 << 20, 32
	var now, most, all atomic.Int64
	disk := func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
		ok := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
		b := &devsw.Bdevsw{
			Name: "counts", Flag: devsw.DDisk | devsw.DMPSafe, Open: ok, Cancel: ok, Close: ok,
			Strategy: func(b *devsw.Buf) {
				if now.Load() == 0 {
					b.AIO.(*reactor.Reactor).Post(func() { now.Store(0) }) // in the next round
				}
				most.Store(max(most.Load(), now.Add(b.Bcount)))
				all.Add(b.Bcount)
				b.Resid, b.InContext = 0, true
				b.Biodone()
			},
			Ioctl: func(devsw.Dev, devsw.Cmd, any, devsw.Flag) error { return nil },
		}
		bmajor, _, err := table.Attach("counts", b, devsw.NODEVMAJOR, &devsw.Cdevsw{Name: "counts"}, devsw.NODEVMAJOR)
		if err != nil {
			t.Fatal(err)
		}
		return devsw.Makedev(uint32(bmajor), 0), func() (devsw.DiskInfo, error) {
			return devsw.DiskInfo{Size: 1 << 30, SectorSize: 512}, nil
		}
	}
	w := newBench(t, reactor.ModeURing, 1, disk, nil)
	w.start(w.all())
	data, st := w.buffer(length), w.buffer(1)
	for i := range uint64(n) {
		if _, ok := w.rings[0].AddIndirect([]virtqtest.Seg{w.header(tIn, i*length/512)}, []virtqtest.Seg{data, st}); !ok {
			t.Fatal("no room")
		}
	}
	w.check(w.rings[0].Notify())
	w.until("all have ended", func() bool { return all.Load() == n*length && w.inFlight() == 0 })
	if most.Load() > budgetBytes {
		t.Errorf("%d bytes were begun in one look, want %d at most", most.Load(), budgetBytes)
	}
	w.close()
}

// TestCancelTakesTurns: a ring with many requests leaves the others on its reactor theirs.
func TestCancelTakesTurns(t *testing.T) {
	const most, n = 2048, 5000
	q := &queue{requests: make([]*request, n)}
	for i := range q.requests {
		q.requests[i] = new(request)
	}
	turns := 0
	for at, all := 0, false; !all; turns++ {
		before := at
		if at, all = q.cancel(at); at-before > most {
			t.Errorf("%d in one turn, want %d at most", at-before, most)
		}
	}
	if want := (n + most - 1) / most; turns != want {
		t.Errorf("%d requests were cancelled in %d turns, want %d", n, turns, want)
	}
}
