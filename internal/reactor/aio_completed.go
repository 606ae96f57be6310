package reactor

// complete hands o back to its reactor, with its result in o.res and o.errno. Any goroutine.
func (r *Reactor) complete(o *op) {
	for {
		o.next = r.completed.Load()
		if r.completed.CompareAndSwap(o.next, o) {
			break
		}
	}
	r.nudge()
}

// takeCompleted ends the transfers that others have handed back, in their order. On the reactor.
func (r *Reactor) takeCompleted() {
	for o := reverse(r.completed.Swap(nil)); o != nil; {
		next := o.next
		o.next = nil
		if o.stuck {
			o.stuck = false
			r.stuck--
			r.of(o).back(r.clock)
		}
		o.ended(o.res, o.errno)
		o = next
	}
}

// reverse returns the last of a list as its first.
func reverse(o *op) (head *op) {
	for o != nil {
		o.next, head, o = head, o, o.next
	}
	return head
}
