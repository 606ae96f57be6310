package reactor

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// lane is a thread beside the reactor that does buffered writes one after the other, for file systems that do not take them
// without blocking (ext4): io_uring hands each of those to a kernel worker, one wake-up for each write and each completion,
// which costs several times what the write does. Here a batch costs one of each.
//
// A file that stalls must not hold up another device's writes. A lane that makes no progress is passed by: what has queued up
// behind the stuck write, and what comes until it is through, goes by io_uring.
type lane struct {
	r      *Reactor
	wakeFD *sys.FD
	ended  chan struct{}
	write  func(fd int, iov [][]byte, off int64, dsync bool) (int, syscall.Errno) // sys.Pwritev, but in tests

	// A queue with one producer, the reactor, and two consumers: the lane, and the reactor where it takes back.
	ring [laneSize]atomic.Pointer[op]
	head atomic.Uint64
	_    [56]byte
	tail atomic.Uint64
	_    [56]byte

	asleep atomic.Bool
	stop   atomic.Bool
	done   atomic.Uint64 // writes that have ended

	// The reactor's.
	pending int       // queued, or in the lane's hands
	seen    uint64    // done, when it was last seen to move
	since   time.Time // when that was
	stuck   bool
}

const (
	laneSize = 1024
	// laneBatch is after how many writes a sleeping reactor is woken, where more are waiting.
	laneBatch = 16
	// laneStall is how long a write may take before the lane is passed by.
	laneStall = 2 * time.Millisecond
)

func newLane(r *Reactor) (*lane, error) {
	wakeFD, err := sys.NewBlockingEventfd()
	if err != nil {
		return nil, err
	}
	l := &lane{r: r, wakeFD: wakeFD, ended: make(chan struct{}), write: sys.Pwritev}
	go l.run()
	return l, nil
}

// put queues o, unless the lane is full or stuck. On the reactor.
func (l *lane) put(o *op) bool {
	tail := l.tail.Load()
	if l.stuck {
		l.watch() // it may be through, with nothing pending that would have it looked at
	}
	if l.stuck || tail-l.head.Load() == laneSize {
		return false
	}
	if l.pending == 0 {
		l.seen, l.since = l.done.Load(), time.Now()
	}
	l.pending++
	o.inLane = true
	l.ring[tail%laneSize].Store(o)
	l.tail.Swap(tail + 1) // a full barrier, before kick looks at asleep
	return true
}

// kick wakes the lane for what was put. On the reactor, once for a batch.
func (l *lane) kick() {
	if l.asleep.Load() && l.asleep.Swap(false) {
		_ = sys.EventfdWrite(l.wakeFD.Int())
	}
}

// take takes the oldest op of the queue. Both consumers.
func (l *lane) take() *op {
	for {
		head := l.head.Load()
		if head == l.tail.Load() {
			return nil
		}
		o := l.ring[head%laneSize].Load()
		if l.head.CompareAndSwap(head, head+1) {
			return o
		}
	}
}

// takeBack takes everything that the lane has not begun, and hands it to f. On the reactor.
func (l *lane) takeBack(f func(*op)) {
	for o := l.take(); o != nil; o = l.take() {
		l.pending--
		o.inLane = false
		f(o)
	}
}

// watch looks whether the lane makes progress, and passes it by where it does not. On the reactor.
func (l *lane) watch() {
	if done := l.done.Load(); done != l.seen {
		l.seen, l.since, l.stuck = done, time.Now(), false
		return
	}
	if l.pending == 0 || l.stuck || time.Since(l.since) < laneStall {
		return
	}
	l.stuck = true
	l.takeBack(l.r.eng.start)
}

// run is the lane's thread.
func (l *lane) run() {
	defer close(l.ended)
	runtime.LockOSThread()
	for {
		unseen := 0
		for o := l.take(); o != nil; o = l.take() {
			n, errno := l.write(o.fd, o.data, o.off, false)
			o.res, o.errno = n, errno
			l.r.pushCompleted(o)
			l.done.Add(1)
			if unseen++; unseen == laneBatch {
				l.r.nudge()
				unseen = 0
			}
		}
		if unseen > 0 {
			l.r.nudge()
		}
		if l.stop.Load() {
			return
		}
		l.asleep.Swap(true)
		if l.head.Load() != l.tail.Load() || l.stop.Load() {
			l.asleep.Store(false)
			continue
		}
		// Blocks here, in the kernel, until kick.
		_, _ = sys.EventfdRead(l.wakeFD.Int())
		l.asleep.Store(false)
	}
}

// close ends the lane, which has nothing to do any more. On the reactor.
func (l *lane) close() {
	l.stop.Store(true)
	_ = sys.EventfdWrite(l.wakeFD.Int())
	<-l.ended
	l.wakeFD.Close()
}

// file is what the reactor has learnt of a file it writes to.
type file struct {
	done devsw.AIODone
	fd   int
	lane bool // buffered writes are not taken without blocking
}

// maxFiles bounds what is remembered; the oldest is forgotten, and learnt again.
const maxFiles = 16

// launch starts a write. The first one to each file finds out whether io_uring would have to hand it to a worker.
func (r *Reactor) launch(o *op) {
	if !r.lanes || o.sync || o.forced {
		r.eng.start(o)
		return
	}
	for i := range r.files {
		if f := &r.files[i]; f.fd == o.fd && f.done == o.done {
			if f.lane && r.lane.put(o) {
				return
			}
			r.eng.start(o)
			return
		}
	}
	r.learn(o)
}

// learn does the first write to a file, or starts it.
func (r *Reactor) learn(o *op) {
	f := file{done: o.done, fd: o.fd}
	n, errno := 0, syscall.Errno(0)
	buffered := sys.Buffered(o.fd)
	if buffered {
		n, errno = sys.PwritevNowait(o.fd, o.data, o.off)
		f.lane = errno == syscall.EOPNOTSUPP
	}
	if f.lane && r.lane == nil {
		var err error
		if r.lane, err = newLane(r); err != nil {
			f.lane, r.lanes = false, false
		}
	}
	if len(r.files) == maxFiles {
		r.files = append(r.files[:0], r.files[1:]...)
	}
	r.files = append(r.files, f)
	if buffered && errno == 0 && n > 0 {
		o.ended(n, 0)
		return
	}
	if !f.lane || !r.lane.put(o) {
		r.eng.start(o)
	}
}
