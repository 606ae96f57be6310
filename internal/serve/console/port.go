package console

import (
	"errors"
	"fmt"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/control"
	"vdev/internal/spec"
	"vdev/vhostuser/virtioconsole"
)

// port is a port of a console, with what is behind it.
type port struct {
	spec.Port
	// line is nil while the port is being added, or removed.
	line *line.Line
	dev  devsw.Dev
	logs []reopener
}

// reopener is an End that writes to a file by its name.
type reopener interface{ Reopen() error }

// open makes the line of a port, with what is at its other side, and makes it a unit of the driver.
// close ends it.
func (m *model) open(p *port) (err error) {
	conf := line.Config{Scrollback: int(p.Scrollback), Size: p.Size}
	if p.Wait {
		conf.Overflow = line.Wait
	}
	l := line.New(conf)
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	if err := m.addEnds(p, l); err != nil {
		return err
	}
	if p.dev, err = m.driver.Create(p.ID, l); err != nil {
		return err
	}
	if p.Faulty {
		if err := m.makeFaulty(p); err != nil {
			return errors.Join(err, m.driver.Destroy(p.ID))
		}
	}
	p.line = l
	return nil
}

// close takes the device of a port away, which is not open any more.
func (m *model) close(p *port) error {
	var err error
	if p.Faulty {
		err = m.faults.Destroy(p.ID)
	}
	return errors.Join(err, m.driver.Destroy(p.ID))
}

// addEnds adds what is at the other side of a port.
func (m *model) addEnds(p *port, l *line.Line) error {
	switch p.Driver {
	case "null":
		return l.Add(line.NewNull(), "null", line.Main)
	case "loop":
		return l.Add(line.NewLoop(), "loop", line.Main)
	}
	return fmt.Errorf("there is no driver %q", p.Driver)
}

// reopen opens the files that a port writes to again, by their names.
func (p *port) reopen() (err error) {
	for _, log := range p.logs {
		err = errors.Join(err, log.Reopen())
	}
	return err
}

// device is a port as the device model has it.
func (p *port) device() virtioconsole.Port {
	return virtioconsole.Port{ID: uint32(p.ID), Name: p.Name, Console: p.Console, Dev: p.dev}
}

// status is a port as the control socket tells of it, without what the device model knows.
func (p *port) status() control.Port {
	to := control.Port{
		ID: p.ID, Name: p.Name, Console: p.Console, Driver: p.Driver, State: "opening", Overflow: line.Drop.String(), Ends: []control.End{},
	}
	if place := p.Place(); place != "" {
		to.Driver += " " + place
	}
	if p.Faulty {
		to.Driver = "fault on " + to.Driver
	}
	if p.Wait {
		to.Overflow = line.Wait.String()
	}
	if p.line == nil {
		return to
	}
	s := p.line.Status()
	to.Output, to.Input, to.Dropped, to.Kept, to.Waiting = s.Written, s.Read, s.Dropped, s.Kept, s.Waiting
	to.Size = window(s.Size)
	for _, e := range s.Ends {
		to.Attached = to.Attached || e.Role == line.Main && !e.Hungup
		to.Ends = append(to.Ends, control.End{
			Name: e.Name, Watches: e.Role == line.Watcher, Gone: e.Hungup, Output: e.Sent, Input: e.Received, Lost: e.Lost,
			Size: window(e.Size),
		})
	}
	return to
}

// window is a size as the control socket has it.
func window(size devsw.Winsize) control.Window {
	return control.Window{Columns: size.Col, Rows: size.Row}
}
