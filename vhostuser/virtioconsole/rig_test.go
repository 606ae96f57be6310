package virtioconsole

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/internal/test/consoletest"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is a Device with lines behind it, and a guest in front.
type rig struct {
	t     testing.TB
	lines lines // by id
	fs    *specfs.FS
	devs  []devsw.Dev
	dev   *Device
	b     *vhostuser.Backend
	g     *consoletest.Guest
	ended chan error

	mu     sync.Mutex
	trace  []specfs.Event
	said   []string // control messages
	logged []string
}

// setup is what a rig is made of.
type setup struct {
	Config
	guest consoletest.Config
	lines lines
}

// console and data are ports of id's own line, which newRig fills in.
func console(id uint32) Port           { return Port{ID: id, Console: true} }
func data(id uint32, name string) Port { return Port{ID: id, Name: name} }

// single is a device with one console and no MULTIPORT.
func single(c *setup) { c.Ports = []Port{console(0)} }

// several is a device of four places with MULTIPORT, that has these ports.
func several(ports ...Port) func(*setup) {
	return func(c *setup) { c.Multiport, c.MaxPorts, c.Ports = true, 4, ports }
}

// newRig makes a rig. The guest's driver is not bound yet.
func newRig(t testing.TB, changes ...func(*setup)) *rig {
	t.Helper()
	r := &rig{t: t}
	c := setup{guest: consoletest.Linux(), lines: make(lines, MaxPorts)}
	for i := range c.lines {
		c.lines[i] = newLine()
	}
	r.lines = c.lines
	table := devsw.NewTable()
	sw := r.lines.cdevsw()
	_, major, err := table.Attach("line", nil, devsw.NODEVMAJOR, sw, -1)
	r.must(err)
	t.Cleanup(func() {
		if err := table.Detach(nil, sw); err != nil {
			t.Errorf("detach: %v", err)
		}
	})
	for i := range r.lines {
		r.devs = append(r.devs, devsw.Makedev(uint32(major), uint32(i)))
	}
	r.fs = specfs.New(table, specfs.WithTrace(func(e specfs.Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.trace = append(r.trace, e)
	}))
	c.FS = r.fs
	c.Trace = func(m fmt.Stringer) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.said = append(r.said, short(m.(Message)))
	}
	c.Log = func(msg string, err error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.logged = append(r.logged, fmt.Sprint(msg, ": ", err))
	}
	c.ConfigChanged = func() { r.b.ConfigChanged() }
	for _, change := range changes {
		change(&c)
	}
	c.Ports = slices.Clone(c.Ports)
	for i, p := range c.Ports {
		c.Ports[i].Dev = r.devs[p.ID]
	}
	r.dev, err = New(c.Config)
	r.must(err)
	t.Cleanup(func() {
		for _, l := range r.lines {
			l.do(func() { l.asleep, l.stuck, l.slow = false, false, false })
		}
		r.must(r.dev.WaitClosed(context.Background()))
	})
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Reactors: 2})
	r.must(err)
	t.Cleanup(reactors.Close)
	r.b, err = vhostuser.New(r.dev.BackendConfig(vhostuser.Config{Reactors: reactors}))
	r.must(err)
	r.g, err = consoletest.New(r.connect(), c.guest)
	r.must(err)
	t.Cleanup(r.hangUp)
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// connect connects a front-end.
func (r *rig) connect() *vhostusertest.Frontend {
	r.t.Helper()
	f, conn, err := vhostusertest.Pair()
	r.must(err)
	r.ended = make(chan error, 1)
	go func() { r.ended <- r.b.ServeConn(context.Background(), conn) }()
	return f
}

// start starts these rings, for a guest driver that is the test's own.
func (r *rig) start(indices ...int) (rings []*vhostusertest.Ring) {
	r.t.Helper()
	f := r.g.Frontend()
	r.must(f.SetFeatures(r.g.Offered()))
	for _, i := range indices {
		ring, err := f.NewRing(r.g.Memory(), i, 16)
		r.must(err)
		r.t.Cleanup(ring.Close)
		r.must(ring.Start())
		rings = append(rings, ring)
	}
	return rings
}

// hangUp ends the guest.
func (r *rig) hangUp() {
	if r.g != nil {
		r.g.Close()
		<-r.ended
		r.g = nil
	}
}

// short is a message as consoletest prints it, behind ">" if it is the guest's.
func short(m Message) string {
	c := consoletest.ParseMessage(m.append(nil, false))
	if m.FromGuest {
		c.Rest = ""
		return ">" + c.String()
	}
	return c.String()
}

// talk returns the control messages since it was called last.
func (r *rig) talk() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := strings.Join(r.said, "; ")
	r.said = nil
	return s
}

// life returns what has happened to a port's device since the rig was made.
func (r *rig) life(id uint32) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var kinds []string
	for _, e := range r.trace {
		if e.Dev == r.devs[id] {
			kinds = append(kinds, e.Kind.String())
		}
	}
	return strings.Join(kinds, " ")
}

// What a port's life is.
const (
	opening = "open opened"
	closing = "cancel canceled drain drained close closed"
)

// wait waits until done, and handles what comes for the guest meanwhile.
func (r *rig) wait(what string, done func() bool) {
	r.t.Helper()
	r.must(r.g.Wait(what, done))
}

// awaitPort waits until the guest has a port that is as done wants it.
func (r *rig) awaitPort(id uint32, done func(p *consoletest.Port) bool) *consoletest.Port {
	r.t.Helper()
	r.wait(fmt.Sprint("port ", id), func() bool { p := r.g.Port(id); return p != nil && done(p) })
	return r.g.Port(id)
}

// status waits until the port's status is as done wants it. The guest handles nothing meanwhile.
func (r *rig) status(id uint32, what string, done func(PortStatus) bool) {
	r.t.Helper()
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		for _, p := range r.dev.Status().Ports {
			if p.ID == id && done(p) {
				return
			}
		}
		if time.Since(began) > vhostusertest.Timeout {
			r.t.Fatalf("port %d: %s did not come", id, what)
		}
	}
}

// looked waits until the reactor has looked at the port's rings, after it was last woken.
func (r *rig) looked(id uint32) {
	// The first is behind what has woken it, and the second behind the round that follows.
	for range 2 {
		r.dev.slots[id].inQueue.Load().Do(func() {})
	}
}

// read has a program of the guest read n bytes.
func (r *rig) read(p *consoletest.Port, n int) []byte {
	r.t.Helper()
	var got []byte
	for len(got) < n {
		b := make([]byte, n-len(got))
		k, err := p.Read(b)
		r.must(err)
		got = append(got, b[:k]...)
	}
	return got
}

func (r *rig) readString(p *consoletest.Port, want string) {
	r.t.Helper()
	if got := string(r.read(p, len(want))); got != want {
		r.t.Fatalf("port %d: the guest reads %.100q, want %.100q", p.ID, got, want)
	}
}

func (r *rig) write(p *consoletest.Port, s string) {
	r.t.Helper()
	_, err := p.Write([]byte(s))
	r.must(err)
}

func (r *rig) want(what, got, want string) {
	r.t.Helper()
	if got != want {
		r.t.Errorf("%s: %s\nwant: %s", what, got, want)
	}
}

func isBroken(err error) bool { return errors.Is(err, consoletest.ErrBroken) }
