//go:build !race

package line

import (
	"fmt"
	"testing"

	"vdev/devsw"
)

// TestATransferAllocatesNothing, whichever way, with somebody who listens or nobody. (With the race
// detector sync.Pool forgets at random.)
func TestATransferAllocatesNothing(t *testing.T) {
	for _, overflow := range []Overflow{Drop, Wait} {
		for _, n := range []int{16, 4096, 32768} {
			t.Run(fmt.Sprintf("%v/%d", overflow, n), func(t *testing.T) {
				r := newRig(t, Config{Overflow: overflow, Scrollback: 256 << 10})
				if overflow == Wait {
					must(t, r.Add(NewNull(), "null", Main))
				}
				p := make([]byte, n)
				u := &devsw.Uio{Rw: devsw.UIOWrite, Iov: make([][]byte, 1)}
				iov := u.Iov
				transfer := func() {
					iov[0] = p
					u.Iov, u.Resid = iov, n
					if err := r.node.Write(u, nb); err != nil && err != devsw.EAGAIN {
						t.Fatal(err)
					}
				}
				for range (256 << 10) / n * 2 {
					transfer()
				}
				if a := testing.AllocsPerRun(2000, transfer); a != 0 {
					t.Errorf("%v allocations in a d_write", a)
				}
				s := r.add("terminal", Main, 0)
				s.q.Put(make([]byte, 4000))
				u.Rw = devsw.UIORead
				if a := testing.AllocsPerRun(200, func() {
					iov[0] = p[:16]
					u.Iov, u.Resid = iov, 16
					must(t, r.node.Read(u, nb))
				}); a != 0 {
					t.Errorf("%v allocations in a d_read", a)
				}
				r.get(4000)
				if a := testing.AllocsPerRun(200, func() {
					iov[0] = p[:16]
					u.Iov, u.Resid = iov, 16
					if err := r.node.Read(u, nb); err != devsw.EAGAIN {
						t.Fatal(err)
					}
				}); a != 0 {
					t.Errorf("%v allocations in a d_read that finds nothing", a)
				}
			})
		}
	}
}
