package main

import (
	"context"
	"errors"
	"flag"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/bench/load"
)

var update = flag.Bool("update", false, "write what the tests compare with")

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestTheWholeSuiteIsPlannedUnlessSomeIsSelected(t *testing.T) {
	count := func(args ...string) map[string]int {
		o, err := parse(append([]string{"-vdev", "vdev"}, args...))
		if err != nil {
			t.Fatal(err)
		}
		n := map[string]int{}
		for _, p := range plans(o) {
			n[p.Target]++
		}
		return n
	}
	for _, tt := range []struct {
		args string
		want map[string]int
	}{
		{"", map[string]int{"null": 12, "cached": 12, "direct": 12, "sequential": 4, "queues": 6, "mixed": 1, "nbd": 8}},
		{"-targets null,nbd", map[string]int{"null": 12, "nbd": 8}},
		{"-targets idle", map[string]int{}},
		{"-targets null,direct,mixed -ops read -depths 4", map[string]int{"null": 2, "direct": 2, "mixed": 1}},
		{"-targets cached -clients poll -sizes 4096,8192,512 -ops write", map[string]int{"cached": 9}},
		{"-quick", map[string]int{"null": 8, "cached": 8, "direct": 8}},
		{"-quick -targets queues -depths 7", map[string]int{"queues": 6}},
	} {
		if got := count(strings.Fields(tt.args)...); !maps.Equal(got, tt.want) {
			t.Errorf("%q: %v, want %v", tt.args, got, tt.want)
		}
	}
}

func TestQuickLeavesWhatIsGiven(t *testing.T) {
	o, err := parse([]string{"-vdev", "v", "-quick", "-rounds", "9"})
	if err != nil || o.rounds != 9 || o.maxRounds != 9 || o.seconds >= 0.3 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestRoundsThatAreGivenAreAllUnlessTheMostIsGivenToo(t *testing.T) {
	for args, want := range map[string][2]int{
		"":                        {5, 13},
		"-rounds 20":              {20, 20},
		"-rounds 2 -max-rounds 8": {2, 8},
		"-max-rounds 6":           {5, 6},
		"-quick":                  {5, 5},
		"-quick -max-rounds 9":    {5, 9},
		"-doc f -rounds 5":        {5, 5},
	} {
		o, err := parse(append([]string{"-vdev", "v"}, strings.Fields(args)...))
		if got := [2]int{o.rounds, o.maxRounds}; err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", args, got, err, want)
		}
	}
}

func TestSocketsTakePartEverywhereButInNBD(t *testing.T) {
	o, err := parse([]string{"-vdev", "v", "-socket", "spdk=/run/a", "-socket", "b=/run/b=c", "-overwrite"})
	if err != nil || !slices.EqualFunc(o.sockets, []string{"spdk /run/a", "b /run/b=c"}, func(t load.Target, s string) bool { return t.Name+" "+t.Socket == s }) {
		t.Fatalf("%+v, %v", o.sockets, err)
	}
	for _, p := range plans(o) {
		if n := len(p.With); slices.Equal(p.With[n-2:], []string{"spdk", "b"}) == (p.Disk == nbd) {
			t.Errorf("%s is with %q", p.name(), p.With)
		}
	}
}

func TestSocketsAreNotWrittenToUnasked(t *testing.T) {
	for args, want := range map[string]bool{
		"":                                      false,
		"-quick":                                false,
		"-ops write":                            false,
		"-ops write,read":                       false,
		"-targets mixed":                        false,
		"-targets sequential -overwrite=0":      false,
		"-overwrite":                            true,
		"-ops read":                             true,
		"-targets queues":                       true, // has no writes
		"-targets idle,nbd":                     true,
		"-targets mixed,queues -ops read":       true,
		"-quick -ops read -depths 1 -sizes 512": true,
	} {
		o, err := parse(append([]string{"-vdev", "v", "-socket", "s=/run/s"}, strings.Fields(args)...))
		if (err == nil) != want || err != nil && !strings.Contains(err.Error(), "-overwrite") {
			t.Errorf("%q: error %v", args, err)
		}
		for _, p := range plans(o) {
			if err == nil && !o.overwrite && p.Job.Pattern.Writes() && slices.Contains(p.With, "s") {
				t.Errorf("%q: %s writes", args, p.name())
			}
		}
	}
}

func TestWrongArgumentsAreNamed(t *testing.T) {
	for args, want := range map[string]string{
		"":                             "-vdev",
		"-vdev v -targets null,floppy": `"floppy" must be one of null, cached`,
		"-vdev v -depths 1,0":          `"0" must be`,
		"-vdev v -socket /run/s":       "NAME=PATH",
		"-vdev v -socket vdev=/run/s":  `the name "vdev" is taken`,
		"-vdev v -socket a=/run/s -socket a=/run/t":               "a=/run/s is there already",
		"-vdev v -socket a=/run/s -socket b=/run/s":               "a=/run/s is there already",
		"-vdev v -overwrite -targets nbd,allocs -socket a=/run/s": "-socket a: has no part",
		"-vdev v -ops read -targets mixed -socket a=/run/s":       "-socket a: has no part",
		"-vdev v -depths 1,32,1":                                  `"1" is there twice`,
		"-vdev v -sizes 4096 -sizes 4096":                         `"4096" is there twice`,
		"-vdev v -targets null,null":                              `"null" is there twice`,
		"-vdev v -rounds 6 -max-rounds 5":                         "-rounds, which is the least, is 6",
		"-vdev v -rounds 4 -doc f":                                "fewer than 5 rounds",
		"-vdev v -sizes 4096,1000":                                `"1000" must be a multiple of 512`,
		"-vdev v -sizes 8388608":                                  `"8388608" must be a multiple of 512, at most 4194304`,
		"-vdev v -depths 8192":                                    `"8192" must be a multiple of 1, at most 4096`,
		"-vdev v -rounds 0":                                       "-rounds",
		"-vdev v -server-cpu 1":                                   "a core each",
		"-vdev v -client-cpu 99999":                               "a core each",
		"-vdev v -doc f -depths 1":                                "-depths leaves something out",
		"-vdev v -doc f -quick":                                   "-quick leaves something out",
		"-vdev v null":                                            `unexpected argument "null"`,
		"-vdev v -server-cpu -1 -client-cpu 0":                    "a core each",
		"-vdev v -clients event,interrupt -doc f":                 `"interrupt" must be`,
	} {
		if _, err := parse(strings.Fields(args)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want %q", args, err, want)
		}
	}
}

func TestHeldFileIsFullAndStays(t *testing.T) {
	name := filepath.Join(t.TempDir(), "image")
	const size = 1<<20 + 4096 + 512
	h, err := newHeldFile(name, size)
	if err != nil {
		t.Skipf("memory cannot be locked here: %v", err)
	}
	if err := h.check(); err != nil {
		t.Error(err)
	}
	missing := heldFile{f: h.f, mem: make([]byte, size+1<<20)}
	if err := missing.check(); err == nil || !strings.Contains(err.Error(), "of 514 pages the page cache has 258") {
		t.Errorf("error %v where pages are missing", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(name)
	if err != nil || len(data) != size {
		t.Fatalf("the file has %d bytes, %v; want %d", len(data), err, size)
	}
	for page := range slices.Chunk(data, 4096) {
		if strings.Count(string(page), "\x00") > len(page)/4 {
			t.Fatal("a page is nearly empty")
		}
	}
	if _, err := newHeldFile(name, size); !errors.Is(err, os.ErrExist) {
		t.Errorf("a file that is there: error %v", err)
	}
}

const fioText = `fio: this is a warning
{"fio version": "fio-3.33", "jobs": [{"jobname": "bench", "error": 0,
 "read": {"total_ios": 300, "io_bytes": 1228800, "runtime": 200, "lat_ns": {"bins": {"1000": 200, "5000": 100}}},
 "write": {"total_ios": 100, "io_bytes": 409600, "runtime": 250, "lat_ns": {"bins": {"0": 1, "9000": 99}}},
 "usr_cpu": 20.0, "sys_cpu": 60.0, "ctx": 17}]}`

func TestFioIsUnderstood(t *testing.T) {
	r, err := parseFio([]byte(fioText))
	if err != nil {
		t.Fatal(err)
	}
	if r.Requests != 400 || r.Bytes != 1638400 || r.Length != 250*time.Millisecond {
		t.Errorf("%+v", r)
	}
	if r.Backend != (load.Usage{Known: true, CPU: 200 * time.Millisecond, SwitchesKnown: true, Switches: 17}) {
		t.Errorf("usage %+v", r.Backend)
	}
	if r.Latency.TotalCount() != 400 || r.Latency.ValueAtQuantile(50) != 1000 || r.Latency.ValueAtQuantile(70)/10 != 500 {
		t.Errorf("latencies %v", r.Latency.CumulativeDistribution())
	}
	for bad, want := range map[string]string{
		"":             "fio's output",
		`{"jobs": []}`: "0 jobs",
		strings.Replace(fioText, `"error": 0`, `"error": 5`, 1):           "error 5",
		strings.Replace(fioText, `"1000"`, `"soon"`, 1):                   `latency "soon"`,
		`{"jobs": [{"read": {"total_ios": 0}, "write": {"runtime": 5}}]}`: "nothing",
	} {
		if _, err := parseFio([]byte(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q of %q", err, want, bad)
		}
	}
}

func TestFioIsToldTheJob(t *testing.T) {
	j := load.Job{Pattern: load.RandRW, ReadPercent: 70, BlockSize: 4096, Depth: 32, Warmup: time.Second / 5, Length: 2 * time.Second}
	got := strings.Join(fioArgs("psync", "/f", true, j), " ")
	for _, want := range []string{"--rw=randrw", "--rwmixread=70", "--bs=4096", "--iodepth=32", "--ramp_time=200ms", "--runtime=2000ms", "--ioengine=psync",
		"--filename=/f", "--direct=1", "--invalidate=0"} {
		if !strings.Contains(got+" ", want+" ") {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	j.Pattern = load.RandRead
	if got := strings.Join(fioArgs("psync", "/f", false, j), " "); strings.Contains(got, "direct") || strings.Contains(got, "mix") {
		t.Errorf("%q", got)
	}
}

func TestNbdcopysStartIsNotCounted(t *testing.T) {
	result := func(length, cpu time.Duration, switches uint64) load.Result {
		return load.Result{Length: length, Backend: load.Usage{Known: true, CPU: cpu, SwitchesKnown: true, Switches: switches}}
	}
	j := load.Job{Pattern: load.Read, BlockSize: 4096, Depth: 32}
	r, err := copied(result(32*time.Millisecond, 20*time.Millisecond, 90), result(8*time.Millisecond, 5*time.Millisecond, 40), j)
	if want := (load.Usage{Known: true, CPU: 15 * time.Millisecond, SwitchesKnown: true, Switches: 50}); err != nil || r.Length != 24*time.Millisecond || r.Backend != want ||
		r.Bytes != nbdBytes || r.Requests != nbdBytes/4096 {
		t.Errorf("%+v, %v", r, err)
	}
	r, err = copied(result(9*time.Millisecond, 4*time.Millisecond, 30), result(8*time.Millisecond, 5*time.Millisecond, 40), j)
	if want := (load.Usage{Known: true, SwitchesKnown: true}); err != nil || r.Backend != want {
		t.Errorf("less than the start: %+v, %v", r, err)
	}
	if _, err := copied(result(8*time.Millisecond, 0, 0), result(8*time.Millisecond, 0, 0), j); !errors.Is(err, load.ErrNoRequest) {
		t.Errorf("no longer than the start: error %v", err)
	}
}

func TestNbdcopyIsAskedForAllAndForItsStart(t *testing.T) {
	program := filepath.Join(t.TempDir(), "nbdcopy")
	// It waits for each of its children, so that it has more switches for the whole disk.
	script := `#!/bin/sh
echo "$*" >>"$0.log"
case "$*" in *whole*) for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do sleep 0.01; done;; esac
`
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	s := &suite{o: options{nbdcopy: program}}
	r, err := s.runCopy(t.Context(), "whole", "tiny", load.Job{Pattern: load.Read, BlockSize: 128 << 10, Depth: 2})
	if err != nil || r.Requests != 512 || r.Bytes != 64<<20 || !r.Backend.Known || !r.Backend.SwitchesKnown || r.Backend.Switches == 0 {
		t.Errorf("%+v, %v", r, err)
	}
	asked, err := os.ReadFile(program + ".log")
	if err != nil {
		t.Fatal(err)
	}
	how := "--no-extents --connections=1 --requests=2 --queue-size=1048576 --request-size=131072 "
	if want := strings.Repeat(how+"tiny null:\n", starts) + how + "whole null:\n"; string(asked) != want {
		t.Errorf("it was asked:\n%swant:\n%s", asked, want)
	}
	s.o.nbdcopy = "false"
	if _, err := s.runCopy(t.Context(), "whole", "tiny", load.Job{BlockSize: 4096, Depth: 1}); err == nil || !strings.Contains(err.Error(), "false") {
		t.Errorf("error %v where it fails", err)
	}
}

func TestServersThatDoNotComeUpAreNamed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, cpu := range []int{-1, 0} {
		if _, err := startServer(t.Context(), cpu, "nobody", socket, "false"); err == nil || !strings.HasPrefix(err.Error(), "nobody: ") || !strings.Contains(err.Error(), "ended at its start (it has ended: exit status 1)") {
			t.Errorf("error %v", err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := startServer(ctx, -1, "slow", socket, "sleep", "1000"); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

func TestServersAreStoppedAndTheirEndIsNoticed(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	s, err := startServer(t.Context(), -1, "one", socket, "sh", "-c", `: >"$0"; exec sleep 1000`, socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.stop(t.Context()); err != nil {
		t.Error(err)
	}
	if s.State() == nil {
		t.Error("it was not waited for")
	}
	if err := s.stop(t.Context()); err == nil || !strings.HasPrefix(err.Error(), "one: ") || !strings.Contains(err.Error(), "ended before it was told to") {
		t.Errorf("error %v", err)
	}
}

// rounds makes results of the back-end's so many thousand requests per second, µs of CPU for each,
// and µs of latency.
func rounds(iops, cpu, latency float64, spread ...float64) []load.Result {
	var rs []load.Result
	for _, f := range spread {
		r := load.Result{Length: time.Second, Requests: uint64(iops * f * 1e3), Waited: 0.5, Latency: load.NewLatency()}
		r.Bytes = r.Requests * 4096
		r.Backend = load.Usage{Known: true, CPU: time.Duration(cpu * float64(r.Requests) * 1e3), SwitchesKnown: true, Switches: r.Requests / 4}
		_ = r.Latency.RecordValues(int64(latency*1e3), 99)
		_ = r.Latency.RecordValues(int64(2*latency*1e3), 1)
		rs = append(rs, r)
	}
	return rs
}

// some are a few cases of which the bars are known.
func some() []*measured {
	job := func(pattern load.Pattern, depth int, poll bool) load.Job {
		return load.Job{Pattern: pattern, BlockSize: 4096, Depth: depth, Queues: 1, Poll: poll}
	}
	mark := rounds(3000, 0.3, 0.3, 1, 1, 1)
	for i := range mark {
		mark[i].Waited = 0.01
	}
	fio := rounds(500, 1.8, 40, 1, 1, 1)
	for i := range fio {
		fio[i].Waited = math.NaN()
	}
	return []*measured{
		{plan: plan{"null", null, job(load.RandRead, 1, true), []string{ours, qsd}}, Results: [][]load.Result{mark, rounds(100, 1, 0.4, 1, 2, 0.5)}},
		{plan: plan{"null", null, job(load.RandRead, 128, true), []string{ours, qsd}}, Results: [][]load.Result{mark, rounds(2800, 0.25, 40, 1, 1, 1)}},
		{plan: plan{"cached", cached, job(load.RandRead, 1, true), []string{ours, qsdURing, qsdThreads}},
			Results: [][]load.Result{rounds(60, 10, 20, 1, 1, 1), rounds(30, 20, 30, 1, 1.1, 0.9), rounds(50, 20, 19, 1, 1, 1)}},
		{plan: plan{"cached", cached, job(load.RandRead, 32, true), []string{ours, qsdURing, qsdThreads, fioURing}},
			Results: [][]load.Result{rounds(800, 1.2, 40, 1, 1, 1), rounds(500, 1.9, 60, 1, 1.25, 0.8), rounds(300, 2.5, 90, 1, 1, 1), fio}},
		{plan: plan{"direct", direct, job(load.RandWrite, 1, true), []string{ours, qsdURing, fioURing}},
			Results: [][]load.Result{rounds(10, 12, 90, 1, 1, 1), rounds(10.1, 12, 90, 1, 1, 1), rounds(10.6, 6, 90, 1, 1, 1)}},
	}
}

func TestBarsSayWhatIsMetAndWhatIsMissed(t *testing.T) {
	using := func(disk, name string, d time.Duration) idleUse {
		return idleUse{Disk: disk, Name: name, Use: load.Usage{Known: true, CPU: d}}
	}
	uses := []idleUse{using(null, ours, 10*time.Millisecond), using(cached, ours, 11*time.Millisecond), using(null, qsd, time.Second),
		{Disk: cached, Name: oursMD}}
	var got strings.Builder
	for _, b := range bars(some(), uses) {
		got.WriteString(b.verdict() + "; " + b.What + "; " + b.Needed + "; " + b.Measured + "\n")
	}
	want := `missed; cached file, randread, poll client: requests per second; at least 1.50; **1.20 (1.20 to 1.20) at depth 1 against q-s-d threads**; 1.60 (1.28 to 2.00) at depth 32 against q-s-d io_uring
met; null, randread, poll client: requests per second; at least 1.00; 1.07 (1.07 to 1.07) at depth 128
met; cached file, randread, poll client: CPU per request; at most 1.00; 0.63 (0.63 to 0.63) at depth 32 against q-s-d io_uring
missed; cached file, randread, poll client: p50 of the latency; at most 1.00; **1.05 (1.05 to 1.05) at depth 1 against q-s-d threads**
missed; cached file, randread, poll client: p99 of the latency; at most 1.00; **1.05 (1.05 to 1.05) at depth 1 against q-s-d threads**
missed; null, randread, poll client: CPU per request; at most 1.00; **1.20 (1.20 to 1.20) at depth 128**
met; null, randread, poll client: p50 of the latency; at most 1.00; 0.75 (0.75 to 0.75) at depth 1
met; null, randread, poll client: p99 of the latency; at most 1.00; 0.75 (0.75 to 0.75) at depth 1
met; cached file, randread, poll client: requests per second against fio on the bare file; at least 1.20; 1.60 (1.60 to 1.60) at depth 32 against fio io_uring
met; O_DIRECT file, randwrite, poll client: requests per second; at least 0.95; 0.99 (0.99 to 0.99) at depth 1 against q-s-d io_uring
missed; O_DIRECT file, randwrite, poll client: requests per second against fio on the bare file; at least 0.95; **0.94 (0.94 to 0.94) at depth 1 against fio io_uring**
met; null, vdev: CPU in 10s when idle; at most 10.0 ms; 10.0 ms
missed; cached file, vdev: CPU in 10s when idle; at most 10.0 ms; 11.0 ms
missed; cached file, vdev md: CPU in 10s when idle; at most 10.0 ms; an unknown number of ms
`
	if got.String() != want {
		t.Errorf("bars:\n%s\nwant:\n%s", got.String(), want)
	}
}

func TestASocketsNameMakesItNobodyElse(t *testing.T) {
	m := &measured{plan: plan{With: []string{ours, qsdURing, qsdThreads, "q-s-d-10.2"}},
		Results: [][]load.Result{rounds(60, 1, 1, 1), rounds(30, 1, 1, 1), rounds(50, 1, 1, 1), rounds(90, 1, 1, 1)}}
	if got := m.better(); got != qsdThreads {
		t.Errorf("the faster engine is %q", got)
	}
	m.With, m.Results = m.With[3:], m.Results[3:]
	if got := m.better(); got != "" {
		t.Errorf("the faster engine is %q of none", got)
	}
	if got := bars(nil, []idleUse{{Disk: null, Name: "vdev-old"}, {Disk: null, Name: "q-s-d-10.2"}}); got != nil {
		t.Errorf("idle: %+v", got)
	}
}

func TestBarsOnWhatWasDisturbedAreNeitherMetNorMissed(t *testing.T) {
	cases := some()
	for _, m := range cases {
		m.Seen = disturbance{Others: 0.04, Steal: 0.001}
	}
	all := bars(cases, []idleUse{{Disk: null, Name: ours, Use: load.Usage{Known: true}, Seen: disturbance{Steal: 0.5}}})
	if len(all) != 12 {
		t.Errorf("%d bars", len(all))
	}
	for _, b := range all {
		if b.verdict() != "disturbed" || strings.Contains(b.Measured, "**") || !strings.Contains(b.Measured, "(disturbed: others ") {
			t.Errorf("%s: %s, %s", b.What, b.verdict(), b.Measured)
		}
	}
	// One depth of several is enough, unless another one misses.
	for got, want := range map[float64]string{2: "disturbed", 1: "missed"} {
		b := barOf("it", []check{{depth: 1, least: true, limit: 1.5, got: comparison{got, got, got}},
			{depth: 32, least: true, limit: 1.5, got: comparison{1, 1, 1}, seen: disturbance{Others: 0.04}}})
		if len(b) != 1 || b[0].verdict() != want {
			t.Errorf("%v: %+v, not %s", got, b, want)
		}
	}
	cases = some()
	c := *cases[3]
	c.Job.Depth, c.Seen = 128, disturbance{Others: 0.04}
	for _, b := range bars(append(cases, &c), nil) {
		if b.What == "cached file, randread, poll client: CPU per request" && b.verdict() != "disturbed" {
			t.Errorf("%+v", b)
		}
	}
}

func TestABarSaysWhereTheIntervalReachesOverItsLimit(t *testing.T) {
	least := func(median, low, high float64) check {
		return check{limit: 0.95, least: true, got: comparison{median, low, high}}
	}
	most := func(median, low, high float64) check { return check{limit: 1, got: comparison{median, low, high}} }
	sure, unsure := least(1.1, 1, 1.2), least(1.08, 0.9, 1.1)
	sureMiss, unsureMiss := least(0.9, 0.8, 0.94), least(0.94, 0.86, 0.97)
	disturbed := unsure
	disturbed.seen = disturbance{Others: 0.04}
	for _, tt := range []struct {
		checks []check
		want   string
	}{
		{[]check{sure}, "met"},
		{[]check{least(1, 0.95, 1.1)}, "met"}, // just so
		{[]check{unsure}, "met, not surely"},
		{[]check{sureMiss}, "missed"},
		{[]check{unsureMiss}, "missed, not surely"},
		{[]check{most(0.9, 0.8, 1)}, "met"},
		{[]check{most(0.9, 0.8, 1.1)}, "met, not surely"},
		{[]check{most(1.2, 1.1, 1.3)}, "missed"},
		{[]check{most(1.2, 0.9, 1.3)}, "missed, not surely"},
		{[]check{sure, unsure}, "met, not surely"},
		{[]check{unsureMiss, unsure, sure}, "missed, not surely"},
		{[]check{unsureMiss, sureMiss, unsure}, "missed"},
		{[]check{sure, disturbed}, "disturbed"},
		{[]check{unsure, disturbed}, "disturbed"},
		{[]check{disturbed, unsureMiss}, "missed, not surely"},
		{[]check{most(math.NaN(), math.NaN(), math.NaN())}, "missed"},
	} {
		b := barOf("it", tt.checks)[0]
		if got := b.verdict(); got != tt.want {
			t.Errorf("%s: %s, want %s", b.Measured, got, tt.want)
		}
		if strings.Contains(b.Measured, "**") != strings.HasPrefix(tt.want, "missed") {
			t.Errorf("%s is %s", b.Measured, tt.want)
		}
	}
}

func TestWhatIsNotKnownIsNotMet(t *testing.T) {
	cases := some()
	cases[3].Results[1][0].Backend = load.Usage{}
	for _, b := range bars(cases[3:4], nil) {
		if strings.Contains(b.What, "CPU") && (b.Met || b.Measured != "**not known at depth 32 against q-s-d io_uring**") {
			t.Errorf("%+v", b)
		}
	}
}

func TestDocumentHasAllOfTheRun(t *testing.T) {
	cases := some()
	cases[3].Seen, cases[3].Again = disturbance{Others: 0.125}, 7
	cases[4].Results[2][1].Backend.SwitchesKnown = false // a thread has ended
	r := &report{Machine: machine{{"CPU", "one | two"}, {"fio", "fio-3.33"}}, Options: options{serverCPU: 0, clientCPU: 1, rounds: 5, maxRounds: 13, seconds: 1},
		Begun: time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC), Took: 61 * time.Second, Cases: cases,
		Idle: []idleUse{{Disk: null, Name: ours, Use: load.Usage{Known: true, CPU: 3 * time.Millisecond, SwitchesKnown: true, Switches: 4}},
			{Disk: null, Name: qsd}, {Disk: cached, Name: ours, Use: load.Usage{Known: true, CPU: time.Millisecond}}}, Commands: []string{"vdev blk --this", "fio --that"}}
	file := filepath.Join(t.TempDir(), "benchmarks.md")
	if err := r.write(file); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "benchmarks.md")
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, got, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("not as in %s (-update writes it); got:\n%s", golden, got)
	}
	if files, err := os.ReadDir(filepath.Dir(file)); err != nil || len(files) != 3 {
		t.Errorf("with the document: %v, %v", files, err)
	}
	for picture, want := range map[string]string{throughputFile: "randwrite, depth 1", latencyFile: "q-s-d threads, randread"} {
		name := "benchmarks" + picture
		svg, err := os.ReadFile(filepath.Join(filepath.Dir(file), name))
		if err != nil || !strings.Contains(string(svg), want) {
			t.Errorf("%s does not have %q, %v", name, want, err)
		}
		if !strings.Contains(string(got), "("+name+")") {
			t.Errorf("the document does not show %s", name)
		}
	}
}

func TestTheDocumentDoesNotSayHowMuchOthersDidWhereThatIsNotKnown(t *testing.T) {
	cases := some()
	cases[0].Seen = disturbance{Others: 0.01}
	r := &report{Cases: cases, Scale: []section{{Seen: disturbance{Others: 0.02}}}}
	if got, want := r.disturbances(), "other processes had at most 2.0 % of"; !strings.Contains(got, want) {
		t.Errorf("%q lacks %q", got, want)
	}
	cases[1].Seen = disturbance{math.NaN(), 0.02}
	got := r.disturbances()
	for _, want := range []string{"not known what other processes did", "host had at most 2.0 %", "0 of 5 cases stayed"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q lacks %q", got, want)
		}
	}
	if strings.Contains(got, "NaN") || strings.Contains(got, "processes had") {
		t.Errorf("%q", got)
	}
}

func TestACaseIsOneLine(t *testing.T) {
	want := "O_DIRECT file, randwrite 4 KiB, depth 1, poll:  vdev 10.0  q-s-d io_uring 10.1, ×0.99 (0.99 to 0.99)  fio io_uring 10.6, ×0.94 (0.94 to 0.94); rounds: 3"
	if got := some()[4].line(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := some()[0].line(); !strings.Contains(got, "vdev 3000†") {
		t.Errorf("%q does not say that the front-end was the limit", got)
	}
}
