package main

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// diskFile makes a file that is not in memory.
func diskFile(t *testing.T, size int64) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if memory, err := sys.IsMemory(int(f.Fd())); memory || err != nil {
		t.Skipf("files for tests lie in memory here (%v)", err)
	}
	return f
}

func TestGuestMemoryOnADiskIsTakenOnlyWhenAskedFor(t *testing.T) {
	file := diskFile(t, 1<<16)
	region := vhostuser.MemoryRegion{Size: 1 << 16, UserAddr: 1 << 46}
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M")
	if err := connect(t, socket).f.AddMemReg(region, int(file.Fd())); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("a file on a disk: %v, want a refusal", err)
	}
	p.waitFor("must be a memfd, or a file of tmpfs or hugetlbfs: it is a file")
	p.waitFor("--memory-files any")
	p.endsCleanly()

	p = serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1M", "--memory-files", "any")
	if err := connect(t, socket).f.AddMemReg(region, int(file.Fd())); err != nil {
		t.Errorf("a file on a disk, asked for: %v", err)
	}
	p.endsCleanly()
}
