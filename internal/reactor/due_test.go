package reactor

import (
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// laggard has nothing to do until it is ready, and asks for no notification before: as a ring whose
// device is still being opened.
type laggard struct {
	ready, waits bool
	served       atomic.Bool
}

func (l *laggard) Poll() (worked bool) {
	l.waits = !l.ready
	return l.ready && !l.served.Swap(true)
}

func (l *laggard) Arm() (pending bool) { return !l.waits && !l.served.Load() }
func (l *laggard) Disarm()             {}
func (l *laggard) Flush()              {}

// TestWhoIsWokenHasItsTurnBeforeItRests, though an owner of many has not all of them polled in one
// round.
func TestWhoIsWokenHasItsTurnBeforeItRests(t *testing.T) {
	r := newPoolOf(t, Config{Reactors: 1}).reactors[0]
	var all []*laggard
	var sources []*Source
	r.Do(func() {
		for owner, n := range []int{32, 1, 1, 1, 1, 1, 1, 1} {
			for range n {
				kick, err := sys.NewEventfd()
				if err != nil {
					t.Error(err)
					return
				}
				t.Cleanup(func() { kick.Close() })
				l := new(laggard)
				s, err := r.AddOf(owner, l, kick.Int())
				if err != nil {
					t.Error(err)
					return
				}
				all, sources = append(all, l), append(sources, s)
			}
		}
	})
	for i, l := range all {
		for !r.asleep.Load() {
			time.Sleep(time.Millisecond)
		}
		r.Do(func() {
			l.ready = true
			for _, s := range sources {
				s.Wake()
			}
		})
		for begun := time.Now(); !l.served.Load(); time.Sleep(time.Millisecond) {
			if time.Since(begun) > time.Minute {
				t.Fatalf("number %d was woken, and has had no turn", i)
			}
		}
	}
	r.Do(func() {
		for _, s := range sources {
			r.Remove(s)
		}
	})
}

// reluctant is an engine whose kernel takes nothing at first.
type reluctant struct {
	*uringEngine
	refuses int
}

func (e *reluctant) submit() {
	if e.refuses > 0 {
		e.refuses--
		return
	}
	e.uringEngine.submit()
}

// endings tells of transfers that have ended.
type endings chan *devsw.Buf

func (e endings) AIODone(b *devsw.Buf, _ int64, _ devsw.Errno) { e <- b }

// TestAReactorDoesNotSleepWithWhatItHasNotSubmitted, because the kernel wanted none of it for a
// moment.
func TestAReactorDoesNotSleepWithWhatItHasNotSubmitted(t *testing.T) {
	r := newPoolOf(t, Config{Reactors: 1, Mode: ModeURing, PollMax: -1}).reactors[0]
	f := tempFile(t)
	if err := f.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	awaitStandby(r)
	ended := make(endings, 1)
	b := &devsw.Buf{Op: devsw.BRead, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
	r.Post(func() {
		r.eng = &reluctant{r.eng.(*uringEngine), 3}
		of := r.of(&op{fd: int(f.Fd()), done: ended})
		of.buffered, of.reads.left = true, 10
		r.ReadAt(b, int(f.Fd()), 0, ended)
		if !r.eng.waits() {
			t.Error("nothing waits, so the test shows nothing")
		}
	})
	select {
	case <-ended:
	case <-time.After(time.Minute):
		t.Fatal("the reactor sleeps")
	}
}
