package reactor

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vdev/devsw"
)

// aTick is what timers are set to here: more than no time, and not long.
const aTick = 2 * time.Millisecond

// never is longer than any test.
const never = time.Hour

func TestATimerFiresOnAReactorThatSleepsIsBusyOrIsPolled(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		for _, around := range []struct {
			name string
			p    Poller
		}{{"asleep", nil}, {"busy", busy{}}, {"polled", &watch{over: true}}} {
			t.Run(around.name, func(t *testing.T) {
				if around.p != nil {
					var s *Source
					r.Do(func() { s, _ = r.Add(around.p, -1) })
					defer r.Do(func() { r.Remove(s) })
				}
				var tm Timer
				var set, after time.Duration
				fired := make(chan time.Duration)
				tm.Init(r, func() { fired <- r.Now() })
				for range 3 { // it can be set again
					r.Do(func() { set = r.Now(); tm.Reset(aTick) })
					if after = <-fired - set; after < aTick {
						t.Fatalf("it fires after %v", after)
					}
				}
				r.Do(func() {
					if tm.Stop() {
						t.Error("it is to fire once more")
					}
				})
			})
		}
	})
}

// busy always has work.
type busy struct{}

func (busy) Poll() bool { return true }
func (busy) Arm() bool  { return true }
func (busy) Disarm()    {}
func (busy) Flush()     {}

// TestATimerThatWasStoppedNeverFires: not either when its time has come, and that of others whose
// function stops it.
func TestATimerThatWasStoppedNeverFires(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var tms [3]Timer
		var fired []int
		done := make(chan struct{})
		for i := range tms {
			tms[i].Init(r, func() {
				fired = append(fired, i)
				for j := range tms {
					if pending := tms[j].Stop(); pending != (i != j) {
						t.Errorf("of timer %d, while %d fires: %v", j, i, pending)
					}
				}
				close(done)
			})
		}
		r.Do(func() {
			for i := range tms {
				tms[i].Reset(aTick)
			}
			time.Sleep(2 * aTick) // all are due in the same round
		})
		<-done
		r.Do(func() {
			for i := range tms {
				tms[i].Reset(0)
				tms[i].Stop()
			}
		})
		for range 3 {
			r.Do(func() {})
		}
		if len(fired) != 1 {
			t.Errorf("these fired: %v", fired)
		}
	})
}

// TestATimerFiresWhileACallStalls: it goes over with the reactor.
func TestATimerFiresWhileACallStalls(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		var tm Timer
		release, fired := make(chan struct{}), make(chan struct{})
		r := stalling(t, p, func(int64) { <-release })
		tm.Init(r, func() { close(fired) })
		d := newResult()
		f := newFile(t, r, d)
		b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 16)}, Bcount: 16}
		r.Post(func() {
			tm.Reset(10 * aTick) // by then the write stalls
			r.WriteAt(b, int(f.Fd()), 0, d)
		})
		<-fired
		close(release)
		<-d.ch
	})
}

// TestATimerThatSetsItselfAnewHoldsUpNobody: each round has it once.
func TestATimerThatSetsItselfAnewHoldsUpNobody(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var tm Timer
		n := 0
		again := make(chan struct{}, 1)
		tm.Init(r, func() {
			tm.Reset(0)
			if n++; n == 100 {
				again <- struct{}{}
			}
		})
		r.Do(func() { tm.Reset(0) })
		<-again
		r.Do(func() {
			if !tm.Stop() {
				t.Error("it is not set")
			}
			if tm.Reset(math.MaxInt64); !tm.Reset(never) || !tm.Stop() {
				t.Error("a time that is longer than can be counted is none")
			}
		})
	})
}

// TestTimersThatArePendingDoNotHoldUpTheEnd: they never fire.
func TestTimersThatArePendingDoNotHoldUpTheEnd(t *testing.T) {
	for _, mode := range []Mode{ModeURing, ModeThreads, ModeStepped} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPool(t, mode)
			var tm Timer
			tm.Init(p.Pick(), func() { t.Error("it fires") })
			tm.r.Do(func() { tm.Reset(never) })
		})
	}
}

// TestAStepFindsTimersWhoseTimeHasCome: and no goroutine else.
func TestAStepFindsTimersWhoseTimeHasCome(t *testing.T) {
	p := newPool(t, ModeStepped)
	r := p.Pick()
	var tm Timer
	fired := 0
	tm.Init(r, func() { fired++ })
	r.Do(func() { tm.Reset(aTick) })
	time.Sleep(2 * aTick)
	if fired != 0 {
		t.Fatal("it fires before the step")
	}
	if p.Step(); fired != 1 {
		t.Fatalf("it fires %d times", fired)
	}
}

// TestTimersFireInTheirOrder: whatever is set, set anew and stopped before.
func TestTimersFireInTheirOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := new(Reactor)
		var fired []int
		tms := make([]Timer, 8)
		for i := range tms {
			tms[i].Init(r, func() { fired = append(fired, i) })
		}
		want := map[int]time.Duration{}
		which := rapid.IntRange(0, len(tms)-1)
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				i := which.Draw(t, "timer")
				_, set := want[i]
				if got := tms[i].Reset(time.Duration(rapid.IntRange(-1, 9).Draw(t, "hours")) * time.Hour); got != set {
					t.Fatalf("timer %d was set: %v", i, got)
				}
				want[i] = tms[i].at
			},
			"stop": func(t *rapid.T) {
				i := which.Draw(t, "timer")
				_, set := want[i]
				if got := tms[i].Stop(); got != set {
					t.Fatalf("timer %d was set: %v", i, got)
				}
				delete(want, i)
			},
			"fire": func(t *rapid.T) {
				r.Now()
				r.clock += time.Duration(rapid.IntRange(0, 9).Draw(t, "hours")) * time.Hour
				var due []int
				for i, at := range want {
					if at <= r.clock {
						due = append(due, i)
					}
				}
				slices.SortFunc(due, func(a, b int) int { return int(want[a] - want[b]) })
				if fired = nil; r.timers.due(r.clock) {
					r.fire()
				}
				if fmt.Sprint(fired) != fmt.Sprint(due) {
					t.Fatalf("at %v %v fire, want %v of %v", r.clock, fired, due, want)
				}
				for _, i := range due {
					delete(want, i)
				}
			},
			"": func(t *rapid.T) {
				if len(r.timers) != len(want) {
					t.Fatalf("%d are set, want %v", len(r.timers), want)
				}
				r.clock = 0
				least := time.Duration(-1)
				for _, at := range want {
					if least < 0 || at < least {
						least = at
					}
				}
				if got := r.untilTimer(); got != least {
					t.Fatalf("a sleep may be %v long, want %v", got, least)
				}
			},
		})
	})
}
