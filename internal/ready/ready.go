// Package ready tells when descriptors have something to read, or their peers have gone. It is for
// those who read without waiting, and want to be told only when they have found nothing. One thread
// waits for all descriptors of the process, while there are any; it is woken for nothing else.
// (Go's own poller wakes a thread for whatever comes, whoever waits for it.)
package ready

import (
	"fmt"
	"sync"

	"vdev/internal/sys"
)

// Events is a set of what has come to be known of a descriptor.
type Events uint8

// The events. ReadClosed and Hangup are told once each, and come with Readable where a read would
// find the end.
const (
	Readable   Events = 1 << iota // a read may find something, the end or an error too
	ReadClosed                    // the peer sends no more: what is there is all
	Hangup                        // nor does it receive
)

// Watcher is one descriptor that is watched. Its methods may be called on any goroutine.
type Watcher struct {
	poller *poller
	fd     int
	tag    uint64
	f      func(*Watcher, Events)

	mu     sync.Mutex // over the calls that use fd
	closed bool
	armed  bool
	known  Events // of ReadClosed and Hangup
}

// poller is the thread that waits. It ends when nobody is watched any more.
type poller struct {
	epoll *sys.Epoll
	wake  *sys.FD // an eventfd: nobody is watched

	mu       sync.Mutex
	watchers map[uint64]*Watcher // nil: it is ending
	last     uint64              // tag
}

var (
	mu      sync.Mutex
	current *poller // that new ones go to, or nil
)

// Watch watches fd, which stays the caller's and is open until Close has returned. From the start
// it is watched for ReadClosed and Hangup; for Readable, Arm is called. f is called on the thread
// that waits for all of them, so it must not wait. It may be called once more when Close has
// returned.
func Watch(fd int, f func(*Watcher, Events)) (*Watcher, error) {
	mu.Lock()
	defer mu.Unlock()
	p := current
	if p == nil {
		var err error
		if p, err = start(); err != nil {
			return nil, fmt.Errorf("watch of descriptor %d: %w", fd, err)
		}
		current = p
	}
	p.mu.Lock()
	p.last++
	w := &Watcher{poller: p, fd: fd, tag: p.last, f: f}
	p.watchers[w.tag] = w
	p.mu.Unlock()
	if err := p.epoll.AddOnce(fd, w.tag, sys.EpollReadClosed); err != nil {
		p.forget(w)
		return nil, fmt.Errorf("watch of descriptor %d: %w", fd, err)
	}
	return w, nil
}

// Arm has f called once with Readable, when there is something to read. That may be at once. A read
// that has found nothing calls it.
func (w *Watcher) Arm() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.armed = true
	return w.watchLocked()
}

// watchLocked watches for what is to be told.
func (w *Watcher) watchLocked() error {
	if w.closed {
		return nil
	}
	var events sys.EpollEvents
	if w.armed {
		events |= sys.EpollInput
	}
	switch {
	case w.known&ReadClosed == 0:
		events |= sys.EpollReadClosed
	case w.known&Hangup != 0 && !w.armed:
		return nil // it would be told again at once
	}
	return w.poller.epoll.Arm(w.fd, w.tag, events)
}

// Close ends the watch. It does not wait for f.
func (w *Watcher) Close() {
	w.mu.Lock()
	was := w.closed
	w.closed = true
	if !was {
		_ = w.poller.epoll.Remove(w.fd)
	}
	w.mu.Unlock()
	if !was {
		mu.Lock()
		defer mu.Unlock()
		w.poller.forget(w)
	}
}

// forget takes w out. It is called with the package's lock held.
func (p *poller) forget(w *Watcher) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.watchers, w.tag)
	if len(p.watchers) == 0 {
		p.watchers = nil
		current = nil
		_ = sys.EventfdWrite(p.wake.Int())
	}
}

func start() (*poller, error) {
	epoll, err := sys.NewEpoll()
	if err != nil {
		return nil, err
	}
	wake, err := sys.NewEventfd()
	if err != nil {
		epoll.Close()
		return nil, err
	}
	p := &poller{epoll: epoll, wake: wake, watchers: map[uint64]*Watcher{}}
	if err := epoll.Add(wake.Int(), 0); err != nil {
		epoll.Close()
		wake.Close()
		return nil, err
	}
	go p.run()
	return p, nil
}

func (p *poller) run() {
	defer p.wake.Close()
	defer p.epoll.Close()
	for p.epoll.WaitEvents(-1, p.woken) == nil {
		p.mu.Lock()
		over := p.watchers == nil
		p.mu.Unlock()
		if over {
			return
		}
	}
}

func (p *poller) woken(tag uint64, events sys.EpollEvents) {
	p.mu.Lock()
	w := p.watchers[tag]
	p.mu.Unlock()
	if w != nil {
		w.woken(events)
	}
}

func (w *Watcher) woken(events sys.EpollEvents) {
	w.mu.Lock()
	var are Events
	if events&(sys.EpollInput|sys.EpollHangup) != 0 {
		are |= Readable
	}
	if events&(sys.EpollReadClosed|sys.EpollHangup) != 0 {
		are |= ReadClosed | Readable
	}
	if events&sys.EpollHangup != 0 {
		are |= Hangup
	}
	are &^= w.known
	w.known |= are &^ Readable
	// Whoever arms it from now on has seen what is told below, or is told by what comes.
	w.armed = false
	_ = w.watchLocked()
	closed := w.closed
	w.mu.Unlock()
	if !closed {
		w.f(w, are)
	}
}
