package main

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vdev/internal/qemunbd"
	"vdev/internal/virtioblk"
)

const blkName = "blk"

// maxQueues is the default of --num-queues: what vdev answers when a front-end asks how many queues it can have.
// QEMU's default is a queue for each virtual CPU, and it refuses a back-end that has fewer than it wants. A queue that no guest starts
// costs about 270 bytes while a front-end is connected.
const maxQueues = 256

// maxSocketPath is the longest path of a Unix socket in bytes, which struct sockaddr_un has with a zero after it, less
// what listen may put before it.
const maxSocketPath = 107 - len("./")

// The defaults of --cancel-after. A guest that is never saved or moved loses nothing when its requests are suspended, so that
// there is little to wait for.
const (
	cancelAfter       = 30 * time.Second
	cancelAfterPinned = time.Second
)

// diskConfig is one disk that is to be served, found right.
type diskConfig struct {
	name       string // what it is called where there are several; empty where there is one
	socketPath string // where to listen, or empty
	fd         int    // the inherited socket, where socketPath is empty
	driver     driverSpec
	diskFlag   string // the flag that driver came from, for errors
	numQueues  int
	segMax     int // 0: virtioblk's default
	serial     string
	blockSize  uint32 // bytes; 0: as the disk has it
	migratable bool
	anyMemory  bool          // guest memory may be any file
	incoming   bool          // the guest comes from where the image is still in use
	cancelWait time.Duration // how long a stop waits for requests before it cancels them
}

// config is what a command line came to that was found right.
type config struct {
	disks    []diskConfig
	aio      string // "io_uring" or "threads"; empty: io_uring where the host has it
	reactors int    // 0: chosen
	poll     time.Duration
	pollSet  bool
	control  string // where to listen for commands, or empty
	stateDir string // what is to outlive the process; empty: nothing is
	trace    bool
	logLevel slog.Level
	logJSON  bool
	strict   bool // a disk that cannot be opened ends vdev, whatever others there are
}

// diskFlags are the flags that describe a disk, as they are given.
type diskFlags struct {
	socketPath string
	fd         number
	blkFile    string
	format     string
	snapshot   bool
	chain      choice
	driver     string
	readOnly   bool
	direct     bool
	bounce     bool
	noDiscard  bool
	numQueues  number
	segMax     number
	serial     serial
	blockSize  choice
	migratable choice
	memory     choice
	incoming   bool
	cancel     time.Duration
}

// processFlags are the flags that are about all of vdev, as they are given.
type processFlags struct {
	aio       choice
	reactors  number
	pollUS    number
	control   string
	stateDir  string
	trace     bool
	logLevel  choice
	logFormat choice
	strict    bool
}

var logLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

func newBlkCommand() *cobra.Command {
	f, p := newDiskFlags(), newProcessFlags()
	cmd := &cobra.Command{
		Use:   blkName + " (--socket-path PATH | --fd N) (--blk-file FILE | --driver NAME,option=value,...)",
		Short: "Serve a disk (virtio-blk)",
		Long: `Serves one disk to one virtual machine at a time, until it is told to end.

What stands behind the disk is a driver:

  vnd,file=FILE[,read-only][,direct][,bounce][,no-discard]
          an image file, or a block device of the host; --blk-file FILE is short for it
  qemu,file=FILE[,format=FORMAT][,snapshot][,read-only][,direct][,no-discard]
      [,detect-zeroes=off|on|unmap][,backing-chain=folder|files|any][,connections=N][,program=PATH]
          an image in one of QEMU's formats (qcow2, vmdk, vdi, vhdx, ...), perhaps with backing files,
          which vdev has qemu-nbd serve while a guest uses the disk; --blk-file disk.qcow2 is short for it.
          The image's header names its backing files: those in its own folder are opened; others, and
          data files, which the guest may write to, only with backing-chain=files; what is no local
          file, and a VMDK of several files or with a parent, only with any. An image named like none
          of these formats is raw
  md,size=BYTES[,file=FILE][,read-only]
          memory of vdev's own, forgotten when vdev ends; FILE is what it holds at first
  nbd,uri=URI[,connections=N][,reconnect-delay=TIME][,unflushed=auto|lost|kept][,read-only]
          what an NBD server exports: nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH,
          with nbds for TLS; when the server is gone, requests wait TIME for it (default 0s).
          A server that was started anew may have lost what it had answered and not flushed: then
          every request fails until the guest is reset. auto knows it by the process that made
          a Unix socket, and else only warns; lost assumes it whenever the connection breaks and
          the server is not known to be the same; kept never: say so of a server that keeps
          nothing in its own memory, such as nbdkit's file plugin or qemu-nbd with a raw image.
          vdev keeps a connection while no guest uses the disk, since some servers end with their
          last client (qemu-nbd without --persistent); one that takes a single client (qemu-nbd
          without --shared) serves the disk, but cannot be asked for a new size. Where the server
          allows it there are up to 4 connections, or N (1 to 16); if one of them does not show
          what another one has written, every request fails. An export of which each connection
          has its own (nbd-server's temporary and copyonwrite) is none for vdev, which connects
          anew when the guest resets the device: it is empty, or as it was at first, then
  null,size=BYTES[,read-only]
          nothing: what is written is forgotten, and what is read is whatever was there
  fault[,rule=RULE]...[,cache=BYTES][,no-cancel],lower=NAME,...
          one of the above with its options, and what storage does to it on a bad day

A RULE is ACTION:OPERATIONS[:key=value]..., for example

  delay:read+write:time=1ms-20ms:seed=7       they take longer, by chance
  hang:write:blocks=0-7:count=1               the next write there never ends, unless cancelled
  hang:flush:uncancellable                    no flush does, not even when it is cancelled
  error:read:errno=EIO:prob=0.01:seed=1       one read in a hundred fails
  short:write                                 writes end before everything is written
  crash:flush:skip=9:count=1:keep=0.5:off     at the 10th flush the power fails, until the disk
                                              is started again: of what is in the cache (cache=BYTES),
                                              half of the sectors are lost

The operations are read, write, flush, discard, zeroes (together: any), open, close and
cancel; the keys blocks (of 512 bytes), skip, count, prob and seed go with every action.
no-cancel makes a driver without d_cancel.

The format of an image is found by its content, where the file's name stands for the same: what a
raw image holds, a guest may have written. With a snapshot the image stays as it is: what the guest
writes is forgotten when vdev ends.

A size may have a unit: 512M, 10G, 1.5T. A comma in a file's name is written twice.

An image is locked while a guest uses it, in the way QEMU's tools lock theirs: vdev, QEMU
and qemu-img refuse an image that another of them has open.

Signals: SIGTERM and SIGINT end vdev, SIGHUP makes it look at the image's size again and
tell the guest of a new one, SIGUSR1 prints the last events of the device's life, SIGQUIT
its status as well. With --control, 'vdev ctl' does the same and more.`,
		Example: `  vdev blk --socket-path /run/vm1.sock --blk-file disk.img
  vdev blk --socket-path /run/vm1.sock --driver md,size=1G --trace
  vdev blk --socket-path /run/vm1.sock --blk-file disk.img --control /run/vm1.ctl

  qemu-system-x86_64 -machine q35,memory-backend=mem -m 1G \
      -object memory-backend-memfd,id=mem,size=1G,share=on \
      -chardev socket,id=disk0,path=/run/vm1.sock \
      -device vhost-user-blk-pci,chardev=disk0`,
		Args: noArguments("; the image is given with --blk-file"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			disk, err := f.config(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			c, err := p.config(cmd.Flags().Changed, disk)
			if err != nil {
				return err
			}
			if err := serve(cmd.Context(), c, cmd.ErrOrStderr()); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	f.register(fs)
	p.register(fs)
	f.complete(cmd)
	p.complete(cmd)
	return cmd
}

func newDiskFlags() *diskFlags {
	return &diskFlags{
		fd:         number{min: 0, max: math.MaxInt},
		numQueues:  number{value: maxQueues, min: 1, max: maxQueues},
		segMax:     number{value: virtioblk.DefaultSegMax, min: 1, max: virtioblk.MaxSegMax},
		blockSize:  choice{value: "auto", of: []string{"auto", "512", "4096"}},
		migratable: choice{value: "on", of: []string{"on", "off"}},
		chain:      choice{value: string(qemunbd.ChainFolder), of: qemunbd.Chains},
		memory:     choice{value: "memory", of: []string{"memory", "any"}},
	}
}

func (f *diskFlags) register(fs *pflag.FlagSet) {
	fs.StringVar(&f.socketPath, "socket-path", "", "listen on a Unix socket at `PATH`")
	fs.Var(&f.fd, "fd", "use the socket that was inherited as descriptor `N`, listening or connected")
	fs.StringVar(&f.blkFile, "blk-file", "", "serve `FILE`, an image or a block device")
	fs.StringVar(&f.format, "format", "", "the image's `FORMAT`, by QEMU's name (default by content and name)")
	fs.BoolVar(&f.snapshot, "snapshot", false, "leave the image as it is, and forget what the guest writes when vdev ends")
	fs.Var(&f.chain, "backing-chain", "files that the image may lead to: backing files in its own folder, any local files, or any that QEMU can open")
	fs.StringVar(&f.driver, "driver", "", "serve what `NAME,option=value,...` says (see above)")
	fs.BoolVar(&f.readOnly, "read-only", false, "let the guest only read")
	fs.BoolVar(&f.direct, "direct", false, "bypass the host's page cache (O_DIRECT); the disk's stop then waits for reads and writes that hang, unless --bounce is given too")
	fs.BoolVar(&f.bounce, "bounce", false, "copy what is read and written, so that storage never has the guest's memory itself; costs speed, and is of use with --direct")
	fs.BoolVar(&f.noDiscard, "no-discard", false, "do not let the guest give back space that it no longer uses")
	fs.Var(&f.numQueues, "num-queues", "offer up to `N` queues; the front-end uses as many as it wants")
	fs.Var(&f.segMax, "seg-max", "let a request have up to `N` buffers; with queues of less than 128, and a guest without indirect descriptors, their size less 2")
	fs.Var(&f.serial, "serial", "serial number of the disk: `TEXT` of at most 20 bytes")
	fs.Var(&f.blockSize, "logical-block-size", "block size that the guest sees, in bytes; auto: the host's block device's, and 512 for all else")
	fs.Var(&f.migratable, "migratable", "whether the guest can be saved or moved to another host: if not, a stop may leave requests in progress to the next start")
	fs.Var(&f.memory, "memory-files", "what files the guest's memory may be: memory is memfds and files of tmpfs and hugetlbfs; any takes others too (QEMU's memory-backend-file on a disk), and then storage that hangs under one guest's memory makes all of vdev hang")
	fs.BoolVar(&f.incoming, "incoming", false, "do not mind that the image is in use: the guest comes from there, and gives it up before it starts here")
	fs.DurationVar(&f.cancel, "cancel-after", cancelAfter, "when the guest stops the device, wait so long for requests in progress before cancelling them ("+cancelAfterPinned.String()+" with --migratable=off); half a second later the stop is answered, whatever storage does, but see --direct")
}

func (f *diskFlags) complete(cmd *cobra.Command) {
	completeChoices(cmd, map[string]*choice{"logical-block-size": &f.blockSize, "migratable": &f.migratable, "memory-files": &f.memory,
		"backing-chain": &f.chain})
	must(cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(
		[]string{"vnd,file=", "md,size=", "nbd,uri=", "qemu,file=", "null,size=", "fault,rule="}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp)))
	completeNothing(cmd, "fd", "num-queues", "seg-max", "serial", "cancel-after")
}

func newProcessFlags() *processFlags {
	return &processFlags{
		aio:       choice{of: []string{"io_uring", "threads"}},
		reactors:  number{min: 1, max: 256},
		pollUS:    number{min: 0, max: 1_000_000},
		logLevel:  choice{value: "info", of: logLevelNames},
		logFormat: choice{value: "text", of: []string{"text", "json"}},
	}
}

func (f *processFlags) register(fs *pflag.FlagSet) {
	fs.Var(&f.aio, "aio", "how files are read and written (default io_uring, or threads where the host refuses that)")
	fs.Var(&f.reactors, "reactors", "threads that serve queues (default one for each CPU, at most 4)")
	fs.Var(&f.pollUS, "poll-us", "look for work at most `N` microseconds before sleeping (default chosen by vdev; 0 is not at all)")
	fs.StringVar(&f.control, "control", "", "listen on a Unix socket at `PATH` for 'vdev ctl'")
	fs.StringVar(&f.stateDir, "state-dir", "", "keep in the folder `PATH` what a vdev after this one has to know of a flush that failed (default /run/vdev for root, $XDG_RUNTIME_DIR/vdev for others)")
	fs.BoolVar(&f.trace, "trace", false, "log what front-end and guest do: messages, requests, the device's life")
	fs.Var(&f.logLevel, "log-level", "log what is at least so severe")
	fs.Var(&f.logFormat, "log-format", "how the log is written")
}

func (f *processFlags) complete(cmd *cobra.Command) {
	completeChoices(cmd, map[string]*choice{"aio": &f.aio, "log-level": &f.logLevel, "log-format": &f.logFormat})
	completeNothing(cmd, "reactors", "poll-us")
}

// defaultStateDir is a folder that goes when the host is started anew, as what the host has in its page cache does.
func defaultStateDir() string {
	if os.Getuid() == 0 {
		return "/run/vdev"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vdev")
	}
	return ""
}

func completeChoices(cmd *cobra.Command, choices map[string]*choice) {
	for name, c := range choices {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(c.of, cobra.ShellCompDirectiveNoFileComp)))
	}
}

func completeNothing(cmd *cobra.Command, flags ...string) {
	for _, name := range flags {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
}

// must panics with an error that only a mistake in this program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func tooLong(flag, path string) error {
	return fmt.Errorf("--%s %s: is %d bytes long, and a socket's path has at most %d", flag, path, len(path), maxSocketPath)
}

// config checks what the flags come to, for these disks. given tells whether a flag was given.
func (f *processFlags) config(given func(flag string) bool, disks ...diskConfig) (config, error) {
	c := config{
		disks:    disks,
		aio:      f.aio.value,
		reactors: f.reactors.value,
		poll:     time.Duration(f.pollUS.value) * time.Microsecond,
		pollSet:  given("poll-us"),
		control:  f.control,
		stateDir: f.stateDir,
		trace:    f.trace,
		logLevel: logLevels[f.logLevel.value],
		logJSON:  f.logFormat.value == "json",
		strict:   f.strict,
	}
	switch {
	case given("control") && f.control == "":
		return c, errors.New("--control: a path is missing")
	case len(f.control) > maxSocketPath:
		return c, tooLong("control", f.control)
	case given("state-dir") && f.stateDir == "":
		return c, errors.New("--state-dir: a path is missing")
	case !given("state-dir"):
		c.stateDir = defaultStateDir()
	}
	for _, d := range disks {
		if given("control") && f.control == d.socketPath {
			return c, fmt.Errorf("--control %s: is the front-end's socket", f.control)
		}
	}
	return c, nil
}

// config checks what the flags come to together. given tells whether a flag was given.
func (f *diskFlags) config(given func(flag string) bool) (diskConfig, error) {
	c := diskConfig{
		socketPath: f.socketPath,
		fd:         f.fd.value,
		numQueues:  f.numQueues.value,
		segMax:     f.segMax.value,
		serial:     string(f.serial),
		migratable: f.migratable.value == "on",
		anyMemory:  f.memory.value == "any",
		incoming:   f.incoming,
		cancelWait: f.cancel,
	}
	switch {
	case given("socket-path") && given("fd"):
		return c, errors.New("--socket-path and --fd exclude each other")
	case !given("socket-path") && !given("fd"):
		return c, errors.New("--socket-path or --fd is missing")
	case given("socket-path") && f.socketPath == "":
		return c, errors.New("--socket-path: a path is missing")
	case len(f.socketPath) > maxSocketPath:
		return c, tooLong("socket-path", f.socketPath)
	case given("blk-file") && given("driver"):
		return c, errors.New("--blk-file and --driver exclude each other")
	case !given("blk-file") && !given("driver"):
		return c, errors.New("--blk-file or --driver is missing")
	case given("blk-file") && f.blkFile == "":
		return c, errors.New("--blk-file: a path is missing")
	case given("driver") && (given("format") || f.snapshot || given("backing-chain")):
		return c, errors.New("--format, --snapshot and --backing-chain go with --blk-file; --driver qemu has options of these names")
	case f.snapshot && f.incoming:
		return c, errors.New("--snapshot and --incoming exclude each other: the other host knows nothing of the snapshot")
	case f.cancel < 0:
		return c, fmt.Errorf("--cancel-after %v: must not be negative", f.cancel)
	}
	if !c.migratable && !given("cancel-after") {
		c.cancelWait = cancelAfterPinned
	}
	if given("blk-file") {
		c.driver, c.diskFlag = driverSpec{name: "vnd", file: f.blkFile, detect: true}, "blk-file"
		c.driver.qemu.snapshot = f.snapshot
		if given("backing-chain") {
			c.driver.qemu.chain = qemunbd.Chain(f.chain.value)
		}
		if given("format") {
			var err error
			if c.driver.qemu.format, err = parseFormat(f.format); err != nil {
				return c, fmt.Errorf("--format: %w", err)
			}
		}
	} else {
		c.diskFlag = "driver"
		var err error
		if c.driver, err = parseDriver(f.driver); err != nil {
			return c, fmt.Errorf("--driver %s: %w", f.driver, err)
		}
	}
	for flag, on := range map[string]bool{"direct": f.direct, "bounce": f.bounce, "no-discard": f.noDiscard, "incoming": f.incoming} {
		if on && c.driver.name != "vnd" && c.driver.name != "qemu" {
			return c, fmt.Errorf("--%s: driver %s has no use for it", flag, c.driver.name)
		}
	}
	c.driver.readOnly = c.driver.readOnly || f.readOnly
	c.driver.direct = c.driver.direct || f.direct
	c.driver.bounce = c.driver.bounce || f.bounce
	c.driver.noDiscard = c.driver.noDiscard || f.noDiscard
	if err := c.driver.check(); err != nil {
		return c, fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	size := uint64(512) // where nothing else is known
	if f.blockSize.value != "auto" {
		var err error
		size, err = strconv.ParseUint(f.blockSize.value, 10, 32)
		must(err)
		c.blockSize = uint32(size)
	}
	if c.driver.size%int64(size) != 0 {
		return c, fmt.Errorf("--logical-block-size %d: size %d of driver %s is not a multiple of it", size, c.driver.size, c.driver.name)
	}
	return c, nil
}
