package guesttests

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestCompare runs the scripts in testdata/compare on vdev and on qemu-storage-daemon, and prints
// which of them passes what. That qemu-storage-daemon fails is no failure of the test.
func TestCompare(t *testing.T) {
	if os.Getenv("VDEV_COMPARE") == "" {
		t.Skip("scripts/compare runs this")
	}
	scripts, err := filepath.Glob("testdata/compare/*.txtar")
	if err != nil || len(scripts) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	var table strings.Builder
	out := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "vdev\tqemu-storage-daemon\t")
	var notes strings.Builder
	for _, script := range scripts {
		what := headline(t, script)
		verdicts := map[string]string{}
		for _, backend := range []string{"vdev", "qemu-storage-daemon"} {
			t.Setenv(backendEnv, backend)
			fmt.Fprintf(os.Stderr, "    %s: %s\n", backend, what)
			r := try(t, script, backend)
			verdicts[backend] = "passes"
			if r.failed {
				verdicts[backend] = "FAILS"
				fmt.Fprintf(&notes, "\n%s, %s:\n    %s\n", backend, what, strings.TrimSuffix(r.why, "; the console's end:"))
				if r.seen != "" && !strings.Contains(r.why, r.seen) {
					fmt.Fprintf(&notes, "    %s\n", r.seen)
				}
				if backend == "vdev" {
					t.Errorf("%s:\n%s", script, r.log.String())
				}
			}
		}
		fmt.Fprintf(out, "%s\t%s\t%s\n", verdicts["vdev"], verdicts["qemu-storage-daemon"], what)
	}
	out.Flush()
	fmt.Printf("\n%s%s", table.String(), notes.String())
}

// headline is a script's first line, which says what it is about.
func headline(t *testing.T, script string) string {
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimPrefix(line, "# ")
}

// trial is the run of a script that may fail without failing a test. It is the script's testing.T;
// as with that, FailNow ends the goroutine.
type trial struct {
	name   string
	failed bool
	why    string // what the script said when it failed
	seen   string // the first thing that the proxy has found
	log    strings.Builder
}

func try(t *testing.T, script, backend string) *trial {
	root, err := os.MkdirTemp(work, "")
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("VDEV_KEEP") == "" {
		defer os.RemoveAll(root)
	}
	r := &trial{name: backend + " " + strings.TrimSuffix(filepath.Base(script), ".txtar")}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		testscript.RunT(r, testscript.Params{
			Files:               []string{script},
			WorkdirRoot:         root,
			Deadline:            time.Now().Add(scriptLimit),
			RequireExplicitExec: true,
			Cmds:                commands,
			Condition:           row(nil).condition,
			Setup: func(env *testscript.Env) error {
				// What only vdev knows of is asked for where it is there.
				env.Setenv("inflight", "event_idx=on")
				if backend == "vdev" {
					env.Setenv("inflight", "inflight-migration=on")
				}
				return newWorld(env, nil)
			},
		})
	}()
	<-ended
	return r
}

func (r *trial) Name() string                       { return r.name }
func (r *trial) Failed() bool                       { return r.failed }
func (r *trial) Verbose() bool                      { return false }
func (r *trial) Parallel()                          {}
func (r *trial) Run(_ string, f func(testscript.T)) { f(r) }
func (r *trial) Skip(args ...any)                   { r.Fatal(args...) }

func (r *trial) Log(args ...any) {
	text := fmt.Sprintln(args...)
	r.log.WriteString(text)
	if _, report, found := strings.Cut(text, "between QEMU and "); found && r.seen == "" {
		_, findings, _ := strings.Cut(report, "\n")
		r.seen, _, _ = strings.Cut(findings, "\n")
	}
	if _, why, found := strings.Cut(text, "FAIL: "); found && r.why == "" {
		_, why, _ = strings.Cut(why, ": ")
		r.why, _, _ = strings.Cut(why, "\n")
	}
}

func (r *trial) Logf(format string, args ...any) { r.Log(fmt.Sprintf(format, args...)) }

func (r *trial) Errorf(format string, args ...any) {
	r.failed = true
	r.Logf("FAIL: end: "+format, args...)
}

func (r *trial) Fatal(args ...any) {
	r.Log(args...)
	r.FailNow()
}

func (r *trial) FailNow() {
	r.failed = true
	runtime.Goexit()
}
