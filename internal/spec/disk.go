package spec

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/pflag"

	"vdev/internal/dev/qemunbd"
	"vdev/vhostuser/virtioblk"
)

// maxQueues is the default of --num-queues: the answer to a front-end that asks how many queues it
// can have. QEMU's default is a queue for each virtual CPU, and it refuses a back-end that has
// fewer than it wants. A queue that no guest starts costs about 270 bytes while a front-end is
// connected.
const maxQueues = 256

// The defaults of --cancel-after. A guest that is never saved or moved loses nothing when its
// requests are suspended, so there is little to wait for.
const (
	cancelAfter       = 30 * time.Second
	cancelAfterPinned = time.Second
)

// Disk is what a Device has that is a disk.
type Disk struct {
	Driver    Driver
	Flag      string // the flag that Driver came from, for errors
	NumQueues int
	SegMax    int // 0: virtioblk's default
	Serial    string
	BlockSize uint32 // bytes; 0: as the disk has it
	Incoming  bool   // the guest comes from where the image is still in use
}

// Config is what a command line asks for, checked.
type Config struct {
	Devices  []Device
	AIO      string // "io_uring" or "threads"; empty: io_uring where the host has it
	Reactors int    // 0: chosen
	Poll     time.Duration
	PollSet  bool
	Control  string // where to listen for commands, or empty
	StateDir string // what is to outlive the process; empty: nothing is
	Trace    bool
	LogLevel slog.Level
	LogJSON  bool
	Strict   bool // a device that cannot be opened ends vdev, whatever others there are
}

// DiskFlags are the flags that describe a disk, as they are given.
type DiskFlags struct {
	deviceFlags
	blkFile   string
	format    string
	snapshot  bool
	chain     Choice
	driver    string
	readOnly  bool
	direct    bool
	bounce    bool
	noDiscard bool
	numQueues Number
	segMax    Number
	serial    serial
	blockSize Choice
	incoming  bool
	cancel    time.Duration
}

// ProcessFlags are the flags that are about all of vdev, as they are given.
type ProcessFlags struct {
	aio       Choice
	reactors  Number
	pollUS    Number
	control   string
	stateDir  string
	trace     bool
	logLevel  Choice
	logFormat Choice
	Strict    bool
}

// LogLevels are the values of --log-level.
var LogLevels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

// NewDiskFlags gives the flags of a disk with their defaults.
func NewDiskFlags() *DiskFlags {
	return &DiskFlags{
		deviceFlags: newDeviceFlags(),
		numQueues:   Number{Value: maxQueues, Min: 1, Max: maxQueues},
		segMax:      Number{Value: virtioblk.DefaultSegMax, Min: 1, Max: virtioblk.MaxSegMax},
		blockSize:   Choice{Value: "auto", Of: []string{"auto", "512", "4096"}},
		chain:       Choice{Value: string(qemunbd.ChainFolder), Of: qemunbd.Chains},
	}
}

// Register makes them flags of fs.
func (f *DiskFlags) Register(fs *pflag.FlagSet) {
	f.registerSocket(fs)
	fs.StringVar(&f.blkFile, "blk-file", "", "serve `FILE`, an image or a block device")
	fs.StringVar(&f.format, "format", "", "the image's `FORMAT`, by QEMU's name (default by content and name)")
	fs.BoolVar(&f.snapshot, "snapshot", false, "leave the image as it is, and forget what the guest writes when vdev ends")
	fs.Var(&f.chain, "backing-chain", "files that the image may lead to: backing files in its own folder, any local files, or any that QEMU can open")
	fs.StringVar(&f.driver, "driver", "", "serve what `NAME,option=value,...` says (see above)")
	fs.BoolVar(&f.readOnly, "read-only", false, "let the guest only read")
	fs.BoolVar(&f.direct, "direct", false, "bypass the host's page cache (O_DIRECT); the disk's stop then waits for reads and writes that hang, unless --bounce is given too")
	fs.BoolVar(&f.bounce, "bounce", false, "copy what is read and written, so that storage never has the guest's memory itself; costs speed, and is of use with --direct")
	fs.BoolVar(&f.noDiscard, "no-discard", false, "do not let the guest discard what it no longer uses")
	fs.Var(&f.numQueues, "num-queues", "offer up to `N` queues; the front-end uses as many as it wants")
	fs.Var(&f.segMax, "seg-max", "let a request have up to `N` buffers; with queues of less than 128, and a guest without indirect descriptors, their size less 2")
	fs.Var(&f.serial, "serial", "serial number of the disk: `TEXT` of at most 20 bytes")
	fs.Var(&f.blockSize, "logical-block-size", "block size that the guest sees, in bytes; auto: the host's block device's, and 512 for all else")
	f.registerGuest(fs, ": if not, a stop may leave requests in progress to the next start")
	fs.BoolVar(&f.incoming, "incoming", false, "do not mind that the image is in use: the guest comes from there, and gives it up before it starts here")
	fs.DurationVar(&f.cancel, "cancel-after", cancelAfter, "when the guest stops the device, wait so long for requests in progress before cancelling them ("+cancelAfterPinned.String()+" with --migratable=off); half a second later the stop is answered, whatever storage does, but see --direct")
}

// NewProcessFlags gives the flags that are about all of vdev, with their defaults.
func NewProcessFlags() *ProcessFlags {
	return &ProcessFlags{
		aio:       Choice{Of: []string{"io_uring", "threads"}},
		reactors:  Number{Min: 1, Max: 256},
		pollUS:    Number{Min: 0, Max: 1_000_000},
		logLevel:  Choice{Value: "info", Of: LogLevelNames},
		logFormat: Choice{Value: "text", Of: []string{"text", "json"}},
	}
}

// Register makes them flags of fs, but Strict, which only some commands have.
func (f *ProcessFlags) Register(fs *pflag.FlagSet) {
	fs.Var(&f.aio, "aio", "how files are read and written (default io_uring, or threads where the host refuses that)")
	fs.Var(&f.reactors, "reactors", "threads that serve queues (default one for each CPU, at most 4)")
	fs.Var(&f.pollUS, "poll-us", "look for work at most `N` microseconds before sleeping (default chosen by vdev; 0 is not at all)")
	fs.StringVar(&f.control, "control", "", "listen on a Unix socket at `PATH` for 'vdev ctl'")
	fs.StringVar(&f.stateDir, "state-dir", "", "keep in the folder `PATH` what a vdev after this one "+
		"has to know of a flush that failed, and of how a qemu-nbd has ended: without it all that was not "+
		"flushed to an image that is not raw is taken for lost when vdev is killed (default /run/vdev for root, $XDG_RUNTIME_DIR/vdev for others)")
	fs.BoolVar(&f.trace, "trace", false, "log what front-end and guest do: messages, requests, the device's life")
	fs.Var(&f.logLevel, "log-level", "log what is at least so severe")
	fs.Var(&f.logFormat, "log-format", "how the log is written")
}

// defaultStateDir is a folder that goes when the host is started anew, as what the host has in its
// page cache does.
func defaultStateDir() string {
	if os.Getuid() == 0 {
		return "/run/vdev"
	}
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "vdev")
	}
	return ""
}

// Config checks the flags together, for these devices. given tells whether a flag was given.
func (f *ProcessFlags) Config(given func(flag string) bool, devices ...Device) (Config, error) {
	c := Config{
		Devices:  devices,
		AIO:      f.aio.Value,
		Reactors: f.reactors.Value,
		Poll:     time.Duration(f.pollUS.Value) * time.Microsecond,
		PollSet:  given("poll-us"),
		Control:  f.control,
		StateDir: f.stateDir,
		Trace:    f.trace,
		LogLevel: LogLevels[f.logLevel.Value],
		LogJSON:  f.logFormat.Value == "json",
		Strict:   f.Strict,
	}
	switch {
	case given("control") && f.control == "":
		return c, errors.New("--control: a path is missing")
	case len(f.control) > MaxSocketPath:
		return c, TooLong("control", f.control)
	case given("state-dir") && f.stateDir == "":
		return c, errors.New("--state-dir: a path is missing")
	case !given("state-dir"):
		c.StateDir = defaultStateDir()
	}
	for _, d := range devices {
		if given("control") && f.control == d.SocketPath {
			return c, fmt.Errorf("--control %s: is the front-end's socket", f.control)
		}
	}
	return c, c.checkPorts()
}

// Config checks the flags together. given tells whether a flag was given.
func (f *DiskFlags) Config(given func(flag string) bool) (Device, error) {
	c, err := f.config(given)
	if err != nil {
		return c, err
	}
	c.CancelAfter = f.cancel
	c.Disk = &Disk{NumQueues: f.numQueues.Value, SegMax: f.segMax.Value, Serial: string(f.serial), Incoming: f.incoming}
	d := c.Disk
	switch {
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
	if !c.Migratable && !given("cancel-after") {
		c.CancelAfter = cancelAfterPinned
	}
	if given("blk-file") {
		d.Driver, d.Flag = Driver{Name: "vnd", File: f.blkFile, Detect: true}, "blk-file"
		d.Driver.QEMU.Snapshot = f.snapshot
		if given("backing-chain") {
			d.Driver.QEMU.Chain = qemunbd.Chain(f.chain.Value)
		}
		if given("format") {
			if d.Driver.QEMU.Format, err = parseFormat(f.format); err != nil {
				return c, fmt.Errorf("--format: %w", err)
			}
		}
	} else {
		d.Flag = "driver"
		if d.Driver, err = ParseDriver(f.driver); err != nil {
			return c, fmt.Errorf("--driver %s: %w", f.driver, err)
		}
	}
	for flag, on := range map[string]bool{"direct": f.direct, "bounce": f.bounce, "no-discard": f.noDiscard, "incoming": f.incoming} {
		if on && d.Driver.Name != "vnd" && d.Driver.Name != "qemu" {
			return c, fmt.Errorf("--%s: driver %s has no use for it", flag, d.Driver.Name)
		}
	}
	d.Driver.ReadOnly = d.Driver.ReadOnly || f.readOnly
	d.Driver.Direct = d.Driver.Direct || f.direct
	d.Driver.Bounce = d.Driver.Bounce || f.bounce
	d.Driver.NoDiscard = d.Driver.NoDiscard || f.noDiscard
	if err := d.Driver.check(); err != nil {
		return c, fmt.Errorf("--%s: %w", d.Flag, err)
	}
	size := uint64(512) // where nothing else is known
	if f.blockSize.Value != "auto" {
		size, err = strconv.ParseUint(f.blockSize.Value, 10, 32)
		if err != nil {
			panic(err) // the choices are numbers
		}
		d.BlockSize = uint32(size)
	}
	if d.Driver.Size%int64(size) != 0 {
		return c, fmt.Errorf("--logical-block-size %d: size %d of driver %s is not a multiple of it", size, d.Driver.Size, d.Driver.Name)
	}
	return c, nil
}

// LogLevelNames are the levels in the order of their severity.
var LogLevelNames = []string{"debug", "info", "warn", "error"}

// Choices are flags whose values are some words, by name.
func (f *DiskFlags) Choices() map[string]*Choice {
	return map[string]*Choice{
		"logical-block-size": &f.blockSize, "migratable": &f.migratable, "memory-files": &f.memory, "backing-chain": &f.chain,
	}
}

// Choices are flags whose values are some words, by name.
func (f *ProcessFlags) Choices() map[string]*Choice {
	return map[string]*Choice{"aio": &f.aio, "log-level": &f.logLevel, "log-format": &f.logFormat}
}
