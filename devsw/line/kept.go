package line

import (
	"sync"

	"vdev/devsw"
)

// chunkBytes is how much a chunk holds: with the rest of it, it is 8 KiB.
const chunkBytes = 8<<10 - 32

// chunk is a piece of the output. It is filled from the beginning and never overwritten while
// somebody refers to it, so what is in it is read without a lock.
type chunk struct {
	next  *chunk
	start int64 // the position of data[0]
	refs  int   // the kept, while it has the chunk, and each batch with bytes of it
	data  [chunkBytes]byte
}

var chunks = sync.Pool{New: func() any { return new(chunk) }}

// kept is what is there of the output: the bytes at the positions head to tail, counted from the
// line's first byte. It grows as it is written to. It is guarded by its user's lock, and so are the
// chunks, but for the bytes of a batch.
type kept struct {
	first, last *chunk
	head, tail  int64
}

// write appends the first n bytes of u. EFAULT where memory of u has vanished: what comes before it
// is appended, and u is moved on by that.
func (k *kept) write(u *devsw.Uio, n int) error {
	if k.last != nil && k.head == k.tail && k.first == k.last && k.last.refs == 1 {
		k.last.start = k.tail // it is empty: fill it from the beginning
	}
	for n > 0 {
		if k.last == nil || k.tail == k.last.start+chunkBytes {
			k.grow()
		}
		free := k.last.data[k.tail-k.last.start:]
		moved, e := u.Move(free[:min(n, len(free))])
		k.tail += int64(moved)
		n -= moved
		if e != 0 {
			return e
		}
	}
	return nil
}

func (k *kept) grow() {
	c := chunks.Get().(*chunk)
	c.next, c.start, c.refs = nil, k.tail, 1
	if k.last == nil {
		k.first = c
	} else {
		k.last.next = c
	}
	k.last = c
}

// skip has n bytes come and go at once, with all that is kept.
func (k *kept) skip(n int64) {
	k.drop(k.tail)
	for c := k.first; c != nil; c = k.first {
		k.first = c.next
		c.release()
	}
	k.last = nil
	k.tail += n
	k.head = k.tail
}

// drop lets go of what comes before to, which is at most tail.
func (k *kept) drop(to int64) {
	k.head = max(k.head, to)
	for k.first != k.last && k.first.start+chunkBytes <= k.head {
		c := k.first
		k.first = c.next
		c.release()
	}
}

func (c *chunk) release() {
	if c.refs--; c.refs == 0 {
		chunks.Put(c)
	}
}

// cursor is how far an end has got.
type cursor struct {
	pos int64
	// at has the byte before pos, or that at pos. It counts only while pos is beyond head: it may
	// be gone else.
	at *chunk
}

// batch is what an end writes at once. Nobody changes the bytes meanwhile.
type batch struct {
	first  *chunk
	pieces [8][]byte
	n      int // of pieces
}

// next puts into b what comes next for c, as much as b takes, and tells how many bytes c has lost
// because it was overtaken. The batch is to be given back by done.
func (k *kept) next(c *cursor, b *batch) (lost int64) {
	lost = max(0, k.head-c.pos)
	c.pos += lost
	if c.at == nil || c.pos <= k.head {
		c.at = k.first
	}
	b.n = 0
	for pos := c.pos; pos < k.tail && b.n < len(b.pieces); b.n++ {
		for pos >= c.at.start+chunkBytes {
			c.at = c.at.next
		}
		if b.n == 0 {
			b.first = c.at
		}
		end := min(k.tail, c.at.start+chunkBytes)
		b.pieces[b.n] = c.at.data[pos-c.at.start : end-c.at.start]
		c.at.refs++
		pos = end
	}
	return lost
}

// done gives b back, of which n bytes were written, and moves c on by them.
func (k *kept) done(c *cursor, b *batch, n int) {
	c.pos += int64(n)
	at := b.first
	for range b.n {
		if c.at = at; at.start+chunkBytes >= c.pos {
			break
		}
		at = at.next
	}
	for at = b.first; b.n > 0; b.n-- {
		next := at.next
		at.release()
		at = next
	}
	b.first = nil
	clear(b.pieces[:])
}
