package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestEveryCommandOfTheReadmeWorks runs each indented command of the README. Of two kinds it only
// looks that they are there: those of scripts/, which scripts/test is one of, and QEMU, which the
// guest tests start.
func TestEveryCommandOfTheReadmeWorks(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds and starts much")
	}
	text, err := os.ReadFile(filepath.Join("..", "..", "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "disk.img"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	here := strings.NewReplacer("/run/", dir+"/", "disk.img", dir+"/disk.img")
	ended, cancel := context.WithCancel(t.Context())
	cancel() // a vdev that serves ends at once, and so does one that follows
	// Another one is there to be asked.
	asked := t.TempDir()
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(asked, "vm1.sock"), "--control", filepath.Join(asked, "vm1.ctl"),
		"--driver", "fault,lower=md,size=1M")
	other := serving(t, nil, "blk", "--socket-path", filepath.Join(asked, "vm2.sock"), "--driver", "md,size=1M")
	there := strings.NewReplacer("/run/", asked+"/", "life.json", asked+"/life.json", "bench.svg", asked+"/bench.svg")
	seen := 0
	for line := range strings.Lines(string(text)) {
		command, indented := strings.CutPrefix(line, "    ")
		if !indented || strings.HasPrefix(command, " ") {
			continue // the latter goes on with the command of the line before
		}
		command, _, _ = strings.Cut(command, "#")
		command = strings.TrimSpace(command)
		args := strings.Fields(here.Replace(command))
		seen++
		switch {
		case args[0] == "./vdev":
		case strings.HasPrefix(args[0], "./scripts/"):
			if info, err := os.Stat(filepath.Join("..", "..", args[0])); err != nil || info.Mode()&0o111 == 0 {
				t.Errorf("%s: no such program (%v)", command, err)
			}
			continue
		case args[0] == "go" || args[0] == "truncate":
			if args[0] == "go" {
				args = slices.Insert(args, 2, "-o", os.DevNull)
			}
			program := exec.CommandContext(t.Context(), args[0], args[1:]...)
			program.Dir = filepath.Join("..", "..")
			if out, err := program.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", command, err, out)
			}
			continue
		case strings.HasPrefix(args[0], "qemu-system-"):
			continue
		default:
			t.Errorf("%s: the README has a command that this test does not know", command)
			continue
		}
		ctx := ended
		if args[1] == "ctl" || args[1] == "bench" {
			args = strings.Fields(there.Replace(command))
			if !slices.Contains(args, "--follow") {
				ctx = t.Context()
			}
		}
		var stdout, stderr bytes.Buffer
		once := func(more ...string) (status int) {
			stderr.Reset()
			return run(ctx, slices.Concat(args[1:], more), &stdout, &stderr)
		}
		var status int
		if args[1] == "bench" {
			// On a machine with much else to do it may take long until anybody gets to do anything.
			for length := 200 * time.Millisecond; ; length *= 4 {
				status = once("--rounds", "1", "--length", length.String(), "--warmup", "0")
				if length > patience || !strings.Contains(stderr.String(), "a longer length is needed") {
					break
				}
			}
		} else {
			status = once()
		}
		if status != exitOK {
			t.Errorf("%s: exit status %d: %s", command, status, stderr.String())
		}
	}
	if seen < 20 {
		t.Errorf("the README has %d commands: are they still found?", seen)
	}
	p.endsCleanly()
	other.endsCleanly()
}
