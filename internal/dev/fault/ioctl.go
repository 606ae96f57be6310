package fault

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"vdev/devsw"
)

// The driver's own commands. They work through the open device, and by Driver.Control.
const (
	// FAULTSET puts a rule in force, after those that are, and sets its ID. data *Rule. EINVAL for
	// one that makes no sense.
	FAULTSET devsw.Cmd = devsw.CmdDriver + iota
	// FAULTCLEAR takes a rule out of force. What hangs because of it goes on hanging. data *int,
	// the rule's ID; nil: all rules. ENOENT: there is no such rule.
	FAULTCLEAR
	// FAULTRELEASE ends hangs: the operations go on. Rules are not touched. data *int, the ID of
	// the rule that made them hang; nil: all.
	FAULTRELEASE
	// FAULTCRASH loses what is in the cache. data *Outage. EINVAL where the unit has no cache,
	// ENXIO where it is not open.
	FAULTCRASH
	// FAULTGET tells what is going on. data *State.
	FAULTGET
)

// Outage is a loss of power, the argument of FAULTCRASH.
type Outage struct {
	Seed uint64
	// Keep is the probability of each sector in the cache to have reached the medium: 0 loses all.
	Keep float64
	// Off: the power stays off. Every operation fails with EIO until the device is closed. Else it
	// comes back at once.
	Off bool

	// Set by FAULTCRASH: how many sectors have reached the medium, and how many were lost.
	Kept, Dropped int
}

// State is the result of FAULTGET.
type State struct {
	Ops      map[Ops]uint64    // operations that have come, by kind
	Injected map[Action]uint64 // operations that rules have acted on, by action
	Rules    []RuleState
	Held     []Held // the oldest first
	Cached   int    // sectors that are only in the volatile cache
	Off      bool   // since a crash
}

// RuleState is a rule in force.
type RuleState struct {
	Rule
	Matched uint64 // how many operations it was about
	Hit     uint64 // how many of them it has acted on
}

// Held is an operation that is delayed, or hangs.
type Held struct {
	Op            Ops
	Pos, N        int64 // bytes; 0 where the operation has no place
	Since         time.Time
	Rule          int  // the ID of the rule that holds it
	Hangs         bool // until it is released; else it is delayed
	Uncancellable bool
}

// control runs one of the driver's own commands.
func (sc *softc) control(cmd devsw.Cmd, data any) error {
	switch cmd {
	case FAULTSET:
		r, ok := data.(*Rule)
		if !ok || r == nil {
			return devsw.EINVAL
		}
		id, err := sc.setRule(*r)
		if err == nil {
			r.ID = id
		}
		return err
	case FAULTCLEAR, FAULTRELEASE:
		id := 0
		if data != nil {
			p, ok := data.(*int)
			if !ok || p == nil || *p <= 0 {
				return devsw.EINVAL
			}
			id = *p
		}
		if cmd == FAULTCLEAR {
			return sc.clearRule(id)
		}
		sc.release(id)
		return nil
	case FAULTCRASH:
		o, ok := data.(*Outage)
		if !ok || o == nil {
			return devsw.EINVAL
		}
		return sc.crash(o)
	case FAULTGET:
		s, ok := data.(*State)
		if !ok || s == nil {
			return devsw.EINVAL
		}
		*s = sc.state()
		return nil
	}
	return devsw.ENOTTY
}

func (sc *softc) state() State {
	s := State{Ops: make(map[Ops]uint64), Injected: make(map[Action]uint64)}
	for i := range sc.ops {
		if n := sc.ops[i].Load(); n > 0 {
			s.Ops[1<<i] = n
		}
	}
	if sc.cache != nil {
		s.Cached = sc.cache.size()
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	s.Off = sc.off
	sc.tell(&s)
	for _, h := range slices.SortedFunc(maps.Keys(sc.holds), func(a, b *hold) int { return cmp.Compare(a.order, b.order) }) {
		s.Held = append(s.Held, Held{
			Op: h.op, Pos: h.pos, N: h.n, Since: h.since, Rule: h.v.rule, Hangs: h.hanging, Uncancellable: h.v.uncancellable,
		})
	}
	return s
}
