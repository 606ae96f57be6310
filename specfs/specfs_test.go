package specfs

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
)

const rw = devsw.FREAD | devsw.FWRITE

// setup makes an FS with one unit.
type setup struct {
	*unit
	fs          *FS
	table       *devsw.Table
	trace       *tracer
	block, char devsw.Dev
}

// run runs f in a bubble with a unit (nil: an ordinary one with DMPSafe), and
// looks at the end whether the unit's promises were kept.
func run(t *testing.T, u *unit, f func(t *testing.T, s *setup)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if u == nil {
			u = &unit{flag: devsw.DMPSafe}
		}
		s := &setup{unit: u, table: devsw.NewTable(), trace: &tracer{}}
		s.block, s.char = u.attach(t, s.table)
		s.fs = New(s.table, WithTrace(s.trace.add))
		f(t, s)
		u.check(t)
		if n := len(s.fs.devs); n != 0 {
			t.Errorf("%d devices are remembered at the end", n)
		}
	})
}

// call is something that may take its time.
type call struct {
	done bool
	err  error
}

// start runs f on a goroutine and waits until nothing moves any more.
func start(f func() error) *call {
	c := &call{}
	go func() {
		c.err = f()
		c.done = true
	}()
	synctest.Wait()
	return c
}

func (c *call) mustSleep(t *testing.T, what string) {
	t.Helper()
	synctest.Wait()
	if c.done {
		t.Fatalf("%s has returned %v", what, c.err)
	}
}

func (c *call) mustGive(t *testing.T, what string, want error) {
	t.Helper()
	synctest.Wait()
	if !c.done {
		t.Fatalf("%s has not returned", what)
	}
	if !errors.Is(c.err, want) {
		t.Errorf("%s gives %v, want %v", what, c.err, want)
	}
}

func (s *setup) mustOpen(t *testing.T, n *Node) {
	t.Helper()
	if err := n.Open(t.Context(), rw); err != nil {
		t.Fatalf("Open gives %v", err)
	}
}

func mustClose(t testing.TB, n *Node) {
	t.Helper()
	if err := n.Close(rw); err != nil {
		t.Errorf("Close gives %v", err)
	}
}

// transfer starts one and gives where it ends.
func transfer(n *Node, c *Counter, context any) (b *devsw.Buf, end *call) {
	end = &call{}
	b = &devsw.Buf{Op: devsw.BWrite, Bcount: 512, Context: context, Iodone: func(b *devsw.Buf) {
		end.done = true
		if b.Error != 0 {
			end.err = b.Error
		}
	}}
	n.Strategy(c, b)
	return b, end
}

func TestLastCloseCancelsThenDrainsThenCloses(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		_, end := transfer(n, nil, nil)
		stuck, stuckEnd := transfer(n, nil, stuckContext)

		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close with a transfer in progress")
		end.mustGive(t, "the transfer", devsw.ECANCELED)
		s.check(t, "open", "strategy", "strategy", "cancel")

		s.finish(stuck)
		stuckEnd.mustGive(t, "the transfer that cannot be cancelled", nil)
		closing.mustGive(t, "Close", nil)
		s.check(t, "open", "strategy", "strategy", "cancel", "close")
		want := []string{"open", "opened", "cancel", "canceled", "drain", "drained", "close", "closed"}
		if got := s.trace.take(); !slices.Equal(got, want) {
			t.Errorf("trace %q, want %q", got, want)
		}
	})
}

func TestWithoutCancelCloseInterruptsAndIsThenDrained(t *testing.T) {
	for _, u := range []*unit{
		{flag: devsw.DMPSafe, noCancel: true},
		{flag: devsw.DMPSafe, cancelErr: devsw.ENODEV},
	} {
		run(t, u, func(t *testing.T, s *setup) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			_, end := transfer(n, nil, nil)
			stuck, _ := transfer(n, nil, stuckContext)
			closing := start(func() error { return n.Close(rw) })
			closing.mustSleep(t, "Close with a transfer in progress")
			end.mustGive(t, "the transfer", devsw.ECANCELED)
			want := []string{"open", "opened", "cancel", "canceled: ENODEV", "close", "closed", "drain"}
			if got := s.trace.take(); !slices.Equal(got, want) {
				t.Errorf("trace %q, want %q", got, want)
			}
			other := s.fs.Node(devsw.IFBLK, s.block)
			if err := other.Open(t.Context(), rw); err != devsw.EBUSY {
				t.Errorf("an open before the drain has ended gives %v", err)
			}
			s.finish(stuck)
			closing.mustGive(t, "Close", nil)
		})
	}
}

func TestCancelMustAnswerNilOrENODEV(t *testing.T) {
	table := devsw.NewTable()
	u := &unit{flag: devsw.DMPSafe, cancelErr: devsw.EIO}
	block, _ := u.attach(t, table)
	n := New(table).Node(devsw.IFBLK, block)
	if err := n.Open(t.Context(), rw); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if msg, _ := recover().(string); !strings.Contains(msg, "d_cancel") || !strings.Contains(msg, block.String()) {
			t.Errorf("Close panics with %q", msg)
		}
	}()
	_ = n.Close(rw)
	t.Error("Close accepts EIO from d_cancel")
}

func TestCloseGivesTheErrorOfDclose(t *testing.T) {
	run(t, &unit{flag: devsw.DMPSafe, closeErr: devsw.EIO}, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		if err := n.Close(rw); err != devsw.EIO {
			t.Errorf("Close gives %v", err)
		}
		s.mustOpen(t, n) // it is closed all the same
		n.Revoke()
	})
}

// Every operation of a node, with what it answers when the section cannot be
// entered, and when it can.
var operations = []struct {
	what    string
	kind    devsw.Mode
	call    func(n *Node) any
	refused any
	well    any
}{
	{"strategy", devsw.IFBLK, func(n *Node) any {
		b, end := transfer(n, nil, stuckContext)
		if end.done && b.Resid != b.Bcount {
			return "Resid"
		}
		return end.err
	}, devsw.ENXIO, nil},
	{"read", devsw.IFBLK, func(n *Node) any {
		u := devsw.NewUio(devsw.UIORead, make([]byte, 1024))
		err := start(func() error { return n.Read(u, 0) })
		if err.done {
			return err.err
		}
		return nil
	}, devsw.ENXIO, nil},
	{"cancel of a transfer", devsw.IFBLK, func(n *Node) any { return n.CancelBuf(&devsw.Buf{Dev: n.Dev()}) }, devsw.ENXIO, nil},
	{"ioctl", devsw.IFBLK, func(n *Node) any { return n.Ioctl(devsw.DIOCCACHESYNC, nil, rw) }, devsw.ENXIO, nil},
	{"discard", devsw.IFBLK, func(n *Node) any { return n.Discard(0, 512) }, devsw.ENXIO, nil},
	{"psize", devsw.IFBLK, func(n *Node) any { return n.Psize() }, int64(-1), int64(2048)},
	{"poll", devsw.IFBLK, func(n *Node) any { return n.Poll(devsw.POLLIN|devsw.POLLOUT, nil) }, devsw.POLLERR, devsw.POLLIN | devsw.POLLOUT},
	{"kqfilter", devsw.IFBLK, func(n *Node) any { return n.Kqfilter(&devsw.Knote{}) }, devsw.ENXIO, devsw.EOPNOTSUPP},
	{"strategy", devsw.IFCHR, func(n *Node) any { _, end := transfer(n, nil, nil); return end.err }, devsw.ENXIO, devsw.ENODEV},
	{"read", devsw.IFCHR, func(n *Node) any {
		err := start(func() error { return n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
		if err.done {
			return err.err
		}
		return nil
	}, devsw.ENXIO, nil},
	{"write", devsw.IFCHR, func(n *Node) any {
		u := devsw.NewUio(devsw.UIOWrite, make([]byte, 10))
		err := n.Write(u, 0)
		if err == nil && u.Resid != 0 {
			return "Resid"
		}
		return err
	}, devsw.ENXIO, nil},
	{"cancel of a transfer", devsw.IFCHR, func(n *Node) any { return n.CancelBuf(&devsw.Buf{}) }, devsw.ENXIO, devsw.ENODEV},
	{"ioctl", devsw.IFCHR, func(n *Node) any { return n.Ioctl(devsw.DIOCGROW, nil, rw) }, devsw.ENXIO, nil},
	{"discard", devsw.IFCHR, func(n *Node) any { return n.Discard(0, 512) }, devsw.ENXIO, nil},
	{"psize", devsw.IFCHR, func(n *Node) any { return n.Psize() }, int64(-1), int64(-1)},
	{"poll", devsw.IFCHR, func(n *Node) any { return n.Poll(devsw.POLLIN|devsw.POLLOUT, nil) }, devsw.POLLERR, devsw.POLLOUT},
	{"write, not to sleep", devsw.IFCHR, func(n *Node) any {
		return n.Write(devsw.NewUio(devsw.UIOWrite, make([]byte, 4)), devsw.FNONBLOCK)
	}, devsw.ENXIO, nil},
	{"kqfilter", devsw.IFCHR, func(n *Node) any { return n.Kqfilter(&devsw.Knote{}) }, devsw.ENXIO, nil},
}

func (s *setup) dev(kind devsw.Mode) devsw.Dev {
	if kind == devsw.IFBLK {
		return s.block
	}
	return s.char
}

func TestOperationsNeedAnOpenNode(t *testing.T) {
	for _, op := range operations {
		t.Run(fmt.Sprint(op.kind, " ", op.what), func(t *testing.T) {
			run(t, nil, func(t *testing.T, s *setup) {
				n := s.fs.Node(op.kind, s.dev(op.kind))
				refused := func(when string) {
					t.Helper()
					if got := op.call(n); got != op.refused {
						t.Errorf("%s: %v, want %v", when, got, op.refused)
					}
				}
				refused("before open")

				s.setSleepOpens(true)
				opening := start(func() error { return n.Open(t.Context(), rw) })
				refused("while d_open sleeps")
				s.decide(rw, nil)
				opening.mustGive(t, "Open", nil)
				s.setSleepOpens(false)

				if got := op.call(n); got != op.well {
					t.Errorf("when open: %v, want %v", got, op.well)
				}
				// A transfer that is stuck keeps the close at its drain.
				held, _ := transfer(n, nil, stuckContext)
				if op.kind == devsw.IFCHR {
					s.setHold()
				}
				closing := start(func() error { return n.Close(rw) })
				closing.mustSleep(t, "Close")
				refused("while closing")
				if op.kind == devsw.IFCHR {
					s.releaseHold()
				} else {
					for b := range s.stuck {
						s.finish(b)
					}
					s.finish(held)
				}
				closing.mustGive(t, "Close", nil)
				refused("when closed")

				s.mustOpen(t, n)
				if op.what != "strategy" && op.what != "read" {
					if got := op.call(n); got != op.well {
						t.Errorf("when open again: %v, want %v", got, op.well)
					}
				}
				n.Revoke()
				refused("when revoked")
			})
		})
	}
}

// A node of a device that another node has open is not open.
func TestOperationsNeedTheirOwnNodeOpen(t *testing.T) {
	for _, op := range operations {
		run(t, nil, func(t *testing.T, s *setup) {
			n, other := s.fs.Node(op.kind, s.dev(op.kind)), s.fs.Node(op.kind, s.dev(op.kind))
			s.mustOpen(t, other)
			if got := op.call(n); got != op.refused {
				t.Errorf("%v %s: %v, want %v", op.kind, op.what, got, op.refused)
			}
			mustClose(t, other)
		})
	}
}

func TestBlockDevicesAreExclusive(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFBLK, s.block), s.fs.Node(devsw.IFBLK, s.block)
		busy := func(when string) {
			t.Helper()
			for _, n := range []*Node{n, other} {
				if err := n.Open(t.Context(), rw); err != devsw.EBUSY {
					t.Errorf("Open %s gives %v, want EBUSY", when, err)
				}
			}
		}
		s.setSleepOpens(true)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		busy("while it is being opened")
		s.decide(rw, devsw.EIO)
		opening.mustGive(t, "Open", devsw.EIO)
		s.check(t, "open") // an open that failed is not closed
		s.setSleepOpens(false)

		s.mustOpen(t, n)
		busy("while it is open")
		if got := s.fs.Lookup(devsw.IFBLK, s.block); got != n {
			t.Errorf("Lookup gives %p, want %p", got, n)
		}

		s.setHold()
		closing := start(func() error { return n.Close(rw) })
		busy("while it is being closed")
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var drain *DrainError
		if err := other.WaitClosed(ctx); !errors.As(err, &drain) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("WaitClosed gives %v", err)
		}
		waiting := start(func() error { return other.WaitClosed(t.Context()) })
		waiting.mustSleep(t, "WaitClosed")
		s.releaseHold()
		waiting.mustGive(t, "WaitClosed", nil)
		closing.mustGive(t, "Close", nil)
		if got := s.fs.Lookup(devsw.IFBLK, s.block); got != nil {
			t.Errorf("Lookup gives %p after the close", got)
		}
		s.mustOpen(t, other)
		mustClose(t, other)
	})
}

func TestCharacterDevicesAreShared(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		one, two := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, one)
		s.mustOpen(t, one)
		s.mustOpen(t, two)
		mustClose(t, one)
		mustClose(t, two)
		s.check(t, "open", "open", "open")
		mustClose(t, one)
		s.check(t, "open", "open", "open", "cancel", "close")
	})
}

func TestCharacterOpenWaitsForAClose(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		revoked := s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, n)
		s.setHold()
		closing := start(func() error { return n.Close(rw) })

		ctx, cancel := context.WithCancel(t.Context())
		same := start(func() error { return n.Open(t.Context(), rw) })
		waiting := start(func() error { return other.Open(t.Context(), rw) })
		interrupted := start(func() error { return other.Open(ctx, rw) })
		taken := start(func() error { return revoked.Open(t.Context(), rw) })
		for _, c := range []*call{same, waiting, interrupted, taken} {
			c.mustSleep(t, "Open during a close")
		}
		s.check(t, "open", "cancel", "close")
		cancel()
		interrupted.mustGive(t, "the interrupted Open", context.Canceled)
		revoking := start(func() error { revoked.Revoke(); return nil })
		revoking.mustSleep(t, "Revoke during a close")

		s.releaseHold()
		closing.mustGive(t, "Close", nil)
		revoking.mustGive(t, "Revoke", nil)
		waiting.mustGive(t, "Open after the close", nil)
		same.mustGive(t, "Open after the close", nil)
		taken.mustGive(t, "Open of a node that was revoked while it waited", devsw.EBADF)
		s.check(t, "open", "cancel", "close", "open", "open")
		mustClose(t, n)
		mustClose(t, other)
	})
}

func TestRevokeWakesASleepingOpen(t *testing.T) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		for _, noCancel := range []bool{false, true} {
			run(t, &unit{flag: devsw.DMPSafe, sleepOpens: true, noCancel: noCancel}, func(t *testing.T, s *setup) {
				n := s.fs.Node(kind, s.dev(kind))
				opening := start(func() error { return n.Open(t.Context(), rw) })
				opening.mustSleep(t, "Open")
				n.Revoke()
				opening.mustGive(t, "Open", devsw.EBADF)
				opening.mustGive(t, "Open, of what d_open has answered", devsw.ECANCELED)
				if noCancel {
					s.check(t, "open", "close")
				} else {
					s.check(t, "open", "cancel", "close")
				}
				if err := n.Open(t.Context(), rw); err != devsw.ENXIO {
					t.Errorf("Open of a revoked node gives %v", err)
				}
				mustClose(t, n) // nil: the revoke has closed

				s.setSleepOpens(false)
				again := s.fs.Node(kind, s.dev(kind))
				s.mustOpen(t, again)
				mustClose(t, again)
			})
		}
	}
}

// d_open that goes well although the node was revoked meanwhile.
func TestRevokedOpenThatGoesWellIsEBADF(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, other)
		s.setSleepOpens(true)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		n.Revoke() // the device stays open: nothing is cancelled
		opening.mustSleep(t, "Open")
		s.decide(rw, nil)
		opening.mustGive(t, "Open", devsw.EBADF)
		s.check(t, "open", "open")
		mustClose(t, other)
		s.check(t, "open", "open", "cancel", "close")
	})
}

// A d_open that belongs to a revoked node is still waited for.
func TestLastCloseDrainsTheOpenOfARevokedNode(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, other)
		s.setSleepOpens(true)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		n.Revoke()
		mustClose(t, other)
		opening.mustGive(t, "Open", devsw.EBADF)
		s.check(t, "open", "open", "cancel", "close")
	})
}

func TestFailedOpenAfterAConcurrentCloseCloses(t *testing.T) {
	for _, sameNode := range []bool{false, true} {
		run(t, nil, func(t *testing.T, s *setup) {
			n := s.fs.Node(devsw.IFCHR, s.char)
			second := n
			if !sameNode {
				second = s.fs.Node(devsw.IFCHR, s.char)
			}
			s.mustOpen(t, n)
			s.setSleepOpens(true)
			opening := start(func() error { return second.Open(t.Context(), rw) })
			mustClose(t, n)
			s.check(t, "open", "open") // the open in progress has a reference
			s.decide(rw, devsw.EIO)
			opening.mustGive(t, "Open", devsw.EIO)
			s.check(t, "open", "open", "cancel", "close")
		})
	}
}

// Two opens sleep, one of them is revoked, and the other fails: nobody has the
// device open, and the one that still sleeps is not forgotten.
func TestFailedLastOpenWakesTheOpenOfARevokedNode(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.setSleepOpens(true)
		revoked := start(func() error { return n.Open(t.Context(), 1) })
		failing := start(func() error { return other.Open(t.Context(), 2) })
		n.Revoke()
		revoked.mustSleep(t, "Open")
		s.decide(2, devsw.EIO)
		failing.mustGive(t, "the Open that fails", devsw.EIO)
		revoked.mustGive(t, "the Open that was revoked", devsw.EBADF)
		s.check(t, "open", "open", "cancel", "close")
	})
}

func TestFailedOpenWhileOthersHaveTheDeviceOpenDoesNotClose(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, other)
		s.lock(func() { s.openErr = devsw.EIO })
		if err := n.Open(t.Context(), rw); err != devsw.EIO {
			t.Errorf("Open gives %v", err)
		}
		if err := n.Close(rw); err != devsw.EBADF {
			t.Errorf("Close after a failed Open gives %v", err)
		}
		s.check(t, "open", "open")
		mustClose(t, other)
		s.check(t, "open", "open", "cancel", "close")
	})
}

func TestCloseOfANodeThatIsNotOpen(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		if err := n.Close(rw); err != devsw.EBADF {
			t.Errorf("Close before Open gives %v", err)
		}
		s.mustOpen(t, other)
		if err := n.Close(rw); err != devsw.EBADF {
			t.Errorf("Close of another node gives %v", err)
		}
		// An open in progress is not there to be closed.
		s.setSleepOpens(true)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		if err := n.Close(rw); err != devsw.EBADF {
			t.Errorf("Close during the node's only Open gives %v", err)
		}
		s.decide(rw, nil)
		opening.mustGive(t, "Open", nil)
		mustClose(t, n)
		if err := n.Close(rw); err != devsw.EBADF {
			t.Errorf("a second Close gives %v", err)
		}
		mustClose(t, other)
	})
}

func TestOpenOfAnUnknownDevice(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
			n := s.fs.Node(kind, devsw.Makedev(17, 0))
			if err := n.Open(t.Context(), rw); err != devsw.ENXIO {
				t.Errorf("%v: Open gives %v", kind, err)
			}
			if n.Dev() != devsw.Makedev(17, 0) || n.Mode() != kind {
				t.Errorf("the node is of %v %v", n.Mode(), n.Dev())
			}
			n.Revoke()
		}
	})
}

func TestRevokeDropsAllOpensOfTheNodeAndClosesOnce(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFCHR, s.char)
		for range 3 {
			s.mustOpen(t, n)
		}
		reading := start(func() error { return n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
		reading.mustSleep(t, "read")
		n.Revoke()
		reading.mustGive(t, "read", devsw.ECANCELED)
		n.Revoke()
		s.check(t, "open", "open", "open", "cancel", "close")
		want := []string{"open", "opened", "open", "opened", "open", "opened",
			"revoke", "cancel", "canceled", "drain", "drained", "close", "closed", "revoked", "revoke", "revoked"}
		if got := s.trace.take(); !slices.Equal(got, want) {
			t.Errorf("trace %q, want %q", got, want)
		}
	})
}

func TestRevokeOfOneNodeLeavesTheOther(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, n)
		s.mustOpen(t, other)
		read := func(n *Node) *call {
			return start(func() error { return n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
		}
		gone, kept := read(n), read(other)
		n.Revoke()
		gone.mustSleep(t, "the read of the revoked node") // only a last close cancels
		read(n).mustGive(t, "a new read of the revoked node", devsw.ENXIO)
		s.check(t, "open", "open")
		s.feed(1)
		s.feed(1)
		gone.mustGive(t, "the read of the revoked node", nil)
		kept.mustGive(t, "the other read", nil)

		// What a node without opens has in progress is part of the last close.
		third := s.fs.Node(devsw.IFCHR, s.char)
		s.mustOpen(t, third)
		late := read(third)
		mustClose(t, third)
		late.mustSleep(t, "read")
		mustClose(t, other)
		late.mustGive(t, "read", devsw.ECANCELED)
		s.check(t, "open", "open", "open", "cancel", "close")
	})
}

func TestRevokeDeviceTakesItFromAllNodesAndCancelsOnce(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		var nodes []*Node
		var reads []*call
		for range 4 {
			n := s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			nodes = append(nodes, n)
			reads = append(reads, start(func() error { return n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) }))
		}
		s.setSleepOpens(true)
		sleeping := s.fs.Node(devsw.IFCHR, s.char)
		opening := start(func() error { return sleeping.Open(t.Context(), rw) })
		s.fs.RevokeDevice(devsw.IFCHR, s.char)
		for _, r := range reads {
			r.mustGive(t, "read", devsw.ECANCELED)
		}
		opening.mustGive(t, "Open", devsw.EBADF)
		for _, n := range nodes {
			if err := n.Ioctl(devsw.DIOCGROW, nil, rw); err != devsw.ENXIO {
				t.Errorf("ioctl gives %v", err)
			}
		}
		s.check(t, "open", "open", "open", "open", "open", "cancel", "close")
		s.fs.RevokeDevice(devsw.IFCHR, s.char) // nothing left to do
	})
}

func TestRevokeWaitsForTheCloseInProgress(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		s.setHold()
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close")
		var waiting []*call
		for _, f := range []func(){
			n.Revoke, n.Revoke,
			func() { s.fs.RevokeDevice(devsw.IFBLK, s.block) },
			func() { s.fs.Vdevgone(devsw.IFBLK, s.block.Major(), 0, 0) },
		} {
			c := start(func() error { f(); return nil })
			c.mustSleep(t, "Revoke during a close")
			waiting = append(waiting, c)
		}
		s.releaseHold()
		for _, c := range append(waiting, closing) {
			c.mustGive(t, "Revoke or Close", nil)
		}
		s.check(t, "open", "cancel", "close")
	})
}

func TestVdevgoneRevokesTheUnitsOfTheDriver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := devsw.NewTable()
		bdev, cdev := &devsw.Bdevsw{Flag: devsw.DMPSafe}, &devsw.Cdevsw{Flag: devsw.DMPSafe}
		bm, cm, err := table.Attach("many", bdev, 40, cdev, 41)
		if err != nil {
			t.Fatal(err)
		}
		other := &devsw.Cdevsw{}
		if _, _, err := table.Attach("other", nil, -1, other, 42); err != nil {
			t.Fatal(err)
		}
		fs := New(table)
		open := func(kind devsw.Mode, major, minor int) *Node {
			n := fs.Node(kind, devsw.Makedev(uint32(major), uint32(minor)))
			if err := n.Open(t.Context(), rw); err != nil {
				t.Fatal(err)
			}
			return n
		}
		gone := []*Node{open(devsw.IFBLK, bm, 2), open(devsw.IFBLK, bm, 3), open(devsw.IFBLK, bm, 4)}
		kept := []*Node{open(devsw.IFBLK, bm, 1), open(devsw.IFBLK, bm, 5), open(devsw.IFCHR, cm, 3), open(devsw.IFCHR, 42, 3)}
		if err := table.Detach(bdev, cdev); err != devsw.EBUSY {
			t.Errorf("Detach with open devices gives %v", err)
		}
		fs.Vdevgone(devsw.IFBLK, uint32(bm), 2, 4)
		for _, n := range gone {
			if fs.Lookup(n.Mode(), n.Dev()) != nil {
				t.Errorf("%v is still open", n.Dev())
			}
		}
		for _, n := range kept {
			if fs.Lookup(n.Mode(), n.Dev()) != n {
				t.Errorf("%v %v is not open any more", n.Mode(), n.Dev())
			}
		}
		fs.Vdevgone(devsw.IFBLK, uint32(bm), 0, ^uint32(0))
		fs.Vdevgone(devsw.IFCHR, uint32(cm), 0, ^uint32(0))
		if err := table.Detach(bdev, cdev); err != nil {
			t.Errorf("Detach gives %v", err)
		}
		kept[3].Revoke()
	})
}

func TestTheSectionOfATransferEndsWithBiodone(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		b, _ := transfer(n, nil, stuckContext)
		order := []string{}
		iodone := b.Iodone
		b.Iodone = func(b *devsw.Buf) {
			if s.fs.InProgress(devsw.IFBLK, s.block) == nil {
				t.Error("the section has ended before Iodone")
			}
			iodone(b)
			order = append(order, "iodone")
		}
		closing := start(func() error {
			err := n.Close(rw)
			order = append(order, "closed")
			return err
		})
		closing.mustSleep(t, "Close")
		s.finish(b)
		closing.mustGive(t, "Close", nil)
		if want := []string{"iodone", "closed"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
	})
}

// A transfer that is cancelled by itself leaves the device open and the others
// alone.
func TestCancelBufEndsOneTransfer(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		one, end := transfer(n, nil, nil)
		_, other := transfer(n, nil, nil)
		if err := n.CancelBuf(one); err != nil {
			t.Errorf("CancelBuf gives %v", err)
		}
		end.mustGive(t, "the transfer", devsw.ECANCELED)
		if other.done {
			t.Error("the other transfer has ended, too")
		}
		if err := n.CancelBuf(one); err != nil {
			t.Errorf("CancelBuf of what has ended gives %v", err)
		}
		s.check(t, "open", "strategy", "strategy")
		mustClose(t, n)
		other.mustGive(t, "the other transfer", devsw.ECANCELED)
	})
}

// A driver may hand the Buf to another goroutine that ends it before d_strategy
// has returned; d_close is alone all the same.
func TestTheSectionOfATransferLastsAsLongAsDstrategy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := devsw.NewTable()
		release := make(chan struct{})
		inside := false
		bdev := &devsw.Bdevsw{
			Flag:   devsw.DMPSafe,
			Cancel: func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil },
			Close: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
				if inside {
					t.Error("d_close runs while d_strategy does")
				}
				return nil
			},
			Strategy: func(b *devsw.Buf) {
				inside = true
				go b.Biodone()
				<-release
				inside = false
			},
		}
		bm, _, err := table.Attach("x", bdev, -1, &devsw.Cdevsw{}, -1)
		if err != nil {
			t.Fatal(err)
		}
		n := New(table).Node(devsw.IFBLK, devsw.Makedev(uint32(bm), 0))
		if err := n.Open(t.Context(), rw); err != nil {
			t.Fatal(err)
		}
		strategy := start(func() error { n.Strategy(nil, &devsw.Buf{}); return nil })
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close")
		close(release)
		strategy.mustGive(t, "Strategy", nil)
		closing.mustGive(t, "Close", nil)
	})
}

func TestACloseWaitsForABatchAndRefusesTheRestOfIt(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		c := n.NewCounter()
		s.mustOpen(t, n)
		c.Begin()
		_, end := transfer(n, c, nil)
		stuck, stuckEnd := transfer(n, c, stuckContext)

		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close with a batch")
		end.mustGive(t, "the transfer", devsw.ECANCELED)
		_, late := transfer(n, c, nil)
		late.mustGive(t, "a transfer of the batch that comes after the close has begun", devsw.ENXIO)
		s.finish(stuck)
		stuckEnd.mustGive(t, "the transfer that cannot be cancelled", nil)
		closing.mustSleep(t, "Close before the end of the batch")
		c.End()
		closing.mustGive(t, "Close", nil)
		s.check(t, "open", "strategy", "strategy", "cancel", "close")
		if count := c.InProgress(); count != 0 {
			t.Errorf("%d sections are left", count)
		}
	})
}

// However much of its reserve a batch has used, its calls of d_strategy are
// waited for.
func TestACloseWaitsForDStrategyInABatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := devsw.NewTable()
		release := make(chan struct{})
		inside, ended := false, 0
		bdev := &devsw.Bdevsw{Flag: devsw.DMPSafe,
			Cancel: func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil },
			Close: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
				if inside {
					t.Error("d_close runs while d_strategy does")
				}
				return nil
			},
			Strategy: func(b *devsw.Buf) {
				// Not by the issuer: nothing comes back to the batch's reserve.
				done := make(chan struct{})
				go func() { b.Biodone(); close(done) }()
				<-done
				if ended++; ended == 2*batchReserve {
					inside = true
					<-release
					inside = false
				}
			},
		}
		bm, _, err := table.Attach("x", bdev, -1, &devsw.Cdevsw{}, -1)
		if err != nil {
			t.Fatal(err)
		}
		n := New(table).Node(devsw.IFBLK, devsw.Makedev(uint32(bm), 0))
		if err := n.Open(t.Context(), rw); err != nil {
			t.Fatal(err)
		}
		c := n.NewCounter()
		batch := start(func() error {
			c.Begin()
			defer c.End()
			for range 2 * batchReserve {
				n.Strategy(c, &devsw.Buf{})
			}
			return nil
		})
		batch.mustSleep(t, "the batch")
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close")
		close(release)
		batch.mustGive(t, "the batch", nil)
		closing.mustGive(t, "Close", nil)
	})
}

func TestDrainErrorNamesWhatIsInProgress(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		c1, c2 := n.NewCounter(), n.NewCounter()
		var bufs []*devsw.Buf
		for _, c := range []*Counter{c1, c1, c1, c2} {
			b, _ := transfer(n, c, stuckContext)
			bufs = append(bufs, b)
		}
		ioctl := start(func() error { return n.Ioctl(devsw.CmdDriver, nil, rw) })
		time.Sleep(3 * time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		err := n.Drain(ctx)
		var drain *DrainError
		if !errors.As(err, &drain) || !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("Drain gives %v", err)
		}
		if drain.Mode != devsw.IFBLK || drain.Dev != s.block || time.Since(drain.Began) != 2*time.Second {
			t.Errorf("the error is about %v %v since %v", drain.Mode, drain.Dev, drain.Began)
		}
		if len(drain.Waiting) != 3 {
			t.Fatalf("waiting for %v", drain.Waiting)
		}
		if o := drain.Waiting[0]; o.What != "ioctl CmdDriver+0" || o.Count != 1 || time.Since(o.Since) != 5*time.Second {
			t.Errorf("first %v", o)
		}
		if o, p := drain.Waiting[1], drain.Waiting[2]; o.What != "strategy" || p.What != "strategy" ||
			o.Count != 3 || p.Count != 1 || !o.Since.IsZero() {
			t.Errorf("then %v, %v", o, p)
		}
		if c1.InProgress() != 3 || c2.InProgress() != 1 {
			t.Errorf("counters %d, %d", c1.InProgress(), c2.InProgress())
		}
		msg := err.Error()
		for _, want := range []string{s.block.String(), "deadline exceeded", "ioctl CmdDriver+0 (5s)", "strategy ×3 (more than 2s)", "strategy (more than 2s)"} {
			if !strings.Contains(msg, want) {
				t.Errorf("%q does not say %q", msg, want)
			}
		}

		draining := start(func() error { return n.Drain(t.Context()) })
		for _, b := range bufs {
			draining.mustSleep(t, "Drain")
			s.finish(b)
		}
		draining.mustSleep(t, "Drain")
		closing := start(func() error { return n.Close(rw) })
		closing.mustGive(t, "Close", nil)
		draining.mustGive(t, "Drain", nil)
		ioctl.mustGive(t, "ioctl", devsw.ECANCELED)
		if err := n.Drain(t.Context()); err != nil {
			t.Errorf("Drain of a closed device gives %v", err)
		}
		if err := n.WaitClosed(t.Context()); err != nil {
			t.Errorf("WaitClosed of a closed device gives %v", err)
		}
	})
}

// Drain covers an open that sleeps, and opens are in the report.
func TestDrainWaitsForAnOpenThatSleeps(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.setSleepOpens(true)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		ops := s.fs.InProgress(devsw.IFBLK, s.block)
		if len(ops) != 1 || ops[0].What != "open" {
			t.Errorf("in progress: %v", ops)
		}
		draining := start(func() error { return n.Drain(t.Context()) })
		draining.mustSleep(t, "Drain")
		s.decide(rw, nil)
		opening.mustGive(t, "Open", nil)
		draining.mustGive(t, "Drain", nil)
		mustClose(t, n)
	})
}

func TestCountersAreOfTheirNode(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		n, other := s.fs.Node(devsw.IFBLK, s.block), s.fs.Node(devsw.IFBLK, s.block)
		c := n.NewCounter()
		if b, end := transfer(n, c, nil); end.err != devsw.ENXIO || !b.InContext {
			t.Errorf("a transfer before open gives %v, in context %v", end.err, b.InContext)
		}
		s.mustOpen(t, n)
		later := n.NewCounter()
		for _, c := range []*Counter{c, later, nil} {
			b, end := transfer(n, c, nil)
			if end.done {
				t.Errorf("the transfer has ended: %v", end.err)
			}
			s.finish(b)
			end.mustGive(t, "transfer", nil)
		}
		func() {
			defer func() {
				if recover() == nil {
					t.Error("Strategy takes another node's Counter")
				}
			}()
			n.Strategy(other.NewCounter(), &devsw.Buf{})
		}()

		// A Counter that is given up is waited for as long as it counts.
		b, end := transfer(n, c, stuckContext)
		c.Release()
		if _, end := transfer(n, c, nil); end.err != devsw.ENXIO {
			t.Errorf("a transfer on a released Counter gives %v", end.err)
		}
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close")
		s.finish(b)
		end.mustGive(t, "transfer", nil)
		closing.mustGive(t, "Close", nil)
		s.mustOpen(t, n)
		if _, end := transfer(n, c, nil); end.err != devsw.ENXIO {
			t.Errorf("a transfer on a released Counter gives %v after the next open", end.err)
		}
		later.Release()
		if len(n.counters) != 1 {
			t.Errorf("%d counters are left, want the shared one", len(n.counters))
		}
		n.Revoke()
		if _, end := transfer(n, n.NewCounter(), nil); end.err != devsw.ENXIO {
			t.Errorf("a transfer on a revoked node's new Counter gives %v", end.err)
		}
	})
}

func TestCountersHaveACacheLineOfTheirOwn(t *testing.T) {
	if size := reflect.TypeFor[Counter]().Size(); size != 128 {
		t.Errorf("a Counter has %d bytes, want 128", size)
	}
	fs := New(devsw.NewTable())
	n := fs.Node(devsw.IFBLK, 0)
	for range 100 {
		if p := reflect.ValueOf(n.NewCounter()).Pointer(); p%64 != 0 {
			t.Fatalf("a Counter is at %#x", p)
		}
	}
}

func TestClaimedDevicesAreBusy(t *testing.T) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		run(t, nil, func(t *testing.T, s *setup) {
			n, other := s.fs.Node(kind, s.dev(kind)), s.fs.Node(kind, s.dev(kind))
			if err := n.Claim(); err != devsw.EBADF {
				t.Errorf("Claim of a node that is not open gives %v", err)
			}
			s.mustOpen(t, n)
			if kind == devsw.IFCHR {
				s.mustOpen(t, other)
			}
			if err := n.Claim(); err != nil {
				t.Fatal(err)
			}
			if err := n.Claim(); err != nil {
				t.Errorf("a second Claim gives %v", err)
			}
			if kind == devsw.IFCHR {
				if err := other.Claim(); err != devsw.EBUSY {
					t.Errorf("Claim of a claimed device gives %v", err)
				}
				mustClose(t, other)
			}
			other.Unclaim() // not its claim
			if err := other.Open(t.Context(), rw); err != devsw.EBUSY {
				t.Errorf("Open of a claimed device gives %v", err)
			}
			mustClose(t, n)
			if err := other.Open(t.Context(), rw); err != devsw.EBUSY {
				t.Errorf("Open of a claimed device that is closed gives %v", err)
			}
			s.mustOpen(t, n) // the claimer may
			n.Revoke()
			if err := other.Open(t.Context(), rw); err != devsw.EBUSY {
				t.Errorf("Open of a claimed device that was revoked gives %v", err)
			}
			n.Unclaim()
			n.Unclaim()
			s.mustOpen(t, other)
			mustClose(t, other)
		})
	}
}

// Without DMPSafe: an operation that sleeps lets the one lock go, a transfer is
// started under it, and the close comes through.
func TestDriversWithoutDMPSafe(t *testing.T) {
	run(t, &unit{sleepOpens: true}, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFCHR, s.char)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		opening.mustSleep(t, "Open")
		s.decide(rw, nil)
		opening.mustGive(t, "Open", nil)
		reading := start(func() error { return n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
		reading.mustSleep(t, "read")
		mustClose(t, n)
		reading.mustGive(t, "read", devsw.ECANCELED)

		s.setSleepOpens(false)
		disk := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, disk)
		_, end := transfer(disk, nil, nil)
		mustClose(t, disk)
		end.mustGive(t, "transfer", devsw.ECANCELED)
	})
}

func TestReadAndWriteOfABlockDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := devsw.NewTable()
		disk := make([]byte, 4096)
		bdev := &devsw.Bdevsw{Flag: devsw.DMPSafe, Strategy: func(b *devsw.Buf) {
			go func() {
				at := b.Blkno * devsw.DEVBSIZE
				n := min(b.Bcount, int64(len(disk))-at)
				if n <= 0 {
					b.Fail(devsw.EINVAL)
					return
				}
				b.Error = b.MoveAt(disk[at:at+n], 0)
				b.Resid = b.Bcount - n
				b.Biodone()
			}()
		}}
		bm, _, err := table.Attach("x", bdev, -1, &devsw.Cdevsw{}, -1)
		if err != nil {
			t.Fatal(err)
		}
		n := New(table).Node(devsw.IFBLK, devsw.Makedev(uint32(bm), 0))
		if err := n.Open(t.Context(), rw); err != nil {
			t.Fatal(err)
		}
		text := []byte(strings.Repeat("0123456789abcdef", 64))
		u := devsw.NewUio(devsw.UIOWrite, text[:100], text[100:])
		u.Offset = 512
		if err := n.Write(u, 0); err != nil || u.Resid != 0 || u.Offset != 1536 || len(u.Iov) != 0 {
			t.Errorf("Write: %v, %+v", err, u)
		}
		back := make([]byte, 1024)
		u = devsw.NewUio(devsw.UIORead, back)
		u.Offset = 512
		if err := n.Read(u, 0); err != nil || string(back) != string(text) {
			t.Errorf("Read: %v", err)
		}
		u = devsw.NewUio(devsw.UIORead, back) // over the end: cut short
		u.Offset = 3584
		if err := n.Read(u, 0); err != nil || u.Resid != 512 || u.Offset != 4096 {
			t.Errorf("Read over the end: %v, Resid %d", err, u.Resid)
		}
		u = devsw.NewUio(devsw.UIORead, back)
		u.Offset = 1 << 20
		if err := n.Read(u, 0); err != devsw.EINVAL || u.Resid != 1024 {
			t.Errorf("Read behind the end: %v, Resid %d", err, u.Resid)
		}
		for _, bad := range []struct {
			off int64
			n   int
		}{{1, 512}, {-512, 512}, {0, 100}} {
			u := devsw.NewUio(devsw.UIORead, make([]byte, bad.n))
			u.Offset = bad.off
			if err := n.Read(u, 0); err != devsw.EINVAL {
				t.Errorf("Read of %d bytes at %d gives %v", bad.n, bad.off, err)
			}
		}
		mustClose(t, n)
	})
}

// To read nothing is always possible, as on NetBSD; to write nothing is for the driver of a
// character device to answer.
func TestNoBytesAreReadOrWritten(t *testing.T) {
	asked := 0
	table := devsw.NewTable()
	write := func(devsw.Dev, *devsw.Uio, devsw.Flag) error { asked++; return devsw.EROFS }
	bm, cm, err := table.Attach("x", &devsw.Bdevsw{}, -1, &devsw.Cdevsw{Write: write}, -1)
	if err != nil {
		t.Fatal(err)
	}
	fs := New(table)
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		major := map[devsw.Mode]int{devsw.IFBLK: bm, devsw.IFCHR: cm}[kind]
		n := fs.Node(kind, devsw.Makedev(uint32(major), 0))
		nothing := func(when string, wantWrite error) {
			t.Helper()
			for _, off := range []int64{0, 1, -512} {
				u := devsw.NewUio(devsw.UIORead)
				u.Offset = off
				if err := n.Read(u, 0); err != nil {
					t.Errorf("%v, %s: a read of no bytes at %d gives %v", kind, when, off, err)
				}
				u.Rw = devsw.UIOWrite
				if err := n.Write(u, 0); err != wantWrite {
					t.Errorf("%v, %s: a write of no bytes at %d gives %v, want %v", kind, when, off, err, wantWrite)
				}
			}
		}
		whenOpen, whenNot := error(nil), error(nil)
		if kind == devsw.IFCHR {
			whenOpen, whenNot = devsw.EROFS, devsw.ENXIO
		}
		nothing("not open", whenNot)
		if err := n.Open(t.Context(), rw); err != nil {
			t.Fatal(err)
		}
		nothing("open", whenOpen)
		n.Revoke()
		nothing("revoked", whenNot)
	}
	if asked != 3 {
		t.Errorf("d_write was called %d times", asked)
	}
}

// A node keeps d_strategy from its open; another driver under the same number
// is found by the next one.
func TestStrategyIsOfTheDriverThatIsOpen(t *testing.T) {
	table := devsw.NewTable()
	var got string
	fs := New(table)
	n := fs.Node(devsw.IFBLK, devsw.Makedev(7, 0))
	for _, drv := range []struct {
		name string
		flag devsw.DFlag
		none bool
	}{{"one", devsw.DMPSafe, false}, {"two", 0, false}, {"three", devsw.DMPSafe, true}, {"four", devsw.DMPSafe, false}} {
		bdev := &devsw.Bdevsw{Flag: drv.flag, Strategy: func(b *devsw.Buf) {
			got = drv.name
			if safe := table.TryLock(); safe {
				table.Unlock()
				if drv.flag&devsw.DMPSafe == 0 {
					t.Error("d_strategy of a driver without DMPSafe runs without the one lock")
				}
			} else if drv.flag&devsw.DMPSafe != 0 {
				t.Error("d_strategy of a driver with DMPSafe runs under the one lock")
			}
			b.Biodone()
		}}
		if drv.none {
			bdev.Strategy = nil
		}
		cdev := &devsw.Cdevsw{}
		if _, _, err := table.Attach("x", bdev, 7, cdev, 7); err != nil {
			t.Fatal(err)
		}
		if err := n.Open(t.Context(), rw); err != nil {
			t.Fatal(err)
		}
		b := &devsw.Buf{}
		n.Strategy(nil, b)
		if drv.none {
			if b.Error != devsw.ENODEV {
				t.Errorf("without d_strategy: %v", b.Error)
			}
		} else if got != drv.name || b.Error != 0 || b.Dev != n.Dev() {
			t.Errorf("driver %q was called for %v, want %q; %v", got, b.Dev, drv.name, b.Error)
		}
		mustClose(t, n)
		if err := table.Detach(bdev, cdev); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEventsReadWell(t *testing.T) {
	for k := EventOpen; k <= EventRevoked; k++ {
		if s := k.String(); s == "" || strings.HasPrefix(s, "kind") {
			t.Errorf("kind %d has the name %q", uint8(k), s)
		}
	}
	if s := Kind(0).String(); s != "kind 0" {
		t.Errorf("kind 0 has the name %q", s)
	}
	e := Event{Mode: devsw.IFBLK, Dev: devsw.Makedev(14, 1), Kind: EventCanceled, Err: devsw.ENODEV}
	if s, want := e.String(), "block 14,1 canceled: "+devsw.ENODEV.Error(); s != want {
		t.Errorf("the event reads %q, want %q", s, want)
	}
}
