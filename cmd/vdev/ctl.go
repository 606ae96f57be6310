package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"vdev/internal/control"
	"vdev/internal/dev/fault"
	"vdev/internal/spec"
	"vdev/internal/trace"
)

// ctl is a command line of `vdev ctl`.
type ctl struct {
	socket string
	device string
	json   bool
}

func newCtlCommand() *cobra.Command {
	c := &ctl{}
	cmd := &cobra.Command{
		Use:   "ctl --socket PATH COMMAND",
		Short: "Look at a vdev that runs, and intervene",
		Long: `Talks to a vdev that was started with --control PATH: shows what it is doing, and changes
that. Only the user who started vdev (and root) can.

An error is one line. The exit status is 1 when vdev could not do it, or when there is no
vdev, and 2 when the command line is wrong.

The socket speaks HTTP with JSON, for programs:

  curl --unix-socket /run/vm1.ctl http://vdev/v1/status`,
		Example: `  vdev blk --socket-path /run/vm1.sock --blk-file disk.img --control /run/vm1.ctl
  vdev ctl --socket /run/vm1.ctl status
  vdev ctl --socket /run/vm1.ctl trace --follow`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("there is no command %q", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	fs := cmd.PersistentFlags()
	fs.StringVar(&c.socket, "socket", "", "the socket at `PATH` that vdev was given with --control")
	fs.StringVar(&c.device, "device", "", "the `NAME` of the device that is meant, where vdev serves several")
	fs.BoolVar(&c.json, "json", false, "print JSON")
	must(cmd.RegisterFlagCompletionFunc("device", func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		if c.socket == "" {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		// Where nobody answers there is nothing to choose from.
		names, _ := control.NewClient(fileName(c.socket)).Devices(cmd.Context())
		return names, cobra.ShellCompDirectiveNoFileComp
	}))
	cmd.AddCommand(c.statusCommand(), c.traceCommand(), c.faultCommand(), c.revokeCommand(), c.resizeCommand(), c.clearFailureCommand(),
		c.consoleCommand(), c.portCommand(), c.logLevelCommand())
	return cmd
}

// ctlSignals end a command.
var ctlSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// client asks vdev, or the device that is meant.
func (c *ctl) client() *control.Client {
	client := control.NewClient(fileName(c.socket))
	if c.device != "" {
		return client.Device(c.device)
	}
	return client
}

// run makes the function of a command that asks vdev for something: do, with stdout.
func (c *ctl) run(do func(ctx context.Context, client *control.Client, w io.Writer) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		switch {
		case c.socket == "":
			return errors.New("--socket is missing: the path that vdev was given with --control")
		case len(c.socket) > spec.MaxSocketPath:
			return spec.TooLong("socket", c.socket)
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), ctlSignals...)
		defer stop()
		if err := do(ctx, c.client(), cmd.OutOrStdout()); err != nil {
			return &failure{err}
		}
		return nil
	}
}

func (c *ctl) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the device, its rings, and who uses it",
		Long: `Shows what vdev serves, the front-end and what was negotiated with it, the device with
what is in progress on it, and each ring that is not stopped: its state, the index of the
next request to take (with a + where one waits), the used index, how many requests are in
flight, and how old the oldest is. vdev answers at once, also while a stop waits for
storage. Without --device all devices are shown.`,
		Args: noArguments(""),
		RunE: c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			names, err := client.Devices(ctx)
			if err != nil {
				return err
			}
			if c.device != "" || len(names) < 2 {
				st, err := client.Status(ctx)
				switch {
				case err != nil:
					return err
				case c.json:
					return printJSON(w, st)
				}
				return writeStatus(w, st)
			}
			all := make([]control.Status, len(names))
			for i, name := range names {
				if all[i], err = client.Device(name).Status(ctx); err != nil {
					return err
				}
			}
			if c.json {
				return printJSON(w, all)
			}
			for i, st := range all {
				if i > 0 {
					if _, err := fmt.Fprintln(w); err != nil {
						return err
					}
				}
				if err := writeStatus(w, st); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}

func (c *ctl) traceCommand() *cobra.Command {
	var follow bool
	var chrome string
	cmd := &cobra.Command{
		Use:   "trace",
		Short: "Show the last events of the device's life",
		Long: `Shows what has happened to the device: front-ends that connect and leave, rings that start
and stop, and open, cancel, drain and close, each with the seconds since vdev was started.
With --chrome it is a timeline, with a row for each ring, that https://ui.perfetto.dev shows.`,
		Args: noArguments(""),
		PreRunE: func(*cobra.Command, []string) error {
			if follow && chrome != "" {
				return errors.New("--follow and --chrome exclude each other")
			}
			return nil
		},
		RunE: c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			if follow {
				return client.Follow(ctx, follower(w, c.json))
			}
			t, err := client.Trace(ctx)
			switch {
			case err != nil:
				return err
			case chrome != "":
				return writeTimeline(w, chrome, &t)
			case c.json:
				return printJSON(w, t)
			}
			show := follower(w, false)
			for _, e := range t.Events {
				if err := show(e); err != nil {
					return err
				}
			}
			return nil
		}),
	}
	cmd.Flags().BoolVar(&follow, "follow", false, "go on with what happens, until vdev ends or you interrupt")
	cmd.Flags().StringVar(&chrome, "chrome", "", "write a timeline in Chrome's trace format to `FILE` (- is the standard output)")
	return cmd
}

// follower prints events as they come, and says where some are missing.
func follower(w io.Writer, asJSON bool) func(trace.Event) error {
	next := uint64(0)
	return func(e trace.Event) error {
		missing := e.Seq - next
		next = e.Seq + 1
		if asJSON {
			b, err := e.MarshalJSON()
			if err == nil {
				_, err = fmt.Fprintf(w, "%s\n", b)
			}
			return err
		}
		if missing > 0 {
			if _, err := fmt.Fprintf(w, "%d older events were overwritten\n", missing); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(w, e)
		return err
	}
}

// writeTimeline writes a trace as a timeline to the file of that name.
func writeTimeline(stdout io.Writer, name string, t *control.Trace) error {
	spans := trace.Spans(t.Events, time.Duration(t.Seconds*float64(time.Second)))
	if name == "-" {
		return trace.WriteChrome(stdout, spans, t.Process, t.PID, t.Start)
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := errors.Join(trace.WriteChrome(f, spans, t.Process, t.PID, t.Start), f.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	_, err = fmt.Fprintf(stdout, "%d events in %s: open it in https://ui.perfetto.dev\n", len(t.Events), name)
	return err
}

func (c *ctl) faultCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "fault [RULE]...",
		Short: "Have the storage fail (--driver fault)",
		Long: `Puts rules in force that make storage slow, stuck or wrong, and prints their numbers. They
come after the rules that are in force already. Without a RULE it shows the rules in force,
and the operations that they hold. The disk must have been started with --driver fault;
'vdev blk --help' describes the rules.`,
		Example: `  vdev ctl --socket /run/vm1.ctl fault hang:write:blocks=0-7
  vdev ctl --socket /run/vm1.ctl fault release`,
		Args: func(_ *cobra.Command, rules []string) error {
			for _, r := range rules {
				if _, err := fault.ParseRule(r); err != nil {
					return errors.New(fault.Reason(err))
				}
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions([]string{"delay:", "hang:", "error:", "short:", "crash:"},
			cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.RunE = func(cmd *cobra.Command, rules []string) error {
		return c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			if len(rules) == 0 {
				return c.showFaults(ctx, client, w)
			}
			ids, err := client.SetFaults(ctx, rules)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(w, control.IDs{IDs: ids})
			}
			for i, id := range ids {
				if _, err := fmt.Fprintf(w, "%d %s\n", id, rules[i]); err != nil {
					return err
				}
			}
			return nil
		})(cmd, rules)
	}
	cmd.AddCommand(
		c.ruleCommand("clear", "Take rules out of force, all or those of these numbers",
			"Takes rules out of force. What they have made hang goes on hanging: see 'release'.", (*control.Client).ClearFaults),
		c.ruleCommand("release", "End hangs, all or those that the rules of these numbers have made",
			"Lets what hangs go on. The rules stay in force.", (*control.Client).ReleaseFaults),
		c.crashCommand())
	return cmd
}

func (c *ctl) showFaults(ctx context.Context, client *control.Client, w io.Writer) error {
	f, err := client.Faults(ctx)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(w, f)
	}
	t := &table{w: w}
	describeFaults(t, &f)
	return t.err
}

// ruleCommand makes a command that does something to some rules, or to all.
func (c *ctl) ruleCommand(name, short, long string, do func(*control.Client, context.Context, []int) error) *cobra.Command {
	return &cobra.Command{
		Use:   name + " [NUMBER]...",
		Short: short,
		Long:  long,
		Args: func(_ *cobra.Command, args []string) error {
			_, err := ruleNumbers(args)
			return err
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			ids, err := ruleNumbers(args)
			if err != nil {
				return err
			}
			return c.run(func(ctx context.Context, client *control.Client, _ io.Writer) error { return do(client, ctx, ids) })(cmd, nil)
		},
	}
}

func ruleNumbers(args []string) (ids []int, err error) {
	for _, a := range args {
		id, err := strconv.Atoi(a)
		if err != nil || id < 1 {
			return nil, fmt.Errorf("%q is not the number of a rule", a)
		}
		ids = append(ids, id)
	}
	return ids, nil
}

func (c *ctl) crashCommand() *cobra.Command {
	var o control.Outage
	cmd := &cobra.Command{
		Use:   "crash",
		Short: "Have the power fail: what is in the volatile cache is lost",
		Long: `Loses what is in the volatile cache (cache=BYTES of --driver fault), but for a part that has
reached the medium by chance. The disk works again at once, or with --off when it is started
again.`,
		Args: noArguments(""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !(o.Keep >= 0 && o.Keep <= 1) {
				return fmt.Errorf("--keep %v: must be from 0 to 1", o.Keep)
			}
			return c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
				l, err := client.Crash(ctx, o)
				if err != nil {
					return err
				}
				if c.json {
					return printJSON(w, l)
				}
				_, err = fmt.Fprintf(w, "%d sectors have reached the medium, %d are lost\n", l.Kept, l.Dropped)
				return err
			})(cmd, nil)
		},
	}
	cmd.Flags().Float64Var(&o.Keep, "keep", 0.5, "the `probability` of each sector to have reached the medium")
	cmd.Flags().Uint64Var(&o.Seed, "seed", 0, "what chance starts from")
	cmd.Flags().BoolVar(&o.Off, "off", false, "everything fails until the disk is started again")
	return cmd
}

func (c *ctl) revokeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "revoke",
		Short: "Take the device from the guest",
		Long: `Takes the device from the guest, as revoke(2) does: what is in progress is cancelled and
drained, and the device is closed. From then on the guest gets an I/O error for each request,
until the device is started anew: by a reset of the guest or of the device, by stop and cont
in QEMU's monitor, or by another front-end. The command returns when the device is closed. If
it is interrupted before, the revocation goes on.`,
		Args: noArguments(""),
		RunE: c.run(func(ctx context.Context, client *control.Client, _ io.Writer) error { return client.Revoke(ctx) }),
	}
}

func (c *ctl) resizeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resize",
		Short: "Look at the image's size again, and tell the guest of a new one",
		Args:  noArguments("; it is the image that is made larger, with truncate or qemu-img"),
		RunE: c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			size, err := client.Resize(ctx)
			if err != nil {
				return err
			}
			if c.json {
				return printJSON(w, size)
			}
			how := "as before"
			if size.Changed {
				how = "which is new"
			}
			_, err = fmt.Fprintf(w, "%d bytes, %s\n", size.Bytes, how)
			return err
		}),
	}
}

func (c *ctl) clearFailureCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clear-failure",
		Short: "Let flushes succeed again after one has failed",
		Long: `When a flush fails, writes that were acknowledged to the guest are lost, and the host tells
of it once. So vdev makes every later flush of the image fail, also when the guest is reset
and when vdev is started anew, until the image is another one. 'status' shows it. This
command ends it: use it when you know that the image is good, or that its loss does not
matter. It also ends the state in which every request fails because what the guest has
written is lost. The guest then goes on with a disk that is older than it knows.`,
		Args: noArguments(""),
		RunE: c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
			cleared, err := client.ClearFailure(ctx)
			switch {
			case err != nil:
				return err
			case c.json:
				return printJSON(w, cleared)
			case cleared == (control.Cleared{}):
				_, err = fmt.Fprintln(w, "no flush has failed")
				return err
			}
			if cleared.FailedFlush != "" {
				_, err = fmt.Fprintf(w, "a flush had failed (%s): that is forgotten\n", cleared.FailedFlush)
			}
			if cleared.LostUnflushed && err == nil {
				_, err = fmt.Fprintln(w, "what the guest had written was lost: that is forgotten")
			}
			return err
		}),
	}
}

func (c *ctl) logLevelCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "log-level [LEVEL]",
		Short: "Show or change what is logged: " + strings.Join(spec.LogLevelNames, ", "),
		Args: func(cmd *cobra.Command, args []string) error {
			if err := atMostOne(cmd, args); err != nil {
				return err
			}
			if len(args) == 1 {
				if err := (&spec.Choice{Of: spec.LogLevelNames}).Set(args[0]); err != nil {
					return fmt.Errorf("log level %q: %w", args[0], err)
				}
			}
			return nil
		},
		ValidArgsFunction: cobra.FixedCompletions(spec.LogLevelNames, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.run(func(ctx context.Context, client *control.Client, w io.Writer) error {
				if len(args) == 1 {
					return client.SetLogLevel(ctx, args[0])
				}
				level, err := client.LogLevel(ctx)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintln(w, cmp.Or(level, "unknown"))
				return err
			})(cmd, nil)
		},
	}
}
