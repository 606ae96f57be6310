package reactor

import (
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// Poller is what a Source does; all its methods are called on the reactor.
type Poller interface {
	// Poll does the work there is, at most a budget of it, and tells whether there was any.
	Poll() (worked bool)
	// Arm asks for kicks, then looks again and tells whether work has come meanwhile.
	Arm() (pending bool)
	// Disarm says that kicks are not needed: Poll will be called anyway.
	Disarm()
	// Flush is called at the end of a batch in which MarkDirty was: it publishes completions and signals them.
	Flush()
}

// Source is one Poller on one Reactor.
type Source struct {
	r      *Reactor
	p      Poller
	kick   int    // descriptor that is watched, -1 for none; the caller's
	tag    uint64 // of the watch
	owner  any
	line   *line // of the owner's
	active bool  // in r.active
	due    bool  // woken, and not polled since: it is not armed before it has had its turn
	armed  bool
	dirty  bool // in r.dirty
	gone   bool

	polledOnly bool // added without a kick descriptor
}

// Wake makes the Source's Poll be called again. On the reactor.
func (s *Source) Wake() {
	s.due = true
	if !s.active && !s.gone {
		s.active = true
		s.r.active.add(s)
		if s.armed {
			s.armed = false
			s.p.Disarm()
		}
	}
}

// MarkDirty makes the Source's Flush be called at the end of this batch. On the reactor.
func (s *Source) MarkDirty() {
	if !s.dirty && !s.gone {
		s.dirty = true
		s.r.dirty = append(s.r.dirty, s)
	}
}

// engine is how a reactor sleeps and transfers: io_uring, or epoll with threads. Its methods are called on the reactor.
type engine interface {
	watch(fd int, tag uint64) error
	unwatch(fd int, tag uint64) error
	start(o *op)
	cancel(o *op)
	// submit has the host begin what was started whose submission may have to wait for the storage
	// (op.mayWait): the reactor is guarded, and may be lost. fill comes before, and submitted after it
	// where the reactor was kept. waits tells that there is any, due that it is time for that, and full
	// that no more can be started before it. All other methods leave it alone.
	fill()
	submit()
	submitted()
	waits() bool
	due() bool
	full() bool
	// turn submits what was started, runs what has completed, and tells whether anything had. It does not sleep.
	turn() bool
	// sleep submits, and waits for at most timeout (negative: no limit) for a completion, a watched descriptor or Reactor.wakeFD. What has
	// completed is left to turn.
	sleep(timeout time.Duration)
	// handOver is for an engine whose thread is stuck, and called by the one that has the reactor
	// now. The thread calls leave when it is back: that completes what only this engine can, and
	// returns then.
	handOver()
	leave()
	close()
}

// Reactor is one event loop. It implements devsw.AIO.
type Reactor struct {
	mode     Mode
	crew     *crew
	pollMax  time.Duration
	maxStuck int            // see Config
	load     atomic.Int64   // Sources, for Pick
	usage    usage          // for Pick
	wakeFD   *sys.FD        // ends a sleep
	threads  sync.WaitGroup // goroutines that have the reactor, or had it
	ended    chan struct{}  // closed when the last of them has ended

	mu     sync.Mutex
	posted []func()

	completed atomic.Pointer[op] // ended elsewhere (threads, a call that stalled), linked by next, newest first
	guard     guard
	signals   signals

	hasPosted atomic.Bool
	asleep    atomic.Bool // who posts is to wake it
	stepping  atomic.Bool // a goroutine does what a stepped reactor has to do
	resting   atomic.Bool // it has had nothing to do since usage was counted; the reactor alone says so

	// The reactor's own.
	eng      engine
	sources  map[uint64]*Source // by tag, for watches
	nextTag  uint64
	active   roster
	lines    map[any]*line // by owner
	dirty    []*Source
	noKick   int // active Sources without a kick descriptor
	ops      []*op
	freeOps  []*op
	opOf     devsw.BufIndex[*op] // for Cancel
	inflight int
	inEngine int   // of those
	queue    []*op // to be made in line, from next on
	next     int
	queued   int64 // bytes of those
	turns    []*op // that wait for their turn
	calling  *op   // the last one whose call might have waited; nil: it was the engine's submit
	files    []file
	stuck    int // of all files
	stop     bool
	requests uint32        // transfers that were begun, modulo 1<<32
	level    int           // inflight when the last sleep began
	kicked   bool          // a watch has fired since
	pollFor  time.Duration // how long to look for work before sleeping while the engine has no transfer, adapted
	replyFor time.Duration // and while it has some, and the driver is to reply
	reply    awaited
	looked   time.Duration // how long the last look was in vain
	clock    time.Duration // see Clock
	rounds   uint32
	yielded  time.Duration // when the runtime had a look, by clock
	counted  time.Duration // when usage was, by clock
	idled    time.Duration // slept, or looked for work in vain, since then
	spare    []func()
	timers   timers

	calls   calls
	reading reading
}

func newReactor(mode Mode, w *crew, pollMax time.Duration, maxStuck int) (*Reactor, error) {
	r := &Reactor{mode: mode, crew: w, pollMax: pollMax, maxStuck: maxStuck, ended: make(chan struct{}),
		sources: make(map[uint64]*Source), lines: make(map[any]*line), calls: hostCalls}
	var err error
	if r.wakeFD, err = sys.NewEventfd(); err != nil {
		return nil, err
	}
	r.signals.wake = make(chan struct{}, 1)
	if mode == ModeStepped {
		return r, r.beginStepped()
	}
	ready := make(chan error)
	r.threads.Go(func() {
		eng, err := r.newThread()
		if err != nil {
			ready <- err
			return
		}
		r.eng = eng
		r.guard.thread.Store(int64(sys.ThreadID()))
		r.counted = r.Now()
		r.usage.set(r.clock, 0)
		r.signals.tid = sys.ThreadID()
		close(ready)
		r.loop(eng)
	})
	go r.awaitEnd()
	if err := <-ready; err != nil {
		<-r.ended
		return nil, err
	}
	go r.watchSignals()
	return r, nil
}

// awaitEnd ends the reactor with the last goroutine that had it.
func (r *Reactor) awaitEnd() {
	r.threads.Wait()
	r.wakeFD.Close()
	close(r.ended)
}

// Post runs fn on the reactor, soon, in the order of the calls. Any goroutine.
func (r *Reactor) Post(fn func()) {
	r.queueUp(fn)
	r.nudge()
}

func (r *Reactor) queueUp(fn func()) {
	r.mu.Lock()
	r.posted = append(r.posted, fn)
	r.mu.Unlock()
}

// Do runs fn on the reactor and returns when it has run: a barrier behind all that was posted before. Any goroutine but
// the reactor's own.
//
// A reactor that had to be woken has nothing else to do, as a rule, and to be put to sleep and woken up as well costs more than that: then
// Do looks for a moment before it sleeps.
func (r *Reactor) Do(fn func()) {
	var ran atomic.Bool
	done := make(chan struct{})
	r.queueUp(func() {
		defer func() {
			ran.Store(true)
			close(done)
		}()
		fn()
	})
	if r.mode == ModeStepped {
		r.hasPosted.Store(true)
		r.step()
		<-done
		return
	}
	woke := r.nudge()
	for begun := time.Now(); woke && time.Since(begun) < doPoll; sys.Yield() {
		if ran.Load() {
			return
		}
		// It may need the processor of Go's that this goroutine has.
		runtime.Gosched()
	}
	<-done
}

// doPoll is for how long Do looks.
const doPoll = 100 * time.Microsecond

// nudge makes the reactor look at what was posted and completed, and tells whether it had to be
// woken for that.
func (r *Reactor) nudge() (woke bool) {
	if r.mode == ModeStepped {
		if r.hasPosted.Store(true); !r.stepping.Load() {
			go r.step()
		}
		return false
	}
	// The loop publishes asleep before it looks at hasPosted the last time: one of the two sees the other. (Swap and not
	// Store: under the race detector a Store is no full barrier.)
	r.hasPosted.Swap(true)
	woke = r.asleep.Load() && r.asleep.Swap(false)
	if woke {
		_ = sys.EventfdWrite(r.wakeFD.Int())
	}
	return woke
}

// epoch is what clocks count from.
var epoch = time.Now()

// Now returns the time since a moment that is the same for all reactors, and sets Clock by it. On the reactor.
func (r *Reactor) Now() time.Duration {
	r.clock = time.Since(epoch)
	return r.clock
}

// Clock is Now when the loop last had a look at it, which it has whenever it wakes, and else every clockRounds rounds: a time
// for those to whom a few batches do not matter, and that costs nothing. On the reactor.
func (r *Reactor) Clock() time.Duration { return r.clock }

const clockRounds = 8

// Add makes p a Source. kick is a descriptor that becomes readable (an eventfd; it is never read, nor are its flags
// changed) when p has work, or -1: then p is polled all the time, with pauses of at most a millisecond. The first Poll
// follows at once. On the reactor.
func (r *Reactor) Add(p Poller, kick int) (*Source, error) { return r.AddOf(p, p, kick) }

// AddOf is Add for one of several Sources of an owner, which is a key of a map: together they have
// as many turns as another owner's only Source.
func (r *Reactor) AddOf(owner any, p Poller, kick int) (*Source, error) {
	l := r.lines[owner]
	if l == nil {
		l = new(line)
	}
	s := &Source{r: r, p: p, kick: -1, owner: owner, line: l}
	if err := r.SetKick(s, kick); err != nil {
		return nil, err
	}
	r.lines[owner] = l
	l.all++
	r.load.Add(1)
	s.p.Disarm()
	return s, nil
}

// SetKick changes the descriptor that is watched for s. When it returns, the old one is not used any more. A Poll follows: a
// kick may have come by the old one, and its news been lost with the watch. On the reactor.
func (r *Reactor) SetKick(s *Source, kick int) error {
	r.dropKick(s)
	if kick < 0 {
		s.polledOnly = true
		r.noKick++
		s.Wake()
		return nil
	}
	r.nextTag++
	if err := r.eng.watch(kick, r.nextTag); err != nil {
		return fmt.Errorf("watch kick descriptor %d: %w", kick, err)
	}
	s.kick, s.tag = kick, r.nextTag
	r.sources[s.tag] = s
	s.Wake()
	return nil
}

func (r *Reactor) dropKick(s *Source) {
	if s.polledOnly {
		s.polledOnly = false
		r.noKick--
	}
	if s.kick >= 0 {
		// A watch that the kernel has ended by itself needs no ending.
		_ = r.eng.unwatch(s.kick, s.tag)
		delete(r.sources, s.tag)
		s.kick = -1
	}
}

// Remove ends s: when it returns, no method of its Poller is called any more and its kick descriptor is not used. What was
// marked dirty is flushed first. On the reactor.
func (r *Reactor) Remove(s *Source) {
	if s.gone {
		return
	}
	if s.dirty {
		s.p.Flush()
	}
	r.dropKick(s)
	s.gone = true
	s.active = false // the loop drops it from its lists when it comes by
	if s.line.all--; s.line.all == 0 {
		delete(r.lines, s.owner)
	}
	r.load.Add(-1)
}

// newThread makes the calling goroutine, and its thread, one that can have a reactor. The thread is never given back: it ends with the
// goroutine, and the ring's tasks with it.
func (r *Reactor) newThread() (engine, error) {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	return newEngine(r)
}

// loop is the reactor's, on a thread of newThread, with its engine. It returns when the reactor has ended, or another thread has it.
func (r *Reactor) loop(eng engine) {
	lost := r.goRound()
	if lost != nil {
		if lost != lostInSubmit {
			r.complete(lost)
		}
		eng.leave()
	}
	eng.close()
}

// lostInSubmit stands for the transfer over which a reactor was lost, where that was the submission
// of several.
var lostInSubmit = new(op)

// submit has the engine begin what was started, where it may have to wait for that. It is false
// where the reactor was lost over it.
func (r *Reactor) submit() (kept bool) {
	if !r.eng.waits() {
		return true
	}
	r.calling = nil
	eng := r.eng
	eng.fill()
	word := r.guard.enter()
	eng.submit()
	if !r.guard.leave(word) {
		return false
	}
	eng.submitted()
	return true
}

// goRound makes one round after the other, and returns the transfer over which another thread has taken the reactor, or nil at its end.
func (r *Reactor) goRound() (lost *op) {
	for {
		worked := false
		if r.hasPosted.Load() {
			r.runPosted()
			worked = true
		}
		if r.stop && r.inflight == 0 {
			r.guard.stop()
			return nil
		}
		more, lost := r.round()
		if !worked && !more {
			more, lost = r.linger()
		}
		switch {
		case lost != nil:
			return lost
		case !worked && !more:
			r.rest()
		}
	}
}

// yieldEvery is after how long a busy loop lets the runtime have its way. Who has not after 10 ms, and makes system calls, loses its P in
// one of them, and the runtime looks every 20 us after that whether it can take away more.
const yieldEvery = 5 * time.Millisecond

// roundBytes is after how many bytes to be transferred in line no further Source is polled in a round: they come first in the next one,
// and what has ended is shown before.
const roundBytes = 1 << 20

// After roundTime no further Source is polled in a round either: one turn of each may take a while,
// and kicks of others are seen, and what has ended is shown, between rounds. One in roundPolls
// looks at the clock, so that a round of few need not.
const (
	roundTime  = 500 * time.Microsecond
	roundPolls = 4
)

// round polls the active Sources, makes and submits transfers, completes and flushes, and tells whether there was anything. Where a
// transfer was lost, the reactor is another thread's.
func (r *Reactor) round() (worked bool, lost *op) {
	if r.rounds++; r.rounds%clockRounds == 0 && r.Now()-r.yielded >= yieldEvery {
		r.yielded = r.clock
		r.count()
		runtime.Gosched()
	}
	if r.timers.due(r.clock) {
		r.fire()
		worked = true
	}
	// A Poll may wake others, which are then behind those of this round.
	var begun time.Duration
	polls := 0
	for left := r.active.n; left > 0 && r.queued < roundBytes; left-- {
		if polls++; polls%roundPolls == 0 {
			switch now := r.Now(); {
			case begun == 0:
				begun = now
			case now-begun >= roundTime:
				worked, left = true, 0
				continue
			}
		}
		s := r.active.next()
		s.due = false
		if s.active && s.p.Poll() {
			worked = true
		}
		if s.active {
			r.active.turned()
			continue
		}
		// It was the last one's turn instead, which may have come by: there is another round.
		worked = true
		r.active.drop()
	}
	if len(r.queue) > 0 {
		if lost := r.runQueue(); lost != nil {
			return true, lost
		}
		worked = true
	}
	if r.takeTurns() {
		worked = true
	}
	if !r.submit() {
		return true, lostInSubmit
	}
	if r.eng.turn() {
		worked = true
	}
	r.flush()
	return worked, nil
}

func (r *Reactor) flush() {
	for i := 0; i < len(r.dirty); i++ {
		s := r.dirty[i]
		s.dirty = false
		if s.gone {
			continue
		}
		s.p.Flush()
		// A completion makes room for the next request: it is worth a look.
		s.Wake()
	}
	clear(r.dirty)
	r.dirty = r.dirty[:0]
}

// awaited is a driver's reply to what it was shown, which is new requests in place of those that have ended.
type awaited struct {
	due      bool      // the last look was for one
	requests uint32    // Reactor.requests when it was looked for first
	since    time.Time // when that was
}

// linger looks for work for the adapted time, without asking for notification, and tells whether it found any.
//
// While the engine has transfers, their end is slept for. But a driver that has just been shown what has ended may be about to go on
// with as much, and the disk has less to do until it is given that. What ends meanwhile makes that time no longer.
func (r *Reactor) linger() (worked bool, lost *op) {
	most := r.pollFor
	r.looked, r.reply.due = 0, false
	if r.inEngine > 0 {
		if r.inflight >= r.level {
			return false, nil
		}
		most, r.reply.due = r.replyFor, true
	}
	if most <= 0 || r.active.n == 0 {
		return false, nil
	}
	start := time.Now()
	until := start.Add(most)
	if r.reply.due {
		if r.reply.requests != r.requests {
			r.reply.requests, r.reply.since = r.requests, start
		}
		until = r.reply.since.Add(most)
	}
	for {
		for range 8 {
			if r.hasPosted.Load() {
				worked = true
			} else {
				worked, lost = r.round()
			}
			if lost != nil {
				return true, lost // the reactor is another thread's
			}
			if worked {
				r.idled += r.looked
				return true, nil
			}
		}
		now := time.Now()
		r.looked = now.Sub(start)
		if !now.Before(until) {
			r.idled += r.looked
			return false, nil
		}
		// Where cores are few, whoever would give us work may be waiting for this one.
		sys.Yield()
	}
}

// rest asks for notification and sleeps, unless there is work after all.
func (r *Reactor) rest() {
	pending := false
	r.active.keep(func(s *Source) bool {
		switch {
		case !s.active:
			return false
		case s.polledOnly:
			return true
		case s.due:
			pending = true // it has had no turn since
			return true
		case s.p.Arm():
			s.p.Disarm()
			pending = true
			return true
		}
		s.armed = true
		s.active = false
		return false
	})
	if pending {
		return
	}
	r.asleep.Swap(true)
	if r.hasPosted.Load() || len(r.queue) > 0 || len(r.turns) > 0 || r.eng.waits() {
		r.asleep.Store(false)
		return
	}
	busy := r.inEngine > 0
	r.level, r.kicked = r.inflight, false
	r.resting.Store(true)
	start := r.Now()
	timeout := r.untilTimer()
	if r.noKick > 0 && (timeout < 0 || timeout > polledPause) {
		timeout = polledPause
	}
	r.eng.sleep(timeout)
	r.asleep.Store(false)
	slept := r.Now() - start
	if slept >= yieldEvery {
		r.yielded = r.clock
	}
	r.idled += slept
	r.count()
	r.resting.Store(false)
	r.eng.turn()
	r.flush()
	most := min(r.pollMax, maxReply)
	switch waited := r.looked + slept; {
	case !busy:
		r.pollFor = adapted(r.pollFor, waited, r.pollMax)
	case r.reply.due && (r.kicked || waited > most):
		r.replyFor = adapted(r.replyFor, waited, most)
	}
}

// count counts what there was to do, now and then.
func (r *Reactor) count() {
	since := r.clock - r.counted
	if since < yieldEvery {
		return
	}
	r.usage.count(r.clock, 1-min(r.idled.Seconds()/since.Seconds(), 1))
	r.counted, r.idled = r.clock, 0
}

// polledPause is how long a Source without a kick descriptor waits at most for its next Poll.
const polledPause = time.Millisecond

const (
	// minPoll is the shortest time worth looking for work at all.
	minPoll = 4 * time.Microsecond
	// maxReply is for how long a driver's reply is looked for at most while the engine has transfers.
	maxReply = 16 * time.Microsecond
)

// adapted returns how long to look before the next sleep, for the time that it was before this one and how long there was no work: if
// looking longer (but no longer than most) would have spared the sleep, longer; if there was none for far too long for that, less.
func adapted(look, waited, most time.Duration) time.Duration {
	if waited <= most {
		return min(max(look*2, minPoll), most)
	}
	if look /= 2; look < minPoll {
		return 0
	}
	return look
}

func (r *Reactor) runPosted() {
	r.hasPosted.Store(false)
	r.mu.Lock()
	fns := r.posted
	r.posted = r.spare[:0]
	r.mu.Unlock()
	for o := reverse(r.completed.Swap(nil)); o != nil; {
		next := o.next
		o.next = nil
		if o.stuck {
			o.stuck = false
			r.stuck--
			r.of(o).back(r.clock)
		}
		o.ended(o.res, o.errno)
		o = next
	}
	for i, fn := range fns {
		fn()
		fns[i] = nil
	}
	r.spare = fns
	r.flush()
}

// woken is called by the engine for each watch that fired.
func (r *Reactor) woken(tag uint64) {
	r.kicked = true
	if s := r.sources[tag]; s != nil {
		s.Wake()
	}
}

// shutdown ends the loop once no transfer is in flight. All Sources have been removed.
func (r *Reactor) shutdown() {
	r.Post(func() { r.stop = true })
	<-r.ended
}

// ErrMode is wrapped by the error for a Mode that does not exist.
var ErrMode = errors.New("no such mode of asynchronous I/O")
