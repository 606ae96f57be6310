package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"vdev/internal/bench/load"
	"vdev/internal/control"
	"vdev/vhostuser"
	"vdev/virtq"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares what was written with the file of that name in testdata/bench.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	name = filepath.Join("testdata", "bench", name)
	if *update {
		if err := os.WriteFile(name, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", name, diff)
	}
}

// measured makes the results of rounds of a second with so many requests each, of a back-end whose
// usage is known, or not.
func measured(t *testing.T, known bool, waited float64, requests ...uint64) (results []load.Result) {
	t.Helper()
	for _, n := range requests {
		h := load.NewLatency()
		for latency, part := range map[time.Duration]float64{3 * time.Microsecond: 0.9, 20 * time.Microsecond: 0.098, 3 * time.Millisecond: 0.002} {
			if err := h.RecordValues(int64(latency), int64(part*float64(n))); err != nil {
				t.Fatal(err)
			}
		}
		results = append(results, load.Result{Length: time.Second, Requests: n, Bytes: 4096 * n, Latency: h, Waited: waited,
			Own: load.Usage{Known: true, CPU: 900 * time.Millisecond}})
		if known {
			results[len(results)-1].Backend = load.Usage{Known: true, CPU: time.Duration(n) * 300, SwitchesKnown: true, Switches: n / 100}
		}
	}
	return results
}

// report makes a report of two cases on two targets, of which the second one ended early.
func report(t *testing.T) *benchReport {
	t.Helper()
	c := benchConfig{rounds: 3, targets: []load.Target{{Name: "vdev", Socket: "/run/a.sock"}, {Name: "the <other>", Socket: "/run/b.sock"}}}
	for _, depth := range []int{1, 32} {
		c.jobs = append(c.jobs, load.Job{Pattern: load.RandRW, ReadPercent: 70, BlockSize: 4096, Depth: depth, Queues: 1, Warmup: time.Second / 2, Length: time.Second,
			CPUs: []int{1}, BackendCPUs: []int{0}, Seed: 1})
	}
	r := newBenchReport(&c)
	r.Time, r.Vdev, r.Machine = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "v1", benchMachine{CPU: "a processor", Processors: 2, Kernel: "7.0"}
	r.add(&c.jobs[0], [][]load.Result{measured(t, true, 1, 300000, 310000, 290000), measured(t, false, 1, 200000, 100000, 150000)})
	r.add(&c.jobs[1], [][]load.Result{measured(t, true, 0.01, 4200000, 4000000), measured(t, false, 0.5, 9000, 0)})
	r.Targets[0].PID, r.Targets[0].Command = 42, "vdev blk --driver null"
	r.Error = "interrupted"
	return r
}

func TestAReportAsTextAsJSONAndAsAPicture(t *testing.T) {
	r := report(t)
	var text, asJSON, svg bytes.Buffer
	if err := errors.Join(r.text(&text), printJSON(&asJSON, r), r.figure().Write(&svg)); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", text.Bytes())
	golden(t, "report.json", asJSON.Bytes())
	for line := range strings.Lines(text.String()) {
		if len(line) > 121 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	var back benchReport
	if err := json.Unmarshal(asJSON.Bytes(), &back); err != nil || len(back.Cases) != 2 {
		t.Errorf("%d cases, %v", len(back.Cases), err)
	}
	wellFormed(t, svg.Bytes(), "vdev and the &lt;other&gt;", "randrw 4K, event: latency", "4.10M*", "The last case has 2 rounds")
}

func TestAReportOfAConsole(t *testing.T) {
	c := benchConfig{rounds: 2, hosts: []string{"/run/h", "/run/i"}, targets: []load.Target{{Name: "vdev", Socket: "/run/a.sock"}, {Name: "other", Socket: "/run/b.sock"}}}
	for _, pattern := range []load.Pattern{load.Output, load.Echo} {
		c.jobs = append(c.jobs, load.Job{Pattern: pattern, BlockSize: 4096, Depth: 64, Warmup: time.Second / 2, Length: time.Second, Seed: 1})
	}
	r := newBenchReport(&c)
	r.Time, r.Vdev, r.Machine = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), "v1", benchMachine{CPU: "a processor", Processors: 2, Kernel: "7.0"}
	bulk := [][]load.Result{measured(t, true, 1, 300000, 310000), measured(t, false, 0.01, 200000, 100000)}
	for _, of := range bulk {
		for i := range of {
			of[i].Latency, of[i].Lost = load.NewLatency(), 0.125
		}
	}
	r.add(&c.jobs[0], bulk)
	r.add(&c.jobs[1], [][]load.Result{measured(t, true, 1, 9000, 8000), measured(t, true, 1, 4500, 4000)})
	var text, asJSON, svg bytes.Buffer
	if err := errors.Join(r.text(&text), printJSON(&asJSON, r), r.figure().Write(&svg)); err != nil {
		t.Fatal(err)
	}
	golden(t, "console.txt", text.Bytes())
	golden(t, "console.json", asJSON.Bytes())
	for line := range strings.Lines(text.String()) {
		if len(line) > 121 {
			t.Errorf("%d columns: %s", len(line), line)
		}
	}
	wellFormed(t, svg.Bytes(), "output 4K: MB/s", "echo 4K: latency", "614*")
	if strings.Contains(svg.String(), "output 4K: latency") {
		t.Error("latencies are drawn that were not measured")
	}
}

func wellFormed(t *testing.T, svg []byte, with ...string) {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(svg))
	for {
		if _, err := d.Token(); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range with {
		if !bytes.Contains(svg, []byte(s)) {
			t.Errorf("the picture does not have %q", s)
		}
	}
}

func TestTargetsAreNamedByTheirSockets(t *testing.T) {
	for _, tt := range []struct{ given, want []load.Target }{
		{[]load.Target{{Socket: "/run/vm1.sock"}}, []load.Target{{Name: "vm1", Socket: "/run/vm1.sock"}}},
		{[]load.Target{{Socket: "/a/s"}, {Socket: "/b/s"}}, []load.Target{{Name: "/a/s", Socket: "/a/s"}, {Name: "/b/s", Socket: "/b/s"}}},
		{[]load.Target{{Socket: "/a/s"}, {Name: "s", Socket: "/b/s"}}, []load.Target{{Name: "/a/s", Socket: "/a/s"}, {Name: "s", Socket: "/b/s"}}},
	} {
		if nameTargets(tt.given); !cmp.Equal(tt.given, tt.want) {
			t.Errorf("got %v, want %v", tt.given, tt.want)
		}
	}
}

// bench runs `vdev bench`, shortly, and longer where nothing was counted in that: on a busy machine
// that may take a while. It returns the exit status and what was written.
func bench(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	for length := 20 * time.Millisecond; ; length *= 4 {
		var out, err bytes.Buffer
		status = run(t.Context(), append([]string{"bench", "--length", length.String(), "--warmup", "5ms"}, args...), &out, &err)
		if status == exitOK || !strings.Contains(err.String(), "a longer length is needed") || length > patience {
			return status, out.String(), err.String()
		}
	}
}

func TestTwoBackEndsAreMeasuredAndCompared(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures for many seconds")
	}
	dir := t.TempDir()
	a, b, svg, file := filepath.Join(dir, "a.sock"), filepath.Join(dir, "b.sock"), filepath.Join(dir, "x.svg"), filepath.Join(dir, "x.json")
	served := []*process{serving(t, nil, "blk", "--socket-path", a, "--driver", "md,size=4M"), serving(t, nil, "blk", "--socket-path", b, "--driver", "md,size=4M")}
	status, stdout, stderr := bench(t, a, "--versus", b, "--versus-name", "other", "--pattern", "randrw,read", "--overwrite", "--verify", "--size", "256K", "--depth", "1,8",
		"--client", "event,poll", "--queues", "2", "--block-size", "512", "--rounds", "2", "--backend-cpus", "0", "--format", "json", "--output", file, "--svg", svg)
	if status != exitOK || stdout != "" {
		t.Fatalf("status %d: %s%s", status, stdout, stderr)
	}
	if got := strings.Count(stderr, "IOPS"); got != 2*2*2*2*2 {
		t.Errorf("%d results were told of:\n%s", got, stderr)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var r benchReport
	if err := json.Unmarshal(text, &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Cases) != 8 || r.Targets[0].Name != "a" || r.Targets[1].Name != "other" {
		t.Fatalf("%d cases of %+v", len(r.Cases), r.Targets)
	}
	for i, p := range served {
		if target := r.Targets[i]; target.PID != p.cmd.Process.Pid || !strings.Contains(target.Command, "md,size=4M") {
			t.Errorf("%+v is process %d", target, p.cmd.Process.Pid)
		}
	}
	for _, c := range r.Cases {
		if len(c.Results) != 2 || len(c.Results[0].Rounds) != 2 || c.Ratios == nil || c.Queues != 2 {
			t.Errorf("%+v", c)
		}
	}
	picture, err := os.ReadFile(svg)
	if err != nil {
		t.Fatal(err)
	}
	wellFormed(t, picture, "randrw 512, 2 queues, event: latency", "a / other")

	if status, stdout, stderr := bench(t, a, "--depth", "4", "--rounds", "1"); status != exitOK || !strings.Contains(stdout, "randread") {
		t.Errorf("status %d: %s%s", status, stdout, stderr)
	}
}

func TestAConsoleIsMeasured(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	server := serving(t, nil, "console", "--socket-path", path("a.sock"), "--port", "driver=null", "--port", "name=org.example.0,driver=socket,path="+path("host"),
		"--port", "name=twice,id=7,driver=loop", "--port", "name=log,driver=file,file="+path("log"))
	for _, tt := range []struct {
		args  []string
		cases int
	}{
		{[]string{"--console", "null", "--console-port", "0", "--pattern", "output", "--block-size", "16,32K"}, 2},
		{[]string{"--console", path("host"), "--console-port", "org.example.0", "--block-size", "128,4K"}, 8},
		{[]string{"--console", "loop", "--console-port", "7", "--pattern", "both,echo", "--block-size", "4K", "--depth", "3"}, 2},
		{[]string{"--console", path("log"), "--console-port", "log", "--pattern", "output", "--block-size", "4K"}, 1},
	} {
		status, stdout, stderr := bench(t, append([]string{path("a.sock"), "--rounds", "2", "--format", "json"}, tt.args...)...)
		var r benchReport
		if err := json.Unmarshal([]byte(stdout), &r); status != exitOK || err != nil {
			t.Errorf("%q: status %d, %v: %s", tt.args, status, err, stderr)
			continue
		}
		if len(r.Cases) != tt.cases || r.Targets[0].PID != server.cmd.Process.Pid || r.Targets[0].Host != tt.args[1] {
			t.Errorf("%q: %d cases of %+v", tt.args, len(r.Cases), r.Targets)
		}
		for _, c := range r.Cases {
			if m := c.Results[0].Median; !(m.BytesPerSecond > 0) || m.CPUPerMiB == nil || m.Lost != 0 || (m.P50 > 0) != (c.Pattern == "echo") {
				t.Errorf("%q: %v: %+v", tt.args, c, m)
			}
		}
	}
	server.endsCleanly()
}

func TestABenchmarkThatCannotGoOnTellsWhyAndWhatItHas(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "a.sock")
	serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M", "--read-only", "--num-queues", "2")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{filepath.Join(dir, "none")}, "no such file or directory"},
		{[]string{socket, "--pattern", "randwrite", "--overwrite"}, "the disk is read-only"},
		{[]string{socket, "--queues", "3"}, "3 queues are wanted, and the back-end has 2"},
		{[]string{socket, "--size", "8M"}, "the disk has 4194304"},
		{[]string{socket, "--block-size", "4K,4M", "--size", "1M"}, "only 1048576 bytes of the disk are to be used"},
		{[]string{socket, "--output", filepath.Join(dir, "no", "file")}, "no such file or directory"},
	} {
		status, stdout, stderr := bench(t, append(tt.args, "--rounds", "1", "--depth", "1")...)
		last := regexp.MustCompile(`vdev: .*\n$`).FindString(stderr)
		if status != exitFailure || stdout != "" || !strings.Contains(last, tt.want) || strings.Contains(stderr, "IOPS") {
			t.Errorf("%q: status %d, %s%s; want %q", tt.args, status, stdout, stderr, tt.want)
		}
	}
	// The second case is one too many, of the second back-end, too, and nothing is begun.
	writable := filepath.Join(dir, "b.sock")
	serving(t, nil, "blk", "--socket-path", writable, "--driver", "md,size=4M", "--num-queues", "8")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{socket, "--queues", "1,5"}, "vdev: a: " + socket + ": 5 queues are wanted, and the back-end has 2"},
		{[]string{writable, "--versus", socket, "--queues", "1,5"}, "vdev: a: " + socket + ": 5 queues are wanted, and the back-end has 2"},
		{[]string{writable, "--versus", socket, "--pattern", "randread,randwrite", "--overwrite"}, "vdev: a: " + socket + ": the disk is read-only"},
	} {
		status, stdout, stderr := bench(t, tt.args...)
		if status != exitFailure || stdout != "" || !strings.Contains(stderr, tt.want) || strings.Contains(stderr, "IOPS") {
			t.Errorf("%q: status %d: %s%s; want %q", tt.args, status, stdout, stderr, tt.want)
		}
	}
}

func TestABackEndThatDiesUnderTheLoadEndsABenchmark(t *testing.T) {
	dir := t.TempDir()
	socket, ctl := filepath.Join(dir, "a.sock"), filepath.Join(dir, "ctl")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M", "--control", ctl)
	q := start(t, nil, "bench", socket, "--depth", "1", "--length", "1h")
	p.until(ctl, func(st control.Status) bool { return len(st.Rings) > 0 && st.Rings[0].Used > 0 })
	p.signal(os.Kill)
	if status := q.wait(); status != exitFailure {
		t.Errorf("status %d", status)
	}
	q.waitFor("vdev: randread 4K, event, depth 1: a: " + socket + ": the back-end has hung up\n")
}

// TestABackEndThatDiesWhenItIsAskedEndsABenchmark: what is written to it then makes a SIGPIPE.
func TestABackEndThatDiesWhenItIsAskedEndsABenchmark(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "a.sock")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	q := start(t, nil, "bench", socket)
	c, err := ln.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var header [vhostuser.HeaderSize]byte
	if _, err := io.ReadFull(c, header[:]); err != nil {
		t.Fatal(err)
	}
	// It is gone for whoever writes, and this is still answered.
	if err := c.CloseRead(); err != nil {
		t.Fatal(err)
	}
	h := vhostuser.Header{Request: vhostuser.ParseHeader(header[:]).Request, Flags: vhostuser.FlagVersion | vhostuser.FlagReply, Size: 8}
	if _, err := c.Write(vhostuser.AppendU64(h.Append(nil), uint64(vhostuser.FProtocolFeatures|virtq.FeatureVersion1))); err != nil {
		t.Fatal(err)
	}
	if status := q.wait(); status != exitFailure {
		t.Errorf("status %d", status)
	}
	q.waitFor("vdev: a: " + socket + ": handshake: GET_PROTOCOL_FEATURES: the back-end has hung up (")
}

func TestAnInterruptEndsABenchmark(t *testing.T) {
	// Where this process ignores SIGHUP, as nohup(1) has it, vdev would. What is caught is not
	// inherited.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, syscall.SIGHUP)
	defer signal.Stop(caught)
	socket := filepath.Join(t.TempDir(), "a.sock")
	serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M")
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGHUP} {
		q := start(t, nil, "bench", socket, "--depth", "1", "--length", "1h")
		q.waitFor("1 case")
		q.signal(sig)
		if status := q.wait(); status != exitFailure {
			t.Errorf("%v: status %d", sig, status)
		}
		q.waitFor("vdev: randread 4K, event, depth 1: a: ")
	}
}

func TestAPictureIsThereWhenTheStandardOutputHasGone(t *testing.T) {
	dir := t.TempDir()
	socket, svg, out := filepath.Join(dir, "a.sock"), filepath.Join(dir, "x.svg"), filepath.Join(dir, "x.txt")
	serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M")
	for file, args := range map[string][]string{
		svg: {"--svg", svg},
		out: {"--svg", "/dev/stdout", "--output", out},
	} {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer w.Close()
		q := exec.Command("vdev", append([]string{"bench", socket, "--depth", "1", "--warmup", "0s", "--length", "1s", "--rounds", "1"}, args...)...)
		q.Stdout = w
		r.Close()
		if err := q.Run(); err == nil {
			t.Errorf("%q: nobody has read, and it ended with status 0", args)
		}
		if info, err := os.Stat(file); err != nil || info.Size() == 0 {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestABenchmarkThatNobodyWatchesEnds(t *testing.T) {
	dir := t.TempDir()
	socket, out := filepath.Join(dir, "a.sock"), filepath.Join(dir, "x.txt")
	serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	q := exec.Command("vdev", "bench", socket, "--depth", "1", "--length", "200ms", "--rounds", "100000", "--output", out)
	q.Stderr = w
	r.Close()
	var exit *exec.ExitError
	// What is told at the end comes too late for anybody, and kills it.
	if err := q.Run(); !errors.As(err, &exit) {
		t.Error(err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".vdev-*")); err != nil || len(left) != 0 {
		t.Errorf("it has left %v, %v", left, err)
	}
}

func TestWhatWasMeasuredBeforeAnInterruptIsKept(t *testing.T) {
	dir := t.TempDir()
	socket, out := filepath.Join(dir, "a.sock"), filepath.Join(dir, "out.txt")
	if err := os.WriteFile(out, []byte("of yesterday"), 0o600); err != nil {
		t.Fatal(err)
	}
	serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=4M")
	q := start(t, nil, "bench", socket, "--depth", "1", "--length", "200ms", "--rounds", "100000", "--output", out)
	q.waitFor("round 3 of 100000")
	if text, err := os.ReadFile(out); err != nil || string(text) != "of yesterday" {
		t.Errorf("while it is measured there is %q, %v", text, err)
	}
	q.signal(os.Interrupt)
	if status := q.wait(); status != exitFailure {
		t.Errorf("status %d", status)
	}
	text, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?s)randread .*\nIt ended early: .*\nThe last case has \d+ rounds, and not 100000\.\n$`).Match(text) {
		t.Errorf("written was:\n%s", text)
	}
}

func TestABenchmarkThatMeasuredNothingLeavesItsFilesAsTheyWere(t *testing.T) {
	dir := t.TempDir()
	out, svg := filepath.Join(dir, "out.txt"), filepath.Join(dir, "new.svg")
	if err := os.WriteFile(out, []byte("of yesterday"), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, stderr := bench(t, filepath.Join(dir, "none.sock"), "--output", out, "--svg", svg); status != exitFailure {
		t.Errorf("status %d: %s", status, stderr)
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "of yesterday" {
		t.Errorf("there is %q, %v", text, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("there are %v, %v", left, err)
	}
}

func TestWhatIsNotKnownIsNoFigure(t *testing.T) {
	known, unknown := measured(t, true, 1, 1000, 1000), measured(t, false, 1, 1000, 1000)
	nothing, endless := measured(t, true, 1, 1000, 0), measured(t, true, 1, 1000, 1000)
	endless[1].Length = 0
	once := measured(t, false, 1, 1000, 1000)
	once[0].Backend = known[0].Backend
	for _, of := range [][]load.Result{unknown, once} {
		if f := newBenchResult(of, false).Median; f.CPU != nil || f.Switches != nil {
			t.Errorf("CPU %v, switches %v", *f.CPU, *f.Switches)
		}
	}
	ended := measured(t, true, 1, 1000, 1000)
	ended[1].Backend.SwitchesKnown = false
	if f := newBenchResult(ended, false).Median; f.CPU == nil || f.Switches != nil {
		t.Errorf("where a thread has ended: %+v", f)
	}
	if f := newBenchResult(known, false).Median; f.CPU == nil || *f.CPU != 300 || f.Switches == nil {
		t.Errorf("%+v", f)
	}
	for _, other := range [][]load.Result{nothing, endless} {
		for _, pair := range [][2][]load.Result{{known, other}, {other, known}} {
			if r := newBenchRatio(pair[0], pair[1], (*load.Result).IOPS); r != nil {
				t.Errorf("%v IOPS and %v: %+v", pair[0][1].IOPS(), pair[1][1].IOPS(), *r)
			}
		}
	}
	if r := newBenchRatio(known, known, (*load.Result).IOPS); r == nil || *r != (benchRatio{1, 1, 1, 1}) {
		t.Errorf("%+v", r)
	}
}
