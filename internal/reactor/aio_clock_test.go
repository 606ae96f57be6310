package reactor

import (
	"math"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// blindReads are reads of a file that knows no RWF_NOWAIT, on a reactor that has nothing else.
// Their time is that of a synctest bubble.
type blindReads struct {
	engine
	r    *Reactor
	fd   int
	each time.Duration // how long a read takes

	inLine, toEngine int
	runs             int // of reads that have their time taken together
}

func newBlindReads(t *testing.T) *blindReads {
	w := &blindReads{fd: int(tempFile(t).Fd()), each: 2 * time.Microsecond}
	w.r = &Reactor{mode: ModeThreads, eng: w}
	w.r.guard.ready.Store(true)
	w.r.calls.readWaiting = w.call
	f := w.r.of(&op{fd: w.fd, done: w})
	f.waits, f.resume = true, math.MinInt64 // a bubble's time is before epoch
	return w
}

// batch makes n reads in one round.
func (w *blindReads) batch(n int) {
	for range n {
		w.r.ReadAt(&devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}, w.fd, 0, w)
	}
	w.r.runQueue()
}

func (w *blindReads) call(int, []sys.Iovec, int64) (int, syscall.Errno) {
	w.inLine++
	if t := w.r.reading; t.reads == 0 && t.begun == time.Since(epoch) {
		w.runs++
	}
	time.Sleep(w.each)
	return 512, 0
}

func (w *blindReads) start(o *op) {
	w.toEngine++
	o.ended(512, 0)
}

func (w *blindReads) AIODone(*devsw.Buf, int64, devsw.Errno) {}

// TestTheClockIsLookedAtForEightReads, whether they come one by one or together.
func TestTheClockIsLookedAtForEightReads(t *testing.T) {
	for _, size := range []int{1, 3, 8, 32} {
		synctest.Test(t, func(t *testing.T) {
			const batches = 80
			w := newBlindReads(t)
			for range batches {
				w.batch(size)
			}
			if w.inLine != batches*size || w.toEngine > 0 {
				t.Errorf("%d at a time: %d are made in line, %d by the engine", size, w.inLine, w.toEngine)
			}
			if w.runs != batches*size/mostTimed {
				t.Errorf("%d at a time: the time of %d runs is taken in %d reads", size, w.runs, w.inLine)
			}
		})
	}
}

// TestReadsThatBeginToWaitAreSoonLeftToTheEngine, though those before were in memory.
func TestReadsThatBeginToWaitAreSoonLeftToTheEngine(t *testing.T) {
	for _, size := range []int{1, 3, 8} {
		for quick := range 2 * mostTimed {
			synctest.Test(t, func(t *testing.T) {
				w := newBlindReads(t)
				for range quick {
					w.batch(1)
				}
				w.each, w.inLine = 2*slowRead, 0
				for w.toEngine == 0 {
					w.batch(size)
				}
				// Those that are in the batch that tells are to be made.
				if w.inLine > mostTimed+size {
					t.Errorf("%d at a time, after %d: %d were made in line", size, quick, w.inLine)
				}
			})
		}
	}
}
