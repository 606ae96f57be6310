package main

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"text/tabwriter"
)

// result has the requests per second of one case, a pair for each round.
type result struct {
	name string
	vdev []float64
	qsd  []float64

	third []float64 // nbdcopy's, where it was measured
}

// ratioOfMedians is what the comparison is judged by.
func (r *result) ratioOfMedians() float64 { return median(r.vdev) / median(r.qsd) }

// medianOfRatios compares within the rounds, where both met the same conditions.
func (r *result) medianOfRatios() float64 {
	ratios := make([]float64, len(r.vdev))
	for i := range ratios {
		ratios[i] = r.vdev[i] / r.qsd[i]
	}
	return median(ratios)
}

// median returns the middle of values, or the mean of the two in the middle. It leaves values as they are.
func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// report prints a line for each case, and fails where a ratio of medians is below least.
func report(w io.Writer, results []*result, least float64) error {
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "case\tvdev, 1/s\tqsd, 1/s\tratio of medians\tmedian of ratios\tnbdcopy, 1/s\t")
	var below []string
	for _, r := range results {
		third := "-"
		if len(r.third) > 0 {
			third = strconv.Itoa(int(median(r.third)))
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.3f\t%.3f\t%s\t\n", r.name, median(r.vdev), median(r.qsd), r.ratioOfMedians(), r.medianOfRatios(), third)
		if r.ratioOfMedians() < least {
			below = append(below, r.name)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if len(below) > 0 {
		return fmt.Errorf("the ratio of medians is below %g for %q", least, below)
	}
	return nil
}
