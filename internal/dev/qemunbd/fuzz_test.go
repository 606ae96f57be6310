package qemunbd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// FuzzDetect looks at images of any content, under names of every kind. What a guest may write into
// its disk never makes another format of it: that is as the name says, or it is refused. Where the
// name says nothing it is raw.
func FuzzDetect(f *testing.F) {
	names := []string{"disk.img", "disk", "disk.QCOW2", "disk.x.raw"}
	for suffix := range suffixes {
		names = append(names, "disk"+suffix)
	}
	slices.Sort(names)
	for i := range names {
		for _, m := range magics {
			f.Add(byte(i), false, append(make([]byte, m.at), m.bytes...))
		}
		f.Add(byte(i), false, []byte(nil))
		f.Add(byte(i), true, []byte("QFI\xfb\x00\x00\x00\x04"))
		f.Add(byte(i), true, []byte("LUKS\xba\xbe"))
	}
	dir, err := os.MkdirTemp("/dev/shm", "vdev-test.")
	if err != nil {
		dir = f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	files := make([]*os.File, len(names))
	for i, name := range names {
		if files[i], err = os.Create(filepath.Join(dir, name)); err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { files[i].Close() })
	}
	f.Fuzz(func(t *testing.T, name byte, huge bool, content []byte) {
		file := files[int(name)%len(files)]
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		if huge { // who reads all of it does not come to an end
			if err := file.Truncate(1 << 42); err != nil {
				t.Fatal(err)
			}
		}
		got, doubt, err := Detect(file.Name())
		want := byName(file.Name())
		if want == Raw && err != nil || doubt != nil && (want != Raw || doubt.Content == Raw) {
			t.Errorf("%s: doubt %v, error %v", filepath.Base(file.Name()), doubt, err)
		}
		var refused *FormatError
		switch {
		case err == nil && got != want:
			t.Errorf("%s is taken for %s", filepath.Base(file.Name()), got)
		case err == nil:
		case !errors.As(err, &refused):
			t.Errorf("%v is no FormatError", err)
		case got != "" || refused.File != file.Name() || refused.Name != want || refused.Content == want:
			t.Errorf("%q with %+v", got, *refused)
		case !strings.Contains(err.Error(), file.Name()) || len(err.Error()) > 400+len(dir):
			t.Errorf("an error that does not say of which file it is, or says too much: %v", err)
		}
		if again, _, errAgain := Detect(file.Name()); again != got || (errAgain == nil) != (err == nil) {
			t.Errorf("the second time it is %q, %v, and was %q, %v", again, errAgain, got, err)
		}
	})
}
