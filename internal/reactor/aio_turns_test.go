package reactor

import (
	"bytes"
	"os"
	"syscall"
	"testing"

	"vdev/devsw"
)

// rounds is a Source that counts the rounds while it has work.
type rounds struct {
	pollCounter
	n     int
	until func() bool
}

func (c *rounds) Poll() bool { c.n++; return !c.until() }

// TestALongTransferLetsTheOthersHaveTheirTurn: the reactor never does more of it in one round than
// is fixed.
func TestALongTransferLetsTheOthersHaveTheirTurn(t *testing.T) {
	const length = 10*wholeMost + 512
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		want := bytes.Repeat([]byte("0123456789abcdef"), length/16)
		for _, op := range []devsw.Op{devsw.BWrite, devsw.BRead} {
			for _, n := range []int{1, 1000, 1500} { // the number of pieces of memory
				data := make([]byte, length)
				if op == devsw.BWrite {
					copy(data, want)
				}
				d := newResult()
				b := &devsw.Buf{Op: op, Data: split(data, n), Bcount: length}
				ended := false
				c := &rounds{pollCounter: pollCounter{polls: make(chan struct{}, 1)}, until: func() bool { return ended }}
				var s *Source
				r.Do(func() {
					s, _ = r.Add(c, -1)
					at := r.ReadAt
					if op == devsw.BWrite {
						at = r.WriteAt
					}
					at(b, int(f.Fd()), 0, doneFunc(func(b *devsw.Buf, n int64, err devsw.Errno) {
						ended = true
						if c.n < length/pieceMost {
							t.Errorf("%v of %d bytes in %d rounds", op, length, c.n)
						}
						d.AIODone(b, n, err)
					}))
				})
				<-d.ch
				r.Do(func() { r.Remove(s) })
				if d.err != 0 || d.n != length {
					t.Fatal(d.n, d.err)
				}
				got := data
				if op == devsw.BWrite {
					var err error
					if got, err = os.ReadFile(f.Name()); err != nil {
						t.Fatal(err)
					}
				}
				if !bytes.Equal(got, want) {
					t.Errorf("%v in %d pieces of memory: other data", op, n)
				}
			}
		}
	})
}

// doneFunc is a devsw.AIODone of a function. It is used by its address, since AIODones are
// compared.
func doneFunc(fn func(*devsw.Buf, int64, devsw.Errno)) devsw.AIODone { return &funcDone{fn} }

type funcDone struct {
	fn func(*devsw.Buf, int64, devsw.Errno)
}

func (d *funcDone) AIODone(b *devsw.Buf, n int64, err devsw.Errno) { d.fn(b, n, err) }

// TestALongTransferIsCancelledBetweenItsPieces, however fast they are.
func TestALongTransferIsCancelledBetweenItsPieces(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		if err := f.Truncate(64 * pieceMost); err != nil {
			t.Fatal(err)
		}
		// One small buffer, as often as it takes.
		mem := make([]byte, pieceMost/4)
		b := &devsw.Buf{Bcount: 64 * pieceMost}
		for range 64 * 4 {
			b.Data = append(b.Data, mem)
		}
		d := newResult()
		r.Do(func() { r.ReadAt(b, int(f.Fd()), 0, d) })
		r.Do(func() { r.Cancel(b) })
		<-d.ch
		if d.err != syscall.ECANCELED || d.n >= b.Bcount {
			t.Error(d.n, d.err)
		}
	})
}

func TestADriverHasItsTurnLater(t *testing.T) {
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		d := newResult()
		for _, cancel := range []func(b *devsw.Buf){nil, r.Cancel} {
			b := new(devsw.Buf)
			var want devsw.Errno
			r.Do(func() {
				r.NextTurn(b, d)
				if len(d.ch) != 0 {
					t.Error("called before NextTurn has returned")
				}
				if cancel != nil {
					want = devsw.ECANCELED
					cancel(b)
				}
			})
			<-d.ch
			if d.n != 0 || d.err != want || !b.InContext {
				t.Error(d.n, d.err, b.InContext)
			}
		}
	})
}

// countsBegun is an engine that counts the bytes of what it is given of long transfers.
type countsBegun struct {
	engine
	bytes int64
}

func (e *countsBegun) start(o *op) {
	for _, p := range o.piece() {
		e.bytes += int64(len(p))
	}
	e.engine.start(o)
}

// pollFunc is a Source that always has work.
type pollFunc struct {
	pollCounter
	poll func()
}

func (c *pollFunc) Poll() bool { c.poll(); return true }

// TestLongTransfersTakeTurns: of many at once no more is begun in a round than of one.
func TestLongTransfersTakeTurns(t *testing.T) {
	const n, length = 8, 2*wholeMost + 512
	modes(t, func(t *testing.T, p *Pool) {
		r := p.Pick()
		f := tempFile(t)
		if _, err := f.Write(make([]byte, length)); err != nil {
			t.Fatal(err)
		}
		d := &result{ch: make(chan struct{}, n)}
		e := &countsBegun{}
		most := int64(0)
		var s *Source
		r.Do(func() {
			e.engine = r.eng
			r.eng = e
			s, _ = r.Add(&pollFunc{poll: func() { most, e.bytes = max(most, e.bytes), 0 }}, -1)
			for range n {
				r.ReadAt(&devsw.Buf{Data: [][]byte{make([]byte, length)}, Bcount: length}, int(f.Fd()), 0, d)
			}
		})
		for range n {
			<-d.ch
		}
		r.Do(func() {
			r.eng = e.engine
			r.Remove(s)
			if most == 0 || most >= turnBytes+pieceMost {
				t.Errorf("%d bytes were begun in one round, want less than %d", most, turnBytes+pieceMost)
			}
		})
	})
}
