package devsw

import "iter"

// BufIndex finds what belongs to a Buf, for a CancelBuf or an AIO.Cancel. Whoever stops one of
// several users of a device cancels that one's transfers one by one. To search through all
// transfers for each would take time that grows with the square of their number. A transfer that is
// never cancelled costs nothing: the index is made when it is asked.
//
// The zero BufIndex is ready to use. It has no lock: what guards the transfers guards it, too.
type BufIndex[T any] struct {
	of    map[*Buf]T
	begun uint64
}

// Find gives what belongs to b, and whether there is anything. begun is how many transfers have
// begun so far, or another number that changes with each one; inProgress yields all that are in
// progress, with what belongs to them. b is only compared.
func (x *BufIndex[T]) Find(b *Buf, begun uint64, inProgress iter.Seq2[*Buf, T]) (T, bool) {
	if x.of == nil || x.begun != begun {
		x.of, x.begun = make(map[*Buf]T), begun
		for b, v := range inProgress {
			x.of[b] = v
		}
	}
	v, ok := x.of[b]
	return v, ok
}

// Ended says that the transfer of b has ended. It is called for each one, and the index is gone
// with the last that it has.
func (x *BufIndex[T]) Ended(b *Buf) {
	if x.of == nil {
		return
	}
	x.forget(b)
}

func (x *BufIndex[T]) forget(b *Buf) {
	if delete(x.of, b); len(x.of) == 0 {
		x.of = nil
	}
}
