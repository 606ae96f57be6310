package line

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"vdev/devsw"
)

// stream gives the bytes from position pos on: no two stretches of it are alike.
func stream(pos int64, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		x := uint64(pos+int64(i)) * 0x9e3779b97f4a7c15
		p[i] = byte(x>>56) ^ byte(x>>37)
	}
	return p
}

// TestKeptIsTheNewestPartOfTheStream: against a model that keeps everything, with cursors that are
// overtaken, and batches whose bytes stay while others are written.
func TestKeptIsTheNewestPartOfTheStream(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var k kept
		var head, tail int64
		type reader struct {
			cursor
			batch batch
			want  []byte
			busy  bool
		}
		readers := make([]reader, 3)
		size := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(0, 3*chunkBytes))
		check := func() {
			if k.head != head || k.tail != tail {
				t.Fatalf("%d to %d are kept, want %d to %d", k.head, k.tail, head, tail)
			}
			for i := range readers {
				if r := &readers[i]; r.busy && !bytes.Equal(bytes.Join(r.batch.pieces[:r.batch.n], nil), r.want) {
					t.Fatalf("what reader %d was given has changed", i)
				}
			}
			n := 0
			for c := k.first; c != nil; c = c.next {
				n++
			}
			if most := int((tail-head)/chunkBytes) + 2; n > most {
				t.Fatalf("%d chunks for %d bytes", n, tail-head)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) {
				n := size.Draw(t, "n")
				p := stream(tail, n)
				cut := rapid.IntRange(0, n).Draw(t, "cut")
				u := devsw.NewUio(devsw.UIOWrite, p[:cut], p[cut:])
				if err := k.write(u, n); err != nil || u.Resid != 0 {
					t.Fatalf("%v, %d bytes are left", err, u.Resid)
				}
				clear(p)
				tail += int64(n)
			},
			"drop": func(t *rapid.T) {
				to := rapid.Int64Range(max(0, head-10), tail).Draw(t, "to")
				k.drop(to)
				head = max(head, to)
			},
			"skip": func(t *rapid.T) {
				n := int64(size.Draw(t, "n"))
				k.skip(n)
				tail += n
				head = tail
			},
			"next": func(t *rapid.T) {
				r := &readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")]
				if r.busy {
					t.Skip()
				}
				if lost := k.next(&r.cursor, &r.batch); lost != max(0, head-r.pos+lost) || r.pos < head {
					t.Fatalf("at %d of %d, %d lost", r.pos, head, lost)
				}
				r.want = bytes.Join(r.batch.pieces[:r.batch.n], nil)
				if !bytes.Equal(r.want, stream(r.pos, len(r.want))) {
					t.Fatal("it is given something else")
				}
				if len(r.want) == 0 && r.pos < tail {
					t.Fatalf("at %d of %d there is nothing", r.pos, tail)
				}
				r.busy = true
			},
			"done": func(t *rapid.T) {
				r := &readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")]
				if !r.busy {
					t.Skip()
				}
				was, n := r.pos, rapid.IntRange(0, len(r.want)).Draw(t, "n")
				if rapid.Bool().Draw(t, "all") {
					n = len(r.want)
				}
				k.done(&r.cursor, &r.batch, n)
				if r.busy = false; r.pos != was+int64(n) {
					t.Fatalf("at %d, want %d", r.pos, was+int64(n))
				}
			},
			"": func(*rapid.T) { check() },
		})
		// Nobody refers to anything any more but the kept.
		for i := range readers {
			if r := &readers[i]; r.busy {
				k.done(&r.cursor, &r.batch, 0)
			}
		}
		for c := k.first; c != nil; c = c.next {
			if c.refs != 1 {
				t.Fatalf("a chunk has %d references", c.refs)
			}
		}
	})
}
