package devsw

import (
	"bytes"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestUiomoveIsOneCopyInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		iov := rapid.SliceOfN(rapid.SliceOfN(rapid.Byte(), 0, 5), 0, 6).Draw(t, "iov")
		other := rapid.SliceOfN(rapid.Byte(), 0, 40).Draw(t, "other")
		rw := rapid.SampledFrom([]UioRw{UIORead, UIOWrite}).Draw(t, "rw")

		whole := bytes.Join(iov, nil)
		wantOther := slices.Clone(other)
		var moved int
		if rw == UIORead {
			moved = copy(whole, other)
		} else {
			moved = copy(wantOther, whole)
		}

		u := NewUio(rw, slices.Clone(iov)...)
		total := u.Resid
		u.Offset = 7
		got := 0
		for rest := other; ; {
			n := min(rapid.IntRange(0, 7).Draw(t, "piece"), len(rest))
			m := u.Uiomove(rest[:n])
			got += m
			rest = rest[m:]
			if m < n || len(rest) == 0 {
				break
			}
		}
		if got != moved || u.Resid != total-moved || u.Offset != 7+int64(moved) {
			t.Fatalf("moved %d, Resid %d, Offset %d; want %d, %d, %d", got, u.Resid, u.Offset, moved, total-moved, 7+moved)
		}
		left := 0
		for _, p := range u.Iov {
			left += len(p)
		}
		if left != u.Resid {
			t.Fatalf("Iov has %d bytes left, Resid is %d", left, u.Resid)
		}
		if w := bytes.Join(iov, nil); !bytes.Equal(w, whole) {
			t.Fatalf("memory %v, want %v", w, whole)
		}
		if !bytes.Equal(other, wantOther) {
			t.Fatalf("other side %v, want %v", other, wantOther)
		}
	})
}
