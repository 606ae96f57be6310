package sys_test

import (
	"testing"

	"golang.org/x/sys/unix"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// TestHugePagesAreMappedAndUnmappedWhole stands here and not in guestmem for the system call that
// makes the file.
func TestHugePagesAreMappedAndUnmappedWhole(t *testing.T) {
	n, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		t.Skipf("no huge pages on this host: %v", err)
	}
	const huge = 2 << 20
	fd := sys.NewFD(n)
	if err := unix.Ftruncate(n, 2*huge); err != nil {
		t.Fatal(err)
	}
	if align, err := sys.MapAlign(n); align != huge || err != nil {
		t.Fatalf("MapAlign = %d, %v", align, err)
	}
	// A region that neither starts nor ends with a huge page, as a hostile front-end may name it.
	// Its memory is not touched: there may be no huge page to be had.
	r, err := guestmem.Map(0, 4096, 0, huge-8192, fd)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Bytes()) != 4096 {
		t.Errorf("%d bytes", len(r.Bytes()))
	}
	r.Release() // panics if munmap refuses
}

// TestHugePagesAreFenced with the whole of their mapping, and without one being touched where
// nothing is kept.
func TestHugePagesAreFenced(t *testing.T) {
	n, err := unix.MemfdCreate("huge", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		t.Skipf("no huge pages on this host: %v", err)
	}
	const huge = 2 << 20
	fd := sys.NewFD(n)
	if err := unix.Ftruncate(n, 2*huge); err != nil {
		t.Fatal(err)
	}
	r, err := guestmem.Map(0, huge, 0, huge-8192, fd)
	if err != nil {
		t.Skipf("no huge page to be had: %v", err)
	}
	again, err := r.Again()
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Fence(nil); err != nil {
		t.Fatal(err)
	}
	p := r.Bytes()
	p[0], p[huge-1] = 1, 2
	if p[0] != 1 || p[huge/2] != 0 || p[huge-1] != 2 {
		t.Error("the memory is not private and zero")
	}
	// Both panic if munmap refuses.
	r.Release()
	again.Release()
}

func TestMapAlignOfOrdinaryFilesIsThePageSize(t *testing.T) {
	f, err := sys.NewMemfd("small", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if align, err := sys.MapAlign(f.Int()); align != sys.PageSize() || err != nil {
		t.Errorf("MapAlign = %d, %v", align, err)
	}
}
