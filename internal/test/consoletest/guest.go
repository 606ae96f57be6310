// Package consoletest is a guest driver for virtio-console, with the front-end beneath it, for
// tests, fuzz targets and benchmarks of back-ends. It does what Linux does, or what NetBSD does,
// and what a test tells it to do beside: chains of any shape, control messages of any kind.
//
// Nothing happens in a Guest but within a call of one of its methods: Poll is its interrupt
// handler, and Wait sleeps until there is something to handle. A Guest and its Ports belong to one
// goroutine; Wake alone may be called by others. A device that misuses a ring makes virtqtest
// panic.
package consoletest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// ConfigSize is how many bytes the configuration space has: cols, rows, max_nr_ports, emerg_wr
// (virtio 1.2, 5.3.4).
const ConfigSize = 12

// ErrBroken is wrapped when the back-end has given a ring up. It is told once for each ring.
var ErrBroken = errors.New("the back-end has given the ring up as broken")

// ErrTimeout is wrapped when what was waited for has not come.
var ErrTimeout = errors.New("it did not come")

// ErrTooFewQueues is wrapped by Bind where max_nr_ports needs more queues than there are. Linux
// fails its probe with EINVAL then.
var ErrTooFewQueues = errors.New("too few queues")

// Config says which guest driver it is.
type Config struct {
	Features uint64 // those it takes, of what is offered
	RingSize int    // descriptors
	// ControlRing is what RingSize is to the control rings; 0: the same.
	ControlRing int
	Buffer      int    // bytes of a port's receive buffer
	Chunk       int    // bytes of a transmit chain that Write makes, at most
	Memory      uint64 // bytes of guest memory, of which only those count that are used
	// Mem is the guest's memory where it is not nil. It is the caller's, who closes it.
	Mem *virtqtest.Mem

	// LateSize: the size in the configuration space is not read at Bind, but only after a change is
	// told. Linux 6.1 is so.
	LateSize bool
	// Forgetful: what comes while the terminal is closed is thrown away, also on a console. NetBSD
	// is so.
	Forgetful bool
}

// Linux returns what Linux is.
func Linux() Config {
	return Config{
		Features: virtq.FeatureVersion1 | virtq.FeatureIndirectDesc | virtq.FeatureEventIdx | FeatureSize | FeatureMultiport,
		RingSize: 64, Buffer: 4096, Chunk: 32 << 10, Memory: 256 << 20,
	}
}

// NetBSD returns what NetBSD is, whose viocon(4) knows of one port only.
func NetBSD() Config {
	return Config{
		Features: virtq.FeatureVersion1 | FeatureSize,
		RingSize: 64, Buffer: 128, Chunk: 128, Memory: 16 << 20, Forgetful: true,
	}
}

// lowMemory is what a Guest leaves alone at the start of its memory, in bytes: on a PC not all of
// that is memory.
const lowMemory = 1 << 20

// The control rings, with MULTIPORT.
const (
	controlIn  = 2
	controlOut = 3

	controlBuffer = 4096 // bytes of a receive buffer of theirs
)

// ringsOf gives the rings of a port: the first for input.
func ringsOf(id uint32) (in, out int) {
	if id == 0 {
		return 0, 1
	}
	return int(2*id + 2), int(2*id + 3)
}

// What a Guest is.
type state int

const (
	unbound state = iota // no driver
	running
	paused // the rings have stopped, and the driver does not know
)

// Guest is a guest with one console device. What is exported changes in Poll, and in what calls
// that.
type Guest struct {
	// What the configuration space had when it was read last. Linux with MULTIPORT does not look
	// at the size; this Guest does, at Bind and with ReadConfig.
	Cols, Rows uint16
	MaxPorts   uint32
	// ConfigChanges counts the changes that were told.
	ConfigChanges int
	// Received are the control messages that came, in order. A test may empty it.
	Received []Message
	// Patience is how long Wait waits.
	Patience time.Duration

	cfg     Config
	f       *vhostusertest.Frontend
	offered uint64
	mem     *virtqtest.Mem
	rings   int // the back-end's
	state   state
	config  [ConfigSize]byte // as it was read last

	queues []*queue // by index; nil: none was set up yet
	ports  []*Port  // by id; nil: there is none
	free   []buffer

	epoll   *sys.Epoll
	wake    *sys.FD
	channel int // the back-end channel's descriptor in epoll, -1 for none
	woken   func(tag uint64)
	news    bool // on the back-end channel
	broken  []int
	segs    []virtqtest.Seg // of a chain that is made
}

// What a descriptor in the epoll instance is for; a ring's have its index beside it.
const (
	tagCall = iota << 16
	tagErr
	tagWake
	tagChannel
	tagKinds = ^uint64(0xffff)
)

// queue is a ring and the memory of its chains.
type queue struct {
	*vhostusertest.Ring
	held []buffer // by head; the zero buffer: none of ours
}

// buffer is some guest memory.
type buffer struct {
	addr  uint64 // guest physical
	bytes []byte
}

// New begins a session on f, which the Guest owns from now on, also where New fails. There is no
// driver yet: Bind is next.
func New(f *vhostusertest.Frontend, cfg Config) (*Guest, error) {
	g := &Guest{cfg: cfg, Patience: vhostusertest.Timeout, channel: -1}
	g.woken = g.event // made once: a method value allocates
	err := func() (err error) {
		if g.epoll, err = sys.NewEpoll(); err != nil {
			return err
		}
		if g.wake, err = sys.NewEventfd(); err != nil {
			return err
		}
		if err := g.epoll.Add(g.wake.Int(), tagWake); err != nil {
			return err
		}
		if g.mem = cfg.Mem; g.mem == nil {
			if g.mem, err = virtqtest.NewMem(virtqtest.Range{Size: cfg.Memory}); err != nil {
				return err
			}
		}
		g.mem.Alloc(lowMemory, 1)
		return nil
	}()
	if err == nil {
		err = g.begin(f)
	} else {
		f.Close()
	}
	if err != nil {
		g.Close()
		return nil, err
	}
	return g, nil
}

// begin begins a session on f, with the guest's memory.
func (g *Guest) begin(f *vhostusertest.Frontend) (err error) {
	g.f = f
	if g.offered, err = f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	g.rings = 2
	if f.ProtocolFeatures()&vhostuser.ProtocolMQ != 0 {
		if g.rings, err = f.GetQueueNum(); err != nil {
			return err
		}
	}
	if c := f.Channel(); c != nil {
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var added error
		err = raw.Control(func(fd uintptr) {
			g.channel = int(fd)
			added = g.epoll.Add(g.channel, tagChannel)
		})
		if err := errors.Join(err, added); err != nil {
			return err
		}
	}
	return f.AddMemory(g.mem)
}

// Close hangs up, as at the guest's end, and frees what g has.
func (g *Guest) Close() {
	if g.f != nil {
		g.f.Close()
	}
	for _, q := range g.queues {
		if q != nil {
			q.Ring.Close()
		}
	}
	if g.mem != nil && g.cfg.Mem == nil {
		g.mem.Close()
	}
	if g.wake != nil {
		g.wake.Close()
	}
	if g.epoll != nil {
		g.epoll.Close()
	}
}

// Frontend returns the connection, for what a Guest does not do.
func (g *Guest) Frontend() *vhostusertest.Frontend { return g.f }

// Memory returns the guest's memory, for chains that a Guest does not make.
func (g *Guest) Memory() *virtqtest.Mem { return g.mem }

// Ring returns a ring that was set up. Chains that a test adds there are its own: the Guest takes
// their used elements and does nothing with them.
func (g *Guest) Ring(index int) *vhostusertest.Ring { return g.queues[index].Ring }

// Offered returns the features that the back-end offers.
func (g *Guest) Offered() uint64 { return g.offered }

// Features returns those that were negotiated.
func (g *Guest) Features() uint64 { return g.f.Features() }

// Multiport tells whether there are control rings.
func (g *Guest) Multiport() bool { return g.Features()&FeatureMultiport != 0 }

// Port returns a port that the device has added, else nil. Without MULTIPORT there is port 0.
func (g *Guest) Port(id uint32) *Port {
	if uint64(id) < uint64(len(g.ports)) {
		return g.ports[id]
	}
	return nil
}

// Bind has the driver begin, as its probe does: it negotiates, starts the rings, gives the device
// control buffers, and says DEVICE_READY. Without MULTIPORT it posts receive buffers. It does not
// wait for ports.
func (g *Guest) Bind() error {
	if g.state != unbound {
		panic("consoletest: Bind of a driver that is bound")
	}
	if err := g.ReadConfig(); err != nil {
		return err
	}
	if g.cfg.LateSize {
		g.Cols, g.Rows = 0, 0
	}
	if err := g.f.SetFeatures(g.offered & (g.cfg.Features | vhostuser.FProtocolFeatures)); err != nil {
		return err
	}
	n := 2
	if g.Multiport() {
		if g.MaxPorts == 0 || g.MaxPorts > 1<<15 {
			return fmt.Errorf("max_nr_ports is %d", g.MaxPorts)
		}
		n = int(2 * (g.MaxPorts + 1))
	}
	if n > g.rings {
		return fmt.Errorf("%w: %d ports need %d, and there are %d", ErrTooFewQueues, g.MaxPorts, n, g.rings)
	}
	if err := g.setUp(n); err != nil {
		return err
	}
	g.ports = make([]*Port, (n+1)/2)
	if err := g.start(); err != nil {
		return err
	}
	if !g.Multiport() {
		p := g.addPort(0)
		p.Console = true
		return g.fill(p.in)
	}
	if err := g.fill(g.queues[controlIn]); err != nil {
		return err
	}
	return g.Send(Message{ID: NoPort, Event: DeviceReady, Value: 1})
}

// setUp makes n rings, empty.
func (g *Guest) setUp(n int) error {
	for i := range n {
		if i < len(g.queues) {
			g.queues[i].Renew()
			continue
		}
		size := g.cfg.RingSize
		if g.cfg.ControlRing != 0 && g.Multiport() && (i == controlIn || i == controlOut) {
			size = g.cfg.ControlRing
		}
		r, err := g.f.NewRing(g.mem, i, size)
		if err != nil {
			return err
		}
		g.queues = append(g.queues, &queue{Ring: r, held: make([]buffer, size)})
		if err := errors.Join(g.epoll.Add(r.CallFD(), tagCall|uint64(i)), g.epoll.Add(r.ErrFD(), tagErr|uint64(i))); err != nil {
			return err
		}
	}
	return nil
}

// inUse are the rings that the driver has set up.
func (g *Guest) inUse() []*queue {
	if g.state == unbound && len(g.ports) == 0 {
		return nil
	}
	n := 2
	if g.Multiport() {
		n = 2 * len(g.ports)
	}
	return g.queues[:n]
}

// start starts the rings, in QEMU's order: all are set up, and then all are enabled, also those
// that the driver has not set up.
func (g *Guest) start() error {
	for _, q := range g.inUse() {
		if err := errors.Join(q.Setup(), g.f.SetVringKick(q.Index, q.KickFD())); err != nil {
			return err
		}
	}
	g.state = running
	return g.enable(true)
}

func (g *Guest) enable(on bool) error {
	if g.Features()&vhostuser.FProtocolFeatures == 0 {
		return nil
	}
	for i := range g.rings {
		if err := g.f.SetVringEnable(i, on); err != nil {
			return err
		}
	}
	return nil
}

// stop stops the rings, in QEMU's order.
func (g *Guest) stop() error {
	if err := g.enable(false); err != nil {
		return err
	}
	for _, q := range g.inUse() {
		var err error
		if q.Base, err = g.f.GetVringBase(q.Index); err != nil {
			return err
		}
	}
	return nil
}

// Unbind has the driver end: the rings stop, and there is not a word before. The guest forgets its
// ports, whose Reads and Writes give ErrRemoved from now on, and the chains. A reset, a reboot and
// an unplug are the same.
func (g *Guest) Unbind() error {
	if g.state != running {
		panic("consoletest: Unbind of a driver that does not run")
	}
	if err := g.stop(); err != nil {
		return err
	}
	g.forget()
	return nil
}

// forget ends what the driver has.
func (g *Guest) forget() {
	for _, p := range g.ports {
		if p != nil {
			g.drop(p)
		}
	}
	for _, q := range g.inUse() {
		for head, b := range q.held {
			g.give(b)
			q.held[head] = buffer{}
		}
	}
	g.ports, g.state = nil, unbound
}

// Pause stops the rings without the driver, as QEMU's stop does. Poll still finds what was used
// before. Resume starts them.
func (g *Guest) Pause() error {
	if g.state != running {
		panic("consoletest: Pause of a driver that does not run")
	}
	g.state = paused
	return g.stop()
}

// Resume starts the rings where they were, after Pause.
func (g *Guest) Resume() error {
	if g.state != paused {
		panic("consoletest: Resume without Pause")
	}
	// QEMU sends the features again.
	if err := g.f.SetFeatures(g.Features()); err != nil {
		return err
	}
	return g.start()
}

// Reconnect has the guest go on with another back-end, or with the same one after it was lost, as
// a QEMU does that can: the rings begin where the used rings end. f is the Guest's from now on. The
// driver does not know.
func (g *Guest) Reconnect(f *vhostusertest.Frontend) error {
	features := g.Features()
	g.f.Close() // and with it the channel, which ends the watch
	g.channel = -1
	if err := g.begin(f); err != nil {
		return err
	}
	if err := f.SetFeatures(features); err != nil {
		return err
	}
	if g.state == unbound {
		return nil
	}
	for _, q := range g.queues {
		q.Reconnect(f)
	}
	return g.start()
}

// ReadConfig reads the configuration space.
func (g *Guest) ReadConfig() error {
	b, err := g.f.GetConfig(0, ConfigSize)
	if err != nil {
		return err
	}
	copy(g.config[:], b)
	g.Cols, g.Rows = binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
	g.MaxPorts = binary.LittleEndian.Uint32(b[4:])
	return nil
}

// EmergencyWrite writes a character to emerg_wr, in whatever state the driver is. As with QEMU all
// of the space is written, with what was read last in it.
func (g *Guest) EmergencyWrite(c byte) error {
	binary.LittleEndian.PutUint32(g.config[8:], uint32(c))
	return g.f.SetConfig(0, g.config[:])
}

// take returns memory of n bytes or more.
func (g *Guest) take(n int) buffer {
	for i := len(g.free) - 1; i >= 0; i-- {
		if b := g.free[i]; len(b.bytes) >= n {
			g.free = slices.Delete(g.free, i, i+1)
			return b
		}
	}
	size := uint64(4096)
	for size < uint64(n) {
		size *= 2
	}
	addr := g.mem.Alloc(size, 4096)
	return buffer{addr, g.mem.Bytes(addr, size)}
}

// give takes memory back; the zero buffer is none.
func (g *Guest) give(b buffer) {
	if b.bytes != nil {
		g.free = append(g.free, b)
	}
}
