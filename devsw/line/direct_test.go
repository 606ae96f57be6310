package line

import (
	"syscall"
	"testing"
	"testing/synctest"

	"vdev/devsw"
)

// quick is a screen that takes bytes directly.
type quick struct {
	*screen
	calls int
	at    *byte // where the last were
	err   error
}

func (q *quick) WritevNow(p [][]byte) (int, error) {
	q.calls++
	q.at = &p[0][0]
	if q.err != nil {
		return 0, q.err
	}
	return q.Writev(p)
}

// TestALargeWriteIsTakenWithoutACopy, where nothing waits for the main end and nobody else is
// there. What it does not take at once follows in order.
func TestALargeWriteIsTakenWithoutACopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 2 * passBytes
		r := newRig(t, Config{Overflow: Wait, Scrollback: size})
		q := &quick{screen: newScreen(all)}
		must(t, r.Add(q, "quick", Main))
		total, calls := 0, 0
		// send writes n bytes, of which some are taken, directly or not.
		send := func(what string, n, want int, direct bool) {
			t.Helper()
			p := stream(int64(total), n)
			took, err := r.put(p)
			if took != want || (want == 0) != (err == devsw.EAGAIN) {
				t.Errorf("%s: %d of %d bytes are taken, want %d: %v", what, took, n, want, err)
			}
			if direct {
				calls++
			}
			if q.calls != calls || direct && q.at != &p[0] {
				t.Errorf("%s: %d direct writes, want %d; of the guest's memory: %v", what, q.calls, calls, q.at == &p[0])
			}
			total += took
			synctest.Wait()
		}
		send("all", size, size, true)
		if s := r.Status(); s.Kept != 0 || s.Written != size || s.Ends[0].Sent != size {
			t.Errorf("status %+v", s)
		}
		send("a small one", passBytes-1, passBytes-1, false)
		send("behind a small one", size, size, true)
		q.credit = 1000
		send("a part", size, size, true)
		send("behind a part", size, 1000, false) // as much as was taken
		q.allow(all)
		synctest.Wait()
		q.err = syscall.EAGAIN
		send("nothing", size, size, true)
		q.err = nil
		w := newScreen(0)
		must(t, r.Add(w, "watcher", Watcher))
		send("with a watcher", size, size, false)
		w.Remove()
		send("without", size, size, true)
		if got := q.shown.Bytes(); string(got) != string(stream(0, total)) {
			t.Errorf("%d bytes are shown, not the %d that were written", len(got), total)
		}
		q.Remove()
		send("with nobody", size, size, false)
	})
}

// TestAConsolesOutputIsNeverTakenDirectly: its guest's processor waits for it.
func TestAConsolesOutputIsNeverTakenDirectly(t *testing.T) {
	r := newRig(t, Config{})
	q := &quick{screen: newScreen(all)}
	must(t, r.Add(q, "quick", Main))
	for range 10 {
		if n, err := r.put(make([]byte, 2*passBytes)); n != 2*passBytes || err != nil {
			t.Fatal(n, err)
		}
		must(t, r.Drain(t.Context()))
	}
	if q.calls > 0 {
		t.Errorf("%d direct writes", q.calls)
	}
}
