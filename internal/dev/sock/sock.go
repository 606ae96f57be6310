// Package sock attaches what connects to a socket, or is connected to, to a line. The first client
// is the line's main end; those that come while it is there only watch. What a client has sent when
// it goes is the guest's still.
package sock

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"vdev/devsw/line"
	"vdev/internal/ready"
	"vdev/internal/sys"
)

const (
	// DefaultWatchers is how many clients may watch where nobody says.
	DefaultWatchers = 4
	// maxGone is how many clients that have gone may have left input that the guest has not read.
	// While there are so many, nobody new is accepted, or connected to. (A line with the overflow
	// Drop lets go of the oldest before.)
	maxGone = 9

	// The delay before another try to connect, or to accept after an error.
	firstDelay = 100 * time.Millisecond
	lastDelay  = 5 * time.Second
)

// Config describes a socket.
type Config struct {
	Network string // "unix" or "tcp"
	Address string // a path, or host:port
	// Connect says that it connects to the address, again whenever the connection has ended. Else
	// it listens there.
	Connect bool
	// Watchers is how many clients besides the first one may be there, who only watch.
	Watchers int
	// Log is told what goes wrong after New, on any goroutine. It may be nil.
	Log func(error)
}

// Socket is a socket of a line.
type Socket struct {
	line   *line.Line
	conf   Config
	listen net.Listener  // nil: it connects
	places chan struct{} // has one for each client that is there, or has left input
	ctx    context.Context
	quit   context.CancelFunc
	ended  sync.WaitGroup

	mu       sync.Mutex
	writer   *client // the one who is the main end
	watchers int
	clients  map[*client]struct{} // those that are not closed; nil: the socket is closed
	number   int                  // of clients ever
}

// New makes a socket of l, and listens, or begins to connect. Its error is about an address where
// nobody can listen; sys.ErrInUse: somebody else does.
func New(l *line.Line, conf Config) (*Socket, error) {
	s := &Socket{line: l, conf: conf, clients: map[*client]struct{}{},
		places: make(chan struct{}, 1+conf.Watchers+maxGone)}
	if s.conf.Log == nil {
		s.conf.Log = func(error) {}
	}
	s.ctx, s.quit = context.WithCancel(context.Background())
	run := s.connect
	if !conf.Connect {
		var err error
		if s.listen, err = listen(conf.Network, conf.Address); err != nil {
			return nil, fmt.Errorf("socket: listen on %s: %w", conf.Address, err)
		}
		run = s.accept
	}
	s.ended.Go(run)
	return s, nil
}

func listen(network, address string) (net.Listener, error) {
	var ln net.Listener
	var err error
	if network == "unix" {
		ln, err = sys.ListenUnix(address, 0)
	} else {
		ln, err = net.Listen(network, address)
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err // it has the address in it already
	}
	if err != nil {
		return nil, err
	}
	return ln, nil
}

// Addr is where it listens, or nil.
func (s *Socket) Addr() net.Addr {
	if s.listen == nil {
		return nil
	}
	return s.listen.Addr()
}

// Close takes the socket from the line, with all its clients. A Unix socket's name is removed. It
// waits for no client.
func (s *Socket) Close() {
	s.quit()
	if s.listen != nil {
		s.listen.Close()
	}
	s.mu.Lock()
	clients := s.clients
	s.clients = nil
	s.mu.Unlock()
	for c := range clients {
		c.Remove()
	}
	s.ended.Wait()
}

// accept accepts clients.
func (s *Socket) accept() {
	delay := firstDelay
	for s.place() {
		nc, err := s.listen.Accept()
		if err == nil {
			delay = firstDelay
			s.attach(nc)
			continue
		}
		<-s.places
		if s.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		// As a rule no descriptors are left.
		s.conf.Log(fmt.Errorf("socket: accept on %s: %w", s.conf.Address, err))
		s.sleep(&delay)
	}
}

// connect has one connection after the other.
func (s *Socket) connect() {
	delay := firstDelay
	var dialer net.Dialer
	var said string
	for s.place() {
		nc, err := dialer.DialContext(s.ctx, s.conf.Network, s.conf.Address)
		if err != nil {
			<-s.places
			if s.ctx.Err() == nil && said != err.Error() {
				said = err.Error()
				s.conf.Log(fmt.Errorf("socket: connect to %s: %w", s.conf.Address, err))
			}
			s.sleep(&delay)
			continue
		}
		said = ""
		since := time.Now()
		if c := s.attach(nc); c != nil {
			select {
			case <-c.gone:
			case <-s.ctx.Done():
			}
		}
		if time.Since(since) > lastDelay {
			delay = firstDelay
		}
		s.sleep(&delay)
	}
}

// place waits until there may be one client more. It is over when the socket is closed.
func (s *Socket) place() bool {
	select {
	case s.places <- struct{}{}:
		return s.ctx.Err() == nil
	case <-s.ctx.Done():
		return false
	}
}

func (s *Socket) sleep(delay *time.Duration) {
	t := time.NewTimer(*delay)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.ctx.Done():
	}
	*delay = min(2**delay, lastDelay)
}

// attach adds a client to the line, which has a place already. It returns nil where that is not
// possible: then the connection is closed.
func (s *Socket) attach(nc net.Conn) *client {
	c := &client{socket: s, gone: make(chan struct{})}
	_, c.halves = nc.(*net.UnixConn)
	if c.conn = sys.NewStream(nc); c.conn == nil {
		nc.Close()
		<-s.places
		s.conf.Log(fmt.Errorf("socket: a client of %s: no descriptors are left", s.conf.Address))
		return nil
	}
	if err := s.add(c); err != nil {
		c.Close()
		s.conf.Log(fmt.Errorf("socket: a client of %s: %w", s.conf.Address, err))
		return nil
	}
	return c
}

var errFull = errors.New("refused: as many watch as may")

func (s *Socket) add(c *client) error {
	// One that has gone to come again must not find itself in its own way.
	s.mu.Lock()
	there := slices.Collect(maps.Keys(s.clients))
	s.mu.Unlock()
	for _, other := range there {
		other.look()
	}

	s.mu.Lock()
	var end line.End = c
	role := line.Main
	s.number++
	name := fmt.Sprintf("socket client %d", s.number)
	switch {
	case s.clients == nil:
		s.mu.Unlock()
		return net.ErrClosed
	case s.writer == nil:
		s.writer = c
		end = writer{c}
	case s.watchers < s.conf.Watchers:
		s.watchers++
		role = line.Watcher
		name += " (watches)"
		c.scratch = [][]byte{make([]byte, 4<<10)}
	default:
		s.mu.Unlock()
		return errFull
	}
	s.clients[c] = struct{}{}
	s.mu.Unlock()

	var err error
	if c.watch, err = ready.Watch(c.conn.Int(), c.told); err != nil {
		return err
	}
	if err = s.line.Add(end, name, role); err != nil {
		return err
	}
	if c.scratch != nil {
		_ = c.watch.Arm()
	}
	// Either may have come when the line did not know the client.
	if c.hung.Load() {
		c.hangup()
	}
	if s.ctx.Err() != nil {
		c.Remove()
	}
	return nil
}

// left says that c is no client any more, though it may have left input.
func (s *Socket) left(c *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.isGone {
		return
	}
	c.isGone = true
	close(c.gone)
	switch {
	case s.writer == c:
		s.writer = nil
	case c.scratch != nil:
		s.watchers--
	}
}
