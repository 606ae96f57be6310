package line

import (
	"io"
	"sync"

	"vdev/devsw"
)

// Queue holds the input of an End that cannot read without waiting: somebody else reads, and puts
// it here. It is bounded: Put waits for room. Make one with NewQueue. Its methods may be called on
// any goroutine.
type Queue struct {
	ready func()

	mu    sync.Mutex
	room  sync.Cond
	ring  []byte // of the bytes from..from+n, modulo its length; nil while it was never needed
	size  int
	from  int
	n     int
	state queueState
}

type queueState uint8

const (
	queueOpen  queueState = iota
	queueEnded            // nothing more is put
	queueClosed
)

// NewQueue makes an empty queue for size bytes; 0: 4 KiB. ready is called after something was put
// where nothing was, or when the end has come: it is Base.Ready.
func NewQueue(size int, ready func()) *Queue {
	if size <= 0 {
		size = 4 << 10
	}
	q := &Queue{ready: ready, size: size}
	q.room.L = &q.mu
	return q
}

// Put puts all of p in, and waits for room. io.ErrClosedPipe: the queue was closed, or its end was
// put; n bytes of p were put before.
func (q *Queue) Put(p []byte) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for n < len(p) {
		for q.n == q.size && q.state == queueOpen {
			q.room.Wait()
		}
		if q.state != queueOpen {
			return n, io.ErrClosedPipe
		}
		if q.ring == nil {
			q.ring = make([]byte, q.size)
		}
		was := q.n
		for n < len(p) && q.n < q.size {
			at := (q.from + q.n) % q.size
			k := copy(q.ring[at:min(q.size, at+q.size-q.n)], p[n:])
			q.n += k
			n += k
		}
		if was == 0 {
			q.mu.Unlock()
			q.ready()
			q.mu.Lock()
		}
	}
	return n, nil
}

// Readv is that of an Input.
func (q *Queue) Readv(p [][]byte) (n int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.state == queueClosed {
		return 0, io.EOF
	}
	if q.n == q.size {
		defer q.room.Broadcast()
	}
	for _, to := range p {
		for len(to) > 0 && q.n > 0 {
			k, e := devsw.Kcopy(to, q.ring[q.from:min(q.size, q.from+q.n)])
			if e != 0 && n > 0 {
				return n, nil
			}
			if e != 0 {
				return 0, e
			}
			to = to[k:]
			q.from = (q.from + k) % q.size
			q.n -= k
			n += k
		}
	}
	switch {
	case n > 0:
		return n, nil
	case q.state == queueEnded:
		return 0, io.EOF
	}
	return 0, devsw.EAGAIN
}

// Empty tells whether there is nothing to read at the moment.
func (q *Queue) Empty() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.n == 0
}

// CloseWrite puts the end: after what is there, Readv answers io.EOF.
func (q *Queue) CloseWrite() { q.end(queueEnded) }

// Close ends every Put. Readv answers io.EOF from now on.
func (q *Queue) Close() { q.end(queueClosed) }

func (q *Queue) end(s queueState) {
	q.mu.Lock()
	q.state = max(q.state, s)
	q.room.Broadcast()
	q.mu.Unlock()
	q.ready()
}
