package main

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/internal/bench/load"
)

func TestTheIntervalLeavesOutWhatTheSignTestAllows(t *testing.T) {
	// From a table of the binomial distribution.
	for n, want := range map[int]int{1: 0, 3: 0, 4: 0, 5: 0, 7: 0, 8: 1, 10: 1, 11: 2, 13: 3, 15: 3, 16: 4, 20: 5, 25: 7, 50: 18} {
		if got := leftOut(n); got != want {
			t.Errorf("of %d values %d, want %d", n, got, want)
		}
	}
	values := rounds(1, 1, 1, 9, 1, 4, 2, 3, 8, 7, 5)
	ones := rounds(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)
	if got, want := compare(values, ones, (*load.Result).IOPS), (comparison{4.5, 2, 8}); len(values) != 8 || got != want {
		t.Errorf("%v, want %v", got, want)
	}
	ones[3].Backend.Known = false
	if got := compare(values, ones, cpuOf).String(); got != "not known" {
		t.Errorf("what is not known compares as %s", got)
	}
}

// target is something whose figure is drawn, and which notes that it was asked.
func target(name string, asked *[]string, draw func() float64) load.Target {
	return load.Target{Name: name, Do: func(context.Context, load.Job) (load.Result, error) {
		*asked = append(*asked, name)
		return load.Result{Requests: uint64(1e6 * draw()), Length: time.Second}, nil
	}}
}

// quiet is a machine that does nothing else.
func quiet(_ *int, work func() error) (disturbance, error) { return disturbance{}, work() }

// simulate does a case of two, of which one's speed is spread, round by round.
func simulate(t *testing.T, o options, on watched, draw func() float64) (*measured, []string) {
	var asked []string
	m := &measured{plan: plan{With: []string{ours, qsd}}, Results: make([][]load.Result, 2)}
	s := &suite{o: o}
	targets := []load.Target{target(ours, &asked, draw), target(qsd, &asked, func() float64 { return 1 })}
	if err := s.measureRounds(t.Context(), on, m, targets); err != nil {
		t.Fatal(err)
	}
	return m, asked
}

func TestACaseGoesOnUntilItsIntervalsAreNarrow(t *testing.T) {
	o := options{rounds: 5, maxRounds: 13}
	for _, tt := range []struct {
		spread []float64
		want   int
	}{
		{[]float64{1}, 5},
		{[]float64{0.96, 1.04}, 5},
		{[]float64{1, 1, 1, 1, 2, 1}, 8}, // from when on one on each side is left out
		{[]float64{0.9, 1.1}, 13},
	} {
		n := 0
		m, asked := simulate(t, o, quiet, func() float64 {
			n++
			return tt.spread[(n-1)%len(tt.spread)]
		})
		if m.rounds() != tt.want || len(m.Results[1]) != tt.want {
			t.Errorf("%v: %d rounds, want %d", tt.spread, m.rounds(), tt.want)
		}
		var order []string
		for i := range tt.want {
			pair := []string{ours, qsd}
			if i%2 == 1 {
				slices.Reverse(pair)
			}
			order = append(order, pair...)
		}
		if !slices.Equal(asked, order) {
			t.Errorf("%v: in the order %q", tt.spread, asked)
		}
		if m.Results[1][1].Requests != 1e6 {
			t.Errorf("%v: the results are mixed up", tt.spread)
		}
	}
	if m, _ := simulate(t, options{rounds: 3, maxRounds: 4}, quiet, func() float64 { return 1 }); m.rounds() != 4 {
		t.Errorf("%d rounds are found enough", m.rounds())
	}
}

func TestADisturbedCaseHasTheLeastRoundsAndSaysSo(t *testing.T) {
	// Whatever is done is disturbed, so that the first round takes all the tries that there are.
	loud := func(spare *int, work func() error) (disturbance, error) {
		*spare = 0
		return disturbance{Others: 0.5}, work()
	}
	wide := 0.0
	m, _ := simulate(t, options{rounds: 5, maxRounds: 13}, loud, func() float64 { wide++; return wide })
	if m.rounds() != 5 || m.Again != 5*tries || m.Seen.Others != 0.5 || !strings.Contains(m.line(), "(disturbed: others 50.0 %") {
		t.Errorf("%d rounds, %d again: %s", m.rounds(), m.Again, m.line())
	}
}

// The rule ends a case by looking at the interval, which makes it hold the median less often than
// it says: by how much is seen here.
func TestTheIntervalHoldsTheMedianAboutAsOftenAsIsSaid(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	o := options{rounds: 5, maxRounds: 13}
	for _, spread := range []float64{0.02, 0.05, 0.07, 0.1, 0.3} {
		for _, tt := range []struct {
			name string
			draw func() float64
		}{
			{"normal", func() float64 { return math.Exp(spread * r.NormFloat64()) }},
			{"skewed", func() float64 { return math.Exp(spread * (r.ExpFloat64() - math.Ln2)) }},
			{"two speeds", func() float64 { return math.Exp(spread * (math.Copysign(1, r.Float64()-0.5) + 0.3*r.NormFloat64())) }},
		} {
			const times = 300
			held, all := 0, 0
			for range times {
				m := &measured{Results: make([][]load.Result, 2)}
				for m.goesOn(o) {
					m.Results[0] = append(m.Results[0], load.Result{Requests: uint64(1e6 * tt.draw()), Length: time.Second})
					m.Results[1] = append(m.Results[1], load.Result{Requests: 1e6, Length: time.Second})
				}
				all += m.rounds()
				if c := compare(m.Results[0], m.Results[1], (*load.Result).IOPS); c.Low <= 1 && c.High >= 1 {
					held++
				}
			}
			if share := float64(held) / times; share < chance-0.06 {
				t.Errorf("%s, %v: %.3f of the intervals hold the median, with %.1f rounds", tt.name, spread, share, float64(all)/times)
			}
		}
	}
}

func TestAnErrorLeavesTheRoundsBeforeIt(t *testing.T) {
	var asked []string
	fails, n := errors.New("no good"), 0
	m := &measured{plan: plan{With: []string{ours, qsd}}, Results: make([][]load.Result, 2)}
	s := &suite{o: options{rounds: 5, maxRounds: 5}}
	err := s.measureRounds(t.Context(), quiet, m, []load.Target{target(ours, &asked, func() float64 { return 1 }), {Name: qsd, Do: func(context.Context, load.Job) (load.Result, error) {
		if n++; n == 3 {
			return load.Result{}, fails
		}
		return load.Result{Requests: 1, Length: time.Second}, nil
	}}})
	if !errors.Is(err, fails) || m.rounds() != 2 || len(m.Results[1]) != 2 || !strings.Contains(m.line(), "rounds: 2") {
		t.Errorf("%d rounds, %v", m.rounds(), err)
	}
}
