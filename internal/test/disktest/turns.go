package disktest

import "vdev/devsw"

// Turns is an AIO with turns (devsw.Turner) for drivers that copy: they get theirs from Next. It is
// for one goroutine.
type Turns struct {
	AIO
	waiting []turn
}

type turn struct {
	b     *devsw.Buf
	done  devsw.AIODone
	errno devsw.Errno
}

// NextTurn implements devsw.Turner.
func (t *Turns) NextTurn(b *devsw.Buf, done devsw.AIODone) {
	t.waiting = append(t.waiting, turn{b: b, done: done})
}

// Cancel implements devsw.AIO.
func (t *Turns) Cancel(b *devsw.Buf) {
	for i := range t.waiting {
		if t.waiting[i].b == b {
			t.waiting[i].errno = devsw.ECANCELED
		}
	}
}

// Next gives a turn to whoever waits for one longest, and tells whether anybody did.
func (t *Turns) Next() bool {
	if len(t.waiting) == 0 {
		return false
	}
	n := t.waiting[0]
	t.waiting = t.waiting[1:]
	n.b.InContext = true
	n.done.AIODone(n.b, 0, n.errno)
	return true
}
