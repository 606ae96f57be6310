package reactor

import (
	"runtime"
	"sync/atomic"
	"time"

	"vdev/internal/sys"
)

// A front-end's eventfd is the front-end's, too. It can fill the counter and take O_NONBLOCK away
// at any time, and then a write waits: for ever, if it likes. Nothing that is asked before the
// write helps, since it may be otherwise a moment later; and Linux has no write to an eventfd that
// never waits (pwritev2 with RWF_NOWAIT is refused).
//
// So the write is watched. One that takes too long is ended from the outside: the number of the
// descriptor is made to stand for an eventfd of our own, and the thread is interrupted. The kernel
// begins the write anew, by the number, and it ends at once. Whoever has the other file can do
// nothing about that, and nothing of the reactor's has gone to another thread.

// signals watches one reactor's writes to eventfds of others.
type signals struct {
	// word counts up by signalWord with each write. Its remainder is the state of one: the reactor
	// sets signalWriting, and who changes that, to none or to taken, is the one whom fd belongs to
	// from then on.
	word   atomic.Uint64
	asleep atomic.Bool   // the watch
	wake   chan struct{} // of capacity 1
	fd     int           // that is written to; the watch reads it while the state is signalTaken
	tid    int           // of the thread that has the reactor, likewise
}

// The states of a write.
const (
	signalNone    = iota // there is none
	signalWriting        // the reactor writes
	signalTaken          // it has taken long, and the watch looks at it, and may be about to end it
	signalEnded          // fd is an eventfd of ours by now, and the write ends at once
	signalWord           // how many states there are
)

const (
	// signalTick is how often the watch looks, after a write that it had to look at closer. A write
	// that is there twice has stalled: all else on the reactor has stood still for one tick to two,
	// or for one signalCalm to two, which is what a front-end can do to the others on it each time
	// that it is served.
	signalTick = 5 * time.Millisecond
	// signalCalm is how often it looks where all goes well.
	signalCalm = 10 * time.Millisecond
	// signalIdle is after how many looks without a write the watch goes to sleep.
	signalIdle = 4
)

// Signal adds 1 to the counter of the eventfd fd, which may be anybody's. A counter that is full is
// no error: its reader has been woken and has not looked. It is false where the write had to be
// ended because it waited; fd does nothing from then on, and whoever has it is to close it. On the
// reactor; the caller sees to it that fd is not closed meanwhile.
func (r *Reactor) Signal(fd int) (ok bool) {
	s := &r.signals
	word := s.word.Load()
	s.fd = fd
	s.word.Store(word + signalWriting)
	if s.asleep.Load() && s.asleep.Swap(false) {
		s.wake <- struct{}{}
	}
	// It can fail only where fd is none that can be signalled, and then there is nobody to tell.
	_ = sys.EventfdWrite(fd)
	for !s.word.CompareAndSwap(word+signalWriting, word+signalWord) {
		if s.word.CompareAndSwap(word+signalEnded, word+signalWord) {
			return false
		}
		runtime.Gosched()
	}
	return true
}

// watchSignals is the goroutine that watches the reactor's writes, until the reactor has ended.
func (r *Reactor) watchSignals() {
	s := &r.signals
	tick := newPace(signalTick, signalCalm)
	defer tick.Stop()
	last, idle := s.word.Load(), 0
	for {
		select {
		case <-r.ended:
			return
		case <-tick.C:
		}
		word := s.word.Load()
		switch state := word % signalWord; {
		case word != last:
			last, idle = word, 0
			tick.calm()
		case state == signalWriting:
			tick.doubt()
			if s.word.CompareAndSwap(word, word-signalWriting+signalTaken) {
				if s.waits() {
					s.end(r.wakeFD.Int())
					word += signalEnded - signalWriting
				} else {
					// The watch of another reactor may have ended a write to the same descriptor,
					// which is an eventfd of ours since. A write that is begun anew goes there.
					_ = sys.Interrupt(s.tid)
				}
				s.word.Store(word)
			}
		case state == signalNone:
			if idle++; idle < signalIdle {
				continue
			}
			tick.Stop()
			s.asleep.Swap(true)
			if s.word.Load() == last || !s.asleep.Swap(false) {
				select {
				case <-r.ended:
					return
				case <-s.wake:
				}
			}
			idle = 0
			tick.doubt()
		}
	}
}

// waits tells whether the write waits, and is not only slow because others want the processor, too.
// A counter that is not full by now, or that the front-end makes so again, lets the write go on.
// The watch's.
func (s *signals) waits() bool { return !sys.Writable(s.fd) }

// end ends the write, of which it has fd; ours is an eventfd that never makes anybody wait. The
// watch's.
func (s *signals) end(ours int) {
	for sys.Replace(s.fd, ours) != nil {
		// EMFILE and the like cannot be: the number is in use.
		time.Sleep(signalTick)
	}
	// The write may not have begun to wait yet: it finds the signal then, or the other file.
	_ = sys.Interrupt(s.tid)
}
