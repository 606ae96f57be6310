package reactor

import (
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
func addOne(t *testing.T, r *Reactor, busy bool) *many {
	fd, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	m := &many{counter: counter{kick: fd}, busy: busy}
	r.Do(func() { m.src, err = r.Add(m, fd.Int()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Do(func() { r.Remove(m.src) })
		fd.Close()
	})
	return m
}

// TestManyIdleSourcesCostNothing once they have worked: the reactor sleeps until something happens, and work for one of them is no reason
// to look at the others.
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
			r.Do(func() { idle = len(r.active) == 0 })
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
