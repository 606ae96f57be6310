package disk

import "vdev/devsw"

// turnBytes is how much of a transfer a driver that copies does at once on the goroutine of a context, which has others to serve.
const turnBytes = 1 << 20

// Copier is a driver whose transfers are copies that it makes itself. Its AIODone goes on by Continue.
type Copier interface {
	devsw.AIODone
	// Copy moves n bytes of a transfer, from byte off of it on. It stays within the disk.
	Copy(b *devsw.Buf, off, n int64) devsw.Errno
}

// Transfer makes the first n bytes of a transfer, and ends it. What is longer than a turn is made in several, where the Buf's context has
// them (devsw.Turner).
func Transfer(b *devsw.Buf, n int64, c Copier) {
	b.InContext = true
	b.Resid = b.Bcount
	goOn(b, n, c)
}

// Continue goes on with a transfer of n bytes in a later turn, or ends it with e.
func Continue(b *devsw.Buf, n int64, e devsw.Errno, c Copier) {
	if e != 0 {
		b.Error = e
		b.Biodone()
		return
	}
	goOn(b, n, c)
}

func goOn(b *devsw.Buf, n int64, c Copier) {
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
