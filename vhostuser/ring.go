package vhostuser

import (
	"errors"
	"fmt"
	"math/bits"

	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/virtq"
)

// ring is the control side of one virtqueue: what the front-end has set, and the two states it can
// be in, started or stopped, enabled or disabled (vhost-user, "Ring states").
//
//   - SET_VRING_KICK starts a ring, GET_VRING_BASE stops it. (By the specification the first kick
//     starts it; some front-ends then wait for the ring to be looked at without one.)
//   - SET_VRING_ENABLE enables and disables it, at any time.
//   - A ring runs, as a Queue that the Device has, from the moment it is both until it is stopped.
//     When it is disabled in between, nothing more is fetched, what is in flight is waited for, and
//     the Device keeps the ring.
//   - When no ring is fetched from any more, the first GET_VRING_BASE stops every ring that runs.
//   - A kick that comes before all this is not lost: a ring that begins to run, or is enabled
//     again, is looked at.
type ring struct {
	index int

	num     uint32 // 0: not set
	addr    VringAddr
	hasAddr bool
	base    uint16
	// the base that its last stop has answered; 0 in a new session and after RESET_DEVICE
	left           uint16
	suspended      int     // requests that its last stop has left in the in-flight region
	kick, call, er *sys.FD // nil where there is none

	started, enabled bool

	q      *Queue     // while it runs
	why    StopReason // why it was stopped last, or is being stopped
	broken error      // why it cannot run though it is started and enabled
}

var errVringOrder = errors.New("ring is started and enabled without SET_VRING_NUM and SET_VRING_ADDR")

// close closes the ring's descriptors.
func (r *ring) close() {
	closeFD(&r.kick)
	closeFD(&r.call)
	closeFD(&r.er)
}

// ring finds the ring that a message is about.
func (s *session) ring(index uint64) (*ring, error) {
	if index >= uint64(len(s.rings)) {
		return nil, field("index", index, "below %d", len(s.rings))
	}
	return s.rings[index], nil
}

// running tells whether any ring runs.
func (s *session) running() bool {
	for _, r := range s.rings {
		if r.q != nil {
			return true
		}
	}
	return false
}

// setVringNum sets the size. The guest chooses it: one that no split ring can have is refused, and
// breaks the ring when it is started all the same.
func (s *session) setVringNum(m *message) ([]byte, error) {
	state := ParseVringState(m.payload)
	r, err := s.ring(uint64(state.Index))
	if err != nil {
		return nil, err
	}
	if state.Num == 0 || state.Num > virtq.MaxSize {
		return nil, field("num", uint64(state.Num), "1 to %d", virtq.MaxSize)
	}
	if r.q != nil && state.Num != r.num {
		return nil, field("num", uint64(state.Num), "%d while ring %d runs", r.num, r.index)
	}
	r.num = state.Num
	if bits.OnesCount32(r.num) != 1 {
		return nil, &RingError{r.index, field("num", uint64(r.num), "a power of two")}
	}
	return nil, nil
}

// setVringAddr sets the addresses. On a running ring only the log flag may change. The guest
// chooses them: misaligned ones are refused, and break the ring when it is started all the same.
func (s *session) setVringAddr(m *message) ([]byte, error) {
	a := ParseVringAddr(m.payload)
	r, err := s.ring(uint64(a.Index))
	if err != nil {
		return nil, err
	}
	if a.Flags&^VringLog != 0 {
		return nil, field("flags", uint64(a.Flags), "0 or %d", VringLog)
	}
	if r.q != nil {
		old := r.addr
		if a.Desc != old.Desc || a.Avail != old.Avail || a.Used != old.Used {
			return nil, fmt.Errorf("addresses of ring %d must stay as they are while it runs", r.index)
		}
	}
	r.addr, r.hasAddr = a, true
	if r.q != nil {
		s.relogRing(r, r.q)
	}
	for _, p := range []struct {
		name  string
		addr  uint64
		align uint64
	}{{"descriptor", a.Desc, 16}, {"available", a.Avail, 2}, {"used", a.Used, 4}} {
		if p.addr%p.align != 0 {
			return nil, &RingError{r.index, field(p.name, p.addr, "a multiple of %d", p.align)}
		}
	}
	return nil, nil
}

// setVringBase sets the index of the first entry to take from the available ring. A ring that has
// an in-flight region knows better from there.
func (s *session) setVringBase(m *message) ([]byte, error) {
	state := ParseVringState(m.payload)
	r, err := s.ring(uint64(state.Index))
	if err != nil {
		return nil, err
	}
	if state.Num > 0xffff {
		return nil, field("num", uint64(state.Num), "at most 0xffff")
	}
	if r.q != nil {
		return nil, fmt.Errorf("base of ring %d cannot be set while it runs", r.index)
	}
	r.base = uint16(state.Num)
	return nil, nil
}

// vringFD finds the ring and the descriptor of a message that brings one, or, with the
// invalid-descriptor flag, none.
func (s *session) vringFD(m *message) (*ring, *sys.FD, error) {
	v := ParseU64(m.payload)
	if v&^(VringIndexMask|VringNoFD) != 0 {
		return nil, nil, field("u64", v, "an index and bit 8")
	}
	r, err := s.ring(v & VringIndexMask)
	if err != nil {
		return nil, nil, err
	}
	want := 1
	if v&VringNoFD != 0 {
		want = 0
	}
	if len(m.fds) != want {
		return nil, nil, field("fds", uint64(len(m.fds)), "%d by bit 8 of the payload", want)
	}
	if want == 0 {
		return r, nil, nil
	}
	fd, err := m.takeEventfd()
	return r, fd, err
}

// setVringKick starts the ring. Without a descriptor it is polled.
func (s *session) setVringKick(m *message) ([]byte, error) {
	r, fd, err := s.vringFD(m)
	if err != nil {
		return nil, err
	}
	old := r.kick
	r.kick = fd
	if old != nil {
		defer old.Close()
	}
	if q := r.q; q != nil {
		q.reactor.Do(func() { err = q.reactor.SetKick(q.src, fdNumber(fd)) })
		return nil, err
	}
	r.started = true
	return nil, s.settle(r)
}

// setVringCall sets the descriptor that tells the guest of used buffers.
func (s *session) setVringCall(m *message) ([]byte, error) {
	r, fd, err := s.vringFD(m)
	if err != nil {
		return nil, err
	}
	if q := r.q; q != nil {
		call := newSignal(fd)
		q.reactor.Do(func() { q.call = call })
	}
	closeFD(&r.call)
	r.call = fd
	return nil, nil
}

// setVringErr sets the descriptor that tells the front-end of a broken ring.
func (s *session) setVringErr(m *message) ([]byte, error) {
	r, fd, err := s.vringFD(m)
	if err != nil {
		return nil, err
	}
	if q := r.q; q != nil {
		errs := newSignal(fd)
		q.reactor.Do(func() { q.errs = errs })
	}
	closeFD(&r.er)
	r.er = fd
	return nil, nil
}

func (s *session) setVringEnable(m *message) ([]byte, error) {
	state := ParseVringState(m.payload)
	r, err := s.ring(uint64(state.Index))
	if err != nil {
		return nil, err
	}
	if state.Num > 1 {
		return nil, field("num", uint64(state.Num), "0 or 1")
	}
	if s.negotiated && s.features&FProtocolFeatures == 0 {
		return nil, fmt.Errorf("without VHOST_USER_F_PROTOCOL_FEATURES rings are always enabled")
	}
	r.enabled = state.Num == 1
	return nil, s.settle(r)
}

// getVringBase stops the ring and answers with the index of the next entry to take from the
// available ring. When it returns, nothing of the ring's guest memory is used any more and nothing
// is signalled. A ring that was never started is stopped already.
//
// Where no other ring is fetched from, it is the device that is stopped, with all of its rings.
// They are answered for from what that has left; one that is enabled again instead starts there.
func (s *session) getVringBase(m *message) ([]byte, error) {
	state := ParseVringState(m.payload)
	r, err := s.ring(uint64(state.Index))
	if err != nil {
		return nil, err
	}
	switch {
	case r.q == nil:
	case s.fetching(r):
		s.stopRing(r, StopBase)
	default:
		s.stopDevice(StopBase)
	}
	if r.kick != nil {
		// Nobody has read the counter. QEMU looks at it after the stop, and starts a device without
		// VIRTIO 1 again if it is not 0.
		sys.DrainEventfd(r.kick.Int())
	}
	closeFD(&r.kick)
	r.started, r.broken = false, nil
	return VringState{Index: state.Index, Num: uint32(r.base)}.Append(nil), nil
}

// settle makes the ring run, pause or go on, as its two states want it to.
func (s *session) settle(r *ring) error {
	switch q := r.q; {
	case q != nil && q.state == RingRunning && !r.enabled:
		if s.disable(r) > 0 {
			s.drain(r)
		}
		return nil
	case q != nil && q.state != RingRunning && r.enabled:
		s.enable(r)
		return nil
	case q == nil && r.started && r.enabled && r.broken == nil:
		return s.start(r)
	default:
		return nil
	}
}

// enable makes a running ring be fetched from again. It is a barrier: when it returns, the reactor
// has seen it.
func (s *session) enable(r *ring) {
	q := r.q
	q.state, s.stopping = RingRunning, stopTime{}
	s.b.event(Event{Kind: EventEnable, Ring: r.index})
	s.dev.ResumeQueue(q)
	q.reactor.Do(q.unpause)
}

// disable makes a running ring be fetched from no more, and returns how many of its requests are in
// flight or suspended. It is a barrier, as enable is.
func (s *session) disable(r *ring) (left int) {
	q := r.q
	q.state = RingDisabled
	q.reactor.Do(func() {
		q.paused = true
		q.inFlight = q.InFlight()
		if left = q.inFlight + q.Suspended(); left == 0 {
			// What was pushed in this batch is shown now: after the answer nothing is.
			poller{q}.Flush()
		}
	})
	s.b.event(Event{Kind: EventDisable, Ring: r.index})
	return left
}

// pick returns the reactor for a ring that starts.
func (s *session) pick() *reactor.Reactor {
	if !s.b.oneReactor {
		return s.b.reactors.pool.Pick()
	}
	if s.reactor == nil {
		s.reactor = s.b.reactors.pool.Pick()
	}
	return s.reactor
}

// start makes the ring run: it is given to a reactor, then to the Device, and then fetched from.
// What the guest alone can have done wrong, and what the Device cannot, breaks the ring; the
// front-end's own errors are returned.
func (s *session) start(r *ring) error {
	if r.num == 0 || !r.hasAddr {
		return errVringOrder
	}
	q := &Queue{
		s: s, index: r.index, size: int(r.num), features: s.features &^ (FProtocolFeatures | FLogAll),
		reactor: s.pick(),
		call:    newSignal(r.call), errs: newSignal(r.er), logged: signal{fd: -1},
		paused: true, state: RingRunning,
		canSuspend: s.inflight.queue(r.index) != nil,
		migrates:   s.protocol&ProtocolGetVringBaseInflight != 0,
	}
	q.wake = func() {
		if q.src != nil {
			q.src.Wake()
		}
	}
	cfg := virtq.Config{
		Size: r.num, Desc: r.addr.Desc, Avail: r.addr.Avail, Used: r.addr.Used,
		Features: q.features, Base: r.base, Inflight: s.inflight.queue(r.index), MaxIndirect: uint32(s.b.maxChain),
	}
	var ringErr, kickErr error
	q.reactor.Do(func() { ringErr, kickErr = q.open(s.mem, cfg, fdNumber(r.kick)) })
	if kickErr != nil {
		return kickErr
	}
	if ringErr != nil {
		s.breakRing(r, ringErr)
		return nil
	}
	s.findDriver(r, q)
	q.driver = s.driver
	s.relogRing(r, q)
	fields := []Field{{"size", q.size}, {"base", q.base}, {"features", Hex(q.features)}}
	if q.canSuspend {
		fields = append(fields, Field{"resubmitted", q.resubmitted})
	}
	s.b.event(Event{Kind: EventStart, Ring: r.index, Fields: fields})
	s.stopping = stopTime{}
	if err := s.dev.StartQueue(q); err != nil {
		q.reactor.Do(q.close)
		s.breakRing(r, err)
		return nil
	}
	r.q, r.suspended = q, 0
	s.notify.started(1)
	q.reactor.Do(func() {
		// A call may have been lost on the way here, with the descriptor or the back-end before
		// this one.
		q.signal(q.call)
		q.unpause()
	})
	return nil
}

// breakRing leaves a ring that cannot run broken until it is stopped.
func (s *session) breakRing(r *ring, err error) {
	r.broken = err
	s.b.event(Event{Kind: EventBreak, Ring: r.index, Err: err})
	s.signalBroken(r)
	if fault := (*FaultError)(nil); errors.As(err, &fault) {
		s.end(&RingError{r.index, err})
	}
}

// signalBroken signals the error descriptor of a ring that does not run.
func (s *session) signalBroken(r *ring) {
	if r.er == nil || s.blocked.Load() {
		return
	}
	errs, reactor := newSignal(r.er), s.b.reactors.pool.Pick()
	reactor.Do(func() {
		if err := errs.send(reactor); err != nil {
			s.blocked.Store(true)
			s.end(&RingError{r.index, err})
		}
	})
}

// fdNumber returns the number of f, -1 for none.
func fdNumber(f *sys.FD) int {
	if f == nil {
		return -1
	}
	return f.Int()
}

// DriverOrigin says what is known of the guest driver that uses a ring.
type DriverOrigin int

const (
	driverUnseen DriverOrigin = iota // no ring has run in this session, nor since RESET_DEVICE
	// DriverNew begins: every ring is to be used from its beginning.
	DriverNew
	// DriverSame goes on where it was stopped in this session: the guest was paused.
	DriverSame
	// DriverElsewhere goes on with what it has begun in another session or with another back-end:
	// the connection was lost, or the guest was migrated, or set back to a snapshot.
	DriverElsewhere
)

// findDriver finds out what driver the session's rings have, when r is about to run, of which q was
// built: by the bases, which are 0 for rings that begin, and what GET_VRING_BASE has answered for
// those that go on; and by the in-flight region, which a new driver gets anew. The front-end has
// told the base of each ring that it has started; that of another may be left over from the driver
// before.
func (s *session) findDriver(r *ring, q *Queue) {
	if s.running() {
		if r.base != 0 && r.base != r.left {
			s.driver = DriverElsewhere
		}
		return
	}
	begins, goesOn, ran := !q.vq.Inherited(), true, false
	for _, r := range s.rings {
		ran = ran || r.left != 0
		if r.started {
			begins = begins && r.base == 0
			goesOn = goesOn && r.base == r.left
		}
	}
	switch {
	case begins && (ran || s.driver == driverUnseen):
		s.driver = DriverNew
	case goesOn && s.driver != driverUnseen:
		s.driver = DriverSame
	default:
		s.driver = DriverElsewhere
	}
}
