package main

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"vdev/internal/bench/load"
)

const (
	// tick is the unit of /proc/stat and /proc/PID/stat (USER_HZ), to which each figure there is
	// rounded.
	tick = 10 * time.Millisecond
	// unclear is what can come of rounding alone: less counts as nothing.
	unclear = 5 * tick
	// tolerated is how much of the cores' time may be others', or the host's, in a round that
	// counts.
	tolerated = 0.03
)

// disturbance is what there was on the cores besides the run, in parts of their time.
type disturbance struct {
	// Others is the user time of processes that are not the run's. System time says nothing: the
	// kernel's threads write back what was written, whoever wrote it. NaN where it is not known.
	Others float64
	Steal  float64 // when the host had something else to do
}

func (d disturbance) disturbed() bool { return d.Others > tolerated || d.Steal > tolerated }

// or returns the larger of both, each figure for itself. What is not known of one is not of both.
func (d disturbance) or(e disturbance) disturbance {
	return disturbance{max(d.Others, e.Others), max(d.Steal, e.Steal)}
}

func (d disturbance) String() string {
	others := "not known"
	if !math.IsNaN(d.Others) {
		others = fmt.Sprintf("%.1f %%", 100*d.Others)
	}
	return fmt.Sprintf("others %s, steal %.1f %%", others, 100*d.Steal)
}

// mark is what is put after the name of what was disturbed.
func (d disturbance) mark() string {
	if !d.disturbed() {
		return ""
	}
	return fmt.Sprintf(" (disturbed: %v)", d)
}

// watch looks at what works on the machine.
type watch struct {
	cores []int // nil: all
	// pids are the run's processes, besides this one and its children that have ended and were
	// waited for, which count with it.
	pids []int
	// unseen: the run has more, of which it is not known which they are. Others' work cannot be
	// told from theirs, and is not known.
	unseen bool
}

// look is how much there was at a time, since all began.
type look struct {
	at          time.Time
	cores, all  int           // how many are looked at, and how many there are
	user, steal time.Duration // of the cores, by what they were at when the clock ticked
	ours        time.Duration // user time of the run's processes
	others      time.Duration // and of all others that can be seen
}

// look looks now.
func (w watch) look() (look, error) { return w.lookAt("/proc") }

// lookAt looks at what is in such a folder as /proc.
func (w watch) lookAt(proc string) (look, error) {
	stat := filepath.Join(proc, "stat")
	text, err := os.ReadFile(stat)
	if err != nil {
		return look{}, err
	}
	l, err := parseStat(string(text), w.cores)
	if err != nil {
		return l, fmt.Errorf("%s: %w", stat, err)
	}
	l.at = time.Now()
	for _, pid := range slices.Concat([]int{os.Getpid()}, w.pids) {
		name := filepath.Join(proc, strconv.Itoa(pid), "stat")
		text, err := os.ReadFile(name)
		if err != nil {
			return l, err
		}
		t, err := parseUserTime(string(text))
		if err != nil {
			return l, fmt.Errorf("%s: %w", name, err)
		}
		l.ours += t
	}
	entries, err := os.ReadDir(proc)
	if err != nil {
		return l, err
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() || slices.Contains(w.pids, pid) {
			continue
		}
		// One that has ended meanwhile counts with its parent.
		if text, err := os.ReadFile(filepath.Join(proc, e.Name(), "stat")); err == nil {
			if t, err := parseUserTime(string(text)); err == nil {
				l.others += t
			}
		}
	}
	return l, nil
}

// parseStat reads the lines of some cores, or of all where cores is nil, in what /proc/stat has.
func parseStat(text string, cores []int) (look, error) {
	var l look
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 {
			continue
		}
		number, ok := strings.CutPrefix(fields[0], "cpu")
		core, err := strconv.Atoi(number)
		if !ok || err != nil {
			continue
		}
		l.all++
		if cores != nil && !slices.Contains(cores, core) {
			continue
		}
		t, err := ticks(fields, 1, 2, 8) // user, nice, steal
		if err != nil {
			return l, err
		}
		l.cores++
		l.user += t[0] + t[1]
		l.steal += t[2]
	}
	if l.cores == 0 || cores != nil && l.cores != len(cores) {
		return l, fmt.Errorf("of the cores %v it has %d", cores, l.cores)
	}
	return l, nil
}

// parseUserTime reads what /proc/PID/stat has of user time: the process's own, and that of its
// children that were waited for.
func parseUserTime(text string) (time.Duration, error) {
	// The program's name is in brackets, and may have any in it.
	t, err := ticks(strings.Fields(text[strings.LastIndexByte(text, ')')+1:]), 11, 13)
	if err != nil {
		return 0, err
	}
	return t[0] + t[1], nil
}

// ticks reads some fields that are numbers of ticks.
func ticks(fields []string, which ...int) (ts []time.Duration, err error) {
	for _, i := range which {
		if i >= len(fields) {
			return nil, fmt.Errorf("%q has %d fields", fields, len(fields))
		}
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return nil, err
		}
		ts = append(ts, time.Duration(n)*tick)
	}
	return ts, nil
}

// since tells what there was between two looks. Others' work is found in two ways, of which each
// misses some. What is left of the cores' time lacks what the clock's ticks miss of processes that
// sleep often, as an event client's back-end does; and not each process can be seen, or has a
// parent that waits for it.
func (l look) since(before look) disturbance {
	share := func(t time.Duration, cores int) float64 {
		if t < unclear {
			return 0
		}
		return float64(t) / (float64(l.at.Sub(before.at)) * float64(cores))
	}
	left := l.user - before.user - (l.ours - before.ours)
	return disturbance{max(share(left, l.cores), share(l.others-before.others, l.all)), share(l.steal-before.steal, l.cores)}
}

// watched is watch.undisturbed.
type watched func(spare *int, work func() error) (disturbance, error)

// undisturbed does work, and again while it was disturbed, as often as there are spare tries, which
// it counts down. It tells what there was in the last one. Where nothing came of a try because it
// was disturbed, that is no other.
func (w watch) undisturbed(spare *int, work func() error) (disturbance, error) {
	for {
		before, err := w.look()
		if err != nil {
			return disturbance{}, err
		}
		failed := work()
		if failed != nil && !errors.Is(failed, load.ErrNoRequest) {
			return disturbance{}, failed
		}
		after, err := w.look()
		if err != nil {
			return disturbance{}, err
		}
		seen := after.since(before)
		if w.unseen {
			seen.Others = math.NaN()
		}
		if !seen.disturbed() || *spare == 0 {
			return seen, failed
		}
		*spare--
	}
}
