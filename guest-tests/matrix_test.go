package guesttests

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// row is one combination of a script's parameters, in the order in which the script names them.
type row []struct{ key, value string }

func (r row) name() string {
	if len(r) == 0 {
		return "once"
	}
	var parts []string
	for _, p := range r {
		parts = append(parts, p.key+"="+p.value)
	}
	return strings.Join(parts, ",")
}

// value returns the value of a parameter, "" where the script has none of that name.
func (r row) value(key string) string {
	for _, p := range r {
		if p.key == key {
			return p.value
		}
	}
	return ""
}

// readMatrix reads the head of a script: the lines of comment that it begins with. The script runs
// once for each row, with the values in the environment.
//
//	# matrix: KEY=VALUE,VALUE...    a parameter. Rows are all combinations of values
//	# pairs: KEY KEY KEY...         of these parameters only enough rows that every two values
//	                                meet: they do not depend on each other, and what fails fails by
//	                                one or two of them
//	# each: KEY KEY...              only enough rows that every value is there: the script does not
//	                                depend on two of them together, and another script has each two
//	# except: KEY=VALUE KEY=VALUE   no rows with all these values; the next line of comment says why
//
// With all, pairs and each change nothing.
func readMatrix(script string, all bool) ([]row, error) {
	text, err := os.ReadFile(script)
	if err != nil {
		return nil, err
	}
	rows, err := matrix(string(text), all)
	if err != nil {
		err = fmt.Errorf("%s: %w", script, err)
	}
	return rows, err
}

func matrix(text string, all bool) ([]row, error) {
	rows := []row{nil}
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "#") {
			break
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(strings.TrimPrefix(line, "#")), ":")
		switch word {
		case "matrix":
			key, values, ok := strings.Cut(strings.TrimSpace(rest), "=")
			if !ok || key == "" || values == "" {
				return nil, fmt.Errorf("%q is not KEY=VALUE,VALUE", strings.TrimSpace(rest))
			}
			var longer []row
			for _, r := range rows {
				for value := range strings.SplitSeq(values, ",") {
					longer = append(longer, append(slices.Clip(r), struct{ key, value string }{key, value}))
				}
			}
			rows = longer
		case "pairs", "each":
			together := map[string]int{"pairs": 2, "each": 1}[word]
			keys := strings.Fields(rest)
			for _, key := range keys {
				if rows[0].value(key) == "" {
					return nil, fmt.Errorf("%s: there is no matrix of %s above", word, key)
				}
			}
			if len(keys) != len(rows[0]) || len(keys) <= together {
				return nil, fmt.Errorf("%s of %d parameters: it takes all %d, and %d", word, len(keys), len(rows[0]), together+1)
			}
			if !all {
				rows = cover(rows, together)
			}
		case "except":
			var left []row
			for _, r := range rows {
				if !r.hasAll(strings.Fields(rest)) {
					left = append(left, r)
				}
			}
			if len(left) == len(rows) || len(left) == 0 {
				return nil, fmt.Errorf("except%s: it is of %d of the %d rows", rest, len(rows)-len(left), len(rows))
			}
			rows = left
		}
	}
	return rows, nil
}

// hasAll says whether the row has all these values, given as KEY=VALUE.
func (r row) hasAll(values []string) bool {
	return !slices.ContainsFunc(values, func(v string) bool {
		return !slices.ContainsFunc(r, func(p struct{ key, value string }) bool { return p.key+"="+p.value == v })
	})
}

// combination is some values that a row has together, as KEY=VALUE.
type combination string

// combinations are those of so many values of different parameters, 1 or 2.
func (r row) combinations(together int) (all []combination) {
	for i, p := range r {
		if together == 1 {
			all = append(all, combination(p.key+"="+p.value))
			continue
		}
		for _, q := range r[:i] {
			all = append(all, combination(min(p.key+"="+p.value, q.key+"="+q.value)+" "+max(p.key+"="+p.value, q.key+"="+q.value)))
		}
	}
	return all
}

// cover picks rows so that each combination of so many values that some row has is in one that is
// picked: always the row that has most of those that are missing, the first of them.
func cover(rows []row, together int) []row {
	met := map[combination]bool{}
	var picked []row
	for {
		var best row
		most := 0
		for _, r := range rows {
			n := 0
			for _, c := range r.combinations(together) {
				if !met[c] {
					n++
				}
			}
			if n > most {
				best, most = r, n
			}
		}
		if most == 0 {
			return picked
		}
		picked = append(picked, best)
		for _, c := range best.combinations(together) {
			met[c] = true
		}
	}
}

// TestEveryTwoValuesMeetInSomeScript, and every value is in every script that names it: that some
// scripts have not all combinations leaves none of two untried.
func TestEveryTwoValuesMeetInSomeScript(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	left := map[combination]string{}
	met := map[combination]bool{}
	rows, most := 0, 0
	for _, script := range scripts {
		all, err := readMatrix(script, true)
		if err != nil {
			t.Fatal(err)
		}
		few, err := readMatrix(script, false)
		if err != nil {
			t.Fatal(err)
		}
		rows, most = rows+len(few), most+len(all)
		values := map[combination]bool{}
		for _, r := range few {
			for _, c := range r.combinations(1) {
				values[c] = true
			}
			for _, c := range r.combinations(2) {
				met[c] = true
			}
		}
		for _, r := range all {
			for _, c := range r.combinations(1) {
				if !values[c] {
					t.Errorf("%s: no row has %s", script, c)
				}
			}
			for _, c := range r.combinations(2) {
				left[c] = script
			}
		}
	}
	for c, script := range left {
		if !met[c] {
			t.Errorf("no script has a row of %s, of which %s could have one", c, script)
		}
	}
	t.Logf("%d rows of %d", rows, most)
}

func TestAMatrixHasEveryCombinationOnce(t *testing.T) {
	rows, err := matrix("# Title\n# matrix: qemu=7.2,11.1\n#\n# matrix: queues=1,4\nqemu\n# matrix: late=1\n", false)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rows {
		got = append(got, r.name())
	}
	want := []string{"qemu=7.2,queues=1", "qemu=7.2,queues=4", "qemu=11.1,queues=1", "qemu=11.1,queues=4"}
	if !slices.Equal(got, want) {
		t.Errorf("rows %q, want %q", got, want)
	}
	if rows, err := matrix("exec true\n", false); err != nil || len(rows) != 1 || rows[0].name() != "once" {
		t.Errorf("without a matrix: %v, %v; want one row", rows, err)
	}
	if _, err := matrix("# matrix: qemu\n", false); err == nil {
		t.Error("a line without values was taken")
	}
}

func TestPairsMeetInFewRows(t *testing.T) {
	rows, err := matrix("# matrix: v=7,11\n# matrix: t=a,b,c\n# matrix: q=1,4\n# pairs: v t q\n", false)
	if err != nil || len(rows) != 6 {
		t.Fatalf("%d rows, %v; want 6", len(rows), err)
	}
	for _, want := range [][]string{
		{"v=7", "t=a"}, {"v=7", "t=b"}, {"v=7", "t=c"}, {"v=11", "t=a"}, {"v=11", "t=b"}, {"v=11", "t=c"},
		{"v=7", "q=1"}, {"v=7", "q=4"}, {"v=11", "q=1"}, {"v=11", "q=4"},
		{"t=a", "q=1"}, {"t=b", "q=1"}, {"t=c", "q=1"}, {"t=a", "q=4"}, {"t=b", "q=4"}, {"t=c", "q=4"},
	} {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.hasAll(want) }) {
			t.Errorf("%v do not meet in %v", want, rows)
		}
	}
	if all, err := matrix("# matrix: v=7,11\n# matrix: t=a,b,c\n# matrix: q=1,4\n# pairs: v t q\n", true); err != nil || len(all) != 12 {
		t.Errorf("all rows: %v, %v", all, err)
	}
	each, err := matrix("# matrix: v=7,11\n# matrix: t=a,b,c\n# each: v t\n", false)
	if err != nil || len(each) != 3 {
		t.Errorf("rows of each value %v, %v", each, err)
	}
	for _, want := range []string{"v=7", "v=11", "t=a", "t=b", "t=c"} {
		if !slices.ContainsFunc(each, func(r row) bool { return r.hasAll([]string{want}) }) {
			t.Errorf("there is no %s in %v", want, each)
		}
	}
	rows, err = matrix("# matrix: s=a,b\n# matrix: v=1,2\n# except: s=a v=2\n# because\n", false)
	if err != nil || len(rows) != 3 || slices.ContainsFunc(rows, func(r row) bool { return r.hasAll([]string{"s=a", "v=2"}) }) {
		t.Errorf("rows %v, %v", rows, err)
	}
	for _, bad := range []string{"# matrix: s=a,b\n# except: s=c\n", "# matrix: s=a\n# except: s=a\n", "# pairs: a b c\n", "# matrix: a=1,2\n# pairs: a\n", "# matrix: a=1,2\n# each: a\n"} {
		if _, err := matrix(bad, false); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
