package main

import (
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vdev/internal/spec"
)

func newServeCommand() *cobra.Command {
	p := spec.NewProcessFlags()
	var devices []string
	cmd := &cobra.Command{
		Use:   "serve [CONFIG] [--device key=value,...]...",
		Short: "Serve several devices: disks and consoles",
		Long: `Serves several devices, each on a socket of its own, for one virtual machine or many.

Devices share vdev's event loops, its log and its control socket, and nothing else. Storage that
hangs under one of them, a front-end that does not answer, or a stop that takes its time does
not touch the others.

A device that cannot be opened at the start has no socket; the log and 'vdev ctl status' say why.
vdev tries it again, after a second at first and each minute later, and at once after SIGHUP,
as long as another one is served or still waited for. If there is no other one, vdev ends at
once. If the device is never served, the exit status at the end is 1. A disk whose storage does
not answer for 5 s at the start is served when it does. With --strict, no device is served in
these two cases. A device that fails later does not end the others.

A disk is described by the flags of 'vdev blk', without their dashes, and a name. A console has the
type console, and the flags of 'vdev console':

  --device name=root,socket-path=/run/vm1-root.sock,blk-file=root.qcow2
  --device name=scratch,socket-path=/run/vm1-scratch.sock,driver=md,,size=1G
  --device type=console,socket-path=/run/vm1-tty.sock,port=driver=pty,,path=/run/vm1.tty

(a comma that belongs to a value is written twice), or in the file CONFIG, in TOML:

  control = "/run/vdev.ctl"      # the flags below, without their dashes; those of the
  log-level = "warn"             # command line go before them

  [[device]]
  name = "root"                  # default: the socket's, without folder and .sock
  socket-path = "/run/vm1-root.sock"
  blk-file = "root.qcow2"

  [[device]]
  socket-path = "/run/vm1-scratch.sock"
  driver = "md,size=1G"
  serial = "scratch"
  num-queues = 4

  [[device]]
  type = "console"
  socket-path = "/run/vm1-tty.sock"
  port = ["driver=pty,path=/run/vm1.tty", "name=org.qemu.guest_agent.0,driver=socket,path=/run/vm1-agent.sock"]

Paths are from the folder that vdev is started in, as they are for its flags.

The log, the trace and 'vdev ctl' know a device by its name; vdev ctl --device NAME speaks to it.
Signals are those of 'vdev blk' and 'vdev console', for all devices.`,
		Example: `  vdev serve /etc/vdev.toml
  vdev serve --control /run/vdev.ctl --device socket-path=a.sock,blk-file=a.img --device socket-path=b.sock,blk-file=b.img`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := severalDevices(cmd.Flags(), p, args, devices)
			if err != nil {
				return err
			}
			if err := serveDevices(cmd.Context(), c, cmd.ErrOrStderr()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	fs.BoolVar(&p.Strict, "strict", false, "serve all devices or none: end if one of them cannot be opened at the start")
	fs.StringArrayVar(&devices, "device", nil, "serve the device that `KEY=VALUE,...` describe")
	p.Register(fs)
	completeProcess(cmd, p)
	completeNothing(cmd, "device")
	return cmd
}

// severalDevices is what the command line, with the file that it may name, comes to.
func severalDevices(fs *pflag.FlagSet, p *spec.ProcessFlags, files, devices []string) (spec.Config, error) {
	var all []spec.Device
	for _, path := range files {
		text, err := os.ReadFile(path)
		if err != nil {
			return spec.Config{}, &failure{err} // it has the path in it
		}
		if all, err = spec.ParseFile(fs, path, string(text)); err != nil {
			return spec.Config{}, err
		}
	}
	return spec.Several(fs, p, all, devices)
}
