package hangfs

import (
	"errors"
	"testing"
)

// New mounts a file system for the length of the test, and skips the test where that cannot be
// done. It returns the folder whose files are shown, an empty one, and the folder where they are.
func New(t testing.TB, conf Config) (f *FS, dir, point string) {
	t.Helper()
	dir, point = t.TempDir(), t.TempDir()
	f, err := Mount(dir, point, conf)
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, dir, point
}
