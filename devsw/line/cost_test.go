package line

import (
	"fmt"
	"runtime"
	"testing"

	"vdev/devsw"
)

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
