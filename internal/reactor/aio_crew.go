package reactor

import (
	"slices"
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

const (
	// maxWorkers bounds the threads of a Pool that are in a transfer at once, and those of files
	// that have a call that is stuck, but for one of each file.
	maxWorkers = 64
	// MaxStuck bounds those, or with io_uring each reactor's of the kernel, that are in a transfer
	// of a file that may block: with so many requests stuck in one, those for the others still get
	// through. Config.MaxStuck may be less.
	MaxStuck = 1024
)

// crew is what transfers for the reactors of a Pool: workers for files that may block
// (devsw.BMayBlock), and for those that do, so that they hold up nobody else, and workers for all
// others.
type crew struct{ local, remote, stuck *workers }

// newCrew makes a crew of at most stuck threads for files that may block, and as many for all
// others.
func newCrew(stuck int) *crew {
	others := min(maxWorkers, max(stuck/2, 1))
	return &crew{newWorkers(others), newWorkers(stuck), newWorkers(others)}
}

// of gives the workers for o.
func (c *crew) of(o *op) *workers {
	switch {
	case o.place == inThread:
		return c.stuck
	case o.mayBlock:
		return c.remote
	}
	return c.local
}

// stop ends the threads. No transfer is queued.
func (c *crew) stop() {
	c.local.stop()
	c.remote.stop()
	c.stuck.stop()
}

// workers is a bounded pool of goroutines that transfer. They are started when there is work for
// them and end with stop.
//
// Files take turns. However many are stuck in the transfers of some, each file has one at least:
// beyond max a worker is started for a file that has none, and ends when it finds nothing more to
// do. So there are max and one for each open file at most.
type workers struct {
	max int

	mu      sync.Mutex
	work    sync.Cond
	lanes   map[devsw.AIODone]*lane // of files with transfers here
	ready   []*lane                 // of those with transfers that wait, the next one first
	spare   []*lane
	waiting int // transfers
	running int // goroutines, those that are idle too
	idle    int
	stopped bool
	wg      sync.WaitGroup
}

// lane is one file's transfers. Those that wait are linked, oldest first.
type lane struct {
	first, last *op
	busy        int // goroutines in a transfer of it
}

func newWorkers(n int) *workers {
	w := &workers{max: n, lanes: make(map[devsw.AIODone]*lane)}
	w.work.L = &w.mu
	return w
}

func (w *workers) put(o *op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.lanes[o.done]
	if l == nil {
		if n := len(w.spare); n > 0 {
			l, w.spare = w.spare[n-1], w.spare[:n-1]
		} else {
			l = new(lane)
		}
		w.lanes[o.done] = l
	}
	if w.idle <= w.waiting && (w.running < w.max || l.busy == 0) {
		l.busy++
		w.begin(o, l)
		return
	}
	if o.prev = l.last; o.prev != nil {
		o.prev.next = o
	} else {
		l.first = o
		w.ready = append(w.ready, l)
	}
	l.last, o.lane = o, l
	w.waiting++
	w.work.Signal()
}

// take takes o back if no thread has begun it.
func (w *workers) take(o *op) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := o.lane
	if l == nil {
		return false
	}
	w.unlink(o)
	if l.first == nil {
		w.ready = slices.DeleteFunc(w.ready, func(r *lane) bool { return r == l })
		w.drop(l, o.done)
	}
	return true
}

// unlink takes o out of those of its lane that wait. With mu.
func (w *workers) unlink(o *op) {
	l := o.lane
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		l.first = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		l.last = o.prev
	}
	o.prev, o.next, o.lane = nil, nil, nil
	w.waiting--
}

// drop forgets the lane of a file that has nothing here any more. With mu.
func (w *workers) drop(l *lane, of devsw.AIODone) {
	if l.first == nil && l.busy == 0 {
		delete(w.lanes, of)
		w.spare = append(w.spare, l)
	}
}

// pick takes the next transfer that one more worker may make, whose file's turn it is. With mu.
func (w *workers) pick() (*op, *lane) {
	for i, l := range w.ready {
		// The worker is one of those that are running.
		if w.running-w.idle <= w.max || l.busy == 0 {
			return w.pickAt(i), l
		}
	}
	return nil, nil
}

// pickAt takes the first transfer of the lane at i of ready. With mu.
func (w *workers) pickAt(i int) *op {
	l := w.ready[i]
	o := l.first
	w.unlink(o)
	w.ready = slices.Delete(w.ready, i, i+1)
	if l.first != nil {
		w.ready = append(w.ready, l)
	}
	l.busy++
	return o
}

// begin starts a worker with o, whose lane is l and counts it already. With mu.
func (w *workers) begin(o *op, l *lane) {
	w.running++
	w.wg.Go(func() { w.run(o, l) })
}

// run makes o, whose lane is l, and then others.
func (w *workers) run(o *op, l *lane) {
	for o != nil {
		of := o.done
		if o.write {
			o.res, o.errno = sys.Pwritev(o.fd, o.piece(), o.off, o.sync)
		} else {
			o.res, o.errno = sys.Preadv(o.fd, o.piece(), o.off)
		}
		o.r.complete(o)
		o, l = w.next(l, of)
	}
}

// next waits for the transfer that a worker is to make after one of l, the lane of a file. It is
// nil where the worker is to end.
func (w *workers) next(l *lane, of devsw.AIODone) (*op, *lane) {
	w.mu.Lock()
	defer w.mu.Unlock()
	l.busy--
	o, n := w.pick()
	if l.first != nil && l.busy == 0 {
		// Its turn was another's, who may get stuck.
		w.begin(w.pickAt(slices.Index(w.ready, l)), l)
	}
	w.drop(l, of)
	for o == nil {
		if w.stopped || w.running > w.max {
			w.running--
			return nil, nil
		}
		w.idle++
		w.work.Wait()
		w.idle--
		o, n = w.pick()
	}
	return o, n
}

// stop ends the threads. No transfer is queued.
func (w *workers) stop() {
	w.mu.Lock()
	w.stopped = true
	w.work.Broadcast()
	w.mu.Unlock()
	w.wg.Wait()
}
