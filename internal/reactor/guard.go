package reactor

import (
	"sync/atomic"
	"time"
)

// guard watches a reactor's thread while it is in a write that may wait, and says when it has waited too long.
type guard struct {
	// word is odd while a write is in progress and even between them, and never the same again. Who counts it up from an odd
	// value owns the reactor: the thread, when it is back, or another one, which has lost patience.
	word   atomic.Uint64
	asleep atomic.Bool
	wake   chan struct{} // of capacity 1
	quit   chan struct{}
	gone   chan struct{} // closed when the guard has ended; nil where none was started
}

const (
	// guardTick is how often the guard looks. A write that is there twice has stalled.
	guardTick = 2 * time.Millisecond
	// guardIdle is after how many looks without a write the guard goes to sleep.
	guardIdle = 5
)

// enter begins a write. On the reactor.
func (g *guard) enter() (word uint64) {
	word = g.word.Add(1)
	if g.asleep.Load() && g.asleep.Swap(false) {
		g.wake <- struct{}{}
	}
	return word
}

// leave ends it. It is false where the reactor was taken over meanwhile.
func (g *guard) leave(word uint64) bool { return g.word.CompareAndSwap(word, word+1) }

// startGuard starts the guard, once. On the reactor.
func (r *Reactor) startGuard() {
	g := &r.guard
	if g.gone != nil {
		return
	}
	g.wake, g.quit, g.gone = make(chan struct{}, 1), make(chan struct{}), make(chan struct{})
	go r.watchOver(g)
}

// stop ends the guard, if there is one. On the reactor.
func (g *guard) stop() {
	if g.gone != nil {
		close(g.quit)
		<-g.gone
	}
}

// watchOver is the guard's goroutine.
func (r *Reactor) watchOver(g *guard) {
	defer close(g.gone)
	tick := time.NewTicker(guardTick)
	defer tick.Stop()
	last, idle := g.word.Load(), 0
	for {
		select {
		case <-g.quit:
			return
		case <-tick.C:
		}
		word := g.word.Load()
		switch {
		case word != last:
			last, idle = word, 0
		case word%2 == 1:
			r.takeOver(word)
		default:
			if idle++; idle < guardIdle {
				continue
			}
			tick.Stop()
			g.asleep.Swap(true)
			if g.word.Load() == last || !g.asleep.Swap(false) {
				select {
				case <-g.quit:
					return
				case <-g.wake:
				}
			}
			idle = 0
			tick.Reset(guardTick)
		}
	}
}

// takeOver has another thread go on with the reactor, if the write of that word is still in progress. The thread that is stuck
// in it keeps nothing but the transfer, and hands that in when it is back; its ring has nothing but watches, which are made anew.
// The guard's.
func (r *Reactor) takeOver(word uint64) {
	begun := make(chan struct{})
	r.threads.Go(func() {
		eng, err := r.newThread()
		if err != nil {
			close(begun) // the next tick tries again
			return
		}
		taken := r.guard.word.CompareAndSwap(word, word+1)
		close(begun)
		if !taken {
			eng.close()
			return
		}
		r.goOn(eng)
		r.loop(eng)
	})
	<-begun
}

// goOn makes the reactor, whose thread is stuck in r.calling, that of the calling goroutine and of eng.
func (r *Reactor) goOn(eng engine) {
	r.eng = eng
	r.Now()
	r.of(r.calling).stuck++
	for tag, s := range r.sources {
		if s.polledOnly { // for want of a watch, in the engine before
			s.polledOnly = false
			r.noKick--
		}
		if err := eng.watch(s.kick, tag); err != nil {
			// Without a watch, it is looked at all the time.
			s.polledOnly = true
			r.noKick++
		}
		// What woke the old engine last may have got lost with it.
		s.Wake()
	}
	// What ended before the one that is stuck.
	r.flush()
}
