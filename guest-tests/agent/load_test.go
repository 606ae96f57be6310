//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdev/guest-tests/internal/pattern"
)

// loaded returns a file that a load of one worker and two slots has worked on.
func loaded(t *testing.T, options string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	work(t, file, options)
	return file
}

const smallLoad = " workers=1 slots=2 bs=1k "

func work(t *testing.T, file, options string) {
	t.Helper()
	quit := make(chan struct{})
	time.AfterFunc(50*time.Millisecond, func() { close(quit) })
	args := strings.Fields("load " + file + smallLoad + options)
	if text, err := run(args, "", quit); err != nil {
		t.Fatalf("load: %s%v", text, err)
	}
}

func checkLoad(file, options string) error {
	_, err := run(strings.Fields("check-load "+file+smallLoad+options), "", nil)
	return err
}

func TestWhatALoadLeavesIsVerified(t *testing.T) {
	for _, options := range []string{"", "flush"} {
		file := loaded(t, options)
		work(t, file, options)
		if err := checkLoad(file, options); err != nil {
			t.Errorf("%q: %v", options, err)
		}
	}
}

func TestALoadFindsWhatWasLostAndWhatLandedLate(t *testing.T) {
	const slot = pattern.BlockSize // of worker 0, behind the journal
	for what, change := range map[string]func(b []byte){
		"zeros":                   func(b []byte) { clear(b[slot : slot+1024]) },
		"a block of zeros":        func(b []byte) { clear(b[slot+512 : slot+1024]) },
		"another slot's data":     func(b []byte) { copy(b[slot:slot+1024], b[slot+1024:]) },
		"one byte":                func(b []byte) { b[slot+100]++ },
		"a torn journal":          func(b []byte) { b[journalHead]++ },
		"a version of the future": func(b []byte) { pattern.Fill(b[slot:slot+512], 5<<epochShift, slot) },
	} {
		file := loaded(t, "")
		old, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		change(old)
		if err := os.WriteFile(file, old, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := checkLoad(file, ""); err == nil {
			t.Errorf("%s: not found", what)
		}
	}

	file := loaded(t, "")
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	work(t, file, "")
	now, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	copy(now[slot:], old[slot:])
	if err := os.WriteFile(file, now, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := checkLoad(file, ""); err == nil || !strings.Contains(err.Error(), "was acknowledged") {
		t.Errorf("writes of an earlier load that land late: %v", err)
	}
}

func TestALoadEndsOnlyInTheBackground(t *testing.T) {
	if _, err := run(strings.Fields("load /no/file"), "", nil); err == nil || !strings.Contains(err.Error(), "finish") {
		t.Errorf("load: %v", err)
	}
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	for i, w := range ask(t, "a start l load "+file+smallLoad, "b finish l", "c finish l") {
		if w.OK != (i < 2) {
			t.Errorf("%s: %+v", w.Token, w)
		}
	}
}
