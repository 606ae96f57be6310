//go:build vdevsteps

package specfs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"vdev/devsw"
)

// A scheduler runs goroutines one at a time, from step to step, in an order that
// is chosen and not hoped for. It tries every order: each run follows a prefix
// of choices and takes the first choice from there on, and the next run changes
// the last choice that can be changed.
type scheduler struct {
	mu     sync.Mutex
	ids    map[string]int // goroutine → thread
	parked map[int]*stop
	ended  int
}

type stop struct {
	point string
	ahead chan struct{}
}

// goid names the running goroutine.
func goid() string {
	buf := make([]byte, 64)
	buf = buf[:runtime.Stack(buf, false)]
	return string(bytes.Fields(buf)[1])
}

// park holds a thread until it is chosen. Other goroutines pass.
func (s *scheduler) park(point string) {
	s.mu.Lock()
	id, ok := s.ids[goid()]
	if !ok {
		s.mu.Unlock()
		return
	}
	p := &stop{point, make(chan struct{})}
	s.parked[id] = p
	s.mu.Unlock()
	<-p.ahead
}

// choice is one of a run: took of these.
type choice struct{ took, of int }

// run runs the threads; first are the choices to begin with. It gives all
// choices and what was done, and whether a thread has not ended.
func (s *scheduler) run(threads []func(), first []choice) (choices []choice, story []string, stuck bool) {
	for id, thread := range threads {
		go func() {
			s.mu.Lock()
			s.ids[goid()] = id
			s.mu.Unlock()
			s.park("start")
			thread()
			s.mu.Lock()
			s.ended++
			s.mu.Unlock()
		}()
	}
	for {
		synctest.Wait()
		s.mu.Lock()
		ready := slices.Sorted(maps.Keys(s.parked))
		if len(ready) == 0 {
			stuck = s.ended != len(threads)
			s.mu.Unlock()
			return choices, story, stuck
		}
		c := choice{0, len(ready)}
		if len(choices) < len(first) {
			c.took = first[len(choices)].took
		}
		choices = append(choices, c)
		id := ready[c.took]
		p := s.parked[id]
		delete(s.parked, id)
		story = append(story, fmt.Sprintf("%d: %s", id, p.point))
		s.mu.Unlock()
		close(p.ahead)
	}
}

// scenario is a small case: threads on one unit, and what must hold when they
// have ended.
type scenario struct {
	name  string
	make  func() *unit
	setup func(t *testing.T, s *setup)
	// threads may keep what they find; check is called when all have ended.
	threads func(t *testing.T, s *setup) (threads []func(), check func() error)
}

// limit is how many orders a scenario may have: a scenario that grows beyond it
// is not enumerated any more, and must be made smaller.
const limit = 300_000

func TestEveryOrder(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.name, func(t *testing.T) {
			runs := 0
			for prefix := []choice{}; prefix != nil; runs++ {
				if runs == limit {
					t.Fatalf("more than %d orders", limit)
				}
				var choices []choice
				var story []string
				var err error
				synctest.Test(t, func(t *testing.T) {
					choices, story, err = runScenario(t, sc, prefix)
				})
				if err != nil {
					t.Fatalf("order %d: %v\n%s", runs, err, strings.Join(story, "\n"))
				}
				prefix = next(choices)
			}
			t.Logf("%d orders", runs)
		})
	}
}

// next gives the prefix of the next run, nil after the last.
func next(choices []choice) []choice {
	for i := len(choices) - 1; i >= 0; i-- {
		if c := choices[i]; c.took+1 < c.of {
			return append(slices.Clone(choices[:i]), choice{c.took + 1, c.of})
		}
	}
	return nil
}

func runScenario(t *testing.T, sc scenario, prefix []choice) ([]choice, []string, error) {
	u := sc.make()
	s := &setup{unit: u, table: devsw.NewTable()}
	s.block, s.char = u.attach(t, s.table)
	s.fs = New(s.table)
	if sc.setup != nil {
		sc.setup(t, s)
	}
	threads, check := sc.threads(t, s)
	sched := &scheduler{ids: make(map[string]int), parked: make(map[int]*stop)}
	stepHook, devsw.StepHook = sched.park, sched.park
	choices, story, stuck := sched.run(threads, prefix)
	stepHook, devsw.StepHook = nil, nil
	if stuck {
		// The bubble cannot end: say why before it says that it cannot.
		t.Logf("a thread never ends:\n%s\nin progress: %v", strings.Join(story, "\n"), s.fs.InProgress(devsw.IFCHR, s.char))
		return choices, story, errors.New("a thread never ends")
	}
	err := check()
	if len(u.wrong) > 0 {
		err = errors.Join(err, fmt.Errorf("promises broken: %v", u.wrong))
	}
	if u.cancels != u.closes && !u.noCancel {
		err = errors.Join(err, fmt.Errorf("%d d_cancels, %d d_closes", u.cancels, u.closes))
	}
	if len(s.fs.devs) != 0 {
		err = errors.Join(err, errors.New("the device is still open"))
	}
	return choices, story, err
}

// oneOf says whether err is one of these.
func oneOf(what string, err error, want ...error) error {
	for _, w := range want {
		if errors.Is(err, w) {
			return nil
		}
	}
	return fmt.Errorf("%s gives %v, want one of %v", what, err, want)
}

func safe() *unit     { return &unit{flag: devsw.DMPSafe} }
func sleepy() *unit   { return &unit{flag: devsw.DMPSafe, sleepOpens: true} }
func noCancel() *unit { return &unit{flag: devsw.DMPSafe, noCancel: true} }

var scenarios = []scenario{
	{
		name: "close against strategy",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			var err error
			ends := 0
			b := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) { ends++ }}
			return []func(){
					func() { err = n.Close(rw) },
					func() { n.Strategy(nil, b) },
				}, func() error {
					if ends != 1 {
						err = errors.Join(err, fmt.Errorf("Iodone was called %d times", ends))
					}
					return errors.Join(err, oneOf("the transfer", b.Error, devsw.ENXIO, devsw.ECANCELED))
				}
		},
	},
	{
		name: "close against strategy and its end",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			var err error
			ends := 0
			b := &devsw.Buf{Bcount: 512, Context: stuckContext, Iodone: func(*devsw.Buf) { ends++ }}
			n.Strategy(nil, b)
			c := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) { ends++ }}
			return []func(){
					func() { err = n.Close(rw) },
					func() { s.finish(b) },
					func() { n.Strategy(nil, c) },
				}, func() error {
					if ends != 2 || b.Error != 0 {
						err = errors.Join(err, fmt.Errorf("Iodone was called %d times; %v", ends, b.Error))
					}
					return errors.Join(err, oneOf("the transfer", c.Error, devsw.ENXIO, devsw.ECANCELED))
				}
		},
	},
	{
		name: "close against a batch",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			c := n.NewCounter()
			s.mustOpen(t, n)
			var err error
			ends := 0
			one := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) { ends++ }}
			two := &devsw.Buf{Bcount: 512, Iodone: func(*devsw.Buf) { ends++ }}
			return []func(){
					func() { err = n.Close(rw) },
					func() {
						c.Begin()
						n.Strategy(c, one)
						n.Strategy(c, two)
						c.End()
					},
				}, func() error {
					if ends != 2 || c.InProgress() != 0 {
						err = errors.Join(err, fmt.Errorf("Iodone was called %d times, %d sections are left", ends, c.InProgress()))
					}
					return errors.Join(err, oneOf("the first transfer", one.Error, devsw.ENXIO, devsw.ECANCELED),
						oneOf("the second transfer", two.Error, devsw.ENXIO, devsw.ECANCELED))
				}
		},
	},
	{
		name: "close without d_cancel against strategy",
		make: noCancel,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			var err error
			// The driver ends its transfers by itself: it may be that one was
			// started after d_close, which is why there is d_cancel.
			done := false
			b := &devsw.Buf{Bcount: 512, Context: stuckContext, Iodone: func(*devsw.Buf) { done = true }}
			return []func(){
					func() { err = n.Close(rw) },
					func() {
						n.Strategy(nil, b)
						if !done {
							s.finish(b)
						}
					},
				}, func() error {
					return errors.Join(err, oneOf("the transfer", errnoErr(b.Error), devsw.ENXIO, nil))
				}
		},
	},
	{
		name: "close against a read",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			var cerr, rerr error
			return []func(){
				func() { cerr = n.Close(rw) },
				func() { rerr = n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) },
			}, func() error { return errors.Join(cerr, oneOf("read", rerr, devsw.ENXIO, devsw.ECANCELED)) }
		},
	},
	{
		name: "an open that sleeps against its revoke",
		make: sleepy,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			var err error
			return []func(){
				func() { err = n.Open(t.Context(), rw) },
				n.Revoke,
			}, func() error { return oneOf("Open", err, devsw.EBADF, devsw.ENXIO) }
		},
	},
	{
		name: "an open that sleeps against the revoke of the device",
		make: sleepy,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFCHR, s.char)
			// An open that comes after the revoke sleeps for ever, unless it is
			// revoked as well.
			var err error
			return []func(){
				func() { err = n.Open(t.Context(), rw) },
				func() { s.fs.RevokeDevice(devsw.IFCHR, s.char); n.Revoke() },
			}, func() error { return oneOf("Open", err, devsw.EBADF, devsw.ENXIO) }
		},
	},
	{
		name: "two nodes, an open that sleeps, and a revoke",
		make: sleepy,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
			var err error
			s.sleepOpens = false
			s.mustOpen(t, other)
			s.sleepOpens = true
			var cerr error
			return []func(){
				func() { err = n.Open(t.Context(), rw) },
				n.Revoke,
				func() { cerr = other.Close(rw) },
			}, func() error { return errors.Join(cerr, oneOf("Open", err, devsw.EBADF, devsw.ENXIO)) }
		},
	},
	{
		name: "two nodes revoked by the device",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			s.mustOpen(t, other)
			var rerr, cerr error
			return []func(){
					func() { s.fs.RevokeDevice(devsw.IFCHR, s.char) },
					func() { rerr = n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) },
					func() { cerr = other.Close(rw) },
				}, func() error {
					if s.closes != 1 {
						cerr = errors.Join(cerr, fmt.Errorf("%d d_closes", s.closes))
					}
					return errors.Join(cerr, oneOf("read", rerr, devsw.ENXIO, devsw.ECANCELED))
				}
		},
	},
	{
		name: "revoke against close",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			var err error
			closes := 0
			return []func(){
					func() { n.Revoke(); closes = s.closes },
					func() { err = n.Close(rw) },
				}, func() error {
					if closes != 1 || s.closes != 1 {
						err = errors.Join(err, fmt.Errorf("%d d_closes after Revoke, %d at the end", closes, s.closes))
					}
					return err
				}
		},
	},
	{
		name: "an open against a close of another node",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			var err error
			var ioctl error
			return []func(){
				func() { err = n.Close(rw) },
				func() {
					err := other.Open(t.Context(), rw)
					ioctl = errors.Join(err, other.Ioctl(devsw.DIOCGROW, nil, rw), other.Close(rw))
				},
			}, func() error { return errors.Join(err, ioctl) }
		},
	},
	{
		name: "a failing open against a close of another node",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFCHR, s.char), s.fs.Node(devsw.IFCHR, s.char)
			s.mustOpen(t, n)
			s.openErr = devsw.EIO
			var cerr, oerr error
			return []func(){
					func() { cerr = n.Close(rw) },
					func() { oerr = other.Open(t.Context(), rw) },
				}, func() error {
					if s.closes != 1 {
						cerr = errors.Join(cerr, fmt.Errorf("%d d_closes", s.closes))
					}
					return errors.Join(cerr, oneOf("Open", oerr, devsw.EIO))
				}
		},
	},
	{
		name: "two opens of a block device",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFBLK, s.block), s.fs.Node(devsw.IFBLK, s.block)
			use := func(n *Node, err *error) func() {
				return func() {
					if *err = n.Open(t.Context(), rw); *err == nil {
						if cerr := n.Close(rw); cerr != nil {
							*err = cerr
						}
					}
				}
			}
			var one, two error
			return []func(){use(n, &one), use(other, &two)}, func() error {
				if one != nil && two != nil {
					return fmt.Errorf("neither gets the device: %v, %v", one, two)
				}
				return errors.Join(oneOf("Open", one, nil, devsw.EBUSY), oneOf("Open", two, nil, devsw.EBUSY))
			}
		},
	},
	{
		name: "waiting for a close, then opening",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n, other := s.fs.Node(devsw.IFBLK, s.block), s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			var err, cerr error
			return []func(){
				func() { cerr = n.Close(rw) },
				func() {
					for {
						if err = other.WaitClosed(t.Context()); err == nil {
							err = other.Open(t.Context(), rw)
						}
						if err != devsw.EBUSY {
							break
						}
						step("again")
						if s.closes == 0 && s.cancels == 0 {
							return // the close has not begun: EBUSY is right
						}
					}
					err = errors.Join(err, other.Close(rw))
				},
			}, func() error { return errors.Join(cerr, oneOf("Open", err, nil, devsw.EBUSY)) }
		},
	},
	{
		name: "detach against open",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			bdev := s.table.BdevswLookup(s.block)
			var oerr, derr error
			return []func(){
					func() { oerr = n.Open(t.Context(), rw) },
					func() { derr = s.table.Detach(bdev, s.table.CdevswLookup(s.char)) },
				}, func() error {
					attached := s.table.BdevswLookup(s.block) != nil
					switch {
					case oerr == nil && derr == devsw.EBUSY && attached:
						return n.Close(rw)
					case oerr == devsw.ENXIO && derr == nil && !attached:
						return nil
					}
					return fmt.Errorf("Open gives %v, Detach %v, attached %v", oerr, derr, attached)
				}
		},
	},
	{
		name: "detach against an open that fails",
		make: func() *unit { return &unit{flag: devsw.DMPSafe, openErr: devsw.EIO} },
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			bdev := s.table.BdevswLookup(s.block)
			var oerr, derr error
			gone := false
			return []func(){
					func() { oerr = n.Open(t.Context(), rw) },
					func() {
						derr = s.table.Detach(bdev, s.table.CdevswLookup(s.char))
						s.lock(func() { gone = s.inside == 0 })
					},
				}, func() error {
					if !gone {
						derr = errors.Join(derr, errors.New("d_open ran on after Detach"))
					}
					return errors.Join(derr, oneOf("Open", oerr, devsw.EIO, devsw.ENXIO))
				}
		},
	},
	{
		name: "an open without a driver against its revoke",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFCHR, devsw.Makedev(17, 0))
			var err error
			return []func(){
				func() { err = n.Open(t.Context(), rw) },
				n.Revoke,
			}, func() error { return oneOf("Open", err, devsw.EBADF, devsw.ENXIO) }
		},
	},
	{
		// What a d_cancel was called for gets its d_close too, and the driver is called no more
		// after Detach.
		name: "detach against an open that sleeps and the end of its device",
		make: sleepy,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			bdev, cdev := s.table.BdevswLookup(s.block), s.table.CdevswLookup(s.char)
			opening := start(func() error { return n.Open(t.Context(), rw) })
			opening.mustSleep(t, "Open")
			var derr error
			var calls []string
			return []func(){
					func() {
						derr = s.table.Detach(bdev, cdev)
						s.lock(func() { calls = slices.Clone(s.calls) })
					},
					func() { s.fs.Vdevgone(devsw.IFBLK, s.block.Major(), 0, 0) },
				}, func() error {
					opening.mustGive(t, "Open", devsw.EBADF)
					if !slices.Equal(calls, s.calls) {
						derr = errors.Join(derr, fmt.Errorf("the driver was called %q, and %q until Detach returned", s.calls, calls))
					}
					return derr
				}
		},
	},
	{
		name: "detach against a reference",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			bdev, cdev := s.table.BdevswLookup(s.block), s.table.CdevswLookup(s.char)
			var err error
			var held, late bool
			return []func(){
					func() {
						err = s.table.Detach(bdev, cdev)
						late = held
					},
					func() {
						step("acquire")
						ref := s.table.BdevswAcquire(s.block)
						held = ref != nil
						step("acquired")
						if held {
							held = false
							ref.Release()
						}
					},
				}, func() error {
					if late {
						err = errors.Join(err, errors.New("Detach has returned before the reference was given back"))
					}
					return err
				}
		},
	},
	{
		name: "drain against a transfer",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			b := &devsw.Buf{Bcount: 512, Context: stuckContext}
			n.Strategy(nil, b)
			var err error
			left := 0
			return []func(){
					func() {
						err = n.Drain(t.Context())
						left = len(s.pending)
					},
					func() { s.finish(b) },
				}, func() error {
					if left != 0 {
						err = errors.Join(err, errors.New("Drain has returned before the transfer has ended"))
					}
					return errors.Join(err, n.Close(rw))
				}
		},
	},
	{
		name: "two drains against a transfer and a refused one",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			n := s.fs.Node(devsw.IFBLK, s.block)
			s.mustOpen(t, n)
			b := &devsw.Buf{Bcount: 512, Context: stuckContext}
			n.Strategy(nil, b)
			var derr, cerr error
			return []func(){
				func() { derr = n.Drain(t.Context()) },
				func() { cerr = n.Close(rw) },
				func() { s.finish(b) },
			}, func() error { return errors.Join(derr, cerr) }
		},
	},
	{
		name: "drains of one count, and users who come and go",
		make: safe,
		threads: func(t *testing.T, s *setup) ([]func(), func() error) {
			var l devsw.Localcount
			l.Acquire()
			var in bool // the second user
			var err error
			return []func(){
				func() { _ = l.Drain(t.Context()) },
				l.Release,
				func() {
					l.Acquire()
					in = true
					step("in")
					in = false
					l.Release()
				},
				func() {
					was := in
					_ = l.Drain(t.Context())
					if was && in {
						err = errors.New("Drain has returned while one who was in when it was called is in")
					}
				},
			}, func() error { return err }
		},
	},
}

func errnoErr(e devsw.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}
