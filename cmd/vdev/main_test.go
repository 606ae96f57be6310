package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/internal/dev/qemunbd"
)

// The test binary is vdev itself where it is called by one of its names: scripts and tests run the
// real command, in a process of its own.
func TestMain(m *testing.M) {
	qemunbd.Witness()
	testscript.Main(m, map[string]func(){"vdev": main, "vdev-console": main})
}

// noRaceSleep keeps a vdev that was built with the race detector from sleeping for a second at its
// end.
const noRaceSleep = "GORACE=atexit_sleep_ms=0"

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, noRaceSleep)
			return nil
		},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds:                map[string]func(*testscript.TestScript, bool, []string){"refuse": refuse},
		Condition: func(cond string) (bool, error) {
			return cond == "root" && os.Geteuid() == 0, nil
		},
	})
}

// refuse is a command for scripts: refuse STATUS PATTERN ARGUMENT... runs vdev, which must end with
// the status, print nothing on stdout, and on stderr one line that matches the pattern after "vdev:
// ".
func refuse(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: refuse status pattern [argument...]")
	}
	status, err := strconv.Atoi(args[0])
	ts.Check(err)
	pattern, err := regexp.Compile("^vdev: .*" + args[1])
	ts.Check(err)
	var exit *exec.ExitError
	if err := ts.Exec("vdev", args[2:]...); !errors.As(err, &exit) {
		ts.Fatalf("vdev was to be refused, and ended with %v", err)
	}
	if exit.ExitCode() != status {
		ts.Fatalf("exit status %d, want %d", exit.ExitCode(), status)
	}
	if out := ts.ReadFile("stdout"); out != "" {
		ts.Fatalf("stdout is not empty: %q", out)
	}
	line, rest, _ := strings.Cut(ts.ReadFile("stderr"), "\n")
	if rest != "" {
		ts.Fatalf("stderr has more than one line: %q", rest)
	}
	if !pattern.MatchString(line) {
		ts.Fatalf("stderr is %q, which does not match %q", line, pattern)
	}
}
