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

// readMatrix reads the lines "# matrix: KEY=VALUE,VALUE..." at the head of a script. The script runs once for each
// combination, with the values in the environment.
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
		rest, ok := strings.CutPrefix(line, "# matrix:")
		if !ok {
			continue
		}
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
	}
	return rows, nil
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
