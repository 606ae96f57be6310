package main

import (
	"fmt"
	"log/slog"
	"time"

	"vdev/internal/offload"
	"vdev/internal/spec"
	"vdev/internal/tasks"
	"vdev/vhostuser"
)

// threads says how many threads those parts of vdev may have that take as many as storage holds up. Go's runtime ends the process
// where the host refuses it a thread, or where it has 10,000: all of them together must stay below that, whatever guests ask for and
// storage does.
type threads struct {
	places int // of the offload.Pool
	stuck  int // that are stuck in transfers: of the kernel's for each ring, and of the event loops' own (ReactorConfig.MaxStuck)

	// reserve is how many of all those that are Go's are made at the start: where the host's limit counts,
	// and others may use it up. Then the runtime needs no other later.
	reserve int
}

const (
	// goThreads is Go's own bound (runtime/debug.SetMaxThreads), less some.
	goThreads = 9500
	// runtimeThreads are the runtime's beside one for each processor: for timers, signals, the collector and what has just ended.
	runtimeThreads = 12
	// diskThreads are each disk's beside those for its requests: an open or a close that hangs, a look at its size, the last flush that
	// a stop has left to itself, and a transfer where more are stuck in others' than MaxStuck.
	diskThreads = 4
	// serverTasks are a qemu-nbd's: 64 that transfer, its own, and vdev's thread that waits for its end; and those of its witness.
	serverTasks = 81
	// leastServer is what it has while nobody asks anything of it: 4, and its witness, which is Go, 12.
	leastServer = 16
	// ringWorkers is how many times stuck the kernel may have for one ring (uring.Ring.SetWorkers).
	ringWorkers = 2
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
	// Each event loop may leave a thread in a call for each disk.
	always := leastThreads(procs, reactors) + disks*(diskThreads+reactors)
	left, ofGo := limit-serverTasks*servers-always, goThreads-always
	t.places = min(disks+morePlaces, max(min(left, ofGo)/2, disks))
	left, ofGo = left-t.places, ofGo-t.places
	if crew && limit < goThreads {
		// All of them are taken at the start. QEMU, which may have the same user or container, has to
		// find some, too. With io_uring most are the kernel's, which takes them when it needs them.
		left -= max(left, 0) / 2
	}
	// Go's: those for files that may block, and at most as many for others; or with io_uring those for files with a call that is stuck,
	// beside the kernel's for the ring of each thread that has or may have an event loop.
	goes, kernels := 2, 0
	if !crew {
		goes, kernels = 1, 2*reactors*ringWorkers
	}
	t.stuck = min(max(min(left/(goes+kernels), ofGo/goes), 1), vhostuser.MaxStuck)
	if limit < goThreads && t.stuck < vhostuser.MaxStuck {
		t.reserve = max(min(always+t.places+goes*t.stuck, limit-serverTasks*servers-spareTasks), 0)
	}
	return t, min(left, ofGo) > 0
}

// spareTasks are left to the kernel, which has to begin transfers with at least one of its own for each ring.
const spareTasks = 8

// leastThreads is without how many no disk can be served: Go's runtime, the event loops, each with a thread that stands by for it, and
// the control socket.
func leastThreads(procs, reactors int) int {
	return procs + runtimeThreads + 2*reactors + commandThreads
}

// formatWait is how long storage has time to tell what format an image has.
const formatWait = time.Second

// servers is how many disks have a qemu-nbd. What is wrong with an image is told when that is opened. One whose storage does not
// answer counts as having one.
func servers(disks []spec.Disk) (n int) {
	has := make(chan bool, len(disks))
	for _, d := range disks {
		go func() {
			settled, err := settle(d.Driver, func(string) {})
			has <- err == nil && settled.Name == "qemu"
		}()
	}
	timeout := time.NewTimer(formatWait)
	defer timeout.Stop()
	for i := range disks {
		select {
		case one := <-has:
			if one {
				n++
			}
		case <-timeout.C:
			return n + len(disks) - i
		}
	}
	return n
}

// tooFewError says that the host allows fewer tasks than vdev can run with.
func tooFewError(limit tasks.Limit, need, disks int) error {
	return fmt.Errorf("the host allows this vdev %d tasks (%s), and it needs at least %d for %s, or it would end when it is refused one: "+
		"allow more (TasksMax= of systemd, --pids-limit of a container, 'ulimit -u'), or use fewer --reactors",
		limit.N, limit.Name, need, count(disks, "disk"))
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
