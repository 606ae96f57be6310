package vnd

import (
	"slices"
	"sync"

	"vdev/devsw"
)

// ranges keeps writes apart that touch the same block, where at least one of them touches it in part and so writes back what it
// has read of the rest. Writes of whole blocks do not keep each other apart. Those that wait do so in the order they came.
type ranges struct {
	mu      sync.Mutex
	held    []*op
	waiting []*op
}

// lock takes the blocks of o, or notes o and returns false: o.resume is called later, or o ended by cancel.
func (r *ranges) lock(o *op) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if collides(o, r.held) || collides(o, r.waiting) {
		r.waiting = append(r.waiting, o)
		return false
	}
	o.held = true
	r.held = append(r.held, o)
	return true
}

// unlock gives the blocks of o back, and resumes who waited for them.
func (r *ranges) unlock(o *op) {
	r.mu.Lock()
	i := slices.Index(r.held, o)
	r.held = slices.Delete(r.held, i, i+1)
	r.resumeUnlock()
}

// resumeUnlock gives those that wait their blocks, if they are free now, and resumes them. It is called with mu held and returns
// without.
func (r *ranges) resumeUnlock() {
	var free, still []*op
	for _, w := range r.waiting {
		if collides(w, r.held) || collides(w, still) {
			still = append(still, w)
			continue
		}
		w.held = true
		r.held = append(r.held, w)
		free = append(free, w)
	}
	r.waiting = still
	r.mu.Unlock()
	for _, w := range free {
		w.resume()
	}
}

// cancelBuf ends the op of b with ECANCELED, if it waits.
func (r *ranges) cancelBuf(b *devsw.Buf) {
	r.mu.Lock()
	i := slices.IndexFunc(r.waiting, func(o *op) bool { return o.b == b })
	if i < 0 {
		r.mu.Unlock()
		return
	}
	o := r.waiting[i]
	r.waiting = slices.Delete(r.waiting, i, i+1)
	// Others may have waited for this one alone.
	r.resumeUnlock()
	o.end(devsw.ECANCELED)
}

// cancel ends all that wait with ECANCELED.
func (r *ranges) cancel() {
	r.mu.Lock()
	waiting := r.waiting
	r.waiting = nil
	r.mu.Unlock()
	for _, o := range waiting {
		o.end(devsw.ECANCELED)
	}
}

func collides(o *op, with []*op) bool {
	return slices.ContainsFunc(with, func(w *op) bool {
		return o.lo < w.hi && w.lo < o.hi && !(o.whole && w.whole)
	})
}
