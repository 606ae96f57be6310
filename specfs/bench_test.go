package specfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"vdev/devsw"
)

// nullNode gives an open node of a device whose transfers end at once.
func nullNode(t testing.TB, flag devsw.DFlag) *Node {
	t.Helper()
	table := devsw.NewTable()
	bdev := &devsw.Bdevsw{Flag: flag, Strategy: func(b *devsw.Buf) {
		b.InContext = true
		b.Biodone()
	}}
	bm, _, err := table.Attach("null", bdev, -1, &devsw.Cdevsw{}, -1)
	if err != nil {
		t.Fatal(err)
	}
	n := New(table).Node(devsw.IFBLK, devsw.Makedev(uint32(bm), 0))
	if err := n.Open(t.Context(), rw); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestAReadOrWriteThatDoesNotSleepAllocatesNothing, and is drained all the same.
func TestAReadOrWriteThatDoesNotSleepAllocatesNothing(t *testing.T) {
	table := devsw.NewTable()
	entered, leave := make(chan struct{}), make(chan struct{})
	wait := false
	move := func(_ devsw.Dev, u *devsw.Uio, flag devsw.Flag) error {
		if flag != devsw.FNONBLOCK {
			return devsw.EINVAL
		}
		u.Advance(u.Resid)
		if wait {
			entered <- struct{}{}
			<-leave
		}
		return nil
	}
	_, cm, err := table.Attach("line", nil, devsw.NODEVMAJOR, &devsw.Cdevsw{
		Read: move, Write: move, Flag: devsw.DMPSafe,
		Cancel: func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil },
	}, -1)
	if err != nil {
		t.Fatal(err)
	}
	n := New(table).Node(devsw.IFCHR, devsw.Makedev(uint32(cm), 0))
	if err := n.Open(t.Context(), rw); err != nil {
		t.Fatal(err)
	}
	iov := [][]byte{make([]byte, 8)}
	u := &devsw.Uio{}
	if allocs := testing.AllocsPerRun(100, func() {
		*u = devsw.Uio{Iov: iov, Resid: 8}
		if n.Read(u, devsw.FNONBLOCK) != nil || u.Resid != 0 {
			t.Error("read")
		}
		*u = devsw.Uio{Iov: iov, Resid: 8, Rw: devsw.UIOWrite}
		if n.Write(u, devsw.FNONBLOCK) != nil || u.Resid != 0 {
			t.Error("write")
		}
	}); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	wait = true
	for _, op := range []func(*devsw.Uio, devsw.Flag) error{n.Read, n.Write} {
		done := make(chan error)
		go func() { done <- op(&devsw.Uio{Iov: iov, Resid: 8}, devsw.FNONBLOCK) }()
		<-entered
		over, cancel := context.WithCancel(t.Context())
		cancel()
		if err := n.Drain(over); err == nil {
			t.Error("a drain does not wait for it")
		}
		leave <- struct{}{}
		if err := errors.Join(<-done, n.Drain(t.Context())); err != nil {
			t.Error(err)
		}
	}
	mustClose(t, n)
}

func TestATransferAllocatesNothing(t *testing.T) {
	for _, flag := range []devsw.DFlag{devsw.DMPSafe, 0} {
		n := nullNode(t, flag)
		c := n.NewCounter()
		b := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) {}}
		if allocs := testing.AllocsPerRun(1000, func() {
			b.Rearm()
			n.Strategy(c, b)
		}); allocs != 0 {
			t.Errorf("flag %#x: %v allocations for a transfer", flag, allocs)
		}
		if allocs := testing.AllocsPerRun(100, func() {
			c.Begin()
			for range 2 * batchReserve {
				b.Rearm()
				n.Strategy(c, b)
			}
			c.End()
		}); allocs != 0 || c.InProgress() != 0 {
			t.Errorf("flag %#x: %v allocations for a batch, %d sections left", flag, allocs, c.InProgress())
		}
		mustClose(t, n)
		if allocs := testing.AllocsPerRun(1000, func() {
			b.Rearm()
			n.Strategy(c, b)
		}); allocs != 0 || b.Error != devsw.ENXIO {
			t.Errorf("flag %#x: %v allocations for a refused transfer (%v)", flag, allocs, b.Error)
		}
	}
}

// BenchmarkTransfer is Strategy and Biodone with a driver that does nothing:
// what a transfer costs beyond the driver, alone and in batches.
func BenchmarkTransfer(b *testing.B) {
	for _, batch := range []int{1, 32} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			n := nullNode(b, devsw.DMPSafe)
			c := n.NewCounter()
			buf := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) {}}
			b.ReportAllocs()
			inBatches(b, c, batch, func() {
				buf.Rearm()
				n.Strategy(c, buf)
			})
			mustClose(b, n)
		})
	}
}

// inBatches runs fn for the benchmark, in batches of c unless they are of one.
func inBatches(b *testing.B, c *Counter, batch int, fn func()) {
	for left := 0; b.Loop(); left-- {
		if left == 0 {
			left = batch
			if c.End(); batch > 1 {
				c.Begin()
			}
		}
		fn()
	}
	c.End()
}

// BenchmarkSection is the section alone: what entering and leaving it costs, for
// a transfer by itself, and for those of a batch that end in it or later.
func BenchmarkSection(b *testing.B) {
	n := nullNode(b, devsw.DMPSafe)
	c := n.NewCounter()
	b.Run("alone", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if !c.count.AcquireN(2) {
				b.Fatal("refused")
			}
			(*section)(c).Leave(false)
			c.count.Release()
		}
	})
	for name, inContext := range map[string]bool{"batch=32": true, "batch=32, ending later": false} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			inBatches(b, c, 32, func() {
				if !c.take() {
					b.Fatal("refused")
				}
				(*section)(c).Leave(inContext)
			})
		})
	}
	mustClose(b, n)
}

// BenchmarkQueues is one device with one queue to each goroutine. ns/op is per
// transfer of all of them together, so with two goroutines on two cores it
// should be half of what it is with one.
func BenchmarkQueues(b *testing.B) {
	for _, bench := range []struct {
		name   string
		queues int
		shared bool
	}{{"one", 1, false}, {"two", 2, false}, {"two sharing a counter", 2, true}} {
		b.Run(bench.name, func(b *testing.B) {
			n := nullNode(b, devsw.DMPSafe)
			shared := n.NewCounter()
			var wg sync.WaitGroup
			b.ResetTimer()
			for range bench.queues {
				c := shared
				if !bench.shared {
					c = n.NewCounter()
				}
				wg.Go(func() {
					buf := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) {}}
					for range b.N / bench.queues {
						buf.Rearm()
						n.Strategy(c, buf)
					}
				})
			}
			wg.Wait()
			b.StopTimer()
			mustClose(b, n)
		})
	}
}
