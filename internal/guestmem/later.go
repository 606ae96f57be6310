package guestmem

import "sync"

// later has the regions of a Space that are to be freed where nobody waits for it. One goroutine
// frees them, whatever their number, and ends with the last one. There is no bound but the Space's:
// the mappings count there until they are unmapped.
type later struct {
	mu      sync.Mutex
	regions []*Region
	running bool // there is a goroutine
}

// put has r freed soon.
func (l *later) put(r *Region) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.regions = append(l.regions, r)
	if !l.running {
		l.running = true
		go l.free()
	}
}

// free frees what there is. It is the goroutine.
func (l *later) free() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.regions) > 0 {
		regions := l.regions
		l.regions = nil
		l.mu.Unlock()
		for _, r := range regions {
			r.free()
		}
		l.mu.Lock()
	}
	l.running = false
}
