// Package disktest has what the tests of the disk drivers share: an AIO under the test's control,
// and a model of a disk with which to compare drivers.
package disktest

import (
	"slices"
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// AIO is a devsw.AIO that does what it is told when it is told: transfers wait until Step or Drain
// carries them out, on the goroutine that calls it. CancelAll may be called on any goroutine,
// everything else on one.
type AIO struct {
	Inline bool // transfers are carried out before ReadAt or WriteAt return

	// Fault, where it is set, decides how a transfer ends: e other than 0 is its error after n
	// bytes, without I/O; n of -1 lets it go as it goes.
	Fault func(b *devsw.Buf, off int64) (n int64, e devsw.Errno)

	mu      sync.Mutex
	pending []*Transfer
	cancels []devsw.AIODone
}

// Transfer is one that waits in an AIO.
type Transfer struct {
	Buf       *devsw.Buf
	FD        int
	Off       int64
	Done      devsw.AIODone
	Cancelled bool
}

// ReadAt implements devsw.AIO.
func (a *AIO) ReadAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	if b.Op != devsw.BRead {
		panic("disktest: ReadAt of a " + b.Op.String())
	}
	a.add(b, fd, off, done)
}

// WriteAt implements devsw.AIO.
func (a *AIO) WriteAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	if b.Op != devsw.BWrite {
		panic("disktest: WriteAt of a " + b.Op.String())
	}
	a.add(b, fd, off, done)
}

func (a *AIO) add(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	if a.Inline {
		a.run(b, fd, off, done)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending = append(a.pending, &Transfer{Buf: b, FD: fd, Off: off, Done: done})
}

// Cancel implements devsw.AIO: b ends with ECANCELED when its turn comes, if it waits.
func (a *AIO) Cancel(b *devsw.Buf) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, t := range a.pending {
		if t.Buf == b {
			t.Cancelled = true
		}
	}
}

// CancelAll implements devsw.AIO: what waits with this done ends with ECANCELED when its turn
// comes.
func (a *AIO) CancelAll(done devsw.AIODone) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancels = append(a.cancels, done)
	for _, t := range a.pending {
		if t.Done == done {
			t.Cancelled = true
		}
	}
}

// Cancels returns the dones that CancelAll was called with.
func (a *AIO) Cancels() []devsw.AIODone {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.cancels)
}

// Pending returns the number of transfers that wait.
func (a *AIO) Pending() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.pending)
}

// Step carries out the i-th of the transfers that wait.
func (a *AIO) Step(i int) {
	a.mu.Lock()
	t := a.pending[i]
	a.pending = slices.Delete(a.pending, i, i+1)
	a.mu.Unlock()
	if t.Cancelled {
		t.Buf.InContext = true
		t.Done.AIODone(t.Buf, 0, devsw.ECANCELED)
		return
	}
	a.run(t.Buf, t.FD, t.Off, t.Done)
}

// Drain carries out everything that waits, and what comes of it, oldest first.
func (a *AIO) Drain() {
	for a.Pending() > 0 {
		a.Step(0)
	}
}

func (a *AIO) run(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	b.InContext = true
	if a.Fault != nil {
		if n, e := a.Fault(b, off); n >= 0 {
			done.AIODone(b, n, e)
			return
		}
	}
	n, e := transfer(b, fd, off)
	done.AIODone(b, n, e)
}

// transfer goes on until everything is transferred, as the interface has it.
func transfer(b *devsw.Buf, fd int, off int64) (moved int64, e devsw.Errno) {
	data := slices.Clone(b.Data)
	for moved < b.Bcount {
		var n int
		if b.Op == devsw.BRead {
			n, e = sys.Preadv(fd, data, off+moved)
		} else {
			n, e = sys.Pwritev(fd, data, off+moved, b.Flags&devsw.BMediaFUA != 0)
		}
		if e != 0 || n == 0 {
			break
		}
		moved += int64(n)
		for len(data) > 0 && n >= len(data[0]) {
			n -= len(data[0])
			data = data[1:]
		}
		if n > 0 {
			data[0] = data[0][n:]
		}
	}
	return moved, e
}

// Discard is an AIO that carries nothing out and allocates nothing, for measuring drivers.
type Discard struct{}

// ReadAt implements devsw.AIO.
func (*Discard) ReadAt(b *devsw.Buf, _ int, _ int64, done devsw.AIODone) {
	done.AIODone(b, b.Bcount, 0)
}

// WriteAt implements devsw.AIO.
func (*Discard) WriteAt(b *devsw.Buf, _ int, _ int64, done devsw.AIODone) {
	b.InContext = true
	done.AIODone(b, b.Bcount, 0)
}

// Cancel implements devsw.AIO.
func (*Discard) Cancel(*devsw.Buf) {}

// CancelAll implements devsw.AIO.
func (*Discard) CancelAll(devsw.AIODone) {}
