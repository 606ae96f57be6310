package reactor

import (
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"vdev/internal/uring"
)

const (
	sqEntries = 256
	cqEntries = 4096
)

// What a completion is of stands in the top byte of its user data, the op's slot or the watch's tag
// below.
const (
	kindShift         = 56
	kindNone   uint64 = 0 // nobody waits for it
	kindOp     uint64 = 1
	kindWatch  uint64 = 2
	kindWake   uint64 = 3
	numberMask        = 1<<kindShift - 1
)

// uringEngine sleeps and transfers by io_uring.
//
// The submission of some transfers may wait for the storage (op.mayWait). The ring has entries for
// those only from fill to the end of submit, between which the reactor is guarded. Else they are in
// waiting, so that whoever submits on other business, a watch for one, never waits.
//
// Neither files nor guest memory are registered with the kernel. With registered files a transfer
// with O_DIRECT, which is most of what comes here, would take 1.5 per cent less CPU (4 KiB reads by
// fio at depth 32): too little for a table that has to follow each open and close. With registered
// buffers it would take 9 per cent less, but that pins all of the guest's memory: nothing of a
// balloon, or of memory that was never used, would be the host's any more.
type uringEngine struct {
	r    *Reactor
	ring *uring.Ring
	fds  map[uint64]int // watches by tag, to renew those that the kernel ends

	waiting []*op         // whose submission may wait, sqEntries at most
	filled  bool          // the ring has them, too
	handed  chan handover // see handOver

	slept        int // transfers when it slept last
	begun, ended int // since then
}

func newUringEngine(r *Reactor) (*uringEngine, error) {
	ring, err := uring.New(sqEntries, cqEntries)
	if err != nil {
		return nil, err
	}
	// An old kernel cannot: it works as well, as long as no storage hangs. One that may not is no
	// kernel for this.
	if err := ring.SetWorkers(uint32(r.maxStuck)); err != nil && !errors.Is(err, syscall.EINVAL) {
		ring.Close()
		return nil, err
	}
	e := &uringEngine{r: r, ring: ring, fds: make(map[uint64]int), handed: make(chan handover, 1)}
	e.poll(r.wakeFD.Int(), kindWake<<kindShift)
	return e, nil
}

// get returns a free submission entry, and makes room where there is none.
func (e *uringEngine) get() *uring.SQE {
	for {
		if s := e.ring.Get(); s != nil {
			return s
		}
		e.show()
	}
}

// show submits what is in the ring.
func (e *uringEngine) show() {
	if err := e.ring.Submit(); err != nil {
		// Only a defect of our own makes the kernel refuse the ring itself; requests fail one by
		// one.
		panic(fmt.Sprintf("reactor: %v", err))
	}
}

func (e *uringEngine) fill() {
	for e.ring.Pending() > 0 {
		e.show()
	}
	for _, o := range e.waiting {
		e.put(o)
	}
	e.filled = true
}

func (e *uringEngine) submit() { e.show() }

func (e *uringEngine) submitted() {
	// The kernel takes them in their order, and may leave some for want of memory.
	left := e.ring.TakeBack()
	n := copy(e.waiting, e.waiting[len(e.waiting)-left:])
	clear(e.waiting[n:])
	e.waiting, e.filled = e.waiting[:n], false
}

// poll watches fd by a multishot poll, which is edge-triggered: each signal of an eventfd completes
// once, though nobody reads its counter.
func (e *uringEngine) poll(fd int, userData uint64) {
	s := e.get()
	s.Op, s.FD, s.Len, s.OpFlags, s.UserData = uring.OpPollAdd, int32(fd), uring.PollMultishot, uring.PollIn, userData
}

func (e *uringEngine) watch(fd int, tag uint64) error {
	e.fds[tag] = fd
	e.poll(fd, kindWatch<<kindShift|tag)
	return nil
}

func (e *uringEngine) unwatch(_ int, tag uint64) error {
	delete(e.fds, tag)
	s := e.get()
	// Not OpPollRemove, which fails while an event is being told of: the watch, and the kernel's
	// hold on the file, would stay.
	s.Op, s.FD, s.Addr, s.UserData = uring.OpAsyncCancel, -1, kindWatch<<kindShift|tag, kindNone
	// At once: the caller closes the descriptor next.
	e.show()
	return nil
}

func (e *uringEngine) start(o *op) {
	// A device that has little to do begins at once, and not when the last of a batch is ready; one
	// that is busy is given more at a time.
	if n := e.ring.Pending(); n > 0 && n >= e.busy()-n {
		e.show()
	}
	e.begun++
	if o.mayWait {
		e.waiting = append(e.waiting, o)
		return
	}
	e.put(o)
}

// put puts o into the ring.
func (e *uringEngine) put(o *op) {
	s := e.get()
	s.FD, s.Off, s.UserData = int32(o.fd), uint64(o.off), kindOp<<kindShift|uint64(o.slot)
	data := o.piece()
	if len(data) == 1 {
		s.Op = uring.OpRead
		if o.write {
			s.Op = uring.OpWrite
		}
		s.SetBuffer(data[0])
	} else {
		s.Op = uring.OpReadv
		if o.write {
			s.Op = uring.OpWritev
		}
		data = data[:min(len(data), maxIovecs)]
		if cap(o.iov) < len(data) {
			o.iov = make([]uring.Iovec, 0, len(data))
		}
		o.iov = uring.Fill(o.iov, data)
		s.SetIovecs(o.iov)
	}
	if o.sync {
		s.OpFlags = uring.RWFDsync
	}
	if o.forced || o.aside {
		s.Flags = uring.SQEAsync
	}
}

func (e *uringEngine) due() bool {
	n := len(e.waiting)
	return n > 0 && n >= e.busy()-n
}

func (e *uringEngine) waits() bool { return len(e.waiting) > 0 }
func (e *uringEngine) full() bool  { return len(e.waiting) == sqEntries }

// handover is what a ring's thread needs to know that has lost the reactor.
type handover struct {
	ops  []*op // by slot
	left int   // of those, how many the ring has
}

func (e *uringEngine) handOver() {
	r := e.r
	var again []*op
	if !e.filled {
		// The thread is stuck elsewhere, and has begun none of these.
		again, e.waiting = e.waiting, nil
	}
	for _, o := range again {
		o.place, o.mayWait = inQueue, false
		r.of(o).begun--
		r.inEngine--
	}
	for _, o := range r.ops {
		if o.buf != nil && o.place == inEngine {
			o.place = inLost
			if o.mayWait || o.aside {
				r.isStuck(o)
			}
		}
	}
	e.handed <- handover{slices.Clone(r.ops), r.inEngine}
	r.inEngine = 0
	for _, o := range again {
		o.start()
	}
}

func (e *uringEngine) leave() {
	for h := <-e.handed; h.left > 0; {
		if err := e.ring.Wait(-1); err != nil {
			panic(fmt.Sprintf("reactor: %v", err))
		}
		for p := e.ring.Peek(); p != nil; p = e.ring.Peek() {
			c := *p
			e.ring.Seen()
			if c.UserData>>kindShift != kindOp {
				continue // another engine watches
			}
			o := h.ops[c.UserData&numberMask]
			o.res, o.errno = int(max(c.Res, 0)), syscall.Errno(max(-c.Res, 0))
			h.left--
			e.r.complete(o)
		}
	}
}

// busy is how many transfers the device has, as far as is known. Many a device tells of the end of
// a batch when all of it has ended, and the kernel hands out completions in portions: where most of
// what there was has ended, so has the rest.
func (e *uringEngine) busy() int {
	if 2*e.ended >= e.slept {
		return min(e.begun, e.r.inEngine-1)
	}
	return e.r.inEngine - 1
}

// maxIovecs is the kernel's limit (UIO_MAXIOV); a longer transfer comes back short and goes on.
const maxIovecs = 1024

func (e *uringEngine) cancel(o *op) {
	if i := slices.Index(e.waiting, o); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
		o.ended(0, syscall.ECANCELED)
		return
	}
	s := e.get()
	s.Op, s.FD, s.Addr, s.UserData = uring.OpAsyncCancel, -1, kindOp<<kindShift|uint64(o.slot), kindNone
}

func (e *uringEngine) turn() bool {
	if e.ring.Pending() > 0 || e.ring.NeedsEnter() {
		e.show()
	}
	return e.reap()
}

func (e *uringEngine) sleep(timeout time.Duration) {
	e.slept, e.begun, e.ended = e.r.inEngine, 0, 0
	if err := e.ring.Wait(timeout); err != nil {
		panic(fmt.Sprintf("reactor: %v", err))
	}
}

func (e *uringEngine) reap() (worked bool) {
	for {
		p := e.ring.Peek()
		if p == nil {
			return worked
		}
		c := *p
		e.ring.Seen()
		worked = true
		number := c.UserData & numberMask
		switch c.UserData >> kindShift {
		case kindOp:
			o := e.r.ops[number]
			e.ended++
			if c.Res < 0 {
				o.ended(0, syscall.Errno(-c.Res))
			} else {
				o.ended(int(c.Res), 0)
			}
		case kindWatch:
			if fd, ok := e.fds[number]; ok && c.Flags&uring.CQEMore == 0 && c.Res >= 0 {
				e.poll(fd, c.UserData)
			}
			e.r.woken(number)
		case kindWake:
			if c.Flags&uring.CQEMore == 0 {
				e.poll(e.r.wakeFD.Int(), c.UserData)
			}
		}
	}
}

func (e *uringEngine) close() {
	e.ring.Close()
}
