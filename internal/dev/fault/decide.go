package fault

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"vdev/devsw"
)

// ruleState is a rule in force.
type ruleState struct {
	Rule
	rng     *rand.Rand
	matched uint64
	hit     uint64
}

// ruleSet are the rules in force on one device, and what they have done. Whoever has it locks it.
type ruleSet struct {
	rules    []*ruleState
	injected [Crash + 1]uint64
}

// add puts a rule in force.
func (s *ruleSet) add(r Rule) { s.rules = append(s.rules, &ruleState{Rule: r, rng: generator(r.Seed)}) }

// drop takes a rule out of force, or all of them (id 0), and tells whether there was one.
func (s *ruleSet) drop(id int) bool {
	before := len(s.rules)
	s.rules = slices.DeleteFunc(s.rules, func(r *ruleState) bool { return id == 0 || r.ID == id })
	return len(s.rules) < before
}

// decide asks the rules about an operation on the n bytes from pos on, in sectors of so many bytes.
func (s *ruleSet) decide(op Ops, pos, n, sector int64) (v verdict) {
	for _, r := range s.rules {
		if !r.match(op, pos, n) {
			continue
		}
		switch r.Action {
		case Delay:
			v.delay += r.delay()
			if v.delay < 0 {
				v.delay = math.MaxInt64
			}
			v.uncancellable = v.uncancellable || r.Uncancellable
			if !v.hang {
				v.rule = r.ID
			}
		case Hang:
			v.hang = true
			v.uncancellable = v.uncancellable || r.Uncancellable
			v.rule = r.ID
		default:
			if v.ended || !r.end(&v, op, n, sector) {
				continue
			}
			v.ended = true
		}
		r.hit++
		s.injected[r.Action]++
	}
	// There is nobody left to cancel these.
	v.uncancellable = v.uncancellable || op&(Close|Cancel) != 0
	return v
}

// tell adds the rules, and what they have done, to a State.
func (s *ruleSet) tell(to *State) {
	for a, n := range s.injected {
		if n > 0 {
			to.Injected[Action(a)] += n
		}
	}
	for _, r := range s.rules {
		to.Rules = append(to.Rules, RuleState{Rule: r.Rule, Matched: r.matched, Hit: r.hit})
	}
}

// verdict is what the rules have decided about one operation.
type verdict struct {
	delay         time.Duration
	hang          bool
	rule          int  // whose hang or, without one, delay it is
	uncancellable bool // of the delay or the hang

	// How it ends; at most one of them.
	ended bool
	errno devsw.Errno
	short bool
	bytes int64 // short: how many are transferred
	crash *Outage
}

func (v *verdict) holds() bool { return v.delay > 0 || v.hang }

// generator makes the source of what is random with this seed.
func generator(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

// setRule puts a rule in force and gives its ID. EINVAL for one that makes no sense.
func (sc *softc) setRule(r Rule) (int, error) {
	if err := r.Check(); err != nil {
		return 0, fmt.Errorf("rule %q: %w", r, err)
	}
	if r.Action == Crash && sc.cache == nil {
		return 0, fmt.Errorf("rule %q: there is no cache whose contents could be lost: %w", r, devsw.EINVAL)
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	sc.lastRule++
	r.ID = sc.lastRule
	sc.add(r)
	sc.rearmLocked()
	return r.ID, nil
}

// clearRule takes a rule out of force, or all of them (id 0). What hangs because of it goes on
// hanging. ENOENT: no such rule.
func (sc *softc) clearRule(id int) error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	found := sc.drop(id)
	sc.rearmLocked()
	if id != 0 && !found {
		return devsw.ENOENT
	}
	return nil
}

func (sc *softc) rearmLocked() { sc.armed.Store(len(sc.rules) > 0 || sc.off) }

// decideLocked asks the rules about an operation on the n bytes from pos on.
func (sc *softc) decideLocked(op Ops, pos, n int64) (v verdict) {
	if sc.off && op&Any != 0 {
		v.errno = devsw.EIO
		return v
	}
	return sc.decide(op, pos, n, sc.sector)
}

// match tells whether the rule hits the operation.
func (r *ruleState) match(op Ops, pos, n int64) bool {
	if r.Ops&op == 0 {
		return false
	}
	if r.Blocks != 0 {
		first, last := pos/devsw.DEVBSIZE, (pos+n-1)/devsw.DEVBSIZE
		if n <= 0 || last < r.First || first >= r.First+r.Blocks {
			return false
		}
	}
	r.matched++
	switch {
	case r.matched <= r.Skip, r.Count != 0 && r.hit >= r.Count:
		return false
	}
	return r.Prob == 0 || r.rng.Float64() < r.Prob
}

// delay gives the time of a Delay.
func (r *ruleState) delay() time.Duration {
	d := r.Min
	if r.Max > r.Min {
		d += time.Duration(r.rng.Uint64N(uint64(r.Max-r.Min) + 1))
	}
	return d
}

// end makes v the end that the rule gives an operation of n bytes, if it can.
func (r *ruleState) end(v *verdict, op Ops, n, sector int64) bool {
	switch r.Action {
	case Error:
		v.errno = r.Errno
		if op == Cancel {
			v.errno = devsw.ENODEV
		} else if v.errno == 0 {
			v.errno = devsw.EIO
		}
	case Short:
		most := r.Bytes / sector
		if r.Bytes == 0 && n >= sector {
			most = r.rng.Int64N(n / sector)
		}
		if most*sector >= n {
			return false
		}
		v.short, v.bytes = true, most*sector
	case Crash:
		v.crash = &Outage{Seed: r.Seed, Keep: r.Keep, Off: r.Off}
	}
	return true
}
