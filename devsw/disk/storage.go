package disk

import (
	"container/list"
	"context"
	"sync"

	"vdev/devsw"
)

// Storage is where a disk keeps its bytes, for a driver whose functions may block: NewDisk makes a
// Disk of it. All are called on goroutines that belong to nobody else, never on an event loop's,
// and all but Open and Close also at the same time.
//
// The context of a call is done when the device is cancelled, or the one transfer. The function is
// to return soon then, with any error: the device is not closed before it has, and the next open
// waits for that. An error that wraps a devsw.Errno is that for the transfer; others are EIO, and
// those of package context ECANCELED and ETIMEDOUT.
type Storage interface {
	// Info describes the disk, open or not: Size (bytes), and what else is known of it. A
	// SectorSize of 0 means 512. Discard and WriteZeroes need not be set: see Discarder and Zeroer.
	Info() (devsw.DiskInfo, error)

	// Open is called at the first open of the disk. flag is as for Disk.Open.
	Open(ctx context.Context, flag devsw.Flag) error

	// Close is called after the last close of the disk, once for each Open that has gone well.
	// While it runs no other function of the Storage does but Info.
	Close()

	// ReadAt fills p from byte off of the disk on: all of it, or it is an error. p is whole sectors
	// within the disk, at most 1 MiB, and the caller's again when ReadAt returns. A transfer that
	// is longer takes several calls.
	ReadAt(ctx context.Context, p []byte, off int64) error

	// WriteAt writes p to byte off of the disk on: all of it, or it is an error. p is as for
	// ReadAt.
	WriteAt(ctx context.Context, p []byte, off int64) error

	// Flush puts every write that has returned on stable storage.
	Flush(ctx context.Context) error
}

// Discarder is a Storage that can discard.
type Discarder interface {
	// Discard discards n bytes from byte pos on, which are whole sectors of a disk that is not
	// read-only.
	Discard(ctx context.Context, pos, n int64) error
}

// Zeroer is a Storage that can write zeroes faster than by WriteAt.
type Zeroer interface {
	// WriteZeroes makes n bytes from byte pos on zero, which are whole sectors of a disk that is
	// not read-only. unmap says that they may be discarded, if they read as zeroes then.
	WriteZeroes(ctx context.Context, pos, n int64, unmap bool) error
}

const (
	// maxWorkers is how many transfers of a disk on a Storage are in progress at once. More wait:
	// they cost no goroutine.
	maxWorkers = 16
	// pieceBytes is how much of a transfer goes to a Storage at a time, and what memory a transfer
	// in progress takes.
	pieceBytes = 1 << 20
)

// NewDisk makes a Disk of a Storage. It copies between the Storage's memory and that of transfers,
// which another process may take away at any time (devsw.Buf.MoveAt). At most 16 transfers are in
// progress at once; what has not begun when it is cancelled never does.
func NewDisk(s Storage) Disk { return storageDisk{s} }

type storageDisk struct{ s Storage }

// Info implements Disk.
func (d storageDisk) Info() (devsw.DiskInfo, error) {
	info, err := d.s.Info()
	if info.SectorSize == 0 {
		info.SectorSize = devsw.DEVBSIZE
	}
	_, discards := d.s.(Discarder)
	_, zeroes := d.s.(Zeroer)
	info.Discard, info.WriteZeroes = discards && !info.ReadOnly, zeroes && !info.ReadOnly
	return info, err
}

// Open implements Disk.
func (d storageDisk) Open(ctx context.Context, flag devsw.Flag) (Medium, error) {
	if err := d.s.Open(ctx, flag); err != nil {
		return nil, err
	}
	info, err := d.Info()
	if err != nil {
		d.s.Close()
		return nil, err
	}
	m := &stored{Base: NewBase(info), s: d.s, works: make(map[*devsw.Buf]*work)}
	m.ctx, m.interrupt = context.WithCancel(context.Background())
	return m, nil
}

// Destroy implements Disk.
func (d storageDisk) Destroy() {}

// stored is a Storage that is open.
type stored struct {
	*Base
	s         Storage
	ctx       context.Context // done when d_cancel has been
	interrupt context.CancelFunc

	mu      sync.Mutex
	works   map[*devsw.Buf]*work // in progress
	waiting list.List            // of those that have not begun: *work, the oldest first
	workers int
}

// work is a transfer in progress.
type work struct {
	b      *devsw.Buf
	off, n int64         // bytes, on the disk
	at     *list.Element // where it waits; nil once it has begun
	cancel context.CancelFunc
}

// Transfer implements Medium. What comes after Cancel ends with ECANCELED, since its context does.
func (m *stored) Transfer(b *devsw.Buf, off, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := &work{b: b, off: off, n: n}
	m.works[b], w.at = w, m.waiting.PushBack(w)
	if m.workers < maxWorkers {
		m.workers++
		go m.work()
	}
}

// work does what waits, and ends when nothing does.
func (m *stored) work() {
	for {
		m.mu.Lock()
		front := m.waiting.Front()
		if front == nil {
			m.workers--
			m.mu.Unlock()
			return
		}
		w := m.waiting.Remove(front).(*work)
		var ctx context.Context
		ctx, w.cancel = context.WithCancel(m.ctx)
		w.at = nil
		m.mu.Unlock()

		moved, err := m.transfer(ctx, w)
		w.cancel()

		m.mu.Lock()
		delete(m.works, w.b)
		m.mu.Unlock()
		w.b.Error, w.b.Resid = devsw.ToErrno(err), w.b.Bcount-moved
		w.b.Biodone()
	}
}

var pieces = sync.Pool{New: func() any { return new([pieceBytes]byte) }}

// transfer does one, in pieces, and returns how many bytes it has transferred.
func (m *stored) transfer(ctx context.Context, w *work) (moved int64, err error) {
	piece := pieces.Get().(*[pieceBytes]byte)
	defer pieces.Put(piece)
	write := w.b.Op == devsw.BWrite
	for moved < w.n {
		if err := ctx.Err(); err != nil {
			return moved, err
		}
		p := piece[:min(w.n-moved, pieceBytes)]
		if write {
			if e := w.b.MoveAt(p, moved); e != 0 {
				return moved, e
			}
			err = m.s.WriteAt(ctx, p, w.off+moved)
		} else if err = m.s.ReadAt(ctx, p, w.off+moved); err == nil {
			if e := w.b.MoveAt(p, moved); e != 0 {
				return moved, e
			}
		}
		if err != nil {
			return moved, err
		}
		moved += int64(len(p))
	}
	if write && w.b.Flags&devsw.BMediaFUA != 0 {
		if err := m.s.Flush(ctx); err != nil {
			return 0, err
		}
	}
	return moved, nil
}

// CancelBuf implements Medium.
func (m *stored) CancelBuf(b *devsw.Buf) {
	m.mu.Lock()
	w := m.works[b]
	switch {
	case w == nil:
		m.mu.Unlock()
	case w.at == nil:
		w.cancel()
		m.mu.Unlock()
	default:
		m.takeLocked(w)
		m.mu.Unlock()
		b.Fail(devsw.ECANCELED)
	}
}

// takeLocked takes out a transfer that has not begun.
func (m *stored) takeLocked(w *work) {
	m.waiting.Remove(w.at)
	delete(m.works, w.b)
}

// Cancel implements Medium.
func (m *stored) Cancel() {
	m.interrupt()
	m.mu.Lock()
	var cancelled []*devsw.Buf
	for e := m.waiting.Front(); e != nil; e = m.waiting.Front() {
		w := e.Value.(*work)
		m.takeLocked(w)
		cancelled = append(cancelled, w.b)
	}
	m.mu.Unlock()
	for _, b := range cancelled {
		b.Fail(devsw.ECANCELED)
	}
}

// Close implements Medium.
func (m *stored) Close() {
	m.interrupt()
	m.s.Close()
}

// Flush implements Medium.
func (m *stored) Flush() error { return m.s.Flush(m.ctx) }

// Discard implements Medium.
func (m *stored) Discard(pos, n int64) error {
	if d, ok := m.s.(Discarder); ok {
		return d.Discard(m.ctx, pos, n)
	}
	return devsw.EOPNOTSUPP
}

// WriteZeroes implements Medium.
func (m *stored) WriteZeroes(pos, n int64, unmap bool) error {
	if z, ok := m.s.(Zeroer); ok {
		return z.WriteZeroes(m.ctx, pos, n, unmap)
	}
	return devsw.EOPNOTSUPP
}

// Grow implements Medium.
func (m *stored) Grow() (int64, error) {
	info, err := m.s.Info()
	if err != nil {
		return 0, err
	}
	return m.Resize(info.Size), nil
}
