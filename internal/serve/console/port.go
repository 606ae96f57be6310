package console

import (
	"errors"
	"fmt"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/control"
	"vdev/internal/dev/logfile"
	"vdev/internal/dev/pty"
	"vdev/internal/dev/sock"
	"vdev/internal/spec"
	"vdev/vhostuser/virtioconsole"
)

// port is a port of a console, with what is behind it.
type port struct {
	spec.Port
	// line is nil while the port is being added, or removed.
	line  *line.Line
	dev   devsw.Dev
	files []*logfile.File
	ends  []func() error // what is to be ended beside the line
}

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
			err = errors.Join(err, p.endAll())
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

// close takes a port away whose device is not open any more.
func (m *model) close(p *port) error {
	err := p.endAll()
	if p.Faulty {
		err = errors.Join(err, m.faults.Destroy(p.ID))
	}
	return errors.Join(err, m.driver.Destroy(p.ID))
}

// addEnds adds what is at the other side of a port. Where that fails, part of it may be there, and
// endAll takes it away.
func (m *model) addEnds(p *port, l *line.Line) error {
	var err error
	switch p.Driver {
	case "null":
		err = l.Add(line.NewNull(), "null", line.Main)
	case "loop":
		err = l.Add(line.NewLoop(), "loop", line.Main)
	case "stdio":
		err = m.console.Own.open(l)
	case "pty":
		var t *pty.Pty
		if t, err = pty.Open(l, line.Main, pty.Config{Link: p.Path, Keep: p.Wait}); err == nil {
			p.ends = append(p.ends, t.Close)
		}
	case "socket":
		err = m.addSocket(p, l)
	case "file":
		err = m.addFile(p, l, "file", line.Main, spec.Log{Path: p.Path, Rotation: p.File})
	default:
		err = fmt.Errorf("there is no driver %q", p.Driver)
	}
	if err == nil && p.Log != nil {
		err = m.addFile(p, l, "log", line.Watcher, *p.Log)
	}
	return err
}

// addSocket makes the socket of a port.
func (m *model) addSocket(p *port, l *line.Line) error {
	c := sock.Config{
		Network: "tcp", Address: p.Address, Connect: p.Connect, Watchers: p.Watchers,
		Log: func(err error) { m.parts.Note("port "+p.String(), err) },
	}
	if p.Address == "" {
		c.Network, c.Address = "unix", p.Path
		if p.Path[0] == '@' {
			c.Address = "./" + p.Path // else it would be in no file system
		}
	}
	switch {
	case p.Connect:
		c.Watchers = 0
	case c.Watchers < 0:
		c.Watchers = sock.DefaultWatchers
	}
	s, err := sock.New(l, c)
	if err != nil {
		return err
	}
	p.ends = append(p.ends, func() error { s.Close(); return nil })
	return nil
}

// addFile has the output of a port written to a file.
func (m *model) addFile(p *port, l *line.Line, name string, role line.Role, to spec.Log) error {
	f, err := logfile.Open(logfile.Config{
		Path: to.Path, Timestamps: to.Timestamps, MaxSize: to.MaxSize, MaxFiles: to.MaxFiles,
		Log: func(msg string, err error) { m.parts.Note("port "+p.String()+": "+msg, err) },
	})
	if err != nil {
		return err
	}
	if err := l.Add(f, name, role); err != nil {
		f.Close()
		return err
	}
	p.files = append(p.files, f)
	return nil
}

// endAll ends what is not ended with the line.
func (p *port) endAll() (err error) {
	for _, end := range p.ends {
		err = errors.Join(err, end())
	}
	return err
}

// reopen opens the files that a port writes to again, by their names.
func (p *port) reopen() {
	for _, f := range p.files {
		f.Reopen()
	}
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
