package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestAFolderForRecordsThatCannotBeIsToldAtTheStart: when a flush fails it is too late.
func TestAFolderForRecordsThatCannotBeIsToldAtTheStart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "s"), "--driver", "null,size=1M", "--state-dir", filepath.Join(file, "state"))
	p.waitFor("failed flushes cannot be recorded for the next vdev (--state-dir)")
	p.waitFor("not a directory")
	p.endsCleanly()

	state := filepath.Join(dir, "state")
	p = serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "s"), "--driver", "null,size=1M", "--state-dir", state)
	p.endsCleanly()
	if text, _ := p.stderr.read(); exists(t, state) || strings.Contains(text, "cannot be kept") {
		t.Errorf("a look at a folder that is not there yet has made it, or was in vain")
	}
}
