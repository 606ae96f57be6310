package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"vdev/internal/bench/load"
	"vdev/internal/child"
	"vdev/internal/sys"
)

// Clients: a front-end that sleeps until it is called, and one that looks at its rings all the
// time.
const (
	event = "event"
	poll  = "poll"
)

// What is served.
const (
	null   = "null"
	cached = "cached file"
	direct = "O_DIRECT file"
	nbd    = "NBD"
)

// What is measured.
const (
	ours       = "vdev"
	oursMD     = "vdev md"
	qsd        = "q-s-d"
	qsdURing   = "q-s-d io_uring"
	qsdThreads = "q-s-d threads"
	fioURing   = "fio io_uring"
	fioPsync   = "fio psync"
	nbdcopy    = "nbdcopy"
)

// known are all of them.
var known = []string{ours, oursMD, qsd, qsdURing, qsdThreads, fioURing, fioPsync, nbdcopy}

// The back-ends among them, of vdev and of qemu-storage-daemon. What is at -socket may have a name
// that begins like theirs.
var (
	vdevs = []string{ours, oursMD}
	qsds  = []string{qsd, qsdURing, qsdThreads}
)

const (
	nullBytes = 1 << 30
	nbdBytes  = 64 << 20
	tinyBytes = 4 << 10 // of the disk whose copy shows what nbdcopy's start takes
	maxQueues = 4
	warmup    = 200 * time.Millisecond
	idleTime  = 10 * time.Second
	tries     = 2 // how many times more what is disturbed is measured
)

// plan is a case to be measured.
type plan struct {
	Target string // of allTargets
	Disk   string // what is served
	Job    load.Job
	With   []string // what is measured
}

// measured is a case that was.
type measured struct {
	plan
	Results [][]load.Result // of each of With the rounds'
	Seen    disturbance     // the largest in a round
	Again   int             // how often a round was measured again
}

// name names a case.
func (p *plan) name() string {
	j := &p.Job
	name := fmt.Sprintf("%s, %s %s, depth %d", p.Disk, j.Pattern, sizeName(j.BlockSize), j.Depth)
	if j.Queues > 1 {
		name += fmt.Sprintf(", %d queues", j.Queues)
	}
	return name + ", " + p.client()
}

func (p *plan) client() string {
	if p.Job.Poll {
		return poll
	}
	return event
}

func sizeName(n int64) string {
	if n%1024 != 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// of returns the results of one of those that were measured; nil where it was not.
func (m *measured) of(name string) []load.Result {
	if i := slices.Index(m.With, name); i >= 0 {
		return m.Results[i]
	}
	return nil
}

// choice is what a target varies.
type choice struct {
	target   string
	disks    []string
	patterns []load.Pattern
	sizes    []int
	depths   []int
	queues   []int
	clients  []string
}

var choices = []choice{
	{"null", []string{null}, []load.Pattern{load.RandRead, load.RandWrite}, []int{4 << 10}, []int{1, 32, 128}, []int{1}, allClients},
	{"cached", []string{cached}, []load.Pattern{load.RandRead, load.RandWrite}, []int{4 << 10}, []int{1, 32, 128}, []int{1}, allClients},
	{"direct", []string{direct}, []load.Pattern{load.RandRead, load.RandWrite}, []int{4 << 10}, []int{1, 32, 128}, []int{1}, allClients},
	{"sequential", []string{cached, direct}, []load.Pattern{load.Read, load.Write}, []int{128 << 10}, []int{16}, []int{1}, []string{event}},
	{"queues", []string{null, cached}, []load.Pattern{load.RandRead}, []int{4 << 10}, []int{32}, []int{1, 2, maxQueues}, []string{event}},
	{"mixed", []string{cached}, []load.Pattern{load.RandRW}, []int{4 << 10}, []int{32}, []int{1}, []string{event}},
	{"nbd", []string{nbd}, []load.Pattern{load.Read, load.Write}, []int{4 << 10, 128 << 10}, []int{1, 32}, []int{1}, []string{event}},
}

// plans makes all cases that are selected, by target.
func plans(o options) []plan {
	var ps []plan
	for _, c := range choices {
		if !selected(o.targets, c.target) {
			continue
		}
		sizes, depths, clients := c.sizes, c.depths, c.clients
		if o.sizes != nil {
			sizes = o.sizes
		}
		if o.depths != nil {
			depths = o.depths
		}
		if o.clients != nil {
			clients = o.clients
		}
		for _, disk := range c.disks {
			for _, pattern := range c.patterns {
				if !(pattern.Reads() && selected(o.ops, "read") || pattern.Writes() && selected(o.ops, "write")) {
					continue
				}
				for _, size := range sizes {
					for _, client := range clients {
						for _, queues := range c.queues {
							for _, depth := range depths {
								j := load.Job{Pattern: pattern, ReadPercent: 70, BlockSize: int64(size), Depth: depth, Queues: queues,
									Poll: client == poll, Warmup: warmup, Length: o.length(), Seed: 1}
								if disk != nbd {
									j.CPUs = []int{o.clientCPU}
								}
								ps = append(ps, plan{Target: c.target, Disk: disk, Job: j, With: with(disk, &j, o)})
							}
						}
					}
				}
			}
		}
	}
	return ps
}

// with tells what is measured in a case.
func with(disk string, j *load.Job, o options) []string {
	var names []string
	switch disk {
	case null:
		names = []string{ours, qsd}
	case cached:
		names = []string{ours, qsdURing, qsdThreads, oursMD}
	case direct:
		names = []string{ours, qsdURing}
	case nbd:
		names = []string{ours, qsd}
		// what it can do
		if n := j.BlockSize; j.Pattern == load.Read && n >= 4<<10 && n&(n-1) == 0 {
			names = append(names, nbdcopy)
		}
		return names
	}
	// fio knows no rings.
	if disk != null && j.Queues == 1 {
		names = append(names, fioURing)
		if disk == cached && j.Depth == 1 {
			names = append(names, fioPsync)
		}
	}
	// Of those that only reads are selected for, mixed has writes all the same.
	if !j.Pattern.Writes() || o.overwrite || !onlyReads(o) {
		for _, s := range o.sockets {
			names = append(names, s.Name)
		}
	}
	return names
}

// suite is a run.
type suite struct {
	o   options
	dir string
	out io.Writer

	pids   []int // of what listens at -socket, as far as they can be seen
	unseen bool  // one of them cannot

	cases    []*measured
	idle     []idleUse
	commands []string // of what was started, as they were
}

// idleUse is what a back-end with nothing to do has used of a core.
type idleUse struct {
	Disk, Name string
	Use        load.Usage
	Seen       disturbance
}

// meet looks whether what listens at -socket can do its part, and who it is.
func (s *suite) meet(ctx context.Context, all []plan) error {
	for _, t := range s.o.sockets {
		pid, err := load.Check(ctx, t, jobsOf(t.Name, all))
		if err != nil {
			return err
		}
		if pid == 0 {
			s.unseen = true
			fmt.Fprintf(s.out, "%s: its process cannot be seen, and so not whether others work beside the run\n", t.Name)
			continue
		}
		s.pids = append(s.pids, pid)
	}
	return nil
}

// jobsOf are the jobs of the plans in which that one has a part.
func jobsOf(name string, ps []plan) (jobs []load.Job) {
	for _, p := range ps {
		if slices.Contains(p.With, name) {
			jobs = append(jobs, p.Job)
		}
	}
	return jobs
}

// run measures everything that is selected, disk by disk. What was measured before an error stays.
func (s *suite) run(ctx context.Context) error {
	all := plans(s.o)
	if err := s.meet(ctx, all); err != nil {
		return err
	}
	defer func() {
		slices.SortStableFunc(s.cases, func(a, b *measured) int {
			return slices.Index(allTargets, a.Target) - slices.Index(allTargets, b.Target)
		})
	}()
	for _, disk := range []string{null, cached, direct, nbd} {
		var ps []plan
		for _, p := range all {
			if p.Disk == disk {
				ps = append(ps, p)
			}
		}
		idle := selected(s.o.targets, "idle") && (disk == null || disk == cached)
		if len(ps) > 0 || idle {
			if err := s.runDisk(ctx, disk, ps, idle); err != nil {
				return err
			}
		}
	}
	return nil
}

// runDisk has everybody serve a disk of one kind, and measures on it.
func (s *suite) runDisk(ctx context.Context, disk string, ps []plan, idle bool) (err error) {
	d, err := s.serve(ctx, disk)
	defer func() { err = errors.Join(err, d.close(ctx)) }()
	if err != nil {
		return err
	}
	for _, t := range d.targets {
		if _, err := load.Check(ctx, t, jobsOf(t.Name, ps)); err != nil {
			return fmt.Errorf("%s: %w", disk, err)
		}
	}
	for _, p := range ps {
		m, err := s.measure(ctx, d, p)
		if m != nil && m.rounds() > 0 {
			s.cases = append(s.cases, m)
			fmt.Fprintln(s.out, m.line())
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p.name(), err)
		}
	}
	if !idle {
		return nil
	}
	var uses []idleUse
	spare := tries
	seen, err := s.watch(d, len(s.o.sockets) == 0).undisturbed(&spare, func() (err error) {
		uses, err = measureIdle(ctx, s.o, disk, d.targets)
		return err
	})
	for _, u := range uses {
		u.Seen = seen
		fmt.Fprintf(s.out, "%s, idle for %v: %s %s ms of CPU%s\n", u.Disk, idleTime, u.Name, u.cpu(), seen.mark())
		s.idle = append(s.idle, u)
	}
	return err
}

// cpu is how many milliseconds it was.
func (u *idleUse) cpu() string {
	if !u.Use.Known {
		return "an unknown number of"
	}
	return fmt.Sprintf("%.1f", ms(u.Use.CPU))
}

// watch looks at the cores of the back-ends and of the front-end, where whatever works is bound to
// them, and else at all.
func (s *suite) watch(d *disks, bound bool) watch {
	w := watch{pids: slices.Clone(s.pids), unseen: s.unseen}
	for _, server := range d.servers {
		w.pids = append(w.pids, server.PID())
	}
	if bound {
		w.cores = []int{s.o.serverCPU, s.o.clientCPU}
	}
	return w
}

// measure measures one case, in as many rounds as it takes, and looks whether the files were in
// memory all the time. With an error it returns the rounds before it; nil where they tell nothing.
func (s *suite) measure(ctx context.Context, d *disks, p plan) (*measured, error) {
	var targets []load.Target
	for _, name := range p.With {
		i := slices.IndexFunc(d.targets, func(t load.Target) bool { return t.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("nobody is %q", name)
		}
		targets = append(targets, d.targets[i])
	}
	if err := d.check(); err != nil {
		return nil, err
	}
	m := &measured{plan: p, Results: make([][]load.Result, len(targets))}
	err := s.measureRounds(ctx, s.watch(d, p.bound(s.o)).undisturbed, m, targets)
	if missing := d.check(); missing != nil {
		return nil, errors.Join(missing, err)
	}
	if err != nil {
		return m, err
	}
	if p.Job.Pattern.Writes() {
		// What is written to the disk later would disturb the next case.
		if err := d.sync(); err != nil {
			return m, err
		}
	}
	return m, nil
}

// bound tells whether whatever works in the case is bound to its core.
func (p *plan) bound(o options) bool {
	return p.Disk != nbd && !slices.ContainsFunc(o.sockets, func(t load.Target) bool { return slices.Contains(p.With, t.Name) })
}

// measureRounds measures the rounds of a case, in an order that turns round, until they say enough.
// A round that is disturbed is measured again; where the tries for that are used up, the case is
// disturbed, which more rounds do not mend.
func (s *suite) measureRounds(ctx context.Context, undisturbed watched, m *measured, targets []load.Target) error {
	all := tries * s.o.rounds
	spare := all
	for n := 0; m.goesOn(s.o); n++ {
		var round [][]load.Result
		seen, err := undisturbed(&spare, func() (err error) {
			round, err = load.Compare(ctx, targets, m.Job, 1, nil)
			return err
		})
		if err != nil {
			return err
		}
		if n%2 == 1 {
			slices.Reverse(round)
		}
		for i := range round {
			m.Results[i] = append(m.Results[i], round[i]...)
		}
		m.Seen, m.Again = m.Seen.or(seen), all-spare
		slices.Reverse(targets)
	}
	return nil
}

// measureIdle measures what the back-ends use with a front-end that has nothing to do any more.
func measureIdle(ctx context.Context, o options, disk string, targets []load.Target) ([]idleUse, error) {
	j := load.Job{Pattern: load.RandRead, BlockSize: 4 << 10, Depth: 32, Queues: 1, CPUs: []int{o.clientCPU},
		Warmup: warmup, Length: warmup, Idle: idleTime, Seed: 1}
	var uses []idleUse
	var mu sync.Mutex
	var errs []error
	var all sync.WaitGroup
	for _, t := range targets {
		if t.Do != nil {
			continue
		}
		all.Go(func() {
			r, err := load.Run(ctx, t.Socket, j)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, fmt.Errorf("%s, idle: %w", t.Name, err))
				return
			}
			uses = append(uses, idleUse{Disk: disk, Name: t.Name, Use: r.Idle})
		})
	}
	all.Wait()
	place := func(u idleUse) int {
		return slices.IndexFunc(targets, func(t load.Target) bool { return t.Name == u.Name })
	}
	slices.SortFunc(uses, func(a, b idleUse) int { return place(a) - place(b) })
	return uses, errors.Join(errs...)
}

// line tells what came of a case: thousands of requests in a second, and how vdev stands to the
// others.
func (m *measured) line() string {
	var b strings.Builder
	b.WriteString(m.name() + m.Seen.mark() + ":")
	for i, name := range m.With {
		fmt.Fprintf(&b, "  %s %s", name, thousands(m.Results[i]))
		if i > 0 {
			fmt.Fprintf(&b, ", ×%v", compare(m.Results[0], m.Results[i], (*load.Result).IOPS))
		}
	}
	fmt.Fprintf(&b, "; rounds: %d", m.rounds())
	return b.String()
}

// disks is what serves disks of one kind.
type disks struct {
	targets []load.Target
	servers []*server
	held    *heldFile // the image, where it is held in memory
}

func (d *disks) check() error {
	if d.held == nil {
		return nil
	}
	return d.held.check()
}

func (d *disks) sync() error {
	if d.held == nil {
		return nil
	}
	return d.held.f.Sync()
}

// close ends everything. The files stay.
func (d *disks) close(ctx context.Context) error {
	var errs []error
	for _, s := range slices.Backward(d.servers) {
		errs = append(errs, s.stop(ctx))
	}
	if d.held != nil {
		errs = append(errs, d.held.Close())
	}
	return errors.Join(errs...)
}

// serve starts what serves disks of one kind. What it returns is to be closed, after an error as
// well.
func (s *suite) serve(ctx context.Context, disk string) (*disks, error) {
	d := &disks{}
	switch disk {
	case null:
		node := fmt.Sprintf("driver=null-co,size=%d,read-zeroes=off", nullBytes)
		if err := errors.Join(s.startVdev(ctx, d, ours, s.o.serverCPU, "--driver", fmt.Sprintf("null,size=%d", nullBytes)),
			s.startQSD(ctx, d, qsd, s.o.serverCPU, node)); err != nil {
			return d, err
		}
	case cached, direct:
		if err := s.serveFiles(ctx, d, disk); err != nil {
			return d, err
		}
	case nbd:
		return d, s.serveNBD(ctx, d)
	}
	d.targets = append(d.targets, s.o.sockets...)
	return d, nil
}

// serveFiles has all serve one image, in turn. Images of the same make are not equally fast: it
// matters where in the machine's memory their pages are, by a quarter. vdev locks an image only
// while a front-end uses it, and qemu-storage-daemon is told not to.
func (s *suite) serveFiles(ctx context.Context, d *disks, disk string) error {
	size := int64(s.o.fileMiB) << 20
	path := filepath.Join(s.dir, strings.ReplaceAll(disk, " ", "-")+".img")
	args := []string{"--blk-file", path}
	engines, cache := []string{qsdURing, qsdThreads}, "off"
	if disk == direct {
		args = append(args, "--direct")
		engines, cache = engines[:1], "on"
		if err := newUncachedFile(path, size); err != nil {
			return err
		}
	} else {
		var err error
		if d.held, err = newHeldFile(path, size); err != nil {
			return err
		}
	}
	if err := s.startVdev(ctx, d, ours, s.o.serverCPU, args...); err != nil {
		return err
	}
	for _, engine := range engines {
		node := fmt.Sprintf("driver=file,filename=%s,locking=off,aio=%s,cache.direct=%s", path, strings.TrimPrefix(engine, qsd+" "), cache)
		if err := s.startQSD(ctx, d, engine, s.o.serverCPU, node); err != nil {
			return err
		}
	}
	if disk == cached {
		// Memory that was never written would be one page of zeroes.
		if err := s.startVdev(ctx, d, oursMD, s.o.serverCPU, "--driver", fmt.Sprintf("md,size=%d,file=%s", size, path)); err != nil {
			return err
		}
	}
	for _, name := range []string{fioURing, fioPsync} {
		engine := strings.TrimPrefix(name, "fio ")
		example := load.Job{Pattern: load.RandRead, BlockSize: 4 << 10, Depth: 32, Warmup: warmup, Length: s.o.length()}
		s.command("taskset", append([]string{"-c", strconv.Itoa(s.o.serverCPU), s.o.fio}, fioArgs(engine, path, disk == direct, example)...))
		d.targets = append(d.targets, load.Target{Name: name, Do: func(ctx context.Context, j load.Job) (load.Result, error) {
			return runFio(ctx, s.o, engine, path, disk == direct, j)
		}})
	}
	return nil
}

// serveNBD has both serve what an nbdkit has, whose disk is written before, so that all of it is
// there.
func (s *suite) serveNBD(ctx context.Context, d *disks) error {
	socket := filepath.Join(s.dir, "nbd.sock")
	tiny := filepath.Join(s.dir, "nbd-tiny.sock")
	if err := errors.Join(s.startNBDKit(ctx, d, socket, nbdBytes), s.startNBDKit(ctx, d, tiny, tinyBytes)); err != nil {
		return err
	}
	uri := nbdURI(socket)
	if err := errors.Join(s.startVdev(ctx, d, ours, -1, "--driver", "nbd,uri="+uri),
		s.startQSD(ctx, d, qsd, -1, "driver=nbd,server.type=unix,server.path="+socket)); err != nil {
		return err
	}
	fill := load.Job{Pattern: load.Read, BlockSize: 1 << 20, Depth: 4, Queues: 1, Verify: true}
	if _, err := load.Run(ctx, d.targets[0].Socket, fill); err != nil {
		return err
	}
	d.targets = append(d.targets, load.Target{Name: nbdcopy, Do: func(ctx context.Context, j load.Job) (load.Result, error) {
		return s.runCopy(ctx, uri, nbdURI(tiny), j)
	}})
	return nil
}

func nbdURI(socket string) string { return "nbd+unix:///?socket=" + socket }

// startNBDKit starts an nbdkit that has a disk of so many bytes in memory.
func (s *suite) startNBDKit(ctx context.Context, d *disks, socket string, bytes int) error {
	args := []string{s.o.nbdkit, "--foreground", "--unix", socket, "memory", strconv.Itoa(bytes)}
	s.command(args[0], args[1:])
	server, err := startServer(ctx, -1, "nbdkit", socket, args...)
	if err != nil {
		return err
	}
	d.servers = append(d.servers, server)
	return nil
}

// starts is how often nbdcopy's start is measured for each copy.
const starts = 3

// runCopy reads all that an NBD server has once with nbdcopy, which has no other way to do it. What
// its start takes is not in the result: that is seen on the tiny disk.
func (s *suite) runCopy(ctx context.Context, uri, tiny string, j load.Job) (load.Result, error) {
	var little []load.Result
	for range starts {
		r, err := s.copyOnce(ctx, tiny, j)
		if err != nil {
			return r, err
		}
		little = append(little, r)
	}
	slices.SortFunc(little, func(a, b load.Result) int { return cmp.Compare(a.Length, b.Length) })
	r, err := s.copyOnce(ctx, uri, j)
	if err != nil {
		return r, err
	}
	return copied(r, little[starts/2], j)
}

// copyOnce tells how long an nbdcopy takes, and what it uses.
func (s *suite) copyOnce(ctx context.Context, uri string, j load.Job) (load.Result, error) {
	begun := time.Now()
	p, err := child.Run(ctx, child.Program{Args: []string{s.o.nbdcopy, "--no-extents", "--connections=1", fmt.Sprintf("--requests=%d", j.Depth),
		fmt.Sprintf("--queue-size=%d", max(int64(j.Depth)*j.BlockSize, 1<<20)), fmt.Sprintf("--request-size=%d", j.BlockSize), uri, "null:"}})
	if err != nil {
		return load.Result{}, err
	}
	r := load.Result{Length: time.Since(begun), Backend: load.Usage{Known: true, CPU: p.State().UserTime() + p.State().SystemTime()}}
	r.Backend.SwitchesKnown, r.Backend.Switches = true, sys.SwitchesOf(p.State())
	return r, nil
}

// copied is what came of a copy of all of the disk, without what the start took.
func copied(all, start load.Result, j load.Job) (load.Result, error) {
	r := load.Result{Latency: load.NewLatency(), Waited: math.NaN(), Bytes: nbdBytes, Requests: uint64(nbdBytes / j.BlockSize)}
	if r.Length = all.Length - start.Length; r.Length <= 0 {
		return r, fmt.Errorf("%w: to copy %d bytes took nbdcopy %v, and %d bytes %v", load.ErrNoRequest, nbdBytes, all.Length, tinyBytes, start.Length)
	}
	r.Backend = load.Usage{Known: true, CPU: max(all.Backend.CPU-start.Backend.CPU, 0), SwitchesKnown: all.Backend.SwitchesKnown && start.Backend.SwitchesKnown,
		Switches: max(all.Backend.Switches, start.Backend.Switches) - start.Backend.Switches}
	return r, nil
}

// startVdev starts a vdev that serves what args say.
func (s *suite) startVdev(ctx context.Context, d *disks, name string, cpu int, args ...string) error {
	socket := s.socketOf(name)
	args = slices.Concat([]string{"blk", "--socket-path", socket, "--num-queues", strconv.Itoa(maxQueues), "--log-level", "warn"}, args, s.o.vdevArgs)
	return s.start(ctx, d, name, cpu, socket, s.o.vdev, args)
}

// startQSD starts a qemu-storage-daemon that serves what node says, with an iothread, which polls.
func (s *suite) startQSD(ctx context.Context, d *disks, name string, cpu int, node string) error {
	socket := s.socketOf(name)
	return s.start(ctx, d, name, cpu, socket, s.o.qsd, []string{"--blockdev", node + ",node-name=disk", "--object", "iothread,id=io",
		"--export", fmt.Sprintf("type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=%d,iothread=io,addr.type=unix,addr.path=%s",
			maxQueues, socket)})
}

func (s *suite) start(ctx context.Context, d *disks, name string, cpu int, socket, command string, args []string) error {
	if cpu >= 0 {
		s.command("taskset", append([]string{"-c", strconv.Itoa(cpu), filepath.Base(command)}, args...))
	} else {
		s.command(filepath.Base(command), args)
	}
	server, err := startServer(ctx, cpu, name, socket, append([]string{command}, args...)...)
	if err != nil {
		return err
	}
	d.servers = append(d.servers, server)
	d.targets = append(d.targets, load.Target{Name: name, Socket: socket})
	return nil
}

// socketOf is where that back-end listens.
func (s *suite) socketOf(name string) string {
	return filepath.Join(s.dir, strings.ReplaceAll(name, " ", "-")+".sock")
}

// command notes what is started.
func (s *suite) command(command string, args []string) {
	line := command + " " + strings.Join(args, " ")
	s.commands = append(s.commands, strings.ReplaceAll(line, s.dir+string(os.PathSeparator), ""))
}
