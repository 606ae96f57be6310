package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
		if got := median(tt.values); got != tt.want {
			t.Errorf("median(%v) = %v, want %v", tt.values, got, tt.want)
		}
	}
}

func TestRatiosCompareRightThings(t *testing.T) {
	r := &result{name: "x", vdev: []float64{100, 200, 300}, qsd: []float64{100, 100, 400}}
	if got := r.ratioOfMedians(); got != 2 {
		t.Errorf("ratio of medians = %v, want 2", got)
	}
	if got := r.medianOfRatios(); got != 1 {
		t.Errorf("median of ratios = %v, want 1", got)
	}
	var out strings.Builder
	if err := report(&out, []*result{r}, 2); err != nil {
		t.Errorf("report fails at the bound: %v", err)
	}
	if err := report(&out, []*result{r}, 2.01); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Errorf("report does not name the case below the bound: %v", err)
	}
}

func TestDurationIsFoundInTheOutput(t *testing.T) {
	out := "Sending 1000 read requests, 4096 bytes each, 32 in parallel (starting at offset 0, step size 4096)\nRun completed in 0.250 seconds.\n"
	if got, err := parseRun(out); err != nil || got != 0.25 {
		t.Errorf("parseRun = %v, %v; want 0.25", got, err)
	}
	for _, bad := range []string{"", "Run completed in", "Run completed in x seconds.", "Run completed in 0.000 seconds."} {
		if got, err := parseRun(bad); err == nil {
			t.Errorf("parseRun(%q) = %v, want an error", bad, got)
		}
	}
}

func TestHeldFileIsFullAndStays(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	const size = 1<<20 + 4096
	h, err := newHeldFile(name, size)
	if err != nil {
		t.Skipf("memory cannot be locked here: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil || len(data) != size {
		t.Fatalf("the file has %d bytes, %v; want %d", len(data), err, size)
	}
	for off := 0; off < size; off += 4096 {
		if strings.Count(string(data[off:off+4096]), "\x00") > 1024 {
			t.Fatalf("the block at %d is nearly empty", off)
		}
	}
}
