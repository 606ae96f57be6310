// Package offload runs what may block. It does so away from the event loops, on a bounded number of
// threads that devices share.
//
// A device has a Share, and hands its work over as Jobs. A Job that waits for a place has neither a
// thread nor a goroutine. So a guest can multiply only what its rings hold anyway.
//
// Each Share has one place of the Pool to itself. The other places go to whoever comes first, but
// one Share has no more than Config.Each. So a device whose storage stalls does not hold up another
// device's work, nor the first Job of one that was idle, as long as there are no more Shares than
// places.
//
// Shares take turns, and so do the Jobs of a Share. A Job is done in pieces, and after each piece
// it waits behind the others.
//
// Pool.mu guards everything. It is held for a few instructions, never over a piece. A place is a
// goroutine. It ends when it has had nothing to do for a while, and a thread of the runtime ends
// with it, which else would stay for ever (but see Config.Keep).
package offload

import (
	"container/list"
	"runtime"
	"sync"
	"time"
)

const (
	// DefaultPlaces is Config.Places where that is 0: what a few devices keep busy.
	DefaultPlaces = 64
	// DefaultEach is Config.Each where that is 0. Storage gains little by doing more at once of
	// what is not reads and writes.
	DefaultEach = 16
	// linger is how long a place stays without work.
	linger = 100 * time.Millisecond
)

// Config says how a Pool is made.
type Config struct {
	Places int // how many pieces run at once, of all Shares; DefaultPlaces where it is 0
	Each   int // how many of them of one Share; DefaultEach where it is 0

	// Keep: the runtime keeps the thread of a place that ends. It is for a host that may not allow
	// another thread.
	Keep bool
}

// Pool is the threads that Shares have in common.
type Pool struct {
	config Config

	mu      sync.Mutex
	shares  int // that were made and not closed
	resting int // of those, with nothing running
	busy    int // places that have a piece
	idle    []*place
	places  sync.WaitGroup
	closed  bool

	// Shares with Jobs that wait, each in one list at most: those with nothing running, and those
	// that have something running and may have more.
	first, more list.List
}

// place is a goroutine of the pool.
type place struct {
	next chan *Job // of capacity 1; closed when the pool is
}

// New makes a Pool. It has no goroutines until there is work. Close ends it.
func New(c Config) *Pool {
	if c.Places <= 0 {
		c.Places = DefaultPlaces
	}
	if c.Each <= 0 {
		c.Each = DefaultEach
	}
	return &Pool{config: c}
}

// Default is the Pool for those who were given none. It is never closed.
var Default = sync.OnceValue(func() *Pool { return New(Config{}) })

// Share is one device's part in a Pool. Its methods may be called on any goroutine.
type Share struct {
	p *Pool

	// Pool.mu:

	running int
	waiting list.List // of *Job
	joint   list.List // of *Job, those that are Joint: they come before others
	in      *list.List
	at      *list.Element // in in
	closed  bool
}

// Job is work that may block. It is its owner's until Add, and again when it has ended or Remove
// has returned true.
type Job struct {
	// Piece does some of the work, on a goroutine of the pool, and tells whether there is more.
	// Then it is called again when the Jobs that wait have had their turn.
	Piece func() (more bool)
	// Joint, where it is set, means that this Job covers all others of its Share that have a Joint
	// and wait when it begins. Joint gets them. They count as begun; their own Piece is not called.
	Joint func(covered []*Job)
	// Owner is the owner's.
	Owner any

	share *Share
	in    *list.List // where it waits, or nil
	at    *list.Element
	hurry bool // Remove came too late: it does not wait for another turn
}

// Share makes a Share. Close gives it up.
func (p *Pool) Share() *Share {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shares++
	p.resting++
	return &Share{p: p}
}

// Close ends the Share. No Job of it may wait; those that run go on.
func (s *Share) Close() {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.running == 0 {
		p.forgetLocked()
	}
}

// forgetLocked takes a closed Share that has nothing running out of the count: its place is for
// all.
func (p *Pool) forgetLocked() {
	p.shares--
	p.resting--
	p.dispatchLocked()
}

// Add queues j. It does not block.
func (s *Share) Add(j *Job) {
	p := s.p
	p.mu.Lock()
	defer p.mu.Unlock()
	s.addLocked(j)
	p.dispatchLocked()
}

func (s *Share) addLocked(j *Job) {
	j.share, j.in = s, &s.waiting
	if j.Joint != nil {
		j.in = &s.joint
	}
	j.at = j.in.PushBack(j)
	s.placeLocked()
}

// Remove takes j back if no piece of it is running, and tells whether it did: then Piece is not
// called any more. A Job that has begun, and waits for its next turn, can be taken back too. A Job
// that cannot be taken back gets its next pieces at once, without waiting for its turn.
func (s *Share) Remove(j *Job) bool {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	if j.in == nil {
		j.hurry = true
		return false
	}
	j.unlinkLocked()
	s.placeLocked()
	return true
}

func (j *Job) unlinkLocked() {
	j.in.Remove(j.at)
	j.in, j.at = nil, nil
}

// Waiting is how many Jobs wait for a place.
func (s *Share) Waiting() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return s.waiting.Len() + s.joint.Len()
}

// Running is how many pieces run.
func (s *Share) Running() int {
	s.p.mu.Lock()
	defer s.p.mu.Unlock()
	return s.running
}

// placeLocked sees to it that s is in the list that it belongs into.
func (s *Share) placeLocked() {
	var in *list.List
	switch {
	case s.waiting.Len()+s.joint.Len() == 0 || s.running >= s.p.config.Each:
	case s.running == 0:
		in = &s.p.first
	default:
		in = &s.p.more
	}
	if in == s.in {
		return
	}
	if s.in != nil {
		s.in.Remove(s.at)
	}
	if s.in = in; in != nil {
		s.at = in.PushBack(s)
	}
}

// takeLocked takes the next Job that may begin, or nil. Each Share that is resting has a place kept
// for it.
func (p *Pool) takeLocked() *Job {
	var s *Share
	switch {
	case p.busy >= p.config.Places:
		return nil
	case p.first.Len() > 0:
		s = p.first.Front().Value.(*Share)
		p.resting--
	case p.more.Len() > 0 && p.busy+p.resting < p.config.Places:
		s = p.more.Front().Value.(*Share)
		// It is another's turn next.
		p.more.MoveToBack(s.at)
	default:
		return nil
	}
	from := &s.joint
	if from.Len() == 0 {
		from = &s.waiting
	}
	j := from.Front().Value.(*Job)
	j.unlinkLocked()
	if j.Joint != nil && s.joint.Len() > 0 {
		var covered []*Job
		for s.joint.Len() > 0 {
			c := s.joint.Front().Value.(*Job)
			c.unlinkLocked()
			covered = append(covered, c)
		}
		j.Joint(covered)
	}
	p.busy++
	s.running++
	s.placeLocked()
	return j
}

// dispatchLocked gives places to what may begin.
func (p *Pool) dispatchLocked() {
	for {
		j := p.takeLocked()
		if j == nil {
			return
		}
		if last := len(p.idle) - 1; last >= 0 {
			// The one that was busy last: the others end sooner.
			w := p.idle[last]
			p.idle = p.idle[:last]
			w.next <- j
			continue
		}
		p.places.Go(func() { p.run(j) })
	}
}

// run is a place: it does j, and then what comes.
func (p *Pool) run(j *Job) {
	w := &place{next: make(chan *Job, 1)}
	for j != nil {
		more := j.Piece()
		if j = p.endLocking(j, more, w); j == nil {
			j = p.await(w)
		}
	}
	// The runtime never ends a thread but that of a goroutine which ends locked to it. As many as
	// there were places were blocked at once at most, so that as many threads are too many now.
	if !p.config.Keep {
		runtime.LockOSThread()
	}
}

// endLocking ends a piece, and gives what the place is to do next. Where that is nil, the place is
// idle.
func (p *Pool) endLocking(j *Job, more bool, w *place) *Job {
	p.mu.Lock()
	defer p.mu.Unlock()
	if more && j.hurry {
		return j
	}
	s := j.share
	p.busy--
	if s.running--; s.running == 0 {
		p.resting++
	}
	switch {
	case more:
		s.addLocked(j)
	case s.closed && s.running == 0:
		p.forgetLocked()
	default:
		s.placeLocked()
	}
	next := p.takeLocked()
	if next == nil && p.closed {
		close(w.next)
	} else if next == nil {
		p.idle = append(p.idle, w)
	}
	return next
}

// await waits for work, and gives nil where the place is to go.
func (p *Pool) await(w *place) *Job {
	timeout := time.NewTimer(linger)
	defer timeout.Stop()
	select {
	case j := <-w.next:
		return j
	case <-timeout.C:
	}
	p.mu.Lock()
	for i, other := range p.idle {
		if other == w {
			p.idle = append(p.idle[:i], p.idle[i+1:]...)
			p.mu.Unlock()
			return nil
		}
	}
	p.mu.Unlock()
	// Somebody has taken it meanwhile.
	return <-w.next
}

// Close ends the Pool, whose Shares have all been closed. It waits for the pieces that run.
func (p *Pool) Close() {
	p.mu.Lock()
	p.closed = true
	for _, w := range p.idle {
		close(w.next)
	}
	p.idle = nil
	p.mu.Unlock()
	p.places.Wait()
}

// Places is how many pieces run at once at most.
func (p *Pool) Places() int { return p.config.Places }
