package reactor

import (
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"vdev/internal/sys"
)

// Reactor is one event loop. It implements devsw.AIO.
type Reactor struct {
	// Do not change.
	mode     Mode
	crew     *crew
	pollMax  time.Duration
	maxStuck int           // see Config
	wakeFD   *sys.FD       // ends a sleep
	ended    chan struct{} // closed when the last goroutine that had the reactor has ended

	threads sync.WaitGroup // goroutines that have the reactor, or had it
	guard   guard
	signals signals

	// What any goroutine leaves for the reactor.
	mu        sync.Mutex
	posted    []func()
	completed atomic.Pointer[op] // see complete; linked by next, newest first
	hasPosted atomic.Bool        // or completed
	asleep    atomic.Bool        // who leaves something is to wake it
	stepping  atomic.Bool        // a goroutine does what a stepped reactor has to do

	// What the reactor tells Pick.
	load    atomic.Int64 // Sources
	usage   usage
	resting atomic.Bool // it has had nothing to do since usage was counted

	// All that follows is the reactor's own.

	eng   engine
	stop  bool
	spare []func() // for posted

	sources map[uint64]*Source // by tag, for watches
	nextTag uint64
	active  roster
	lines   map[any]*line // by owner
	dirty   []*Source
	noKick  int // active Sources without a kick descriptor

	clock   time.Duration // see Clock
	timers  timers
	rounds  uint32
	yielded time.Duration // when the runtime had a look, by clock
	counted time.Duration // when usage was, by clock
	idled   time.Duration // slept, or looked for work in vain, since then

	kicked   bool          // a watch has fired since the last sleep began
	level    int           // inflight when that began
	pollFor  time.Duration // how long to look for work before sleeping, adapted
	replyFor time.Duration // and while the engine has transfers, and the guest driver is to reply
	reply    awaited
	looked   time.Duration // how long the last look was in vain

	transfers
}

// newReactor starts a reactor. shutdown ends it.
func newReactor(mode Mode, w *crew, pollMax time.Duration, maxStuck int) (*Reactor, error) {
	r := &Reactor{mode: mode, crew: w, pollMax: pollMax, maxStuck: maxStuck, ended: make(chan struct{}),
		sources: make(map[uint64]*Source), lines: make(map[any]*line), transfers: transfers{calls: hostCalls}}
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

// newThread makes the calling goroutine, and its thread, one that can have a reactor. The thread is
// never freed: it ends with the goroutine, and the ring's tasks with it.
func (r *Reactor) newThread() (engine, error) {
	runtime.LockOSThread()
	debug.SetPanicOnFault(true)
	return newEngine(r)
}

// loop is the reactor's, on a thread of newThread, with its engine. It returns when the reactor has
// ended, or another thread has it.
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

// shutdown ends the loop once no transfer is in flight. All Sources have been removed.
func (r *Reactor) shutdown() {
	r.Post(func() { r.stop = true })
	<-r.ended
}
