package devsw

import (
	"iter"
	"testing"
)

// TestBufIndexIsMadeOnceForManyCancels, and anew when transfers have begun since; what has ended it
// does not find, though its Buf is in use again.
func TestBufIndexIsMadeOnceForManyCancels(t *testing.T) {
	const n = 100
	bufs := make([]Buf, n)
	var x BufIndex[int]
	made := 0
	inProgress := func(from, to int) iter.Seq2[*Buf, int] {
		return func(yield func(*Buf, int) bool) {
			made++
			for i := from; i < to; i++ {
				if !yield(&bufs[i], i) {
					return
				}
			}
		}
	}
	for i := range n / 2 {
		if got, ok := x.Find(&bufs[i], n/2, inProgress(0, n/2)); !ok || got != i {
			t.Fatalf("Buf %d is found as %d, %v", i, got, ok)
		}
	}
	if _, ok := x.Find(&bufs[n-1], n/2, inProgress(0, n/2)); ok || made != 1 {
		t.Errorf("the index was made %d times, and finds what is not there: %v", made, ok)
	}
	x.Ended(&bufs[0])
	if _, ok := x.Find(&bufs[0], n/2, nil); ok {
		t.Error("it finds what has ended")
	}
	if got, ok := x.Find(&bufs[n-1], n, inProgress(n/2, n)); !ok || got != n-1 || made != 2 {
		t.Errorf("what has begun since is found as %d, %v; the index was made %d times", got, ok, made)
	}
	for i := range bufs {
		x.Ended(&bufs[i])
	}
	if x.of != nil {
		t.Error("the index is left though nothing is in progress")
	}
}
