package vnd

import (
	"container/list"
	"slices"
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// maxThreads is the number of goroutines, and so of threads in system calls, that serve one image.
const maxThreads = 16

// threads is an AIO for Bufs that come without one: goroutines that read and write, and go when
// nothing is left to do. Other than the AIO of a context it may be used on any goroutine, and calls
// done on its own. The zero value is ready.
type threads struct {
	mu      sync.Mutex
	queue   list.List // of transfer: what has not begun, oldest first
	begun   uint64    // transfers
	in      devsw.BufIndex[*list.Element]
	running int
}

type transfer struct {
	b    *devsw.Buf
	fd   int
	off  int64
	done devsw.AIODone
}

// ReadAt implements devsw.AIO.
func (t *threads) ReadAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	t.add(transfer{b, fd, off, done})
}

// WriteAt implements devsw.AIO.
func (t *threads) WriteAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	t.add(transfer{b, fd, off, done})
}

// CancelAll implements devsw.AIO: what has not begun ends with ECANCELED. What is in a system call
// cannot be interrupted.
func (t *threads) CancelAll(done devsw.AIODone) {
	t.mu.Lock()
	var cancelled []transfer
	for e := t.queue.Front(); e != nil; {
		next := e.Next()
		if e.Value.(transfer).done == done {
			cancelled = append(cancelled, t.takeLocked(e))
		}
		e = next
	}
	t.mu.Unlock()
	for _, x := range cancelled {
		x.done.AIODone(x.b, 0, devsw.ECANCELED)
	}
}

// Cancel implements devsw.AIO, like CancelAll.
func (t *threads) Cancel(b *devsw.Buf) {
	t.mu.Lock()
	e, ok := t.in.Find(b, t.begun, func(yield func(*devsw.Buf, *list.Element) bool) {
		for e := t.queue.Front(); e != nil; e = e.Next() {
			if !yield(e.Value.(transfer).b, e) {
				return
			}
		}
	})
	if !ok {
		t.mu.Unlock()
		return
	}
	x := t.takeLocked(e)
	t.mu.Unlock()
	x.done.AIODone(x.b, 0, devsw.ECANCELED)
}

// takeLocked takes a transfer out of the queue.
func (t *threads) takeLocked(e *list.Element) transfer {
	x := t.queue.Remove(e).(transfer)
	t.in.Ended(x.b)
	return x
}

func (t *threads) add(x transfer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue.PushBack(x)
	t.begun++
	if t.running < maxThreads {
		t.running++
		go t.run()
	}
}

func (t *threads) run() {
	for {
		t.mu.Lock()
		if t.queue.Len() == 0 {
			t.running--
			t.mu.Unlock()
			return
		}
		x := t.takeLocked(t.queue.Front())
		t.mu.Unlock()
		n, e := x.do()
		x.done.AIODone(x.b, n, e)
	}
}

// do transfers everything, up to the end of the file.
func (x *transfer) do() (n int64, e devsw.Errno) {
	data := slices.Clone(x.b.Data)
	for n < x.b.Bcount {
		var k int
		if x.b.Op == devsw.BRead {
			k, e = sys.Preadv(x.fd, data, x.off+n)
		} else {
			k, e = sys.Pwritev(x.fd, data, x.off+n, x.b.Flags&devsw.BMediaFUA != 0)
		}
		if e != 0 || k == 0 {
			return n, e
		}
		n += int64(k)
		for len(data) > 0 && k >= len(data[0]) {
			k -= len(data[0])
			data = data[1:]
		}
		if k > 0 {
			data[0] = data[0][k:]
		}
	}
	return n, 0
}
