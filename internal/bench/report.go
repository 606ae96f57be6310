package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"vdev/internal/bench/load"
)

// section is a part of the document: a heading, an introduction, and a table.
type section struct {
	Title, Intro string
	Header       []string
	Rows         [][]string
	Seen         disturbance // while it was measured, where it is not of cases that tell themselves
}

// machine is what a reader must know to judge the figures: names and what they are.
type machine [][2]string

// describe asks the machine and the programs.
func describe(ctx context.Context, o options) machine {
	m := machine{{"CPU", fmt.Sprintf("%s, %d cores", cmp.Or(load.Field("/proc/cpuinfo", "model name"), "unknown"), runtime.NumCPU())},
		{"Memory", cmp.Or(load.Field("/proc/meminfo", "MemTotal"), "unknown")}}
	for _, c := range []struct {
		name    string
		command []string
	}{
		{"Kernel", []string{"uname", "-srvm"}},
		{"File system of the images", []string{"findmnt", "-no", "FSTYPE,OPTIONS", "-T", o.dir}},
		{"vdev", []string{o.vdev, "version"}},
		{"qemu-storage-daemon", []string{o.qsd, "--version"}},
		{"fio", []string{o.fio, "--version"}},
		{"nbdkit", []string{o.nbdkit, "--version"}},
		{"nbdcopy", []string{o.nbdcopy, "--version"}},
	} {
		out, err := exec.CommandContext(ctx, c.command[0], c.command[1:]...).Output()
		first, _, _ := strings.Cut(string(out), "\n")
		if err != nil { // it may not be needed
			first = err.Error()
		}
		m = append(m, [2]string{c.name, strings.Join(strings.Fields(first), " ")})
	}
	return m
}

func (m machine) print(w io.Writer) {
	for _, f := range m {
		fmt.Fprintf(w, "# %s: %s\n", f[0], f[1])
	}
}

// report is what the document is made of.
type report struct {
	Machine  machine
	Options  options
	Begun    time.Time
	Took     time.Duration
	Cases    []*measured
	Idle     []idleUse
	Commands []string

	Scale    []section // of consolePart and scaleSections
	MoreBars []bar     // that are not of Cases and Idle
}

// bars are all that could be judged.
func (r *report) bars() []bar { return append(bars(r.Cases, r.Idle), r.MoreBars...) }

// printBars prints which bars are met.
func (r *report) printBars(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, b := range r.bars() {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", b.verdict(), b.What, b.Needed, strings.ReplaceAll(b.Measured, "**", ""))
	}
	t.Flush()
}

func (b *bar) verdict() string {
	verdict := "missed"
	switch {
	case b.Disturbed:
		return "disturbed"
	case b.Met:
		verdict = "met"
	}
	if b.Unsure {
		verdict += ", not surely"
	}
	return verdict
}

// thousands is how many thousand requests there were in a second, by the median of the rounds, with
// a mark where the front-end, and not the back-end, was the limit.
func thousands(results []load.Result) string {
	return number(load.MedianOf(results, (*load.Result).IOPS)/1e3) + limitMark(results)
}

func limitMark(results []load.Result) string {
	if load.LimitedByLoad(results) {
		return "†"
	}
	return ""
}

// number writes a value with three digits.
func number(v float64) string {
	switch {
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// about says what each target is.
var about = map[string]struct{ title, intro string }{
	"null":       {"Null", "No data is touched: this is the speed of the rings, and of everything around a request."},
	"cached":     {"Cached file", "The file's pages are all in the page cache. vdev md beside it is a disk in vdev's own memory; fio does not go through a guest's rings, so that one figure of it stands for both clients."},
	"direct":     {"O_DIRECT", "The same kind of file without the page cache: the disk is the limit, but where the front-end sleeps at depth 1. Against fio, which never has to be woken by another core, the polling client is judged."},
	"sequential": {"Sequential", "Large requests, one after the other."},
	"queues":     {"Several queues", "The back-end and the front-end have one core each, however many queues there are."},
	"mixed":      {"Mixed", "Reads, seven of ten, and writes."},
	"nbd": {"NBD", fmt.Sprintf("What nbdkit has in memory, over a Unix socket, one connection for nbdcopy, no process bound to a core. In place of a round, nbdcopy copies all %d MiB once, without warm-up; of its time, CPU and context switches is taken off what it takes to copy %d KiB (median of %d, each time), so that its start does not count.",
		nbdBytes>>20, tinyBytes>>10, starts)},
}

// sections makes the tables of one target.
func (r *report) sections(target string) []section {
	var cases []*measured
	var names []string
	for _, m := range r.Cases {
		if m.Target != target {
			continue
		}
		cases = append(cases, m)
		for _, name := range m.With {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	if len(cases) == 0 {
		return nil
	}
	table := func(title, intro string, wanted func(*measured) bool, cell func(m *measured, name string, results []load.Result) string) []section {
		s := section{Title: title, Intro: intro, Header: append([]string{"case", "rounds"}, names...)}
		for _, m := range cases {
			if !wanted(m) {
				continue
			}
			row := []string{m.name() + m.Seen.mark(), strconv.Itoa(m.rounds())}
			for _, name := range names {
				text := "-"
				if results := m.of(name); results != nil {
					text = cell(m, name, results)
				}
				row = append(row, text)
			}
			s.Rows = append(s.Rows, row)
		}
		if s.Rows == nil {
			return nil
		}
		return []section{s}
	}
	every := func(*measured) bool { return true }
	title := about[target].title
	all := table(title, about[target].intro+" Thousands of requests per second, or MB/s where that is said; with ×, how many times as fast vdev is.",
		every, func(m *measured, name string, results []load.Result) string {
			text := thousands(results)
			if m.Job.BlockSize >= 64<<10 {
				text = number(load.MedianOf(results, (*load.Result).BytesPerSecond)/1e6) + " MB/s" + limitMark(results)
			}
			if name != ours {
				text += fmt.Sprintf(", ×%v", compare(m.of(ours), results, (*load.Result).IOPS))
			}
			return text
		})
	all = append(all, table(title+": what a request costs", "CPU in µs and context switches per request, of the back-end's process. Of fio only what its own thread uses, without the kernel's workers.",
		every, func(m *measured, name string, results []load.Result) string {
			if slices.ContainsFunc(results, func(r load.Result) bool { return !r.Backend.Known }) {
				return "-"
			}
			switches := "-"
			if !slices.ContainsFunc(results, func(r load.Result) bool { return !r.Backend.SwitchesKnown }) {
				switches = fmt.Sprintf("%.3f", load.MedianOf(results, switchesOf))
			}
			return fmt.Sprintf("%.2f, %s", load.MedianOf(results, cpuOf), switches)
		})...)
	return append(all, table(title+": latency at depth 1", "p50 and p99 in µs.",
		func(m *measured) bool { return m.Job.Depth == 1 }, func(m *measured, name string, results []load.Result) string {
			if results[0].Latency.TotalCount() == 0 {
				return "-"
			}
			return number(load.MedianOf(results, p50Of)) + ", " + number(load.MedianOf(results, p99Of))
		})...)
}

// idleSection is the table of what idle back-ends use.
func (r *report) idleSection() section {
	s := section{Title: "Idle", Intro: fmt.Sprintf("CPU in %v, from one second after the last request on, with the front-end still connected.", idleTime),
		Header: []string{"disk", "back-end", "CPU, ms", "context switches"}}
	for _, u := range r.Idle {
		cpu, switches := "-", "-"
		if u.Use.Known {
			cpu = fmt.Sprintf("%.1f", ms(u.Use.CPU))
		}
		if u.Use.SwitchesKnown {
			switches = strconv.FormatUint(u.Use.Switches, 10)
		}
		s.Rows = append(s.Rows, []string{u.Disk, u.Name + u.Seen.mark(), cpu, switches})
	}
	return s
}

// disturbances tells what else the machine had to do.
func (r *report) disturbances() string {
	var most disturbance
	again, disturbed := 0, 0
	for _, m := range r.Cases {
		most = most.or(m.Seen)
		again += m.Again
		if m.Seen.disturbed() {
			disturbed++
		}
	}
	for _, u := range r.Idle {
		most = most.or(u.Seen)
	}
	for _, s := range r.Scale {
		most = most.or(s.Seen)
	}
	others := fmt.Sprintf("other processes had at most %.1f %% of the cores' time in a round (their user time), and the machine's host", 100*most.Others)
	if math.IsNaN(most.Others) {
		others = "it is not known what other processes did, since a back-end's process cannot be seen; the machine's host had"
	}
	return fmt.Sprintf(`Beside the run, %s at most %.1f %%
(steal). A round in which either had more than %.0f %% was measured again, which was done %d times; %d of %d cases stayed disturbed, and
say so.`, others, 100*most.Steal, 100*tolerated, again, disturbed, len(r.Cases))
}

// document writes the document, whose pictures' names begin with base.
func (r *report) document(w io.Writer, base string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Benchmarks

This file is written by `+"`./scripts/bench`"+`, with all figures in it. The run began at %s and took %v.

vdev and qemu-storage-daemon (q-s-d) serve the same kind of disk, each bound to core %d, to the same front-end on core %d, which has
one queue where nothing else is said. A polling client looks at its rings all the time, an event client sleeps until it is called. fio
works on the bare file, bound to the back-ends' core: the limit. † says that the front-end was the limit: it hardly ever waited.

A round is %v for each but nbdcopy, after %v of warm-up, in an order that turns round from one to the next. A figure is the median
of the rounds, a comparison is the median of the ratios within the rounds. In brackets is the interval that holds the true median with a
chance of about 90 %% (as the sign test has it, whatever the ratios are spread like). A case has at least %d rounds, and more, up to %d,
until, of requests per second, each interval is narrower than %.0f %% of its median.

%s

`, r.Begun.UTC().Format("2006-01-02 15:04 UTC"), r.Took.Round(time.Second), r.Options.serverCPU, r.Options.clientCPU, r.Options.length(), warmup,
		r.Options.rounds, r.Options.maxRounds, 100*narrow, r.disturbances())

	write := func(s section) {
		fmt.Fprintf(&b, "## %s\n\n%s\n\n", s.Title+s.Seen.mark(), s.Intro)
		fmt.Fprintf(&b, "| %s |\n|%s\n", strings.Join(s.Header, " | "), strings.Repeat(" --- |", len(s.Header)))
		for _, row := range s.Rows {
			b.WriteString("|")
			for _, cell := range row {
				fmt.Fprintf(&b, " %s |", strings.ReplaceAll(cell, "|", "\\|"))
			}
			b.WriteString("\n")
		}
		b.WriteString("\n")
	}
	must := section{Title: "What must be seen", Intro: "vdev's figure divided by that of q-s-d's faster engine, or of fio, in the same rounds: of requests per second more is better, of CPU and latency less. The median decides, and \"not surely\" says that its interval reaches over what is needed. What is missed is in bold; what rests on a case that was disturbed is neither met nor missed. The polled depth 1 on null is no bar: q-s-d jumps between speeds there.",
		Header: []string{"what", "needed", "measured", ""}}
	for _, v := range r.bars() {
		must.Rows = append(must.Rows, []string{v.What, v.Needed, v.Measured, v.verdict()})
	}
	write(must)
	fmt.Fprintf(&b, "![Requests per second](%s%s)\n\n![Latency](%s%s)\n\n", base, throughputFile, base, latencyFile)
	for _, target := range allTargets {
		for _, s := range r.sections(target) {
			write(s)
		}
	}
	if r.Idle != nil {
		write(r.idleSection())
	}
	for _, s := range r.Scale {
		write(s)
	}
	m := section{Title: "The machine", Intro: "And the programs.", Header: []string{"", ""}}
	for _, f := range r.Machine {
		m.Rows = append(m.Rows, f[:])
	}
	write(m)
	fmt.Fprintf(&b, `## What to mind

- The kernel may take page cache away that nobody looks at (DAMON): the cached files are mapped and locked (mlock), and before and
  after each case all of their pages must be in the page cache.
- A sparse file reads holes: the files are full of noise. They are filled by writes of a page, since ext4 makes large folios of larger
  writes, in which a buffered write of 4 KiB takes many times as long.
- Two files of the same make may differ by a quarter, with where in memory their pages are: all serve the same one, in turn.
- fio throws a file's page cache away at its start, unless it is told not to (--invalidate=0).
- q-s-d with a polling client at depth 1 jumps between speeds from run to run: look at the spread.
- Null touches no data. md does.
- fio does buffered writes by io_uring with the kernel's worker threads on ext4; psync is beside it for that.
- After each case that writes, the files are written to the disk, so that the next case has nothing of that to bear.

## Commands

`+"```\n%s\n```\n", strings.Join(r.Commands, "\n"))
	_, err := w.Write(b.Bytes())
	return err
}

// write writes the document to a file, and its pictures beside it.
func (r *report) write(file string) error {
	base := strings.TrimSuffix(file, ".md")
	return errors.Join(
		writeFile(base+throughputFile, r.throughput().Write),
		writeFile(base+latencyFile, r.latency().Write),
		writeFile(file, func(w io.Writer) error { return r.document(w, filepath.Base(base)) }))
}

// What the pictures' names have after the document's.
const (
	throughputFile = "-throughput.svg"
	latencyFile    = "-latency.svg"
)

// writeFile writes a file that is never there in part.
func writeFile(name string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".bench-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
