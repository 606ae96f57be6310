package reactor

import "vdev/devsw"

var _ devsw.Watcher = (*Reactor)(nil)

// watch is a devsw.Watched as a Source.
type watch struct {
	r    *Reactor
	w    devsw.Watched
	s    *Source
	over bool
}

// Watch implements devsw.Watcher. Any goroutine.
func (r *Reactor) Watch(fd int, w devsw.Watched) (wake func()) {
	h := &watch{r: r, w: w}
	r.Post(func() {
		s, err := r.Add(h, fd)
		if err != nil {
			// Then it is looked at all the time.
			s, _ = r.Add(h, -1)
		}
		h.s = s
	})
	poke := h.poke
	return func() { r.Post(poke) }
}

// poke polls now: a reactor that is ending has no other time.
func (h *watch) poke() {
	if !h.over {
		h.s.Wake()
		h.Poll()
	}
}

// Poll implements Poller.
func (h *watch) Poll() (worked bool) {
	if h.over {
		return false
	}
	worked, h.over = h.w.Poll()
	if h.over {
		h.r.Remove(h.s)
		h.w.Over()
	}
	return worked
}

// Arm implements Poller.
func (h *watch) Arm() (pending bool) {
	if h.Poll() || h.over {
		return true
	}
	h.w.Sleep()
	return false
}

// Disarm implements Poller.
func (h *watch) Disarm() {}

// Flush implements Poller.
func (h *watch) Flush() {}
