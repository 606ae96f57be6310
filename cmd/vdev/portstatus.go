package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"vdev/internal/control"
)

// portName is what a port is called.
func portName(p *control.Port) string {
	if p.Name != "" {
		return p.Name
	}
	return strconv.Itoa(p.ID)
}

// describeConsole says in a few words what a console has.
func describeConsole(c *control.Console) string {
	if !c.Multiport {
		return fmt.Sprintf("one port, %d queues (num_vqs)", c.Queues)
	}
	return fmt.Sprintf("%s of %d, %d queues (num_vqs), sizes are told %s", count(len(c.Ports), "port"), c.MaxPorts, c.Queues, c.ResizeOrder)
}

// describePorts writes a line for each port, and one for each of those at its other side.
func describePorts(t *table, ports []control.Port) {
	if len(ports) == 0 || t.err != nil {
		return
	}
	var lines strings.Builder // does not fail
	w := tabwriter.NewWriter(&lines, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "port\tdriver\tstate\tguest\tsize\toutput\tinput\t")
	for i := range ports {
		describePort(w, &ports[i])
	}
	_ = w.Flush()
	for line := range strings.Lines(lines.String()) {
		if t.err == nil {
			_, t.err = fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
		}
	}
}

func describePort(w io.Writer, p *control.Port) {
	name := strconv.Itoa(p.ID)
	if p.Name != "" {
		name += " " + p.Name
	}
	var more []string
	add := func(on bool, format string, args ...any) {
		if on {
			more = append(more, fmt.Sprintf(format, args...))
		}
	}
	add(p.Dropped > 0, "%d bytes were dropped", p.Dropped)
	add(p.Waiting > 0 && p.Overflow == "wait", "%d bytes wait", p.Waiting)
	add(p.Told != (control.Window{}) && p.Told != p.Size, "the guest was told %s", windowText(p.Told))
	add(p.Error != "", "%s", p.Error)
	guest := "-"
	switch {
	case p.GuestOpen:
		guest = "open"
	case p.GuestReady:
		guest = "ready"
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", name, p.Driver, p.State, guest, windowText(p.Size), p.Output, p.Input, strings.Join(more, ", "))
	if !p.Attached {
		fmt.Fprintf(w, "\tnobody is attached\t\t\t\t\t\t\n")
	}
	for _, e := range p.Ends {
		var more []string
		if e.Watches {
			more = append(more, "watches")
		}
		if e.Gone {
			more = append(more, "has gone")
		}
		if e.Lost > 0 {
			more = append(more, fmt.Sprintf("has missed %d bytes", e.Lost))
		}
		fmt.Fprintf(w, "\t%s\t\t\t%s\t%d\t%d\t%s\n", e.Name, windowText(e.Size), e.Output, e.Input, strings.Join(more, ", "))
	}
}

// windowText is the size of a window as people write it.
func windowText(size control.Window) string {
	if size == (control.Window{}) {
		return "-"
	}
	return fmt.Sprintf("%dx%d", size.Columns, size.Rows)
}
