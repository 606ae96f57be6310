package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

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

// first is the only argument, or empty.
func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}
