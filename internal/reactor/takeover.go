package reactor

import "vdev/internal/sys"

// standby is a thread with an engine of its own, which waits to take the reactor over: when it has
// to, there may be no descriptor left to make an engine with, and the reactor would hang with the
// call.
type standby struct {
	// words has those of calls to take the reactor over for. It is closed when the standby is not
	// needed any more.
	words chan uint64
	// answers has first whether it has an engine, then to each word whether it has the reactor.
	answers chan bool
}

// newStandby makes a standby. It is nil where the host refuses the engine. The guard's.
func (r *Reactor) newStandby() *standby {
	s := &standby{words: make(chan uint64), answers: make(chan bool)}
	r.threads.Go(func() { r.standBy(s) })
	if !<-s.answers {
		return nil
	}
	return s
}

// standBy is the standby's goroutine. It goes on with the reactor if a call is still in progress
// when it is given its word. The thread that is stuck in that keeps nothing but the transfer, and
// hands that in when it is back; its ring has nothing but watches, which are made anew.
func (r *Reactor) standBy(s *standby) {
	eng, err := r.newThread()
	s.answers <- err == nil
	if err != nil {
		return
	}
	for word := range s.words {
		if !r.guard.word.CompareAndSwap(word, word+1) {
			s.answers <- false
			continue
		}
		r.guard.ready.Store(false)
		s.answers <- true
		r.goOn(eng)
		r.loop(eng)
		return
	}
	eng.close()
}

// goOn makes the reactor, whose thread is stuck in r.calling or in its engine, that of the calling
// goroutine and of eng.
func (r *Reactor) goOn(eng engine) {
	old := r.eng
	r.eng = eng
	r.signals.tid = sys.ThreadID()
	r.guard.thread.Store(int64(sys.ThreadID()))
	r.Now()
	if r.calling != nil {
		r.isStuck(r.calling)
	}
	old.handOver()
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

// isStuck says that o keeps a thread, and that others of its file may.
func (r *Reactor) isStuck(o *op) {
	f := r.of(o)
	if o.mayWait || o.aside {
		f.begun--
		o.mayWait, o.aside = false, false
	}
	o.stuck = true
	f.stuck++
	r.stuck++
}

// lostInSubmit stands for the transfer over which a reactor was lost, where that was the submission
// of several.
var lostInSubmit = new(op)
