package reactor

import "time"

// engine is how a reactor sleeps and transfers: io_uring, or epoll with threads. Its methods are
// called on the reactor.
type engine interface {
	watch(fd int, tag uint64) error
	unwatch(fd int, tag uint64) error
	start(o *op)
	cancel(o *op)
	// submit has the host begin what was started whose submission may have to wait for the storage
	// (op.mayWait): the reactor is guarded, and may be lost. fill comes before, and submitted after
	// it where the reactor was kept. waits tells that there is any, due that it is time for that,
	// and full that no more can be started before it. All other methods leave it alone.
	fill()
	submit()
	submitted()
	waits() bool
	due() bool
	full() bool
	// turn submits what was started, runs what has completed, and tells whether anything had. It
	// does not sleep.
	turn() bool
	// sleep submits, and waits for at most timeout (negative: no limit) for a completion, a watched
	// descriptor or Reactor.wakeFD. What has completed is left to turn.
	sleep(timeout time.Duration)
	// handOver is for an engine whose thread is stuck, and called by the one that has the reactor
	// now. The thread calls leave when it is back: that completes what only this engine can, and
	// returns then.
	handOver()
	leave()
	close()
}

func newEngine(r *Reactor) (engine, error) {
	if r.mode == ModeThreads {
		return newThreadsEngine(r)
	}
	return newUringEngine(r)
}
