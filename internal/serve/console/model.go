package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/control"
	"vdev/internal/dev/fault"
	"vdev/internal/serve"
	"vdev/internal/serve/faulty"
	"vdev/internal/spec"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioconsole"
)

// endPatience is how long the end of a console waits for terminals and files to take what the guest
// has put out last.
const endPatience = time.Second

// model is virtio-console on ports.
type model struct {
	faulty.Rules
	console Console
	parts   serve.Parts
	driver  *line.Driver
	device  *virtioconsole.Device
	ended   atomic.Bool // Close was called

	mu     sync.Mutex
	faults *fault.LineDriver // nil: no port has ever had it
	// by id; one whose line is nil is being added or removed, and only holds its place
	ports []*port
}

var (
	_ serve.Model    = (*model)(nil)
	_ control.Ported = (*model)(nil)
	_ control.Faulty = (*model)(nil)
)

// Open implements serve.Kind.
func (c Console) Open(_ context.Context, parts serve.Parts) (_ serve.Model, err error) {
	m := &model{console: c, parts: parts}
	m.Rules = faulty.Rules{Commands: parts.Commands, Control: m.fault}
	if m.driver, err = line.Attach(parts.Table, "tty", devsw.NODEVMAJOR); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	config := virtioconsole.Config{
		FS: parts.FS, Multiport: c.Multiport, MaxPorts: c.MaxPorts, RowsFirst: c.RowsFirst, ConfigChanged: parts.ConfigChanged, Log: parts.Note,
		Trace: parts.Trace,
	}
	for i := range c.Ports {
		p := &port{Port: c.Ports[i]}
		if err := m.open(p); err != nil {
			return nil, fmt.Errorf("port %s: %w", p, err)
		}
		m.ports = append(m.ports, p)
		config.Ports = append(config.Ports, p.device())
	}
	if m.device, err = virtioconsole.New(config); err != nil {
		return nil, err
	}
	return m, nil
}

// Backend implements serve.Model.
func (m *model) Backend() vhostuser.Config { return m.device.BackendConfig(vhostuser.Config{}) }

// Noun implements serve.Model.
func (m *model) Noun() string { return "console" }

// About implements serve.Model. QEMU has to be told the number of queues.
func (m *model) About() []any {
	return append(m.console.About(), "num_vqs", m.console.Console.Queues())
}

// featureNames are the feature bits of a virtio console device (virtio 1.3, section 5.3.3).
var featureNames = map[int]string{0: "SIZE", 1: "MULTIPORT", 2: "EMERG_WRITE"}

// FeatureNames implements serve.Model.
func (m *model) FeatureNames() map[int]string { return featureNames }

// Status implements serve.Model.
func (m *model) Status() func(*control.Status) {
	ports := m.status()
	return func(st *control.Status) {
		m.console.Describe(st)
		st.Console.Ports = ports
		st.State = string(virtioconsole.StateClosed)
		for _, p := range ports {
			// One that is open says most.
			if st.State == string(virtioconsole.StateClosed) || p.State == string(virtioconsole.StateOpen) {
				st.State = p.State
			}
		}
	}
}

// status is that of all ports.
func (m *model) status() []control.Port {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := []control.Port{}
	for _, p := range m.ports {
		all = append(all, p.status())
	}
	for _, s := range m.device.Status().Ports {
		i := slices.IndexFunc(all, func(p control.Port) bool { return p.ID == int(s.ID) })
		if i < 0 {
			continue // it is being removed
		}
		p := &all[i]
		p.State, p.GuestReady, p.GuestOpen = string(s.State), s.GuestReady, s.GuestOpen
		if s.Err != nil {
			p.Error = s.Err.Error()
		}
		p.Dropped += int64(s.Dropped)
		p.Told = window(s.Told)
	}
	return all
}

// Reload implements serve.Model: it is the files of logs that may have been moved.
func (m *model) Reload() {
	for _, p := range m.there() {
		p.reopen()
	}
}

// there are the ports that are not being added or removed.
func (m *model) there() []*port {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(m.ports), func(p *port) bool { return p.line == nil })
}

// Moving implements serve.Model.
func (m *model) Moving(bool) {}

// WaitClosed implements serve.Model.
func (m *model) WaitClosed(ctx context.Context) error { return m.device.WaitClosed(ctx) }

// Close implements serve.Model. Terminals and files get what the guest has put out last, if they
// take it soon.
func (m *model) Close() error {
	m.ended.Store(true)
	patience, enough := context.WithTimeout(context.Background(), endPatience)
	defer enough()
	ports := m.there()
	var all sync.WaitGroup
	for _, p := range ports {
		all.Go(func() { _ = p.line.Drain(patience) })
	}
	all.Wait()
	var err error
	for _, p := range ports {
		err = errors.Join(err, p.endAll())
	}
	if m.faults != nil {
		err = errors.Join(err, m.faults.Detach())
	}
	err = errors.Join(err, m.driver.Detach())
	for _, p := range ports {
		_ = p.line.Wait(patience) // a file that hangs is the kernel's to end
	}
	return err
}

// Ports implements control.Ported.
func (m *model) Ports(context.Context) []control.Port { return m.status() }

// find finds a port by its name or its id, or, where neither is given, the only one there is, or
// the only console.
func (m *model) find(name string) (*port, error) {
	all := m.there()
	fits := func(p *port) bool { return p.Name == name || strconv.Itoa(p.ID) == name }
	if name == "" {
		fits = func(p *port) bool { return p.Console || len(all) == 1 }
	}
	var found []*port
	var names []string
	for _, p := range all {
		names = append(names, p.String())
		if fits(p) {
			found = append(found, p)
		}
	}
	list := strings.Join(names, ", ")
	switch {
	case len(found) == 1:
		return found[0], nil
	case len(all) == 0:
		return nil, control.Impossible("the console has no port")
	case name == "":
		return nil, control.Impossible("there are %d ports, and one has to be named: %s", len(all), list)
	}
	return nil, control.Impossible("there is no port %q; there are: %s", name, list)
}

// AddPort implements control.Ported.
func (m *model) AddPort(ctx context.Context, text string) (control.Port, error) {
	described, err := spec.ParsePort(text)
	if err != nil {
		return control.Port{}, control.Wrong("%v", err)
	}
	if path := described.Relative(); path != "" {
		return control.Port{}, control.Wrong("the path %s must be absolute: vdev may run in another folder", path)
	}
	if described.Driver == "stdio" {
		return control.Port{}, control.Wrong("driver=stdio: vdev has its terminal from its start on; 'vdev ctl console' attaches another one")
	}
	if !m.console.Multiport {
		return control.Port{}, control.Impossible("vdev was started without --multiport=on, and the device has its only port")
	}
	p := &port{Port: described}
	if err := m.reserve(p); err != nil {
		return control.Port{}, control.Impossible("%v", err)
	}
	err = m.parts.Commands.Wait(ctx, func() error {
		return m.parts.Commands.Do("port add "+text, func() error { return m.add(p) })
	})
	if err != nil {
		return control.Port{}, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return p.status(), nil
}

// reserve gives a port that is to be added its place.
func (m *model) reserve(p *port) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var others []spec.Port
	for _, o := range m.ports {
		others = append(others, o.Port)
	}
	if err := p.Join(others, m.console.MaxPorts); err != nil {
		return err
	}
	m.ports = append(m.ports, p)
	slices.SortFunc(m.ports, func(a, b *port) int { return a.ID - b.ID })
	return nil
}

// release takes a port's place away.
func (m *model) release(p *port) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ports = slices.DeleteFunc(m.ports, func(o *port) bool { return o == p })
}

// add opens a port that has its place, and gives it to the guest.
func (m *model) add(p *port) error {
	opened := &port{Port: p.Port}
	if err := m.open(opened); err != nil {
		m.release(p)
		return err
	}
	if err := m.device.AddPort(opened.device()); err != nil {
		m.release(p)
		return errors.Join(err, m.close(opened))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	opened.Port = p.Port
	*p = *opened
	return nil
}

// RemovePort implements control.Ported.
func (m *model) RemovePort(ctx context.Context, name string) error {
	if !m.console.Multiport {
		return control.Impossible("vdev was started without --multiport=on, and the only port stays")
	}
	p, err := m.find(name)
	if err != nil {
		return err
	}
	l, err := m.take(p)
	if err != nil {
		return err
	}
	return m.parts.Commands.Wait(ctx, func() error {
		return m.parts.Commands.Do("port remove "+p.String(), func() error { return m.remove(p, l) })
	})
}

// take takes the line of a port that is to be removed. Whoever comes second finds none.
func (m *model) take(p *port) (*line.Line, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := p.line
	p.line = nil
	if l == nil {
		return nil, control.Impossible("port %s is being removed", p)
	}
	return l, nil
}

// remove takes a port from the guest, and ends what is behind it.
func (m *model) remove(p *port, l *line.Line) error {
	// What has begun is not given up, whoever waits for it.
	if err := m.device.RemovePort(context.Background(), uint32(p.ID)); err != nil {
		return err
	}
	patience, enough := context.WithTimeout(context.Background(), endPatience)
	defer enough()
	_ = l.Drain(patience)
	err := m.close(p)
	m.release(p)
	return err
}
