package main

import (
	"slices"
	"strings"
	"testing"
	"time"

	"vdev/internal/bench/load"
)

// bulk makes the results of rounds of a second with so many MiB each, and so much CPU for a MiB.
func bulk(cpu time.Duration, mib ...uint64) (results []load.Result) {
	for _, n := range mib {
		results = append(results, load.Result{Length: time.Second, Requests: n, Bytes: n << 20, Latency: load.NewLatency(), Waited: 1,
			Backend: load.Usage{Known: true, CPU: time.Duration(n) * cpu}})
	}
	return results
}

func TestConsolesAreJudgedBesideQEMU(t *testing.T) {
	echo := func(latencies ...time.Duration) (results []load.Result) {
		for _, latency := range latencies {
			of := bulk(time.Millisecond, 1)
			_ = of[0].Latency.RecordValue(int64(latency))
			results = append(results, of...)
		}
		return results
	}
	for _, tt := range []struct {
		pattern    load.Pattern
		our, their []load.Result
		want       []string
	}{
		{load.Output, bulk(time.Millisecond, 300, 310, 320), bulk(2*time.Millisecond, 100, 100, 100), []string{
			"met; console, output 4 KiB: bytes in a second, vdev / QEMU; ≥ 3; **3.10** (3.00 to 3.20)",
			"met; console, output 4 KiB: CPU for a MiB, vdev / QEMU; ≤ 0.5; **0.50** (0.50 to 0.50)",
		}},
		{load.Input, bulk(2*time.Millisecond, 200, 290, 320), bulk(3*time.Millisecond, 100, 100, 100), []string{
			"missed, not surely; console, input 4 KiB: bytes in a second, vdev / QEMU; ≥ 3; **2.90** (2.00 to 3.20)",
			"missed; console, input 4 KiB: CPU for a MiB, vdev / QEMU; ≤ 0.5; **0.67** (0.67 to 0.67)",
		}},
		{load.Echo, echo(time.Millisecond, time.Millisecond), echo(2*time.Millisecond, 2*time.Millisecond), []string{
			"met; console, echo 4 KiB: latency, vdev / QEMU; ≤ 1; **0.50** (0.50 to 0.50)",
		}},
		{load.Echo, echo(3*time.Millisecond, time.Millisecond), echo(time.Millisecond, 2*time.Millisecond), []string{
			"missed, not surely; console, echo 4 KiB: latency, vdev / QEMU; ≤ 1; **1.75** (0.50 to 3.00)",
		}},
	} {
		row, bars := consoleCase(&load.Job{Pattern: tt.pattern, BlockSize: 4096}, tt.our, tt.their)
		if len(row) != 7 || slices.ContainsFunc(row, func(s string) bool { return strings.Contains(s, "NaN") }) {
			t.Errorf("%q", row)
		}
		var got []string
		for _, b := range bars {
			got = append(got, b.verdict()+"; "+b.What+"; "+b.Needed+"; "+b.Measured)
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("got  %q\nwant %q", got, tt.want)
		}
	}
}
