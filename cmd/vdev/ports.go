package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"vdev/internal/control"
	"vdev/internal/spec"
	"vdev/internal/terminal"
)

// What 'vdev ctl' does with consoles.

func (c *ctl) consoleCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "console [PORT]",
		Short: "Attach this terminal to a port of a console",
		Long: `Attaches this terminal to the port of that name or number, which need not be given where there
is one port, or one console. It shows first what the port has kept of its output, and then
what comes. What is typed goes to the guest, and so does the size of this window. Ctrl-] leaves.

Others may be attached at the same time. The standard input may be a pipe; its end does not
detach. With --watch nothing can be typed, and the guest does not see this window's size.`,
		Example: `  vdev ctl --socket /run/vm1.ctl console
  vdev ctl --socket /run/vm1.ctl console org.qemu.guest_agent.0 --watch`,
		Args:              atMostOne,
		ValidArgsFunction: c.completePorts,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			a, err := client.Attach(ctx, first(args), watch)
			if err != nil {
				return err
			}
			var peer terminal.Peer = a
			if watch {
				peer = watcher{a}
			}
			err = terminal.Run(ctx, terminal.Config{In: os.Stdin, Out: os.Stdout, Escape: true, Own: ctlSignals}, peer)
			switch {
			case errors.Is(err, terminal.ErrEscape):
				_, err = fmt.Fprintln(w)
			case err == nil && a.Why() != "":
				err = fmt.Errorf("detached: %s", a.Why())
			case errors.Is(err, context.Canceled):
				err = nil // a signal said so
			}
			return err
		})(cmd, nil)
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "only show what comes")
	return cmd
}

// watcher is a Peer that is only looked at.
type watcher struct{ *control.Attachment }

func (watcher) Write(p []byte) (int, error)    { return len(p), nil }
func (watcher) Resize(rows, cols uint16) error { return nil }

func (c *ctl) portCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "port COMMAND",
		Short: "Show the ports of a console, and add and remove some",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(c.portListCommand(), c.portAddCommand(), c.portRemoveCommand())
	return cmd
}

func (c *ctl) portListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "Show the ports: who has them open, and how many bytes have passed",
		Args:  noArguments(""),
		RunE: c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			ports, err := client.Ports(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(w, control.Ports{Ports: ports})
			}
			t := &table{w: w}
			describePorts(t, ports)
			return t.err
		}),
	}
}

func (c *ctl) portAddCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "add OPTION=VALUE,...",
		Short: "Give the guest a port",
		Long: `Gives the guest a port, which is described as --port of 'vdev console' has it, and prints its
number. vdev must have been started with room for it (--max-ports). Paths are absolute.`,
		Example: `  vdev ctl --socket /run/vm1.ctl port add name=org.qemu.guest_agent.0,driver=socket,path=/run/vm1-agent.sock`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("one port is to be given, as --port of 'vdev console' has it")
			}
			_, err := spec.ParsePort(args[0])
			return err
		},
		ValidArgsFunction: portCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
				p, err := client.AddPort(ctx, args[0])
				if err != nil {
					return err
				}
				if c.json {
					return printJSON(w, p)
				}
				_, err = fmt.Fprintln(w, p.ID)
				return err
			})(cmd, nil)
		},
	}
}

func (c *ctl) portRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove PORT",
		Short: "Take the port of that name or number from the guest",
		Long: `Takes a port from the guest: what is in progress on it is cancelled and drained, and it is
closed. Programs of the guest that have it open get an error. The command returns then. If it is
interrupted before, the removal goes on.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("one port is to be given, by its name or its number")
			}
			return nil
		},
		ValidArgsFunction: c.completePorts,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(func(ctx context.Context, client *control.Client, _ io.Writer) error {
				return client.RemovePort(ctx, args[0])
			})(cmd, nil)
		},
	}
}

// completePorts completes the name or the number of a port.
func (c *ctl) completePorts(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	if c.socket != "" && len(args) == 0 {
		// Where nobody answers there is nothing to choose from.
		ports, _ := c.client().Ports(cmd.Context())
		for _, p := range ports {
			names = append(names, portName(&p))
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

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

// atMostOne refuses more than one argument.
func atMostOne(_ *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("unexpected argument %q", args[1])
	}
	return nil
}

// first is the only argument, or empty.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
