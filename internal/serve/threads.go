package serve

import (
	"fmt"
	"log/slog"

	"vdev/internal/offload"
	"vdev/internal/tasks"
	"vdev/vhostuser"
)

// takers are what threads are for.
type takers struct {
	procs, reactors, devices int
	programs                 int  // tasks of the programs that devices start, at most
	crew                     bool // transfers are made by threads of vdev's own
}

// threads says how many threads those parts of vdev may have that take as many as storage holds up.
// Go's runtime ends the process where the host refuses it a thread, or where it has 10,000: all of
// them together must stay below that, whatever guests ask for and storage does.
type threads struct {
	places int // of the offload.Pool
	// stuck is how many may be stuck in transfers: of the kernel's for each ring, and of the event
	// loops' own (ReactorConfig.MaxStuck).
	stuck int

	// reserve is how many of all those that are Go's are made at the start: where the host's limit
	// counts, and others may use it up. Then the runtime needs no other later.
	reserve int
}

const (
	// goThreads is Go's own bound (runtime/debug.SetMaxThreads), less some.
	goThreads = 9500
	// runtimeThreads are the runtime's beside one for each processor: for timers, signals, the
	// collector and what has just ended.
	runtimeThreads = 12
	// deviceThreads are each device's beside those for its requests: an open or a close that hangs,
	// a look at its size, the last flush that a stop has left to itself, and a transfer where more
	// are stuck in others' than MaxStuck.
	deviceThreads = 4
	// ringWorkers is how many times stuck the kernel may have for one ring (uring.Ring.SetWorkers).
	ringWorkers = 2
	// commandThreads are for whoever uses the control socket.
	commandThreads = 8
	// morePlaces are the places of the pool beside each device's own.
	morePlaces = offload.DefaultPlaces - 1
)

// planThreads shares out what the host allows: what is always there comes first, then a place for
// each device, and then as much for storage that stalls as is left, but no more than is of use.
// enough is false where not even the first two fit.
func planThreads(limit int, n takers) (t threads, enough bool) {
	reactors := max(n.reactors, 1)
	// Each event loop may leave a thread in a call for each device.
	always := leastThreads(n.procs, reactors) + n.devices*(deviceThreads+reactors)
	left, ofGo := limit-n.programs-always, goThreads-always
	t.places = min(n.devices+morePlaces, max(min(left, ofGo)/2, n.devices))
	left, ofGo = left-t.places, ofGo-t.places
	if n.crew && limit < goThreads {
		// All of them are taken at the start. QEMU, which may have the same user or container, has
		// to find some, too. With io_uring most are the kernel's, which takes them when it needs
		// them.
		left -= max(left, 0) / 2
	}
	// Go's: those for files that may block, and at most as many for others; or with io_uring those
	// for files with a call that is stuck, beside the kernel's for the ring of each thread that has
	// or may have an event loop.
	goes, kernels := 2, 0
	if !n.crew {
		goes, kernels = 1, 2*reactors*ringWorkers
	}
	t.stuck = min(max(min(left/(goes+kernels), ofGo/goes), 1), vhostuser.MaxStuck)
	if limit < goThreads && t.stuck < vhostuser.MaxStuck {
		t.reserve = max(min(always+t.places+goes*t.stuck, limit-n.programs-spareTasks), 0)
	}
	return t, min(left, ofGo) > 0
}

// spareTasks are left to the kernel, which has to begin transfers with at least one of its own for
// each ring.
const spareTasks = 8

// leastThreads is without how many no device can be served: Go's runtime, the event loops, each
// with a thread that stands by for it, and the control socket.
func leastThreads(procs, reactors int) int {
	return procs + runtimeThreads + 2*reactors + commandThreads
}

// tooFewError says that the host allows fewer tasks than vdev can run with.
func tooFewError(limit tasks.Limit, need, devices int) error {
	return fmt.Errorf("the host allows this vdev %d tasks (%s), and it needs at least %d for %s, or it would end when it is refused one: "+
		"allow more (TasksMax= of systemd, --pids-limit of a container, 'ulimit -u'), or use fewer --reactors",
		limit.N, limit.Name, need, count(devices))
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
		log.Warn("few threads are left for so many devices: when storage stalls, more requests than usual wait for each other", "limit", limit.Name,
			"left_for_vdev", limit.N, "slow_operations", t.places, "stuck_transfers", t.stuck)
	}
}

// count gives a number of devices.
func count(n int) string {
	if n == 1 {
		return "1 device"
	}
	return fmt.Sprintf("%d devices", n)
}
