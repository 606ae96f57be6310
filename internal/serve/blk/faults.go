package blk

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/fault"
)

// The driver fault below a disk is reached by its ioctls: see fault.FAULTGET and those that follow.

// fault runs a command of the driver fault.
func (m *model) fault(cmd devsw.Cmd, data any) error {
	if m.storage.faults == nil {
		return control.Impossible("the disk has no faults: vdev was not started with --driver fault,...")
	}
	return m.storage.faults.Control(0, cmd, data)
}

// Faults implements control.Faulty.
func (m *model) Faults() (control.Faults, error) {
	var st fault.State
	if err := m.fault(fault.FAULTGET, &st); err != nil {
		return control.Faults{}, err
	}
	f := control.Faults{
		Rules: []control.FaultRule{}, Held: []control.Held{}, Ops: map[string]uint64{}, Injected: map[string]uint64{},
		Cached: st.Cached, Off: st.Off,
	}
	for _, r := range st.Rules {
		f.Rules = append(f.Rules, control.FaultRule{ID: r.ID, Rule: r.Rule.String(), Matched: r.Matched, Hit: r.Hit})
	}
	for _, h := range st.Held {
		f.Held = append(f.Held, control.Held{
			Op: h.Op.String(), Offset: h.Pos, Bytes: h.N, Seconds: time.Since(h.Since).Seconds(), Rule: h.Rule,
			Hangs: h.Hangs, Uncancellable: h.Uncancellable,
		})
	}
	for op, n := range st.Ops {
		f.Ops[op.String()] = n
	}
	for a, n := range st.Injected {
		f.Injected[a.String()] = n
	}
	return f, nil
}

// SetFaults implements control.Faulty.
func (m *model) SetFaults(texts []string) (ids []int, err error) {
	rules := make([]fault.Rule, len(texts))
	for i, text := range texts {
		if rules[i], err = fault.ParseRule(text); err != nil {
			return nil, control.Wrong("%s", fault.Reason(err))
		}
	}
	err = m.parts.Commands.Do("fault "+strings.Join(texts, " "), func() error {
		for i := range rules {
			if err := m.fault(fault.FAULTSET, &rules[i]); err != nil {
				for _, id := range ids {
					err = errors.Join(err, m.fault(fault.FAULTCLEAR, &id))
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
func (m *model) ClearFaults(ids []int) error {
	return m.eachRule("fault clear", fault.FAULTCLEAR, ids)
}

// ReleaseFaults implements control.Faulty.
func (m *model) ReleaseFaults(ids []int) error {
	return m.eachRule("fault release", fault.FAULTRELEASE, ids)
}

// eachRule runs a command of the driver fault for each of these rules, or once for all.
func (m *model) eachRule(what string, cmd devsw.Cmd, ids []int) error {
	if len(ids) == 0 {
		return m.parts.Commands.Do(what, func() error { return m.fault(cmd, nil) })
	}
	for _, id := range ids {
		err := m.parts.Commands.Do(fmt.Sprint(what, " ", id), func() error { return m.fault(cmd, &id) })
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

// Crash implements control.Faulty.
func (m *model) Crash(ctx context.Context, o control.Outage) (control.Losses, error) {
	if !(o.Keep >= 0 && o.Keep <= 1) {
		return control.Losses{}, control.Wrong("keep=%v: must be from 0 to 1", o.Keep)
	}
	// It writes to the lower device, which may be slow.
	out, err := waited(ctx, m, "fault crash", func() (fault.Outage, error) {
		out := fault.Outage{Seed: o.Seed, Keep: o.Keep, Off: o.Off}
		err := m.fault(fault.FAULTCRASH, &out)
		return out, err
	})
	switch {
	case errors.Is(err, devsw.EINVAL):
		return control.Losses{}, control.Impossible("the disk has no cache whose contents could be lost: --driver fault was given without cache=BYTES")
	case errors.Is(err, devsw.ENXIO):
		return control.Losses{}, control.Impossible("the disk is not open: there is nothing in its cache")
	case err != nil:
		return control.Losses{}, err
	}
	return control.Losses{Kept: out.Kept, Dropped: out.Dropped}, nil
}
