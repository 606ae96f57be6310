package nbd

import (
	"fmt"
	"testing"

	"vdev/devsw"
)

// BenchmarkTransfer keeps depth transfers in flight to nbdkit's memory, on one connection.
func BenchmarkTransfer(b *testing.B) {
	const disk = 64 << 20
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		for _, size := range []int{4 << 10, 64 << 10} {
			for _, depth := range []int{1, 32, 128} {
				b.Run(fmt.Sprintf("%v-%dk-depth%d", op, size>>10, depth), func(b *testing.B) {
					s := nbdkit(b, "memory", "size=64M")
					r := newRig(b)
					dev := r.create(Config{URI: s.uri(), Connections: 1})
					r.open(dev)
					b.SetBytes(int64(size))
					b.ReportAllocs()
					free := make(chan *devsw.Buf, depth)
					for range depth {
						free <- &devsw.Buf{
							Op: op, Dev: dev, Data: [][]byte{make([]byte, size)}, Bcount: int64(size), Iodone: func(b *devsw.Buf) { free <- b },
						}
					}
					i := 0
					for b.Loop() {
						buf := <-free
						if buf.Error != 0 {
							b.Fatal(buf.Error)
						}
						buf.Rearm()
						buf.Blkno = int64(i*size%disk) / 512
						i++
						r.table.BdevStrategy(buf)
					}
					for range depth {
						<-free
					}
				})
			}
		}
	}
}
