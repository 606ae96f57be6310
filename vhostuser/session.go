package vhostuser

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/internal/guestmem"
	"vdev/internal/reactor"
	"vdev/internal/sys"
)

// virtioFeaturesOK is the device status bit FEATURES_OK (virtio 1.2, 2.1).
const virtioFeaturesOK = 8

// session is one front-end's connection. What a second SET_OWNER starts anew is reset by restart.
//
// Everything in it belongs to the connection's goroutine, but for ctx, end and blocked, and notify
// and look, which have locks of their own.
type session struct {
	b      *Backend
	c      *conn
	dev    Device
	parent context.Context
	ctx    context.Context // of parent; done when the session is to end; its cause says why
	end    context.CancelCauseFunc
	notify notifier

	blocked atomic.Bool // an eventfd of the front-end's has made a reactor wait

	mu          sync.Mutex
	interrupted bool          // the connection's reads and writes fail from now on
	ended       chan struct{} // closed when interrupted was set
	waited      bool          // the front-end waits for the Device
	// closed by the goroutine that watches for its hang-up meanwhile; nil where nobody has asked
	// for it
	watch chan struct{}

	reactor *reactor.Reactor // of all rings, with Config.OneReactor, once one was started

	look look // what Backend.Status shows; it has a lock of its own

	owned       bool             // SET_OWNER came
	protocol    ProtocolFeatures // negotiated; kept by restart
	features    uint64           // negotiated, with FProtocolFeatures
	negotiated  bool             // SET_FEATURES came
	status      uint8            // as SET_STATUS said last
	rings       []*ring
	mem         *guestmem.Memory
	driver      DriverOrigin // where the guest driver of the rings that run comes from, or ran last
	homeless    bool         // a ring runs that is not in mem
	stopping    stopTime
	inflight    *inflight     // nil for none
	log         *guestmem.Log // nil for none
	logFD       *sys.FD       // nil for none
	configSpace []byte
}

func newSession(ctx context.Context, b *Backend, c *conn) *session {
	s := &session{b: b, c: c, dev: b.dev, parent: ctx, ended: make(chan struct{})}
	s.ctx, s.end = context.WithCancelCause(ctx)
	s.configSpace = make([]byte, b.configSize)
	s.notify.sent = func() { b.event(Event{Kind: EventOut, Ring: -1, Message: BackendConfigChangeMsg.String()}) }
	s.reset()
	s.look.connected(c)
	s.publish()
	return s
}

// reset gives the session the state of its beginning, but for what is negotiated before SET_OWNER.
func (s *session) reset() {
	mem, err := guestmem.New()
	if err != nil {
		panic(err) // without regions there is nothing to refuse
	}
	s.mem = mem
	s.features, s.negotiated, s.status = 0, false, 0
	s.rings = make([]*ring, s.b.numQueues)
	for i := range s.rings {
		s.rings[i] = &ring{index: i}
	}
	s.driver = driverUnseen
}

// run serves the connection until it ends, and releases everything that came over it. It returns
// nil for a hang-up and for the end of the context it was started with.
func (s *session) run() error {
	context.AfterFunc(s.ctx, s.interrupt)
	s.dev.SessionBegin()
	err := s.serve()
	if cause := context.Cause(s.ctx); cause != nil && !hangup(err) {
		err = cause
	}
	// Whoever waits in the Device learns that there is nobody left to wait for.
	s.end(errHangup)
	s.notify.reset(nil, false)
	s.teardown()
	s.dropInflight()
	s.dropLog()
	s.mem.Release()
	<-s.ended
	if hangup(err) || err == context.Cause(s.parent) {
		return nil
	}
	return err
}

// hangup tells whether err is what the end of the front-end looks like.
func hangup(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, errHangup) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// interrupt makes reads and writes of the connection fail, those under way as well.
func (s *session) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.interrupted = true
	_ = s.c.uc.SetDeadline(time.Unix(1, 0))
	close(s.ended)
}

// serve handles one message after the other.
func (s *session) serve() error {
	var m message
	for {
		if err := s.c.read(&m, s.notify.begin); err != nil {
			return err
		}
		err := s.dispatch(&m)
		m.close()
		if err != nil {
			return err
		}
		if s.ctx.Err() != nil {
			return context.Cause(s.ctx)
		}
		if err := s.c.closer.check(); err != nil {
			return err
		}
		s.notify.end()
	}
}

// watchHangup has the session end when the front-end hangs up while the Device waits, and no
// message of it is read; it does nothing at other times. A front-end may have sent further messages
// by then: none of them is handled. Any goroutine.
func (s *session) watchHangup() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.waited || s.watch != nil {
		return
	}
	raw, err := s.c.uc.SyscallConn()
	if err != nil {
		return
	}
	done := make(chan struct{})
	s.watch = done
	go func() {
		defer close(done)
		hung := false
		_ = raw.Read(func(fd uintptr) bool {
			n, err := sys.Peek(int(fd))
			hung = err == nil && n == 0 || sys.Closed(int(fd))
			return hung || err != nil && !errors.Is(err, syscall.EAGAIN)
		})
		if hung {
			s.end(errHangup)
		}
	}()
}

// whileWaited calls a method of the Device that may wait, for a front-end that waits for its end.
func (s *session) whileWaited(call func()) {
	s.mu.Lock()
	s.waited = true
	s.mu.Unlock()
	call()
	s.mu.Lock()
	watch := s.watch
	s.waited, s.watch = false, nil
	if watch != nil {
		_ = s.c.uc.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	if watch == nil {
		return
	}
	<-watch
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.interrupted {
		_ = s.c.uc.SetReadDeadline(time.Time{})
	}
}

// teardown stops all rings, tells the Device that the session is over, and closes the rings'
// descriptors. Nothing of the guest's memory is used after it.
func (s *session) teardown() {
	s.stopDevice(StopDisconnect)
	s.dev.SessionEnd()
	for _, r := range s.rings {
		r.close()
	}
}

// restart begins a new session on the connection (a second SET_OWNER: QEMU's device_add over the
// chardev of a device that was removed). Rings, memory, in-flight region and virtio features of the
// old one are dropped. What the front-end negotiates before SET_OWNER, the protocol features and
// the back-end channel, is the new session's already.
func (s *session) restart() {
	s.teardown()
	s.dropInflight()
	s.dropLog()
	s.mem.Release()
	s.reset()
	s.notify.forget()
	s.dev.SessionBegin()
	s.b.event(Event{Kind: EventSession, Ring: -1})
}

// offered returns the features that GET_FEATURES answers with.
func (s *session) offered() uint64 {
	features := s.dev.Features()&^(FProtocolFeatures|FLogAll) | FProtocolFeatures
	if s.offeredProtocol()&ProtocolLogSHMFD != 0 {
		features |= FLogAll
	}
	return features
}

// offeredProtocol returns what GET_PROTOCOL_FEATURES answers with. Without a configuration space
// CONFIG is not offered: QEMU warns about it then.
func (s *session) offeredProtocol() ProtocolFeatures {
	p := ProtocolMQ | ProtocolReplyAck | ProtocolBackendReq | ProtocolBackendSendFD | ProtocolInflightSHMFD |
		ProtocolResetDevice | ProtocolConfigureMemSlots | ProtocolStatus | ProtocolGetVringBaseInflight |
		ProtocolLogSHMFD | ProtocolConfig
	if len(s.configSpace) == 0 {
		p &^= ProtocolConfig
	}
	if s.b.notMigratable {
		p &^= ProtocolLogSHMFD
	}
	p &^= s.b.decline
	// Without the one the other says nothing.
	if p&ProtocolInflightSHMFD == 0 {
		p &^= ProtocolGetVringBaseInflight
	}
	if p&ProtocolBackendReq == 0 {
		p &^= ProtocolBackendSendFD
	}
	return p
}

func (s *session) getFeatures(*message) ([]byte, error) {
	return AppendU64(nil, s.offered()), nil
}

// setFeatures takes the negotiated features. While a ring runs only LOG_ALL may change, and the bit
// that says whether rings can be disabled. Without that bit all rings are enabled at once
// (vhost-user, "Ring states").
func (s *session) setFeatures(m *message) ([]byte, error) {
	features := ParseU64(m.payload)
	if extra := features &^ s.offered(); extra != 0 {
		return nil, field("features", features, "within %#x", s.offered())
	}
	if s.running() {
		if diff := (features ^ s.features) &^ (FLogAll | FProtocolFeatures); diff != 0 {
			return nil, field("features", features, "%#x while a ring runs", s.features)
		}
	} else {
		s.dev.SetFeatures(features &^ (FProtocolFeatures | FLogAll))
	}
	s.features, s.negotiated = features, true
	s.relog()
	if features&FProtocolFeatures != 0 {
		return nil, nil
	}
	for _, r := range s.rings {
		r.enabled = true
		if err := s.settle(r); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

func (s *session) getProtocolFeatures(*message) ([]byte, error) {
	return AppendU64(nil, uint64(s.offeredProtocol())), nil
}

func (s *session) setProtocolFeatures(m *message) ([]byte, error) {
	features := ProtocolFeatures(ParseU64(m.payload))
	if features&^s.offeredProtocol() != 0 {
		return nil, field("protocol features", uint64(features), "within %#x", s.offeredProtocol())
	}
	s.protocol = features
	s.notify.allow(features&ProtocolConfig != 0)
	return nil, nil
}

func (s *session) setOwner(*message) ([]byte, error) {
	if s.owned {
		s.restart()
	}
	s.owned = true
	return nil, nil
}

// resetOwner disables all rings, which is what the specification recommends for this deprecated
// message.
func (s *session) resetOwner(*message) ([]byte, error) {
	var busy []*ring
	for _, r := range s.rings {
		r.enabled = false
		if r.q != nil && r.q.state == RingRunning && s.disable(r) > 0 {
			busy = append(busy, r)
		}
	}
	// All of them stop fetching before the Device waits for the first.
	for _, r := range busy {
		s.drain(r)
	}
	return nil, nil
}

// resetDevice disables all rings and gives the device its initial state. Rings that still run are
// stopped. The front-end keeps the ownership, and sends neither protocol features, nor memory, nor
// the call and error descriptors again: they stay. The in-flight region goes, with what was
// suspended in it: it is the requests of a guest that has forgotten them.
func (s *session) resetDevice(*message) ([]byte, error) {
	for _, r := range s.rings {
		r.enabled = false
	}
	s.stopDevice(StopReset)
	for _, r := range s.rings {
		r.base, r.left, r.broken = 0, 0, nil
	}
	s.driver = driverUnseen
	s.dropInflight()
	s.features, s.negotiated, s.status = 0, false, 0
	return nil, nil
}

func (s *session) getQueueNum(*message) ([]byte, error) {
	return AppendU64(nil, uint64(len(s.rings))), nil
}

func (s *session) getMaxMemSlots(*message) ([]byte, error) {
	return AppendU64(nil, guestmem.MaxRegions), nil
}

// getStatus answers with the status that was set last. QEMU adds bits to it, and then sets it.
// FEATURES_OK, which a device may take back, is only told while a negotiation stands.
func (s *session) getStatus(*message) ([]byte, error) {
	status := s.status
	if !s.negotiated {
		status &^= virtioFeaturesOK
	}
	return AppendU64(nil, uint64(status)), nil
}

// setStatus remembers the status, and nothing more: QEMU 7.2 sends 0 before it stops the rings,
// also for a pause.
func (s *session) setStatus(m *message) ([]byte, error) {
	status := ParseU64(m.payload)
	if status > 0xff {
		return nil, field("status", status, "at most 0xff")
	}
	s.status = uint8(status)
	return nil, nil
}

// getConfig answers with a part of the configuration space. Behind its end are zeros: front-ends
// ask for what the structure has in their version of the specification, and some wait for ever
// where they are refused.
func (s *session) getConfig(m *message) ([]byte, error) {
	c, err := ParseConfigSpace(m.payload)
	if err != nil {
		return nil, err
	}
	s.dev.ReadConfig(s.configSpace)
	c.Data = make([]byte, len(c.Data))
	if c.Offset < uint32(len(s.configSpace)) {
		copy(c.Data, s.configSpace[c.Offset:])
	}
	if w := s.b.told; w != nil {
		w.ConfigRead(int(c.Offset), len(c.Data))
	}
	return c.Append(nil), nil
}

func (s *session) setConfig(m *message) ([]byte, error) {
	c, err := s.parseConfig(m)
	if err != nil {
		return nil, err
	}
	// Who says 1 means the same field: Rust's vhost crate calls it WRITABLE, and has nothing else
	// to send. As the specification's "migration" it may name any field, of which the Device takes
	// those that it lets be written.
	if c.Flags != ConfigWritable && c.Flags != ConfigMigration {
		return nil, field("config flags", uint64(c.Flags), "0 or 1")
	}
	return nil, s.dev.WriteConfig(int(c.Offset), c.Data)
}

func (s *session) parseConfig(m *message) (ConfigSpace, error) {
	c, err := ParseConfigSpace(m.payload)
	if err != nil {
		return c, err
	}
	if end := uint64(c.Offset) + uint64(len(c.Data)); end > uint64(len(s.configSpace)) {
		return c, field("config offset and size", end, "at most %d together", len(s.configSpace))
	}
	return c, nil
}

// setBackendReqFD takes the socket for messages of ours.
func (s *session) setBackendReqFD(m *message) ([]byte, error) {
	if info, err := sys.Socket(m.fds[0].Int()); err != nil || !info.Unix || !info.Stream {
		kind, err := sys.KindOf(m.fds[0].Int())
		if err != nil {
			return nil, err
		}
		return nil, &DescriptorError{Kind: string(kind), Want: "a Unix stream socket"}
	}
	s.notify.reset(m.takeFD(0), s.protocol&ProtocolConfig != 0)
	return nil, nil
}
