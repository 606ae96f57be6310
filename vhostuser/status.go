package vhostuser

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"vdev/internal/sys"
)

// Status shows what a Backend is doing, for people. Each part is true of one moment, but not all
// parts of the same moment.
type Status struct {
	FrontEnd *FrontEndStatus // nil: none is served
	Waiting  bool            // a front-end has connected that is not served yet
}

// FrontEndStatus is the connection that is served.
type FrontEndStatus struct {
	PID, UID int              // who connected (SO_PEERCRED); 0 where the host does not tell
	Since    time.Time        // when it has connected
	Protocol ProtocolFeatures // negotiated
	Features uint64           // negotiated, with FProtocolFeatures
	Device   uint8            // the virtio device status, as SET_STATUS said last
	Regions  int              // of guest memory
	Memory   uint64           // bytes of guest memory
	Inflight bool             // there is an in-flight region
	// the message that is being handled, empty for none; until it is answered the front-end waits
	Message   string
	MessageAt time.Time    // when it came
	Rings     []RingStatus // all of them, by index
}

// RingState is one of the states that a ring is in (see ring).
type RingState string

const (
	RingStopped  RingState = "stopped"  // not started: it has no kick descriptor
	RingStarted  RingState = "started"  // and not enabled: it does not run
	RingRunning  RingState = "running"  // the Device has it, and fetches from it
	RingDisabled RingState = "disabled" // the Device has it, but nothing more is fetched
	RingDraining RingState = "draining" // likewise, and its requests in flight are waited for
	RingStopping RingState = "stopping" // the Device is being asked to stop it
	RingBroken   RingState = "broken"   // not served until it is stopped and started
)

// RingStatus is one ring.
type RingStatus struct {
	Index int        // as the front-end counts, from 0
	State RingState  // what it does
	Size  int        // descriptors; 0 before SET_VRING_NUM
	Why   StopReason // why it is stopping, with RingStopping
	Err   error      // why it is broken
	// requests that were found in the in-flight region when it was started
	Resubmitted int
	// Suspended is how many requests were left in the in-flight region when the ring was stopped.
	// While it runs its reactor tells: so many are to be begun again.
	Suspended int

	// What its reactor has told. Known is false where there is none (the ring does not run), or it
	// has not answered in time.
	Known    bool
	Next     uint16 // free-running index of the next entry to take from the available ring
	Used     uint16 // free-running used index, as published
	Pending  bool   // there is more to fetch
	InFlight int    // fetched and neither ended nor suspended
}

// look is what a session shows of itself to other goroutines: a copy, made by the connection's
// goroutine at each change. That goroutine may stand still in a stop for as long as storage does.
type look struct {
	mu sync.Mutex
	FrontEndStatus
	queues []*Queue // by ring; nil where it does not run
}

// publish brings the look up to date. The connection's goroutine, whenever something has changed.
func (s *session) publish() {
	l := &s.look
	regions := s.mem.Regions()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.Protocol, l.Features, l.Device = s.protocol, s.features, s.status
	l.Regions, l.Memory, l.Inflight = len(regions), 0, s.inflight != nil
	for _, r := range regions {
		l.Memory += r.Size
	}
	l.Rings, l.queues = l.Rings[:0], l.queues[:0]
	for _, r := range s.rings {
		st := RingStatus{Index: r.index, Size: int(r.num), State: r.state(), Err: r.broken, Why: r.why, Suspended: r.suspended}
		if r.q != nil {
			st.Resubmitted = r.q.resubmitted
		}
		l.Rings = append(l.Rings, st)
		l.queues = append(l.queues, r.q)
	}
}

// state names the state that the ring is in.
func (r *ring) state() RingState {
	switch {
	case r.broken != nil:
		return RingBroken
	case r.q != nil:
		return r.q.state
	case r.started:
		return RingStarted
	}
	return RingStopped
}

// handling says that a message is being handled; the function it returns, that it has been.
func (s *session) handling(req Request) (done func()) {
	l := &s.look
	l.mu.Lock()
	l.Message, l.MessageAt = req.String(), time.Now()
	l.mu.Unlock()
	return func() {
		s.publish()
		l.mu.Lock()
		l.Message, l.MessageAt = "", time.Time{}
		l.mu.Unlock()
	}
}

// connected fills in what is known of a session from its beginning.
func (l *look) connected(c *conn) {
	peer, err := sys.PeerOf(c.uc)
	if err != nil {
		peer = sys.Peer{}
	}
	l.PID, l.UID, l.Since = peer.PID, peer.UID, time.Now()
}

// Status looks at the Backend. It asks the reactors for the state of the rings that run, until ctx
// is done: what has not come by then is not known. It waits for nothing else, and not for a ring
// that is being stopped. Any goroutine.
func (b *Backend) Status(ctx context.Context) Status {
	b.mu.Lock()
	current, waiting := b.current, b.waiting != nil
	b.mu.Unlock()
	st := Status{Waiting: waiting}
	if current == nil {
		return st
	}
	l := &current.look
	l.mu.Lock()
	f := l.FrontEndStatus
	f.Rings = slices.Clone(l.Rings)
	queues := slices.Clone(l.queues)
	l.mu.Unlock()
	st.FrontEnd = &f
	askQueues(ctx, f.Rings, queues)
	return st
}

// askQueues completes the status of the rings that run.
func askQueues(ctx context.Context, rings []RingStatus, queues []*Queue) {
	type answer struct {
		ring int
		RingStatus
	}
	// With room for all of them: who answers late waits for nobody.
	answers := make(chan answer, len(queues))
	asked := 0
	for i, q := range queues {
		if q == nil {
			continue
		}
		asked++
		q.Post(func() {
			a := answer{i, RingStatus{Next: q.vq.NextAvail(), Used: q.vq.UsedIdx(), InFlight: q.InFlight(), Suspended: q.Suspended(), Err: q.broken}}
			// Last: it looks at guest memory, which may fault.
			defer func() { answers <- a }()
			a.Pending = q.vq.Pending()
		})
	}
	for range asked {
		select {
		case a := <-answers:
			r := &rings[a.ring]
			r.Known, r.Next, r.Used, r.Pending, r.InFlight, r.Suspended = true, a.Next, a.Used, a.Pending, a.InFlight, a.Suspended
			if a.Err != nil && r.Err == nil {
				r.Err = a.Err
				if r.State != RingStopping {
					r.State = RingBroken
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// protocolNames are the specification's names, by bit. They include features that are not offered,
// since Names is to tell what a front-end has set.
var protocolNames = [...]string{
	0: "MQ", 1: "LOG_SHMFD", 2: "RARP", 3: "REPLY_ACK", 4: "MTU", 5: "BACKEND_REQ", 6: "CROSS_ENDIAN", 7: "CRYPTO_SESSION",
	8: "PAGEFAULT", 9: "CONFIG", 10: "BACKEND_SEND_FD", 11: "HOST_NOTIFIER", 12: "INFLIGHT_SHMFD", 13: "RESET_DEVICE",
	14: "INBAND_NOTIFICATIONS", 15: "CONFIGURE_MEM_SLOTS", 16: "STATUS", 17: "XEN_MMAP", 18: "SHARED_OBJECT", 19: "DEVICE_STATE",
	20: "GET_VRING_BASE_INFLIGHT",
}

// Names returns the specification's names of the features in p without their VHOST_USER_PROTOCOL_F_
// prefix, by number.
func (p ProtocolFeatures) Names() []string {
	var names []string
	for rest := uint64(p); rest != 0; rest &= rest - 1 {
		bit := bits.TrailingZeros64(rest)
		name := fmt.Sprintf("bit %d", bit)
		if bit < len(protocolNames) {
			name = protocolNames[bit]
		}
		names = append(names, name)
	}
	return names
}
