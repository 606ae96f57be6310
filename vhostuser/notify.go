package vhostuser

import (
	"sync"

	"vdev/internal/sys"
)

// notifier sends messages to the front-end over the back-end channel, without ever waiting: neither
// for an answer, which none is asked for, nor for room in the socket.
//
// A message goes out only while a ring runs (a suspended device sends none, and QEMU ignores them
// then), and not while a message of the front-end is being handled: QEMU 7.2 reads this channel
// while it waits for a reply, and would ask us something in the midst of it. Until then it is
// remembered.
type notifier struct {
	sent func() // called after a message has gone out

	mu      sync.Mutex
	fd      *sys.FD // nil: no channel
	config  bool    // CONFIG was negotiated
	busy    bool    // a message of the front-end is being handled
	running int     // rings
	pending bool    // BACKEND_CONFIG_CHANGE_MSG is to be sent
}

// update changes the state by f, and sends what may be sent now.
func (n *notifier) update(f func()) {
	n.mu.Lock()
	f()
	sent := n.flushLocked()
	n.mu.Unlock()
	if sent {
		n.sent()
	}
}

// reset takes another channel, which it owns, or none.
func (n *notifier) reset(fd *sys.FD, config bool) {
	n.update(func() {
		closeFD(&n.fd)
		n.fd, n.config = fd, config
	})
}

// allow says whether CONFIG is negotiated.
func (n *notifier) allow(config bool) { n.update(func() { n.config = config }) }

// begin says that a message of the front-end is handled from now on, end that it has been.
func (n *notifier) begin() { n.update(func() { n.busy = true }) }
func (n *notifier) end()   { n.update(func() { n.busy = false }) }

// started counts running rings.
func (n *notifier) started(by int) { n.update(func() { n.running += by }) }

// forget drops what is pending: a new session reads everything anyway.
func (n *notifier) forget() { n.update(func() { n.pending = false }) }

// configChanged has BACKEND_CONFIG_CHANGE_MSG sent as soon as it may be. Any goroutine.
func (n *notifier) configChanged() { n.update(func() { n.pending = true }) }

func (n *notifier) flushLocked() (sent bool) {
	if !n.pending || n.busy || n.running == 0 || n.fd == nil || !n.config {
		return false
	}
	n.pending = false
	// Where the channel is full, the front-end has such messages waiting, and will read what is
	// true then. A channel that fails is the front-end's loss: the session does not depend on it.
	h := Header{Request: uint32(BackendConfigChangeMsg), Flags: FlagVersion}
	return sys.SendNow(n.fd.Int(), h.Append(nil)) == nil
}
