package main

import (
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"vdev/internal/spec"
)

const consoleName = "console"

func newConsoleCommand() *cobra.Command {
	f, p := spec.NewConsoleFlags(), spec.NewProcessFlags()
	cmd := &cobra.Command{
		Use:   consoleName + " (--socket-path PATH | --fd N) [--port driver=NAME,option=value,...]...",
		Short: "Serve terminals and ports (virtio-console)",
		Long: `Serves one console device to one virtual machine at a time, until it is told to end. It has one
port or more. A port is a console, which a Linux guest has as /dev/hvc0 and so on, or, with a name,
a stream of bytes, which it has as /dev/virtio-ports/NAME. Without --port there is one console, on
the terminal that vdev is started in.

What stands behind a port is a driver:

  driver=stdio
          vdev's own terminal, which is raw meanwhile: ^C goes to the guest. Ctrl-] ends vdev. It may
          be a pipe. vdev's log goes to stderr: send it elsewhere with 2>FILE to keep the two apart
  driver=pty,path=LINK
          a terminal of the host, to which a link is made: 'screen LINK', say, attaches to it. That
          does not tell its window's size; 'vdev ctl console' and 'stty -F LINK cols 100 rows 40' do
  driver=socket,(path=PATH | address=HOST:PORT)[,connect][,watchers=N]
          a Unix or TCP socket. Its first client reads and writes; up to N others (default 4) only
          read. With connect, vdev is the client, and connects again when the connection is lost
  driver=file,file=FILE[,timestamps][,max-size=SIZE[,max-files=N]]
          a file to which the output is appended, with the time before each line. When it has reached
          SIZE it becomes FILE.1, and so on, until there are N. SIGHUP has it opened again
  driver=null
          nothing
  driver=loop
          the guest gets what it has put out
  driver=fault[,rule=RULE]...,lower=NAME,...
          one of the above with its options, and what a terminal does to it on a bad day. 'vdev blk
          --help' has the rules. The operations are read, write, open, close and cancel; the actions
          are delay, hang and error. 'vdev ctl fault' changes them

Each port has these options beside:

  name=NAME       what the guest knows the port by, such as org.qemu.guest_agent.0
  id=N            its number in the guest (default the lowest that is free)
  console=on|off  whether the guest has a terminal on it (default on without a name, off with one)
  overflow=drop|wait
                  what happens to output that nobody takes. drop keeps the last of it, and lets the
                  guest go on: a console always does. wait loses nothing, and has the guest's program
                  wait: the default of all other ports
  scrollback=SIZE how much output is kept (default 1M). Whoever attaches sees it first
  size=COLSxROWS  the size of the window where no terminal tells it; otherwise the guest has the
                  terminal's, and its changes
  log=FILE[,log-timestamps][,log-max-size=SIZE[,log-max-files=N]]
                  a file to which the output is written as well

A comma that belongs to a value is written twice.

QEMU, 10.2 or newer, must be told how many queues the device has: num_vqs is 2 for one port without
name and id, and else two for each port that there can be (--max-ports), and two more. vdev prints
it when it starts. A Linux guest with too few has no console at all, and says so in its log. QEMU's
test device cannot be migrated, and does not survive the end of vdev: add it anew then (device_del,
device_add). Without that QEMU may abort.

Signals: SIGTERM and SIGINT end vdev. SIGHUP has the files of logs opened again. SIGUSR1 prints the
last events of the device's life, and SIGQUIT its status as well. With --control, 'vdev ctl' does
the same and more: 'vdev ctl console' attaches a terminal, and 'vdev ctl port' adds and removes
ports while the guest runs.`,
		Example: `  vdev console --socket-path /run/vm1-con.sock 2>vdev.log
  vdev console --socket-path /run/vm1-con.sock --port driver=pty,path=/run/vm1.tty,log=vm1.log
  vdev console --socket-path /run/vm1-con.sock --control /run/vm1.ctl \
      --port driver=null --port name=org.qemu.guest_agent.0,driver=socket,path=/run/vm1-agent.sock

  qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \
      -object memory-backend-memfd,id=mem,size=1G,share=on \
      -chardev socket,id=con0,path=/run/vm1-con.sock \
      -device vhost-user-test-device-pci,virtio-id=3,num_vqs=2,config_size=12,chardev=con0

The example with several ports needs num_vqs=10.`,
		Args: noArguments("; a port is given with --port"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			given := cmd.Flags().Changed
			if !given("port") && !given("max-ports") && term.IsTerminal(int(os.Stdin.Fd())) {
				f.Use("driver=stdio")
			}
			device, err := f.Config(given)
			if err != nil {
				return err
			}
			return serveOne(cmd, p, device)
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	f.Register(fs)
	p.Register(fs)
	completeChoices(cmd, f.Choices())
	completePort(cmd, "port")
	completeNothing(cmd, "fd", "max-ports")
	completeProcess(cmd, p)
	return cmd
}

// portCompletions are how a port begins.
var portCompletions = cobra.FixedCompletions(
	[]string{"driver=stdio", "driver=pty,path=", "driver=socket,path=", "driver=file,file=", "driver=null", "driver=loop", "name="},
	cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)

func completePort(cmd *cobra.Command, flag string) {
	must(cmd.RegisterFlagCompletionFunc(flag, portCompletions))
}
