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
	"vdev/internal/control"
	"vdev/internal/dev/nbd"
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
	asked := askedBySignals{hup: notify(syscall.SIGHUP), usr1: notify(syscall.SIGUSR1), quit: notify(syscall.SIGQUIT)}
	defer asked.stop()

	var commands net.Listener
	if c.control != "" {
		l, err := control.Listen(fileName(c.control))
		if err != nil {
			return fmt.Errorf("--control: %w", err)
		}
		// Also where storage is stuck and nothing else is taken down any more: the socket's file goes.
		defer l.Close()
		commands = l
	}
	served := make(chan error, 1)
	go func() { served <- runBlk(ctx, c, out, asked, commands) }()
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

// runBlk builds everything from the driver up, serves it, and takes it down again. commands, where it is not nil, is the control
// socket.
func runBlk(ctx context.Context, c blkConfig, out *queuedWriter, asked askedBySignals, commands net.Listener) (err error) {
	level := new(slog.LevelVar)
	level.Set(c.logLevel)
	log := newLogger(out, level, c.logJSON)
	rep := newReporter(c, log, out)

	table := devsw.NewTable()
	var inUse func(error)
	if c.incoming {
		inUse = func(err error) { log.Info("the image is opened when the guest starts here", "now", err) }
	}
	if c.driver, err = c.driver.settle(); err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	disk, err := openDisk(ctx, table, c.driver, c.blockSize, inUse, func(text string) { log.Warn(text) })
	if err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	defer func() { err = errors.Join(err, disk.driver.Detach()) }()
	disk.notify(func(_ int, err error) {
		switch {
		case errors.Is(err, nbd.ErrForgotten):
			log.Error("the disk's server has lost writes", "error", err)
			return
		case err != nil:
			log.Warn("the disk's server is gone", "error", err)
			return
		}
		log.Info("the disk's server is back")
	})
	fs := specfs.New(table, specfs.WithTrace(rep.specfs))

	reactors, err := newReactors(c, log)
	if err != nil {
		return err
	}
	defer reactors.Close()

	blk := virtioblk.Config{
		FS: fs, Dev: disk.dev, Info: disk.info, Serial: c.serial, NumQueues: c.numQueues, CancelAfter: c.cancelWait,
		Migratable: c.migratable, Log: rep.virtioblk,
	}
	if c.trace {
		blk.Trace = rep.request
	}
	device, err := virtioblk.New(blk)
	if err != nil {
		return fmt.Errorf("--%s: %w", c.diskFlag, err)
	}
	backend, err := vhostuser.New(vhostuser.Config{Device: device, Reactors: reactors, NotMigratable: !c.migratable, Trace: rep.vhostuser})
	if err != nil {
		return err
	}
	s := &served{config: c, level: level, log: log, rep: rep, table: table, fs: fs, disk: disk, device: device, backend: backend,
		aio: string(reactors.Mode())}

	ended := make(chan struct{})
	defer close(ended)
	asked.serve(s, ended)
	if commands != nil {
		server := control.NewServer(s, slog.NewLogLogger(log.Handler(), slog.LevelWarn))
		server.Start(commands)
		// Last but for the reactors, which it asks: who follows the trace sees the device's end.
		defer server.Close()
	}

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
		"socket", listener.Addr().String(), "aio", s.aio)...)
	err = backend.Serve(ctx, listener)
	// A close may go on in the background. Whoever does not want to wait for it is in await.
	_ = device.WaitClosed(context.Background())
	log.Info("ended")
	return err
}

// askedBySignals brings the signals that ask for something other than the end.
type askedBySignals struct{ hup, usr1, quit chan os.Signal }

// notify returns a channel on which one signal comes, once for any number of them that come while nobody looks.
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

// serve does what the signals ask for, until ended is closed. To look at the image's size may take as long as storage does, which
// must not keep anybody from asking why.
func (a askedBySignals) serve(s *served, ended <-chan struct{}) {
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
	on(a.hup, func() {
		if _, err := s.resize(); err != nil {
			s.log.Error("the disk's size could not be read again", "cause", err)
		}
	})
	on(a.usr1, s.rep.dump)
	on(a.quit, s.dump)
}

// fileName is a socket's path as the system takes it: one that begins with @ would be a name that is in no file system.
func fileName(path string) string {
	if path[0] == '@' {
		return "./" + path
	}
	return path
}

// listen makes or takes over the socket.
func listen(c blkConfig) (net.Listener, error) {
	if c.socketPath != "" {
		l, err := vhostuser.Listen(fileName(c.socketPath))
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
