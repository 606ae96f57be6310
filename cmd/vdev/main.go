// Command vdev serves a virtual machine's devices over vhost-user: QEMU, or another front-end,
// connects to its socket and shares the guest's memory with it.
//
// It follows the "Backend program conventions" of the vhost-user specification. `vdev --help` tells
// the rest.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vdev/internal/dev/qemunbd"
)

// The kernel offers a signal for the process to its main thread first, and wakes no other one where
// that takes it. A main thread that is in the midst of a call on storage which does not answer
// (FUSE, a network's) would keep it, and SIGTERM would not be heard. So the main thread is the main
// goroutine's, which makes no such call: see serveDevices.
func init() { runtime.LockOSThread() }

func main() {
	qemunbd.Witness()
	os.Exit(run(context.Background(), arguments(os.Args), os.Stdout, os.Stderr))
}

// arguments are those of a command line. By the name vdev-console, which is a link's, 'vdev
// console' is meant: see print-description.
func arguments(line []string) []string {
	if filepath.Base(line[0]) == "vdev-"+consoleName {
		return append([]string{consoleName}, line[1:]...)
	}
	return line[1:]
}

// run carries out one command line and returns its exit status. It returns early, and cleanly, when
// ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if wantsCapabilities(args) {
		if err := printCapabilities(stdout, args); err != nil {
			fmt.Fprintf(stderr, "vdev: %v\n", err)
			return exitFailure
		}
		return exitOK
	}
	root := newRootCommand()
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetArgs(withDefaultCommand(root, args))
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(stderr, "vdev: %s", oneLine(err))
	var failed *failure
	if errors.As(err, &failed) {
		fmt.Fprintln(stderr)
		return exitFailure
	}
	fmt.Fprintf(stderr, " (see '%s --help')\n", cmd.CommandPath())
	return exitUsage
}

func newRootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vdev",
		Short: "Serve virtual devices to a virtual machine over vhost-user",
		Long: `vdev serves virtual devices to a virtual machine: it is a vhost-user back-end.
QEMU, the front-end, connects to its socket and shares the guest's memory and
virtqueues with it.

Without a command, options are those of 'vdev blk', so that a program which knows
only the specification's conventions (--socket-path, --fd, --blk-file, --read-only)
can start it.`,
		Args:          noArguments(""),
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.PersistentFlags().Bool(capabilitiesFlag, false, "print as JSON what this program can do, and do nothing else")
	root.AddCommand(newBlkCommand(), newConsoleCommand(), newServeCommand(), newCtlCommand(), newBenchCommand(), newDescriptionCommand(), newVersionCommand())
	return root
}

// withDefaultCommand puts blk before arguments that begin with one of its flags. The
// specification's conventions know no commands: a management program gives nothing but flags.
func withDefaultCommand(root *cobra.Command, args []string) []string {
	if len(args) == 0 || !strings.HasPrefix(args[0], "-") {
		return args
	}
	blk, _, err := root.Find([]string{blkName})
	if err != nil {
		return args
	}
	name, _, _ := strings.Cut(args[0], "=")
	isOfBlk := false
	blk.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
		isOfBlk = isOfBlk || name == "--"+f.Name
	})
	if isOfBlk {
		return append([]string{blkName}, args...)
	}
	return args
}
