package reactor

import (
	"sync/atomic"
	"time"

	"vdev/internal/sys"
)

// guard watches a reactor's thread while it is in a system call that may wait for the storage, and
// has another one, which stands by, take the reactor over when it has waited too long.
type guard struct {
	// word is odd while such a call is in progress and even between them, and never the same again.
	// Who counts it up from an odd value owns the reactor: the thread, when it is back, or the
	// standby, once the guard has lost patience.
	word atomic.Uint64
	// ready: there is a standby. Without one no call is made that may wait. The guard sets it, the
	// standby clears it when it takes the reactor.
	ready  atomic.Bool
	asleep atomic.Bool
	thread atomic.Int64  // the reactor's
	wake   chan struct{} // of capacity 1
	quit   chan struct{}
	gone   chan struct{} // closed when the guard has ended; nil where none was started
}

const (
	// guardTick is how often the guard looks, while there is any doubt. A call that is there twice
	// has stalled.
	guardTick = 2 * time.Millisecond
	// guardCalm is how often it looks where all goes well.
	guardCalm = 10 * time.Millisecond
	// guardPatience is how often it looks at a thread that does not sleep, before that counts as
	// stalled, too.
	guardPatience = 50
	// guardIdle is after how many looks without a call the guard goes to sleep.
	guardIdle = 5
	// standbyRetry is how long the guard waits at least where the host has refused a standby.
	standbyRetry = time.Second
)

// stoodBy tells whether a call that may wait can be made, and has the guard see to it that a later
// one can. On the reactor.
func (r *Reactor) stoodBy() (ready bool) {
	if r.guard.ready.Load() {
		return true
	}
	r.startGuard()
	r.guard.rouse()
	return false
}

// enter begins a call; the guard is ready. On the reactor.
func (g *guard) enter() (word uint64) {
	word = g.word.Add(1)
	g.rouse()
	return word
}

// leave ends it. It is false where the reactor was taken over meanwhile.
func (g *guard) leave(word uint64) bool { return g.word.CompareAndSwap(word, word+1) }

// rouse wakes the guard if it sleeps. On the reactor.
func (g *guard) rouse() {
	if g.asleep.Load() && g.asleep.Swap(false) {
		g.wake <- struct{}{}
	}
}

// startGuard starts the guard, once. On the reactor.
func (r *Reactor) startGuard() {
	g := &r.guard
	if g.gone != nil {
		return
	}
	g.wake, g.quit, g.gone = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go r.watchOver(g)
}

// stop ends the guard and its standby, if there are any. When it returns, no more threads are made;
// the standby's, which is one of Reactor.threads, is about to end. On the reactor.
func (g *guard) stop() {
	if g.gone != nil {
		close(g.quit)
		<-g.gone
	}
}

// watchOver is the guard's goroutine.
func (r *Reactor) watchOver(g *guard) {
	defer close(g.gone)
	for goesOn := true; goesOn; {
		s := r.newStandby()
		if s == nil {
			goesOn = g.awaitWish()
			continue
		}
		g.ready.Store(true)
		goesOn = g.watch(s)
	}
}

// awaitWish returns after standbyRetry, once a call has wanted a standby. It is false where the
// guard is to end. The guard's.
func (g *guard) awaitWish() (goesOn bool) {
	select {
	case <-g.quit:
		return false
	case <-time.After(standbyRetry):
	}
	g.asleep.Store(true)
	select {
	case <-g.quit:
		return false
	case <-g.wake:
		return true
	}
}

// watch returns when s has taken the reactor, or, with false, when the guard is to end; then s is
// dismissed. The guard's.
func (g *guard) watch(s *standby) (goesOn bool) {
	tick := newPace(guardTick, guardCalm)
	defer tick.Stop()
	last, idle := g.word.Load(), 0
	for {
		select {
		case <-g.quit:
			close(s.words)
			return false
		case <-tick.C:
		}
		word := g.word.Load()
		switch {
		case word != last:
			last, idle = word, 0
			tick.calm()
		case word%2 == 1:
			tick.doubt()
			if idle++; idle < guardPatience && sys.Runnable(int(g.thread.Load())) {
				continue // others have its processor, or it copies
			}
			if s.words <- word; <-s.answers {
				return true
			}
		default:
			if idle++; idle < guardIdle {
				continue
			}
			tick.Stop()
			g.asleep.Swap(true)
			if g.word.Load() == last || !g.asleep.Swap(false) {
				select {
				case <-g.quit:
					close(s.words)
					return false
				case <-g.wake:
				}
			}
			idle = 0
			tick.doubt()
		}
	}
}
