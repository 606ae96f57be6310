package guesttests

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// aLife is what vdev --trace has written of a disk with two rings, shortened.
const aLife = `
    0.100000 vhost   start ring=0 size=128 base=0 features=0x130007e44
    0.100001 vhost   start ring=1 size=128 base=0 features=0x130007e44
    0.100002 specfs  block 14,0 open
    0.100003 specfs  block 14,0 opened
    0.200000 blk     queue 1 read sector 0, 4096 bytes: ok
    0.300000 vhost   in GET_VRING_BASE ring=0 num=0
    0.300001 vhost   out GET_VRING_BASE ring=0 num=32
    0.300003 specfs  block 14,0 cancel
    0.300003 blk     queue 1 write sector 0, 4096 bytes: cancelled
    0.300004 specfs  block 14,0 canceled
    0.300005 specfs  block 14,0 drain
    0.300006 specfs  block 14,0 drained
    0.300007 specfs  block 14,0 close
    0.300008 specfs  block 14,0 closed
    0.300008 blk     queue 1 write sector 0, 4096 bytes: answered with an i/o error: operation canceled
    0.300009 vhost   out GET_VRING_BASE ring=1 num=21
    0.400000 vhost   disconnect
`

func TestALifeInOrderIsAccepted(t *testing.T) {
	text, err := checkLife(aLife)
	if want := "opened=1 cancel=1 drained=1 closed=1 GET_VRING_BASE=2 disconnect=1"; err != nil || text != want {
		t.Errorf("%q, %v; want %q", text, err, want)
	}
	failed := strings.Replace(aLife, "0 opened\n", "0 opened: no such file or directory\n", 1)
	failed, _, _ = strings.Cut(failed, "    0.300003")
	if _, err := checkLife(failed + "    0.300009 vhost   out GET_VRING_BASE ring=1 num=21\n"); err != nil {
		t.Errorf("a device that could not be opened: %v", err)
	}
}

func TestALifeOutOfOrderIsFound(t *testing.T) {
	drop := func(what string) string {
		var kept []string
		for line := range strings.Lines(aLife) {
			if !strings.Contains(line, what) {
				kept = append(kept, line)
			}
		}
		return strings.Join(kept, "")
	}
	for _, c := range []struct{ what, log, want string }{
		{"no cancel", drop("0 cancel"), "drain after opened"},
		{"no drain", drop("0 drain"), "close after canceled"},
		{"a transfer after the drain", strings.Replace(aLife, "    0.300007", "    0.300006 blk     queue 1 write sector 0, 4096 bytes: cancelled\n    0.300007", 1), "is drained"},
		{"a transfer after the close", strings.Replace(aLife, "    0.300009", "    0.300008 blk     queue 1 read sector 0, 4096 bytes: ok\n    0.300009", 1), "is closed"},
		{"an earlier time", strings.Replace(aLife, "    0.300005", "    0.299005", 1), "not in the order of their times"},
		{"no close", drop("0 close"), "no further than drained"},
		{"answered before it was closed", strings.Replace(aLife, "    0.300003", "    0.300002 vhost   out GET_VRING_BASE ring=1 num=21\n    0.300003", 1), "no further than opened"},
		{"two opens", strings.Replace(aLife, "    0.200000 blk", "    0.200000 specfs  block 14,0 open\n    0.200000 blk", 1), "open after opened"},
		{"nothing", "time=... msg=hello\n", "no device"},
	} {
		if _, err := checkLife(c.log); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", c.what, err, c.want)
		}
	}
}

func TestAMutantMustChangeWhatIsThere(t *testing.T) {
	for _, text := range []string{
		"",
		"cmd/vdev/main.go\nno such text\n=>\n",
		"cmd/vdev/main.go\n\n=>\n\n",
		"no/such/file.go\nx\n=>\ny\n",
	} {
		if _, err := buildMutant(t.TempDir(), "m", text); err == nil {
			t.Errorf("%q was built", text)
		}
	}
}

// TestEveryMutantOfTheScriptsApplies to the sources as they are, which the scripts find out after
// minutes.
func TestEveryMutantOfTheScriptsApplies(t *testing.T) {
	scripts, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, script := range scripts {
		a, err := txtar.ParseFile(script)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range a.Files {
			if !strings.Contains("\n"+string(a.Comment), "\nmutant "+f.Name+"\n") {
				continue
			}
			seen++
			if _, err := changedBy(f.Name, string(f.Data)); err != nil {
				t.Errorf("%s: %v", script, err)
			}
		}
	}
	if seen < 5 {
		t.Errorf("the scripts have %d mutants: are they still found?", seen)
	}
}
