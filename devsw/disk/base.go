package disk

import (
	"sync"
	"sync/atomic"

	"vdev/devsw"
)

// Base is what every Medium has in it, as an embedded *Base: what the disk is like, where it ends,
// and what a Medium answers that has no function of its own. Its methods may be called on any
// goroutine.
type Base struct {
	info devsw.DiskInfo // without the size

	size atomic.Int64 // bytes, whole sectors
	high atomic.Int64 // the largest size was; raised before size is

	cancelled atomic.Bool

	mu sync.Mutex // serialises Resize
}

// NewBase makes a Base for a Medium that is as info says. A SectorSize of 0 means 512. Of the Size,
// what does not make a whole sector is not used.
func NewBase(info devsw.DiskInfo) *Base {
	if info.SectorSize == 0 {
		info.SectorSize = devsw.DEVBSIZE
	}
	m := &Base{info: info}
	m.Resize(info.Size)
	return m
}

func (m *Base) base() *Base { return m }

// Bounds returns where transfers end now.
func (m *Base) Bounds() Bounds {
	// In this order: see high.
	size := m.size.Load()
	return Bounds{Size: size, High: m.high.Load(), Sector: int64(m.info.SectorSize), ReadOnly: m.info.ReadOnly}
}

// within tells whether all of b can be transferred, and then gives the byte offset on the disk. It
// is Check for the usual case.
func (m *Base) within(b *devsw.Buf) (off int64, ok bool) {
	n, size := b.Bcount, m.size.Load()
	off = b.Blkno * devsw.DEVBSIZE
	return off, n > 0 && uint64(b.Blkno) <= uint64(size)/devsw.DEVBSIZE && n <= size-off &&
		(off|n)&(int64(m.info.SectorSize)-1) == 0 && (b.Op == devsw.BRead || !m.info.ReadOnly)
}

// Resize says that the disk has size bytes from now on. It returns the new size in whole sectors.
// Nothing is told to anybody: Medium.Grow, where this belongs, is asked.
func (m *Base) Resize(size int64) int64 {
	size &^= int64(m.info.SectorSize) - 1
	m.mu.Lock()
	defer m.mu.Unlock()
	m.high.Store(max(m.high.Load(), size))
	m.size.Store(size)
	return size
}

// Cancelled tells whether the device was cancelled (d_cancel): it is so before Medium.Cancel is
// called, and stays so. What begins afterwards is to end with ECANCELED.
func (m *Base) Cancelled() bool { return m.cancelled.Load() }

// Info returns what NewBase was given, with the size of now.
func (m *Base) Info() devsw.DiskInfo {
	info := m.info
	info.Size = m.size.Load()
	return info
}

// CancelBuf has the Buf's AIO interrupt the transfer, which is all where transfers are done there,
// or by Base.CopyTurns.
func (m *Base) CancelBuf(b *devsw.Buf) {
	if b.AIO != nil {
		b.AIO.Cancel(b)
	}
}

// Cancel does nothing: it is for a Medium whose operations end by themselves, without waiting.
func (m *Base) Cancel() {}

// Close does nothing.
func (m *Base) Close() {}

// Flush does nothing: it is for a Medium that has nothing more stable than what a write reaches.
func (m *Base) Flush() error { return nil }

// Discard returns EOPNOTSUPP: that does not work here.
func (m *Base) Discard(pos, n int64) error { return devsw.EOPNOTSUPP }

// WriteZeroes returns EOPNOTSUPP: that does not work here.
func (m *Base) WriteZeroes(pos, n int64, unmap bool) error { return devsw.EOPNOTSUPP }

// Grow returns the size, which has not changed.
func (m *Base) Grow() (int64, error) { return m.size.Load(), nil }
