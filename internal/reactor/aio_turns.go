package reactor

import (
	"syscall"

	"vdev/devsw"
)

// What is long is done in pieces, so that it holds up the others on the reactor, by no more than
// turnBytes, and what the last one has, in each of its rounds, whatever the number and length of
// the transfers. In between it can be cancelled.
const (
	// wholeMost is how long a transfer may be that the engine is given in one piece: what guests
	// send is not longer, as a rule.
	wholeMost = 4 << 20
	// pieceMost is how many bytes of a longer one the engine is given at once. What is in memory it
	// copies then and there.
	pieceMost = 1 << 20
	// turnBytes is after how many bytes of transfers longer than inlineMost no further one is begun
	// in a round.
	turnBytes = 1 << 20
)

var _ devsw.Turner = (*Reactor)(nil)

// NextTurn implements devsw.Turner. On the reactor.
func (r *Reactor) NextTurn(b *devsw.Buf, done devsw.AIODone) {
	o := r.newOp(b, done)
	o.fd, o.write, o.sync, o.mayBlock, o.forced = noFile, false, false, false, false
	r.awaitTurn(o)
}

// noFile is the descriptor of an op that is a driver's turn and no transfer.
const noFile = -1

// awaitTurn has o started, or the driver called, in one of the next rounds.
func (r *Reactor) awaitTurn(o *op) {
	o.place = inTurns
	r.turns = append(r.turns, o)
}

// takeTurns gives those their turn that have waited longest, and tells whether there were any.
func (r *Reactor) takeTurns() (any bool) {
	if len(r.turns) == 0 {
		return false
	}
	n := 0
	// Who waits for another turn is behind those of this round.
	for left, bytes := len(r.turns), int64(0); left > 0 && bytes < turnBytes; left-- {
		o := r.turns[n]
		n++
		switch {
		case o.fd == noFile:
			bytes = turnBytes
			o.turn()
		case o.cancelled:
			o.ended(0, syscall.ECANCELED)
		default:
			bytes += o.pieceBytes()
			o.start()
		}
	}
	left := copy(r.turns, r.turns[n:])
	clear(r.turns[left:])
	r.turns = r.turns[:left]
	return true
}

// turn calls the driver whose turn it is.
func (o *op) turn() {
	b, done := o.buf, o.done
	var errno syscall.Errno
	if o.cancelled {
		errno = syscall.ECANCELED
	}
	o.free()
	b.InContext = true
	done.AIODone(b, 0, errno)
}

// pieceBytes is how many bytes piece has.
func (o *op) pieceBytes() int64 {
	if left := o.buf.Bcount - o.moved; o.buf.Bcount <= wholeMost || left < pieceMost {
		return left
	}
	return pieceMost
}

// piece is what is to be transferred next of o: all that is left, or a part of it where that is
// long.
func (o *op) piece() [][]byte {
	if o.buf.Bcount <= wholeMost {
		return o.data
	}
	o.part = o.part[:0]
	for left, i := pieceMost, 0; left > 0 && i < len(o.data); i++ {
		p := o.data[i]
		p = p[:min(len(p), left)]
		left -= len(p)
		o.part = append(o.part, p)
	}
	return o.part
}
