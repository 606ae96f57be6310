package vhostuser

import (
	"context"
	"errors"
	"runtime"

	"vdev/internal/guestmem"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/virtq"
)

// Queue is a ring that runs: from the Device's StartQueue to its StopDevice or StopQueue. A ring
// that is started again is another Queue.
//
// It belongs to its reactor. Methods are called on the reactor, which is where Process runs, and
// what was given to Post; those that say so may be called from elsewhere.
type Queue struct {
	// Data is the Device's own, to find its state of the ring.
	Data any

	s        *session
	index    int
	size     int
	features uint64
	reactor  *reactor.Reactor

	canSuspend  bool // has a part in an in-flight region
	migrates    bool // GET_VRING_BASE_INFLIGHT was negotiated
	driver      DriverOrigin
	resubmitted int    // requests that the region brought, suspended
	base        uint16 // index of the first entry to take, or to take again

	wake func() // posted by Wake

	// The reactor's.
	vq     *virtq.Queue
	src    *reactor.Source // nil before the ring is added and after it was removed
	call   signal
	errs   signal
	logged signal       // of the dirty log, while something is marked
	last   *virtq.Chain // the newest popped, for a fault while it is looked at
	// unpopped because Process lost it in a fault; a Push of it comes too late
	lost     *virtq.Chain
	pops     uint64
	pushes   uint64
	paused   bool // not handed over yet, disabled or homeless
	homeless bool // not in the session's guest memory at the moment
	sawEmpty bool // Pop found nothing, in this call of Process
	stalled  bool // Process left chains in the ring on purpose
	broken   error
	idle     chan struct{} // closed when nothing is in flight; nil if nobody waits

	// The connection's goroutine's.
	state    RingState // RingRunning, RingDisabled, RingDraining or RingStopping
	logs     bool      // as the reactor was told: something is marked
	inFlight int       // when it was disabled or stopped
}

// signal is a descriptor that the front-end wants to be written to.
type signal struct {
	fd       int // -1 for none
	mayBlock bool
}

func newSignal(f *sys.FD) signal {
	if f == nil {
		return signal{fd: -1}
	}
	nonblock, err := sys.Nonblocking(f.Int())
	return signal{fd: f.Int(), mayBlock: err != nil || !nonblock}
}

// send signals, on r. A descriptor that is full has a reader with something to look at, and one
// that fails has none; the front-end answers for what it sent. It returns errBlocked where the
// front-end has made it wait.
func (s signal) send(r *reactor.Reactor) error {
	if s.fd < 0 || s.mayBlock && !sys.Writable(s.fd) || r.Signal(s.fd) {
		return nil
	}
	return errBlocked
}

// Index returns the ring's index. Any goroutine.
func (q *Queue) Index() int { return q.index }

// Size returns the number of descriptors. Any goroutine.
func (q *Queue) Size() int { return q.size }

// Driver returns where the guest driver that uses the ring comes from, as far as the front-end's
// messages show. Any goroutine.
func (q *Queue) Driver() DriverOrigin { return q.driver }

// Loop returns the reactor that owns q. Any goroutine.
func (q *Queue) Loop() Loop { return Loop{q.reactor} }

// Post runs fn on the reactor, soon. Any goroutine. It also runs after the ring has stopped, when
// Push, Suspend and Unpop only keep count.
func (q *Queue) Post(fn func()) {
	q.reactor.Post(func() {
		defer q.RecoverFault()
		fn()
	})
}

// Do is Post, and returns when fn has run. Not on the reactor.
func (q *Queue) Do(fn func()) {
	q.reactor.Do(func() {
		defer q.RecoverFault()
		fn()
	})
}

// Wake makes the reactor call Process again. Any goroutine.
func (q *Queue) Wake() { q.reactor.Post(q.wake) }

// Pop takes the next available chain into c, and returns false when there is none: the ring is
// empty, disabled or broken. What breaks a ring the Backend has told already. It is called in
// Process or in what was given to Post, which a fault on the guest's memory ends (see
// RecoverFault).
func (q *Queue) Pop(c *virtq.Chain) bool {
	return !q.paused && q.pop(c)
}

func (q *Queue) pop(c *virtq.Chain) bool {
	if q.broken != nil {
		return false
	}
	q.last = nil // whose request somebody else may have by now
	ok, err := q.vq.Pop(c)
	if ok {
		q.pops++
		q.last = c
		return true
	}
	q.sawEmpty = true
	if err != nil {
		q.fail(err)
	}
	return false
}

// showEvery is after how many chains of a batch the guest driver is shown what was pushed, so that
// one that looks for it need not wait for the batch's end. It is called for the whole of it.
const showEvery = 16

// Push completes c, with written bytes at the start of its writable buffers. The guest driver sees
// it at the end of the reactor's batch at the latest, when it is also called if it wants to be. On
// a ring that broke or has stopped, only the count of what is in flight is kept.
func (q *Queue) Push(c *virtq.Chain, written uint32) {
	defer q.RecoverFault()
	q.push(c, written)
}

// PushStatus is Push for a device that answers with a status byte, which it writes to at, memory of
// c, before.
func (q *Queue) PushStatus(c *virtq.Chain, written uint32, at []byte, status uint8) {
	defer q.recoverPush(c)
	at[0] = status
	q.push(c, written)
}

// recoverPush is RecoverFault for PushStatus: c is pushed all the same, or it would count as in
// flight for ever.
func (q *Queue) recoverPush(c *virtq.Chain) {
	r := recover()
	if r == nil {
		return
	}
	q.fault(r)
	if c.InFlight() {
		q.Push(c, 0)
	}
}

func (q *Queue) push(c *virtq.Chain, written uint32) {
	if q.broken != nil && c == q.lost {
		q.lost = nil
		return
	}
	q.vq.Push(c, written)
	if q.pushes++; q.pushes%showEvery == 0 {
		q.vq.Show()
	}
	if q.src != nil {
		q.src.MarkDirty()
	}
	if q.idle != nil {
		q.checkIdle()
	}
}

// Unpop undoes the last Pop, of c: the next one takes it again. Only what was popped last can be
// unpopped (see CanUnpop).
func (q *Queue) Unpop(c *virtq.Chain) {
	defer q.RecoverFault()
	if q.broken != nil && c == q.lost {
		q.lost = nil
		return
	}
	q.vq.Unpop(c)
	if q.idle != nil {
		q.checkIdle()
	}
}

// Suspend ends the flight of c without a used element: Pop gives it out again, before anything new,
// and what is suspended in the order of fetching. Nothing of the request may touch guest memory any
// more, nor its storage. Any chain in flight may be suspended, also on a ring that goes on; when
// Process is to look at it, Wake says.
//
// On a ring with an in-flight region it stays recorded there, and so comes again at the next start
// that has the region, in this process or in another. On a ring without one, and where
// Stop.Suspends says no, nothing may be suspended when StopDevice or StopQueue returns: the Device
// unfetches what it can (Unfetch), and pops the rest (PopSuspended) to push it.
func (q *Queue) Suspend(c *virtq.Chain) {
	defer q.RecoverFault()
	if q.broken != nil && c == q.lost {
		q.lost = nil
		return
	}
	q.vq.Suspend(c)
	if q.idle != nil {
		q.checkIdle()
	}
}

// Suspended returns how many chains are suspended, those that the in-flight region brought among
// them.
func (q *Queue) Suspended() int { return q.vq.Suspended() }

// Unfetch returns suspended chains to the available ring, as many as can be and as may allows,
// newest first, and returns how many: see virtq.Queue.Unfetch.
func (q *Queue) Unfetch(may func(head uint16) bool) (n int) {
	defer q.RecoverFault()
	return q.vq.Unfetch(may)
}

// PopSuspended is Pop for what is suspended alone, and also takes it from a ring that is disabled
// or is being stopped: for a Device that ends such requests then. Pop's rules about faults hold.
func (q *Queue) PopSuspended(c *virtq.Chain) bool { return q.vq.Suspended() > 0 && q.pop(c) }

// unfinished returns how many requests a stop of the ring leaves that nobody will end: in flight,
// or suspended with no region to come again from. Nothing of a broken ring is expected to.
func (q *Queue) unfinished() int {
	if q.canSuspend || q.broken != nil {
		return q.InFlight()
	}
	return q.InFlight() + q.Suspended()
}

// Resubmitted returns how many requests the in-flight region brought along when the ring was
// started: Pop gives them out first, in the order in which they were fetched before. Any goroutine.
func (q *Queue) Resubmitted() int { return q.resubmitted }

// CanUnpop tells whether Unpop can take c: nothing popped after it is in flight, was pushed or
// suspended.
func (q *Queue) CanUnpop(c *virtq.Chain) bool { return q.vq.CanUnpop(c) }

// InFlight returns how many chains were popped and neither pushed, suspended nor unpopped.
func (q *Queue) InFlight() int { return q.vq.InFlight() }

// Break breaks the ring: nothing more is fetched or shown to the guest until the front-end has
// stopped and started it. The front-end's error eventfd is signalled. What is in flight is pushed
// as ever, which then only keeps count.
func (q *Queue) Break(err error) { q.fail(err) }

// Broken tells whether the ring is broken: what is pushed does not reach the guest driver.
func (q *Queue) Broken() bool { return q.broken != nil }

// WaitIdle waits until nothing is in flight, everything pushed, suspended or unpopped, or ctx is
// done, whose error it then returns. Not on the reactor: StopDevice, StopQueue and PauseQueue call
// it.
func (q *Queue) WaitIdle(ctx context.Context) error {
	idle := make(chan struct{})
	q.reactor.Post(func() {
		q.idle = idle
		q.checkIdle()
	})
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	q.reactor.Do(func() { q.idle = nil })
	select {
	case <-idle:
		return nil
	default:
		return ctx.Err()
	}
}

func (q *Queue) checkIdle() {
	if q.InFlight() == 0 {
		close(q.idle)
		q.idle = nil
	}
}

// open builds the ring and adds it to the reactor, paused. ringErr is what is wrong with the ring
// itself, kickErr with the descriptor that kicks it; after either one nothing is left.
func (q *Queue) open(mem *guestmem.Memory, cfg virtq.Config, kick int) (ringErr, kickErr error) {
	if ringErr = q.build(mem, cfg); ringErr != nil {
		return ringErr, nil
	}
	q.src, kickErr = q.reactor.AddOf(q.s.b, poller{q}, kick)
	if kickErr != nil || q.broken != nil {
		q.close()
	}
	return q.broken, kickErr
}

// build makes the virtqueue, which looks at the ring's memory.
func (q *Queue) build(mem *guestmem.Memory, cfg virtq.Config) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = faultError(r)
		}
	}()
	if q.vq, err = virtq.New((*virtq.Memory)(mem), cfg); err != nil {
		return err
	}
	q.base, q.resubmitted = q.vq.NextAvail(), q.vq.Suspended()
	return nil
}

// setMemory goes over to another generation of guest memory. A ring that is not in it is homeless:
// it stays in the one before, paused, unless must is set, which breaks it.
func (q *Queue) setMemory(mem *guestmem.Memory, must bool) {
	defer q.RecoverFault()
	if !must && !q.vq.LiesIn((*virtq.Memory)(mem)) {
		q.homeless, q.paused = true, true
		return
	}
	if q.homeless {
		q.homeless, q.paused = false, q.state != RingRunning || q.src == nil
		if q.src != nil {
			q.src.Wake()
		}
	}
	if err := q.vq.SetMemory((*virtq.Memory)(mem)); err != nil {
		q.fail(err)
	}
}

// unpause lets the ring be fetched from, and asks for no kicks, since it is looked at. On the
// reactor.
func (q *Queue) unpause() {
	q.paused = false
	poller{q}.Disarm()
	q.src.Wake()
}

// close lets go of the reactor, of guest memory and of the descriptors. Chains in flight keep their
// memory.
func (q *Queue) close() {
	if q.src != nil {
		q.reactor.Remove(q.src)
		q.src = nil
	}
	q.paused = true
	q.call, q.errs, q.logged = signal{fd: -1}, signal{fd: -1}, signal{fd: -1}
	q.vq.Close()
}

// RecoverFault is to be deferred by what touches guest memory on the reactor. A front-end can
// truncate the file behind guest memory at any time. If it did, the function that deferred ends
// there, the ring is broken, and the connection ends. Any other panic goes on.
//
// Queue's own methods need no such care, nor does a Process that has at most its newest chain in
// its hands. What completes a request later puts the access into a function of its own, and pushes
// the chain behind it, fault or not; for a status byte there is PushStatus.
func (q *Queue) RecoverFault() {
	if r := recover(); r != nil {
		q.fault(r)
	}
}

// faultError returns the error for a panic that is a fault on guest memory; another one goes on.
func faultError(r any) error {
	var fault interface {
		runtime.Error
		Addr() uintptr
	}
	err, ok := r.(error)
	if !ok || !errors.As(err, &fault) || !guestmem.Mapped(fault.Addr()) {
		panic(r)
	}
	return &FaultError{Addr: fault.Addr()}
}

func (q *Queue) fault(r any) {
	q.fail(faultError(r))
	q.s.end(&RingError{Ring: q.index, Err: q.broken})
	if q.idle != nil {
		q.checkIdle()
	}
}

// fail breaks the ring.
func (q *Queue) fail(err error) {
	if q.broken != nil {
		return
	}
	q.broken = err
	q.vq.Break(err)
	q.s.b.event(Event{Kind: EventBreak, Ring: q.index, Err: err})
	q.signal(q.errs)
}

// signal signals the front-end. One that makes the reactor wait over it loses the ring and the
// connection, and is signalled no more: with a descriptor for each of its rings it could make it
// wait as often.
func (q *Queue) signal(to signal) {
	if q.s.blocked.Load() {
		return
	}
	if err := to.send(q.reactor); err != nil {
		q.s.blocked.Store(true)
		q.fail(err)
		q.s.end(&RingError{Ring: q.index, Err: err})
	}
}

// poller is what the reactor sees of a Queue.
type poller struct{ *Queue }

// Poll has the Device process the ring.
func (q poller) Poll() (worked bool) {
	if q.paused || q.broken != nil {
		return false
	}
	before := q.pops
	q.sawEmpty, q.stalled = false, false
	more, ok := q.process()
	if !ok {
		return true
	}
	// Without having seen the end of the ring the Device leaves what is there, or it has used up
	// its budget.
	q.stalled = !more && !q.sawEmpty
	return more || q.pops != before
}

// process tells whether Process returned, and was not ended by a fault.
func (q poller) process() (more, ok bool) {
	defer q.recoverProcess()
	return q.s.dev.Process(q.Queue), true
}

// recoverProcess is RecoverFault for Process. The chain that it had in its hands will not be pushed
// by anybody: it is unpopped, so that it does not count as in flight.
func (q poller) recoverProcess() {
	r := recover()
	if r == nil {
		return
	}
	q.fault(r)
	if q.last != nil && q.vq.CanUnpop(q.last) {
		q.vq.Unpop(q.last)
		q.lost = q.last
		if q.idle != nil {
			q.checkIdle()
		}
	}
}

// Arm asks the guest driver for kicks.
func (q poller) Arm() (pending bool) {
	if q.paused || q.stalled || q.broken != nil {
		return false
	}
	defer q.RecoverFault()
	return q.vq.EnableNotify()
}

// Disarm tells the guest driver that no kicks are needed. A ring that is paused is left alone: it
// is in nobody's use.
func (q poller) Disarm() {
	if q.paused || q.broken != nil {
		return
	}
	defer q.RecoverFault()
	q.vq.DisableNotify()
}

// Flush shows the guest driver what was pushed, and calls it if it wants to be.
func (q poller) Flush() {
	if q.broken != nil {
		return
	}
	defer q.RecoverFault()
	if q.vq.Publish() {
		q.signal(q.call)
	}
	q.signal(q.logged)
}
