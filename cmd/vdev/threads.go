package main

import (
	"log/slog"

	"vdev/internal/offload"
	"vdev/internal/tasks"
	"vdev/vhostuser"
)

// threads says how many threads those parts of vdev may have that take as many as storage holds up. Go's runtime ends the process
// where the host refuses it a thread, or where it has 10,000: all of them together must stay below that, whatever guests ask for and
// storage does.
type threads struct {
	places int // of the offload.Pool
	stuck  int // that are stuck in transfers: of the kernel's for each ring, and of the event loops' own (ReactorConfig.MaxStuck)
}

const (
	// goThreads is Go's own bound (runtime/debug.SetMaxThreads), less some.
	goThreads = 9500
	// runtimeThreads are the runtime's beside one for each processor: for timers, signals, the collector and what has just ended.
	runtimeThreads = 12
	// diskThreads are each disk's beside those for its requests: an open or a close that hangs, a look at its size, the last flush that
	// a stop has left to itself, and a transfer where more are stuck in others' than MaxStuck.
	diskThreads = 4
	// serverTasks are a qemu-nbd's: 64 that transfer, and its own.
	serverTasks = 68
	// commandThreads are for whoever uses the control socket.
	commandThreads = 8
	// morePlaces are the places of the pool beside each disk's own.
	morePlaces = offload.DefaultPlaces - 1
)

// planThreads shares out what the host allows: what is always there comes first, then a place for each disk, and then as much for
// storage that stalls as is left, but no more than is of use. crew: transfers are made by threads of vdev's own. enough is false where
// not even the first two fit.
func planThreads(limit, procs, reactors, disks, servers int, crew bool) (t threads, enough bool) {
	reactors = max(reactors, 1)
	// Each event loop has a thread that stands by for it, and may leave one in a call for each disk.
	always := procs + runtimeThreads + 2*reactors + disks*(diskThreads+reactors) + commandThreads
	left := min(limit-serverTasks*servers, goThreads) - always
	t.places = min(disks+morePlaces, max(left/2, disks))
	left -= t.places
	if crew {
		// Those for files that may block, and at most as many for others.
		t.stuck = left / 2
	} else {
		// Those for files with a call that is stuck, and the kernel's for the ring of each thread that has or may have an event loop.
		t.stuck = left / (1 + 2*reactors)
	}
	t.stuck = min(max(t.stuck, 1), vhostuser.MaxStuck)
	return t, left > 0
}

// tell warns where the host's limit is what bounds the threads.
func (t threads) tell(log *slog.Logger, limit tasks.Limit, enough bool) {
	if limit.N > goThreads {
		limit = tasks.Limit{N: goThreads, Name: "Go's runtime"}
	}
	switch {
	case !enough:
		log.Warn("fewer threads are left than vdev may need: the process ends when it is refused one", "limit", limit.Name, "left_for_vdev", limit.N)
	case t.stuck < vhostuser.MaxStuck:
		log.Warn("few threads are left for so many disks: when storage stalls, more requests than usual wait for each other", "limit", limit.Name,
			"left_for_vdev", limit.N, "slow_operations", t.places, "stuck_transfers", t.stuck)
	}
}
