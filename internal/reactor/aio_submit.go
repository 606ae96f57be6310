package reactor

// start hands o to the engine, or, where it is likely to be stuck, to threads: mayStall looks at
// what the engine has.
func (o *op) start() {
	if o.r.stuck > 0 && o.r.of(o).stuck > 0 {
		o.byThread()
		return
	}
	if o.mayWait, o.aside = o.r.submitWaits(o); o.mayWait || o.aside {
		if o.mayWait && o.r.eng.full() {
			o.mayWait = false
			o.r.awaitTurn(o)
			return
		}
		o.r.of(o).begun++
	}
	o.place = inEngine
	o.r.inEngine++
	o.r.eng.start(o)
}

// byThread has o made by a thread of the crew.
func (o *op) byThread() {
	o.place = inThread
	o.r.crew.of(o).put(o)
}

// readAhead is how many bytes the kernel reads at once of a file, as a rule: what is longer it goes
// on with when the first part has come.
const readAhead = 128 << 10

// submitWaits tells whether the submission of o may wait: io_uring begins a read by the page cache
// then and there, for which the disk's queue must have room, and a disk that does not answer has
// none soon. aside: then a thread of the kernel's is to do that, since no thread stands by here,
// since the disk has enough of the file's already (mostBegun), or since what is begun later, beyond
// readAhead, would be begun while the reactor sleeps.
func (r *Reactor) submitWaits(o *op) (waits, aside bool) {
	if o.forced || o.fd < 0 || r.mode != ModeURing {
		return false, false
	}
	f := r.of(o)
	switch {
	case !f.buffered:
		return false, false
	case o.pieceBytes() > readAhead, f.begun >= mostBegun, !r.stoodBy():
		return false, true
	}
	return true, false
}

// submit has the engine begin what was started, where it may have to wait for that. It is false
// where the reactor was lost over it.
func (r *Reactor) submit() (kept bool) {
	if !r.eng.waits() {
		return true
	}
	r.calling = nil
	eng := r.eng
	eng.fill()
	word := r.guard.enter()
	eng.submit()
	if !r.guard.leave(word) {
		return false
	}
	eng.submitted()
	return true
}
