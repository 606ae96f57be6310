package load

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// Target is what is measured: a back-end, or something else that does the same work.
type Target struct {
	Name   string // what it is called in errors and reports
	Socket string // the path a back-end listens at
	// Host is where the port of a console has its other side, for patterns of consoles. It is the
	// caller's, who closes it.
	Host *Host
	// Port is the name of the port, or its number; empty: 0.
	Port string
	// Via, where it is not nil, is how a console is reached that is no back-end at Socket.
	Via *Via
	// Do, where it is not nil, does a job in place of Run on a back-end, and says what came of it.
	Do func(ctx context.Context, j Job) (Result, error)
}

// Via is how a console is reached.
type Via struct {
	// Connect makes a connection to something that behaves as a back-end.
	Connect func() (*vhostusertest.Frontend, error)
	// Memory is all the guest memory that the console knows. Whoever connects makes it zero.
	Memory *virtqtest.Mem
	PID    int // of the process whose usage counts
}

func (t *Target) run(ctx context.Context, j Job) (Result, error) {
	if t.Do != nil {
		return t.Do(ctx, j)
	}
	if t.Host != nil {
		return runConsole(ctx, t, j)
	}
	return Run(ctx, t.Socket, j)
}

// Compare does j on each target in turn, rounds times. The order turns round from round to round,
// so that what drifts on the host weighs on all targets alike. each, where it is not nil, gets
// every result as it comes. The outer index of the result is the target's, the inner one the
// round's. The first error, or the end of ctx, ends it: Compare then also returns the rounds that
// all targets have done, perhaps none.
func Compare(ctx context.Context, targets []Target, j Job, rounds int, each func(target, round int, r Result)) ([][]Result, error) {
	results := make([][]Result, len(targets))
	for round := range rounds {
		done := make([]Result, len(targets))
		for i := range targets {
			if round%2 == 1 {
				i = len(targets) - 1 - i
			}
			r, err := targets[i].run(ctx, j)
			if err != nil {
				return results, fmt.Errorf("%s: %w", targets[i].Name, err)
			}
			done[i] = r
			if each != nil {
				each(i, round, r)
			}
		}
		for i, r := range done {
			results[i] = append(results[i], r)
		}
	}
	return results, nil
}

// Median returns the middle of values in order of size, or the mean of the two in the middle. There
// must be one.
func Median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// MedianOf returns the median of a figure of results, such as (*Result).IOPS.
func MedianOf(results []Result, figure func(*Result) float64) float64 {
	return Median(figures(results, figure))
}

// LimitedByLoad tells whether the load itself was what went slowest in most of the results, so that
// the back-end can do more than is seen in them.
func LimitedByLoad(results []Result) bool {
	return MedianOf(results, func(r *Result) float64 { return r.Waited }) < 0.05
}

func figures(results []Result, figure func(*Result) float64) []float64 {
	values := make([]float64, len(results))
	for i := range results {
		values[i] = figure(&results[i])
	}
	return values
}

// Ratio is a figure of one target divided by that of another. Where the other's is 0 it is not
// finite.
type Ratio struct {
	OfMedians      float64
	MedianOfRatios float64 // of the rounds'
	Least, Most    float64 // of the rounds'
}

// Ratios compares a figure of a's results with that of b's, of as many rounds, of which there must
// be one.
func Ratios(a, b []Result, figure func(*Result) float64) Ratio {
	x, y := figures(a, figure), figures(b, figure)
	of := Ratio{OfMedians: Median(x) / Median(y)}
	for i := range x {
		x[i] /= y[i]
	}
	of.MedianOfRatios, of.Least, of.Most = Median(x), slices.Min(x), slices.Max(x)
	return of
}

// Quantile says that a share of the requests, from 0 to less than 1, took no longer than Latency.
type Quantile struct {
	Share   float64
	Latency time.Duration
}

// Curve returns the distribution of the latencies of results, taken together: ten quantiles for
// each nine of the share (up to 90 %, up to 99 % and so on), as far as there are requests beyond.
// Without requests it returns none.
func Curve(results []Result) (curve []Quantile) {
	all := NewLatency()
	for i := range results {
		all.Merge(results[i].Latency)
	}
	for step := 0; ; step++ {
		beyond := math.Pow(10, -float64(step)/10)
		if beyond*float64(all.TotalCount()) < 1 {
			return curve
		}
		curve = append(curve, Quantile{1 - beyond, time.Duration(all.ValueAtQuantile(100 * (1 - beyond)))})
	}
}
