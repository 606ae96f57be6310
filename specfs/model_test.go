package specfs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"

	"vdev/devsw"

	"pgregory.net/rapid"
)

// The model of one device: sequential, and with nothing but what a user can
// see. Each action changes it at once and completely (settle), the code under
// test gets there on its goroutines; when nothing moves any more both must
// agree.
type model struct {
	kind devsw.Mode
	s    *setup

	nodes   []*mNode
	opencnt int
	opened  bool
	phase   phase
	has     bool // there is a d_cancel
	cancel  bool // and it answers nil: a close goes cancel, drain, close; else close, drain
	hold    bool // d_close sleeps

	made    devsw.Flag // opens, ever
	opens   []*mOpen   // that have not returned
	reads   []*mCall   // sleeping d_reads
	bufs    []*mBuf    // transfers in progress
	closers []*mCall   // Close calls and failed Opens of the last close in progress
	waiters []*mCall   // wait for the close in progress to end: Revoke, WaitClosed

	dOpens, dCancels, dCloses int
}

type phase int

const (
	stable   phase = iota
	draining       // d_cancel has returned, d_close not been called
	inClose        // d_close
	drainTwo       // d_close has returned
)

type mNode struct {
	n             *Node
	c             *Counter
	opencnt, done int
	gone          bool
}

func (n *mNode) admits(m *model) bool { return n.done > 0 && !n.gone && m.phase == stable }

// mCall is a call of the code under test, and what the model says of it.
type mCall struct {
	what string
	real *call
	done bool
	want error // errors.Is; nil means nil
}

func (c *mCall) end(err error) { c.done, c.want = true, err }

type mOpen struct {
	*mCall
	node    *mNode
	waiting bool  // for a close to end; else in d_open
	sleeps  bool  // what the open does when it gets to d_open
	answer  error // if it does not sleep
	cancel  context.CancelFunc
	flag    devsw.Flag // tells the driver which open it is
}

type mBuf struct {
	*mCall
	b     *devsw.Buf
	stuck bool
}

func (m *model) newNode() *mNode {
	n := m.s.fs.Node(m.kind, m.s.dev(m.kind))
	return &mNode{n: n, c: n.NewCounter()}
}

// open models Open up to the call of d_open.
func (m *model) open(n *mNode, sleeps bool, answer error) *mOpen {
	ctx, cancel := context.WithCancel(context.Background())
	m.made++
	o := &mOpen{mCall: &mCall{what: "open"}, node: n, sleeps: sleeps, answer: answer, cancel: cancel, flag: m.made << 8}
	switch {
	case n.gone:
		o.end(devsw.ENXIO)
	case m.kind == devsw.IFBLK && (m.opencnt != 0 || m.phase != stable):
		o.end(devsw.EBUSY)
	case m.phase != stable:
		o.waiting = true
		m.opens = append(m.opens, o)
	default:
		m.opens = append(m.opens, o)
		m.count(o)
	}
	m.s.lock(func() { m.s.sleepOpens, m.s.openErr = sleeps, answer })
	o.real = start(func() error { return n.n.Open(ctx, o.flag) })
	return o
}

// count models the open from where it counts.
func (m *model) count(o *mOpen) {
	o.waiting = false
	m.opencnt++
	o.node.opencnt++
	m.dOpens++
	if !o.sleeps {
		m.returned(o, o.answer)
	}
}

// returned models what Open does after d_open.
func (m *model) returned(o *mOpen, err error) {
	m.opens = slices.DeleteFunc(m.opens, func(p *mOpen) bool { return p == o })
	switch {
	case o.node.gone:
		o.end(devsw.EBADF)
	case err == nil:
		m.opened = true
		o.node.done++
		o.end(nil)
	case m.opencnt == 1 && (m.opened || slices.ContainsFunc(m.opens, func(o *mOpen) bool { return !o.waiting })):
		o.want = err
		m.drop(o.node, o.mCall)
	default:
		m.opencnt--
		o.node.opencnt--
		o.end(err)
	}
	m.settle()
}

// drop models the end of one open of a node. by returns when it is done.
func (m *model) drop(n *mNode, by *mCall) {
	n.opencnt--
	m.opencnt--
	if m.opencnt > 0 {
		by.done = true
		return
	}
	m.opened = false
	m.closers = append(m.closers, by)
	if m.has {
		m.dCancels++
	}
	if m.cancel {
		m.phase = draining
	} else {
		m.phase = inClose
		m.dCloses++
	}
	m.interrupt()
	m.settle()
}

// interrupt models what the driver's d_cancel or d_close ends.
func (m *model) interrupt() {
	for _, r := range m.reads {
		r.end(devsw.ECANCELED)
	}
	m.reads = nil
	m.bufs = slices.DeleteFunc(m.bufs, func(b *mBuf) bool {
		if !b.stuck {
			b.end(devsw.ECANCELED)
		}
		return !b.stuck
	})
	for _, o := range slices.Clone(m.opens) {
		if !o.waiting {
			// Such an open's node is gone, else the device had not been closed.
			m.returned(o, devsw.ECANCELED)
		}
	}
}

// settle lets a close go on as far as it gets.
func (m *model) settle() {
	quiet := func() bool {
		return len(m.bufs) == 0 && len(m.reads) == 0 &&
			!slices.ContainsFunc(m.opens, func(o *mOpen) bool { return !o.waiting })
	}
	if m.phase == draining && quiet() {
		m.phase = inClose
		m.dCloses++
	}
	if m.phase == inClose && !m.hold {
		m.phase = drainTwo
	}
	if m.phase != drainTwo || !quiet() {
		return
	}
	m.phase = stable
	for _, c := range append(m.closers, m.waiters...) {
		c.done = true
	}
	m.closers, m.waiters = nil, nil
	for _, o := range slices.Clone(m.opens) {
		if o.node.gone {
			m.opens = slices.DeleteFunc(m.opens, func(p *mOpen) bool { return p == o })
			o.end(devsw.EBADF)
		} else if o.waiting {
			m.count(o)
		}
	}
}

// revoke models Revoke of one node.
func (m *model) revoke(n *mNode, by *mCall) {
	n.gone = true
	if n.opencnt > 0 {
		m.opencnt -= n.opencnt - 1
		n.opencnt, n.done = 1, 0
		m.drop(n, by)
		by.done = false
	}
	if m.phase == stable {
		by.done = true
	} else if !slices.Contains(m.closers, by) {
		m.waiters = append(m.waiters, by)
	}
}

// agree compares the model with the code when nothing moves.
func (m *model) agree(t *rapid.T, calls []*mCall) {
	synctest.Wait()
	for _, c := range calls {
		if c.real.done != c.done {
			t.Fatalf("%s: returned %v (%v), the model says %v (%v)", c.what, c.real.done, c.real.err, c.done, c.want)
		}
		if c.done && !errors.Is(c.real.err, c.want) {
			t.Fatalf("%s gives %v, the model says %v", c.what, c.real.err, c.want)
		}
	}
	fs := m.s.fs
	fs.mu.Lock()
	defer fs.mu.Unlock()
	sd := fs.devs[devKey{m.kind, m.s.dev(m.kind)}]
	if sd == nil {
		sd = &specdev{}
	}
	if sd.opencnt != m.opencnt || sd.opened != m.opened || sd.closing != (m.phase != stable) {
		t.Fatalf("opencnt %d opened %v closing %v; the model says %d %v and phase %d", sd.opencnt, sd.opened, sd.closing, m.opencnt, m.opened, m.phase)
	}
	for i, n := range m.nodes {
		if n.n.opencnt != n.opencnt || n.n.done != n.done || n.n.gone != n.gone {
			t.Fatalf("node %d: opencnt %d done %d gone %v; the model says %d %d %v", i, n.n.opencnt, n.n.done, n.n.gone, n.opencnt, n.done, n.gone)
		}
	}
	m.s.lock(func() {
		if len(m.s.wrong) > 0 {
			t.Fatalf("promises broken: %v", m.s.wrong)
		}
		count := func(what string) (n int) {
			for _, c := range m.s.calls {
				if c == what {
					n++
				}
			}
			return n
		}
		if o, c, l := count("open"), count("cancel"), count("close"); o != m.dOpens || c != m.dCancels || l != m.dCloses {
			t.Fatalf("%d d_opens, %d d_cancels, %d d_closes; the model says %d, %d, %d", o, c, l, m.dOpens, m.dCancels, m.dCloses)
		}
	})
}

func TestModel(t *testing.T) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		for what, make := range map[string]func() *unit{
			"d_cancel":         func() *unit { return &unit{flag: devsw.DMPSafe} },
			"no d_cancel":      func() *unit { return &unit{flag: devsw.DMPSafe, noCancel: true} },
			"d_cancel refuses": func() *unit { return &unit{flag: devsw.DMPSafe, cancelErr: devsw.ENODEV} },
		} {
			t.Run(fmt.Sprint(kind, " ", what), func(t *testing.T) {
				rapid.Check(t, func(rt *rapid.T) {
					bubble(t, func(t *testing.T) { runModel(t, rt, kind, make()) })
				})
			})
		}
	}
}

// bubble runs f in a synctest bubble; a panic of f (rapid fails by one) comes
// out on the caller's goroutine.
func bubble(t *testing.T, f func(t *testing.T)) {
	var r any
	synctest.Test(t, func(t *testing.T) {
		defer func() { r = recover() }()
		f(t)
	})
	if r != nil {
		panic(r)
	}
}

func runModel(t *testing.T, rt *rapid.T, kind devsw.Mode, u *unit) {
	s := &setup{unit: u, table: devsw.NewTable()}
	s.block, s.char = u.attach(t, s.table)
	s.fs = New(s.table)
	m := &model{kind: kind, s: s, has: !u.noCancel, cancel: u.cancelsFirst()}
	for range 3 {
		m.nodes = append(m.nodes, m.newNode())
	}
	var calls []*mCall
	node := func(t *rapid.T) *mNode {
		i := rapid.IntRange(0, len(m.nodes)-1).Draw(t, "node")
		n := m.nodes[i]
		if n.gone && !slices.ContainsFunc(m.opens, func(o *mOpen) bool { return o.node == n }) && rapid.Bool().Draw(t, "renew") {
			n = m.newNode()
			m.nodes[i] = n
		}
		return n
	}
	actions := map[string]func(*rapid.T){
		"open": func(t *rapid.T) {
			if slices.ContainsFunc(calls, func(c *mCall) bool { return c.what == "revoke device" && !c.done }) {
				t.Skip() // whether this open is revoked too is a race
			}
			n := node(t)
			answer := rapid.SampledFrom([]error{nil, nil, devsw.EIO}).Draw(t, "answer")
			// What d_open does is set when the open is made, so all that wait
			// for a close do the same.
			sleeps := rapid.Bool().Draw(t, "sleeps")
			for _, o := range m.opens {
				if o.waiting {
					sleeps, answer = o.sleeps, o.answer
				}
			}
			calls = append(calls, m.open(n, sleeps, answer).mCall)
		},
		"d_open returns": func(t *rapid.T) {
			answer := rapid.SampledFrom([]error{nil, devsw.EIO}).Draw(t, "answer")
			for _, o := range m.opens {
				if !o.waiting {
					m.returned(o, answer)
					s.decide(o.flag, answer)
					return
				}
			}
			t.Skip()
		},
		"interrupt a waiting open": func(t *rapid.T) {
			for _, o := range m.opens {
				if o.waiting {
					m.opens = slices.DeleteFunc(m.opens, func(p *mOpen) bool { return p == o })
					o.end(context.Canceled)
					o.cancel()
					return
				}
			}
			t.Skip()
		},
		"close": func(t *rapid.T) {
			n := node(t)
			c := &mCall{what: "close"}
			switch {
			case n.gone:
				c.end(nil)
			case n.done == 0:
				c.end(devsw.EBADF)
			default:
				n.done--
				m.drop(n, c)
			}
			c.real = start(func() error { return n.n.Close(rw) })
			calls = append(calls, c)
		},
		"revoke": func(t *rapid.T) {
			n := node(t)
			c := &mCall{what: "revoke"}
			m.revoke(n, c)
			c.real = start(func() error { n.n.Revoke(); return nil })
			calls = append(calls, c)
		},
		"revoke device": func(t *rapid.T) {
			if slices.ContainsFunc(m.opens, func(o *mOpen) bool { return o.waiting }) {
				// Whether those are revoked too is a race.
				t.Skip()
			}
			c := &mCall{what: "revoke device"}
			var open []*mNode
			for _, n := range m.nodes {
				if n.opencnt > 0 {
					n.gone = true
					open = append(open, n)
				}
			}
			for _, n := range open {
				m.revoke(n, c)
			}
			if len(open) == 0 {
				if c.done = m.phase == stable; !c.done {
					m.waiters = append(m.waiters, c)
				}
			}
			c.real = start(func() error { s.fs.RevokeDevice(kind, s.dev(kind)); return nil })
			calls = append(calls, c)
		},
		"wait closed": func(t *rapid.T) {
			n := node(t)
			c := &mCall{what: "wait closed", done: m.phase == stable}
			if !c.done {
				m.waiters = append(m.waiters, c)
			}
			c.real = start(func() error { return n.n.WaitClosed(context.Background()) })
			calls = append(calls, c)
		},
		"strategy": func(t *rapid.T) {
			if kind != devsw.IFBLK {
				t.Skip()
			}
			n := node(t)
			b := &mBuf{mCall: &mCall{what: "transfer"}, stuck: rapid.Bool().Draw(t, "stuck")}
			var why any
			if b.stuck {
				why = stuckContext
			}
			if n.admits(m) {
				m.bufs = append(m.bufs, b)
			} else {
				b.end(devsw.ENXIO)
			}
			c := rapid.SampledFrom([]*Counter{n.c, nil}).Draw(t, "counter")
			b.b, b.real = transfer(n.n, c, why)
			calls = append(calls, b.mCall)
		},
		"biodone": func(t *rapid.T) {
			if len(m.bufs) == 0 {
				t.Skip()
			}
			b := m.bufs[rapid.IntRange(0, len(m.bufs)-1).Draw(t, "buf")]
			m.bufs = slices.DeleteFunc(m.bufs, func(c *mBuf) bool { return c == b })
			b.end(nil)
			m.settle()
			s.finish(b.b)
		},
		"read": func(t *rapid.T) {
			if kind != devsw.IFCHR {
				t.Skip()
			}
			n := node(t)
			c := &mCall{what: "read"}
			if n.admits(m) {
				m.reads = append(m.reads, c)
			} else {
				c.end(devsw.ENXIO)
			}
			c.real = start(func() error { return n.n.Read(devsw.NewUio(devsw.UIORead, make([]byte, 1)), 0) })
			calls = append(calls, c)
		},
		"data": func(t *rapid.T) {
			// For all who read: which one gets it is a race.
			if len(m.reads) == 0 {
				t.Skip()
			}
			n := len(m.reads)
			for _, r := range m.reads {
				r.end(nil)
			}
			m.reads = nil
			m.settle()
			s.feed(n)
		},
		"ioctl": func(t *rapid.T) {
			n := node(t)
			var want error
			if !n.admits(m) {
				want = devsw.ENXIO
			}
			if err := n.n.Ioctl(devsw.DIOCCACHESYNC, nil, rw); err != want {
				t.Fatalf("ioctl gives %v, the model says %v", err, want)
			}
		},
		"hold d_close": func(t *rapid.T) {
			if m.hold {
				t.Skip()
			}
			m.hold = true
			s.setHold()
		},
		"let d_close go": func(t *rapid.T) {
			if !m.hold {
				t.Skip()
			}
			m.hold = false
			m.settle()
			s.releaseHold()
		},
		"": func(t *rapid.T) { m.agree(t, calls) },
	}
	defer func() {
		// Let everything go, so that a failure shows as what it is.
		if m.hold {
			s.releaseHold()
		}
		for _, b := range m.bufs {
			s.finish(b.b)
		}
		for _, n := range m.nodes {
			go n.n.Revoke()
		}
		s.lock(func() {
			s.sleepOpens = false
			s.readable = 1 << 20
			for _, sl := range s.sleepers {
				sl.decided = true
			}
			s.cv.Broadcast()
		})
		synctest.Wait()
	}()
	rt.Repeat(actions)

	// At the end all comes to rest.
	if m.hold {
		actions["let d_close go"](rt)
		m.agree(rt, calls)
	}
	for len(m.bufs) > 0 {
		b := m.bufs[0]
		m.bufs = m.bufs[1:]
		b.end(nil)
		m.settle()
		s.finish(b.b)
		m.agree(rt, calls)
	}
	for _, n := range m.nodes {
		c := &mCall{what: "last revoke"}
		m.revoke(n, c)
		c.real = start(func() error { n.n.Revoke(); return nil })
		calls = append(calls, c)
		m.agree(rt, calls)
	}
	s.fs.mu.Lock()
	defer s.fs.mu.Unlock()
	if len(s.fs.devs) != 0 {
		rt.Fatalf("%d devices are remembered at the end", len(s.fs.devs))
	}
}
