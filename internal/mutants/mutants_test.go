//go:build mutants

package mutants

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// knownEnv names a folder with a file for each defect that was caught in this state of the code:
// those are not tried again.
const knownEnv = "VDEV_MUTANTS_KNOWN"

// Each defect is put into the code, and one of the tests that it names must fail. Those tests pass
// without it, and are not skipped. Most of the time goes by with tests that wait, so that several
// defects are tried at a time: see -parallel.
func TestMutants(t *testing.T) {
	c := &clean{runs: map[string]func() (outcome, error){}}
	for _, a := range areas {
		t.Run(a.name, func(t *testing.T) {
			for _, m := range a.mutants {
				name := strings.ReplaceAll(m.what, "/", " ")
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					known := m.known(a.name)
					if _, err := os.Stat(known); known != "" && err == nil {
						t.Skip("it was caught before")
					}
					begin := time.Now()
					o, err := m.try(t.TempDir(), c)
					said := fmt.Sprintf("caught by %s: %s", o.test, o.said)
					verdict := "ok"
					if err != nil {
						verdict, said = "FAIL", err.Error()
						t.Error(err)
					} else if known != "" {
						if err := os.WriteFile(known, []byte(said+"\n"), 0o666); err != nil {
							t.Error(err)
						}
					}
					fmt.Fprintf(os.Stderr, "    %-4s %6.1fs  %s/%s: %s\n", verdict, time.Since(begin).Seconds(), a.name, name, said)
				})
			}
		})
	}
}

// known is the file that says that the defect is caught, "" where nothing is to be kept. Its name
// has all of the defect, and the tests that are named.
func (m mutant) known(area string) string {
	dir := os.Getenv(knownEnv)
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%s %+v", area, m))))
}

// try gives what has caught the defect.
func (m mutant) try(dir string, c *clean) (outcome, error) {
	file, err := m.overlay(dir)
	if err != nil {
		return outcome{}, err
	}
	for _, tags := range m.by.tagSets() {
		o, err := run(file, m.by, tags)
		switch {
		case err != nil:
			return outcome{}, err
		case o.verdict == broken:
			return outcome{}, fmt.Errorf("the defect does not compile:\n%s", o.said)
		case o.verdict == skipped:
			return outcome{}, fmt.Errorf("nothing is looked at: with the defect %s is skipped: %s", o.test, o.said)
		case o.verdict == hung && m.by.timeout == 0:
			return outcome{}, fmt.Errorf("%s hangs, which only counts where the entry has a timeout: %s", o.test, o.said)
		case o.verdict == failed || o.verdict == hung:
			return o, c.passes(m.by, tags)
		}
	}
	return outcome{}, fmt.Errorf("no test of %s fails", m.by)
}

// clean is what the tests say of the code as it is. Each set of them is run once.
type clean struct {
	mu   sync.Mutex
	runs map[string]func() (outcome, error)
}

// passes says whether the tests pass without a defect: then one that fails with it has caught it.
func (c *clean) passes(by tests, tags string) error {
	line := strings.Join(by.arguments(tags), " ")
	c.mu.Lock()
	once := c.runs[line]
	if once == nil {
		once = sync.OnceValues(func() (outcome, error) { return run("", by, tags) })
		c.runs[line] = once
	}
	c.mu.Unlock()
	switch o, err := once(); {
	case err != nil:
		return err
	case o.verdict == skipped:
		return fmt.Errorf("nothing is looked at here: %s is skipped: %s", o.test, o.said)
	case o.verdict != passed:
		return fmt.Errorf("%s fails without the defect: %s %s", by, o.test, o.said)
	}
	return nil
}

// run runs the tests with the overlay, if one is given. Programs that they build have the defect
// too.
func run(overlay string, by tests, tags string) (outcome, error) {
	args := by.arguments(tags)
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	if overlay != "" {
		cmd.Args = append([]string{"go", "test", "-count=1", "-failfast"}, args[1:]...)
		cmd.Env = append(os.Environ(), "GOFLAGS="+os.Getenv("GOFLAGS")+" -overlay="+overlay)
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	o, readErr := judge(&stdout)
	if readErr != nil {
		return o, fmt.Errorf("%v: %w\n%s", cmd.Args, readErr, &stderr)
	}
	if (err == nil) != (o.verdict == passed || o.verdict == skipped) {
		o = outcome{verdict: broken, said: strings.TrimSpace(o.said + "\n" + stderr.String())}
	}
	return o, nil
}

// overlay writes the changed files into dir, and gives the file that tells go of them.
func (m mutant) overlay(dir string) (string, error) {
	texts, err := m.apply()
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range texts {
		path, err := filepath.Abs(filepath.Join(root, file))
		if err != nil {
			return "", err
		}
		changed := filepath.Join(dir, strconv.Itoa(len(replace))+".go")
		if err := os.WriteFile(changed, []byte(text), 0o666); err != nil {
			return "", err
		}
		replace[path] = changed
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "overlay.json")
	return file, os.WriteFile(file, b, 0o666)
}
