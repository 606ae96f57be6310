package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/vnd"
	"vdev/internal/offload"
	"vdev/internal/spec"
	"vdev/internal/tasks"
	"vdev/internal/trace"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioblk"
)

const (
	// maxReactors bounds the default of --reactors: more event loops than that bring nothing.
	maxReactors = 4
	// endPatience is how long vdev waits at its end for storage that does not give back what is in flight. Who sent
	// the SIGTERM sends SIGKILL after a few seconds.
	endPatience = 3 * time.Second
	// startPatience is how long the start waits for storage that does not answer, where there are other disks.
	startPatience = 5 * time.Second
	// logPatience is how long it then waits for whoever reads the log.
	logPatience = time.Second
)

// serve serves disks until ctx ends, a signal says so, or those that have nothing but a connected socket have lost their front-ends.
// It logs to stderr.
func serve(ctx context.Context, c spec.Config, stderr io.Writer) error {
	out := newQueuedWriter(stderr)
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
		// Also where storage is stuck and nothing else is taken down any more: the socket's file goes.
		defer l.Close()
		commands = l
	}
	served := make(chan error, 1)
	go func() { served <- runAll(ctx, c, out, asked, commands) }()
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

// runAll builds everything from the drivers up, serves it, and takes it down again. Disks share the event loops and the log, and nothing
// else: each has a device switch of its own, and one that hangs, or fails once it is served, is no business of the others. commands,
// where it is not nil, is the control socket.
func runAll(ctx context.Context, c spec.Config, out *queuedWriter, asked askedBySignals, commands net.Listener) (err error) {
	level := new(slog.LevelVar)
	level.Set(c.LogLevel)
	log := newLogger(out, level, c.LogJSON)
	reactors, places, err := newReactors(c, log, tasks.Find())
	if err != nil {
		return err
	}
	defer reactors.Close()
	pool := offload.New(places)
	defer pool.Close()

	failures := vnd.NewFailures(c.StateDir, func(err error) {
		log.Error("a vdev after this one would not know that a flush has failed: that could not be recorded (--state-dir)", "cause", err)
	})
	p := &program{config: c, level: level, log: log, out: out, limit: newLogLimit(), start: time.Now(), reactors: reactors, pool: pool, failures: failures}
	go func() {
		if err := failures.Check(); err != nil {
			log.Warn("what a vdev after this one has to know of a flush that fails cannot be kept (--state-dir)", "cause", err)
		}
	}()
	if c.StateDir == "" {
		log.Warn("there is no folder for what a vdev after this one has to know of a flush that fails: XDG_RUNTIME_DIR is not set, and neither is --state-dir; " +
			"and what a guest has not flushed to an image that is not raw is taken for lost when this " +
			"vdev is killed: every request fails until the guest resets")
	}
	all := newDisks()
	defer func() { err = errors.Join(err, all.close()) }()
	// A disk that cannot be opened, or whose storage does not answer, is its own trouble, while there are others.
	alone := c.Strict || len(c.Disks) == 1
	var failed []*unserved
	fail := func(d spec.Disk, h *history, err error) error {
		if alone || ctx.Err() != nil {
			return ofDevice(d, err)
		}
		u := newUnserved(p, d, h)
		u.notYet(err)
		failed = append(failed, u)
		return nil
	}
	first := make([]<-chan attempt, len(c.Disks))
	histories := make([]*history, len(c.Disks))
	for i, d := range c.Disks {
		histories[i] = newHistory()
		first[i] = p.begin(ctx, d, histories[i])
	}
	patience, enough := context.WithTimeout(context.Background(), startPatience)
	defer enough()
	// What an attempt has of the event loops must be given back before they end: all are awaited before one that failed ends vdev.
	came := make([]*attempt, len(c.Disks)) // nil: storage does not answer
	for i, d := range c.Disks {
		a, ended := awaitFirst(first[i], patience)
		if !ended {
			p.tellSilent(d, alone)
		}
		if !ended && alone {
			a, ended = <-first[i], true
		}
		if ended {
			came[i] = &a
		}
		if ended && a.err == nil {
			all.add(a.served)
		}
	}
	for i, a := range came {
		d, h := c.Disks[i], histories[i]
		if a == nil {
			failed = append(failed, newSilent(p, d, h, first[i]))
		} else if a.err != nil {
			if err := fail(d, h, a.err); err != nil {
				return err
			}
		}
	}
	// The sockets come last: whoever finds one can connect.
	for _, s := range all.list() {
		if err := s.listen(); err != nil {
			all.remove(s)
			if err := fail(s.config, s.history, errors.Join(err, s.close())); err != nil {
				return err
			}
		}
	}
	if len(failed) == len(c.Disks) && !slices.Contains(came, nil) {
		return errors.New("no device can be served")
	}

	ended := make(chan struct{})
	defer close(ended)
	asked.serve(all, failed, ended)
	if commands != nil {
		server := control.NewServer(targets(all.list(), failed), slog.NewLogLogger(p.limit.logger(log).Handler(), slog.LevelWarn))
		server.Start(commands)
		// Last but for the event loops, which it asks: who follows the trace sees the device's end.
		defer server.Close()
	}

	results := make(chan error, len(c.Disks))
	for _, s := range all.list() {
		go func() { results <- s.serve(ctx) }()
	}
	for _, u := range failed {
		go func() { results <- u.serve(ctx, all) }()
	}
	for range c.Disks {
		err = errors.Join(err, <-results)
	}
	return errors.Join(err, notServed(failed))
}

// ofDevice says which disk an error is about.
func ofDevice(d spec.Disk, err error) error {
	if d.Name == "" || err == nil {
		return err
	}
	return fmt.Errorf("device %s: %w", d.Name, err)
}

// targets makes what the control socket acts on.
func targets(all []*served, failed []*unserved) (list []control.Served) {
	for _, s := range all {
		list = append(list, control.Served{Name: s.config.Name, Target: s})
	}
	for _, u := range failed {
		list = append(list, control.Served{Name: u.config.Name, Target: u})
	}
	return list
}

// program is what the disks have in common.
type program struct {
	config   spec.Config
	level    *slog.LevelVar
	log      *slog.Logger
	out      *queuedWriter
	limit    *logLimit
	start    time.Time
	reactors *vhostuser.Reactors
	pool     *offload.Pool
	failures *vnd.Failures
}

// history is what goes on when a disk is tried again.
type history struct {
	life   *trace.Log
	warned map[string]bool // what was said of the image, which is the same each time
}

func newHistory() *history {
	return &history{life: newLife(), warned: map[string]bool{}}
}

// attempt is what came of opening a disk.
type attempt struct {
	served *served // nil with err
	err    error
}

// begin opens a disk, which takes as long as its storage does.
func (p *program) begin(ctx context.Context, c spec.Disk, h *history) <-chan attempt {
	result := make(chan attempt, 1)
	go func() {
		s, err := p.open(ctx, c, h)
		result <- attempt{s, err}
	}()
	return result
}

// awaitFirst gives what came of an attempt, where it ends before patience does.
func awaitFirst(first <-chan attempt, patience context.Context) (a attempt, ended bool) {
	select {
	case a = <-first:
		return a, true
	case <-patience.Done():
	}
	select {
	case a = <-first:
		return a, true
	default:
		return a, false
	}
}

// tellSilent puts into the log that a disk's storage does not answer. alone: no disk is served without it.
func (p *program) tellSilent(c spec.Disk, alone bool) {
	var about []any
	if c.Name != "" {
		about = append(about, "device", c.Name)
	}
	if file := cmp.Or(c.Driver.File, c.Driver.NBD.URI); file != "" {
		about = append(about, "file", file)
	}
	if alone {
		p.log.Warn("nothing is served yet: storage does not answer", about...)
	} else {
		p.log.Warn("the device is not served yet: its storage does not answer; it is served when it does", about...)
	}
}

// open makes all that stands behind a disk's socket.
func (p *program) open(ctx context.Context, c spec.Disk, h *history) (_ *served, err error) {
	log := p.log
	if c.Name != "" {
		log = log.With("device", c.Name)
	}
	rep := newReporter(p.config, c.Name, p.start, log, p.limit, p.out, h.life)
	table := devsw.NewTable()
	var inUse func(error)
	if c.Incoming {
		inUse = func(err error) { log.Info("the image is opened when the guest starts here", "now", err) }
	}
	warn := func(text string) {
		if !h.warned[text] {
			h.warned[text] = true
			log.Warn(text)
		}
	}
	if c.Driver, err = settle(c.Driver, warn); err != nil {
		return nil, fmt.Errorf("--%s: %w", c.DiskFlag, err)
	}
	disk, err := openDisk(ctx, table, c.Driver, c.BlockSize, p.failures, inUse, log)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", c.DiskFlag, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, disk.driver.Detach())
		}
	}()
	var learner atomic.Pointer[virtioblk.Device] // nil until there is one
	disk.notify(func(_ int, err error) {
		// A vdev after this one is to know of a loss even if no request of the guest's meets it.
		if d := learner.Load(); d != nil && err != nil {
			d.Learn()
		}
		rep.server(err)
	})
	for _, text := range disk.warnings() {
		log.Warn(text)
	}
	info, err := disk.info()
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", c.DiskFlag, err)
	}
	if info.Size == 0 {
		log.Warn("the disk has no bytes: a guest can do nothing with it before it is made larger")
	}
	fs := specfs.New(table, specfs.WithTrace(rep.specfs))
	blk := virtioblk.Config{
		FS: fs, Dev: disk.dev, Info: disk.info, Serial: c.Serial, NumQueues: c.NumQueues, SegMax: c.SegMax, Pool: p.pool,
		Log: rep.virtioblk, Failed: rep.failed, Keeper: disk.keeper(),
		Ended: disk.ended(),
	}
	var backend *vhostuser.Backend // there before a front-end is
	blk.SizeChanged = func() { backend.ConfigChanged() }
	if p.config.Trace {
		blk.Trace = rep.request
	}
	device, err := virtioblk.New(blk)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", c.DiskFlag, err)
	}
	learner.Store(device)
	backend, err = vhostuser.New(vhostuser.Config{
		Device: device, Reactors: p.reactors, NotMigratable: !c.Migratable, CancelAfter: c.CancelWait,
		AnyMemoryFiles: c.AnyMemory, Trace: rep.vhostuser,
	})
	if err != nil {
		return nil, err
	}
	s := &served{
		program: p, config: c, log: log, rep: rep, history: h, table: table, fs: fs, disk: disk, info: info, device: device,
		backend: backend,
	}
	rep.migrating = s.migrating
	return s, nil
}

// listen makes the disk's socket, or takes it over. It does not ask the storage.
func (s *served) listen() (err error) {
	if s.listener, err = listen(s.config); err != nil {
		return err
	}
	c := s.config.Driver
	about := []any{"driver", c.Name}
	if c.File != "" {
		about = append(about, "file", c.File)
	}
	if c.Faults != nil {
		about = append(about, "fault_rules", len(c.Faults.Rules))
	}
	s.log.Info("serving a disk", append(about, "bytes", s.info.Size, "block_size", s.info.SectorSize, "read_only", s.info.ReadOnly,
		"socket", s.listener.Addr().String(), "aio", s.aio())...)
	return nil
}

// serve serves the disk, which is not open any more when it returns, and destroys it.
func (s *served) serve(ctx context.Context) error {
	err := s.backend.Serve(ctx, s.listener)
	if err != nil && s.config.Name != "" {
		s.log.Error("the device is not served any more", "cause", err)
	}
	// A close may go on in the background. Whoever does not want to wait for it is in await.
	_ = s.device.WaitClosed(context.Background())
	s.log.Info("ended")
	return ofDevice(s.config, errors.Join(err, s.close()))
}

// close destroys the disk, which is not open, and closes the socket. Further calls do nothing.
func (s *served) close() (err error) {
	s.closing.Do(func() {
		if s.listener != nil {
			s.listener.Close() // Serve has, where it was called
		}
		s.device.Close()
		err = s.disk.driver.Detach()
	})
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

// serve does what the signals ask for, for each disk, until ended is closed. A disk that could not be opened is tried again.
func (a askedBySignals) serve(all *disks, failed []*unserved, ended <-chan struct{}) {
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
		for _, s := range all.list() {
			ask(s.again)
		}
		for _, u := range failed {
			ask(u.again)
		}
	})
	on(a.usr1, func() {
		for _, s := range all.list() {
			s.rep.dump()
		}
		for _, u := range failed {
			u.dumpLife()
		}
	})
	on(a.quit, func() {
		for _, s := range all.list() {
			s.dump()
		}
		for _, u := range failed {
			u.dump()
		}
	})
}

// fileName is a socket's path as the system takes it: one that begins with @ would be a name that is in no file system.
func fileName(path string) string {
	if path[0] == '@' {
		return "./" + path
	}
	return path
}

// listen makes or takes over the socket.
func listen(c spec.Disk) (net.Listener, error) {
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

// newReactors starts the event loops. Where nobody has said how they are to work, and the host refuses io_uring (an
// old kernel, a container), they do with threads. pool is for the offload.Pool, which is what else takes threads: both have to do
// with what the host allows.
func newReactors(c spec.Config, log *slog.Logger, limit tasks.Limit) (_ *vhostuser.Reactors, pool offload.Config, err error) {
	config := vhostuser.ReactorConfig{Reactors: c.Reactors, Mode: vhostuser.ModeURing}
	if c.Reactors == 0 {
		queues := 0
		for _, d := range c.Disks {
			queues += d.NumQueues
		}
		config.Reactors = min(runtime.GOMAXPROCS(0), maxReactors, queues)
	}
	// A reactor is nearly always in a system call or busy, and keeps its P while it is: the goroutines of the connection and of
	// storage need others, or their turn comes only when the runtime takes one away, up to 10 ms later. The default goes by
	// the CPUs, which may be one.
	procs := max(runtime.GOMAXPROCS(0), 2*config.Reactors+2)
	servers := servers(c.Disks)
	if need := leastThreads(procs, config.Reactors) + len(c.Disks) + servers*leastServer + spareTasks; limit.N < need {
		return nil, pool, tooFewError(limit, need, len(c.Disks))
	}
	if runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs)
	}
	if c.PollSet {
		config.PollMax = c.Poll
		if c.Poll == 0 {
			config.PollMax = -1 // not at all
		}
	}
	if c.AIO == "threads" {
		config.Mode = vhostuser.ModeThreads
	}
	start := func() (*vhostuser.Reactors, error) {
		plan, enough := planThreads(limit.N, procs, config.Reactors, len(c.Disks), servers, config.Mode == vhostuser.ModeThreads)
		config.MaxStuck, pool.Places, pool.Keep = plan.stuck, plan.places, plan.reserve > 0
		tasks.Reserve(plan.reserve)
		reactors, err := vhostuser.NewReactors(config)
		if err == nil {
			plan.tell(log, limit, enough)
		}
		return reactors, err
	}
	reactors, err := start()
	if err != nil && c.AIO == "" {
		log.Warn("the host refuses io_uring: threads are used instead", "cause", err)
		config.Mode = vhostuser.ModeThreads
		reactors, err = start()
	}
	if err != nil {
		return nil, pool, fmt.Errorf("--aio %s: %w", config.Mode, err)
	}
	return reactors, pool, nil
}
