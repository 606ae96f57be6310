package reactor

import (
	"sync"
	"testing"

	"vdev/devsw"
	"vdev/internal/sys"
)

// TestAStepDoesAllThereIsToDo: kicks, what was posted, and what that posts, on the goroutine that
// calls.
func TestAStepDoesAllThereIsToDo(t *testing.T) {
	p := newPool(t, ModeStepped)
	r := p.Pick()
	kick, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer kick.Close()
	s := &countingSource{}
	r.Do(func() { s.src, err = r.Add(s, kick.Int()) })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Do(func() { r.Remove(s.src) })
	for want := range 3 {
		before := s.polls
		p.Step()
		if s.polls != before {
			t.Fatalf("it is polled %d times without a kick", s.polls-before)
		}
		s.work = want
		if err := sys.EventfdWrite(kick.Int()); err != nil {
			t.Fatal(err)
		}
		if s.polls != before {
			t.Fatal("it is polled before the step")
		}
		if p.Step(); s.work != 0 || s.polls == before || s.flushes != s.marked {
			t.Fatalf("%d requests are left, after %d polls; %d batches are shown, of %d", s.work, s.polls-before, s.flushes, s.marked)
		}
	}
	var order []int
	r.Do(func() {
		order = append(order, 1)
		r.Post(func() { order = append(order, 2) })
	})
	if len(order) != 2 {
		t.Errorf("what is posted on the reactor is not done: %v", order)
	}
}

// countingSource has some requests to do, one in each Poll.
type countingSource struct {
	src                          *Source
	work, polls, marked, flushes int
}

func (s *countingSource) Poll() bool {
	s.polls++
	if s.work == 0 {
		return false
	}
	s.work--
	s.marked++
	s.src.MarkDirty()
	return true
}

func (s *countingSource) Arm() bool { return s.work > 0 }
func (s *countingSource) Disarm()   {}
func (s *countingSource) Flush()    { s.flushes++ }

// TestASteppedReactorWorksForManyGoroutines: what they post, also with locks held that it wants, is
// done once, by one at a time, and transfers end without a step.
func TestASteppedReactorWorksForManyGoroutines(t *testing.T) {
	p := newPool(t, ModeStepped)
	r := p.Pick()
	f := tempFile(t)
	var mu sync.Mutex
	var wg sync.WaitGroup
	locked, onReactor := 0, 0
	for range 8 {
		wg.Go(func() {
			for range 100 {
				mu.Lock()
				r.Post(func() {
					mu.Lock()
					locked++
					mu.Unlock()
				})
				mu.Unlock()
				r.Do(func() { onReactor++ })
			}
			d := newResult()
			b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			r.Post(func() { r.WriteAt(b, int(f.Fd()), 0, d) })
			if <-d.ch; d.n != 512 || d.err != 0 {
				t.Errorf("wrote %d, %v", d.n, d.err)
			}
		})
	}
	wg.Wait()
	p.Step()
	if locked != 800 || onReactor != 800 {
		t.Errorf("%d and %d of 800 were done", locked, onReactor)
	}
}

// TestAStepEndsThoughTheWorkDoesNot: a guest can make its ring one that always has more.
func TestAStepEndsThoughTheWorkDoesNot(t *testing.T) {
	p := newPool(t, ModeStepped)
	r := p.Pick()
	s := &countingSource{work: 1 << 40}
	r.Do(func() { s.src, _ = r.Add(s, -1) })
	before := s.polls
	p.Step()
	if s.polls == before {
		t.Error("what is left is not gone on with")
	}
	r.Do(func() { r.Remove(s.src) })
}
