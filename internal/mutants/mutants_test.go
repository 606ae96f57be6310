//go:build mutants

package mutants

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usual is the timeout of a run where tests.timeout is not given.
const usual = 2 * time.Minute

func (b tests) String() string {
	return strings.TrimSpace(fmt.Sprintf("%s %s", b.in, b.run))
}

// arguments are those of "go" for one run.
func (b tests) arguments(tags string) []string {
	args := []string{"test", "-json", "-vet=off", "-timeout=" + cmp.Or(b.timeout, usual).String()}
	if tags != "" {
		args = append(args, "-tags="+tags)
	}
	if b.run != "" {
		args = append(args, "-run="+b.run)
	}
	args = append(args, strings.Fields(b.in)...)
	return append(args, strings.Fields(b.args)...)
}

func (b tests) tagSets() []string {
	if b.tags == nil {
		return []string{""}
	}
	return b.tags
}

// Each defect is put into the code, one at a time, and one of the tests that it names must fail.
// Those tests pass without it, and are not skipped.
func TestMutants(t *testing.T) {
	whole := map[string]outcome{} // what the tests say of the code as it is
	for _, a := range areas {
		t.Run(a.name, func(t *testing.T) {
			for _, m := range a.mutants {
				t.Run(strings.ReplaceAll(m.what, "/", " "), func(t *testing.T) {
					file := overlay(t, m)
					for _, tags := range m.by.tagSets() {
						line := strings.Join(m.by.arguments(tags), " ")
						was, ok := whole[line]
						if !ok {
							was = run(t, "", m.by, tags)
							whole[line] = was
						}
						switch was.verdict {
						case passed:
						case skipped:
							t.Fatalf("nothing is looked at here: %s is skipped: %s", was.test, was.said)
						default:
							t.Fatalf("%s fails without the defect: %s %s", m.by, was.test, was.said)
						}
						switch o := run(t, file, m.by, tags); {
						case o.verdict == broken:
							t.Fatalf("the defect does not compile:\n%s", o.said)
						case o.verdict == skipped:
							t.Fatalf("nothing is looked at: with the defect %s is skipped: %s", o.test, o.said)
						case o.verdict == hung && m.by.timeout == 0:
							t.Fatalf("%s hangs, which only counts where the entry has a timeout: %s", o.test, o.said)
						case o.verdict == failed || o.verdict == hung:
							t.Logf("caught by %s: %s", o.test, o.said)
							return
						}
					}
					t.Errorf("no test of %s fails", m.by)
				})
			}
		})
	}
}

// run runs the tests with the overlay, if one is given. Programs that they build have the defect
// too.
func run(t *testing.T, overlay string, by tests, tags string) outcome {
	t.Helper()
	args := by.arguments(tags)
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if overlay != "" {
		cmd.Args = append([]string{"go", "test", "-count=1"}, args[1:]...)
		cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	o, readErr := judge(&stdout)
	if readErr != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, readErr, &stderr)
	}
	if (err == nil) != (o.verdict == passed || o.verdict == skipped) {
		o = outcome{verdict: broken, said: strings.TrimSpace(o.said + "\n" + stderr.String())}
	}
	return o
}

// overlay writes the changed files and gives the file that tells go of them.
func overlay(t *testing.T, m mutant) string {
	t.Helper()
	texts, err := m.apply()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for file, text := range texts {
		path, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		changed := filepath.Join(dir, strconv.Itoa(len(replace))+".go")
		if err := os.WriteFile(changed, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		replace[path] = changed
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return file
}
