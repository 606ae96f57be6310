package trace

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func kinds(events []Event) string {
	var names []string
	for _, e := range events {
		names = append(names, e.Kind)
	}
	return strings.Join(names, ", ")
}

func TestSnapshotIsInOrder(t *testing.T) {
	l := New(8)
	if got := l.Snapshot(); len(got) != 0 {
		t.Fatalf("a new log holds %d events", len(got))
	}
	for _, k := range []string{"open", "opened", "cancel", "drain", "drained", "close", "closed"} {
		l.Add(Event{Kind: k, Queue: WholeDevice})
	}
	if got, want := kinds(l.Snapshot()), "open, opened, cancel, drain, drained, close, closed"; got != want {
		t.Errorf("events are %q, want %q", got, want)
	}
}

func TestFullLogKeepsTheNewest(t *testing.T) {
	l := New(3)
	for _, k := range []string{"connect", "session", "start", "stop", "disconnect"} {
		l.Add(Event{Kind: k})
	}
	events := l.Snapshot()
	if got, want := kinds(events), "start, stop, disconnect"; got != want {
		t.Fatalf("events are %q, want %q", got, want)
	}
	for i, e := range events {
		if want := uint64(2 + i); e.Seq != want {
			t.Errorf("event %d has Seq %d, want %d", i, e.Seq, want)
		}
	}
	var out strings.Builder
	n, err := l.WriteTo(&out)
	if err != nil || n != int64(out.Len()) {
		t.Errorf("WriteTo = %d, %v; it wrote %d bytes", n, err, out.Len())
	}
	if want := "2 older events were overwritten\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("output %q does not begin with %q", out.String(), want)
	}
	if got := strings.Count(out.String(), "\n"); got != 4 {
		t.Errorf("output has %d lines, want 4:\n%s", got, out.String())
	}
}

func TestTimesAreSinceTheLogWasMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := New(2)
		time.Sleep(1500 * time.Millisecond)
		e := l.Add(Event{Kind: "stop", Queue: 3, Note: "GET_VRING_BASE", Err: errors.New("boom")})
		if want := "    1.500000 stop queue=3 GET_VRING_BASE: boom"; e.String() != want {
			t.Errorf("event prints as %q, want %q", e, want)
		}
		whole := l.Add(Event{Kind: "close", Queue: WholeDevice})
		if want := "    1.500000 close"; whole.String() != want {
			t.Errorf("event prints as %q, want %q", whole, want)
		}
	})
}

// growing is an error whose text changes.
type growing struct{ age int }

func (g *growing) Error() string { return fmt.Sprintf("for %d s", g.age) }

func TestErrorsKeepTheTextTheyHad(t *testing.T) {
	l := New(2)
	cause := &growing{age: 1}
	l.Add(Event{Kind: "drained", Err: cause})
	cause.age = 2
	e := l.Snapshot()[0]
	if e.Err.Error() != "for 1 s" || !errors.Is(e.Err, cause) {
		t.Errorf("the error is %v, want it to be %q and to wrap the one that was recorded", e.Err, "for 1 s")
	}
}

func TestConcurrentAddsAreOrderedByTime(t *testing.T) {
	l := New(64)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				l.Add(Event{Kind: "start"})
				l.Snapshot()
			}
		})
	}
	wg.Wait()
	events := l.Snapshot()
	if last := events[len(events)-1].Seq; last != 799 {
		t.Errorf("the last Seq is %d, want 799", last)
	}
	for i := 1; i < len(events); i++ {
		if events[i].Seq != events[i-1].Seq+1 || events[i].Time < events[i-1].Time {
			t.Fatalf("event %d is out of order: %+v after %+v", i, events[i], events[i-1])
		}
	}
}

func TestCheapEventsOverwriteNoOthers(t *testing.T) {
	l := New(8, "fail")
	l.Add(Event{Kind: "open", Queue: WholeDevice})
	for range 9 {
		l.Add(Event{Kind: "fail", Queue: WholeDevice})
	}
	l.Add(Event{Kind: "close", Queue: WholeDevice})
	var got []string
	for _, e := range l.Snapshot() {
		got = append(got, fmt.Sprint(e.Seq, e.Kind))
	}
	if want := []string{"0open", "8fail", "9fail", "10close"}; !slices.Equal(got, want) {
		t.Errorf("what is left is %q, want %q", got, want)
	}
	if events, _ := l.Since(9); len(events) != 2 || events[0].Seq != 9 {
		t.Errorf("since 9 there are %v", events)
	}
	var b strings.Builder
	if _, err := l.WriteTo(&b); err != nil || !strings.Contains(b.String(), "open\n7 events were overwritten\n") {
		t.Errorf("it is written as %q, %v", b.String(), err)
	}
}
