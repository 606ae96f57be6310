package disk

import "vdev/devsw"

// turnBytes is how much of a transfer a driver that copies does at once on the goroutine of a
// context, which has others to serve.
const turnBytes = 1 << 20

// Copier is a Medium whose transfers are copies that it makes itself, without waiting for anything,
// such as those of a disk in memory. Its Transfer calls Base.CopyTurns, and its AIODone
// Base.Continue.
type Copier interface {
	Medium
	devsw.AIODone
	// Copy moves n bytes of a transfer of the disk, from byte off of the transfer on, by b.MoveAt.
	// They lie within the disk. It must not block.
	Copy(b *devsw.Buf, off, n int64) devsw.Errno
}

// CopyTurns makes the first n bytes of a transfer by c, which is this Medium, and ends it. What is
// longer than a MiB is made in several turns where the Buf's context has them (devsw.Turner), so
// that it holds up nobody else there.
func (m *Base) CopyTurns(b *devsw.Buf, n int64, c Copier) {
	b.InContext = true
	b.Resid = b.Bcount
	copyOn(b, n, c)
}

// Continue goes on with a transfer that takes several turns: it is what c.AIODone does with what it
// is told. Between two turns a d_cancel ends the transfer with ECANCELED.
func (m *Base) Continue(b *devsw.Buf, e devsw.Errno, c Copier) {
	if e == 0 && m.Cancelled() {
		e = devsw.ECANCELED
	}
	if e != 0 {
		b.Error = e
		b.Biodone()
		return
	}
	copyOn(b, min(b.Bcount, m.size.Load()-b.Blkno*devsw.DEVBSIZE), c)
}

func copyOn(b *devsw.Buf, n int64, c Copier) {
	for b.Error == 0 {
		off := b.Bcount - b.Resid
		k := min(n-off, turnBytes)
		if b.Error = c.Copy(b, off, k); b.Error != 0 {
			break
		}
		b.Resid -= k
		if off+k == n {
			break
		}
		if t, ok := b.AIO.(devsw.Turner); ok {
			b.InContext = false
			t.NextTurn(b, c)
			return
		}
	}
	b.Biodone()
}
