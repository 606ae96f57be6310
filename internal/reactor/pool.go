package reactor

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Mode is how reactors sleep and transfer.
type Mode string

const (
	ModeURing   Mode = "io_uring"
	ModeThreads Mode = "threads"
	ModeStepped Mode = "stepped" // for tests: see Pool.Step
)

// DefaultPoll is how long a reactor looks for work at most before it sleeps, unless told otherwise.
const DefaultPoll = 100 * time.Microsecond

// Pool is a fixed set of reactors that devices share.
type Pool struct {
	reactors []*Reactor
	workers  *crew
	mode     Mode

	mu       sync.Mutex
	expected []usage // of each reactor, of Sources that it may not have counted yet
}

// Config says how a Pool is made.
type Config struct {
	Reactors int           // 1 where it is less
	Mode     Mode          // ModeURing where it is empty
	PollMax  time.Duration // of a look for work before sleeping; 0: DefaultPoll, negative: none

	// MaxStuck is how many threads may be stuck in transfers: of the kernel's for each reactor's
	// ring, and of the Pool's own. It is for a host that allows few; MaxStuck where 0.
	MaxStuck int
}

// NewPool starts the reactors. Its error is ErrMode for a Mode that does not exist, or the host's
// (ENOSYS, EPERM, ENOMEM in an *os.SyscallError) where it refuses io_uring. Close ends them.
func NewPool(c Config) (*Pool, error) {
	c.Reactors = max(c.Reactors, 1)
	switch {
	case c.PollMax == 0:
		c.PollMax = DefaultPoll
	case c.PollMax < 0:
		c.PollMax = 0
	}
	if c.MaxStuck <= 0 {
		c.MaxStuck = MaxStuck
	}
	p := &Pool{mode: c.Mode, workers: newCrew(c.MaxStuck)}
	switch c.Mode {
	case "":
		p.mode = ModeURing
	case ModeURing, ModeThreads, ModeStepped:
	default:
		return nil, fmt.Errorf("%q: %w", c.Mode, ErrMode)
	}
	for range c.Reactors {
		r, err := newReactor(p.mode, p.workers, c.PollMax, c.MaxStuck)
		if err != nil {
			p.Close()
			return nil, err
		}
		p.reactors = append(p.reactors, r)
	}
	p.expected = make([]usage, len(p.reactors))
	return p, nil
}

// Mode tells how the Pool's reactors work.
func (p *Pool) Mode() Mode { return p.mode }

// newSource is what a new Source is expected to take of a reactor. It fades like all else: by then
// it has been counted.
const newSource = 0.25

// usageSteps is into how many steps usage is divided: in what is smaller reactors do not differ.
const usageSteps = 8

// Pick returns the reactor for a new Source: the one that has worked least in the last second or
// so, of several the one with the fewest Sources. Many that are idle are less than one that is
// busy. Those for whom it was picked of late count, too, though they may not have been added yet.
// Any goroutine.
func (p *Pool) Pick() *Reactor {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Since(epoch)
	var best int
	var least [2]int64
	for i, r := range p.reactors {
		usage := r.worked(now) + p.expected[i].now(now)
		load := [2]int64{int64(math.Round(usageSteps * usage)), r.load.Load()}
		if i == 0 || slices.Compare(load[:], least[:]) < 0 {
			best, least = i, load
		}
	}
	p.expected[best].add(now, newSource)
	return p.reactors[best]
}

// Close ends the reactors, after their transfers in flight; it waits for that. All Sources must
// have been removed.
func (p *Pool) Close() {
	for _, r := range p.reactors {
		r.shutdown()
	}
	p.workers.stop()
}

// ErrMode is wrapped by the error for a Mode that does not exist.
var ErrMode = errors.New("no such mode of asynchronous I/O")
