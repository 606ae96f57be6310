package reactor

import "fmt"

// Poller is what a Source does; all its methods are called on the reactor.
type Poller interface {
	// Poll does the work there is, at most a budget of it, and tells whether there was any.
	Poll() (worked bool)
	// Arm asks for kicks, then looks again and tells whether work has come meanwhile.
	Arm() (pending bool)
	// Disarm says that kicks are not needed: Poll will be called anyway.
	Disarm()
	// Flush is called at the end of a batch in which MarkDirty was: it publishes completions and
	// signals them.
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

// Add makes p a Source. kick is a descriptor that becomes readable (an eventfd; it is never read,
// nor are its flags changed) when p has work, or -1: then p is polled all the time, with pauses of
// at most a millisecond. The first Poll follows at once. On the reactor.
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

// SetKick changes the descriptor that is watched for s. When it returns, the old one is not used
// any more. A Poll follows: a kick may have come by the old one, and its news been lost with the
// watch. On the reactor.
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

// Remove ends s: when it returns, no method of its Poller is called any more and its kick
// descriptor is not used. What was marked dirty is flushed first. On the reactor.
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

// woken is called by the engine for each watch that fired.
func (r *Reactor) woken(tag uint64) {
	r.kicked = true
	if s := r.sources[tag]; s != nil {
		s.Wake()
	}
}
