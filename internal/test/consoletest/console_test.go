package consoletest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"vdev/internal/test/consoletest"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// console is a small device: what is written to a port comes back as its input. What it tells the
// guest is up to the test.
type console struct {
	vhostuser.BaseDevice
	features uint64
	queues   int
	maxPorts uint32
	onReady  []consoletest.Message // what DEVICE_READY is answered with

	mu         sync.Mutex
	cols, rows uint16
	running    map[int]*vhostuser.Queue
	heard      []consoletest.Message
	chains     []string // of port 0 and those of data, in order: "ring: length of each descriptor"
	tell       []consoletest.Message
	echo       map[int][]byte // by ring, what its guest is to get
	hold       bool           // chains of ports are not used
	sink       bool           // chains of ports are used, and nothing is noted
	emergency  []byte
	changed    chan struct{} // closed at each change

	chain virtq.Chain
}

func newConsole(multiport bool, maxPorts uint32) *console {
	c := &console{
		features: virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx |
			consoletest.FeatureSize | consoletest.FeatureEmergWrite,
		queues: 2, cols: 100, rows: 40, maxPorts: maxPorts,
		running: map[int]*vhostuser.Queue{}, echo: map[int][]byte{}, changed: make(chan struct{}),
	}
	if multiport {
		c.features |= consoletest.FeatureMultiport
		c.queues = int(2 * (maxPorts + 1))
	}
	return c
}

func (c *console) Features() uint64 { return c.features }
func (c *console) NumQueues() int   { return c.queues }
func (c *console) ConfigSize() int  { return consoletest.ConfigSize }

func (c *console) ReadConfig(p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	binary.LittleEndian.PutUint16(p, c.cols)
	binary.LittleEndian.PutUint16(p[2:], c.rows)
	binary.LittleEndian.PutUint32(p[4:], c.maxPorts)
}

func (c *console) WriteConfig(off int, p []byte) error {
	if off != 0 || len(p) != consoletest.ConfigSize {
		return errors.New("not the whole space")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.emergency = append(c.emergency, p[8])
	return nil
}

func (c *console) StartQueue(q *vhostuser.Queue) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[q.Index()] = q
	return nil
}

func (c *console) StopDevice(rings []*vhostuser.Queue, _ vhostuser.Stop) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, q := range rings {
		delete(c.running, q.Index())
	}
}

func (c *console) StopQueue(q *vhostuser.Queue, how vhostuser.Stop) {
	c.StopDevice([]*vhostuser.Queue{q}, how)
}

// do changes the console, and has all rings looked at.
func (c *console) do(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
	for _, q := range c.running {
		q.Wake()
	}
}

// say has messages sent to the guest.
func (c *console) say(m ...consoletest.Message) { c.do(func() { c.tell = append(c.tell, m...) }) }

func (c *console) Process(q *vhostuser.Queue) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.sink {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	multiport := c.features&consoletest.FeatureMultiport != 0
	switch i := q.Index(); {
	case multiport && i == 2:
		for len(c.tell) > 0 && q.Pop(&c.chain) {
			n, _ := c.chain.Write(c.tell[0].Append(nil))
			q.Push(&c.chain, uint32(n))
			c.tell = c.tell[1:]
		}
	case multiport && i == 3:
		for q.Pop(&c.chain) {
			b := make([]byte, c.chain.ReadableLen())
			c.chain.Read(b)
			m := consoletest.ParseMessage(b)
			c.heard = append(c.heard, m)
			if m.Event == consoletest.DeviceReady {
				c.tell = append(c.tell[:0], c.onReady...)
				c.running[2].Wake()
			}
			q.Push(&c.chain, 0)
		}
	case i%2 == 0:
		for len(c.echo[i]) > 0 && q.Pop(&c.chain) {
			n, _ := c.chain.Write(c.echo[i][:min(len(c.echo[i]), c.chain.WritableLen())])
			c.echo[i] = c.echo[i][n:]
			q.Push(&c.chain, uint32(n))
		}
	default:
		for !c.hold && q.Pop(&c.chain) {
			if c.sink {
				q.Push(&c.chain, 0)
				continue
			}
			s := fmt.Sprint(i, ":")
			for _, r := range c.chain.Readable {
				s += fmt.Sprint(" ", len(r))
				c.echo[i-1] = append(c.echo[i-1], r...)
			}
			c.chains = append(c.chains, s)
			q.Push(&c.chain, 0)
			if in := c.running[i-1]; in != nil {
				in.Wake()
			}
		}
	}
	return false
}

// await waits until the console is as cond, which is called with mu held, wants it.
func (c *console) await(t *testing.T, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), vhostusertest.Timeout)
	defer cancel()
	for {
		c.mu.Lock()
		ok, changed := cond(), c.changed
		c.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatal("the console did not become as it should")
		}
	}
}

// serve returns the front-end's connection to a back-end of c, and that.
func (c *console) serve(t *testing.T) (*vhostuser.Backend, func() *vhostusertest.Frontend) {
	t.Helper()
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reactors.Close)
	backend, err := vhostuser.New(vhostuser.Config{Device: c, Reactors: reactors, OneReactor: true})
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	t.Cleanup(served.Wait)
	return backend, func() *vhostusertest.Frontend {
		front, theirs, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { front.Close() })
		served.Wait() // one front-end at a time
		served.Go(func() { _ = backend.ServeConn(context.Background(), theirs) })
		return front
	}
}

// guest returns a guest with a driver that is bound.
func (c *console) guest(t *testing.T, cfg consoletest.Config) (*consoletest.Guest, *vhostuser.Backend) {
	t.Helper()
	backend, connect := c.serve(t)
	g, err := consoletest.New(connect(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	if err := g.Bind(); err != nil {
		t.Fatal(err)
	}
	return g, backend
}
