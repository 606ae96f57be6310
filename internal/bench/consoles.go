package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"vdev/internal/bench/load"
	"vdev/internal/bench/qtest"
)

// What is wanted of consoles, beside QEMU's own: at least so many times its bytes in a second, and
// at most this part of its CPU time for a MiB.
const (
	bulkBar    = 3
	bulkCPUBar = 0.5
	echoBar    = 1 // of its median latency
)

// consoleDepth is how many chains of output are in flight: all of a ring that is QEMU's default.
const consoleDepth = 64

var consoleSizes = []int64{128, 4 << 10, 32 << 10}

// consolePart is consoleSection in a folder of its own, with what has disturbed it.
func consolePart(ctx context.Context, o options, dir string, say func(format string, args ...any)) (s section, bars []bar, err error) {
	spare := 0
	s.Seen, err = watch{}.undisturbed(&spare, func() error {
		folder, err := os.MkdirTemp(dir, "console")
		if err != nil {
			return err
		}
		s, bars, err = consoleSection(ctx, o, folder, say)
		return err
	})
	for i := range bars {
		bars[i].Disturbed = s.Seen.disturbed()
		bars[i].Measured += s.Seen.mark()
	}
	return s, bars, err
}

// consoleSection measures vdev's port beside QEMU's own, on the same kind of socket, and tells of
// each case at once. dir is an empty folder.
func consoleSection(ctx context.Context, o options, dir string, say func(format string, args ...any)) (_ section, bars []bar, err error) {
	s := section{Title: "Consoles",
		Intro: fmt.Sprintf(`A data port without loss, on a Unix socket whose other side the load itself reads and writes: vdev, and the virtserialport of QEMU's
own virtio-serial. The same guest driver works on both, without a virtual machine. QEMU runs without a processor (qtest), with shared
guest memory. Its registers are written over a socket: a kick and the end of an interrupt cost it some microseconds more than they
would with a processor's help, and an echo some more in the load, which tells most with small buffers and in echo. Whatever works may
run on any core. There are %d chains of output in flight, and one with echo. CPU is the back-end's process's. The ratio of bytes, or of
the latency of an echo, is the median of the rounds', with its ends.`, consoleDepth),
		Header: []string{"load", "vdev", "QEMU", "vdev / QEMU", "CPU for a MiB: vdev", "QEMU", "vdev / QEMU"}}
	qemuDir, err := os.MkdirTemp(dir, "qemu")
	if err != nil {
		return s, nil, err
	}
	socket, hostSocket := filepath.Join(dir, "console"), filepath.Join(dir, "port")
	server, err := startServer(ctx, -1, ours, socket, append([]string{o.vdev, "console", "--socket-path", socket,
		"--log-level", "warn", "--port", "name=data,driver=socket,path=" + hostSocket}, o.vdevArgs...)...)
	if err != nil {
		return s, nil, err
	}
	defer func() { err = errors.Join(err, server.stop(ctx)) }()
	q, err := qtest.Start(ctx, qtest.Config{QEMU: o.qemu, Dir: qemuDir, Log: func(err error) { fmt.Fprintf(os.Stderr, "QEMU: %v\n", err) }})
	if err != nil {
		return s, nil, err
	}
	defer func() { err = errors.Join(err, q.Close(context.WithoutCancel(ctx))) }()
	targets := []load.Target{
		{Name: ours, Socket: socket},
		{Name: "QEMU", Port: "data", Via: &load.Via{Connect: q.Connect, Memory: q.Memory, PID: q.PID()}},
	}
	for i, name := range []string{hostSocket, q.Host} {
		if targets[i].Host, err = load.OpenHost(name); err != nil {
			return s, nil, err
		}
		defer targets[i].Host.Close()
	}
	for _, pattern := range load.ConsolePatterns {
		for _, size := range consoleSizes {
			j := load.Job{Pattern: pattern, BlockSize: size, Depth: consoleDepth, Warmup: warmup, Length: o.length(), Seed: 1}
			results, err := load.Compare(ctx, targets, j, o.rounds, nil)
			// QEMU's port may stand still for a while.
			for spare := tries; errors.Is(err, load.ErrNoRequest) && spare > 0; spare-- {
				j.Length *= 4
				results, err = load.Compare(ctx, targets, j, o.rounds, nil)
			}
			if err != nil {
				return s, bars, fmt.Errorf("consoles, %s %s: %w", pattern, sizeName(size), err)
			}
			row, judged := consoleCase(&j, results[0], results[1])
			s.Rows, bars = append(s.Rows, row), append(bars, judged...)
			say("console, %s\n", strings.Join(row, "; "))
		}
	}
	return s, bars, nil
}

// consoleCase tells of a case, and judges it.
func consoleCase(j *load.Job, our, their []load.Result) (row []string, bars []bar) {
	name := fmt.Sprintf("%s %s", j.Pattern, sizeName(j.BlockSize))
	figure, form, needed := (*load.Result).BytesPerSecond, func(of []load.Result, v float64) string {
		return number(v/1e6) + " MB/s" + limitMark(of)
	}, bulkBar
	if j.Pattern == load.Echo {
		figure = func(r *load.Result) float64 { return float64(r.Percentile(50)) }
		form = func(_ []load.Result, v float64) string { return micro(v) }
		needed = echoBar
	}
	ratio := load.Ratios(our, their, figure)
	cpu := load.Ratios(our, their, cpuPerMiB)
	row = []string{name, form(our, load.MedianOf(our, figure)), form(their, load.MedianOf(their, figure)),
		fmt.Sprintf("**%.2f** (%.2f to %.2f)", ratio.MedianOfRatios, ratio.Least, ratio.Most),
		micro(load.MedianOf(our, cpuPerMiB)), micro(load.MedianOf(their, cpuPerMiB)), fmt.Sprintf("**%.2f** (%.2f to %.2f)", cpu.MedianOfRatios, cpu.Least, cpu.Most)}
	what := "console, " + name + ": "
	if j.Pattern == load.Echo {
		return row, []bar{{What: what + "latency, vdev / QEMU", Needed: fmt.Sprintf("≤ %d", needed), Measured: row[3], Met: ratio.MedianOfRatios <= float64(needed),
			Unsure: (ratio.Least <= float64(needed)) != (ratio.Most <= float64(needed))}}
	}
	return row, []bar{
		{What: what + "bytes in a second, vdev / QEMU", Needed: fmt.Sprintf("≥ %d", needed), Measured: row[3], Met: ratio.MedianOfRatios >= float64(needed),
			Unsure: (ratio.Least >= float64(needed)) != (ratio.Most >= float64(needed))},
		{What: what + "CPU for a MiB, vdev / QEMU", Needed: fmt.Sprintf("≤ %.1f", bulkCPUBar), Measured: row[6], Met: cpu.MedianOfRatios <= bulkCPUBar,
			Unsure: (cpu.Least <= bulkCPUBar) != (cpu.Most <= bulkCPUBar)},
	}
}

func cpuPerMiB(r *load.Result) float64 {
	return float64(r.Backend.CPU) / (float64(r.Bytes) / (1 << 20))
}

// micro writes nanoseconds as microseconds.
func micro(ns float64) string { return number(ns/1e3) + " µs" }
