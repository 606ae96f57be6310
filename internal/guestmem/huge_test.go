package guestmem_test

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// residentOf is how much of the mappings of the memory file of that name this process has in
// memory, in KiB.
func residentOf(t *testing.T, name string) (kib int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	ours := false
	for line := range strings.Lines(string(b)) {
		if field, _, _ := strings.Cut(line, " "); !strings.HasSuffix(field, ":") {
			ours = strings.Contains(line, "/memfd:"+name+" ")
			continue
		}
		var n int
		if _, err := fmt.Sscanf(line, "Rss: %d kB", &n); err == nil && ours {
			kib += n
		}
	}
	return kib
}

// TestATerabyteIsMappedWithoutTouchingIt and is in memory only as far as it is used.
func TestATerabyteIsMappedWithoutTouchingIt(t *testing.T) {
	const size, name = 1 << 40, "terabyte"
	fd, err := sys.NewMemfd(name, size)
	if err != nil {
		t.Skipf("the host has no such file: %v", err)
	}
	r, err := guestmem.Map(0, size, 0, 0, fd)
	if errors.Is(err, syscall.ENOMEM) {
		t.Skipf("address space is limited here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer r.Release()
	m, err := guestmem.New(r)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Release()
	if n := residentOf(t, name); n != 0 {
		t.Errorf("%d KiB are in memory before anything was touched", n)
	}
	for _, gpa := range []uint64{0, size / 2, size - page} {
		b, ok := m.Slice(gpa, page)
		if !ok {
			t.Fatalf("no memory at %#x", gpa)
		}
		b[0] = 1
	}
	// Of huge pages, where the host makes such, each may be one.
	if n := residentOf(t, name); n < 3*page>>10 || n > 3*2048 {
		t.Errorf("%d KiB are in memory after three pages were touched", n)
	}
}
