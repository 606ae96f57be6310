package specfs

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
)

var stressFor = flag.Duration("specfs.stress", 300*time.Millisecond, "how long TestStress runs")

// Many goroutines, in real time, do to a disk and a terminal whatever can be
// done to them; both watch over their promises.
func TestStress(t *testing.T) {
	for what, flag := range map[string]devsw.DFlag{"DMPSafe": devsw.DMPSafe, "the one lock": 0} {
		t.Run(what, func(t *testing.T) { stress(t, &unit{flag: flag}, &unit{flag: flag}) })
	}
}

func stress(t *testing.T, u, tty *unit) {
	table := devsw.NewTable()
	block, _ := u.attach(t, table)
	_, char := tty.attach(t, table)
	fs := New(table)
	ctx, cancel := context.WithTimeout(t.Context(), *stressFor)
	defer cancel()
	var (
		wg              sync.WaitGroup
		started, ended  atomic.Int64
		opens, cancels  atomic.Int64
		refused, unread atomic.Int64
	)
	worker := func(f func()) {
		wg.Go(func() {
			for ctx.Err() == nil {
				f()
			}
		})
	}
	// check fails for an error that is none of these.
	check := func(what string, err error, ok ...error) {
		if err == nil {
			return
		}
		for _, o := range ok {
			if errors.Is(err, o) {
				return
			}
		}
		t.Errorf("%s gives %v", what, err)
	}
	end := func(n *Node) {
		if rand.IntN(3) == 0 {
			n.Revoke()
		} else {
			check("close", n.Close(rw))
		}
	}

	// Whoever gets the disk uses it with two queues, each with transfers of its
	// own in progress when it ends.
	for range 3 {
		worker(func() {
			n := fs.Node(devsw.IFBLK, block)
			check("wait", n.WaitClosed(ctx), context.DeadlineExceeded)
			if err := n.Open(ctx, rw); err != nil {
				check("open", err, devsw.EBUSY, devsw.EBADF)
				return
			}
			opens.Add(1)
			var queues sync.WaitGroup
			for range 2 {
				c := n.NewCounter()
				queues.Go(func() {
					for range rand.IntN(30) {
						switch rand.IntN(8) {
						case 0:
							c.Begin()
						case 1:
							c.End()
						}
						b := &devsw.Buf{Bcount: 512}
						b.Iodone = func(b *devsw.Buf) {
							ended.Add(1)
							switch b.Error {
							case devsw.ECANCELED:
								cancels.Add(1)
							case devsw.ENXIO:
								refused.Add(1)
							}
						}
						started.Add(1)
						n.Strategy(c, b)
						if rand.IntN(4) == 0 {
							check("ioctl", n.Ioctl(devsw.DIOCCACHESYNC, nil, rw), devsw.ENXIO)
						}
					}
					c.End()
					c.Release()
				})
			}
			if rand.IntN(2) == 0 {
				queues.Wait()
			}
			end(n)
			queues.Wait()
		})
	}
	// The hardware.
	for range 2 {
		worker(func() {
			u.bmu.Lock()
			var b *devsw.Buf
			var ticket devsw.Ticket
			for b, ticket = range u.pending {
				break
			}
			u.bmu.Unlock()
			if b == nil || ticket == 0 {
				time.Sleep(10 * time.Microsecond)
			} else if b := u.bufs.Claim(ticket); b != nil {
				b.Biodone()
			}
		})
	}
	// Readers, who sleep, and who feeds them.
	for range 3 {
		worker(func() {
			n := fs.Node(devsw.IFCHR, char)
			if err := n.Open(ctx, rw); err != nil {
				check("open", err, devsw.EBADF, context.DeadlineExceeded)
				return
			}
			opens.Add(1)
			reading := make(chan struct{})
			go func() {
				defer close(reading)
				err := n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0)
				check("read", err, devsw.ENXIO, devsw.ECANCELED)
				if err != nil {
					unread.Add(1)
				}
			}()
			if rand.IntN(3) == 0 {
				time.Sleep(time.Duration(rand.IntN(50)) * time.Microsecond)
			}
			end(n)
			<-reading
		})
	}
	worker(func() {
		tty.feed(1)
		time.Sleep(20 * time.Microsecond)
	})
	// A driver's unit goes away now and then.
	worker(func() {
		time.Sleep(time.Duration(rand.IntN(1000)) * time.Microsecond)
		fs.Vdevgone(devsw.IFCHR, char.Major(), 0, 0)
		fs.RevokeDevice(devsw.IFBLK, block)
	})
	// Somebody who looks on, and drains without closing.
	worker(func() {
		short, cancel := context.WithTimeout(ctx, 100*time.Microsecond)
		defer cancel()
		var drain *DrainError
		if err := fs.Node(devsw.IFBLK, block).Drain(short); err != nil && !errors.As(err, &drain) {
			t.Errorf("Drain gives %v", err)
		}
		fs.InProgress(devsw.IFCHR, char)
		fs.Lookup(devsw.IFCHR, char)
	})

	// A reader whose node was revoked while another has the device open sleeps
	// on until there is data: go on feeding until all have ended.
	fed := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(fed)
		for {
			select {
			case <-done:
				return
			case <-time.After(time.Millisecond):
				tty.feed(1)
			}
		}
	}()
	wg.Wait()
	close(done)
	<-fed
	fs.RevokeDevice(devsw.IFBLK, block)
	fs.RevokeDevice(devsw.IFCHR, char)
	if s, e := started.Load(), ended.Load(); s != e {
		t.Errorf("%d transfers were started, %d have ended", s, e)
	}
	u.check(t)
	tty.check(t)
	t.Logf("%d opens, %d closes, %d transfers (%d cancelled, %d refused), %d reads interrupted",
		opens.Load(), u.closes+tty.closes, started.Load(), cancels.Load(), refused.Load(), unread.Load())
}
