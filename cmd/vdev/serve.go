package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/spf13/cobra"

	"vdev/internal/control"
	"vdev/internal/serve"
	"vdev/internal/serve/blk"
	"vdev/internal/serve/console"
	"vdev/internal/spec"
	"vdev/internal/terminal"
	"vdev/vhostuser"
)

// logPatience is how long the end waits for whoever reads the log.
const logPatience = time.Second

// handled are the signals that a vdev which serves handles itself.
var handled = []os.Signal{syscall.SIGTERM, os.Interrupt, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGQUIT}

// serveOne serves the device that a command line has described. p has the flags that are about all
// of vdev.
func serveOne(cmd *cobra.Command, p *spec.ProcessFlags, device spec.Device) error {
	c, err := p.Config(cmd.Flags().Changed, device)
	if err != nil {
		return err
	}
	if err := serveDevices(cmd.Context(), c, cmd.ErrOrStderr()); err != nil {
		return &failure{err}
	}
	return nil
}

// serveDevices serves devices until ctx ends, a signal says so, or those that have nothing but a
// connected socket have lost their front-ends. It logs to stderr.
func serveDevices(ctx context.Context, c spec.Config, stderr io.Writer) error {
	out := newQueuedWriter(terminalLog(c, stderr))
	defer out.Close(logPatience)

	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	// The guest's disk does not end with the program that reads the log.
	signal.Ignore(syscall.SIGPIPE)
	asked := askedBySignals{hup: notify(syscall.SIGHUP), usr1: notify(syscall.SIGUSR1), quit: notify(syscall.SIGQUIT)}
	defer asked.stop()

	var commands net.Listener
	if c.Control != "" {
		l, err := control.Listen(fileName(c.Control))
		if err != nil {
			return fmt.Errorf("--control: %w", err)
		}
		// Also where storage is stuck and nothing else is taken down any more: the socket's file
		// goes.
		defer l.Close()
		commands = l
	}
	p := newPrinter(c, out, time.Now())
	own := &console.Own{Signals: handled, Left: func(why error) {
		if errors.Is(why, terminal.ErrEscape) {
			stop()
		} else {
			p.log.Warn("vdev's own terminal has gone, and the console goes on without it", "cause", why)
		}
	}}
	defer own.Restore()
	set, err := serve.New(serve.Config{
		Devices: devices(c, p.log, own), Strict: c.Strict,
		Loops:   serve.Loops{Mode: vhostuser.Mode(c.AIO), Reactors: c.Reactors, PollMax: pollMax(c)},
		Control: commands, Process: p, Version: version(), Start: p.start, Log: p.logs, Trace: p.trace(),
	})
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	defer close(ended)
	asked.answer(set, p, ended)
	return set.Run(ctx)
}

// terminalLog is where the log goes: to stderr, which may be the terminal that a console has. That
// is raw, and has a line begin where the one before has ended, if nothing says otherwise.
func terminalLog(c spec.Config, stderr io.Writer) io.Writer {
	f, isFile := stderr.(*os.File)
	if !isFile || !c.Stdio() || !term.IsTerminal(int(f.Fd())) || !sameFile(fmt.Sprintf("/dev/fd/%d", f.Fd()), "/dev/stdin") {
		return stderr
	}
	return crlfWriter{f}
}

// crlfWriter ends lines as a raw terminal needs it.
type crlfWriter struct{ w io.Writer }

// Write implements io.Writer, for whole lines.
func (c crlfWriter) Write(p []byte) (int, error) {
	_, err := c.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n")))
	return len(p), err
}

// devices makes of what a command line has come to what is to be served.
func devices(c spec.Config, log *slog.Logger, own *console.Own) (all []serve.DeviceConfig) {
	var disk blk.Disk // what all disks have in common
	if slices.ContainsFunc(c.Devices, func(d spec.Device) bool { return d.Disk != nil }) {
		disk.Failures = blk.NewFailures(c.StateDir, log)
	}
	for _, d := range c.Devices {
		socket := d.SocketPath
		if socket == "" {
			socket = fmt.Sprintf("descriptor %d", d.FD)
		}
		one := serve.DeviceConfig{
			Name: d.Name, Socket: socket, Listen: func() (net.Listener, error) { return listen(d) },
			Migratable: d.Migratable, AnyMemory: d.AnyMemory, CancelAfter: d.CancelAfter,
		}
		if d.Console != nil {
			one.Kind = console.Console{Console: *d.Console, Own: own}
		} else {
			disk := disk
			disk.Disk = *d.Disk
			one.Kind = disk
		}
		all = append(all, one)
	}
	return all
}

// pollMax is how long event loops look for work, as vhostuser.ReactorConfig has it.
func pollMax(c spec.Config) time.Duration {
	if c.PollSet && c.Poll == 0 {
		return -1 // not at all
	}
	return c.Poll // 0: chosen
}

// listen makes or takes over the socket.
func listen(c spec.Device) (net.Listener, error) {
	if c.SocketPath != "" {
		l, err := vhostuser.Listen(fileName(c.SocketPath))
		if err != nil {
			return nil, fmt.Errorf("--socket-path: %w", err)
		}
		return l, nil
	}
	l, err := vhostuser.FromFD(c.FD)
	if err != nil {
		return nil, fmt.Errorf("--fd: %w", err)
	}
	return l, nil
}

// askedBySignals brings the signals that ask for something other than the end.
type askedBySignals struct{ hup, usr1, quit chan os.Signal }

// notify returns a channel on which one signal comes, once for any number of them that come while
// nobody looks.
func notify(sig os.Signal) chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, sig)
	return c
}

func (a askedBySignals) stop() {
	for _, c := range []chan os.Signal{a.hup, a.usr1, a.quit} {
		signal.Stop(c)
	}
}

// answer does what the signals ask for, for each device, until ended is closed.
func (a askedBySignals) answer(set *serve.Set, p *printer, ended <-chan struct{}) {
	on := func(c <-chan os.Signal, do func()) {
		go func() {
			for {
				select {
				case <-c:
					do()
				case <-ended:
					return
				}
			}
		}()
	}
	on(a.hup, set.Reload)
	on(a.usr1, func() {
		for _, d := range set.Devices() {
			p.life(d)
		}
	})
	on(a.quit, func() {
		for _, d := range set.Devices() {
			p.status(d)
			p.life(d)
		}
	})
}
