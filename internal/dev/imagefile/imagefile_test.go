package imagefile_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

func TestOpenSaysWhatAFileIsInsteadOfAnImage(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path, says string
		err        devsw.Errno
	}{
		{filepath.Join(dir, "none"), "no such file", devsw.ENOENT},
		{dir, "is a directory", devsw.EINVAL},
		{fifo, "is a FIFO", devsw.EINVAL},
		{"/dev/null", "is a character device", devsw.EINVAL},
	} {
		for _, write := range []bool{false, true} {
			img, err := imagefile.Open(c.path, sys.OpenFlags{Write: write})
			if err == nil {
				img.FD.Close()
			}
			if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.path) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v with the path and %q", err, c.err, c.says)
			}
		}
	}
}

func TestLoadSkipsHolesAndNothingElse(t *testing.T) {
	path := filepath.Join(t.TempDir(), "img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	const size = 8 << 20
	want := make([]byte, size)
	for _, off := range []int64{0, 1 << 20, 5<<20 + 123} {
		copy(want[off:], "some data")
		if _, err := f.WriteAt([]byte("some data"), off); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	img, err := imagefile.Open(path, sys.OpenFlags{})
	if err != nil {
		t.Fatal(err)
	}
	defer img.FD.Close()
	got := make([]byte, size)
	if err := img.Load(got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the contents are not the file's")
	}
}
