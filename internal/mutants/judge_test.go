package mutants

import (
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// verdict is what a run of the tests says of the code.
type verdict int

const (
	passed  verdict = iota
	failed          // a test failed: with a defect in the code, it is caught
	hung            // a test was ended by -timeout
	skipped         // no test failed, and no test was run to its end: nothing was looked at
	broken          // the code does not compile, or the run makes no sense
)

// outcome is a verdict, and what the tests said.
type outcome struct {
	verdict verdict
	test    string // that failed, hung, or was skipped; "" if that was not one test
	said    string
}

// event is a line of "go test -json".
type event struct {
	Action, Package, Test, Output, ImportPath, FailedBuild string
}

// key names a test of a package.
type key struct{ pkg, test string }

var (
	// atLine begins what a test says with t.Error and its like.
	atLine   = regexp.MustCompile(`^\s+\w+\.go:\d+: (.*)`)
	atDeath  = regexp.MustCompile(`^(panic: |fatal error: |WARNING: DATA RACE)`)
	timedOut = "panic: test timed out after "
)

// judge reads what "go test -json" writes.
func judge(r io.Reader) (outcome, error) {
	output := map[key]*strings.Builder{}
	var (
		running, failedTests, skippedTests []key
		ended                              int    // tests that passed
		fails                              bool   // a package failed
		pkg                                string // that failed first
		build                              strings.Builder
		buildFails                         bool
		death                              key // whose output has the timeout
		dies                               bool
	)
	dec := json.NewDecoder(r)
	for {
		var e event
		if err := dec.Decode(&e); err == io.EOF {
			break
		} else if err != nil {
			return outcome{}, fmt.Errorf("go test -json: %w", err)
		}
		k := key{e.Package, e.Test}
		over := func() { running = slices.DeleteFunc(running, func(r key) bool { return r == k }) }
		switch e.Action {
		case "build-output":
			build.WriteString(e.Output)
		case "build-fail":
			buildFails = true
		case "output":
			if output[k] == nil {
				output[k] = &strings.Builder{}
			}
			output[k].WriteString(e.Output)
			if strings.HasPrefix(e.Output, timedOut) {
				death, dies = k, true
			}
		case "run":
			running = append(running, k)
		case "pass":
			if e.Test != "" {
				ended++
				over()
			}
		case "skip":
			if e.Test != "" {
				skippedTests = append(skippedTests, k)
				over()
			}
		case "fail":
			if e.FailedBuild != "" {
				buildFails = true
			}
			if e.Test == "" {
				if !fails {
					pkg = e.Package
				}
				fails = true
				continue
			}
			failedTests = append(failedTests, k)
			over()
		}
	}
	text := func(k key) string {
		if output[k] == nil {
			return ""
		}
		return output[k].String()
	}
	switch {
	case buildFails:
		return outcome{verdict: broken, said: build.String()}, nil
	case dies:
		name := death.test
		if name == "" && len(running) > 0 {
			name = running[len(running)-1].test
		}
		return outcome{hung, name, message(text(death))}, nil
	case len(failedTests) > 0:
		k := failedTests[0] // a subtest fails before the test that it is a part of
		said := message(text(k))
		for name := k.test; said == "" && name != ""; {
			// What another goroutine died of is said by whatever else was running.
			name = name[:max(strings.LastIndexByte(name, '/'), 0)]
			said = message(text(key{k.pkg, name}))
		}
		return outcome{failed, k.test, said}, nil
	case fails:
		// A panic of another goroutine, or TestMain, as where goroutines are left.
		name := ""
		said := text(key{pkg: pkg})
		for _, k := range running {
			if k.pkg == pkg {
				name = k.test
				said = text(k) + said
			}
		}
		return outcome{failed, name, message(said)}, nil
	case ended > 0:
		return outcome{verdict: passed}, nil
	case len(skippedTests) > 0:
		k := skippedTests[0]
		return outcome{skipped, k.test, message(text(k))}, nil
	default:
		return outcome{verdict: broken, said: "no test has run"}, nil
	}
}

// message picks from the output of a test what it died of, or else the first thing that it said,
// with at most three lines that go on from there.
func message(out string) string {
	lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool {
		l = strings.TrimSpace(l)
		return strings.HasPrefix(l, "=== ") || strings.HasPrefix(l, "--- ")
	})
	for _, re := range []*regexp.Regexp{atDeath, atLine} {
		i := slices.IndexFunc(lines, re.MatchString)
		if i < 0 {
			continue
		}
		said := []string{strings.TrimSpace(lines[i])}
		for _, l := range lines[i+1 : min(i+4, len(lines))] {
			if !strings.HasPrefix(l, "        ") || atLine.MatchString(l) {
				break
			}
			said = append(said, strings.TrimSpace(l))
		}
		return strings.Join(said, " | ")
	}
	// goleak and others print without a form of their own.
	out = strings.TrimSpace(strings.Join(lines, "\n"))
	return out[:min(len(out), 400)]
}

// What go test says is read as what it means.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name   string
		events string
		want   outcome
	}{
		{"passes", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, outcome{verdict: passed}},
		{"a subtest fails", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/b"}
{"Action":"output","Package":"p","Test":"TestA/b","Output":"    a_test.go:7: got 1, want 2\n"}
{"Action":"output","Package":"p","Test":"TestA/b","Output":"        and more\n"}
{"Action":"output","Package":"p","Test":"TestA/b","Output":"    --- FAIL: TestA/b (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestA/b"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, outcome{failed, "TestA/b", "a_test.go:7: got 1, want 2 | and more"}},
		{"a subtest ends with its test", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"run","Package":"p","Test":"TestA/b"}
{"Action":"output","Package":"p","Test":"TestA/b","Output":"=== RUN   TestA/b\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"fail","Package":"p","Test":"TestA/b"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, outcome{failed, "TestA/b", "panic: oh"}},
		{"a goroutine panics", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"fail","Package":"p"}`, outcome{failed, "TestA", "panic: oh"}},
		{"goroutines are left", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"goleak: Errors on successful test run\n"}
{"Action":"fail","Package":"p"}`, outcome{failed, "", "goleak: Errors on successful test run"}},
		{"hangs", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: test timed out after 1s\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"fail","Package":"p"}`, outcome{hung, "TestA", "panic: test timed out after 1s"}},
		{"does not compile", `{"ImportPath":"p","Action":"build-output","Output":"a.go:1: undefined: x\n"}
{"ImportPath":"p","Action":"build-fail"}
{"Action":"fail","Package":"p","FailedBuild":"p"}`, outcome{verdict: broken, said: "a.go:1: undefined: x\n"}},
		{"all is skipped", `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:7: needs root\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"pass","Package":"p"}`, outcome{skipped, "TestA", "a_test.go:7: needs root"}},
		{"no test has that name", `{"Action":"output","Package":"p","Output":"testing: warning: no tests to run\n"}
{"Action":"pass","Package":"p"}`, outcome{verdict: broken, said: "no test has run"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := judge(strings.NewReader(c.events))
			if err != nil || got != c.want {
				t.Errorf("got %+v (%v), want %+v", got, err, c.want)
			}
		})
	}
}
