package vnd

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"vdev/devsw"
)

func TestAFolderThatCannotBeSearchedHasNoRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	f := NewFailures(dir, func(error) { told++ })
	if e := f.Look("image"); e != 0 || told != 1 {
		t.Errorf("an image has failed with %v, and the log was told %d times; want 0 and once", e, told)
	}
}

func TestARecordThatCannotBeReadIsOneOfEIO(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "failed-flush-image"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "failed-flush-folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, identity := range []string{"image", "folder"} {
		if e := NewFailures(dir, nil).Look(identity); e != devsw.EIO {
			t.Errorf("%s has failed with %v, want EIO", identity, e)
		}
	}
}

// TestWhatIsRecordedIsKnownToASuccessor until it is forgotten, and so is that of one image alone.
func TestWhatIsRecordedIsKnownToASuccessor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	f := NewFailures(dir, func(err error) { t.Error(err) })
	f.Record("image", "/disk.img", devsw.ENOSPC)
	next := NewFailures(dir, func(err error) { t.Error(err) })
	look := func(what string, f *Failures, want devsw.Errno) {
		t.Helper()
		if e := f.Look("image"); e != want {
			t.Errorf("%s: it has failed with %v, want %v", what, e, want)
		}
	}
	look("the one who recorded it", f, devsw.ENOSPC)
	if e := next.Known("image"); e != 0 {
		t.Errorf("a successor that has not looked knows of %v", e)
	}
	look("a successor", next, devsw.ENOSPC)
	if e := next.Known("image"); e != devsw.ENOSPC {
		t.Errorf("a successor that has looked knows of %v, want %v", e, devsw.ENOSPC)
	}
	if e := next.Look("other"); e != 0 {
		t.Errorf("another image has failed with %v", e)
	}
	if e, err := next.Forget("image"); e != devsw.ENOSPC || err != nil {
		t.Errorf("forgotten is %v, %v; want %v", e, err, devsw.ENOSPC)
	}
	look("after that", next, 0)
	look("the next one", NewFailures(dir, nil), 0)
}

// TestARecordThatCannotBeRemovedIsNotForgotten: a successor would know of it.
func TestARecordThatCannotBeRemovedIsNotForgotten(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "failed-flush-image", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	f := NewFailures(dir, nil)
	if e, err := f.Forget("image"); e != 0 || err == nil {
		t.Errorf("forgotten is %v, %v; want an error", e, err)
	}
	if e := f.Known("image"); e != devsw.EIO {
		t.Errorf("it has failed with %v, want EIO", e)
	}
}

func TestAFailureThatCannotBeRecordedIsTold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	f := NewFailures(dir, func(error) { told++ })
	f.Record("image", "/disk.img", devsw.EIO)
	if told != 1 || f.Known("image") != devsw.EIO {
		t.Errorf("the log was told %d times, and known is %v; want once and EIO", told, f.Known("image"))
	}
}

// TestWantOfDescriptorsIsNoDoubt: whether there is a record is known without opening it.
func TestWantOfDescriptorsIsNoDoubt(t *testing.T) {
	f := NewFailures(t.TempDir(), func(err error) { t.Errorf("told: %v", err) })
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	e := f.Look("file-1-2-3")
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if e != 0 {
		t.Errorf("there is a record of %v", e)
	}
}
