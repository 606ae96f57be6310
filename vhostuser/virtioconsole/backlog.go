package virtioconsole

import (
	"sync"
	"sync/atomic"
)

// backlogSize is how many bytes of a console's output are kept while its device does not take them.
const backlogSize = 64 << 10

// backlog is what a console's device has not taken, the newest backlogSize bytes of it. Any
// goroutine adds to it; one at a time takes from it. The zero backlog is empty, and has no memory.
type backlog struct {
	mu    sync.Mutex // a leaf
	ring  []byte     // backlogSize long, nil while empty
	start uint64     // number of the oldest byte that is kept; it is at start%backlogSize
	end   uint64     // number of the byte after the newest

	any atomic.Bool // something is kept
}

// add keeps p, and returns how many bytes are lost for it, p's own among them. p may be memory that
// is taken away in the midst: then add panics, and what was copied before is kept.
func (b *backlog) add(p []byte) (lost int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { b.any.Store(b.end != b.start) }()
	if over := len(p) - backlogSize; over > 0 {
		lost = over + int(b.end-b.start)
		b.end += uint64(over)
		b.start = b.end
		p = p[over:]
	}
	if b.ring == nil && len(p) > 0 {
		b.ring = make([]byte, backlogSize)
	}
	for len(p) > 0 {
		to := b.ring[b.end%backlogSize:]
		to = to[:min(len(to), len(p))]
		// In this order: what is overwritten is not kept, and what is kept was written.
		if over := int(b.end-b.start) + len(to) - backlogSize; over > 0 {
			b.start += uint64(over)
			lost += over
		}
		copy(to, p)
		b.end += uint64(len(to))
		p = p[len(to):]
	}
	return lost
}

// empty tells whether nothing is kept. It takes no lock.
func (b *backlog) empty() bool { return !b.any.Load() }

// len returns how many bytes are kept.
func (b *backlog) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int(b.end - b.start)
}

// oldest copies the oldest bytes to p, and returns the number of the first and how many there are.
func (b *backlog) oldest(p []byte) (at uint64, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for at = b.start; n < len(p) && at+uint64(n) < b.end; {
		from := b.ring[(at+uint64(n))%backlogSize:]
		n += copy(p[n:], from[:min(uint64(len(from)), b.end-at-uint64(n))])
	}
	return at, n
}

// drop forgets the bytes before number to.
func (b *backlog) drop(to uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.start = max(b.start, min(to, b.end))
	if b.start == b.end {
		b.ring = nil
		b.any.Store(false)
	}
}
