package mutants

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// root is the module's root, seen from this package.
const root = "../.."

// mutant is a defect, and the tests that must notice it.
type mutant struct {
	what     string // what the code does then; no other mutant of the area has the same
	file     string // from the module's root
	from, to string // from stands in the file exactly once
	and      []edit // what else the defect changes, most often nothing
	by       tests
}

// edit is a change of one file. from stands in it exactly once.
type edit struct {
	file     string
	from, to string
}

// tests are those that must notice a defect. Keep them few: each defect pays for building and
// running them.
type tests struct {
	in  string // the packages, from the module's root, such as "./devsw ./specfs"
	run string // for -run; "" is all tests
	// of each run; where it is given, a test that hangs has noticed the defect
	timeout time.Duration
	// sets of build tags, one run each, until one fails; nil is one run without
	tags []string
	args string // other arguments of go test, such as -race, or of the test program
}

// area is a part of the code with a table of its own.
type area struct {
	name    string
	mutants []mutant
}

var areas []area

// add makes a table known: a table is a variable that add gives its value.
func add(name string, mutants []mutant) []mutant {
	areas = append(areas, area{name, mutants})
	return mutants
}

func (m mutant) edits() []edit {
	return append([]edit{{m.file, m.from, m.to}}, m.and...)
}

// apply gives the changed text of each file that the defect changes, by name from the module's
// root.
func (m mutant) apply() (map[string]string, error) {
	texts := map[string]string{}
	var errs []error
	for _, e := range m.edits() {
		text, ok := texts[e.file]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				errs = append(errs, err)
				continue
			}
			text = string(b)
		}
		if n := strings.Count(text, e.from); n != 1 {
			err := fmt.Errorf("what is to be changed stands %d times in %s:\n%s", n, e.file, e.from)
			errs = append(errs, err)
			continue
		}
		if e.from == e.to {
			errs = append(errs, fmt.Errorf("nothing changes in %s", e.file))
		}
		texts[e.file] = strings.Replace(text, e.from, e.to, 1)
	}
	return texts, errors.Join(errs...)
}

var testFunc = regexp.MustCompile(`(?m)^func ((?:Test|Example|Fuzz)\w*)\(`)

// names are those of a package's tests, one a line.
func names(in string) (string, error) {
	files, err := filepath.Glob(filepath.Join(root, in, "*_test.go"))
	if err != nil {
		return "", err
	}
	var all []string
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", err
		}
		for _, test := range testFunc.FindAllSubmatch(text, -1) {
			all = append(all, string(test[1]))
		}
	}
	return strings.Join(all, "\n"), nil
}

// exist fails where the packages have no test of that name. known has the names of each package
// that was looked at.
func (b tests) exist(known map[string]string) error {
	first, _, _ := strings.Cut(b.run, "/")
	named, err := regexp.Compile("(?m)" + first)
	if err != nil {
		return err
	}
	for in := range strings.FieldsSeq(b.in) {
		if _, ok := known[in]; !ok {
			if known[in], err = names(in); err != nil {
				return err
			}
		}
		if named.MatchString(known[in]) {
			return nil
		}
	}
	return fmt.Errorf("%s has no test %s", b.in, first)
}

// TestEveryMutantApplies looks that the code still has what each defect changes, and that the tests
// that are named are there. That they notice the change is for scripts/mutants, which takes its
// time.
func TestEveryMutantApplies(t *testing.T) {
	if len(areas) == 0 {
		t.Fatal("there are no tables")
	}
	known := map[string]string{}
	for _, a := range areas {
		seen := map[string]bool{}
		for _, m := range a.mutants {
			name := a.name + ": " + m.what
			if _, err := m.apply(); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if m.by.in == "" {
				t.Errorf("%s: no tests are named that must notice it", name)
			}
			if err := m.by.exist(known); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if seen[m.what] {
				t.Errorf("%s: there are two of that name", name)
			}
			seen[m.what] = true
		}
	}
}
