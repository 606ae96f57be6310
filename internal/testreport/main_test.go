package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// events has one test that passes, one that fails with one below that is skipped, a package that is
// not built, one without tests, and one that is fine.
const events = `{"ImportPath":"m/b [m/b.test]","Action":"build-output","Output":"# m/b [m/b.test]\n"}
{"ImportPath":"m/b [m/b.test]","Action":"build-fail"}
{"Action":"start","Package":"m"}
{"Action":"run","Package":"m","Test":"TestA"}
{"Action":"output","Package":"m","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"m","Test":"TestA","Output":"    a_test.go:3: hello\n"}
{"Action":"run","Package":"m","Test":"TestA/s"}
{"Action":"output","Package":"m","Test":"TestA/s","Output":"=== RUN   TestA/s\n"}
{"Action":"output","Package":"m","Test":"TestA/s","Output":"    a_test.go:3: why: not\n"}
{"Action":"output","Package":"m","Test":"TestA/s","Output":"    --- SKIP: TestA/s (0.00s)\n"}
{"Action":"skip","Package":"m","Test":"TestA/s","Elapsed":0}
{"Action":"run","Package":"m","Test":"TestA/f"}
{"Action":"output","Package":"m","Test":"TestA/f","Output":"    ok     1.0s  x\n"}
{"Action":"output","Package":"m","Test":"TestA/f","Output":"        a_test.go:4: bad\n"}
{"Action":"output","Package":"m","Test":"TestA/f","Output":"    --- FAIL: TestA/f (0.00s)\n"}
{"Action":"fail","Package":"m","Test":"TestA/f","Elapsed":0}
{"Action":"output","Package":"m","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}
{"Action":"fail","Package":"m","Test":"TestA","Elapsed":0}
{"Action":"run","Package":"m","Test":"TestB"}
{"Action":"output","Package":"m","Test":"TestB","Output":"    a_test.go:4: nobody wants to know\n"}
{"Action":"output","Package":"m","Test":"TestB","Output":"--- PASS: TestB (0.00s)\n"}
{"Action":"pass","Package":"m","Test":"TestB","Elapsed":0}
{"Action":"run","Package":"m","Test":"TestC"}
{"Action":"output","Package":"m","Test":"TestC","Output":"panic: went away\n"}
{"Action":"output","Package":"m","Output":"FAIL\tm\t0.005s\n"}
{"Action":"fail","Package":"m","Elapsed":0.007}
{"Action":"output","Package":"m/b","Output":"FAIL\tm/b [build failed]\n"}
{"Action":"fail","Package":"m/b","Elapsed":0}
{"Action":"output","Package":"m/c","Output":"?   \tm/c\t[no test files]\n"}
{"Action":"skip","Package":"m/c","Elapsed":0}
{"Action":"run","Package":"m/d","Test":"TestD"}
{"Action":"output","Package":"m/d","Test":"TestD","Output":"--- PASS: TestD (0.00s)\n"}
{"Action":"pass","Package":"m/d","Test":"TestD","Elapsed":0}
{"Action":"output","Package":"m/d","Output":"PASS\n"}
{"Action":"output","Package":"m/d","Output":"ok  \tm/d\t0.100s\n"}
{"Action":"pass","Package":"m/d","Elapsed":0.1}
`

// reported runs a command that prints these events and ends with this status.
func reported(t *testing.T, record, events, status string, live bool, args ...string) (string, int) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "events")
	if err := os.WriteFile(file, []byte(events), 0o644); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	got, err := run(append([]string{"sh", "-c", `cat "$0"; exit ` + status, file}, args...), record, live, &out)
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), got
}

func list(t *testing.T, record string) (string, int) {
	t.Helper()
	var out strings.Builder
	status, err := printList(record, &out)
	if err != nil && status == 0 {
		t.Fatal(err)
	}
	return out.String(), status
}

func TestWhatIsPrintedIsGoTestsOwn(t *testing.T) {
	const a = "--- FAIL: TestA (0.00s)\n    a_test.go:3: hello\n"
	const f = "    --- FAIL: TestA/f (0.00s)\n"
	const rest = "panic: went away\nFAIL\tm\t0.005s\nFAIL\tm/b [build failed]\n?   \tm/c\t[no test files]\nok  \tm/d\t0.100s\nFAIL\n"
	for _, c := range []struct {
		live bool
		want string
	}{
		{false, "# m/b [m/b.test]\n" + a + f + "    ok     1.0s  x\n        a_test.go:4: bad\n" + rest},
		{true, "# m/b [m/b.test]\n    ok     1.0s  x\n" + f + "        a_test.go:4: bad\n" + a + rest},
	} {
		got, status := reported(t, filepath.Join(t.TempDir(), "record"), events, "3", c.live)
		if got != c.want || status != 3 {
			t.Errorf("live %v: status %d,\n%s\nwant status 3,\n%s", c.live, status, got, c.want)
		}
	}
	got, _ := reported(t, filepath.Join(t.TempDir(), "record"), events, "3", false, "-v")
	for _, line := range []string{"=== RUN   TestA\n", "nobody wants to know\n", "    --- SKIP: TestA/s"} {
		if !strings.Contains(got, line) {
			t.Errorf("with -v %q is missing in\n%s", line, got)
		}
	}
}

func TestWhatOneRunSkipsAndNoOtherRunsIsListedWithItsReason(t *testing.T) {
	record := filepath.Join(t.TempDir(), "record")
	reported(t, record, events, "3", false)
	skip := func(test, why string) string {
		return `{"Action":"output","Package":"m","Test":"` + test + `","Output":"    x_test.go:7: ` + why + `\n"}
{"Action":"skip","Package":"m","Test":"` + test + `"}
`
	}
	reported(t, record, skip("TestB", "it takes minutes")+skip("TestE", "why: not")+skip("TestF", "no root"), "0", true)
	got, status := list(t, record)
	want := "skipped, and why: 3\n  why: not\n    m TestA/s\n    m TestE\n  no root\n    m TestF\n"
	if got != want || status != 0 {
		t.Errorf("status %d, %q; want %q", status, got, want)
	}
}

func TestTheReasonOfAScriptIsItsOwn(t *testing.T) {
	lines := []string{"=== RUN   TestX\n", "        > [!mounts] skip 'it needs: mounts'\n", "    --- SKIP: TestX (0.00s)\n"}
	if got := why(lines); got != "it needs: mounts" {
		t.Errorf("%q", got)
	}
}

func TestARunWithoutTestsFails(t *testing.T) {
	record := filepath.Join(t.TempDir(), "record")
	reported(t, record, `{"Action":"output","Package":"m","Output":"ok  \tm\t0.007s [no tests to run]\n"}
{"Action":"pass","Package":"m"}
`, "0", false)
	if got, status := list(t, record); status != 1 || got != "nothing was skipped\n" {
		t.Errorf("status %d, %q", status, got)
	}
}
