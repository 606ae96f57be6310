package reactor

import (
	"cmp"
	"testing"
	"time"

	"vdev/internal/sys"
)

// many is a Poller of which there are many.
type many struct {
	counter
	polls int  // on the reactor
	busy  bool // always has work
}

func (m *many) Poll() bool {
	m.polls++
	return m.counter.Poll() || m.busy
}

const manySources = 300

// addMany adds sources with a kick descriptor each.
func addMany(t *testing.T, r *Reactor, busy bool) []*many {
	all := make([]*many, manySources)
	for i := range all {
		all[i] = addOne(t, r, busy)
	}
	return all
}

// addOne adds a source with a kick descriptor, until the test ends.
func addOne(t *testing.T, r *Reactor, busy bool) *many { return addOneOf(t, r, nil, busy) }

// addOneOf is addOne for an owner, if that is not nil.
func addOneOf(t *testing.T, r *Reactor, owner any, busy bool) *many {
	fd, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	m := &many{counter: counter{kick: fd}, busy: busy}
	r.Do(func() { m.src, err = r.AddOf(cmp.Or[any](owner, m), m, fd.Int()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Do(func() { r.Remove(m.src) })
		fd.Close()
	})
	return m
}

// TestManyIdleSourcesCostNothing once they have worked: the reactor sleeps until something happens,
// and work for one of them is no reason to look at the others.
func TestManyIdleSourcesCostNothing(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		all := addMany(t, r, false)
		for _, m := range all {
			m.produce()
		}
		for _, m := range all {
			for m.seen.Load() != m.made.Load() {
				time.Sleep(10 * time.Microsecond)
			}
		}
		for idle := false; !idle; {
			r.Do(func() { idle = r.active.n == 0 })
		}
		before := make([]int, len(all))
		var rounds uint32
		r.Do(func() {
			rounds = r.rounds
			for i, m := range all {
				before[i] = m.polls
			}
		})
		// Whatever wakes it all by itself has time to.
		time.Sleep(50 * time.Millisecond)
		r.Do(func() {
			// A round follows each of the two questions.
			if n := r.rounds - rounds; n > 4 {
				t.Errorf("%d rounds while nobody had work", n)
			}
		})
		all[0].produce()
		for all[0].seen.Load() != all[0].made.Load() {
			time.Sleep(10 * time.Microsecond)
		}
		r.Do(func() {
			for i, m := range all[1:] {
				if m.polls != before[1+i] {
					t.Errorf("source %d was polled %d times though only source 0 had work", 1+i, m.polls-before[1+i])
				}
			}
		})
	})
}

// TestBusySourcesTakeTurns: however much work one has, it is looked at as often as any other.
func TestBusySourcesTakeTurns(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		all := addMany(t, r, true)
		before := make([]int, len(all))
		r.Do(func() {
			for i, m := range all {
				before[i] = m.polls
			}
		})
		for {
			var turns int
			r.Do(func() {
				turns = all[0].polls - before[0]
				for i, m := range all {
					if n := m.polls - before[i]; n < turns-1 || n > turns+1 {
						t.Errorf("source %d was polled %d times, and source 0 %d times", i, n, turns)
					}
				}
			})
			if turns > 100 || t.Failed() {
				return
			}
		}
	})
}

// TestOwnersTakeTurns: an owner with many busy sources has as many turns as one with a single
// source, and so has each of its sources among themselves.
func TestOwnersTakeTurns(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		var theirs []*many
		for range manySources {
			theirs = append(theirs, addOneOf(t, r, "them", true))
		}
		own := addOne(t, r, true)
		r.Do(func() {
			for _, m := range append(theirs, own) {
				m.polls = 0
			}
		})
		var ownTurns, least, most, sum int
		for ownTurns < 10*manySources {
			r.Do(func() {
				ownTurns, least, most, sum = own.polls, theirs[0].polls, 0, 0
				for _, m := range theirs {
					least, most, sum = min(least, m.polls), max(most, m.polls), sum+m.polls
				}
			})
		}
		if d := sum - ownTurns; d < -1 || d > 1 {
			t.Errorf("the one source was polled %d times, and the %d of another owner %d times",
				ownTurns, manySources, sum)
		}
		if most-least > 1 {
			t.Errorf("sources of one owner were polled %d to %d times", least, most)
		}
	})
}

// slowPoller has a lot of work, which takes a while each time.
type slowPoller struct{ many }

func (m *slowPoller) Poll() bool {
	m.polls++
	for begun := time.Now(); time.Since(begun) < roundTime; {
	}
	return true
}

// TestARoundOfSlowSourcesIsNotLong: kicks are looked for, and what has ended is shown, after a few
// of them.
func TestARoundOfSlowSourcesIsNotLong(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		const sources = 64
		slow := make([]*slowPoller, sources)
		r.Do(func() {
			for i := range slow {
				slow[i] = new(slowPoller)
				slow[i].src, _ = r.AddOf("them", slow[i], -1)
			}
		})
		polls, rounds := 0, uint32(0)
		count := func() (n int) {
			for _, m := range slow {
				n += m.polls
			}
			return n
		}
		r.Do(func() { polls, rounds = count(), r.rounds })
		for done := false; !done; {
			r.Do(func() {
				if n := count() - polls; n >= 4*sources {
					if most := int(r.rounds-rounds+1) * 2 * roundPolls; n > most {
						t.Errorf("%d polls in %d rounds, want at most %d", n, r.rounds-rounds, most)
					}
					done = true
				}
			})
		}
		r.Do(func() {
			for _, m := range slow {
				r.Remove(m.src)
			}
		})
	})
}
