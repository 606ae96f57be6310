package guestmem_test

import (
	"fmt"
	"testing"

	"vdev/internal/guestmem"
)

// BenchmarkSlice translates addresses of one region after another, as a queue does it, and by
// search.
func BenchmarkSlice(b *testing.B) {
	for _, regions := range []uint64{1, 8} {
		fd := file(b, "slice", page)
		defer fd.Close()
		var all []*guestmem.Region
		for i := range regions {
			dup, err := fd.Dup()
			if err != nil {
				b.Fatal(err)
			}
			r := mustMap(b, i*page, page, 1<<20+i*page, 0, dup)
			defer r.Release()
			all = append(all, r)
		}
		m, err := guestmem.New(all...)
		if err != nil {
			b.Fatal(err)
		}
		defer m.Release()
		view := m.View()
		for name, slice := range map[string]func(gpa, n uint64) ([]byte, bool){"view": view.Slice, "memory": m.Slice} {
			b.Run(fmt.Sprintf("%s/regions=%d", name, regions), func(b *testing.B) {
				b.ReportAllocs()
				for i := uint64(0); b.Loop(); i++ {
					if _, ok := slice(i%regions*page+16, 1024); !ok {
						b.Fatal("no memory")
					}
				}
			})
		}
	}
}
