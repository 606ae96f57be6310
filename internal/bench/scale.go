package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdev/internal/bench/scale"
)

const (
	manyDevices = 1000
	busyTime    = 3 * time.Second
	// manyBar is the most memory that manyDevices idle devices may take beyond their guests', in
	// bytes.
	manyBar = 100 << 20
	// fairBar is the most that the device which got most may have of what the one got that got
	// least.
	fairBar = 1.5

	startRounds = 31
	stopRounds  = 5 // of stops
	stops       = 40
	terabyte    = 1 << 40
)

// scaleSections measures what needs many devices, or a whole start or stop, and tells of each case
// at once. dir is an empty folder. With an error it returns the bars of what was measured before.
func scaleSections(ctx context.Context, o options, dir string, say func(format string, args ...any)) ([]section, []bar, error) {
	r := &scaleRun{o: o, dir: dir, say: say, c: scale.Config{VDev: o.vdev, Dir: dir, ServerCPU: o.serverCPU, ClientCPU: o.clientCPU}}
	if err := r.makeBackends(); err != nil {
		return nil, nil, err
	}
	var sections []section
	for _, part := range []func(context.Context) (section, error){r.idle, r.busy, r.stop, r.start, r.huge} {
		// What it starts has ended when it returns, so that it counts with this process. Some of it
		// is not bound to a core.
		var s section
		spare, before := tries, len(r.bars)
		seen, err := watch{}.undisturbed(&spare, func() (err error) {
			r.bars = r.bars[:before]
			if s, err = part(ctx); err == nil {
				err = context.Cause(ctx)
			}
			return err
		})
		if err != nil {
			return sections, r.bars[:before], err
		}
		if s.Seen = seen; seen.disturbed() {
			r.say("%s%s\n", s.Title, seen.mark())
		}
		for i := range r.bars[before:] {
			b := &r.bars[before+i]
			b.Disturbed = seen.disturbed()
			b.Measured += seen.mark()
		}
		sections = append(sections, s)
	}
	return sections, r.bars, nil
}

type scaleRun struct {
	o        options
	c        scale.Config
	dir      string
	say      func(format string, args ...any)
	backends []backend
	bars     []bar
}

func mib(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }

func (r *scaleRun) idle(ctx context.Context) (section, error) {
	s := section{Title: fmt.Sprintf("%d idle devices in one process", manyDevices),
		Intro: fmt.Sprintf(`Each has a front-end, guest memory and a ring that runs, and has read once. CPU is that of %v, from one second after the last
request on. Memory is what nobody else maps (Private_Clean and Private_Dirty in smaps_rollup), which leaves guest memory out and
has what is loaded of the program; anonymous is heap and stacks alone.`, idleTime),
		Header: []string{"CPU, ms", "memory", "of it anonymous", "for each further device", "descriptors", "threads"}}
	i, err := scale.MeasureIdle(ctx, r.c, "null,size=1G", manyDevices, idleTime)
	if err != nil {
		return s, fmt.Errorf("%d idle devices: %w", manyDevices, err)
	}
	r.say("%d idle devices: %.1f ms of CPU in %v, %s, %d bytes for each\n", manyDevices, ms(i.CPU), idleTime, mib(i.Private), i.PerDevice)
	s.Rows = [][]string{{fmt.Sprintf("%.1f", ms(i.CPU)), mib(i.Private), mib(i.Anonymous), fmt.Sprintf("%.1f KiB", float64(i.PerDevice)/1024),
		strconv.Itoa(i.Descriptors), strconv.Itoa(i.Threads)}}
	what := fmt.Sprintf("%d idle devices, ", manyDevices)
	r.bars = append(r.bars,
		bar{What: what + fmt.Sprintf("CPU in %v", idleTime), Needed: fmt.Sprintf("≤ %.0f ms", ms(idleBar)), Measured: fmt.Sprintf("%.1f ms", ms(i.CPU)), Met: i.CPU <= idleBar},
		bar{What: what + "memory beyond the guests'", Needed: "≤ " + mib(manyBar), Measured: mib(i.Private), Met: i.Private <= manyBar})
	return s, nil
}

func (r *scaleRun) busy(ctx context.Context) (section, error) {
	s := section{Title: fmt.Sprintf("%d busy devices in one process", manyDevices),
		Intro: fmt.Sprintf(`Null, reads of 4 KiB in %v, by one polling thread that looks at all guests in turn. All devices have one request in flight, but for
the first, which has as many as is said.`, busyTime),
		Header: []string{"depth of the first", "IOPS of all", "requests of the first", "of the others: least", "median", "most", "most / least"}}
	for _, depth := range []int{1, 128} {
		b, err := scale.MeasureBusy(ctx, r.c, "null,size=1G", manyDevices, depth, busyTime)
		if err != nil {
			return s, fmt.Errorf("%d busy devices: %w", manyDevices, err)
		}
		ratio := float64(b.Most) / float64(b.Least)
		r.say("%d busy devices, the first with depth %d: %.0f IOPS; first %d, others %d to %d\n", manyDevices, depth, b.IOPS, b.First, b.Least, b.Most)
		s.Rows = append(s.Rows, []string{strconv.Itoa(depth), number(b.IOPS), fmt.Sprint(b.First), fmt.Sprint(b.Least), fmt.Sprint(b.Median),
			fmt.Sprint(b.Most), fmt.Sprintf("%.2f", ratio)})
		r.bars = append(r.bars, bar{What: fmt.Sprintf("%d busy devices, the first with depth %d: most / least of the others", manyDevices, depth),
			Needed: fmt.Sprintf("≤ %.1f", fairBar), Measured: fmt.Sprintf("%.2f", ratio), Met: ratio <= fairBar})
	}
	return s, nil
}

// backend is one that inherits its socket.
type backend struct {
	name, disk string
	command    []string
}

// makeBackends says whose start and stop are measured: vdev and qemu-storage-daemon, and vdev alone
// with md, which the other has not.
func (r *scaleRun) makeBackends() error {
	file := filepath.Join(r.dir, "image")
	f, err := newImage(file, 16<<20)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	vdev := func(driver string) []string {
		return []string{r.o.vdev, "blk", "--fd", "3", "--driver", driver, "--log-level", "warn"}
	}
	daemon := unwrapped(r.o.qsd)
	qsd := func(node string) []string {
		return slices.Concat(daemon, []string{"--blockdev", node + ",node-name=disk", "--object", "iothread,id=io",
			"--export", "type=vhost-user-blk,id=export,node-name=disk,writable=on,iothread=io,addr.type=fd,addr.str=3"})
	}
	r.backends = []backend{
		{"vdev", null, vdev("null,size=1G")},
		{"q-s-d", null, qsd("driver=null-co,read-zeroes=off,size=1073741824")},
		{"vdev", cached, vdev("vnd,file=" + file)},
		{"q-s-d", cached, qsd("driver=file,aio=io_uring,filename=" + file)},
		{"vdev", "md", vdev("md,size=16M")},
	}
	return nil
}

// unwrapped gives the command that the script which setup makes for QEMU's programs comes to: how
// long the script itself takes is nobody's start.
func unwrapped(command string) []string {
	path, err := exec.LookPath(command)
	if err != nil {
		return []string{command}
	}
	root := filepath.Dir(filepath.Dir(path))
	linker := filepath.Join(root, "usr/bin/ld.so")
	if _, err := os.Stat(linker); err != nil {
		return []string{command}
	}
	var libs []string
	for _, pattern := range []string{"usr/lib/*-linux-gnu", "usr/lib/*-linux-gnu/ceph", "lib/*-linux-gnu"} {
		dirs, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are right
		libs = append(libs, dirs...)
	}
	return []string{linker, "--library-path", strings.Join(libs, ":"), filepath.Join(root, "usr/bin", filepath.Base(path))}
}

// spread is the median of times, and the least and the greatest.
func spread(times []time.Duration) string {
	slices.Sort(times)
	return fmt.Sprintf("%.2f (%.2f to %.2f)", ms(times[len(times)/2]), ms(times[0]), ms(times[len(times)-1]))
}

func (r *scaleRun) start(ctx context.Context) (section, error) {
	s := section{Title: "From the start to the first byte",
		Intro: fmt.Sprintf(`From before the process is made until a front-end, which waits in the socket's queue, has its first block of 4 KiB: milliseconds, median,
least and greatest of %d starts, turn about. No process is bound to a core.`, startRounds),
		Header: []string{"disk", "back-end", "ms"}}
	took := make([][]time.Duration, len(r.backends))
	for range startRounds {
		for i, b := range r.backends {
			d, err := scale.MeasureStart(ctx, r.c, b.command)
			if err = errors.Join(err, context.Cause(ctx)); err != nil {
				return s, fmt.Errorf("start of %s, %s: %w", b.name, b.disk, err)
			}
			took[i] = append(took[i], d)
		}
	}
	for i, b := range r.backends {
		s.Rows = append(s.Rows, []string{b.disk, b.name, spread(took[i])})
		r.say("start to first byte, %s: %s %s ms\n", b.disk, b.name, spread(took[i]))
	}
	return s, nil
}

func (r *scaleRun) stop(ctx context.Context) (section, error) {
	s := section{Title: "Stop",
		Intro: fmt.Sprintf(`How long the front-end waits from SET_VRING_ENABLE 0 to the answer to GET_VRING_BASE: milliseconds, median, least and greatest of %d
stops, turn about. What is in flight at depth 128 are reads of 4 KiB. q-s-d's answer does not mean that they have ended. Below, %d
devices of one vdev are stopped at once; the time is from the first message to the answer for the median device, for the 99th
percentile and for the last.`, stopRounds*stops, manyDevices),
		Header: []string{"disk", "back-end", "idle, ms", "depth 128, ms"}}
	depths := []int{0, 128}
	took := make([][2][]time.Duration, len(r.backends))
	for range stopRounds {
		for i, b := range r.backends {
			for at, depth := range depths {
				d, err := scale.MeasureStop(ctx, r.c, b.command, depth, stops)
				if err = errors.Join(err, context.Cause(ctx)); err != nil {
					return s, fmt.Errorf("stop of %s, %s, depth %d: %w", b.name, b.disk, depth, err)
				}
				took[i][at] = append(took[i][at], d...)
			}
		}
	}
	for i, b := range r.backends {
		s.Rows = append(s.Rows, []string{b.disk, b.name, spread(took[i][0]), spread(took[i][1])})
		r.say("stop, %s: %s idle %s ms, at depth 128 %s ms\n", b.disk, b.name, spread(took[i][0]), spread(took[i][1]))
	}
	row := []string{fmt.Sprintf("null, %d devices at once", manyDevices), "vdev"}
	for _, depth := range []int{0, 8} {
		d, err := scale.MeasureStopAll(ctx, r.c, "null,size=1G", manyDevices, depth)
		if err != nil {
			return s, fmt.Errorf("stop of %d devices: %w", manyDevices, err)
		}
		text := fmt.Sprintf("%.0f, %.0f, %.0f", ms(d[len(d)/2]), ms(d[len(d)*99/100]), ms(d[len(d)-1]))
		if depth > 0 {
			text += fmt.Sprintf(" (depth %d)", depth)
		}
		row = append(row, text)
		r.say("stop of %d devices at once, depth %d: %s ms\n", manyDevices, depth, text)
	}
	s.Rows = append(s.Rows, row)
	return s, nil
}

func (r *scaleRun) huge(ctx context.Context) (section, error) {
	s := section{Title: "A terabyte of guest memory", Intro: "A sparse memory file of 1 TiB is sent as one region (ADD_MEM_REG).",
		Header: []string{"until the answer, ms", "memory that the back-end has more"}}
	h, err := scale.MeasureHuge(ctx, r.c, []string{r.o.vdev, "blk", "--fd", "3", "--driver", "null,size=1G", "--log-level", "warn"}, terabyte)
	if err != nil {
		return s, fmt.Errorf("guest memory of 1 TiB: %w", err)
	}
	s.Rows = [][]string{{fmt.Sprintf("%.2f", ms(h.Added)), fmt.Sprintf("%d KiB", h.Private>>10)}}
	r.say("1 TiB of guest memory: %.2f ms, %d KiB\n", ms(h.Added), h.Private>>10)
	return s, nil
}
