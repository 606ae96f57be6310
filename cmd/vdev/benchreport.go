package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"vdev/internal/bench/chart"
	"vdev/internal/bench/load"
	"vdev/internal/spec"
)

// benchConfig is a command line of `vdev bench` that was found right.
type benchConfig struct {
	targets []load.Target // one, or two that are compared
	hosts   []string      // of each, of a console; empty: it is a disk
	jobs    []load.Job    // one for each case
	rounds  int
	json    bool
	output  string // a file, or empty: the standard output
	svg     string // a file, or empty: no picture
}

// The two kinds of clients.
const clientEvent, clientPoll = "event", "poll"

// benchReport is what `vdev bench` has measured. Its JSON is what --format json prints: members may
// be added, and one that changes its meaning makes it another Format.
type benchReport struct {
	Format        int           `json:"format"` // 1
	Time          time.Time     `json:"time"`   // when it began
	Vdev          string        `json:"vdev"`   // the version of what measured
	Machine       benchMachine  `json:"machine"`
	Targets       []benchTarget `json:"targets"`
	Rounds        int           `json:"rounds"`
	WarmupSeconds float64       `json:"warmup_seconds"`
	LengthSeconds float64       `json:"length_seconds"` // of a round
	Cases         []*benchCase  `json:"cases"`
	// why there are no more cases, where it ended early
	Error string `json:"error,omitempty"`
}

// benchMachine is where it was measured.
type benchMachine struct {
	CPU        string `json:"cpu"`        // the model
	Processors int    `json:"processors"` // that vdev could use
	Kernel     string `json:"kernel"`     // Linux's release
}

// benchTarget is a back-end.
type benchTarget struct {
	Name    string `json:"name"`
	Socket  string `json:"socket"`
	Host    string `json:"host,omitempty"`    // of a console's port
	PID     int    `json:"pid,omitempty"`     // not there: it could not be seen from here
	Command string `json:"command,omitempty"` // how it was called
}

// benchCase is one kind of load.
type benchCase struct {
	Pattern string `json:"pattern"` // output, input, both and echo are a console's
	// where the pattern mixes reads and writes
	ReadPercent *int   `json:"read_percent,omitempty"`
	BlockSize   int64  `json:"block_size"` // bytes
	Queues      int    `json:"queues"`
	Depth       int    `json:"depth"` // requests in flight in each queue
	Client      string `json:"client"`
	// bytes of the disk that were used; not there: all
	Size        int64         `json:"size,omitempty"`
	Verify      bool          `json:"verify,omitempty"`
	Seed        uint64        `json:"seed"`
	ClientCPUs  []int         `json:"client_cpus,omitempty"`
	BackendCPUs []int         `json:"backend_cpus,omitempty"`
	Results     []benchResult `json:"results"`          // one for each target
	Ratios      *benchRatios  `json:"ratios,omitempty"` // of the first target to the second
}

// benchResult is what one target has done in a case.
type benchResult struct {
	// of the rounds, each figure for itself; the greatest latency is that of all
	Median    benchFigures `json:"median"`
	IOPSLeast float64      `json:"iops_least"`
	IOPSMost  float64      `json:"iops_most"`
	// the figures are the load's, and the back-end can do more
	LimitedByLoad bool            `json:"limited_by_load"`
	Rounds        []benchFigures  `json:"rounds"`
	Percentiles   []benchQuantile `json:"percentiles"` // of all rounds together
}

// benchFigures are the figures of a round. Times are in nanoseconds.
type benchFigures struct {
	IOPS           float64 `json:"iops"`
	BytesPerSecond float64 `json:"bytes_per_second"`
	// 0: nothing was timed, as on a console but for echo
	Mean float64 `json:"latency_mean_ns"`
	P50  float64 `json:"latency_p50_ns"`
	P99  float64 `json:"latency_p99_ns"`
	P999 float64 `json:"latency_p99_9_ns"`
	Max  float64 `json:"latency_max_ns"`
	// not there: not known in all rounds
	CPU      *float64 `json:"backend_cpu_ns_per_request,omitempty"`
	Switches *float64 `json:"backend_context_switches_per_request,omitempty"` // likewise
	OwnCPU   float64  `json:"client_cpu_ns_per_request"`
	// of a console; not there: not known in all rounds
	CPUPerMiB *float64 `json:"backend_cpu_ns_per_mib,omitempty"`
	// the share of a console's output that has not come, from 0 to 1
	Lost float64 `json:"lost,omitempty"`
	// in how many of its turns the load had to wait for completions, from 0 to 1
	Waited float64 `json:"waited"`
}

// benchQuantile is a point of the curve of latencies.
type benchQuantile struct {
	Percentile float64 `json:"percentile"`
	Latency    int64   `json:"latency_ns"`
}

// benchRatios are figures of the first target divided by the second one's; not there where one of
// them is not known, or nothing.
type benchRatios struct {
	IOPS      *benchRatio `json:"iops,omitempty"`
	Bytes     *benchRatio `json:"bytes_per_second,omitempty"`    // of a console
	CPUPerMiB *benchRatio `json:"backend_cpu_per_mib,omitempty"` // of a console
	P50       *benchRatio `json:"latency_p50,omitempty"`
	P99       *benchRatio `json:"latency_p99,omitempty"`
	CPU       *benchRatio `json:"backend_cpu_per_request,omitempty"`
}

// benchRatio is how one figure compares.
type benchRatio struct {
	OfMedians      float64 `json:"of_medians"`
	MedianOfRatios float64 `json:"median_of_ratios"` // of the rounds'
	Least          float64 `json:"least"`            // of the rounds'
	Most           float64 `json:"most"`
}

func newBenchReport(c *benchConfig) *benchReport {
	r := &benchReport{
		Format: 1, Time: time.Now().Round(time.Second), Vdev: version(), Machine: thisMachine(),
		Rounds: c.rounds, WarmupSeconds: c.jobs[0].Warmup.Seconds(), LengthSeconds: c.jobs[0].Length.Seconds(), Cases: []*benchCase{},
	}
	for i, t := range c.targets {
		r.Targets = append(r.Targets, benchTarget{Name: t.Name, Socket: t.Socket})
		if c.hosts != nil {
			r.Targets[i].Host = c.hosts[i]
		}
	}
	return r
}

// thisMachine says where it is measured, as far as the system tells.
func thisMachine() benchMachine {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return benchMachine{CPU: cmp.Or(load.Field("/proc/cpuinfo", "model name"), runtime.GOARCH), Processors: runtime.NumCPU(), Kernel: strings.TrimSpace(string(release))}
}

// commandOf returns how a process was called, as far as the system tells.
func commandOf(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return string(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}))
}

func newBenchCase(j *load.Job) *benchCase {
	c := &benchCase{
		Pattern: string(j.Pattern), BlockSize: j.BlockSize, Queues: j.Queues, Depth: j.Depth, Client: clientEvent, Size: j.Size, Verify: j.Verify,
		Seed: j.Seed, ClientCPUs: j.CPUs, BackendCPUs: j.BackendCPUs,
	}
	if j.Poll {
		c.Client = clientPoll
	}
	if c.console() {
		c.Queues = 1
	} else if j.Pattern.Reads() && j.Pattern.Writes() {
		c.ReadPercent = &j.ReadPercent
	}
	return c
}

// console tells whether it is a console's.
func (c *benchCase) console() bool { return load.Pattern(c.Pattern).Console() }

// kind says what cases that differ in their depth only have in common.
func (c *benchCase) kind() string {
	s := c.Pattern + " " + spec.SizeText(c.BlockSize)
	if c.console() {
		return s
	}
	if c.Queues > 1 {
		s += fmt.Sprintf(", %d queues", c.Queues)
	}
	return s + ", " + c.Client
}

func (c *benchCase) String() string { return fmt.Sprintf("%s, depth %d", c.kind(), c.Depth) }

// add takes in what came of a case.
func (r *benchReport) add(j *load.Job, results [][]load.Result) {
	c := newBenchCase(j)
	for _, of := range results {
		c.Results = append(c.Results, newBenchResult(of, c.console()))
	}
	if len(results) == 2 {
		ratio := func(figure func(*load.Result) float64) *benchRatio {
			return newBenchRatio(results[0], results[1], figure)
		}
		c.Ratios = &benchRatios{IOPS: ratio((*load.Result).IOPS), P50: ratio(percentile(50)), P99: ratio(percentile(99))}
		if c.Results[0].Median.CPU != nil && c.Results[1].Median.CPU != nil {
			c.Ratios.CPU = ratio(cpuPerRequest)
		}
		if c.console() {
			c.Ratios.Bytes = ratio((*load.Result).BytesPerSecond)
			if c.Ratios.CPU != nil {
				c.Ratios.CPUPerMiB = ratio(cpuPerMiB)
			}
		}
	}
	r.Cases = append(r.Cases, c)
}

// bytes picks one of the rounds' bytes per second.
func (r *benchResult) bytes(pick func([]float64) float64) float64 {
	var rounds []float64
	for _, f := range r.Rounds {
		rounds = append(rounds, f.BytesPerSecond)
	}
	return pick(rounds)
}

// Figures of a result.
func percentile(p float64) func(*load.Result) float64 {
	return func(r *load.Result) float64 { return float64(r.Percentile(p)) }
}

func cpuPerRequest(r *load.Result) float64 { return perRequest(r, float64(r.Backend.CPU)) }

func cpuPerMiB(r *load.Result) float64 {
	return float64(r.Backend.CPU) / (float64(max(r.Bytes, 1)) / (1 << 20))
}

func perRequest(r *load.Result, v float64) float64 { return v / float64(max(r.Requests, 1)) }

func newBenchResult(of []load.Result, console bool) benchResult {
	r := benchResult{
		Median:        figuresOf(of, console, func(figure func(*load.Result) float64) float64 { return load.MedianOf(of, figure) }),
		IOPSLeast:     math.Inf(1),
		LimitedByLoad: load.LimitedByLoad(of),
	}
	for i := range of {
		f := figuresOf(of[i:i+1], console, func(figure func(*load.Result) float64) float64 { return figure(&of[i]) })
		r.IOPSLeast, r.IOPSMost, r.Median.Max = min(r.IOPSLeast, f.IOPS), max(r.IOPSMost, f.IOPS), max(r.Median.Max, f.Max)
		r.Rounds = append(r.Rounds, f)
	}
	for _, q := range load.Curve(of) {
		r.Percentiles = append(r.Percentiles, benchQuantile{100 * q.Share, int64(q.Latency)})
	}
	return r
}

// figuresOf takes all figures with take.
func figuresOf(of []load.Result, console bool, take func(func(*load.Result) float64) float64) benchFigures {
	f := benchFigures{
		IOPS:           take((*load.Result).IOPS),
		BytesPerSecond: take((*load.Result).BytesPerSecond),
		Mean:           take(func(r *load.Result) float64 { return r.Latency.Mean() }),
		P50:            take(percentile(50)),
		P99:            take(percentile(99)),
		P999:           take(percentile(99.9)),
		Max:            take(func(r *load.Result) float64 { return float64(r.Latency.Max()) }),
		OwnCPU:         take(func(r *load.Result) float64 { return perRequest(r, float64(r.Own.CPU)) }),
		Waited:         take(func(r *load.Result) float64 { return r.Waited }),
		Lost:           take(func(r *load.Result) float64 { return r.Lost }),
	}
	if !slices.ContainsFunc(of, func(r load.Result) bool { return !r.Backend.Known }) {
		cpu := take(cpuPerRequest)
		f.CPU = &cpu
		if console {
			perMiB := take(cpuPerMiB)
			f.CPUPerMiB = &perMiB
		}
	}
	if !slices.ContainsFunc(of, func(r load.Result) bool { return !r.Backend.SwitchesKnown }) {
		switches := take(func(r *load.Result) float64 { return perRequest(r, float64(r.Backend.Switches)) })
		f.Switches = &switches
	}
	return f
}

// newBenchRatio is nil where a round has nothing to compare.
func newBenchRatio(a, b []load.Result, figure func(*load.Result) float64) *benchRatio {
	for _, r := range slices.Concat(a, b) {
		if v := figure(&r); !(v > 0) || math.IsInf(v, 1) {
			return nil
		}
	}
	r := benchRatio(load.Ratios(a, b, figure))
	return &r
}

// rate writes a number of requests per second, shortly.
func rate(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2fM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1fk", v/1e3)
	}
	return fmt.Sprintf("%.0f", v)
}

// latency writes a time in nanoseconds to three digits or so.
func latency(ns float64) string {
	v, unit := ns/1e3, "us"
	switch {
	case ns >= 1e9:
		v, unit = ns/1e9, "s"
	case ns >= 1e6:
		v, unit = ns/1e6, "ms"
	}
	digits := 2
	if v >= 100 {
		digits = 0
	} else if v >= 10 {
		digits = 1
	}
	return fmt.Sprintf("%.*f%s", digits, v, unit)
}

// orDash writes what may be missing.
func orDash(v *float64, text func(float64) string) string {
	if v == nil {
		return "-"
	}
	return text(*v)
}

// starred says of whom the figures tell.
const starred = "* The load was the limit here: completions were there before they were looked for. The back-end can do more."

// how tells what else the cases have in common; empty where there is nothing to tell.
func (r *benchReport) how() string {
	var parts []string
	c := r.Cases[0]
	if c.Size > 0 {
		parts = append(parts, "on the first "+spec.SizeText(c.Size)+" of the disk")
	}
	for _, c := range r.Cases {
		if c.ReadPercent != nil {
			parts = append(parts, fmt.Sprintf("%d %% reads where they are mixed with writes", *c.ReadPercent))
			break
		}
	}
	if c.Verify {
		parts = append(parts, "verified, the load's checking being part of the speed")
	}
	if c.ClientCPUs != nil {
		parts = append(parts, "from "+bound(c.ClientCPUs))
	}
	if c.BackendCPUs != nil {
		parts = append(parts, "back-end on "+bound(c.BackendCPUs))
	}
	return strings.Join(parts, ", ")
}

func bound(cpus cpuList) string {
	if len(cpus) == 1 {
		return "processor " + cpus.String()
	}
	return "processors " + cpus.String()
}

// ended tells why there is no more, and how many rounds there are of the last case where there are
// fewer.
func (r *benchReport) ended() string {
	s := "It ended early: " + r.Error
	if n := len(r.Cases[len(r.Cases)-1].Results[0].Rounds); n < r.Rounds {
		s += fmt.Sprintf("\nThe last case has %s, and not %d.", count(n, "round"), r.Rounds)
	}
	return s
}

// text writes the report as tables, of 120 columns where names are short.
func (r *benchReport) text(w io.Writer) error {
	t := &table{w: w}
	t.row("machine", "%s, %s, Linux %s", r.Machine.CPU, count(r.Machine.Processors, "processor"), r.Machine.Kernel)
	for _, target := range r.Targets {
		t.row("back-end", "%s: %s", target.Name, cmp.Or(target.Command, target.Socket))
	}
	t.row("measured", "by vdev %s, in %s of %gs, each after %gs of warm-up", r.Vdev, count(r.Rounds, "round"), r.LengthSeconds, r.WarmupSeconds)
	if how := r.how(); how != "" {
		t.row("load", "%s", how)
	}
	names := len("TARGET")
	for _, target := range r.Targets {
		names = max(names, len(target.Name))
	}
	stars := false
	line := func(form string, fields ...any) {
		if t.err == nil {
			_, t.err = fmt.Fprintf(w, form+"\n", fields...)
		}
	}
	if r.Cases[0].console() {
		stars = r.consoles(names, line)
	} else {
		stars = r.disks(names, line)
	}
	if stars {
		line("\n%s", starred)
	}
	if r.Error != "" {
		line("\n%s", r.ended())
	}
	return t.err
}

// part writes one number of a ratio, which may be missing.
func part(r *benchRatio, of func(*benchRatio) float64) string {
	if r == nil {
		return "-"
	}
	return fmt.Sprintf("%.2f", of(r))
}

// medians takes the ratio of the medians.
func medians(r *benchRatio) float64 { return r.OfMedians }

// liner writes a line of a table.
type liner func(form string, fields ...any)

// disks writes what was measured on disks, and tells whether something has a star.
func (r *benchReport) disks(names int, line liner) (stars bool) {
	const caseForm = "%-9s %5s %5s %3s %-6s"
	caseHead := []any{"PATTERN", "BLOCK", "DEPTH", "Q", "CLIENT"}
	caseOf := func(c *benchCase) []any {
		return []any{c.Pattern, spec.SizeText(c.BlockSize), fmt.Sprint(c.Depth), fmt.Sprint(c.Queues), c.Client}
	}

	form := caseForm + " %-" + fmt.Sprint(names) + "s %7s %5s %6s %6s %6s %6s %6s %6s %7s %6s"
	line("")
	line(form, append(caseHead, "TARGET", "IOPS", "+-", "MB/S", "MEAN", "P50", "P99", "P99.9", "MAX", "CPU/REQ", "CSW/REQ")...)
	for _, c := range r.Cases {
		for i, res := range c.Results {
			m := res.Median
			spread := "-"
			if m.IOPS > 0 {
				spread = fmt.Sprintf("%.0f%%", 50*(res.IOPSMost-res.IOPSLeast)/m.IOPS)
			}
			iops := rate(m.IOPS)
			if res.LimitedByLoad {
				iops, stars = iops+"*", true
			}
			line(form, append(caseOf(c), r.Targets[i].Name, iops, spread, fmt.Sprintf("%.0f", m.BytesPerSecond/1e6), latency(m.Mean), latency(m.P50), latency(m.P99),
				latency(m.P999), latency(m.Max), orDash(m.CPU, latency), orDash(m.Switches, func(v float64) string { return fmt.Sprintf("%.3f", v) }))...)
		}
	}
	return r.compared(line, caseForm, caseHead, caseOf, "IOPS", "CPU/REQ", func(c *benchRatios) (speed, cpu *benchRatio) { return c.IOPS, c.CPU }) || stars
}

// compared writes how two targets compare, by their speed and its cost, and tells whether something
// has a star.
func (r *benchReport) compared(line liner, caseForm string, caseHead []any, caseOf func(*benchCase) []any, speedName, cpuName string,
	of func(*benchRatios) (speed, cpu *benchRatio)) (stars bool) {
	if len(r.Targets) != 2 {
		return false
	}
	form := caseForm + " %8s %8s %8s %8s %8s %8s %8s"
	line("")
	line("%s divided by %s:", r.Targets[0].Name, r.Targets[1].Name)
	line(form, append(caseHead, speedName, "ROUNDS", "LEAST", "MOST", "P50", "P99", cpuName)...)
	for _, c := range r.Cases {
		speed, cpu := of(c.Ratios)
		text := part(speed, medians)
		if speed != nil && (c.Results[0].LimitedByLoad || c.Results[1].LimitedByLoad) {
			text, stars = text+"*", true
		}
		line(form, append(caseOf(c), text, part(speed, func(r *benchRatio) float64 { return r.MedianOfRatios }),
			part(speed, func(r *benchRatio) float64 { return r.Least }), part(speed, func(r *benchRatio) float64 { return r.Most }),
			part(c.Ratios.P50, medians), part(c.Ratios.P99, medians), part(cpu, medians))...)
	}
	line("")
	line("%[1]s, P50, P99 and %[2]s are ratios of the medians; ROUNDS is the median of each round's own ratio of %[1]s, and LEAST", speedName, cpuName)
	line("and MOST are the ends of those.")
	return stars
}

// consoles writes what was measured on consoles, and tells whether something has a star.
func (r *benchReport) consoles(names int, line liner) (stars bool) {
	const caseForm = "%-7s %6s %5s"
	caseHead := []any{"PATTERN", "BUFFER", "DEPTH"}
	caseOf := func(c *benchCase) []any {
		depth := fmt.Sprint(c.Depth)
		if load.Pattern(c.Pattern) == load.Echo {
			depth = "1"
		}
		return []any{c.Pattern, spec.SizeText(c.BlockSize), depth}
	}
	timed := func(ns float64) string {
		if ns == 0 {
			return "-"
		}
		return latency(ns)
	}
	form := caseForm + " %-" + fmt.Sprint(names) + "s %7s %5s %7s %6s %6s %6s %7s %7s %7s %6s"
	line("")
	line(form, append(caseHead, "TARGET", "MB/S", "+-", "REQ/S", "P50", "P99", "MAX", "CPU/REQ", "CPU/MIB", "CSW/REQ", "LOST")...)
	for _, c := range r.Cases {
		for i, res := range c.Results {
			m := res.Median
			least, most := res.bytes(slices.Min[[]float64]), res.bytes(slices.Max[[]float64])
			bytes, lost := megabytes(m.BytesPerSecond), "-"
			if res.LimitedByLoad {
				bytes, stars = bytes+"*", true
			}
			if m.Lost > 0 {
				lost = fmt.Sprintf("%.1f%%", 100*m.Lost)
			}
			line(form, append(caseOf(c), r.Targets[i].Name, bytes, fmt.Sprintf("%.0f%%", 50*(most-least)/m.BytesPerSecond), rate(m.IOPS), timed(m.P50), timed(m.P99), timed(m.Max),
				orDash(m.CPU, latency), orDash(m.CPUPerMiB, latency), orDash(m.Switches, func(v float64) string { return fmt.Sprintf("%.3f", v) }), lost)...)
		}
	}
	return r.compared(line, caseForm, caseHead, caseOf, "MB/S", "CPU/MIB", func(c *benchRatios) (speed, cpu *benchRatio) { return c.Bytes, c.CPUPerMiB }) || stars
}

// megabytes writes bytes per second as millions of them.
func megabytes(v float64) string {
	if v < 1e7 {
		return fmt.Sprintf("%.2f", v/1e6)
	}
	return fmt.Sprintf("%.0f", v/1e6)
}

// figure draws the report: for each kind of load bars of IOPS and, of two targets, of their ratios,
// and beside them the latencies.
func (r *benchReport) figure() *chart.Figure {
	var names []string
	for _, t := range r.Targets {
		names = append(names, t.Name)
	}
	f := &chart.Figure{Title: strings.Join(names, " and "), Notes: []string{
		fmt.Sprintf("%s, %s, Linux %s; vdev %s, %s", r.Machine.CPU, count(r.Machine.Processors, "processor"), r.Machine.Kernel, r.Vdev, r.Time.Format(time.DateOnly)),
		fmt.Sprintf("Bars: medians of %s of %gs, and the least and the most of them.", count(r.Rounds, "round"), r.LengthSeconds),
	}}
	if how := r.how(); how != "" {
		f.Notes = append(f.Notes, "Load: "+how+".")
	}
	stars := false
	for from := 0; from < len(r.Cases); {
		to := from + 1
		for to < len(r.Cases) && r.Cases[to].kind() == r.Cases[from].kind() {
			to++
		}
		kind := r.Cases[from].kind()
		what, format := "requests per second", rate
		bytes := r.Cases[from].console() && load.Pattern(r.Cases[from].Pattern) != load.Echo
		if bytes {
			what, format = "MB/s", megabytes
		}
		iops := &chart.Bars{Title: kind + ": " + what, Series: names, Format: format}
		ratios := &chart.Bars{Title: kind + ": " + what + ", " + strings.Join(names, " / "), Series: []string{""}, Line: 1,
			Format: func(v float64) string { return fmt.Sprintf("%.2f", v) }}
		curves := &chart.Curves{Title: kind + ": latency"}
		for i, c := range r.Cases[from:to] {
			depth := fmt.Sprintf("depth %d", c.Depth)
			g := chart.Group{Name: depth}
			mark := ""
			for k, res := range c.Results {
				bar := chart.Bar{Value: res.Median.IOPS, Least: res.IOPSLeast, Most: res.IOPSMost}
				if bytes {
					bar = chart.Bar{Value: res.Median.BytesPerSecond, Least: res.bytes(slices.Min[[]float64]), Most: res.bytes(slices.Max[[]float64])}
				}
				if res.LimitedByLoad {
					bar.Mark, mark, stars = "*", "*", true
				}
				g.Bars = append(g.Bars, bar)
				if len(res.Percentiles) == 0 {
					continue
				}
				curve := chart.Curve{Name: names[k] + ", " + depth, Hue: k, Dash: i}
				for _, q := range res.Percentiles {
					curve.Points = append(curve.Points, chart.Point{Share: q.Percentile / 100, Latency: time.Duration(q.Latency)})
				}
				curves.Curves = append(curves.Curves, curve)
			}
			iops.Groups = append(iops.Groups, g)
			if c.Ratios != nil && c.Ratios.IOPS != nil {
				of := c.Ratios.IOPS
				if bytes {
					of = c.Ratios.Bytes
				}
				ratios.Groups = append(ratios.Groups, chart.Group{Name: depth, Bars: []chart.Bar{{Value: of.OfMedians, Least: of.Least, Most: of.Most, Mark: mark}}})
			}
		}
		left := chart.Stack{iops}
		if len(ratios.Groups) > 0 {
			left = append(left, ratios)
		}
		row := []chart.Panel{left}
		if len(curves.Curves) > 0 {
			row = append(row, curves)
		}
		f.Rows = append(f.Rows, row)
		from = to
	}
	if stars {
		f.Notes = append(f.Notes, starred)
	}
	if r.Error != "" {
		f.Notes = append(f.Notes, strings.Split(r.ended(), "\n")...)
	}
	return f
}
