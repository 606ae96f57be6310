package vnd

import (
	"slices"
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// maxThreads is the number of goroutines, and so of threads in system calls, that serve one image.
const maxThreads = 16

// threads is an AIO for Bufs that come without one: goroutines that read and write, and go when nothing is left to do. Other than
// the AIO of a context it may be used on any goroutine, and calls done on its own. The zero value is ready.
type threads struct {
	mu      sync.Mutex
	queue   []transfer
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

// CancelAll implements devsw.AIO: what has not begun ends with ECANCELED. What is in a system call cannot be interrupted.
func (t *threads) CancelAll(done devsw.AIODone) {
	t.cancel(func(x transfer) bool { return x.done == done })
}

// Cancel implements devsw.AIO, like CancelAll.
func (t *threads) Cancel(b *devsw.Buf) {
	t.cancel(func(x transfer) bool { return x.b == b })
}

// cancel ends what is wanted of that which has not begun.
func (t *threads) cancel(want func(transfer) bool) {
	t.mu.Lock()
	var cancelled []transfer
	t.queue = slices.DeleteFunc(t.queue, func(x transfer) bool {
		if want(x) {
			cancelled = append(cancelled, x)
			return true
		}
		return false
	})
	t.mu.Unlock()
	for _, x := range cancelled {
		x.done.AIODone(x.b, 0, devsw.ECANCELED)
	}
}

func (t *threads) add(x transfer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.queue = append(t.queue, x)
	if t.running < maxThreads {
		t.running++
		go t.run()
	}
}

func (t *threads) run() {
	for {
		t.mu.Lock()
		if len(t.queue) == 0 {
			t.running--
			t.mu.Unlock()
			return
		}
		x := t.queue[0]
		t.queue = slices.Delete(t.queue, 0, 1)
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
