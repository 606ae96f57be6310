package reactor

import (
	"fmt"
	"syscall"
	"time"

	"vdev/internal/sys"
)

// threadsEngine sleeps in epoll and transfers by the threads of workers.
type threadsEngine struct {
	r      *Reactor
	ep     *sys.Epoll
	w      *crew
	looked time.Time // when the descriptors were looked at last
	fired  bool
}

// lookEvery is how often a busy loop looks at the descriptors of those that are idle.
const lookEvery = 50 * time.Microsecond

const wakeTag = 0 // Sources' tags start at 1

func newThreadsEngine(r *Reactor) (*threadsEngine, error) {
	ep, err := sys.NewEpoll()
	if err != nil {
		return nil, err
	}
	if err := ep.Add(r.wakeFD.Int(), wakeTag); err != nil {
		ep.Close()
		return nil, err
	}
	return &threadsEngine{r: r, ep: ep, w: r.crew}, nil
}

func (e *threadsEngine) watch(fd int, tag uint64) error   { return e.ep.Add(fd, tag) }
func (e *threadsEngine) unwatch(fd int, tag uint64) error { return e.ep.Remove(fd) }
func (e *threadsEngine) start(o *op)                      { e.w.of(o).put(o) }
func (e *threadsEngine) fill()                            {}
func (e *threadsEngine) submit()                          {}
func (e *threadsEngine) submitted()                       {}
func (e *threadsEngine) due() bool                        { return false }
func (e *threadsEngine) waits() bool                      { return false }
func (e *threadsEngine) full() bool                       { return false }
func (e *threadsEngine) handOver()                        {} // the threads hand in what they have
func (e *threadsEngine) leave()                           {}

func (e *threadsEngine) cancel(o *op) {
	if e.w.of(o).take(o) {
		o.ended(0, syscall.ECANCELED)
	}
	// What a thread is in the middle of ends by itself.
}

func (e *threadsEngine) turn() bool {
	// Completions come by Post.
	if now := time.Now(); now.Sub(e.looked) >= lookEvery {
		e.looked = now
		return e.look(0)
	}
	return false
}

func (e *threadsEngine) sleep(timeout time.Duration) {
	e.look(timeout)
	e.looked = time.Now()
}

func (e *threadsEngine) look(timeout time.Duration) bool {
	e.fired = false
	if err := e.ep.Wait(timeout, e.woken); err != nil {
		panic(fmt.Sprintf("reactor: %v", err))
	}
	return e.fired
}

func (e *threadsEngine) woken(tag uint64) {
	e.fired = true
	if tag != wakeTag {
		e.r.woken(tag)
	}
}

func (e *threadsEngine) close() {
	e.ep.Close()
}
