package virtioconsole

import (
	"math/rand/v2"
	"runtime/debug"
	"syscall"
	"testing"
)

func TestABacklogKeepsTheNewest(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	var b backlog
	var all []byte // that was added
	first := 0     // of all, that is kept
	lost := 0
	for range 2000 {
		switch rnd.IntN(4) {
		case 0:
			p := make([]byte, rnd.IntN(2000))
			at, n := b.oldest(p)
			if n != min(len(p), len(all)-first) || n > 0 && int(at) != first {
				t.Fatalf("%d bytes from %d on, want them from %d on of %d", n, at, first, len(all))
			}
			sameBytes(t, "oldest", p[:n], all[first:first+n])
			done := rnd.IntN(n + 1)
			b.drop(at + uint64(done))
			first += done
			b.drop(0) // of what is gone already
		default:
			n := rnd.IntN(500)
			if rnd.IntN(50) == 0 {
				n = rnd.IntN(3 * backlogSize)
			}
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(rnd.Uint32())
			}
			lost += b.add(p)
			all = append(all, p...)
			if over := len(all) - first - backlogSize; over > 0 {
				first += over
			}
		}
		if b.len() != len(all)-first || b.empty() != (b.len() == 0) || b.empty() != (b.ring == nil) {
			t.Fatalf("%d bytes are kept, want %d", b.len(), len(all)-first)
		}
	}
	if lost == 0 {
		t.Error("nothing was lost")
	}
}

// TestABacklogInventsNothingWhenMemoryGoes: the guest's memory is taken away while it is copied.
func TestABacklogInventsNothingWhenMemoryGoes(t *testing.T) {
	const size = 4 * backlogSize
	p, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_PRIVATE|syscall.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Munmap(p) }()
	copy(p, pattern(4096))
	if err := syscall.Mprotect(p[4096:], syscall.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, n := range []int{5000, size} {
		var b backlog
		all := pattern(backlogSize + 1000)
		b.add(all[:backlogSize])
		b.add(all[backlogSize:])
		func() {
			defer func() {
				if recover() == nil {
					t.Error("no fault")
				}
			}()
			b.add(p[:n])
		}()
		got := make([]byte, 2*backlogSize)
		_, kept := b.oldest(got)
		if kept != b.len() || kept > backlogSize || b.empty() != (kept == 0) {
			t.Errorf("%d bytes of %d, empty: %v", kept, b.len(), b.empty())
		}
		sameBytes(t, "what is kept", got[:kept], all[len(all)-kept:])
	}
}
