// Command bench compares vdev with qemu-storage-daemon, side by side in one run.
//
// Both serve the same kind of disk, pinned to one core, to `qemu-img bench` on another core, over vhost-user-blk
// without a virtual machine. Rounds are interleaved, and the order within a round alternates, so that what drifts
// on the host weighs on both alike. What counts is the ratio of the medians, and beside it the median of the
// ratios within each round.
//
// The target nbd is what one nbdkit has in memory, over a Unix socket, for both. Since three processes take part, none is
// pinned there. Beside it stands what nbdcopy makes of the same reads, without a vhost-user device in between.
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
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// sizesOf says how large the requests are where nobody has said it.
var sizesOf = map[string][]int{"null": {4 << 10}, "file": {4 << 10}, "nbd": {4 << 10, 64 << 10, 128 << 10, 1 << 20}}

// nbdBytes is the size of the target nbd.
const nbdBytes = 64 << 20

type options struct {
	vdev, qsd, qemuImg string
	nbdkit, nbdcopy    string
	dir                string
	fileMiB            int
	rounds             int
	seconds            float64
	depths             []int
	sizes              []int
	ops                []string
	targets            []string
	serverCPU          int
	clientCPU          int
	qsdAIO             string
	qsdIOThread        bool
	vdevArgs           []string
	least              float64
}

func main() {
	var o options
	var depths, sizes, ops, targets, vdevArgs string
	flag.StringVar(&o.vdev, "vdev", "", "the vdev to measure (`path`)")
	flag.StringVar(&o.qsd, "qsd", "qemu-storage-daemon", "qemu-storage-daemon to measure it against (`command`)")
	flag.StringVar(&o.qemuImg, "qemu-img", "qemu-img", "a qemu-img that has the driver virtio-blk-vhost-user (`command`)")
	flag.StringVar(&o.nbdkit, "nbdkit", "nbdkit", "nbdkit for the target nbd (`command`)")
	flag.StringVar(&o.nbdcopy, "nbdcopy", "nbdcopy", "nbdcopy to measure beside, where there is one (`command`)")
	flag.StringVar(&o.dir, "dir", os.TempDir(), "`folder` for the image files")
	flag.IntVar(&o.fileMiB, "file-mib", 256, "size of each image file in MiB; two are held in memory")
	flag.IntVar(&o.rounds, "rounds", 7, "rounds for each case")
	flag.Float64Var(&o.seconds, "seconds", 1, "length of one measurement, about")
	flag.StringVar(&depths, "depths", "1,32,128", "queue depths")
	flag.StringVar(&sizes, "sizes", "", "sizes of the requests in bytes; none: 4096, and for nbd 4096 to 1 MiB")
	flag.StringVar(&ops, "ops", "read,write", "operations")
	flag.StringVar(&targets, "targets", "null,file", "what is served: null, file, nbd")
	flag.IntVar(&o.serverCPU, "server-cpu", 0, "core of the back-end")
	flag.IntVar(&o.clientCPU, "client-cpu", 1, "core of the client")
	flag.StringVar(&o.qsdAIO, "qsd-aio", "io_uring", "how qemu-storage-daemon does file I/O: io_uring or threads")
	flag.BoolVar(&o.qsdIOThread, "qsd-iothread", true, "give qemu-storage-daemon's export an iothread, which polls as vdev does")
	flag.StringVar(&vdevArgs, "vdev-args", "", "more `arguments` for vdev, separated by spaces")
	flag.Float64Var(&o.least, "least", 0, "fail where a ratio of medians is below this")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := func() error {
		if flag.NArg() > 0 {
			return fmt.Errorf("unexpected argument %q", flag.Arg(0))
		}
		o.vdevArgs = strings.Fields(vdevArgs)
		var err error
		if o.depths, err = numbers(depths); err != nil {
			return fmt.Errorf("-depths %s: %w", depths, err)
		}
		if sizes != "" {
			if o.sizes, err = numbers(sizes); err != nil {
				return fmt.Errorf("-sizes %s: %w", sizes, err)
			}
		}
		if o.ops, err = words(ops, "read", "write"); err != nil {
			return fmt.Errorf("-ops %s: %w", ops, err)
		}
		if o.targets, err = words(targets, "null", "file", "nbd"); err != nil {
			return fmt.Errorf("-targets %s: %w", targets, err)
		}
		return bench(ctx, o, os.Stdout)
	}()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func numbers(list string) ([]int, error) {
	var ns []int
	for f := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(f)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q must be a number, 1 or more", f)
		}
		ns = append(ns, n)
	}
	return ns, nil
}

func words(list string, known ...string) ([]string, error) {
	ws := strings.Split(list, ",")
	for _, w := range ws {
		if !slices.Contains(known, w) {
			return nil, fmt.Errorf("%q must be one of %s", w, strings.Join(known, ", "))
		}
	}
	return ws, nil
}

// bench runs every case and prints what it measured to w.
func bench(ctx context.Context, o options, w io.Writer) (err error) {
	switch {
	case o.vdev == "":
		return errors.New("-vdev is missing")
	case o.rounds < 1 || o.seconds <= 0 || o.fileMiB < 1:
		return errors.New("-rounds, -seconds and -file-mib must be more than 0")
	case o.serverCPU == o.clientCPU || max(o.serverCPU, o.clientCPU) >= runtime.NumCPU():
		return fmt.Errorf("back-end and client need a core each, and this machine has %d (-server-cpu %d, -client-cpu %d)", runtime.NumCPU(), o.serverCPU, o.clientCPU)
	}
	dir, err := os.MkdirTemp(o.dir, "vdev-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	describe(ctx, o, w)

	var results []*result
	for _, target := range o.targets {
		rs, err := benchTarget(ctx, o, w, dir, target)
		if err != nil {
			return err
		}
		results = append(results, rs...)
	}
	return report(w, results, o.least)
}

// describe prints what a reader must know to judge the figures.
func describe(ctx context.Context, o options, w io.Writer) {
	for _, c := range [][]string{{o.vdev, "version"}, {o.qsd, "--version"}, {o.qemuImg, "--version"}, {"uname", "-srm"}} {
		out, err := exec.CommandContext(ctx, c[0], c[1:]...).Output()
		first, _, _ := strings.Cut(string(out), "\n")
		if err != nil {
			first = fmt.Sprintf("%s: %v", strings.Join(c, " "), err)
		}
		fmt.Fprintf(w, "# %s\n", first)
	}
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(w, "# load average %s", load)
	}
	fmt.Fprintf(w, "# back-end on core %d, client on core %d (nbd: none pinned); %d rounds of about %gs; one queue; file aio=%s cache.direct=off, iothread %v\n",
		o.serverCPU, o.clientCPU, o.rounds, o.seconds, o.qsdAIO, o.qsdIOThread)
}

// backend is a server under test.
type backend struct {
	name   string
	socket string
	cmd    *exec.Cmd
	exited chan error
}

// benchTarget measures both back-ends with one kind of disk.
func benchTarget(ctx context.Context, o options, w io.Writer, dir, target string) (_ []*result, err error) {
	const nullSize = 1 << 30
	vdevArgs := []string{"blk", "--num-queues", "1", "--log-level", "warn"}
	node := fmt.Sprintf("driver=null-co,node-name=disk,size=%d,read-zeroes=off", nullSize)
	switch target {
	case "null":
		vdevArgs = append(vdevArgs, "--driver", fmt.Sprintf("null,size=%d", nullSize))
	case "nbd":
		server, err := startServer(ctx, o, filepath.Join(dir, "nbd.sock"))
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, server.stop()) }()
		vdevArgs = append(vdevArgs, "--driver", "nbd,uri="+server.uri())
		node = "driver=nbd,node-name=disk,server.type=unix,server.path=" + server.socket
		o.serverCPU, o.clientCPU = -1, -1
	default:
		images := [2]string{filepath.Join(dir, "vdev.img"), filepath.Join(dir, "qsd.img")}
		for _, image := range images {
			held, err := newHeldFile(image, int64(o.fileMiB)<<20)
			if err != nil {
				return nil, err
			}
			defer func() { err = errors.Join(err, held.Close()) }()
		}
		vdevArgs = append(vdevArgs, "--blk-file", images[0])
		node = fmt.Sprintf("driver=file,node-name=disk,filename=%s,aio=%s,cache.direct=off", images[1], o.qsdAIO)
	}

	sockets := [2]string{filepath.Join(dir, "vdev.sock"), filepath.Join(dir, "qsd.sock")}
	qsdArgs := []string{"--blockdev", node}
	export := "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,addr.type=unix,addr.path=" + sockets[1]
	if o.qsdIOThread {
		qsdArgs = append(qsdArgs, "--object", "iothread,id=io")
		export += ",iothread=io"
	}
	qsdArgs = append(qsdArgs, "--export", export)
	vdevArgs = append(append(vdevArgs, "--socket-path", sockets[0]), o.vdevArgs...)

	var both [2]*backend
	for i, c := range [2]struct {
		name, command string
		args          []string
	}{{"vdev", o.vdev, vdevArgs}, {"qsd", o.qsd, qsdArgs}} {
		b, err := startBackend(ctx, o.serverCPU, c.name, sockets[i], c.command, c.args)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, b.stop()) }()
		both[i] = b
	}

	var third func(load) (float64, error)
	if target == "nbd" {
		if command, err := exec.LookPath(o.nbdcopy); err == nil {
			third = func(l load) (float64, error) { return runCopy(ctx, command, dir, l) }
		}
	}
	sizes := o.sizes
	if sizes == nil {
		sizes = sizesOf[target]
	}
	var results []*result
	for _, op := range o.ops {
		for _, size := range sizes {
			for _, depth := range o.depths {
				l := load{op: op, size: size, depth: depth}
				r, err := benchCase(ctx, o, w, both, fmt.Sprintf("%s %s %dk depth %d", target, op, size>>10, depth), l, third)
				if err != nil {
					return nil, err
				}
				results = append(results, r)
			}
		}
	}
	return results, nil
}

// load is what a client does.
type load struct {
	op          string
	size, depth int
	count       int // of requests
}

// startServer starts an nbdkit whose disk is all there.
func startServer(ctx context.Context, o options, socket string) (*backend, error) {
	b, err := startBackend(ctx, -1, "nbdkit", socket, o.nbdkit, []string{"--foreground", "--unix", socket, "memory", strconv.Itoa(nbdBytes)})
	if err != nil {
		return nil, err
	}
	fill := exec.CommandContext(ctx, o.qemuImg, "bench", "-w", "--pattern=85", "-f", "raw", "-c", strconv.Itoa(nbdBytes>>20), "-s", "1M", b.uri())
	if out, err := fill.CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: %s", fill, err, out), b.stop())
	}
	return b, nil
}

// uri is where an NBD server listens.
func (b *backend) uri() string { return "nbd+unix:///?socket=" + b.socket }

// runCopy reads the target nbd once with nbdcopy, and returns requests per second. It cannot be asked for more or less than that.
func runCopy(ctx context.Context, command, dir string, l load) (float64, error) {
	if l.op != "read" {
		return 0, nil
	}
	cmd := exec.CommandContext(ctx, command, "--no-extents", "--connections=1", fmt.Sprintf("--requests=%d", l.depth),
		fmt.Sprintf("--queue-size=%d", max(l.depth*l.size, 1<<20)), fmt.Sprintf("--request-size=%d", l.size),
		(&backend{socket: filepath.Join(dir, "nbd.sock")}).uri(), "null:")
	begun := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(string(out)))
	}
	return nbdBytes / float64(l.size) / time.Since(begun).Seconds(), nil
}

// benchCase runs all rounds of one case. Both back-ends get the same number of requests. third, where it is not nil, is measured in
// each round, too; it gives 0 where it cannot do that.
func benchCase(ctx context.Context, o options, w io.Writer, both [2]*backend, name string, l load, third func(load) (float64, error)) (*result, error) {
	// The first run of each warms it up and tells how many requests make the wanted length.
	l.count = max(2000*min(l.depth, 8)*4096/l.size, 2*l.depth)
	slowest := 0.0
	for _, b := range both {
		iops, err := run(ctx, o, b, l)
		if err != nil {
			return nil, err
		}
		if slowest == 0 || iops < slowest {
			slowest = iops
		}
	}
	l.count = max(int(slowest*o.seconds), 10*l.depth)
	r := &result{name: name}
	for round := range o.rounds {
		order := [2]int{0, 1}
		if round%2 == 1 {
			order = [2]int{1, 0}
		}
		var got [2]float64
		for _, i := range order {
			iops, err := run(ctx, o, both[i], l)
			if err != nil {
				return nil, err
			}
			got[i] = iops
		}
		r.vdev = append(r.vdev, got[0])
		r.qsd = append(r.qsd, got[1])
		fmt.Fprintf(w, "%-30s round %d  vdev %9.0f/s  qsd %9.0f/s  ratio %.3f", name, round+1, got[0], got[1], got[0]/got[1])
		if third != nil {
			iops, err := third(l)
			if err != nil {
				return nil, err
			}
			if iops > 0 {
				r.third = append(r.third, iops)
				fmt.Fprintf(w, "  nbdcopy %9.0f/s", iops)
			}
		}
		fmt.Fprintln(w)
	}
	return r, nil
}

// run makes one measurement and returns requests per second.
func run(ctx context.Context, o options, b *backend, l load) (float64, error) {
	args := []string{"bench", "-c", strconv.Itoa(l.count), "-d", strconv.Itoa(l.depth), "-s", strconv.Itoa(l.size)}
	if l.op == "write" {
		args = append(args, "-w")
	}
	args = append(args, "--image-opts", "driver=virtio-blk-vhost-user,cache.direct=on,path="+b.socket)
	cmd := pinned(ctx, o.clientCPU, o.qemuImg, args)
	out, err := cmd.CombinedOutput()
	if err != nil {
		select {
		case exit := <-b.exited:
			b.exited <- exit
			return 0, fmt.Errorf("%s ended during %s: %w", b.name, cmd, exit)
		default:
		}
		return 0, fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(string(out)))
	}
	seconds, err := parseRun(string(out))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", cmd, err)
	}
	return float64(l.count) / seconds, nil
}

// parseRun finds the duration in seconds in the output of qemu-img bench.
func parseRun(out string) (float64, error) {
	const before, after = "Run completed in ", " seconds"
	_, rest, ok := strings.Cut(out, before)
	number, _, ok2 := strings.Cut(rest, after)
	seconds, err := strconv.ParseFloat(number, 64)
	if !ok || !ok2 || err != nil || seconds <= 0 {
		return 0, fmt.Errorf("no duration in its output %q", out)
	}
	return seconds, nil
}

// pinned returns a command that runs on one core, or on any where cpu is negative.
func pinned(ctx context.Context, cpu int, command string, args []string) *exec.Cmd {
	if cpu < 0 {
		return endable(exec.CommandContext(ctx, command, args...))
	}
	return endable(exec.CommandContext(ctx, "taskset", append([]string{"-c", strconv.Itoa(cpu), command}, args...)...))
}

// endable makes the end of a command's context a request to end.
func endable(cmd *exec.Cmd) *exec.Cmd {
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// startBackend starts a server and waits until its socket is there.
func startBackend(ctx context.Context, cpu int, name, socket, command string, args []string) (*backend, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	b := &backend{name: name, socket: socket, cmd: pinned(ctx, cpu, command, args), exited: make(chan error, 1)}
	b.cmd.Stderr = os.Stderr
	if err := b.cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	go func() { b.exited <- b.cmd.Wait() }()
	deadline := time.After(20 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			return b, nil
		}
		select {
		case err := <-b.exited:
			return nil, fmt.Errorf("%s ended at its start: %w (%s)", name, err, b.cmd)
		case <-deadline:
			return nil, errors.Join(fmt.Errorf("%s has made no socket (%s)", name, b.cmd), b.stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// stop ends the server and waits for it.
func (b *backend) stop() error {
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-b.exited:
	case <-time.After(10 * time.Second):
		err := fmt.Errorf("%s did not end on SIGTERM", b.name)
		return errors.Join(err, b.cmd.Process.Kill())
	}
	return nil
}
