package line

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/internal/sys"
)

func TestAQueueGivesWhatWasPut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		readies := 0
		size := rapid.IntRange(1, 50).Draw(t, "size")
		q := NewQueue(size, func() { readies++ })
		var in, out int64
		ended, empty := false, true // the last Readv has answered EAGAIN
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				if ended {
					t.Skip()
				}
				p := stream(in, rapid.IntRange(0, size-int(in-out)).Draw(t, "n"))
				was := readies
				if n, err := q.Put(p); n != len(p) || err != nil {
					t.Fatalf("%d bytes, %v", n, err)
				}
				if empty && len(p) > 0 && readies == was {
					t.Fatal("it is not told")
				}
				in += int64(len(p))
				empty = empty && len(p) == 0
			},
			"readv": func(t *rapid.T) {
				a, b := make([]byte, rapid.IntRange(0, 30).Draw(t, "a")), make([]byte, rapid.IntRange(1, 30).Draw(t, "b"))
				n, err := q.Readv([][]byte{a, b})
				want := min(len(a)+len(b), int(in-out))
				if n != want || !bytes.Equal(append(a, b...)[:n], stream(out, n)) {
					t.Fatalf("%d bytes, want %d", n, want)
				}
				switch {
				case n > 0 && err == nil || n == 0 && ended && err == io.EOF:
				case n == 0 && !ended && err == devsw.EAGAIN:
					empty = true
				default:
					t.Fatalf("%d bytes: %v", n, err)
				}
				out += int64(n)
			},
			"end": func(t *rapid.T) {
				was := readies
				q.CloseWrite()
				if ended = true; readies == was {
					t.Fatal("it is not told of the end")
				}
			},
		})
		q.Close()
		if n, err := q.Readv([][]byte{make([]byte, 1)}); n != 0 || err != io.EOF {
			t.Fatalf("closed: %d bytes, %v", n, err)
		}
		if n, err := q.Put([]byte("x")); n != 0 || err != io.ErrClosedPipe {
			t.Fatalf("closed: %d bytes are put, %v", n, err)
		}
	})
}

func TestAPutThatWaitsEnds(t *testing.T) {
	for name, end := range map[string]func(*Queue){
		"close": (*Queue).Close,
		"end":   (*Queue).CloseWrite,
		"room":  func(q *Queue) { q.Readv([][]byte{make([]byte, 4)}) },
	} {
		t.Run(name, func(t *testing.T) {
			told := make(chan struct{}, 10)
			q := NewQueue(4, func() { told <- struct{}{} })
			ended := make(chan int)
			go func() {
				n, _ := q.Put([]byte("123456"))
				ended <- n
			}()
			<-told
			end(q)
			if n, want := <-ended, map[string]int{"close": 4, "end": 4, "room": 6}[name]; n != want {
				t.Errorf("%d bytes were put, want %d", n, want)
			}
		})
	}
}

// TestMemoryThatVanishesIsEFAULT: and no input is lost, and output that comes before it counts.
func TestMemoryThatVanishesIsEFAULT(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "gone"))
	must(t, err)
	defer f.Close()
	gone, err := sys.Mmap(int(f.Fd()), 0, 1<<12, true)
	must(t, err)
	defer sys.Munmap(gone)

	r := newRig(t, Config{})
	s := r.add("terminal", Main, all)
	u := devsw.NewUio(devsw.UIOWrite, []byte("before"), gone, []byte("after"))
	is(t, "a write", r.node.Write(u, nb), devsw.EFAULT)
	if u.Resid != len(gone)+5 {
		t.Errorf("%d bytes are left", u.Resid)
	}
	r.write(" and now")
	r.shows(s, "before and now")

	s.q.Put([]byte("input"))
	is(t, "a read", r.node.Read(devsw.NewUio(devsw.UIORead, gone), nb), devsw.EFAULT)
	u = devsw.NewUio(devsw.UIORead, make([]byte, 2), gone)
	must(t, r.node.Read(u, nb))
	if u.Resid != len(gone) {
		t.Errorf("%d bytes are left", u.Resid)
	}
	if got, err := r.get(9); got != "put" || err != nil {
		t.Errorf("%q, %v is read", got, err)
	}
}
