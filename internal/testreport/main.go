// Command testreport runs "go test -json" and prints what "go test" prints. It keeps a record of
// the tests that were run and skipped, over several runs, and lists at their end what was skipped
// and why: otherwise nobody notices that a test is skipped, nor for how long. scripts/test uses it.
//
//	testreport -record FILE [-live] go test -json ARG...
//	testreport -record FILE -list
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	record := flag.String("record", "", "the `FILE` of the record; runs add to it")
	live := flag.Bool("live", false, "show at once what tests say of their progress, and each one that fails")
	list := flag.Bool("list", false, "print what was skipped; fails if no test was run at all")
	flag.Parse()
	if *record == "" || *list != (flag.NArg() == 0) {
		fmt.Fprintln(os.Stderr, "usage: testreport -record FILE [-live] go test -json ARG... | testreport -record FILE -list")
		os.Exit(2)
	}
	var status int
	var err error
	if *list {
		status, err = printList(*record, os.Stdout)
	} else {
		status, err = run(flag.Args(), *record, *live, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		status = max(status, 1)
	}
	os.Exit(status)
}

// run runs the command and gives its status. What the command writes to its standard error is left
// alone.
func run(args []string, record string, live bool, out io.Writer) (status int, err error) {
	f, err := os.OpenFile(record, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stderr = os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	// A terminal gives ^C to both. The command ends by it, and this after it.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = cmd.Process.Signal(s) // it may have ended
			case <-done:
				return
			}
		}
	}()
	r := &report{out: out, record: json.NewEncoder(f), live: live, verbose: verbose(args), packages: map[string]*results{}}
	readErr := r.read(stdout)
	err = cmd.Wait()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		status, err = max(exit.ExitCode(), 1), nil
	}
	if status != 0 {
		fmt.Fprintln(out, "FAIL")
	}
	return status, errors.Join(readErr, err)
}

// verbose says whether go test was given -v. Then everything is shown as it comes.
func verbose(args []string) bool {
	return slices.ContainsFunc(args, func(a string) bool {
		a = strings.TrimPrefix(a, "-")
		return a == "-v" || a == "v" || a == "-v=true" || a == "v=true"
	})
}

// event is a line of "go test -json"; see "go doc test2json".
type event struct {
	Action, Package, Test, Output string
}

// entry is a line of the record: what became of one test.
type entry struct {
	Package, Test string
	Action        string // pass, fail or skip
	Why           string `json:",omitempty"` // of a skip
}

// results are those of one package, while it runs.
type results struct {
	order   []string // names of tests, as they began; "" is the package
	outputs map[string][]string
	ended   map[string]string // name → action
}

type report struct {
	out           io.Writer
	record        *json.Encoder
	live, verbose bool
	packages      map[string]*results
}

// read reads events to their end.
func (r *report) read(events io.Reader) error {
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				// Not everything that go prints is an event.
				r.out.Write(line)
			} else if err := r.event(e); err != nil {
				return err
			}
		}
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

func (r *report) event(e event) error {
	if e.Action == "build-output" {
		_, err := io.WriteString(r.out, e.Output)
		return err
	}
	if e.Package == "" {
		return nil
	}
	p := r.packages[e.Package]
	if p == nil {
		p = &results{outputs: map[string][]string{}, ended: map[string]string{}}
		r.packages[e.Package] = p
	}
	if _, ok := p.outputs[e.Test]; !ok {
		p.outputs[e.Test] = nil
		p.order = append(p.order, e.Test)
	}
	switch e.Action {
	case "output":
		return r.output(p, e)
	case "pass", "fail", "skip":
		p.ended[e.Test] = e.Action
		if e.Test == "" {
			r.endPackage(p, e)
			delete(r.packages, e.Package)
			return nil
		}
		n := entry{Package: e.Package, Test: e.Test, Action: e.Action}
		if e.Action == "skip" {
			n.Why = why(p.outputs[e.Test])
		}
		if e.Action == "fail" && r.live {
			r.show(p, e.Test)
		}
		if e.Action != "fail" {
			p.outputs[e.Test] = nil
		}
		return r.record.Encode(n)
	}
	return nil
}

func (r *report) output(p *results, e event) error {
	var err error
	switch {
	case r.verbose:
		_, err = io.WriteString(r.out, e.Output)
		p.outputs[e.Test] = append(p.outputs[e.Test], e.Output)
	case strings.HasPrefix(e.Output, "=== "):
	case r.live && (progress(e.Output) || e.Test == "" && !closing(e.Output)):
		_, err = io.WriteString(r.out, e.Output)
	default:
		p.outputs[e.Test] = append(p.outputs[e.Test], e.Output)
	}
	return err
}

// progress tells the lines that the guest tests write while they run (main_test.go and deafness
// there): those of a test's log are further left or further right.
func progress(line string) bool {
	for _, p := range []string{"    ok   ", "    FAIL ", "    skip ", "         "} {
		if rest, ok := strings.CutPrefix(line, p); ok && !strings.HasPrefix(rest, "--- ") {
			return true
		}
	}
	return false
}

// closing tells the lines that end a package.
func closing(line string) bool {
	return line == "PASS\n" || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t")
}

// endPackage prints what go test prints of a package: of one that is fine, one line.
func (r *report) endPackage(p *results, e event) {
	if r.verbose {
		return
	}
	if e.Action != "fail" {
		for _, line := range p.outputs[""] {
			if strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "?   \t") {
				io.WriteString(r.out, line)
			}
		}
		return
	}
	for _, test := range p.order {
		// One that has not ended has taken the others with it.
		if test != "" && (p.ended[test] == "" || p.ended[test] == "fail" && !r.live) {
			r.show(p, test)
		}
	}
	for _, line := range p.outputs[""] {
		io.WriteString(r.out, line)
	}
}

// show prints what a test has said, its verdict first.
func (r *report) show(p *results, test string) {
	lines := p.outputs[test]
	slices.SortStableFunc(lines, func(a, b string) int { return rank(a) - rank(b) })
	for _, line := range lines {
		io.WriteString(r.out, line)
	}
	p.outputs[test] = nil
}

func rank(line string) int {
	if strings.HasPrefix(strings.TrimLeft(line, " "), "--- ") {
		return 0
	}
	return 1
}

// why is the reason for a skip: the last thing that the test said, without the place in the source.
func why(lines []string) string {
	for _, line := range slices.Backward(lines) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "--- SKIP") || strings.HasPrefix(line, "=== ") {
			continue
		}
		// a guest test's script
		if command, reason, ok := strings.Cut(line, "skip '"); ok && strings.HasPrefix(command, "> ") {
			return strings.TrimSuffix(reason, "'")
		}
		if place, reason, ok := strings.Cut(line, ": "); ok && strings.Contains(place, ".go:") {
			return reason
		}
		return line
	}
	return "no reason given"
}

// printList prints what was skipped in all runs of the record, by reason. What one run has skipped
// and another one has run was run. The status is 1 where no test was run, as with a -run that names
// none.
func printList(record string, out io.Writer) (status int, err error) {
	f, err := os.Open(record)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	type name struct{ pkg, test string }
	ran := map[name]bool{}
	var skips []entry
	for d := json.NewDecoder(f); ; {
		var e entry
		if err := d.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return 0, fmt.Errorf("%s: %w", record, err)
		}
		if e.Action == "skip" {
			skips = append(skips, e)
		} else {
			ran[name{e.Package, e.Test}] = true
		}
	}
	var reasons []string
	tests := map[string][]string{}
	n := 0
	for _, e := range skips {
		t := e.Package + " " + e.Test
		if ran[name{e.Package, e.Test}] || slices.Contains(tests[e.Why], t) {
			continue
		}
		if tests[e.Why] == nil {
			reasons = append(reasons, e.Why)
		}
		tests[e.Why] = append(tests[e.Why], t)
		n++
	}
	if n == 0 {
		fmt.Fprintln(out, "nothing was skipped")
	} else {
		fmt.Fprintf(out, "skipped, and why: %d\n", n)
	}
	for _, reason := range reasons {
		fmt.Fprintf(out, "  %s\n", reason)
		for _, t := range tests[reason] {
			fmt.Fprintf(out, "    %s\n", t)
		}
	}
	if len(ran) == 0 {
		return 1, errors.New("no test was run: does -run name one?")
	}
	return 0, nil
}
