package line

import (
	"fmt"
	"runtime"
	"testing"

	"vdev/devsw"
)

// TestATransferAllocatesNothing, whichever way, with somebody who listens or nobody.
func TestATransferAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("with the race detector sync.Pool forgets at random")
	}
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

// TestIdleLinesCostLittle: a hundred, each with a boot's messages and a terminal.
func TestIdleLinesCostLittle(t *testing.T) {
	memory := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // what the first one has taken out of the pools
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc + m.StackInuse)
	}
	r := newRig(t, Config{})
	before := memory()
	for i := range 100 {
		l := New(Config{})
		must(t, l.Add(NewNull(), "terminal", Main))
		dev, err := r.driver.Create(1+i, l)
		must(t, err)
		for range 203 {
			must(t, r.table.CdevWrite(dev, devsw.NewUio(devsw.UIOWrite, []byte("sixteen bytes   ")), nb))
		}
		must(t, l.Drain(t.Context()))
	}
	const most = 2 << 20
	cost := memory() - before
	t.Logf("%d bytes", cost)
	if cost > most {
		t.Errorf("they take %d bytes, want %d at most", cost, most)
	}
}

// BenchmarkWrite is d_write without waiting, on a console. Nobody is attached, or somebody takes
// everything.
func BenchmarkWrite(b *testing.B) {
	for _, who := range []string{"nobody", "null"} {
		for _, n := range []int{16, 128, 4096, 32768} {
			b.Run(fmt.Sprintf("%s/%d", who, n), func(b *testing.B) {
				r := newRig(b, Config{})
				if who == "null" {
					must(b, r.Add(NewNull(), "null", Main))
				}
				p := make([]byte, n)
				u := &devsw.Uio{Rw: devsw.UIOWrite}
				iov := make([][]byte, 1)
				b.SetBytes(int64(n))
				b.ReportAllocs()
				for b.Loop() {
					iov[0] = p
					u.Iov, u.Resid = iov, n
					if err := r.node.Write(u, nb); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
