package reactor

import (
	"fmt"
	"sync"
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

const (
	// maxWorkers bounds the threads of a Pool that are in a transfer at once.
	maxWorkers = 64
	// maxStuck bounds those, or with io_uring each reactor's of the kernel, that are in a transfer of a file that may block: with so
	// many requests stuck in one, those for the others still get through.
	maxStuck = 1024
)

// crew is what transfers for the reactors of a Pool: workers for files that may block (devsw.BMayBlock), so that they hold up
// nobody else, and workers for all others.
type crew struct{ local, remote *workers }

func newCrew() *crew { return &crew{newWorkers(maxWorkers), newWorkers(maxStuck)} }

// of gives the workers for o.
func (c *crew) of(o *op) *workers {
	if o.mayBlock {
		return c.remote
	}
	return c.local
}

// stop ends the threads. No transfer is queued.
func (c *crew) stop() {
	c.local.stop()
	c.remote.stop()
}

// workers is a bounded pool of goroutines that transfer. They are started when there is work for them and end with stop.
type workers struct {
	max int

	mu      sync.Mutex
	work    sync.Cond
	queue   []*op // oldest first from head on
	head    int
	running int
	idle    int
	stopped bool
	wg      sync.WaitGroup
}

func newWorkers(n int) *workers {
	w := &workers{max: n}
	w.work.L = &w.mu
	return w
}

func (w *workers) put(o *op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.head > 0 && len(w.queue) == cap(w.queue) {
		n := copy(w.queue, w.queue[w.head:])
		clear(w.queue[n:])
		w.queue, w.head = w.queue[:n], 0
	}
	w.queue = append(w.queue, o)
	switch {
	case w.idle >= len(w.queue)-w.head:
		w.work.Signal()
	case w.running < w.max:
		w.running++
		w.wg.Go(w.run)
	}
}

// take takes o back if no thread has begun it.
func (w *workers) take(o *op) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := w.head; i < len(w.queue); i++ {
		if w.queue[i] == o {
			copy(w.queue[i:], w.queue[i+1:])
			w.queue[len(w.queue)-1] = nil
			w.queue = w.queue[:len(w.queue)-1]
			return true
		}
	}
	return false
}

func (w *workers) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for w.head == len(w.queue) {
			if w.stopped {
				return
			}
			w.idle++
			w.work.Wait()
			w.idle--
		}
		o := w.queue[w.head]
		w.queue[w.head] = nil
		w.head++
		if w.head == len(w.queue) {
			w.queue, w.head = w.queue[:0], 0
		}
		w.mu.Unlock()
		if o.write {
			o.res, o.errno = sys.Pwritev(o.fd, o.data, o.off, o.sync)
		} else {
			o.res, o.errno = sys.Preadv(o.fd, o.data, o.off)
		}
		o.r.complete(o)
		w.mu.Lock()
	}
}

// stop ends the threads. No transfer is queued.
func (w *workers) stop() {
	w.mu.Lock()
	w.stopped = true
	w.work.Broadcast()
	w.mu.Unlock()
	w.wg.Wait()
}

// complete hands o back to its reactor. Any goroutine.
func (r *Reactor) complete(o *op) {
	r.pushCompleted(o)
	r.nudge()
}

// pushCompleted is complete without waking a reactor that sleeps: nudge is to follow. Any goroutine.
func (r *Reactor) pushCompleted(o *op) {
	for {
		o.next = r.completed.Load()
		if r.completed.CompareAndSwap(o.next, o) {
			break
		}
	}
	if !r.hasPosted.Load() {
		r.hasPosted.Store(true)
	}
}
