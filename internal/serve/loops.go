package serve

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"time"

	"vdev/internal/offload"
	"vdev/internal/tasks"
	"vdev/vhostuser"
)

const (
	// maxReactors bounds the default of Loops.Reactors: more event loops than that bring nothing.
	maxReactors = 4
	// lookWait is how long storage has time to tell what programs a device has.
	lookWait = time.Second
)

// startLoops starts the event loops, and the pool, which is what else takes threads: both have to
// do with what the host allows.
func (h *host) startLoops() error {
	c := h.Loops
	if c.Reactors == 0 {
		queues := 0
		for _, d := range h.Devices {
			queues += d.Kind.Queues()
		}
		c.Reactors = min(runtime.GOMAXPROCS(0), maxReactors, queues)
	}
	// A reactor is nearly always in a system call or busy, and keeps its P while it is: the
	// goroutines of the connection and of storage need others, or their turn comes only when the
	// runtime takes one away, up to 10 ms later. The default goes by the CPUs, which may be one.
	procs := max(runtime.GOMAXPROCS(0), 2*c.Reactors+2)
	limit := tasks.Find()
	least, most := programs(h.Devices)
	need := takers{procs: procs, reactors: c.Reactors, devices: len(h.Devices), programs: most}
	if n := leastThreads(procs, c.Reactors) + need.devices + least + spareTasks; limit.N < n {
		return tooFewError(limit, n, need.devices)
	}
	if runtime.GOMAXPROCS(0) < procs {
		runtime.GOMAXPROCS(procs)
	}
	var plan threads
	var tried vhostuser.Mode
	enough := false
	reactors, refused, err := vhostuser.NewReactorsFor(c.Mode, func(mode vhostuser.Mode) vhostuser.ReactorConfig {
		tried, need.crew = mode, mode == vhostuser.ModeThreads
		plan, enough = planThreads(limit.N, need)
		tasks.Reserve(plan.reserve)
		return vhostuser.ReactorConfig{Reactors: c.Reactors, PollMax: c.PollMax, MaxStuck: plan.stuck}
	})
	if refused != nil {
		h.log.Warn("the host refuses io_uring: threads are used instead", "cause", refused)
	}
	if err != nil {
		return fmt.Errorf("--aio %s: %w", tried, err)
	}
	plan.tell(h.log, limit, enough)
	h.reactors = reactors
	h.pool = offload.New(offload.Config{Places: plan.places, Keep: plan.reserve > 0})
	return nil
}

// programs adds up what the devices' programs take. What is wrong with a device is told when that
// is opened.
func programs(devices []DeviceConfig) (least, most int) {
	ctx, enough := context.WithTimeout(context.Background(), lookWait)
	defer enough()
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, d := range devices {
		all.Go(func() {
			l, m := d.Kind.Programs(ctx)
			mu.Lock()
			defer mu.Unlock()
			least, most = least+l, most+m
		})
	}
	all.Wait()
	return least, most
}
