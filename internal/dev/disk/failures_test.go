package disk_test

import (
	"os"
	"path/filepath"
	"testing"

	"vdev/devsw"
	"vdev/internal/dev/disk"
)

func TestAFolderThatCannotBeSearchedHasNoRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	told := 0
	f := disk.NewFailures(dir, func(error) { told++ })
	if e := f.Look("image"); e != 0 || told != 1 {
		t.Errorf("an image has failed with %v, and the log was told %d times; want 0 and once", e, told)
	}
}

func TestARecordThatCannotBeReadIsOneOfEIO(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "failed-flush-image"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if e := disk.NewFailures(dir, nil).Look("image"); e != devsw.EIO {
		t.Errorf("it has failed with %v, want EIO", e)
	}
}
