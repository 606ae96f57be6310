package vhostuser

import (
	"time"

	"vdev/devsw"
	"vdev/internal/reactor"
)

// Mode is how reactors wait for events and transfer files.
type Mode string

const (
	// ModeURing is io_uring, which containers and old kernels refuse.
	ModeURing Mode = "io_uring"
	// ModeThreads is epoll, and threads for transfers: slower, with the same semantics.
	ModeThreads Mode = "threads"
	// ModeStepped is for tests: no thread and no goroutine of their own, see Reactors.Step.
	ModeStepped Mode = "stepped"
)

// MaxStuck is the default of ReactorConfig.MaxStuck.
const MaxStuck = reactor.MaxStuck

// ReactorConfig says how Reactors are made. The zero value is one reactor on what the host has.
type ReactorConfig struct {
	// Reactors is how many there are, each with a thread of its own. 1 where it is less.
	Reactors int
	// Mode is how they wait and transfer. Where it is empty, that is ModeURing, and ModeThreads
	// where the host refuses io_uring.
	Mode Mode
	// PollMax is how long a reactor looks for work at most before it sleeps: it adapts to how soon
	// work used to come. 100 µs where it is 0. Where it is negative, a reactor does not look at
	// all.
	PollMax time.Duration
	// MaxStuck is how many threads may be stuck in transfers of files that do not answer: of the
	// kernel's for each reactor, and of the Reactors' own. The const MaxStuck where it is 0 or
	// less. A host that allows few threads wants less.
	MaxStuck int
}

// Reactors are the event loops that the rings of a process's devices are served on. A process has
// one set, which all its Backends share. Its methods are for any goroutine.
type Reactors struct{ pool *reactor.Pool }

// NewReactors starts reactors. The error wraps the host's, where it refuses io_uring and c.Mode
// asks for it (ENOSYS, EPERM), or is short of memory or descriptors. A Mode that does not exist is
// an error, too.
func NewReactors(c ReactorConfig) (*Reactors, error) {
	r, _, err := NewReactorsFor(c.Mode, func(Mode) ReactorConfig { return c })
	return r, err
}

// NewReactorsFor is NewReactors for a caller whose choice depends on the Mode. It calls config with
// each Mode that it tries, and starts what that returns, whatever its own Mode. refused is why the
// host has refused io_uring: mode was empty, and ModeThreads was tried instead.
func NewReactorsFor(mode Mode, config func(Mode) ReactorConfig) (r *Reactors, refused, err error) {
	start := func(mode Mode) (*Reactors, error) {
		c := config(mode)
		pool, err := reactor.NewPool(reactor.Config{
			Reactors: c.Reactors, Mode: reactor.Mode(mode), PollMax: c.PollMax, MaxStuck: c.MaxStuck,
		})
		if err != nil {
			return nil, err
		}
		return &Reactors{pool}, nil
	}
	if mode != "" {
		r, err = start(mode)
		return r, nil, err
	}
	if r, refused = start(ModeURing); refused == nil {
		return r, nil, nil
	}
	r, err = start(ModeThreads)
	return r, refused, err
}

// Mode tells how the reactors work: never "".
func (r *Reactors) Mode() Mode { return Mode(r.pool.Mode()) }

// Close ends the reactors. It waits for the file transfers in flight. All Backends must have ended;
// Timers that are set never fire.
func (r *Reactors) Close() { r.pool.Close() }

// Step makes reactors of ModeStepped do what there is to do, on the calling goroutine. When it
// returns, what was posted and kicked before is done, and Timers whose time had come have fired.
// Work that has no end is left. Not on a reactor.
func (r *Reactors) Step() { r.pool.Step() }

// Loop is one of the Reactors, as a Device uses it: the one that owns a Queue (Queue.Loop). Two
// Loops are equal where they are the same reactor. A Loop is valid until Reactors.Close.
//
// One function at a time runs on a reactor, and none of them may block: the rings of other devices
// wait for it. What touches guest memory there defers Queue.RecoverFault.
type Loop struct{ r *reactor.Reactor }

// Post runs fn on the reactor, soon, in the order of the calls. Any goroutine; it does not wait.
func (l Loop) Post(fn func()) { l.r.Post(fn) }

// Do runs fn on the reactor, behind all that was posted before, and returns when it has run. Any
// goroutine but the reactor's own.
func (l Loop) Do(fn func()) { l.r.Do(fn) }

// Now returns the time since a moment that is the same for all reactors of the process. On the
// reactor.
func (l Loop) Now() time.Duration { return l.r.Now() }

// Clock returns what Now was when the reactor last looked: whenever it wakes up, and else every few
// batches of requests. It costs nothing. On the reactor.
func (l Loop) Clock() time.Duration { return l.r.Clock() }

// AIO returns what transfers files in the context of the reactor, for devsw.Buf.AIO. It is a
// devsw.Turner and a devsw.Watcher, too. Any goroutine.
func (l Loop) AIO() devsw.AIO { return l.r }

// AfterFunc calls fn on the reactor, once, when d has passed, unless the Timer is stopped or set
// anew before. It costs no goroutine. On the reactor.
func (l Loop) AfterFunc(d time.Duration, fn func()) *Timer {
	t := new(Timer)
	t.t.Init(l.r, fn)
	t.t.Reset(d)
	return t
}

// Timer calls a function on a reactor later; Loop.AfterFunc makes it. It belongs to the reactor:
// its methods are called there, and so it is certain that the function does not run after Stop.
type Timer struct{ t reactor.Timer }

// Reset makes the function be called once, when d has passed from now, and not at the time that was
// set before. It tells whether that was still to come. On the reactor.
func (t *Timer) Reset(d time.Duration) (pending bool) { return t.t.Reset(d) }

// Stop makes the function not be called any more. It tells whether it was still to be called. On
// the reactor.
func (t *Timer) Stop() (pending bool) { return t.t.Stop() }
