package sys_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"vdev/internal/sys"
)

// TestAFenceKeepsTheKernelOff: threads read from a file into the mapping, and from the mapping into
// a file, all the time. From the fence on the memory file does not change, and what is written is
// what was kept.
func TestAFenceKeepsTheKernelOff(t *testing.T) {
	const size, part = 8 << 20, 1 << 20
	source := filepath.Join(t.TempDir(), "source")
	if err := os.WriteFile(source, bytes.Repeat([]byte{0xaa}, part), 0o600); err != nil {
		t.Fatal(err)
	}
	from, err := sys.OpenFile(source, sys.OpenFlags{})
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	for range 8 {
		mem, err := sys.NewMemfd("fence", size)
		if err != nil {
			t.Fatal(err)
		}
		stuck, err := sys.Mmap(mem.Int(), 0, size, true)
		if err != nil {
			t.Fatal(err)
		}
		guest, err := sys.Mmap(mem.Int(), 0, size, true)
		if err != nil {
			t.Fatal(err)
		}
		to, err := sys.NewMemfd("written", part)
		if err != nil {
			t.Fatal(err)
		}
		// The last part is written from, the others are read into.
		kept := stuck[size-part+100 : size-100]
		copy(kept, bytes.Repeat([]byte{0x55}, len(kept)))
		const threads, calls = 4, 5
		var fenced, stop atomic.Bool
		var late [threads]atomic.Int64 // calls of each that began behind the fence
		var wg sync.WaitGroup
		begun := make(chan struct{}, threads)
		for i := range threads {
			wg.Go(func() {
				for n := 0; !stop.Load(); n++ {
					after := fenced.Load()
					var errno syscall.Errno
					if i == 0 {
						_, errno = sys.Pwritev(to.Int(), [][]byte{kept}, 0, false)
					} else {
						_, errno = sys.Preadv(from.Int(), [][]byte{stuck[(i-1)*part : i*part]}, 0)
					}
					if errno != 0 {
						t.Error(errno)
						return
					}
					if after {
						late[i].Add(1)
					}
					if n == 1 {
						begun <- struct{}{}
					}
				}
			})
		}
		for range threads {
			<-begun
		}
		if err := sys.Fence(stuck, [][]byte{kept}); err != nil {
			t.Fatal(err)
		}
		// What the guest makes of its memory from here on stays, and is not written.
		copy(guest, bytes.Repeat([]byte{0x11}, size))
		fenced.Store(true)
		for i := range late {
			for late[i].Load() < calls && !t.Failed() {
				runtime.Gosched()
			}
		}
		if !bytes.Equal(guest, bytes.Repeat([]byte{0x11}, size)) {
			t.Error("the file behind the mapping has changed")
		}
		stop.Store(true)
		wg.Wait()
		written := make([]byte, len(kept))
		if _, errno := sys.Preadv(to.Int(), [][]byte{written}, 0); errno != 0 || !bytes.Equal(written, bytes.Repeat([]byte{0x55}, len(kept))) {
			t.Error("what was written is not what was kept", errno)
		}
		if stuck[0] != 0xaa || stuck[size-part] != 0 {
			t.Errorf("the private memory has %#x and %#x", stuck[0], stuck[size-part])
		}
		for _, m := range [][]byte{stuck, guest} {
			if err := sys.Munmap(m); err != nil {
				t.Error(err)
			}
		}
		mem.Close()
		to.Close()
	}
}

// TestAFenceThatFailsChangesNothing: what is to be kept is not there any more.
func TestAFenceThatFailsChangesNothing(t *testing.T) {
	page := sys.PageSize()
	mem, err := sys.NewMemfd("fence", int64(2*page))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	m, err := sys.Mmap(mem.Int(), 0, 2*page, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Munmap(m)
	m[0] = 7
	if err := sys.Fence(m, [][]byte{make([]byte, 1)}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("memory from elsewhere: %v", err)
	}
	if err := unix.Ftruncate(mem.Int(), int64(page)); err != nil {
		t.Fatal(err)
	}
	if err := sys.Fence(m, [][]byte{m[page-1 : page+1]}); !errors.Is(err, syscall.EFAULT) {
		t.Errorf("a file that was cut off: %v", err)
	}
	m[1] = 8
	var p [2]byte
	if _, errno := sys.Preadv(mem.Int(), [][]byte{p[:]}, 0); errno != 0 || p != [2]byte{7, 8} {
		t.Errorf("the mapping shows its file no more: %v, %v", p, errno)
	}
}
