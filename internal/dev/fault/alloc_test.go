//go:build !race

package fault

import (
	"testing"

	"vdev/devsw"
	"vdev/internal/test/disktest"
)

// TestWithoutRulesATransferAllocatesNothing: under the race detector pools forget on purpose.
func TestWithoutRulesATransferAllocatesNothing(t *testing.T) {
	for _, lower := range lowers {
		r := opened(t, lower)
		ended := 0
		b := &devsw.Buf{Data: [][]byte{make([]byte, 4096)}, Bcount: 4096, Iodone: func(*devsw.Buf) { ended++ }}
		aio := new(disktest.Discard)
		n := testing.AllocsPerRun(200, func() {
			for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
				b.Rearm()
				b.Op, b.AIO = op, aio
				r.node.Strategy(nil, b)
			}
		})
		if n != 0 || ended != 402 {
			t.Errorf("%s: %v allocations, %d transfers have ended", lower, n, ended)
		}
		r.close()
	}
}

func BenchmarkTransfer(b *testing.B) {
	for _, rules := range [][]string{nil, {"error:flush"}} {
		b.Run(map[int]string{0: "without rules", 1: "with one"}[len(rules)], func(b *testing.B) {
			r := opened(b, mdName, rules...)
			defer r.close()
			buf := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			b.ReportAllocs()
			for b.Loop() {
				buf.Rearm()
				r.node.Strategy(nil, buf)
			}
		})
	}
}
