package line

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"vdev/devsw"
)

// watched is a screen that knows at which positions of the stream it was given what it shows.
type watched struct {
	*screen
	line  *Line
	role  Role
	next  int64 // the position after what it has shown
	lost  int64
	quick bool  // it takes bytes directly
	took  int   // bytes that it has taken so
	safe  int64 // what comes from here on it must not lose: it is the main end since then
	fault error
}

func (w *watched) Writev(p [][]byte) (int, error) {
	w.line.mu.Lock()
	pos := w.cur.pos
	w.line.mu.Unlock()
	was := bytes.Join(p, nil)
	n, err := w.screen.Writev(p)
	switch {
	case pos < w.next:
		w.fault = fmt.Errorf("it is given %d again, and was at %d", pos, w.next)
	case pos > w.next && pos > w.safe:
		w.fault = fmt.Errorf("it has lost %d to %d, and was to get what comes after %d", w.next, pos, w.safe)
	case !bytes.Equal(was, stream(pos, len(was))) || !bytes.Equal(was, bytes.Join(p, nil)):
		w.fault = fmt.Errorf("at %d it is given something else", pos)
	}
	w.lost += pos - w.next
	w.next = pos + int64(n)
	return n, err
}

// WritevNow is called by l.write, which nobody else calls, with l.mu held.
func (w *watched) WritevNow(p [][]byte) (int, error) {
	w.mu.Lock()
	ready := w.credit > 0 && !w.closed
	if w.busy {
		w.fault = errors.New("it is given bytes directly in the midst of a Writev")
	}
	w.mu.Unlock()
	if !w.quick || !ready {
		return 0, syscall.EAGAIN
	}
	was, pos := bytes.Join(p, nil), w.cur.pos
	n, err := w.screen.Writev(p)
	if pos != w.next || !bytes.Equal(was, stream(pos, len(was))) {
		w.fault = fmt.Errorf("at %d it is given what comes at %d, or something else, directly", w.next, pos)
	}
	w.next, w.took = pos+int64(n), w.took+n
	return n, err
}

// TestOutputIsAsAModelHasIt: whoever comes, goes, is slow or stops, everybody is shown the stream
// in order, from the oldest byte kept on, and what he is not shown is counted. A console takes all
// at once, and a data line loses nothing.
func TestOutputIsAsAModelHasIt(t *testing.T) {
	for _, overflow := range []Overflow{Drop, Wait} {
		t.Run(overflow.String(), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				var failed any
				synctest.Test(t, func(t *testing.T) {
					// A failure is a panic that rapid catches, on its own goroutine.
					defer func() { failed = recover() }()
					modelled(rt, overflow)
				})
				if failed != nil {
					panic(failed)
				}
			})
		})
	}
}

func modelled(t *rapid.T, overflow Overflow) {
	const scrollback = 20_000
	l := New(Config{Scrollback: scrollback, Overflow: overflow})
	defer l.Close()
	var room atomic.Int64 // activations
	l.notes.Insert(&devsw.Knote{Filter: devsw.EVFILTWrite, Activate: func(int64) { room.Add(1) }})

	var total, reached int64
	var head int64 // Drop only
	var ends []*watched
	var main *watched
	full := int64(-1) // activations when EAGAIN was answered, or -1
	seated := func() {
		main = nil
		if i := slices.IndexFunc(ends, func(w *watched) bool { return w.role == Main }); i >= 0 {
			if main = ends[i]; overflow == Wait && main.safe == all {
				main.safe = reached
			}
		}
	}
	t.Repeat(map[string]func(*rapid.T){
		"write": func(t *rapid.T) {
			n := rapid.OneOf(rapid.IntRange(1, 100), rapid.IntRange(1, scrollback), rapid.IntRange(1, 3*scrollback)).Draw(t, "n")
			u := devsw.NewUio(devsw.UIOWrite, stream(total, n))
			told, direct := room.Load(), 0
			if main != nil {
				direct = -main.took
			}
			err := l.write(u, nb)
			if main != nil {
				direct += main.took
			}
			took := n - u.Resid
			want := n
			if overflow == Wait {
				want = min(n, direct+scrollback-int(total-reached))
			}
			if direct > 0 && (overflow == Drop || len(ends) > 1 || total > reached) {
				t.Fatalf("%d bytes pass what others are to get first, or too", direct)
			}
			if took != want || (want == 0) != (err == devsw.EAGAIN) || want > 0 && err != nil {
				t.Fatalf("%d bytes of %d are taken, want %d: %v", took, n, want, err)
			}
			if total += int64(took); took < n {
				full = told
			}
			head = max(head, total-scrollback)
		},
		"add": func(t *rapid.T) {
			if len(ends) == 4 {
				t.Skip()
			}
			w := &watched{screen: newScreen(rapid.SampledFrom([]int{0, 1, 5000, all}).Draw(t, "credit")), line: l, safe: all}
			w.role = rapid.SampledFrom([]Role{Main, Watcher}).Draw(t, "role")
			w.quick = rapid.Bool().Draw(t, "quick")
			switch {
			case overflow == Drop:
				w.next = head
			case w.role == Main && main == nil:
				w.next = reached
			default:
				l.mu.Lock()
				w.next = l.kept.head
				l.mu.Unlock()
				if w.next > reached {
					t.Fatalf("%d to %d have gone, and were not taken", reached, w.next)
				}
			}
			if err := l.Add(w, "", w.role); err != nil {
				t.Fatal(err)
			}
			ends = append(ends, w)
			seated()
		},
		"allow": func(t *rapid.T) {
			if len(ends) == 0 {
				t.Skip()
			}
			rapid.SampledFrom(ends).Draw(t, "end").allow(rapid.IntRange(1, scrollback).Draw(t, "n"))
		},
		"go": func(t *rapid.T) {
			if len(ends) == 0 {
				t.Skip()
			}
			i := rapid.IntRange(0, len(ends)-1).Draw(t, "end")
			w := ends[i]
			ends = slices.Delete(ends, i, i+1)
			seated()
			if rapid.Bool().Draw(t, "hangs up") {
				w.q.CloseWrite()
				w.Hangup()
				w.screen.stop()
				synctest.Wait()
				if err := l.input.transfer(devsw.NewUio(devsw.UIORead, make([]byte, 1)), nb); !errors.Is(err, devsw.EAGAIN) {
					t.Fatalf("a read: %v", err)
				}
			} else {
				w.Remove()
			}
			<-w.Done()
		},
		"": func(t *rapid.T) {
			synctest.Wait()
			for _, w := range ends {
				if w.fault != nil {
					t.Fatal(w.fault)
				}
				if w.credit > 0 && w.next != total {
					t.Fatalf("an end that waits for nothing is at %d of %d", w.next, total)
				}
				if overflow == Drop {
					reached = max(reached, w.next)
				}
			}
			if main != nil {
				reached = max(reached, main.next)
			}
			if overflow == Drop {
				reached = max(reached, head)
			}
			if full >= 0 && total-reached < scrollback {
				if room.Load() == full {
					t.Fatal("there is room, and nobody was told")
				}
				full = -1
			}
			s := l.Status()
			if s.Written != total || overflow == Drop && s.Kept != int(total-head) || overflow == Wait && s.Dropped != 0 || s.Waiting != int(total-reached) {
				t.Fatalf("%d bytes, of which %d are kept and %d were taken: %+v", total, total-head, reached, s)
			}
			for i, w := range ends {
				e := s.Ends[i]
				pending := max(0, total-int64(s.Kept)-w.next)
				if e.Sent != int64(w.shown.Len()) || e.Lost < w.lost || e.Lost > w.lost+pending {
					t.Fatalf("end %d has shown %d, and lost %d and %d: %+v", i, w.shown.Len(), w.lost, pending, e)
				}
			}
		},
	})
}
