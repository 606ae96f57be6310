package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/virtq"
)

// Config says what a Backend serves.
type Config struct {
	// Device is what is served. While a front-end is connected, the Backend calls it.
	Device Device
	// Reactors are the event loops that the rings are served on. They are the caller's, who closes
	// them after the Backend has ended.
	Reactors *Reactors
	// NotMigratable says that the device is never migrated. VHOST_F_LOG_ALL is not offered then,
	// and a front-end without it refuses to migrate. So every stop may suspend requests
	// (Stop.Suspends).
	NotMigratable bool
	// CancelAfter is how long requests in flight have to complete when the front-end disables or
	// stops rings. Then they are to be cancelled. 0: at once. The front-end waits as long.
	CancelAfter time.Duration
	// StopGap is how soon after one ring another one must be disabled or stopped to be a part of
	// the same stop. A stop has CancelAfter in all. 0: a second.
	StopGap time.Duration
	// OneReactor has all rings of a session served on one reactor: for a Device whose rings have
	// much in common, and not much to do each. Process and what is given to Queue.Post then never
	// run at the same time.
	OneReactor bool
	// MaxChain is how many descriptors a chain with an indirect table may have where its ring has
	// fewer, 0 to virtq.MaxSize. 0: 1024, which is what QEMU takes. A longer one breaks the ring.
	MaxChain int
	// Decline has protocol features not offered that the Device has no use for, such as
	// ProtocolInflightSHMFD for one that never suspends. What needs a declined feature is not
	// offered either: GET_VRING_BASE_INFLIGHT without INFLIGHT_SHMFD, BACKEND_SEND_FD without
	// BACKEND_REQ, and VHOST_F_LOG_ALL without LOG_SHMFD.
	Decline ProtocolFeatures
	// AnyMemoryFiles: guest memory, in-flight region and log may be any kind of file. Otherwise
	// they must be memfds or files of tmpfs or hugetlbfs (ErrMemoryFile). With another file,
	// storage or a server that does not answer holds up the whole process, and with it all other
	// devices.
	AnyMemoryFiles bool
	// Trace, if it is not nil, is called for every message and for what happens to the rings: on
	// the connection's goroutine and on the reactors, also at the same time. It must not block.
	Trace func(Event)
}

// Backend serves one Device to one front-end at a time.
type Backend struct {
	dev        Device
	reactors   *Reactors
	trace      func(Event)
	numQueues  int
	configSize int

	notMigratable bool
	cancelAfter   time.Duration
	stopGap       time.Duration
	oneReactor    bool
	maxChain      int
	decline       ProtocolFeatures
	closer        closer
	// of all front-ends, one after the other: what one leaves in use counts for the next
	space guestmem.Space

	keeper StateKeeper   // dev, where it is one
	told   ConfigWatcher // likewise

	mu      sync.Mutex
	current *session
	// accepted while the one before is being taken down, or about to be served
	waiting *net.UnixConn
}

// New returns a Backend. It refuses a Device whose numbers cannot be.
func New(cfg Config) (*Backend, error) {
	switch {
	case cfg.Device == nil:
		return nil, errors.New("vhostuser: no Device")
	case cfg.Reactors == nil:
		return nil, errors.New("vhostuser: no Reactors")
	}
	b := &Backend{
		dev: cfg.Device, reactors: cfg.Reactors, trace: cfg.Trace,
		numQueues: cfg.Device.NumQueues(), configSize: cfg.Device.ConfigSize(),
		notMigratable: cfg.NotMigratable, cancelAfter: cfg.CancelAfter, stopGap: cfg.StopGap, decline: cfg.Decline,
		oneReactor: cfg.OneReactor, maxChain: cfg.MaxChain,
	}
	if b.stopGap == 0 {
		b.stopGap = defaultStopGap
	}
	b.keeper, _ = cfg.Device.(StateKeeper)
	b.told, _ = cfg.Device.(ConfigWatcher)
	b.space.AnyFiles = cfg.AnyMemoryFiles
	if n := b.numQueues; n < 1 || n > int(VringIndexMask)+1 {
		return nil, fmt.Errorf("vhostuser: device has %d queues, must be 1 to %d", n, VringIndexMask+1)
	}
	if n := b.configSize; n < 0 || n > MaxConfigSize {
		return nil, fmt.Errorf("vhostuser: device has %d bytes of configuration space, must be at most %d", n, MaxConfigSize)
	}
	if n := b.maxChain; n < 0 || n > virtq.MaxSize {
		return nil, fmt.Errorf("vhostuser: chains of %d descriptors, must be at most %d", n, virtq.MaxSize)
	}
	return b, nil
}

// blockedPause is how long a device serves no front-end after one has made a reactor wait by an
// eventfd, for up to 20 ms. All else on the reactor has waited too, and so waits for at most a
// fiftieth of its time.
const blockedPause = time.Second

// ServeConn serves one front-end on a connected socket, and closes it. When it returns, all rings
// have stopped, and everything that came over the connection is released. It returns nil when the
// front-end has hung up between two messages, and when ctx is done. ErrBusy: another front-end is
// served. ErrClosing: the front-end comes too early after another. Other errors say why the
// connection was ended: a *ProtocolError, a *RingError, or the host's. After a front-end whose
// eventfds have made a reactor wait it returns a second later.
func (b *Backend) ServeConn(ctx context.Context, c *net.UnixConn) error { return b.serve(ctx, c) }

func (b *Backend) serve(ctx context.Context, c socket) error {
	if err := b.closer.check(); err != nil {
		b.refuse(c, err)
		return err
	}
	b.mu.Lock()
	if b.current != nil {
		b.mu.Unlock()
		b.refuse(c, ErrBusy)
		return ErrBusy
	}
	s := newSession(ctx, b, newConn(c, &b.closer))
	b.current = s
	b.mu.Unlock()

	b.event(Event{Kind: EventConnect, Ring: -1})
	err := s.run()
	// Only now: to the front-end its memory is used no more when the socket is closed.
	c.Close()
	if s.blocked.Load() {
		select {
		case <-time.After(blockedPause):
		case <-ctx.Done():
		}
	}
	b.mu.Lock()
	b.current = nil
	b.mu.Unlock()
	b.event(Event{Kind: EventDisconnect, Ring: -1, Err: err})
	return err
}

// Serve serves the front-ends that connect to ln, one after the other, until ctx is done or ln has
// no more (io.EOF, which a listener of FromFD may answer with); then it returns nil. It also ends
// when ln fails, with that error. It closes ln, and returns when the last connection has ended.
// Events tell why connections end.
//
// A front-end that connects while another is served is refused: its connection is closed. If the
// other has hung up, and is only being taken down, it waits.
func (b *Backend) Serve(ctx context.Context, ln net.Listener) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		ln.Close()
		close(closed)
	})
	defer func() {
		if stop() {
			ln.Close()
		} else {
			<-closed
		}
	}()
	accepted := make(chan struct{}, 1)
	var failed error
	go func() {
		defer close(accepted)
		failed = b.accept(ctx, ln, accepted)
	}()
	for range accepted {
		for c := b.takeWaiting(); c != nil; c = b.takeWaiting() {
			if ctx.Err() != nil {
				c.Close()
				continue
			}
			_ = b.ServeConn(ctx, c)
		}
	}
	if ctx.Err() != nil || errors.Is(failed, io.EOF) {
		return nil
	}
	return failed
}

// accept accepts connections, and sends to accepted when one waits. It returns why it ended.
func (b *Backend) accept(ctx context.Context, ln net.Listener, accepted chan<- struct{}) error {
	told := false // that the host is short of something
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			told = false
		case ctx.Err() == nil && (errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
			errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ECONNABORTED)):
			// The host is short of something; the connection waits in its queue.
			if !told && !errors.Is(err, syscall.ECONNABORTED) {
				told = true
				b.event(Event{Kind: EventShort, Ring: -1, Err: err})
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		default:
			return err
		}
		uc, ok := c.(*net.UnixConn)
		if !ok {
			c.Close()
			return fmt.Errorf("vhostuser: %v is no listener of Unix sockets", ln.Addr())
		}
		if !b.offer(uc) {
			b.refuse(uc, ErrBusy)
			continue
		}
		select {
		case accepted <- struct{}{}:
		default:
		}
	}
}

// offer takes c as the front-end to serve next, unless one is there already that has not hung up.
func (b *Backend) offer(c *net.UnixConn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.waiting != nil:
		if !hungUp(b.waiting) {
			return false
		}
		b.waiting.Close()
	case b.current != nil:
		if b.current.ctx.Err() == nil && !hungUp(b.current.c.uc) {
			return false
		}
	}
	b.waiting = c
	return true
}

func (b *Backend) takeWaiting() *net.UnixConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.waiting
	b.waiting = nil
	return c
}

// refuse closes the connection of a front-end that is not served.
func (b *Backend) refuse(c io.Closer, why error) {
	b.event(Event{Kind: EventRefuse, Ring: -1, Err: why})
	c.Close()
}

// hungUp tells whether the peer of c is gone.
func hungUp(c syscall.Conn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) { gone = sys.HungUp(int(fd)) })
	return err != nil || gone
}

// ConfigChanged tells the front-end that the configuration space has changed
// (BACKEND_CONFIG_CHANGE_MSG). While no ring runs, the front-end must not be told: then it is told
// at the next start. A front-end that comes later reads the configuration space anyway. Any
// goroutine; it does not wait.
func (b *Backend) ConfigChanged() {
	b.mu.Lock()
	s := b.current
	b.mu.Unlock()
	if s != nil {
		s.notify.configChanged()
	}
}

func (b *Backend) event(e Event) {
	if b.trace != nil {
		e.Time = time.Now()
		b.trace(e)
	}
}
