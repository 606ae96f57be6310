package reactor

import (
	"syscall"
	"time"

	"vdev/internal/sys"
	"vdev/internal/uring"
)

// A transfer of a file whose pages are in the page cache is a copy. The reactor makes it itself, by
// a system call of its own: that costs less than io_uring does, and what has ended is shown to the
// guest driver while the rest of the batch goes on.
//
// Such a call may wait for the storage, though it hardly ever does, and is made under the guard,
// while another thread stands by (see Reactor.standBy). Reads are tried with RWF_NOWAIT: that may
// begin a readahead all the same, for which the disk's queue must have room, or write an access
// time down. tmpfs and overlayfs do not know it: io_uring would hand each of their reads to a
// thread of the kernel's, which takes longer than the copy. Writes sleep while the file system is
// frozen, with RWF_NOWAIT as well, or its disk is slower than they come. They are made without it:
// ext4 does not know it for buffered writes, btrfs and at times XFS find that they would wait where
// they do not, and io_uring hands each such write to a thread of the kernel's.

// inlineMost is how many bytes a transfer in line may have: a longer one would pass for one that
// stalls.
const inlineMost = 1 << 20

// takesInline tells whether o is to be made by the reactor itself.
func (r *Reactor) takesInline(o *op) bool {
	if o.forced || o.sync || o.fd < 0 {
		return false
	}
	f := r.of(o)
	switch {
	case !f.buffered:
		return false
	case o.write || f.waits:
		return r.mayStall(f) && (o.write || f.reads.try())
	}
	return r.mayRead(f) && f.reads.try()
}

// mostBegun is how many reads of a file that are not in memory a reactor begins itself: a disk that
// does not answer keeps them, and with all that its queue takes (128 of a loop device), the next
// one waits. Further ones threads of the kernel's begin.
const mostBegun = 48

// mayRead tells whether a read can be tried with RWF_NOWAIT.
func (r *Reactor) mayRead(f *file) bool { return f.stuck == 0 && f.begun < mostBegun && r.stoodBy() }

// mayStall tells whether a call that may wait can be made on the reactor: the engine's transfers
// would wait with it, and so would all else if no other thread stood by.
func (r *Reactor) mayStall(f *file) bool {
	return r.inEngine == 0 && f.stuck == 0 && r.clock >= f.resume && r.stoodBy()
}

// A long batch is shown to the guest drivers of the queues when no more than showLeft bytes of it
// are left: who is to wake up for what has ended does so while the rest goes on, and has more to do
// ready by then. Each time costs a signal, so it is once for a batch, and not for less than
// showLeast.
const (
	showLeft  = 96 << 10
	showLeast = 32 << 10
)

// runQueue makes the transfers that are queued. lost is one that took so long that another thread
// has the reactor now (see standBy).
func (r *Reactor) runQueue() (lost *op) {
	show := r.queued >= showLeft+showLeast
	for r.next < len(r.queue) {
		o := r.queue[r.next]
		r.queue[r.next] = nil
		r.next++
		r.queued -= o.weight()
		if !r.transfer(o) {
			return o
		}
		if r.inEngine > 0 && r.eng.due() && !r.submit() {
			return lostInSubmit
		}
		if show && r.queued <= showLeft {
			r.flush()
			show = false
		}
	}
	r.haveRead()
	r.queue, r.next = r.queue[:0], 0
	return nil
}

// transfer makes one transfer, or has the engine make it where it would block. It is false where
// the reactor was lost over it.
func (r *Reactor) transfer(o *op) (kept bool) {
	if o.cancelled {
		o.ended(0, syscall.ECANCELED)
		return true
	}
	if n := min(len(o.data), maxIovecs); cap(o.iov) < n {
		o.iov = make([]uring.Iovec, 0, n)
	}
	o.iov = uring.Fill(o.iov, o.data[:min(len(o.data), maxIovecs)])
	f := r.of(o)
	if !o.write && f.waits {
		return r.readWaiting(o, f)
	}
	r.haveRead()
	switch {
	case o.write:
		return r.write(o, f)
	case !r.mayRead(f):
		o.start()
		return true
	}
	n, errno, kept := r.call(o, r.calls.read)
	return kept && r.wasRead(o, f, n, errno)
}

// wasRead ends a read that was tried with RWF_NOWAIT, or has another try made. It is false where
// the reactor was lost over that.
func (r *Reactor) wasRead(o *op, f *file, n int, errno syscall.Errno) (kept bool) {
	switch errno {
	case 0:
		f.reads.worked()
		o.ended(n, 0)
	case syscall.EOPNOTSUPP:
		f.waits = true
		return r.readWaiting(o, f)
	default:
		// EAGAIN: it is not in memory. Else the engine shall tell what is wrong.
		f.reads.failed()
		o.start()
	}
	return true
}

// Reads without RWF_NOWAIT that took longer than slowRead together, a microsecond for each and a
// nanosecond for each byte, were not all of what is in memory.
const slowRead = 60 * time.Microsecond

// reading is a run of such reads of one file. Their time is taken together: to look at the clock
// for each one would be a twentieth of what it takes.
type reading struct {
	fd    int
	reads int // 0: there is none
	bytes int
	begun time.Duration
}

// mostTimed is how many reads follow one look at the clock, at most. Where a run has fewer and was
// quick, as many are taken on trust, and need no look.
const mostTimed = 8

// readWaiting makes a read of a file that knows no RWF_NOWAIT. It is false where the reactor was
// lost over it.
//
// Such a call says nothing of whether it had to wait for the disk, but its time does. Those that
// had to are no others' business: the engine makes as many at a time as there are.
func (r *Reactor) readWaiting(o *op, f *file) (kept bool) {
	if !r.mayStall(f) {
		o.start()
		return true
	}
	t := &r.reading
	looked := t.reads == mostTimed || t.reads > 0 && t.fd != o.fd
	if looked {
		r.haveRead()
	}
	trusted := false
	switch {
	case t.reads > 0: // it is one of those
	case f.trust > 0:
		f.trust--
		trusted = true
	case looked:
		*t = reading{fd: o.fd, begun: r.clock}
	default:
		*t = reading{fd: o.fd, begun: r.Now()}
	}
	n, errno, kept := r.call(o, r.calls.readWaiting)
	if !kept {
		return false
	}
	if !trusted {
		t.reads++
		t.bytes += n
	}
	o.ended(n, errno)
	return true
}

// haveRead says that something else than reads without RWF_NOWAIT comes next. It looks at the clock
// where there were some.
func (r *Reactor) haveRead() {
	t := &r.reading
	if t.reads == 0 {
		return
	}
	f := &r.files[t.fd]
	if r.Now()-t.begun > slowRead+time.Duration(t.reads)*time.Microsecond+time.Duration(t.bytes) {
		f.reads.failed()
	} else {
		f.reads.worked()
		f.trust = mostTimed - t.reads
	}
	t.reads = 0
}

// write makes a write. It is false where the reactor was lost over it.
func (r *Reactor) write(o *op, f *file) (kept bool) {
	if !r.mayStall(f) {
		o.start()
		return true
	}
	n, errno, kept := r.call(o, r.calls.write)
	if kept {
		o.ended(n, errno)
	}
	return kept
}

// call is a system call of a transfer.
type call func(fd int, iov []sys.Iovec, off int64) (int, syscall.Errno)

// calls are those that may wait, which are made under the guard: the host's, but in tests.
type calls struct{ read, readWaiting, write call }

var hostCalls = calls{read: sys.Read, readWaiting: sys.ReadWaiting, write: sys.WriteWaiting}

// call makes a call of o that may wait. kept is false where the reactor was lost over it: then o
// has the result, once the call is back.
func (r *Reactor) call(o *op, c call) (n int, errno syscall.Errno, kept bool) {
	o.place = inCall
	r.calling = o
	word := r.guard.enter()
	n, errno = c(o.fd, o.iov, o.off)
	if !r.guard.leave(word) {
		o.res, o.errno = n, errno
		return 0, 0, false
	}
	return n, errno, true
}
