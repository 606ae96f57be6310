package spec

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/pflag"
)

const (
	// maxPorts is how many ports a console can have: Linux refuses more, and each takes two queues.
	maxPorts = 31
	// roomForPorts is how many it can have where nothing else is said: some can be added while the
	// guest runs, and QEMU's command line need not change with the number of ports.
	roomForPorts = 4
)

// Console is what a Device has that is a console.
type Console struct {
	Ports     []Port // none where they are added later
	Multiport bool
	MaxPorts  int // how many there can be at once; 1 without Multiport
	// RowsFirst has a size told in the order that older kernels take it in.
	RowsFirst bool
}

// Queues is how many virtqueues it has, which the front-end has to be told (virtio 1.3, section
// 5.3.2).
func (c *Console) Queues() int {
	if c.Multiport {
		return 2 * (c.MaxPorts + 1)
	}
	return 2
}

// ConsoleFlags are the flags that describe a console, as they are given.
type ConsoleFlags struct {
	deviceFlags
	ports     []string
	maxPorts  Number
	multiport Choice
	order     Choice
}

// resizeOrders are the values of --resize-order.
var resizeOrders = []string{"columns-first", "rows-first"}

// NewConsoleFlags gives the flags of a console with their defaults.
func NewConsoleFlags() *ConsoleFlags {
	return &ConsoleFlags{
		deviceFlags: newDeviceFlags(),
		maxPorts:    Number{Min: 1, Max: maxPorts},
		multiport:   Choice{Value: "auto", Of: []string{"auto", "on", "off"}},
		order:       Choice{Value: resizeOrders[0], Of: resizeOrders},
	}
}

// Register makes them flags of fs.
func (f *ConsoleFlags) Register(fs *pflag.FlagSet) {
	f.registerSocket(fs)
	fs.StringArrayVar(&f.ports, "port", nil, "give the guest the port that `OPTION=VALUE,...` describe (see above); may be repeated")
	fs.Var(&f.maxPorts, "max-ports", fmt.Sprintf("let there be up to `N` ports, those included that 'vdev ctl port add' adds (default %d, or as many as the ids of the ports need)", roomForPorts))
	fs.Var(&f.multiport, "multiport", "whether the guest is offered several ports (MULTIPORT); auto: if there are several, or one with a name or an id, or --max-ports is given")
	fs.Var(&f.order, "resize-order", "how a guest with MULTIPORT is told a size: rows-first is for Linux before 6.12.65 (Debian's 6.1 before 6.1.162), and for NetBSD")
	f.registerGuest(fs, "")
}

// Stdio tells whether a port has vdev's own terminal.
func (c *Config) Stdio() bool {
	return slices.ContainsFunc(c.Devices, func(d Device) bool {
		return d.Console != nil && slices.ContainsFunc(d.Console.Ports, func(p Port) bool { return p.Driver == "stdio" })
	})
}

// checkPorts tells where a port wants something of the host that something else has.
func (c *Config) checkPorts() error {
	has := map[string]string{} // by what it is
	path := func(name string) string { return "the path " + filepath.Clean(name) }
	if c.Control != "" {
		has[path(c.Control)] = "--control"
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		if d.SocketPath != "" {
			has[path(d.SocketPath)] = d.owns("the ", "front-end's socket")
		}
		if d.Disk != nil && d.Disk.Driver.File != "" {
			has[path(d.Disk.Driver.File)] = d.owns("the ", "image")
		}
	}
	for i := range c.Devices {
		d := &c.Devices[i]
		if d.Console == nil {
			continue
		}
		for j := range d.Console.Ports {
			p := &d.Console.Ports[j]
			who := d.owns("", "port "+p.String())
			for _, claim := range p.claims() {
				if other, taken := has[claim]; taken {
					return fmt.Errorf("%s and %s both have %s", other, who, claim)
				}
				has[claim] = who
			}
		}
	}
	return nil
}

// owns names something of a device, with an article where there is only one device.
func (d *Device) owns(article, what string) string {
	if d.Name == "" {
		return article + what
	}
	return "device " + d.Name + "'s " + what
}

// Use describes the ports by these texts, as if --port had been given so.
func (f *ConsoleFlags) Use(ports ...string) { f.ports = ports }

// Choices are flags whose values are some words, by name.
func (f *ConsoleFlags) Choices() map[string]*Choice {
	return map[string]*Choice{"multiport": &f.multiport, "resize-order": &f.order, "migratable": &f.migratable, "memory-files": &f.memory}
}

// Config checks the flags together. given tells whether a flag was given.
func (f *ConsoleFlags) Config(given func(flag string) bool) (Device, error) {
	d, err := f.config(given)
	if err != nil {
		return d, err
	}
	c := &Console{RowsFirst: f.order.Value == "rows-first"}
	d.Console = c
	for _, text := range f.ports {
		p, err := ParsePort(text)
		if err != nil {
			return d, fmt.Errorf("--port %s: %w", text, err)
		}
		c.Ports = append(c.Ports, p)
	}
	single := len(c.Ports) == 1 && c.Ports[0].Name == "" && c.Ports[0].ID <= 0 && !given("max-ports")
	switch {
	case len(c.Ports) == 0 && !given("max-ports"):
		return d, errors.New("--port is missing: --port driver=pty,path=LINK, say; or --max-ports N, for ports that are added later")
	case f.multiport.Value == "off" && !single:
		return d, errors.New("--multiport=off: there can be one port then, without name and id, and no --max-ports")
	}
	c.Multiport = f.multiport.Value == "on" || !single
	switch {
	case !c.Multiport:
		c.MaxPorts = 1
	case given("max-ports"):
		c.MaxPorts = f.maxPorts.Value
	default:
		c.MaxPorts = max(roomForPorts, len(c.Ports))
		for _, p := range c.Ports {
			c.MaxPorts = max(c.MaxPorts, p.ID+1)
		}
	}
	ports := c.Ports
	c.Ports = nil
	// Those that are given an id come first: the others take what is left.
	for _, chosen := range []bool{false, true} {
		for i := range ports {
			if (ports[i].ID == AnyID) == chosen {
				if err := c.add(&ports[i]); err != nil {
					return d, fmt.Errorf("--port %s: %w", f.ports[i], err)
				}
			}
		}
	}
	slices.SortFunc(c.Ports, func(a, b Port) int { return a.ID - b.ID })
	if !c.Multiport && !c.Ports[0].Console {
		return d, fmt.Errorf("--port %s: console=off: the only port of a device without MULTIPORT is a console", f.ports[0])
	}
	return d, nil
}

// add adds a port, with an id where it has none.
func (c *Console) add(p *Port) error {
	if err := p.Join(c.Ports, c.MaxPorts); err != nil {
		return err
	}
	c.Ports = append(c.Ports, *p)
	return nil
}

// Join gives a port an id where it has none, and tells what keeps it from being one of the ports of
// a console that are there already, of which there may be most.
func (p *Port) Join(ports []Port, most int) error {
	if p.ID == AnyID {
		for p.ID = 0; slices.ContainsFunc(ports, func(other Port) bool { return other.ID == p.ID }); p.ID++ {
		}
		if p.ID >= most {
			return fmt.Errorf("there is room for %d ports (--max-ports), and there are as many", most)
		}
	}
	if p.ID >= most {
		return fmt.Errorf("id=%d: must be less than %d (--max-ports)", p.ID, most)
	}
	for i := range ports {
		other := &ports[i]
		switch {
		case other.ID == p.ID:
			return fmt.Errorf("there are two ports with the id %d", p.ID)
		case p.Name != "" && other.Name == p.Name:
			return fmt.Errorf("there are two ports with the name %s", p.Name)
		}
		if what := p.clash(other); what != "" {
			return fmt.Errorf("another port has %s, too", what)
		}
	}
	return nil
}

// clash tells what two ports want of the host that only one can have; empty: nothing.
func (p *Port) clash(other *Port) string {
	for _, mine := range p.claims() {
		if slices.Contains(other.claims(), mine) {
			return mine
		}
	}
	return ""
}

// claims are what a port wants of the host for itself.
func (p *Port) claims() (all []string) {
	switch {
	case p.Driver == "stdio":
		all = append(all, "vdev's standard input")
	case p.Driver == "socket" && p.Connect: // whoever listens can have several
	case p.Address != "":
		all = append(all, "the address "+p.Address)
	case p.Path != "":
		all = append(all, "the path "+filepath.Clean(p.Path))
	}
	if p.Log != nil {
		all = append(all, "the path "+filepath.Clean(p.Log.Path))
	}
	return all
}
