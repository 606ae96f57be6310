package console

import (
	"context"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/fault"
)

// makeFaulty has the driver fault stand on a port's device. It is attached for the first one.
func (m *model) makeFaulty(p *port) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults == nil {
		d, err := fault.NewLine(m.parts.Table)
		if err != nil {
			return err
		}
		m.faults = d
	}
	dev, err := m.faults.Create(p.ID, p.dev, p.Faults)
	if err != nil {
		return err
	}
	p.dev = dev
	return nil
}

// fault runs a command of the driver fault, for all ports that it stands on.
func (m *model) fault(cmd devsw.Cmd, data any) error {
	m.mu.Lock()
	d := m.faults
	m.mu.Unlock()
	if d == nil {
		return control.Impossible("the console has no faults: no port was given driver=fault,...")
	}
	return d.Control(cmd, data)
}

// Crash implements control.Faulty.
func (m *model) Crash(context.Context, control.Outage) (control.Losses, error) {
	return control.Losses{}, control.Impossible("a console has no cache whose contents could be lost")
}
