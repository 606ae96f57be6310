package offload

import (
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// stall is Jobs that go on for as long as a test wants.
type stall struct{ end chan struct{} }

func newStall() *stall { return &stall{make(chan struct{})} }

func (s *stall) job() *Job { return &Job{Piece: func() bool { <-s.end; return false }} }

// TestSharesThatStallLeaveAPlaceToEachOther has each of several Shares ask for far more than there
// is.
func TestSharesThatStallLeaveAPlaceToEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 10, Each: 4})
		stalled := newStall()
		var shares []*Share
		for range 5 {
			shares = append(shares, p.Share())
		}
		// The first has as many as one may, the second what then is left without the places of the
		// other three.
		for i, want := range []int{4, 3, 1, 1, 1} {
			for range 1000 {
				shares[i].Add(stalled.job())
			}
			if n := shares[i].Running(); n != want {
				t.Errorf("share %d has %d places, want %d", i, n, want)
			}
		}
		close(stalled.end)
		synctest.Wait()
		for i, s := range shares {
			if s.Running() != 0 || s.Waiting() != 0 {
				t.Errorf("share %d: %d run and %d wait at the end", i, s.Running(), s.Waiting())
			}
			s.Close()
		}
		p.Close()
	})
}

// TestMoreSharesThanPlacesAreServedInTurn is what is left of that where there are not even places
// for each.
func TestMoreSharesThanPlacesAreServedInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 2})
		stalled, ran := newStall(), 0
		var shares []*Share
		for range 4 {
			shares = append(shares, p.Share())
		}
		for i, s := range shares {
			if i < 2 {
				s.Add(stalled.job())
				s.Add(stalled.job())
			} else {
				s.Add(&Job{Piece: func() bool { ran++; return false }})
			}
		}
		synctest.Wait()
		if shares[0].Running() != 1 || shares[1].Running() != 1 || ran != 0 {
			t.Errorf("%d and %d run, and %d have run: want 1, 1, 0", shares[0].Running(), shares[1].Running(), ran)
		}
		close(stalled.end)
		synctest.Wait()
		if ran != 2 {
			t.Errorf("%d have run at the end, want 2", ran)
		}
		for _, s := range shares {
			s.Close()
		}
		p.Close()
	})
}

// TestTheKeptPlaceOfAShareThatIsClosedIsForAll, but not before its last piece has ended.
func TestTheKeptPlaceOfAShareThatIsClosedIsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 3, Each: 3})
		first, idle, s := p.Share(), p.Share(), p.Share()
		held, stalled := newStall(), newStall()
		first.Add(held.job())
		for range 3 {
			s.Add(stalled.job())
		}
		for _, c := range []struct {
			what string
			do   func()
			want int
		}{
			{"two others are open", func() {}, 1},
			{"the one with a piece is closed", first.Close, 1},
			{"the one without is", idle.Close, 2},
			{"it is once more", idle.Close, 2},
			{"the last piece has ended", func() { close(held.end) }, 3},
		} {
			c.do()
			synctest.Wait()
			if got := s.Running(); got != c.want {
				t.Errorf("%s: %d pieces run, want %d", c.what, got, c.want)
			}
		}
		close(stalled.end)
		synctest.Wait()
		s.Close()
		p.Close()
	})
}

// TestJobsTakeTurns has a Job of many pieces and one of one.
func TestJobsTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 1})
		s := p.Share()
		var order []int
		gate := newStall()
		s.Add(gate.job())
		n := 0
		s.Add(&Job{Piece: func() bool { order = append(order, 1); n++; return n < 3 }})
		s.Add(&Job{Piece: func() bool { order = append(order, 2); return false }})
		close(gate.end)
		synctest.Wait()
		if want := []int{1, 2, 1, 1}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		s.Close()
		p.Close()
	})
}

// TestAJointJobCoversThoseThatWait counts how often it is done.
func TestAJointJobCoversThoseThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 1})
		s, other := p.Share(), p.Share()
		gate := newStall()
		other.Add(gate.job())
		done, covered := 0, 0
		joint := func() *Job {
			return &Job{Piece: func() bool { done++; return false }, Joint: func(jobs []*Job) { covered += len(jobs) }}
		}
		var taken *Job
		for range 100 {
			taken = joint()
			s.Add(taken)
		}
		if !s.Remove(taken) {
			t.Error("one that waits could not be taken back")
		}
		close(gate.end)
		synctest.Wait()
		if done != 1 || covered != 98 {
			t.Errorf("done %d times for %d others, want once for 98", done, covered)
		}
		s.Close()
		other.Close()
		p.Close()
	})
}

// TestAJobThatCannotBeTakenBackDoesNotWaitForItsTurn: its end is waited for.
func TestAJobThatCannotBeTakenBackDoesNotWaitForItsTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := New(Config{Places: 1})
		s := p.Share()
		first, behind := newStall(), newStall()
		pieces := 0
		j := &Job{Piece: func() bool {
			if pieces++; pieces == 1 {
				<-first.end
			}
			return pieces < 2
		}}
		s.Add(j)
		s.Add(behind.job())
		synctest.Wait()
		if s.Remove(j) {
			t.Error("one whose piece runs was taken back")
		}
		close(first.end)
		synctest.Wait()
		if pieces != 2 {
			t.Errorf("%d pieces were done, want 2", pieces)
		}
		close(behind.end)
		synctest.Wait()
		s.Close()
		p.Close()
	})
}

// TestPlacesGoWhenNothingIsLeftToDo looks at the goroutines, and at the threads that were blocked.
func TestPlacesGoWhenNothingIsLeftToDo(t *testing.T) {
	const places = 100
	p := New(Config{Places: places, Each: places})
	s := p.Share()
	before := threads(t)
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	var ended sync.WaitGroup
	ended.Add(10 * places)
	for range 10 * places {
		s.Add(&Job{Piece: func() bool {
			defer ended.Done()
			var b [1]byte
			_, _ = syscall.Read(pipe[0], b[:]) // blocks, and the thread with it
			return false
		}})
	}
	within(t, "all places are taken", func() bool { return threads(t) >= before+places })
	if most := before + places + 10; threads(t) > most {
		t.Errorf("%d threads, there were %d, and there are %d places", threads(t), before, places)
	}
	syscall.Close(pipe[1])
	ended.Wait()
	within(t, "the threads have gone", func() bool { return threads(t) <= before+10 })
	syscall.Close(pipe[0])
	s.Close()
	p.Close()
}

func threads(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Skip(err)
	}
	return len(list)
}

func within(t *testing.T, what string, is func() bool) {
	t.Helper()
	for begun := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("it is not so: %s", what)
		}
	}
}

// TestPool adds, removes and ends Jobs in any order, and looks after each step whether the Pool is
// as it must be.
func TestPool(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		synctest.Test(t, func(*testing.T) { anyOrder(rt) })
	})
}

func anyOrder(t *rapid.T) {
	p := New(Config{Places: rapid.IntRange(1, 6).Draw(t, "places"), Each: rapid.IntRange(1, 4).Draw(t, "each")})
	type job struct {
		Job
		share            *Share
		next             chan bool // more
		calls, ends      atomic.Int32
		running, removed atomic.Bool
	}
	var shares []*Share
	var jobs []*job
	for range rapid.IntRange(1, 8).Draw(t, "shares") {
		shares = append(shares, p.Share())
	}
	add := func(t *rapid.T) {
		j := &job{share: rapid.SampledFrom(shares).Draw(t, "share"), next: make(chan bool)}
		j.Owner = j
		j.Piece = func() bool {
			j.calls.Add(1)
			j.running.Store(true)
			more := <-j.next
			j.running.Store(false)
			if !more {
				j.ends.Add(1)
			}
			return more
		}
		if rapid.Bool().Draw(t, "joint") {
			j.Joint = func(covered []*Job) {
				for _, c := range covered {
					c.Owner.(*job).ends.Add(1)
				}
			}
		}
		jobs = append(jobs, j)
		j.share.Add(&j.Job)
	}
	pick := func(t *rapid.T, running bool) *job {
		var of []*job
		for _, j := range jobs {
			if j.running.Load() == running && (running || j.ends.Load() == 0 && !j.removed.Load()) {
				of = append(of, j)
			}
		}
		if len(of) == 0 {
			t.Skip("none")
		}
		return rapid.SampledFrom(of).Draw(t, "job")
	}
	check := func(t *rapid.T) {
		synctest.Wait()
		busy, resting := 0, 0
		runs := make(map[*Share]int)
		for _, j := range jobs {
			if j.running.Load() {
				busy++
				runs[j.share]++
			}
			if j.ends.Load() > 1 {
				t.Fatal("a job has ended twice")
			}
		}
		for _, s := range shares {
			if runs[s] == 0 {
				resting++
			}
			if s.Running() != runs[s] {
				t.Fatalf("a share says %d run, and %d do", s.Running(), runs[s])
			}
		}
		for _, s := range shares {
			switch n := runs[s]; {
			case n > p.config.Each:
				t.Fatalf("%d of one share run, and %d may", n, p.config.Each)
			case s.Waiting() == 0 || n == p.config.Each || busy == p.config.Places:
			case n == 0, busy+resting < p.config.Places:
				t.Fatalf("%d wait though there is a place: %d busy, %d shares at rest, %d places", s.Waiting(), busy, resting, p.config.Places)
			}
		}
		if len(shares) <= p.config.Places && busy+resting > p.config.Places {
			t.Fatalf("%d busy, %d shares at rest, %d places: not one place for each", busy, resting, p.config.Places)
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"":    check,
		"add": add,
		"end": func(t *rapid.T) { pick(t, true).next <- rapid.Bool().Draw(t, "more") },
		"remove": func(t *rapid.T) {
			j := pick(t, false)
			j.removed.Store(true)
			if !j.share.Remove(&j.Job) {
				t.Fatal("one that waits could not be taken back")
			}
		},
	})
	// To the end.
	for left := true; left; {
		left = false
		for _, j := range jobs {
			if j.running.Load() {
				left = true
				j.next <- false
			}
		}
		synctest.Wait()
	}
	for _, j := range jobs {
		if want := !j.removed.Load(); (j.ends.Load() == 1) != want {
			t.Fatalf("a job has ended %d times; taken back: %v", j.ends.Load(), !want)
		}
	}
	for _, s := range shares {
		s.Close()
	}
	p.Close()
}
