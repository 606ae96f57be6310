// Command bench compares vdev with qemu-storage-daemon and with the bare file, side by side in one
// run.
//
// Each back-end serves its disk from one core, to a front-end on another core (package load):
// vhost-user without a virtual machine. fio works on the bare file, on the back-ends' core: the
// limit of what they could do. Rounds are interleaved, and their order turns round, so that what
// drifts on the host weighs on all alike. What counts is the median of the ratios within the
// rounds.
//
// A console's port is measured beside that of QEMU's own virtio-serial (package qtest).
//
// It also measures what idle back-ends use, what a thousand devices, a start and a stop cost
// (scale.go), and whether the tests find allocations. It judges what was measured, and writes a
// document about a whole run.
//
// With nbd, the disk is what one nbdkit has in memory, over a Unix socket. Three processes take
// part, and they may run on any core.
//
// scripts/bench runs it with a QEMU that has what it needs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"vdev/internal/bench/load"
)

type options struct {
	vdev, qsd, fio  string
	qemu            string
	nbdkit, nbdcopy string
	vdevArgs        []string
	sockets         []load.Target
	overwrite       bool // what the sockets' disks hold
	dir             string
	doc             string
	fileMiB         int
	rounds          int // of a case, at least
	maxRounds       int
	seconds         float64
	serverCPU       int
	clientCPU       int

	// What is selected; nil is all.
	targets []string
	ops     []string
	depths  []int
	clients []string
	sizes   []int
}

// length is how long a measurement is.
func (o *options) length() time.Duration { return time.Duration(o.seconds * float64(time.Second)) }

// What can be selected.
var (
	allTargets = []string{"null", "cached", "direct", "sequential", "queues", "mixed", "nbd", "idle", "console", "scale", "allocs"}
	allOps     = []string{"read", "write"}
	allClients = []string{event, poll}
)

// selecting are the options with which not everything is measured.
var selecting = []string{"targets", "ops", "depths", "clients", "sizes", "quick"}

func main() {
	signals := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as nohup(1) has it
		signals = append(signals, syscall.SIGHUP)
	}
	ctx, stop := signal.NotifyContext(context.Background(), signals...)
	context.AfterFunc(ctx, stop) // the second one ends it at once
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err == nil {
		err = bench(ctx, o, os.Stdout)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

// parse reads the command line. Where that asks for help, it prints that and returns flag.ErrHelp.
func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(io.Discard) // an error is said once, by the caller
	f.StringVar(&o.vdev, "vdev", "", "the vdev to measure (`path`)")
	f.StringVar(&o.qsd, "qsd", "qemu-storage-daemon", "qemu-storage-daemon to measure it against (`command`)")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU, for its own virtio-serial (`command`)")
	f.StringVar(&o.fio, "fio", "fio", "fio, for the bare file (`command`)")
	f.StringVar(&o.nbdkit, "nbdkit", "nbdkit", "nbdkit, for nbd (`command`)")
	f.StringVar(&o.nbdcopy, "nbdcopy", "nbdcopy", "nbdcopy, for nbd (`command`)")
	f.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for the image files: on a disk, and not in memory")
	f.StringVar(&o.doc, "doc", "", "write the document to this `file`, and pictures beside it; everything must be measured then")
	f.IntVar(&o.fileMiB, "file-mib", 256, "size of the image files in `MiB`; one is held in memory")
	f.IntVar(&o.rounds, "rounds", 5, "rounds of each case, at least; without -max-rounds it has no more")
	f.IntVar(&o.maxRounds, "max-rounds", 13, "rounds of a case, at most: it ends when it is known well enough how vdev's requests per second stand to each other's")
	f.Float64Var(&o.seconds, "seconds", 0.3, "length of one measurement")
	f.IntVar(&o.serverCPU, "server-cpu", 0, "core of the back-ends, and of fio")
	f.IntVar(&o.clientCPU, "client-cpu", 1, "core of the front-end")
	f.Func("vdev-args", "more `arguments` for vdev, separated by spaces", func(s string) error {
		o.vdevArgs = strings.Fields(s)
		return nil
	})
	f.Func("socket", "measure what listens at a socket, too, but for nbd: `NAME=PATH`; can be given again; takes -overwrite, or -ops read", func(s string) error {
		name, path, ok := strings.Cut(s, "=")
		if !ok || name == "" || path == "" {
			return errors.New("must be NAME=PATH")
		}
		if slices.Contains(known, name) {
			return fmt.Errorf("the name %q is taken", name)
		}
		for _, t := range o.sockets {
			if t.Name == name || t.Socket == path {
				return fmt.Errorf("%s=%s is there already", t.Name, t.Socket)
			}
		}
		o.sockets = append(o.sockets, load.Target{Name: name, Socket: path})
		return nil
	})
	f.BoolVar(&o.overwrite, "overwrite", false, "write to the disks behind -socket: WHAT THEY HOLD IS LOST")
	quick := f.Bool("quick", false, "the cases that say most, five short rounds of each: some minutes")
	f.Func("targets", "only these of "+strings.Join(allTargets, ","), wordsOf(&o.targets, allTargets))
	f.Func("ops", "only these of "+strings.Join(allOps, ","), wordsOf(&o.ops, allOps))
	f.Func("clients", "only these of "+strings.Join(allClients, ","), wordsOf(&o.clients, allClients))
	f.Func("depths", "these queue `depths` in place of each target's own", numbersOf(&o.depths, 1, load.MaxDepth))
	f.Func("sizes", "requests of these `sizes` in bytes in place of each target's own", numbersOf(&o.sizes, 512, load.MaxBlockSize))
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			f.SetOutput(os.Stdout)
			f.Usage()
		}
		return o, err
	}
	given := map[string]bool{}
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if *quick {
		for name, set := range map[string]func(){
			"max-rounds": func() { o.maxRounds = o.rounds },
			"seconds":    func() { o.seconds = 0.2 },
			"targets":    func() { o.targets = []string{"null", "cached", "direct", "idle"} },
			"depths":     func() { o.depths = []int{1, 32} },
		} {
			if !given[name] {
				set()
			}
		}
	}
	if given["rounds"] && !given["max-rounds"] {
		o.maxRounds = o.rounds
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.vdev == "":
		return o, errors.New("-vdev is missing")
	case o.rounds < 1 || o.seconds <= 0 || o.fileMiB < 1:
		return o, errors.New("-rounds, -seconds and -file-mib must be more than 0")
	case o.maxRounds < o.rounds:
		return o, fmt.Errorf("-max-rounds %d: -rounds, which is the least, is %d", o.maxRounds, o.rounds)
	case o.doc != "" && o.rounds < enough:
		return o, fmt.Errorf("-doc: fewer than %d rounds do not say how well the figures are known", enough)
	case o.serverCPU == o.clientCPU || min(o.serverCPU, o.clientCPU) < 0 || max(o.serverCPU, o.clientCPU) >= runtime.NumCPU():
		return o, fmt.Errorf("back-end and front-end need a core each, and this machine has %d (-server-cpu %d, -client-cpu %d)",
			runtime.NumCPU(), o.serverCPU, o.clientCPU)
	}
	for _, name := range selecting {
		if o.doc != "" && given[name] {
			return o, fmt.Errorf("-doc: the document has everything, and -%s leaves something out", name)
		}
	}
	return o, checkSockets(o)
}

// checkSockets looks whether the disks behind -socket would be written to unasked, and whether they
// take part at all.
func checkSockets(o options) error {
	for _, t := range o.sockets {
		part := false
		for _, p := range plans(o) {
			part = part || slices.Contains(p.With, t.Name)
			if p.Disk != nbd && p.Job.Pattern.Writes() && !o.overwrite && !onlyReads(o) {
				return fmt.Errorf("-socket %s: its disk would be written to (%s), and what it holds lost; allow it with -overwrite, or leave it out with -ops read", t.Name, p.name())
			}
		}
		if !part && !selected(o.targets, "idle") {
			return fmt.Errorf("-socket %s: has no part in anything that is selected", t.Name)
		}
	}
	return nil
}

// onlyReads tells whether nothing is to be written, where that can be left out.
func onlyReads(o options) bool { return slices.Equal(o.ops, []string{"read"}) }

func wordsOf(to *[]string, all []string) func(string) error {
	return func(list string) error {
		for w := range strings.SplitSeq(list, ",") {
			if !slices.Contains(all, w) {
				return fmt.Errorf("%q must be one of %s", w, strings.Join(all, ", "))
			}
			if slices.Contains(*to, w) {
				return fmt.Errorf("%q is there twice", w)
			}
			*to = append(*to, w)
		}
		return nil
	}
}

// numbersOf reads a list of multiples of unit, up to most.
func numbersOf(to *[]int, unit, most int) func(string) error {
	return func(list string) error {
		for w := range strings.SplitSeq(list, ",") {
			n, err := strconv.Atoi(w)
			if err != nil || n < unit || n > most || n%unit != 0 {
				return fmt.Errorf("%q must be a multiple of %d, at most %d", w, unit, most)
			}
			if slices.Contains(*to, n) {
				return fmt.Errorf("%q is there twice", w)
			}
			*to = append(*to, n)
		}
		return nil
	}
}

// selected tells whether name is to be measured.
func selected(list []string, name string) bool { return list == nil || slices.Contains(list, name) }

// bench measures what is selected, and tells out of each case at once. What it starts and makes is
// gone when it returns. After an error it tells which bars were met until then.
func bench(ctx context.Context, o options, out io.Writer) (err error) {
	folder, err := newFolder(o.dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, folder.remove()) }()
	r := &report{Machine: describe(ctx, o), Options: o, Begun: time.Now()}
	r.Machine.print(out)
	err = r.measure(ctx, folder.path, out)
	r.Took = time.Since(r.Begun)
	r.printBars(out)
	if err != nil || o.doc == "" {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(o.doc), 0o755); err != nil {
		return err
	}
	return r.write(o.doc)
}

// measure measures what is selected. What was measured before an error stays.
func (r *report) measure(ctx context.Context, dir string, out io.Writer) error {
	s := &suite{o: r.Options, dir: dir, out: out}
	err := s.run(ctx)
	r.Cases, r.Idle, r.Commands = s.cases, s.idle, s.commands
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(out, format, args...) }
	if selected(r.Options.targets, "console") {
		part, bars, err := consolePart(ctx, r.Options, dir, say)
		r.MoreBars = append(r.MoreBars, bars...)
		if err != nil {
			return err
		}
		r.Scale = append(r.Scale, part)
	}
	if selected(r.Options.targets, "scale") {
		parts, bars, err := scaleSections(ctx, r.Options, dir, say)
		r.Scale, r.MoreBars = append(r.Scale, parts...), append(r.MoreBars, bars...)
		if err != nil {
			return err
		}
	}
	if selected(r.Options.targets, "allocs") {
		b, err := checkAllocs(ctx)
		if err != nil {
			return err
		}
		r.MoreBars = append(r.MoreBars, b)
	}
	return nil
}
