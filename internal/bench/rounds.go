package main

import (
	"fmt"
	"math"
	"slices"

	"vdev/internal/bench/load"
)

const (
	// chance is that of an interval to hold the median. Since a case ends by looking at them, it
	// comes out a little lower.
	chance = 0.9
	// enough is from how many rounds on there can be such an interval.
	enough = 5
	// narrow is how wide an interval may be, in parts of the median, for a case to need no more
	// rounds.
	narrow = 0.1
)

// leftOut is how many of n values, in order of size, can be left out at each end so that the others
// reach over the median of what they are drawn from with that chance, whatever that is: each value
// is above the median with a chance of one half (sign test). Where there are not enough of them, it
// is none.
func leftOut(n int) int {
	below := 0.0                        // the chance that at most k are below the median
	exactly := math.Pow(2, -float64(n)) // that k are
	for k := 0; ; k++ {
		below += exactly
		if 1-2*below < chance {
			return max(k-1, 0)
		}
		exactly *= float64(n-k) / float64(k+1)
	}
}

// comparison is how a figure of one stands to that of another: the median of the ratios in the
// rounds, and the interval around it that holds the true one with that chance. All are NaN where a
// figure is not known.
type comparison struct{ Median, Low, High float64 }

// compare compares a figure of a's results with that of b's, of as many rounds, of which there must
// be one.
func compare(a, b []load.Result, figure func(*load.Result) float64) comparison {
	ratios := make([]float64, len(a))
	for i := range ratios {
		ratios[i] = figure(&a[i]) / figure(&b[i])
		if math.IsNaN(ratios[i]) {
			return comparison{math.NaN(), math.NaN(), math.NaN()}
		}
	}
	slices.Sort(ratios)
	k := leftOut(len(ratios))
	return comparison{load.Median(ratios), ratios[k], ratios[len(ratios)-1-k]}
}

func (c comparison) String() string {
	if math.IsNaN(c.Median) {
		return "not known"
	}
	return fmt.Sprintf("%.2f (%.2f to %.2f)", c.Median, c.Low, c.High)
}

// rounds is how many there were.
func (m *measured) rounds() int { return len(m.Results[0]) }

// goesOn tells whether the case is to have another round.
func (m *measured) goesOn(o options) bool {
	return m.rounds() < o.rounds || m.rounds() < o.maxRounds && !m.Seen.disturbed() && !m.settled()
}

// settled tells whether more rounds are not needed: whatever the figures are, it is known well
// enough how the first one's requests per second stand to each other's.
func (m *measured) settled() bool {
	if m.rounds() < enough {
		return false
	}
	for _, other := range m.Results[1:] {
		if c := compare(m.Results[0], other, (*load.Result).IOPS); !(c.High-c.Low < narrow*c.Median) {
			return false
		}
	}
	return true
}
