package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"vdev/internal/test/consoletest"
	"vdev/vhostuser/vhostusertest"
)

// Bounds of a console's Job.
const (
	maxBuffer    = 1 << 20
	MaxBuffer    = maxBuffer // BlockSize
	MaxPortDepth = 1024      // Depth
)

// minRing is the least number of descriptors of a console's ring, which is what QEMU gives it.
const minRing = 64

// hostPiece is how much the host's side writes at once, and hostBuffer how much it reads at most.
const (
	hostPiece  = 64 << 10
	hostBuffer = 256 << 10
)

func (j *Job) checkConsole() error {
	switch {
	case j.BlockSize < 1 || j.BlockSize > MaxBuffer:
		return fmt.Errorf("buffers of %d bytes: must have from 1 to %d", j.BlockSize, MaxBuffer)
	case j.Depth < 1 || j.Depth > MaxPortDepth:
		return fmt.Errorf("depth %d: must be from 1 to %d on a console", j.Depth, MaxPortDepth)
	case j.Warmup < 0 || j.Length <= 0 || j.Idle < 0:
		return errors.New("the length must be more than 0, and neither the warm-up nor the idle time less")
	}
	return nil
}

// console is a connection to a back-end of a console, with a guest driver that works on one of its
// ports. But for what says otherwise it is its driver's thread's while that runs.
type console struct {
	link
	j    *Job
	g    *consoletest.Guest
	port *consoletest.Port
	ring *vhostusertest.Ring // of output
	host *Host

	// The flows there are, nil for none. What comes back is the flow that was sent.
	out *source
	in  *sink
	// Where the output arrives at the host's side; the reader's there. nil: nowhere, or what
	// arrives in the guest.
	arrives *sink
	// What the host's side sends; its writer's.
	hostSends *source

	phase      phase
	inFlight   int  // chains of output that were offered and not found used
	endOffered bool // the mark at the end of the output
	awaited    int  // bytes of an echo that have not come back
	issued     time.Time
	slept      bool // before the last news
	looks      int  // of Wait at news, since the last step
	heard      int32

	state atomic.Int32 // set by whoever runs the Job
	// nudges counts what the driver is to look at beside its rings.
	nudges  atomic.Int32
	arrived atomic.Bool   // the begin of the output has, at the host's side
	moved   atomic.Uint64 // counts whatever has moved
	busy    atomic.Bool   // something should move

	// Of the one who looks whether it stalls.
	seen  uint64
	since time.Time

	// What came of it, to be read when the thread has ended.
	hist          *hdrhistogram.Histogram
	done, bytes   uint64
	turns, waited uint64
}

// phase is what the driver is at.
type phase int

const (
	beginning phase = iota // nothing is sent
	flowing                // the stream
	finishing              // the mark at its end
)

// runConsole is Run on a console.
func runConsole(ctx context.Context, t *Target, j Job) (r Result, err error) {
	if err := j.check(); err != nil {
		return r, err
	}
	if !j.Pattern.Console() {
		return r, fmt.Errorf("pattern %s: is none of a console's", j.Pattern)
	}
	err = explained(ctx, t.Socket, func() error {
		c, err := newConsole(ctx, t, &j)
		if err != nil {
			return perhaps(err)
		}
		defer c.close()
		r, err = c.run(ctx)
		return err
	})
	return r, err
}

// checkConsole is Check of a console.
func checkConsole(ctx context.Context, t *Target, jobs []Job) (pid int, err error) {
	for i := range jobs {
		if err := t.Host.fits(jobs[i].Pattern); err != nil {
			return 0, fmt.Errorf("%s: %w", t.Name, err)
		}
	}
	err = explained(ctx, t.Socket, func() error {
		c, err := newConsole(ctx, t, &jobs[0])
		if err != nil {
			return perhaps(err)
		}
		defer c.close()
		pid = c.pid
		for i := range jobs {
			if err := c.binds(&jobs[i]); err != nil {
				return err
			}
		}
		return c.end()
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", t.Name, err)
	}
	return pid, err
}

// newConsole connects to the back-end, has a driver begin, and opens the port.
func newConsole(ctx context.Context, t *Target, j *Job) (*console, error) {
	c := &console{j: j, host: t.Host, hist: NewLatency()}
	conf := consoletest.Linux()
	if t.Via == nil {
		if err := c.connect(ctx, t.Socket, c.stalled); err != nil {
			return nil, err
		}
	} else {
		f, err := t.Via.Connect()
		if err != nil {
			return nil, err
		}
		c.use(ctx, f, c.stalled)
		conf.Mem = t.Via.Memory
		conf.Mem.Reset()
	}
	conf.RingSize = max(minRing, 1<<bits.Len(uint(j.Depth-1)))
	conf.ControlRing = 32 // no more than that is QEMU's own device ready for
	conf.Buffer = int(j.BlockSize)
	// There is no more of it than is used.
	conf.Memory = 1<<30 + uint64(conf.RingSize)*4*maxBuffer
	var err error
	if c.g, err = consoletest.New(c.f, conf); err != nil {
		c.stay()
		return nil, err
	}
	c.g.Patience = patience
	if c.pid = serverOf(c.f.Conn()); t.Via != nil {
		c.pid = t.Via.PID
	}
	if err := c.open(cmp.Or(t.Port, "0")); err != nil {
		c.close()
		return nil, err
	}
	c.g.Patience = math.MaxInt64 // stalled looks from now on
	c.plan()
	return c, nil
}

// open finds the port, and opens it.
func (c *console) open(name string) error {
	if err := c.g.Bind(); err != nil {
		return err
	}
	err := c.g.Wait("port "+name, func() bool {
		c.port = findPort(c.g, name)
		return c.port != nil
	})
	if err != nil {
		return err
	}
	if err := c.port.Open(); err != nil {
		return err
	}
	c.ring = c.g.Ring(c.port.OutRing())
	return c.g.Wait("the host's side of the port", c.port.Writable)
}

// findPort returns the port that a name or a number means, nil where it is not there yet. What a
// port is, is known when it is ready for output.
func findPort(g *consoletest.Guest, name string) *consoletest.Port {
	if !g.Multiport() {
		if name == "0" {
			return g.Port(0)
		}
		return nil
	}
	id, numeric := strconv.ParseUint(name, 10, 32)
	for _, m := range g.Received {
		p := g.Port(m.ID)
		switch {
		case p == nil:
		case p.Name == name:
			return p
		case numeric == nil && uint64(p.ID) == id && p.Writable():
			return p
		}
	}
	return nil
}

// plan says what flows where.
func (c *console) plan() {
	if c.j.Pattern != Input {
		c.out = &source{flow: newFlow("output", c.j.Seed)}
	}
	switch {
	case c.host.loop || c.j.Pattern == Echo:
		c.in = &sink{source: source{flow: c.out.flow}}
	case c.j.Pattern != Output:
		c.hostSends = &source{flow: newFlow("input", c.j.Seed+1)}
		c.in = &sink{source: source{flow: c.hostSends.flow}}
	}
	if c.out != nil && c.host.rw != nil {
		// What a console shows may be dropped where nobody is quick enough.
		c.arrives = &sink{source: source{flow: c.out.flow}, lossy: c.port.Console}
	}
}

// end ends the driver, in order.
func (c *console) end() error { return errors.Join(c.port.Close(), c.g.Unbind()) }

// close hangs up, whatever is in progress.
func (c *console) close() {
	c.stay()
	c.g.Close()
}

// set tells the driver's thread what to do. Any goroutine.
func (c *console) set(state int32) {
	c.state.Store(state)
	c.nudge()
}

// nudge has the driver's thread look at what is not in its rings. Any goroutine.
func (c *console) nudge() {
	c.nudges.Add(1)
	c.g.Wake()
}

func (c *console) run(ctx context.Context) (r Result, err error) {
	j := c.j
	if len(j.BackendCPUs) > 0 {
		bound, bindErr := bind(c.pid, j.BackendCPUs)
		if bindErr != nil {
			return r, bindErr
		}
		defer func() { err = errors.Join(err, bound.undo()) }()
	}
	var threads sync.WaitGroup
	ready, begin := make(chan struct{}), make(chan struct{})
	failed := make(chan error, 3)
	start := func(name string, do func() error) {
		threads.Go(func() {
			// Not unlocked: a thread that was bound to a processor must not serve anybody else.
			runtime.LockOSThread()
			err := bindOwn(j.CPUs)
			if err == nil {
				err = do()
			}
			if err != nil {
				failed <- fmt.Errorf("%s: %w", name, err)
			}
		})
	}
	c.busy.Store(true)
	start("the guest", func() error { return c.drive(sync.OnceFunc(func() { close(ready) }), begin) })
	if c.arrives != nil {
		start(c.host.name, c.hostReads)
	}
	if c.hostSends != nil {
		start(c.host.name, func() error { return c.hostWrites(begin) })
	}
	drained := closedAfter(threads.Wait)
	began := sync.OnceFunc(func() { close(begin) })
	// The driver uses guest memory: it ends before that does.
	defer func() {
		select {
		case <-drained:
			return
		default:
		}
		c.set(aborting)
		began()
		_ = c.host.shut() // whoever waits there does so for nothing
		<-drained
	}()
	if err := c.await(ctx, failed, ready, 0); err != nil {
		return r, err
	}
	began()
	if err := c.measure(ctx, failed, c.set, j, &r); err != nil {
		return r, err
	}
	if err := c.await(ctx, failed, drained, 0); err != nil {
		return r, err
	}
	c.busy.Store(false)
	if j.Idle > 0 {
		if err := c.await(ctx, failed, nil, idleAfter); err != nil {
			return r, err
		}
		before := usedBy(c.pid)
		if err := c.await(ctx, failed, nil, j.Idle); err != nil {
			return r, err
		}
		r.Idle = usedBy(c.pid).since(before)
	}
	if n := c.port.Empty; n > 0 {
		return r, fmt.Errorf("%d receive buffers came back empty, which a program takes for the end of the input", n)
	}
	if err := c.end(); err != nil {
		return r, err
	}
	r.PID, r.Requests, r.Bytes, r.Latency = c.pid, c.done, c.bytes, c.hist
	r.Waited = float64(c.waited) / float64(c.turns)
	if c.arrives != nil {
		r.Lost = float64(c.arrives.lost) / float64(c.out.n)
	}
	if r.Requests == 0 {
		return r, fmt.Errorf("%w in the %v that count: a longer length is needed", ErrNoRequest, j.Length)
	}
	return r, nil
}

// stalled returns an error where something should move, and nothing has for too long.
func (c *console) stalled(now time.Time) error {
	switch moved := c.moved.Load(); {
	case !c.busy.Load() || moved != c.seen || c.since.IsZero():
		c.seen, c.since = moved, now
	case now.Sub(c.since) >= patience:
		return fmt.Errorf("nothing has moved for %v, with %s at the host's side", patience, c.host.name)
	}
	return nil
}

// drive is the driver's thread. It calls ready when it could begin, begins when begin is closed,
// and ends when it was told to, and all has arrived that was sent.
func (c *console) drive(ready func(), begin <-chan struct{}) error {
	if c.out != nil {
		if err := c.port.Transmit(c.out.begin[:], consoletest.Shape{}); err != nil {
			return err
		}
		c.inFlight = c.ring.InFlight()
	}
	err := c.pump("the begin of the stream", func() bool {
		return (c.in == nil || c.in.began) && (c.arrives == nil || c.arrived.Load())
	})
	if err != nil {
		return err
	}
	ready()
	<-begin
	c.phase = flowing
	if err := c.pump("anything", func() bool { return c.state.Load() >= stopping }); err != nil {
		return err
	}
	c.phase = finishing
	return c.pump("the end of the stream", func() bool {
		return (c.out == nil || c.endOffered && c.inFlight == 0) && (c.in == nil || c.in.ended)
	})
}

// pump does what there is to do, and sleeps when there is nothing, until done returns true.
func (c *console) pump(what string, done func() bool) error {
	news := c.news
	for {
		c.heard = c.nudges.Load()
		if err := c.step(); err != nil {
			return err
		}
		switch {
		case c.state.Load() == aborting:
			return errAborted
		case c.port.Removed():
			return errors.New("the port was removed")
		case done():
			return nil
		}
		c.looks = 0
		if err := c.g.Wait(what, news); err != nil {
			return err
		}
		c.slept = c.looks > 1
	}
}

// news tells whether there is something for step, or for who pumps.
func (c *console) news() bool {
	c.looks++
	return c.port.Buffered() > 0 || c.ring.InFlight() != c.inFlight || c.nudges.Load() != c.heard || c.port.Removed()
}

// step takes what has come, and offers what there is room for.
func (c *console) step() error {
	counts := c.state.Load() == measuring
	n := c.ring.InFlight()
	used := c.inFlight - n
	c.inFlight = n
	came := 0
	for c.port.Buffered() > 0 {
		b := c.port.Peek()
		if c.in == nil {
			return fmt.Errorf("input has come on port %d that nobody has sent, such as %.20q: is %s its other side?", c.port.ID, b, c.host.name)
		}
		part, err := c.in.take(b)
		if err != nil {
			return err
		}
		if err := c.port.Skip(len(b)); err != nil {
			return err
		}
		came++
		if c.awaited -= len(part); c.awaited == 0 && counts && c.j.Pattern == Echo {
			_ = c.hist.RecordValue(min(int64(time.Since(c.issued)), maxLatency))
			c.done++
			c.bytes += uint64(c.j.BlockSize)
		} else if counts && c.j.Pattern != Echo {
			c.done++
			c.bytes += uint64(len(b))
		}
	}
	if used == 0 && came == 0 && c.phase == beginning {
		return nil
	}
	if counts && c.out != nil && c.j.Pattern != Echo {
		c.done += uint64(used)
		c.bytes += uint64(used) * uint64(c.j.BlockSize)
	}
	if counts && used+came > 0 {
		c.turns++
		if c.slept {
			c.waited++
		}
	}
	if used+came > 0 {
		c.moved.Add(1)
	}
	return c.offer()
}

// offer transmits what is to be in flight.
func (c *console) offer() error {
	if c.out == nil {
		return nil
	}
	switch c.phase {
	case flowing:
		depth := c.j.Depth
		if c.j.Pattern == Echo {
			depth = 1
			if c.awaited > 0 || c.inFlight > 0 {
				return nil
			}
			c.awaited, c.issued = int(c.j.BlockSize), time.Now()
		}
		for c.inFlight < depth {
			ok, err := c.port.Offer(c.out.next(int(c.j.BlockSize)), consoletest.Shape{})
			if err != nil {
				return err
			}
			if !ok {
				return errors.New("the ring has less room than it should")
			}
			c.inFlight++
		}
	case finishing:
		if c.endOffered || c.inFlight == int(c.ring.Layout().Size) {
			return nil
		}
		ok, err := c.port.Offer(c.out.finish(), consoletest.Shape{})
		if err != nil || !ok {
			return err
		}
		c.endOffered = true
		c.inFlight++
	}
	return nil
}

// hostReads takes the output at the host's side until its end has come, and with Echo it sends it
// back.
func (c *console) hostReads() error {
	b := make([]byte, hostBuffer)
	for !c.arrives.ended {
		n, err := c.host.rw.Read(b)
		if err == io.EOF || n == 0 && err == nil {
			err = errors.New("the other side has closed it")
		}
		if err != nil {
			return err
		}
		c.moved.Add(1)
		part, err := c.arrives.take(b[:n])
		if err != nil {
			return err
		}
		if c.arrives.began && !c.arrived.Load() {
			if c.j.Pattern == Echo {
				if _, err := c.host.rw.Write(c.arrives.begin[:]); err != nil {
					return err
				}
			}
			c.arrived.Store(true)
			c.nudge()
		}
		if c.j.Pattern == Echo && len(part) > 0 {
			if _, err := c.host.rw.Write(part); err != nil {
				return err
			}
		}
	}
	return nil
}

// hostWrites sends the input from the host's side.
func (c *console) hostWrites(begin <-chan struct{}) error {
	send := func(b []byte) error {
		_, err := c.host.rw.Write(b)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			err = errAborted
		}
		return err
	}
	if err := send(c.hostSends.begin[:]); err != nil {
		return err
	}
	<-begin
	for c.state.Load() < stopping {
		if err := send(c.hostSends.next(hostPiece)); err != nil {
			return err
		}
		c.moved.Add(1)
	}
	return send(c.hostSends.finish())
}
