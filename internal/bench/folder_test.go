package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFoldersOfKilledRunsAreRemoved(t *testing.T) {
	parent, err := os.MkdirTemp("", "") // whose path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(parent) })
	folders := func() []string {
		names, err := filepath.Glob(filepath.Join(parent, "*"))
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	// What is no run's, or is not locked yet, is left.
	for _, name := range []string{"something/" + heldName, folderPrefix + "new/" + heldName + ".new"} {
		name = filepath.Join(parent, name)
		if err := os.Mkdir(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var ds []*folder
	for range 2 {
		d, err := newFolder(parent)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.path, "image"), []byte("content"), 0o600); err != nil {
			t.Fatal(err)
		}
		ds = append(ds, d)
	}
	if n := len(folders()); n != 4 {
		t.Fatalf("with two runs there are %q", folders())
	}
	// A killed run's lock goes with it.
	if err := ds[0].held.Close(); err != nil {
		t.Fatal(err)
	}
	d, err := newFolder(parent)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(ds[0].path); !os.IsNotExist(err) {
		t.Errorf("what a killed run has left is still there: %v", err)
	}
	if _, err := os.Stat(filepath.Join(ds[1].path, "image")); err != nil {
		t.Errorf("a run has lost its own: %v", err)
	}
	for _, d := range []*folder{ds[1], d} {
		if err := d.remove(); err != nil {
			t.Error(err)
		}
	}
	if n := len(folders()); n != 2 {
		t.Errorf("left are %q", folders())
	}
}

func TestAFolderThatCannotBeMadeIsAnError(t *testing.T) {
	if _, err := newFolder(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("none")
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("l", 100))
	if err := os.Mkdir(long, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := newFolder(long); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(long); len(left) > 0 {
		t.Errorf("left is %v", left)
	}
}
