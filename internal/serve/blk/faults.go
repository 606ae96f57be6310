package blk

import (
	"context"
	"errors"

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
