package reactor

import (
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/uring"
)

// A transfer of a file whose pages are in the page cache is a copy. The reactor makes it itself, by a system call of its own: that
// costs less than io_uring does, and what has ended is shown to the driver while the rest of the batch goes on.
//
// Reads are tried with RWF_NOWAIT, and so are writes, where the file system knows it. ext4, for one, does not for buffered writes,
// and io_uring hands each of those to a thread of the kernel's, which takes several times as long as the write. Such a write the
// reactor makes all the same: it hardly ever waits, and where it does, see Reactor.standBy.

// file is what the reactor has learnt of a file.
type file struct {
	done devsw.AIODone // whose it is: numbers are used again
	// buffered: transfers go by the page cache.
	buffered bool
	reads    skip
	write    writes
	stuck    int           // writes that threads are still in, who lost the reactor over them
	resume   time.Duration // when the next one may be made in line, by Clock
	pause    time.Duration // how long before that the last of them came back
}

// writes is how a file's writes are tried in line.
type writes uint8

const (
	untried writes = iota
	nowait         // with RWF_NOWAIT
	guarded        // without, since the file system does not know it
)

// For how long a file's writes go by the engine once one that has stalled is back. A file that stalls again soon is one that is written
// faster than its disk can take, and each stall holds up the others on the reactor: it is left alone twice as long each time.
const (
	leastPause = 100 * time.Millisecond
	mostPause  = 6400 * time.Millisecond
	soon       = time.Second
)

// back says that a write that had stalled is back. On the reactor.
func (f *file) back(now time.Duration) {
	f.stuck--
	if again := now-f.resume < max(f.pause, soon); again && f.pause > 0 {
		f.pause = min(2*f.pause, mostPause)
	} else {
		f.pause = leastPause
	}
	f.resume = now + f.pause
}

// skip counts tries that are not worth making: the more have failed in a row, the more are left out.
type skip struct{ left, length uint8 }

const maxSkip = 32

// try tells whether to try.
func (s *skip) try() bool {
	if s.left == 0 {
		return true
	}
	s.left--
	return false
}

func (s *skip) failed() {
	s.length = min(2*s.length+1, maxSkip)
	s.left = s.length
}

func (s *skip) worked() { s.length = 0 }

// of returns what is known of the file that o is for.
func (r *Reactor) of(o *op) *file {
	if o.fd >= len(r.files) {
		r.files = append(r.files, make([]file, o.fd+1-len(r.files))...)
	}
	f := &r.files[o.fd]
	if f.done != o.done {
		*f = file{done: o.done, buffered: sys.Buffered(o.fd)}
	}
	return f
}

// inlineMost is how many bytes a transfer in line may have: a longer write would pass for one that stalls.
const inlineMost = 1 << 20

// takesInline tells whether o is to be made by the reactor itself.
func (r *Reactor) takesInline(o *op) bool {
	if o.forced || o.sync || o.fd < 0 || o.buf.Bcount > inlineMost {
		return false
	}
	f := r.of(o)
	switch {
	case !f.buffered:
		return false
	case !o.write:
		return f.reads.try()
	case f.write == guarded:
		return r.mayStall(f)
	}
	return true
}

// mayStall tells whether a write that may wait can be made on the reactor: the engine's transfers would wait with it, and so would all
// else if no other thread stood by.
func (r *Reactor) mayStall(f *file) bool {
	return r.inEngine == 0 && f.stuck == 0 && r.clock >= f.resume && r.guard.wanted()
}

// A long batch is shown to the drivers of the queues when no more than showLeft bytes of it are left: who is to wake up for what has
// ended does so while the rest goes on, and has more to do ready by then. Each time costs a signal, so it is once for a batch, and not
// for less than showLeast.
const (
	showLeft  = 96 << 10
	showLeast = 32 << 10
)

// runQueue makes the transfers that are queued. lost is one that took so long that another thread has the reactor now (see standBy).
func (r *Reactor) runQueue() (lost *op) {
	show := r.queued >= showLeft+showLeast
	for r.next < len(r.queue) {
		o := r.queue[r.next]
		r.queue[r.next] = nil
		r.next++
		r.queued -= o.buf.Bcount
		if !r.transfer(o) {
			return o
		}
		if show && r.queued <= showLeft {
			r.flush()
			show = false
		}
	}
	r.queue, r.next = r.queue[:0], 0
	return nil
}

// transfer makes one transfer, or has the engine make it where it would block. It is false where the reactor was lost over it.
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
	if !o.write {
		n, errno := sys.Read(o.fd, o.iov, o.off)
		if errno != 0 {
			// EAGAIN: it is not in memory. Else the engine shall tell what is wrong.
			f.reads.failed()
			o.start()
			return true
		}
		f.reads.worked()
		o.ended(n, 0)
		return true
	}
	if f.write != guarded {
		n, errno := sys.Write(o.fd, o.iov, o.off)
		if errno == 0 {
			f.write = nowait
			o.ended(n, 0)
			return true
		}
		if f.write == untried && errno == syscall.EOPNOTSUPP {
			f.write = guarded
			r.startGuard()
		}
	}
	if f.write != guarded || !r.mayStall(f) {
		o.start()
		return true
	}
	o.place = inCall
	r.calling = o
	word := r.guard.enter()
	n, errno := r.write(o.fd, o.iov, o.off)
	if !r.guard.leave(word) {
		o.res, o.errno = n, errno
		return false
	}
	o.ended(n, errno)
	return true
}
