// Package faulty is how the control socket reaches the driver fault behind a device, whatever that
// is.
package faulty

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/fault"
	"vdev/internal/serve"
)

// Rules has the methods of control.Faulty that are about rules.
type Rules struct {
	Commands *serve.Commands
	// Control runs a command of the driver (fault.FAULTGET and those beside it). It answers a
	// *control.Error where there is no such driver.
	Control func(cmd devsw.Cmd, data any) error
}

// Faults implements control.Faulty.
func (f Rules) Faults() (control.Faults, error) {
	var st fault.State
	if err := f.Control(fault.FAULTGET, &st); err != nil {
		return control.Faults{}, err
	}
	to := control.Faults{
		Rules: []control.FaultRule{}, Held: []control.Held{}, Ops: map[string]uint64{}, Injected: map[string]uint64{},
		Cached: st.Cached, Off: st.Off,
	}
	for _, r := range st.Rules {
		to.Rules = append(to.Rules, control.FaultRule{ID: r.ID, Rule: r.Rule.String(), Matched: r.Matched, Hit: r.Hit})
	}
	for _, h := range st.Held {
		to.Held = append(to.Held, control.Held{
			Op: h.Op.String(), Offset: h.Pos, Bytes: h.N, Seconds: time.Since(h.Since).Seconds(), Rule: h.Rule,
			Hangs: h.Hangs, Uncancellable: h.Uncancellable,
		})
	}
	for op, n := range st.Ops {
		to.Ops[op.String()] = n
	}
	for a, n := range st.Injected {
		to.Injected[a.String()] = n
	}
	return to, nil
}

// SetFaults implements control.Faulty.
func (f Rules) SetFaults(texts []string) (ids []int, err error) {
	rules := make([]fault.Rule, len(texts))
	for i, text := range texts {
		if rules[i], err = fault.ParseRule(text); err != nil {
			return nil, control.Wrong("%s", fault.Reason(err))
		}
	}
	err = f.Commands.Do("fault "+strings.Join(texts, " "), func() error {
		for i := range rules {
			if err := f.Control(fault.FAULTSET, &rules[i]); err != nil {
				for _, id := range ids {
					err = errors.Join(err, f.Control(fault.FAULTCLEAR, &id))
				}
				if errors.Is(err, devsw.EINVAL) {
					return control.Impossible("%s", fault.Reason(err))
				}
				return err
			}
			ids = append(ids, rules[i].ID)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// ClearFaults implements control.Faulty.
func (f Rules) ClearFaults(ids []int) error {
	return f.eachRule("fault clear", fault.FAULTCLEAR, ids)
}

// ReleaseFaults implements control.Faulty.
func (f Rules) ReleaseFaults(ids []int) error {
	return f.eachRule("fault release", fault.FAULTRELEASE, ids)
}

// eachRule runs a command of the driver fault for each of these rules, or once for all.
func (f Rules) eachRule(what string, cmd devsw.Cmd, ids []int) error {
	if len(ids) == 0 {
		return f.Commands.Do(what, func() error { return f.Control(cmd, nil) })
	}
	for _, id := range ids {
		err := f.Commands.Do(fmt.Sprint(what, " ", id), func() error { return f.Control(cmd, &id) })
		switch {
		case errors.Is(err, devsw.ENOENT):
			return control.Impossible("no rule %d is in force", id)
		case errors.Is(err, devsw.EINVAL):
			return control.Wrong("%d is no rule: they count from 1", id)
		case err != nil:
			return err
		}
	}
	return nil
}
