package vhostuser_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		serveAsChild(path)
	}
	// The runtime opens its own descriptors with the first socket.
	if f, c, err := vhostusertest.Pair(); err == nil {
		f.Close()
		c.Close()
	}
	goleak.VerifyTestMain(m)
}

// openFDs returns what is open, by descriptor.
func openFDs(t testing.TB) map[string]string {
	t.Helper()
	const dir = "/proc/self/fd"
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := make(map[string]string)
	for _, e := range ents {
		// The one that read the folder is gone again.
		if to, err := os.Readlink(dir + "/" + e.Name()); err == nil {
			fds[e.Name()] = to
		}
	}
	return fds
}

// countFDs returns how many descriptors are open. It is for where openFDs would take too long.
func countFDs(t testing.TB) int64 {
	t.Helper()
	// Linux gives that as the folder's size, since 6.2; before, it is 0.
	var info syscall.Stat_t
	if err := syscall.Stat("/proc/self/fd", &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// awaitFDs waits until no more than most descriptors are open: some are closed by and by, such as
// that of memory which requests used last.
func awaitFDs(t testing.TB, most int64) {
	t.Helper()
	for end := time.Now().Add(vhostusertest.Timeout); countFDs(t) > most; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors are open, %d at most were to be", countFDs(t), most)
		}
	}
}

// checkFDs makes the test fail if descriptors stay open after its end that were not at its
// beginning. It is called first, so that it looks last.
func checkFDs(t testing.TB) {
	t.Helper()
	before := openFDs(t)
	t.Cleanup(func() {
		var left map[string]string
		// Some are closed by and by.
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			left = openFDs(t)
			maps.DeleteFunc(left, func(fd, to string) bool { return before[fd] == to })
			if len(left) == 0 {
				return
			}
		}
		for fd, to := range left {
			t.Errorf("descriptor %s is still open: %s", fd, to)
		}
	})
}

// reverser answers each chain with its readable bytes in reverse order. It can hold requests back.
type reverser struct {
	vhostuser.BaseDevice
	queues   int
	features uint64
	config   []byte

	// Hooks, nil for nothing; on the connection's goroutine.
	onStart func(*vhostuser.Queue) error
	onStop  func(*vhostuser.Queue, vhostuser.Stop)
	onPause func(*vhostuser.Queue, vhostuser.Stop)
	onStops func([]*vhostuser.Queue, vhostuser.Stop) // StopDevice and StopQueue, before onStop

	mu       sync.Mutex
	hold     bool
	careless bool     // Process does not expect faults
	held     int      // requests held back so far
	log      []string // of the life, in order
	sessions int      // that have ended
	latest   *vhostuser.Queue
	changed  chan struct{}
}

// lane is what a reverser has for each Queue; the reactor's.
type lane struct {
	held, free []*virtq.Chain
}

func newReverser(queues int) *reverser {
	return &reverser{
		queues: queues, features: virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx,
		config: []byte("0123456789abcdef"), changed: make(chan struct{}),
	}
}

func (d *reverser) Features() uint64    { return d.features }
func (d *reverser) NumQueues() int      { return d.queues }
func (d *reverser) ConfigSize() int     { return len(d.config) }
func (d *reverser) ReadConfig(p []byte) { copy(p, d.config) }

func (d *reverser) WriteConfig(off int, p []byte) error {
	if off != 0 {
		return errors.New("only byte 0 may be written")
	}
	copy(d.config[off:], p)
	return nil
}

func (d *reverser) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if format != "" {
		d.log = append(d.log, fmt.Sprintf(format, args...))
	}
	close(d.changed)
	d.changed = make(chan struct{})
}

// life returns what was noted since it was called last.
func (d *reverser) life() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := strings.Join(d.log, ", ")
	d.log = nil
	return s
}

// waitFor waits until something was noted.
func (d *reverser) waitFor(t testing.TB, what string) {
	t.Helper()
	d.await(t, what, func() bool { return slices.Contains(d.log, what) })
}

// waitHeld waits until n requests have been held back.
func (d *reverser) waitHeld(t testing.TB, n int) {
	t.Helper()
	d.await(t, fmt.Sprintf("%d requests", n), func() bool { return d.held >= n })
}

// await waits until cond, which is called with mu held.
func (d *reverser) await(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for timeout := time.After(vhostusertest.Timeout); ; {
		d.mu.Lock()
		ok, changed := cond(), d.changed
		d.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("device: no %s; its life: %s", what, d.life())
		}
	}
}

func (d *reverser) setHold(on bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold = on
}

func (d *reverser) setCareless() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.careless = true
}

func (d *reverser) SetFeatures(f uint64) { d.note("features %#x", f) }

func (d *reverser) StartQueue(q *vhostuser.Queue) error {
	d.note("start %d", q.Index())
	q.Data = new(lane)
	d.mu.Lock()
	d.latest = q
	d.mu.Unlock()
	if d.onStart != nil {
		return d.onStart(q)
	}
	return nil
}

func (d *reverser) Process(q *vhostuser.Queue) (more bool) {
	l := q.Data.(*lane)
	for range 8 {
		c := new(virtq.Chain)
		if n := len(l.free); n > 0 {
			c, l.free = l.free[n-1], l.free[:n-1]
		}
		if !q.Pop(c) {
			l.free = append(l.free, c)
			return false
		}
		// After Pop: what is offered after setHold is held back.
		d.mu.Lock()
		hold, careless := d.hold, d.careless
		d.mu.Unlock()
		if hold {
			l.held = append(l.held, c)
			d.mu.Lock()
			d.held++
			d.mu.Unlock()
			d.note("")
			continue
		}
		if careless {
			b := make([]byte, c.ReadableLen())
			c.Read(b)
			slices.Reverse(b)
			n, _ := c.Write(b)
			q.Push(c, uint32(n))
			continue
		}
		d.finish(q, c)
	}
	return true
}

func (d *reverser) finish(q *vhostuser.Queue, c *virtq.Chain) {
	q.Push(c, d.answer(q, c))
	l := q.Data.(*lane)
	l.free = append(l.free, c)
}

func (d *reverser) answer(q *vhostuser.Queue, c *virtq.Chain) (written uint32) {
	defer q.RecoverFault()
	b := make([]byte, c.ReadableLen())
	c.Read(b)
	slices.Reverse(b)
	n, _ := c.Write(b)
	return uint32(n)
}

// queue returns the Queue that was started last.
func (d *reverser) queue() *vhostuser.Queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.latest
}

// finishHeld ends what is held back, newest first. On the reactor.
func (d *reverser) finishHeld(q *vhostuser.Queue) {
	l := q.Data.(*lane)
	held := l.held
	l.held = nil
	for _, c := range slices.Backward(held) {
		d.finish(q, c)
	}
}

func (d *reverser) PauseQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	d.note("pause %d", q.Index())
	if d.onPause != nil {
		d.onPause(q, how)
	}
}

func (d *reverser) ResumeQueue(q *vhostuser.Queue) { d.note("resume %d", q.Index()) }

func (d *reverser) StopDevice(rings []*vhostuser.Queue, how vhostuser.Stop) {
	if d.onStops != nil {
		d.onStops(rings, how)
	}
	for _, q := range rings {
		d.note("stop %d %v", q.Index(), how.Reason)
		d.stop(q, how)
	}
}

func (d *reverser) StopQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	if d.onStops != nil {
		d.onStops([]*vhostuser.Queue{q}, how)
	}
	d.note("stop %d alone, %v", q.Index(), how.Reason)
	d.stop(q, how)
}

// stop ends one ring.
func (d *reverser) stop(q *vhostuser.Queue, how vhostuser.Stop) {
	if d.onStop != nil {
		d.onStop(q, how)
		return
	}
	q.Post(func() { d.finishHeld(q) })
	if err := q.WaitIdle(context.Background()); err != nil {
		panic(err)
	}
}

func (d *reverser) SessionEnd() {
	d.note("end")
	d.mu.Lock()
	d.sessions++
	d.mu.Unlock()
}

// recorder keeps events.
type recorder struct {
	mu     sync.Mutex
	events []vhostuser.Event
}

func (r *recorder) trace(e vhostuser.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

// find returns the events of a kind.
func (r *recorder) find(kind vhostuser.EventKind) []vhostuser.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []vhostuser.Event
	for _, e := range r.events {
		if e.Kind == kind {
			found = append(found, e)
		}
	}
	return found
}

// rig is a Backend that serves one connection, with a front-end on it and guest memory.
type rig struct {
	*vhostusertest.Frontend
	t       testing.TB
	dev     *reverser
	backend *vhostuser.Backend
	mem     *virtqtest.Mem
	rec     recorder
	served  chan error
	cancel  context.CancelFunc
	result  error
	ended   bool
}

func newReactors(t testing.TB) *vhostuser.Reactors { return newReactorsOn(t, "") }

func newReactorsOn(t testing.TB, aio vhostuser.Mode) *vhostuser.Reactors {
	t.Helper()
	r, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Reactors: 2, Mode: aio})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func newMem(t testing.TB) *virtqtest.Mem {
	t.Helper()
	mem, err := virtqtest.NewMem(
		virtqtest.Range{GuestPhys: 0, Size: 1 << 20},
		virtqtest.Range{GuestPhys: 1 << 32, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mem.Close)
	return mem
}

func newRig(t testing.TB, dev *reverser) *rig {
	t.Helper()
	return newRigOn(t, dev, "")
}

func newRigOn(t testing.TB, dev *reverser, aio vhostuser.Mode) *rig {
	t.Helper()
	return newRigFor(t, dev, dev, aio)
}

// newRigFor makes a rig with a device that has dev in it.
func newRigFor(t testing.TB, served vhostuser.Device, dev *reverser, aio vhostuser.Mode) *rig {
	t.Helper()
	checkFDs(t)
	return newRigServing(t, vhostuser.Config{Device: served, Reactors: newReactorsOn(t, aio)}, dev)
}

// newRigConfig makes a rig whose Backend has a Config of its own, but for Device and Reactors.
func newRigConfig(t testing.TB, dev *reverser, cfg vhostuser.Config) *rig {
	t.Helper()
	checkFDs(t)
	cfg.Device, cfg.Reactors = dev, newReactors(t)
	return newRigServing(t, cfg, dev)
}

// newRigWith makes a rig on reactors that it may share with others.
func newRigWith(t testing.TB, dev *reverser, reactors *vhostuser.Reactors) *rig {
	t.Helper()
	return newRigServing(t, vhostuser.Config{Device: dev, Reactors: reactors}, dev)
}

func newRigServing(t testing.TB, cfg vhostuser.Config, dev *reverser) *rig {
	t.Helper()
	g := &rig{t: t, dev: dev, served: make(chan error, 1), mem: newMem(t)}
	var err error
	cfg.Trace = g.rec.trace
	g.backend, err = vhostuser.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.connect()
	return g
}

// connect makes a connection and serves it.
func (g *rig) connect() {
	g.t.Helper()
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.Frontend, g.cancel, g.ended = f, cancel, false
	go func() { g.served <- g.backend.ServeConn(ctx, conn) }()
	g.t.Cleanup(func() { g.hangUp() })
}

// wait returns what ServeConn did.
func (g *rig) wait() error {
	g.t.Helper()
	if g.ended {
		return g.result
	}
	select {
	case g.result = <-g.served:
	case <-time.After(vhostusertest.Timeout):
		g.t.Fatal("ServeConn does not return")
	}
	g.ended = true
	g.cancel()
	g.Close()
	return g.result
}

// waitCancelled is wait for a connection that has ended by itself; what ServeConn waits for behind
// it is cut short.
func (g *rig) waitCancelled() error {
	g.t.Helper()
	for timeout := time.After(vhostusertest.Timeout); ; {
		if _, _, err := g.Receive(); err != nil {
			break
		}
		select {
		case <-timeout:
			g.t.Fatal("the connection goes on")
		default:
		}
	}
	g.cancel()
	return g.wait()
}

// hangUp closes the connection, and returns what ServeConn did.
func (g *rig) hangUp() error {
	g.t.Helper()
	if !g.ended {
		g.Close()
	}
	return g.wait()
}

// handshake begins a session with all protocol features, and negotiates all features.
func (g *rig) handshake() {
	g.t.Helper()
	features, err := g.Handshake(vhostusertest.AllProtocolFeatures)
	g.must(err)
	g.must(g.SetFeatures(features))
	g.must(g.AddMemory(g.mem))
}

func (g *rig) must(err error) {
	g.t.Helper()
	if err != nil {
		select {
		case served := <-g.served:
			g.served <- served
			g.t.Fatalf("%v; ServeConn: %v", err, served)
		case <-time.After(100 * time.Millisecond):
			g.t.Fatal(err)
		}
	}
}

func (g *rig) ring(index, size int) *vhostusertest.Ring {
	g.t.Helper()
	r, err := g.NewRing(g.mem, index, size)
	g.must(err)
	g.t.Cleanup(r.Close)
	return r
}

// start is ring, started.
func (g *rig) start(index, size int) *vhostusertest.Ring {
	g.t.Helper()
	r := g.ring(index, size)
	g.must(r.Start())
	return r
}

// buffers are a request's: 16 bytes each way.
type buffers struct {
	in, out []virtqtest.Seg
	mem     *virtqtest.Mem
}

func newBuffers(mem *virtqtest.Mem) buffers {
	return buffers{
		in:  []virtqtest.Seg{{Addr: mem.Alloc(16, 8), Len: 16}},
		out: []virtqtest.Seg{{Addr: mem.Alloc(16, 8), Len: 16}},
		mem: mem,
	}
}

func (b buffers) fill(n int) {
	copy(b.mem.Bytes(b.in[0].Addr, 16), fmt.Sprintf("%016d", n))
	clear(b.mem.Bytes(b.out[0].Addr, 16))
}

// check tells what is wrong with the answer to fill(n).
func (b buffers) check(n int) error {
	want := fmt.Appendf(nil, "%016d", n)
	slices.Reverse(want)
	if got := b.mem.Bytes(b.out[0].Addr, 16); !slices.Equal(got, want) {
		return fmt.Errorf("request %d: got %q, want %q", n, got, want)
	}
	return nil
}

// io does n requests, one after the other.
func (g *rig) io(r *vhostusertest.Ring, n int) {
	g.t.Helper()
	b := newBuffers(g.mem)
	for i := range n {
		b.fill(i)
		written, err := r.Do(b.in, b.out)
		g.must(err)
		if written != 16 {
			g.t.Fatalf("%d bytes written, want 16", written)
		}
		g.must(b.check(i))
	}
}

// idle checks that the device does nothing with r for a moment, though it was kicked. There is
// nothing to wait for: a defect shows by chance, and soon.
func (g *rig) idle(r *vhostusertest.Ring) {
	g.t.Helper()
	g.must(r.Notify())
	g.must(g.Barrier())
	time.Sleep(5 * time.Millisecond)
	if r.PendingUsed() {
		g.t.Fatal("a request was completed")
	}
}

// wantProtocolError checks that err names a message, and the field if it is not empty.
func wantProtocolError(t testing.TB, err error, req vhostuser.Request, fieldName string) {
	t.Helper()
	var pe *vhostuser.ProtocolError
	if !errors.As(err, &pe) || pe.Request != req {
		t.Fatalf("got error %v, want a ProtocolError of %v", err, req)
	}
	if !strings.Contains(err.Error(), fieldName) {
		t.Fatalf("error %q does not name %q", err, fieldName)
	}
}

// listen makes a socket in a folder of the test.
func listen(t testing.TB) (net.Listener, string) {
	t.Helper()
	path := t.TempDir() + "/sock"
	ln, err := vhostuser.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	return ln, path
}
