package load

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/internal/dev/md"
)

func TestMedianOfOddAndEvenCounts(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3},
		{[]float64{9, 1, 5}, 5},
		{[]float64{4, 1, 2, 9}, 3},
	} {
		given := slices.Clone(tt.values)
		if got := Median(tt.values); got != tt.want || !slices.Equal(given, tt.values) {
			t.Errorf("Median(%v) = %v, want %v; it leaves %v", given, got, tt.want, tt.values)
		}
	}
}

func TestRatiosAreOfMediansAndOfRounds(t *testing.T) {
	second := func(requests ...uint64) (rs []Result) {
		for _, n := range requests {
			rs = append(rs, Result{Length: time.Second, Requests: n})
		}
		return rs
	}
	got := Ratios(second(100, 200, 300), second(100, 100, 400), (*Result).IOPS)
	if want := (Ratio{OfMedians: 2, MedianOfRatios: 1, Least: 0.75, Most: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestTargetsAreComparedInAnOrderThatTurnsRound(t *testing.T) {
	a, b := serve(t, md.Config{Size: 4 << 20}), serve(t, md.Config{Size: 4 << 20})
	j := job(RandRead)
	var order []int
	var results [][]Result
	err := patiently(j, func(j Job) (err error) {
		order = nil
		results, err = Compare(t.Context(), []Target{{Name: "a", Socket: a}, {Name: "b", Socket: b}}, j, 3, func(target, round int, r Result) {
			if round != len(order)/2 || r.Length <= 0 {
				t.Errorf("target %d, round %d after %d results: %+v", target, round, len(order), r)
			}
			order = append(order, target)
		})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []int{0, 1, 1, 0, 0, 1}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
	if len(results) != 2 || len(results[0]) != 3 || len(results[1]) != 3 {
		t.Errorf("results of %d targets", len(results))
	}
	none := filepath.Join(t.TempDir(), "none")
	if _, err := Compare(t.Context(), []Target{{Name: "a", Socket: a}, {Name: "the other", Socket: none}}, j, 1, nil); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "the other") {
		t.Errorf("error %v", err)
	}
}

func TestAnErrorLeavesTheRoundsThatAllTargetsHaveDone(t *testing.T) {
	const failing = 2
	fails := errors.New("no good")
	for bad := range 2 { // the one that fails
		runs := [2]int{}
		do := func(target int) func(context.Context, Job) (Result, error) {
			return func(context.Context, Job) (Result, error) {
				if runs[target]++; target == bad && runs[target] == failing+1 {
					return Result{}, fails
				}
				return Result{Requests: uint64(10*target + runs[target])}, nil
			}
		}
		results, err := Compare(t.Context(), []Target{{Name: "a", Do: do(0)}, {Name: "b", Do: do(1)}}, job(Read), 5, nil)
		if !errors.Is(err, fails) {
			t.Errorf("error %v", err)
		}
		for i, of := range results {
			if len(of) != failing || of[0].Requests != uint64(10*i+1) || of[1].Requests != uint64(10*i+2) {
				t.Errorf("target %d: %+v", i, of)
			}
		}
	}
}

func TestATargetCanBeSomethingElse(t *testing.T) {
	j := job(RandRead)
	var got Job
	fails := errors.New("no good")
	targets := []Target{{Name: "else", Do: func(ctx context.Context, j Job) (Result, error) {
		got = j
		return Result{Requests: 3, Length: time.Second}, nil
	}}, {Name: "broken", Do: func(context.Context, Job) (Result, error) { return Result{}, fails }}}
	results, err := Compare(t.Context(), targets[:1], j, 2, nil)
	if err != nil || len(results[0]) != 2 || results[0][1].Requests != 3 || got.BlockSize != j.BlockSize {
		t.Errorf("%+v, %v; the job was %+v", results, err, got)
	}
	if _, err := Compare(t.Context(), targets, j, 1, nil); !errors.Is(err, fails) || !strings.Contains(err.Error(), "broken") {
		t.Errorf("error %v, want that of broken", err)
	}
}

func TestACurveHasTheLatenciesOfAllRounds(t *testing.T) {
	taking := func(d time.Duration, n int64) Result {
		h := NewLatency()
		if err := h.RecordValues(int64(d), n); err != nil {
			t.Fatal(err)
		}
		return Result{Latency: h}
	}
	curve := Curve([]Result{taking(time.Microsecond, 950), taking(time.Millisecond, 50)})
	if len(curve) != 31 { // up to 99.9 % of a thousand
		t.Fatalf("%d quantiles", len(curve))
	}
	for i, q := range curve {
		want := time.Microsecond
		if q.Share > 0.95 {
			want = time.Millisecond
		}
		if off := float64(q.Latency)/float64(want) - 1; off < -1e-3 || off > 1e-3 || i > 0 && q.Share <= curve[i-1].Share {
			t.Errorf("quantile %d: %+v, want %v", i, q, want)
		}
	}
	if got := curve[10].Share; got < 0.9-1e-9 || got > 0.9+1e-9 {
		t.Errorf("the tenth quantile is of %v", got)
	}
	if got := Curve([]Result{taking(1, 0)}); got != nil {
		t.Errorf("of nothing: %v", got)
	}
}
