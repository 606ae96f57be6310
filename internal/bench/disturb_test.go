package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vdev/internal/bench/load"
	"vdev/internal/child"
)

const statBefore = `cpu  300 30 200 5000 100 0 10 7 50 0
cpu0 100 10 100 2500 50 0 5 3 50 0
cpu1 200 20 100 2500 50 0 5 4 0 0
cpu10 5 0 0 9000 0 0 0 0 0 0
intr 303177999 0 0
ctxt 1101534869
`

// statAfter has 250 ticks more of user and nice on cpu0, 100 on cpu1, 50 on cpu10, and 8 of steal
// on cpu1.
const statAfter = `cpu  300 30 200 5000 100 0 10 7 50 0
cpu0 300 60 900 2500 50 0 5 3 90 0
cpu1 300 20 100 2500 50 0 5 12 0 0
cpu10 55 0 0 9000 0 0 0 0 0 0
intr 303177999 0 0
`

func TestOthersWorkIsWhatTheRunHasNotDoneOnItsCores(t *testing.T) {
	for _, tt := range []struct {
		cores        []int
		ours, others time.Duration
		want         disturbance
	}{
		{[]int{0, 1}, 3500 * time.Millisecond, 0, disturbance{0, 0.008}},
		// of all three cores
		{[]int{0, 1}, 4 * time.Second, 1500 * time.Millisecond, disturbance{0.1, 0.008}},
		{[]int{0, 1}, 3 * time.Second, 30 * time.Millisecond, disturbance{0.05, 0.008}},
		// whose parent has not waited
		{[]int{0, 1}, 3500 * time.Millisecond, -time.Second, disturbance{0, 0.008}},
		{[]int{0, 1}, 3 * time.Second, 0, disturbance{0.05, 0.008}},
		{[]int{1, 0}, 0, 0, disturbance{0.35, 0.008}},
		// ours have worked on other cores, or between ticks
		{[]int{1, 0}, 4 * time.Second, 0, disturbance{0, 0.008}},
		// that may be rounding
		{[]int{0, 1}, 3460 * time.Millisecond, 40 * time.Millisecond, disturbance{0, 0.008}},
		{[]int{0}, 0, 0, disturbance{0.5, 0}},
		{nil, 3500 * time.Millisecond, 0, disturbance{0.5 / 15, 0.08 / 15}},
	} {
		before, err := parseStat(statBefore, tt.cores)
		if err != nil {
			t.Fatal(err)
		}
		after, err := parseStat(statAfter, tt.cores)
		if err != nil {
			t.Fatal(err)
		}
		before.ours, after.ours = time.Hour, time.Hour+tt.ours
		before.others, after.others = time.Hour, time.Hour+tt.others
		before.at, after.at = time.Unix(10, 0), time.Unix(15, 0)
		if got := after.since(before); got != tt.want {
			t.Errorf("%+v: %v, want %v", tt, got, tt.want)
		}
	}
}

func TestDisturbedIsMoreThanIsTolerated(t *testing.T) {
	for d, want := range map[disturbance]string{
		{0.03, 0.03}:  "",
		{0.031, 0}:    " (disturbed: others 3.1 %, steal 0.0 %)",
		{0.001, 0.25}: " (disturbed: others 0.1 %, steal 25.0 %)",
	} {
		if got := d.mark(); got != want {
			t.Errorf("%+v: %q, want %q", d, got, want)
		}
	}
	unknown := disturbance{math.NaN(), 0.02}
	if got := unknown.mark(); got != "" {
		t.Errorf("what is not known: %q", got)
	}
	both := unknown.or(disturbance{0.5, 0.25})
	if got, want := both.mark(), " (disturbed: others not known, steal 25.0 %)"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := (disturbance{0.5, 0}).or(unknown); !math.IsNaN(got.Others) {
		t.Errorf("of both %v", got)
	}
	if got, want := (disturbance{1, 2}).or(disturbance{3, 1}), (disturbance{3, 2}); got != want {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestWhatProcHasIsUnderstoodOrRefused(t *testing.T) {
	got, err := parseUserTime("42 (a) b (c) S 1 42 42 0 -1 4194304 107 0 0 0 123 45 600 78 20 0 1 0 7220256\n")
	if want := (123 + 600) * 10 * time.Millisecond; err != nil || got != want {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	for _, text := range []string{"", "42 (a) S 1 42 42", "42 (a) S 1 42 42 0 -1 4194304 107 0 0 0 many 45 600 78 20"} {
		if _, err := parseUserTime(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	for text, cores := range map[string][]int{"": nil, statBefore: {0, 2}, "cpu0 1 2 3\n": nil, "cpu0 1 2 3 4 5 6 7 - 9\n": {0}} {
		if _, err := parseStat(text, cores); err == nil {
			t.Errorf("%q is taken for %v", text, cores)
		}
	}
}

// What a process has used goes to its parent when it has ended, or nowhere: of the machine's own,
// two looks would differ.
func TestTheRunsProcessesAreTakenForNobodyElses(t *testing.T) {
	proc := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(proc, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	// process has so many ticks of user time, and twice as many of system time.
	process := func(pid, user int) {
		write(fmt.Sprintf("%d/stat", pid), fmt.Sprintf("%d (a) S 1 42 42 0 -1 4194304 107 0 0 0 %d %d 0 0 20 0 1 0 7220256\n", pid, user, 2*user))
	}
	self := os.Getpid()
	write("stat", statBefore)
	write("self/stat", "no process")
	write(fmt.Sprintf("%d/status", self+1), "has ended")
	process(self, 1)
	process(self+2, 20)
	process(self+3, 300)
	for _, tt := range []struct {
		pids         []int
		ours, others time.Duration
	}{
		{nil, tick, 320 * tick},
		{[]int{self + 2}, 21 * tick, 300 * tick},
		{[]int{self + 3, self + 2}, 321 * tick, 0},
	} {
		got, err := watch{pids: tt.pids}.lookAt(proc)
		if err != nil || got.ours != tt.ours || got.others != tt.others {
			t.Errorf("with %v: %v and %v, %v; want %v and %v", tt.pids, got.ours, got.others, err, tt.ours, tt.others)
		}
	}
}

// busy has a core kept busy by a process that is not in anybody's list, until the test ends.
func busy(t *testing.T) *child.Process {
	c, err := child.Program{Args: []string{"sh", "-c", "while :; do :; done"}, CPU: child.On(0)}.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return c
}

// ticking waits until a process has had a fifth of a second of a core.
func ticking(t *testing.T, pid int) func() error {
	return func() error {
		w := watch{pids: []int{pid}}
		for before, err := w.look(); ; time.Sleep(10 * time.Millisecond) {
			now, err2 := w.look()
			if err := errors.Join(err, err2); err != nil || now.ours-before.ours > 200*time.Millisecond {
				return err
			}
		}
	}
}

func TestWhatIsDisturbedIsDoneAgainAsOftenAsItMay(t *testing.T) {
	pid := busy(t).PID()
	n, spare := 0, 2
	work := ticking(t, pid)
	seen, err := watch{cores: []int{0}}.undisturbed(&spare, func() error { n++; return work() })
	if err != nil || !seen.disturbed() || seen.Others == 0 || n != 3 || spare != 0 {
		t.Errorf("%v, %v after %d, %d left", seen, err, n, spare)
	}
	// Where some of the run's own cannot be seen, it is not judged, and not said to be little.
	n = 0
	seen, err = watch{cores: []int{0}, unseen: true}.undisturbed(&spare, func() error { n++; return work() })
	if err != nil || !math.IsNaN(seen.Others) || n != 1 {
		t.Errorf("%v, %v after %d", seen, err, n)
	}
	// Nothing may come of what is disturbed. It is done again, and an error in the end.
	n, spare = 0, 1
	_, err = watch{cores: []int{0}}.undisturbed(&spare, func() error {
		n++
		return errors.Join(work(), fmt.Errorf("the disk: %w", load.ErrNoRequest))
	})
	if !errors.Is(err, load.ErrNoRequest) || n != 2 {
		t.Errorf("%v after %d", err, n)
	}
	fails := errors.New("no good")
	if _, err := (watch{}).undisturbed(&spare, func() error { return fails }); err != fails {
		t.Errorf("error %v", err)
	}
	if _, err := (watch{pids: []int{1 << 30}}).look(); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "1073741824") {
		t.Errorf("nobody's process: error %v", err)
	}
}
