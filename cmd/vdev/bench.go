package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"vdev/internal/bench/load"
	"vdev/internal/spec"
)

// benchFlags are the flags of `vdev bench`, as they are given.
type benchFlags struct {
	pattern     several[string]
	blockSize   several[int64]
	depth       several[int]
	queues      several[int]
	client      several[string]
	readPercent spec.Number
	size        string
	overwrite   bool
	verify      bool
	seed        uint64
	length      time.Duration
	warmup      time.Duration
	rounds      spec.Number
	clientCPUs  cpuList
	backendCPUs cpuList
	versus      string
	name        string
	versusName  string
	// of consoles
	console       string
	consolePort   string
	versusConsole string

	format spec.Choice
	output string
	svg    string
}

func newBenchCommand() *cobra.Command {
	f := newBenchFlags()
	cmd := &cobra.Command{
		Use:   "bench [--console HOST] [--versus SOCKET] SOCKET",
		Short: "Measure how fast a disk or a console is served, by vdev or by anybody else",
		Long: `Plays the guest. It connects to the vhost-user-blk back-end that listens on SOCKET (vdev,
qemu-storage-daemon, SPDK, ...), which must not be serving another front-end. It keeps the disk
busy, and prints requests per second, latencies, and what the back-end's process needs for a
request.

There is a case for each combination of pattern, block size, depth, number of queues and
client. Each is measured in several rounds, and the median is printed. With --versus two
back-ends take turns in each round, so that what drifts on the host weighs on both alike. Both
should serve equal disks.

Patterns have the names that fio gives them: read and write are sequential, randread and
randwrite are not, rw and randrw mix reads and writes. An event client sleeps until the
back-end calls it, as most guests do; one that polls looks for completions all the time, and
needs a processor for each queue.

WHATEVER WRITES (all patterns but read and randread, and --verify) DESTROYS WHAT IS ON THE DISK,
and is refused without --overwrite.

With --verify each round writes all that it uses of the disk before the load, and reads it after
the load; --size keeps that short. The data tell each block from every other one, and from what it
was before. The load also checks what it reads, which takes time and adds to the latencies. This
finds what is lost, stale, damaged or in the wrong place while the back-end runs. It cannot find
out whether data survive a crash or a power failure: nothing is flushed, and reads may come out of
a cache.

MB/S is a million bytes per second. +- is half of the difference between the slowest round and the
fastest, in per cent of the median of IOPS. The latency of a request (MEAN, the percentiles P50 to
P99.9, and MAX) is the time from when the back-end could see it until it was found complete. It
counts all requests that begin in the time that is measured; IOPS counts those that end in it.
CPU/REQ is the CPU time of the back-end's process for a request, with the kernel's on its behalf,
and CSW/REQ its context switches. Both are not known (-) where that process cannot be seen from
here, as another user's; nor are the switches where one of its threads has ended.
Figures with a * tell of the load and not of the back-end: requests were complete before the load
looked for them, and the back-end can do more. A disk that holds nothing (--driver null) shows how
fast the rings are.

What is impossible is found before the first round. When a later round fails, or upon an
interrupt, what was measured so far is printed. Existing FILEs stay as they are until then.

With --console it is a vhost-user console that listens on SOCKET, and HOST is where the other side
of its port is, which the load itself uses: a Unix socket that the port's driver listens on, the
terminal of a pty, or a file to which output is appended (all of it, many GB). The word null means
that nobody sees the output, and the word loop that the driver sends it back; a file of such a name
is ./null. Patterns are output (from the guest to HOST), input, both at once, and echo: the guest
sends a buffer, and waits until HOST has sent it back. A file and null take output only, loop has
both and echo. --block-size is the size of a buffer, also of the guest's receive buffers, and
--depth the number of buffers of output in flight. All bytes are looked at: that something was lost,
doubled or changed is an error, but for a console's output that has not come (LOST), which consoles
drop where nobody is quick enough. --console-port tells which port it is. The flags that are about a
disk do not go with --console. Nobody else must use HOST meanwhile. CPU/MIB is the CPU time of the
back-end's process for a MiB.

Other processes on the same processors, and processors that share a core, disturb. Bind the
back-end and the client to processors of their own with --backend-cpus and --client-cpus. The
back-end's threads are bound for the time of each round, which takes its user's rights or
root's. The kernel's worker threads of its io_uring stay where they are.`,
		Example: `  vdev blk --socket-path /run/vm1.sock --driver null,size=1G
  vdev bench /run/vm1.sock
  vdev bench /run/vm1.sock --versus /run/qsd.sock --client event,poll --backend-cpus 0 --client-cpus 1 \
      --format json --output bench.json --svg bench.svg
  vdev bench /run/scratch.sock --pattern randwrite --overwrite --verify --size 256M
  vdev console --socket-path /run/con.sock --port name=data,driver=socket,path=/run/data.sock
  vdev bench /run/con.sock --console /run/data.sock`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return errors.New("the back-end's socket is missing")
			case len(args) > 1:
				return fmt.Errorf("unexpected argument %q; a second back-end is given with --versus", args[1])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.config(args[0], cmd.Flags().Changed)
			if err != nil {
				return err
			}
			// A pipe that nobody reads any more, or a terminal that goes away, must not leave the
			// back-end bound. SIGPIPE would not tell the pipe from a back-end that has ended.
			signal.Ignore(syscall.SIGPIPE)
			defer signal.Reset(syscall.SIGPIPE)
			ctx, cancel := context.WithCancelCause(cmd.Context())
			defer cancel(nil)
			signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
			if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) has it
				signals = append(signals, syscall.SIGHUP)
			}
			ctx, stop := signal.NotifyContext(ctx, signals...)
			defer stop()
			context.AfterFunc(ctx, stop) // the second signal ends it at once
			if err := c.run(ctx, cmd.OutOrStdout(), watchedWriter{cmd.ErrOrStderr(), cancel}); err != nil {
				return &failure{err}
			}
			return nil
		},
	}
	fs := cmd.Flags()
	fs.SortFlags = false
	f.register(fs)
	completeChoices(cmd, map[string]*spec.Choice{"format": &f.format})
	must(cmd.RegisterFlagCompletionFunc("pattern", cobra.FixedCompletions(patternNames(allPatterns), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("client", cobra.FixedCompletions([]string{clientEvent, clientPoll, clientEvent + "," + clientPoll}, cobra.ShellCompDirectiveNoFileComp)))
	completeNothing(cmd, "block-size", "depth", "queues", "read-percent", "size", "seed", "length", "warmup", "rounds", "client-cpus", "backend-cpus",
		"name", "versus-name", "console-port")
	return cmd
}

// watchedWriter calls gone when nobody reads any more what is written to it.
type watchedWriter struct {
	io.Writer
	gone context.CancelCauseFunc
}

func (w watchedWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		w.gone(err)
	}
	return n, err
}

// allPatterns are those of disks and of consoles.
var allPatterns = slices.Concat(load.Patterns, load.ConsolePatterns)

func patternNames(of []load.Pattern) (names []string) {
	for _, p := range of {
		names = append(names, string(p))
	}
	return names
}

func newBenchFlags() *benchFlags {
	return &benchFlags{
		pattern: severalChoices(patternNames(allPatterns), string(load.RandRead)),
		blockSize: several[int64]{values: []int64{4096}, text: spec.SizeText, kind: "BYTES", parse: func(s string) (int64, error) {
			n, err := spec.ParseSize(s)
			if err != nil || n < 1 || n > load.MaxBlockSize {
				return 0, fmt.Errorf("must be from 1 byte to %s", spec.SizeText(load.MaxBlockSize))
			}
			return n, nil
		}},
		depth:       severalNumbers(1, load.MaxDepth, 1, 32, 128),
		queues:      severalNumbers(1, load.MaxQueues, 1),
		client:      severalChoices([]string{clientEvent, clientPoll}, clientEvent),
		readPercent: spec.Number{Value: 70, Min: 0, Max: 100},
		rounds:      spec.Number{Value: 3, Min: 1, Max: math.MaxInt},
		format:      spec.Choice{Value: "text", Of: []string{"text", "json"}},
	}
}

func (f *benchFlags) register(fs *pflag.FlagSet) {
	fs.Var(&f.pattern, "pattern", "patterns of the load: "+strings.Join(patternNames(load.Patterns), ", ")+
		"; with --console (default all) "+strings.Join(patternNames(load.ConsolePatterns), ", "))
	fs.Var(&f.blockSize, "block-size", "sizes of a request, such as 4K,128K, multiples of 512; with --console (default 128,4K,32K) any")
	fs.Var(&f.depth, "depth", "how many requests are in flight in each queue; with --console (default 64) buffers of output")
	fs.Var(&f.queues, "queues", "how many queues are used, each by a thread of its own")
	fs.Var(&f.client, "client", "how completions are found: event, poll")
	fs.Var(&f.readPercent, "read-percent", "of the requests of rw and randrw, `N` per cent are reads")
	fs.StringVar(&f.size, "size", "", "use only the first `BYTES` of the disk, such as 1G (default all)")
	fs.BoolVar(&f.overwrite, "overwrite", false, "allow what destroys the disk's content: patterns that write, and --verify")
	fs.BoolVar(&f.verify, "verify", false, "write all that is used before each round's load, read it after, and look whether all that is read was written last, which is part of the speed")
	fs.Uint64Var(&f.seed, "seed", 1, "`N` is the seed of the random numbers; every round has the same ones")
	fs.DurationVar(&f.length, "length", 2*time.Second, "measure for `TIME` in a round, such as 10s or 500ms")
	fs.DurationVar(&f.warmup, "warmup", 500*time.Millisecond, "have the load run for `TIME` before that")
	fs.Var(&f.rounds, "rounds", "measure each case `N` times")
	fs.Var(&f.clientCPUs, "client-cpus", "bind the threads of the load to these processors in turn, such as 1 or 2-5")
	fs.Var(&f.backendCPUs, "backend-cpus", "bind the back-end's process, or both, to these processors in each round")
	fs.StringVar(&f.versus, "versus", "", "compare with the back-end that listens on `SOCKET`")
	fs.StringVar(&f.console, "console", "", "it is a console, and `HOST` is the other side of its port: a socket, a terminal, a file, null or loop")
	fs.StringVar(&f.consolePort, "console-port", "", "`PORT` is the name of the console's port, or its number (default 0)")
	fs.StringVar(&f.versusConsole, "versus-console", "", "what --console is, of the back-end of --versus (`HOST`)")
	fs.StringVar(&f.name, "name", "", "call the back-end `NAME` (default by its socket)")
	fs.StringVar(&f.versusName, "versus-name", "", "call the back-end of --versus `NAME` (default by its socket)")
	fs.Var(&f.format, "format", "how the figures are written; json has those of each round, too")
	fs.StringVar(&f.output, "output", "", "write them to `FILE`, and not to the standard output")
	fs.StringVar(&f.svg, "svg", "", "draw bars and latency curves into `FILE`")
}

// config checks what the flags come to together, for the back-end at socket.
func (f *benchFlags) config(socket string, given func(flag string) bool) (benchConfig, error) {
	c := benchConfig{rounds: f.rounds.Value, json: f.format.Value == "json", output: f.output, svg: f.svg}
	base := load.Job{ReadPercent: f.readPercent.Value, CPUs: f.clientCPUs, BackendCPUs: f.backendCPUs, Warmup: f.warmup, Length: f.length,
		Verify: f.verify, Seed: f.seed}
	if given("console") || given("versus-console") {
		if err := f.forConsole(given); err != nil {
			return c, err
		}
	} else if given("console-port") {
		return c, errors.New("--console-port goes with --console")
	}
	for _, p := range f.pattern.values {
		if load.Pattern(p).Console() != given("console") {
			return c, fmt.Errorf("--pattern %s: is %s", p, map[bool]string{true: "a disk's, and not a console's", false: "a console's, which takes --console"}[given("console")])
		}
	}
	for _, n := range f.blockSize.values {
		if !given("console") && n%512 != 0 {
			return c, fmt.Errorf("--block-size %s: must be a multiple of 512 bytes", spec.SizeText(n))
		}
	}
	mixes := func(pattern string) bool { p := load.Pattern(pattern); return p.Reads() && p.Writes() }
	switch {
	case socket == "":
		return c, errors.New("the back-end's socket is missing")
	case len(socket) > spec.MaxSocketPath:
		return c, fmt.Errorf("%s: is %d bytes long, and a socket's path has at most %d", socket, len(socket), spec.MaxSocketPath)
	case len(f.versus) > spec.MaxSocketPath:
		return c, spec.TooLong("versus", f.versus)
	case given("versus") && f.versus == "":
		return c, errors.New("--versus: a path is missing")
	case f.versus != "" && sameFile(fileName(f.versus), fileName(socket)):
		return c, fmt.Errorf("--versus %s: is the same back-end", f.versus)
	case given("versus-name") && f.versus == "":
		return c, errors.New("--versus-name goes with --versus")
	case f.output != "" && f.svg != "" && sameFile(f.output, f.svg):
		return c, fmt.Errorf("--svg %s: is the file of --output", f.svg)
	case f.length <= 0:
		return c, fmt.Errorf("--length %v: must be more than 0", f.length)
	case f.warmup < 0:
		return c, fmt.Errorf("--warmup %v: must not be negative", f.warmup)
	case given("read-percent") && !slices.ContainsFunc(f.pattern.values, mixes):
		return c, fmt.Errorf("--read-percent: pattern %s does not mix reads and writes; rw and randrw do", &f.pattern)
	case f.verify && !f.overwrite:
		return c, errors.New("--verify destroys what is on the disk; --overwrite allows that")
	}
	for _, bound := range []struct {
		flag string
		cpus cpuList
	}{{"client-cpus", f.clientCPUs}, {"backend-cpus", f.backendCPUs}} {
		if err := online(bound.cpus); err != nil {
			return c, fmt.Errorf("--%s %v: %w", bound.flag, &bound.cpus, err)
		}
	}
	if f.size != "" {
		var err error
		if base.Size, err = spec.ParseSize(f.size); err == nil && base.Size == 0 {
			err = fmt.Errorf("size %q: must be more than 0", f.size)
		}
		if err != nil {
			return c, fmt.Errorf("--size: %w", err)
		}
	}
	for _, p := range f.pattern.values {
		if !given("console") && load.Pattern(p).Writes() && !f.overwrite {
			return c, fmt.Errorf("--pattern %s destroys what is on the disk; --overwrite allows that", p)
		}
		for _, size := range f.blockSize.values {
			for _, queues := range f.queues.values {
				for _, client := range f.client.values {
					for _, depth := range f.depth.values {
						j := base
						j.Pattern, j.BlockSize, j.Queues, j.Poll, j.Depth = load.Pattern(p), size, queues, client == clientPoll, depth
						c.jobs = append(c.jobs, j)
					}
				}
			}
		}
	}
	c.targets = append(c.targets, load.Target{Name: f.name, Socket: socket, Port: f.consolePort})
	c.hosts = []string{f.console}
	if f.versus != "" {
		c.targets = append(c.targets, load.Target{Name: f.versusName, Socket: f.versus, Port: f.consolePort})
		c.hosts = append(c.hosts, f.versusConsole)
	}
	if all := c.seconds(); all > time.Duration(math.MaxInt64).Seconds() {
		return c, fmt.Errorf("--rounds %d --length %v: all of it would take %.0f years", c.rounds, f.length, all/(365*24*time.Hour).Seconds())
	}
	nameTargets(c.targets)
	if f.versus != "" && c.targets[0].Name == c.targets[1].Name {
		return c, fmt.Errorf("both back-ends are called %q: --name and --versus-name tell them apart", c.targets[0].Name)
	}
	return c, nil
}

// forConsole checks the flags of a console, and gives those that were not given a console's
// defaults.
func (f *benchFlags) forConsole(given func(flag string) bool) error {
	for _, flag := range []string{"queues", "client", "read-percent", "size", "overwrite", "verify"} {
		if given(flag) {
			return fmt.Errorf("--%s does not go with --console", flag)
		}
	}
	switch {
	case f.console == "":
		return errors.New("--console: the other side of the console's port is missing")
	case given("versus") != given("versus-console"):
		return errors.New("--versus and --versus-console go together, with --console")
	case given("versus") && f.versusConsole == "":
		return errors.New("--versus-console: the other side of the console's port is missing")
	}
	if !given("pattern") {
		f.pattern.values = patternNames(load.ConsolePatterns)
	}
	if !given("block-size") {
		f.blockSize.values = []int64{128, 4 << 10, 32 << 10}
	}
	if !given("depth") {
		f.depth.values = []int{64}
	}
	for _, n := range f.blockSize.values {
		if n > load.MaxBuffer {
			return fmt.Errorf("--block-size %s: a console's buffers have at most %s", spec.SizeText(n), spec.SizeText(load.MaxBuffer))
		}
	}
	for _, n := range f.depth.values {
		if n > load.MaxPortDepth {
			return fmt.Errorf("--depth %d: at most %d buffers of a console are in flight", n, load.MaxPortDepth)
		}
	}
	return nil
}

// seconds is how long all of it takes at least, as far as the back-ends do not matter.
func (c *benchConfig) seconds() float64 {
	return float64(len(c.jobs)) * float64(c.rounds) * float64(len(c.targets)) * (c.jobs[0].Warmup.Seconds() + c.jobs[0].Length.Seconds())
}

// online returns an error where one of cpus is not there. Where the system does not tell,
// load.Check finds out.
func online(cpus cpuList) error {
	text, _ := os.ReadFile("/sys/devices/system/cpu/online")
	there := strings.TrimSpace(string(text))
	var all cpuList
	if all.Set(there) != nil {
		return nil
	}
	for _, cpu := range cpus {
		if !slices.Contains(all, cpu) {
			return fmt.Errorf("processor %d is not there: this machine has %s", cpu, there)
		}
	}
	return nil
}

// nameTargets gives targets without a name that of their socket, and where that would be the other
// one's, too, its path.
func nameTargets(targets []load.Target) {
	names := map[string]int{}
	nameOf := func(t load.Target) string {
		if t.Name != "" {
			return t.Name
		}
		return strings.TrimSuffix(filepath.Base(t.Socket), ".sock")
	}
	for _, t := range targets {
		names[nameOf(t)]++
	}
	for i, t := range targets {
		if names[nameOf(t)] > 1 && t.Name == "" {
			targets[i].Name = t.Socket
		} else {
			targets[i].Name = nameOf(t)
		}
	}
}

// run measures all cases, and writes what came of them, also of those before an error.
func (c *benchConfig) run(ctx context.Context, stdout, stderr io.Writer) (err error) {
	// The files are begun now, so that what is wrong with them is known before everything is
	// measured.
	out, err := createFile(c.output)
	if err != nil {
		return err
	}
	defer out.discard()
	picture, err := createFile(c.svg)
	if err != nil {
		return err
	}
	defer picture.discard()
	r := newBenchReport(c)
	err = c.measure(ctx, r, stderr)
	if err != nil {
		r.Error = oneLine(err)
		if len(r.Cases) == 0 {
			return err
		}
	}
	text := func(w io.Writer) error {
		if c.json {
			return printJSON(w, r)
		}
		return r.text(w)
	}
	// What is lost when the standard output has gone away comes last. A file may be that, too.
	writes := []func() error{
		func() error { return picture.write(r.figure().Write) },
		func() error { return out.write(text) },
	}
	if out == nil {
		writes = append(writes, func() error { return text(stdout) })
	} else if picture.own() {
		slices.Reverse(writes)
	}
	for _, write := range writes {
		err = errors.Join(err, write())
	}
	return err
}

// measure has the report know of each case, and says on stderr how far it is.
func (c *benchConfig) measure(ctx context.Context, r *benchReport, stderr io.Writer) error {
	targets := slices.Clone(c.targets)
	for i := range targets {
		targets[i].Socket = fileName(targets[i].Socket)
		if c.hosts[i] != "" {
			host, err := load.OpenHost(fileName(c.hosts[i]))
			if err != nil {
				return err
			}
			defer host.Close()
			targets[i].Host = host
		}
		pid, err := load.Check(ctx, targets[i], c.jobs)
		if err != nil {
			return err
		}
		r.Targets[i].PID, r.Targets[i].Command = pid, commandOf(pid)
	}
	about := "about"
	if c.jobs[0].Verify { // how long writing and reading takes is the back-end's business
		about = "more than"
	}
	fmt.Fprintf(stderr, "%s, %s, %s: %s %v\n", count(len(c.jobs), "case"), count(c.rounds, "round"), count(len(targets), "back-end"), about,
		time.Duration(c.seconds()*float64(time.Second)).Round(time.Second))
	for i, j := range c.jobs {
		name := newBenchCase(&j)
		results, err := load.Compare(ctx, targets, j, c.rounds, func(target, round int, res load.Result) {
			fmt.Fprintf(stderr, "case %d of %d, round %d of %d: %s, %s: %s\n", i+1, len(c.jobs), round+1, c.rounds, name, targets[target].Name, told(&j, &res))
		})
		if len(results[0]) > 0 {
			r.add(&j, results)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// told says in a word what came of a round.
func told(j *load.Job, r *load.Result) string {
	if j.Pattern.Console() && j.Pattern != load.Echo {
		return fmt.Sprintf("%.0f MB/s", r.BytesPerSecond()/1e6)
	}
	return rate(r.IOPS()) + " IOPS"
}
