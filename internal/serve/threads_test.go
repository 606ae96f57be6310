package serve

import (
	"testing"

	"pgregory.net/rapid"

	"vdev/internal/tasks"
	"vdev/vhostuser"
)

// serverTasks are those of a program beside: a qemu-nbd has so many.
const serverTasks = 81

func TestThreadsFitWhatTheHostAllows(t *testing.T) {
	for name, c := range map[string]struct {
		limit, procs, reactors, devices, servers int
		crew                                     bool
		want                                     threads
		enough                                   bool
	}{
		"no limit":            {limit: tasks.Unlimited, procs: 10, reactors: 4, devices: 1, want: threads{64, 1024, 0}, enough: true},
		"no limit, threads":   {limit: tasks.Unlimited, procs: 10, reactors: 4, devices: 1, crew: true, want: threads{64, 1024, 0}, enough: true},
		"600":                 {limit: 600, procs: 6, reactors: 2, devices: 1, want: threads{64, 55, 155}, enough: true},
		"100":                 {limit: 100, procs: 6, reactors: 2, devices: 1, want: threads{32, 3, 71}, enough: true},
		"100, threads":        {limit: 100, procs: 6, reactors: 2, devices: 1, crew: true, want: threads{32, 8, 84}, enough: true},
		"1000, threads":       {limit: 1000, procs: 6, reactors: 2, devices: 1, crew: true, want: threads{64, 225, 550}, enough: true},
		"600, two qemu-nbd":   {limit: 600, procs: 6, reactors: 2, devices: 2, servers: 2, want: threads{65, 36, 143}, enough: true},
		"1000 disks":          {limit: tasks.Unlimited, procs: 10, reactors: 4, devices: 1000, want: threads{1000, 462, 0}, enough: true},
		"2000 disks":          {limit: tasks.Unlimited, procs: 10, reactors: 4, devices: 2000, want: threads{2000, 1, 0}},
		"100, and 1000 disks": {limit: 100, procs: 10, reactors: 4, devices: 1000, want: threads{1000, 1, 92}},
		"20":                  {limit: 20, procs: 6, reactors: 2, devices: 1, want: threads{1, 1, 12}},
	} {
		t.Run(name, func(t *testing.T) {
			got, enough := planThreads(c.limit, takers{c.procs, c.reactors, c.devices, serverTasks * c.servers, c.crew})
			if got != c.want || enough != c.enough {
				t.Errorf("got %+v, enough: %v, want %+v, %v", got, enough, c.want, c.enough)
			}
		})
	}
}

func TestThreadsNeverExceedWhatTheHostAllows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(1, 20_000).Draw(t, "limit")
		procs, reactors := rapid.IntRange(1, 64).Draw(t, "procs"), rapid.IntRange(1, 16).Draw(t, "reactors")
		devices, servers := rapid.IntRange(1, 2000).Draw(t, "devices"), rapid.IntRange(0, 20).Draw(t, "servers")
		crew := rapid.Bool().Draw(t, "crew")
		got, enough := planThreads(limit, takers{procs, reactors, devices, serverTasks * servers, crew})
		goes, stuck := 2, 2*got.stuck
		if !crew {
			goes, stuck = 1, (1+2*reactors*ringWorkers)*got.stuck
		}
		all := procs + runtimeThreads + 2*reactors + (deviceThreads+reactors)*devices + commandThreads + serverTasks*servers + got.places + stuck
		if enough && got.stuck > 1 && all > limit {
			t.Fatalf("%+v: that is %d tasks", got, all)
		}
		if enough && crew && limit < goThreads && got.stuck > 1 && limit-all < stuck-2 {
			t.Fatalf("%+v: that is %d tasks, and leaves too few to others", got, all)
		}
		// All that are Go's, or none.
		ours := all - serverTasks*servers - stuck + goes*got.stuck
		if enough && got.stuck > 1 && got.reserve != 0 && got.reserve != min(ours, limit-serverTasks*servers-spareTasks) {
			t.Fatalf("%+v: %d are the runtime's", got, ours)
		}
		if got.places < devices || got.stuck < 1 || got.stuck > vhostuser.MaxStuck {
			t.Fatalf("%+v for %d devices", got, devices)
		}
	})
}
