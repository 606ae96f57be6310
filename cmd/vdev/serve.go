package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/virtioblk"
	"vdev/specfs"
	"vdev/vhostuser"
)

const (
	// maxReactors bounds the default of --reactors: more event loops for one disk bring nothing.
	maxReactors = 4
	// endPatience is how long vdev waits at its end for storage that does not give back what is in flight. Who sent
	// the SIGTERM sends SIGKILL after a few seconds.
	endPatience = 3 * time.Second
	// logPatience is how long it then waits for whoever reads the log.
	logPatience = time.Second
)

// serveBlk serves a disk until ctx ends, a signal says so, or the one front-end on a connected socket has gone. It
// logs to stderr.
func serveBlk(ctx context.Context, c blkConfig, stderr io.Writer) error {
	out := newQueuedWriter(stderr)
	defer out.Close(logPatience)

	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	// The guest's disk does not end with the program that reads the log.
	signal.Ignore(syscall.SIGPIPE)
	hup, usr1 := notify(syscall.SIGHUP), notify(syscall.SIGUSR1)
	defer signal.Stop(hup)
	defer signal.Stop(usr1)

	served := make(chan error, 1)
	go func() { served <- runBlk(ctx, c, out, hup, usr1) }()
	return await(ctx, served)
}

// await returns what comes from served; but when ctx ends and nothing comes soon, an error: whoever said that vdev is
// to end does not wait for storage that is stuck.
func await(ctx context.Context, served <-chan error) error {
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-served:
		return err
	case <-time.After(endPatience):
		return errors.New("storage has not given back what was in progress: ended without it")
	}
}

// runBlk builds everything from the driver up, serves it, and takes it down again. hup and usr1 bring those signals.
func runBlk(ctx context.Context, c blkConfig, out *queuedWriter, hup, usr1 <-chan os.Signal) (err error) {
	log := newLogger(out, c.logLevel, c.logJSON)
	rep := newReporter(c, log, out)

	table := devsw.NewTable()
	disk, err := openDisk(table, c.driver, c.blockSize)
	if err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	defer func() { err = errors.Join(err, disk.driver.Detach()) }()
	fs := specfs.New(table, specfs.WithTrace(rep.specfs))

	reactors, err := newReactors(c, log)
	if err != nil {
		return err
	}
	defer reactors.Close()

	blk := virtioblk.Config{
		FS: fs, Dev: disk.dev, Info: disk.info, Serial: c.serial, NumQueues: c.numQueues, CancelAfter: c.cancelWait,
		Log: rep.virtioblk,
	}
	if c.trace {
		blk.Trace = rep.request
	}
	device, err := virtioblk.New(blk)
	if err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	backend, err := vhostuser.New(vhostuser.Config{Device: device, Reactors: reactors, Trace: rep.vhostuser})
	if err != nil {
		return err
	}

	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case <-hup:
				if err := resize(log, fs, disk, device, backend); err != nil {
					log.Error("the disk's size could not be read again", "cause", err)
				}
			case <-usr1:
				rep.dump()
			case <-ended:
				return
			}
		}
	}()

	info, err := disk.info()
	if err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	// The socket comes last: whoever finds it can connect.
	listener, err := listen(c)
	if err != nil {
		return err
	}
	about := []any{"driver", c.driver.name}
	if c.driver.file != "" {
		about = append(about, "file", c.driver.file)
	}
	if c.driver.faults != nil {
		about = append(about, "fault_rules", len(c.driver.faults.rules))
	}
	log.Info("serving a disk", append(about, "bytes", info.Size, "block_size", info.SectorSize, "read_only", info.ReadOnly,
		"socket", listener.Addr().String(), "aio", reactors.Mode())...)
	err = backend.Serve(ctx, listener)
	log.Info("ended")
	return err
}

// notify returns a channel on which one signal comes, once for any number of them that come while nobody looks.
func notify(sig os.Signal) chan os.Signal {
	c := make(chan os.Signal, 1)
	signal.Notify(c, sig)
	return c
}

// listen makes or takes over the socket.
func listen(c blkConfig) (net.Listener, error) {
	if c.socketPath != "" {
		path := c.socketPath
		if path[0] == '@' {
			path = "./" + path // else a name that is in no file system
		}
		l, err := vhostuser.Listen(path)
		if err != nil {
			return nil, fmt.Errorf("--socket-path: %w", err)
		}
		return l, nil
	}
	l, err := vhostuser.FromFD(c.fd)
	if err != nil {
		return nil, fmt.Errorf("--fd: %w", err)
	}
	return l, nil
}

// newReactors starts the event loops. Where nobody has said how they are to work, and the host refuses io_uring (an
// old kernel, a container), they do with threads.
func newReactors(c blkConfig, log *slog.Logger) (*vhostuser.Reactors, error) {
	config := vhostuser.ReactorConfig{Reactors: c.reactors, Mode: vhostuser.ModeURing}
	if c.reactors == 0 {
		config.Reactors = min(runtime.GOMAXPROCS(0), maxReactors, c.numQueues)
	}
	// A reactor is nearly always in a system call or busy, and keeps its P while it is: the goroutines of the connection and of
	// storage need others, or their turn comes only when the runtime takes one away, up to 10 ms later. The default goes by
	// the CPUs, which may be one.
	if procs := 2*config.Reactors + 2; runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs)
	}
	if c.pollSet {
		config.PollMax = c.poll
		if c.poll == 0 {
			config.PollMax = -1 // not at all
		}
	}
	if c.aio == "threads" {
		config.Mode = vhostuser.ModeThreads
	}
	reactors, err := vhostuser.NewReactorsConfig(config)
	if err != nil && c.aio == "" {
		log.Warn("the host refuses io_uring: threads are used instead", "cause", err)
		config.Mode = vhostuser.ModeThreads
		reactors, err = vhostuser.NewReactorsConfig(config)
	}
	if err != nil {
		return nil, fmt.Errorf("--aio %s: %w", config.Mode, err)
	}
	return reactors, nil
}

// resize looks at the disk's size again, and has the front-end told where it has changed.
func resize(log *slog.Logger, fs *specfs.FS, disk *openedDisk, device *virtioblk.Device, backend *vhostuser.Backend) error {
	if node := fs.Lookup(devsw.IFBLK, disk.dev); node != nil {
		// An open driver goes by the size it knows. ENXIO: it is being closed, and will look when it is opened next.
		// ENOTTY: its disks do not change.
		err := node.Ioctl(devsw.DIOCGROW, nil, devsw.FREAD)
		if err != nil && !errors.Is(err, devsw.ENXIO) && !errors.Is(err, devsw.ENOTTY) {
			return err
		}
	}
	changed, err := device.Resize()
	if err != nil {
		return err
	}
	info, err := disk.info()
	if err != nil {
		return err
	}
	log.Info("the disk's size was read again", "bytes", info.Size, "changed", changed)
	if changed {
		backend.ConfigChanged()
	}
	return nil
}
