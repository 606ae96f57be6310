package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// writing writes text, and fails with err then.
func writing(text string, err error) func(io.Writer) error {
	return func(w io.Writer) error {
		_, werr := io.WriteString(w, text)
		return errors.Join(werr, err)
	}
}

func TestAFileIsThereWholeOrAsItWas(t *testing.T) {
	dir := t.TempDir()
	name, link := filepath.Join(dir, "f"), filepath.Join(dir, "link")
	if err := errors.Join(os.WriteFile(name, []byte("old"), 0o600), os.Chmod(name, 0o642), os.Symlink("f", link)); err != nil {
		t.Fatal(err)
	}
	fails := errors.New("no good")
	for _, tt := range []struct {
		name string
		do   func(io.Writer) error // nil: it is not written
		err  error
		want string
	}{
		{link, writing("half", fails), fails, "old"},
		{link, nil, nil, "old"},
		{link, writing("new", nil), nil, "new"},
		{name, writing("newer", nil), nil, "newer"},
	} {
		f, err := createFile(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		if tt.do != nil {
			if err := f.write(tt.do); !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
		}
		f.discard()
		if text, err := os.ReadFile(name); err != nil || string(text) != tt.want {
			t.Errorf("there is %q, %v; want %q", text, err, tt.want)
		}
		if info, err := os.Stat(name); err != nil || info.Mode().Perm() != 0o642 {
			t.Errorf("its mode is %v, %v", info.Mode(), err)
		}
		if info, err := os.Lstat(link); err != nil || info.Mode().Type() != os.ModeSymlink {
			t.Errorf("the link is %v, %v", info.Mode(), err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 2 {
			t.Errorf("there are %v, %v", left, err)
		}
	}
}

func TestAFileThatCannotBeReplacedIsWrittenOver(t *testing.T) {
	dir := t.TempDir()
	there, err := os.Create(filepath.Join(dir, "there"))
	if err == nil {
		_, err = there.WriteString("something longer, of yesterday")
	}
	if err != nil {
		t.Fatal(err)
	}
	defer there.Close()
	f, err := createFile(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	// Nothing can be renamed to this name, and the file can be opened by it.
	f.name = fmt.Sprintf("/proc/self/fd/%d", there.Fd())
	if err := f.write(writing("new", nil)); err != nil {
		t.Error(err)
	}
	f.discard()
	if text, err := os.ReadFile(there.Name()); err != nil || string(text) != "new" {
		t.Errorf("there is %q, %v", text, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("there are %v, %v", left, err)
	}
}

func TestWhatCannotBeBroughtToItsFileIsKept(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "f")
	f, err := createFile(name)
	if err := errors.Join(err, os.Mkdir(name, 0o700)); err != nil {
		t.Fatal(err)
	}
	written := f.to.Name()
	if err := f.write(writing("text", nil)); err == nil || !strings.Contains(err.Error(), name) || !strings.HasSuffix(err.Error(), " is in "+written) {
		t.Errorf("error %v, want one that names %s", err, written)
	}
	f.discard()
	if text, err := os.ReadFile(written); err != nil || string(text) != "text" {
		t.Errorf("there is %q, %v", text, err)
	}
}

func TestAFileThatCannotBeWrittenIsKnownAtTheStart(t *testing.T) {
	dir := t.TempDir()
	lost := filepath.Join(dir, "lost")
	if err := os.Symlink("nowhere", lost); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, filepath.Join(dir, "no", "file"), lost} {
		if f, err := createFile(name); err == nil {
			f.discard()
			t.Errorf("%s: no error", name)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("there are %v, %v", left, err)
	}
}

func TestWhatIsNoRegularFileIsWrittenAsItIs(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	f, err := createFile(fmt.Sprintf("/proc/self/fd/%d", w.Fd()))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := f.write(writing("text", nil)); err != nil {
		t.Error(err)
	}
	f.discard()
	if text, err := io.ReadAll(r); err != nil || string(text) != "text" {
		t.Errorf("%q came, %v", text, err)
	}
}

func TestTheProgramsOwnOutputStaysOpenAndWhatItIs(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	to, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	former := os.Stdout
	os.Stdout = to
	defer func() { os.Stdout = former }()
	f, err := createFile(log)
	if err := errors.Join(err, writing("before, ", nil)(to)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.write(writing("text", nil)), writing(", after", nil)(to)); err != nil {
		t.Error(err)
	}
	f.discard()
	if text, err := os.ReadFile(log); err != nil || string(text) != "before, text, after" {
		t.Errorf("there is %q, %v", text, err)
	}
}

func TestOneFileHasManyNames(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := errors.Join(os.WriteFile("a", nil, 0o600), os.Symlink("a", "link"), os.Link("a", "b"), os.Mkdir("sub", 0o700), os.Symlink("sub", "folder")); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		a, b string
		want bool
	}{
		{"a", "./a", true},
		{"a", filepath.Join(dir, "a"), true},
		{"a", "link", true},
		{"a", "b", true},
		{"a", "sub/../a", true},
		{"a", "new", false},
		{"new", "./new", true},
		{"new", "newer", false},
		{"sub/new", "folder/new", true},
		{"sub/new", "new", false},
		{"none/new", "./none/new", true},
	} {
		if sameFile(tt.a, tt.b) != tt.want || sameFile(tt.b, tt.a) != tt.want {
			t.Errorf("%s and %s: want %v", tt.a, tt.b, tt.want)
		}
	}
}
