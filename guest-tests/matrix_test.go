package guesttests

import (
	"fmt"
	"os"
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

// readMatrix reads the head of a script: the lines of comment that it begins with. The script runs once for each row, with
// the values in the environment.
//
//	# matrix: KEY=VALUE,VALUE...    a parameter. Rows are all combinations of values
//	# pairs: KEY KEY KEY...         of these parameters only enough rows that every two values meet: they do not
//	                                depend on each other, and what fails fails by one or two of them
//	# except: KEY=VALUE KEY=VALUE   no rows with all these values; the next line of comment says why
func readMatrix(script string) ([]row, error) {
	text, err := os.ReadFile(script)
	if err != nil {
		return nil, err
	}
	rows, err := matrix(string(text))
	if err != nil {
		err = fmt.Errorf("%s: %w", script, err)
	}
	return rows, err
}

func matrix(text string) ([]row, error) {
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
		case "pairs":
			keys := strings.Fields(rest)
			for _, key := range keys {
				if rows[0].value(key) == "" {
					return nil, fmt.Errorf("pairs: there is no matrix of %s above", key)
				}
			}
			if len(keys) != len(rows[0]) || len(keys) < 3 {
				return nil, fmt.Errorf("pairs of %d parameters: it takes all %d, and three", len(keys), len(rows[0]))
			}
			rows = pairs(rows)
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

// pairs picks rows so that each two values of two parameters that some row has together are together in one that is picked:
// always one that has most of those that are missing, the first of them.
func pairs(rows []row) []row {
	type pair [2]struct{ key, value string }
	of := func(r row) (all []pair) {
		for i := range r {
			for j := range i {
				all = append(all, pair{r[j], r[i]})
			}
		}
		return all
	}
	met := map[pair]bool{}
	var picked []row
	for {
		var best row
		most := 0
		for _, r := range rows {
			n := 0
			for _, p := range of(r) {
				if !met[p] {
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
		for _, p := range of(best) {
			met[p] = true
		}
	}
}

func TestAMatrixHasEveryCombinationOnce(t *testing.T) {
	rows, err := matrix("# Title\n# matrix: qemu=7.2,11.1\n#\n# matrix: queues=1,4\nqemu\n# matrix: late=1\n")
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
	if rows, err := matrix("exec true\n"); err != nil || len(rows) != 1 || rows[0].name() != "once" {
		t.Errorf("without a matrix: %v, %v; want one row", rows, err)
	}
	if _, err := matrix("# matrix: qemu\n"); err == nil {
		t.Error("a line without values was taken")
	}
}

func TestPairsMeetInFewRows(t *testing.T) {
	rows, err := matrix("# matrix: v=7,11\n# matrix: t=a,b,c\n# matrix: q=1,4\n# pairs: v t q\n")
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
	rows, err = matrix("# matrix: s=a,b\n# matrix: v=1,2\n# except: s=a v=2\n# because\n")
	if err != nil || len(rows) != 3 || slices.ContainsFunc(rows, func(r row) bool { return r.hasAll([]string{"s=a", "v=2"}) }) {
		t.Errorf("rows %v, %v", rows, err)
	}
	for _, bad := range []string{"# matrix: s=a,b\n# except: s=c\n", "# matrix: s=a\n# except: s=a\n", "# pairs: a b c\n", "# matrix: a=1,2\n# pairs: a\n"} {
		if _, err := matrix(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
