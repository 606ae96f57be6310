package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// life makes events, one each second, of lines such as "stop 3 why=base !boom": kind, queue or -,
// note, error.
func life(text string) []Event {
	var events []Event
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		e := Event{Seq: uint64(len(events)), Time: time.Duration(len(events)) * time.Second, Queue: WholeDevice}
		line, cause, failed := strings.Cut(line, " !")
		if failed {
			e.Err = errors.New(cause)
		}
		words := strings.SplitN(line, " ", 3)
		e.Kind = words[0]
		if len(words) > 1 && words[1] != "-" {
			fmt.Sscan(words[1], &e.Queue)
		}
		if len(words) > 2 {
			e.Note = words[2]
		}
		events = append(events, e)
	}
	return events
}

// text is what spans says, one line for each.
func text(spans []Span) string {
	var b strings.Builder
	for _, s := range spans {
		fmt.Fprintf(&b, "%s: %s", s.Row, s.Name)
		if s.Instant {
			fmt.Fprintf(&b, " at %d", s.Start/time.Second)
		} else {
			fmt.Fprintf(&b, " %d-%d", s.Start/time.Second, s.End/time.Second)
		}
		if s.Unfinished {
			b.WriteString(" and on")
		}
		for _, note := range []string{s.Note, s.EndNote} {
			if note != "" {
				fmt.Fprintf(&b, " (%s)", note)
			}
		}
		if s.Err != nil {
			fmt.Fprintf(&b, " !%v", s.Err)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestSpansOfADevicesLife(t *testing.T) {
	for _, c := range []struct{ name, events, want string }{
		{"a stop", `
			connect
			start 0 size=128
			open
			opened
			stopping 0 why=base
			in 0 GET_VRING_BASE
			cancel
			canceled
			drain
			drained
			close
			closed
			stop 0 why=base base=7
			out 0 GET_VRING_BASE num=7
			disconnect - gone`, `
			front-end: connected 0-14 (gone)
			ring 0: running 1-4 (size=128)
			device: d_open 2-3
			device: open 3-6
			ring 0: stopping 4-12 (why=base) (why=base base=7)
			front-end: GET_VRING_BASE ring 0 5-13 (GET_VRING_BASE) (GET_VRING_BASE num=7)
			device: d_cancel 6-7
			device: drain 8-9
			device: d_close 10-11`},
		{"a driver without d_cancel closes first", `
			open
			opened
			cancel
			canceled - !ENODEV
			close
			closed
			drain
			drained`, `
			device: d_open 0-1
			device: open 1-2
			device: d_cancel 2-3 !ENODEV
			device: d_close 4-5
			device: drain 6-7`},
		{"a hang goes on", `
			start 1
			stopping 1
			cancel
			canceled
			drain`, `
			ring 1: running 0-1
			ring 1: stopping 1-9 and on
			device: d_cancel 2-3
			device: drain 4-9 and on`},
		{"an open that fails, and one that is revoked", `
			open
			opened - !EIO
			open
			revoke
			cancel
			canceled
			drain
			opened - !ECANCELED
			drained
			close
			closed
			revoked`, `
			device: d_open 0-1 !EIO
			device: d_open 2-4
			revoke: revoke 3-11
			device: d_cancel 4-5
			device: drain 6-8
			device: opened at 7 !ECANCELED
			device: d_close 9-10`},
		{"a ring that pauses, breaks and is stopped", `
			start 0
			disable 0
			enable 0
			break 0 !bad head
			stopping 0
			stop 0`, `
			ring 0: running 0-1
			ring 0: disabled 1-2
			ring 0: running 2-3
			ring 0: broken 3-4 !bad head
			ring 0: stopping 4-5`},
		{"the beginning was overwritten", `
			canceled
			drain
			drained
			closed
			stop 0
			out 0 GET_VRING_BASE
			revoked
			disconnect`, `
			device: drain 1-2`},
		{"what is no state", `
			connect
			fail - SET_VRING_NUM !no
			ctl - release
			log - slow !late
			shrug 2`, `
			front-end: connected 0-9 and on
			front-end: fail at 1 (SET_VRING_NUM) !no
			control: release at 2
			device: slow at 3 !late
			ring 2: shrug at 4`},
	} {
		t.Run(c.name, func(t *testing.T) {
			events := life(c.events)
			got := strings.TrimSpace(text(Spans(events, 9*time.Second)))
			if want := strings.ReplaceAll(strings.TrimSpace(c.want), "\t", ""); got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// TestDevicesHaveRowsOfTheirOwn: what is served may have several, which open and close at the same
// time.
func TestDevicesHaveRowsOfTheirOwn(t *testing.T) {
	var events []Event
	for _, kind := range []string{"open", "opened", "revoke", "close"} {
		for _, device := range []string{"char 5,1", "char 5,0"} {
			events = append(events, Event{Time: time.Duration(len(events)) * time.Second, Kind: kind, Device: device, Queue: WholeDevice})
		}
	}
	events = append(events, Event{Time: 8 * time.Second, Kind: "log", Note: "it smokes", Queue: WholeDevice})
	const want = `char 5,1: d_open 0-2
char 5,0: d_open 1-3
char 5,1: open 2-6
char 5,0: open 3-7
revoke char 5,1: revoke 4-9 and on
revoke char 5,0: revoke 5-9 and on
char 5,1: d_close 6-9 and on
char 5,0: d_close 7-9 and on
device: it smokes at 8
`
	spans := Spans(events, 9*time.Second)
	if got := text(spans); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	var b strings.Builder
	if err := WriteChrome(&b, spans, "vdev", 1, time.Now()); err != nil {
		t.Fatal(err)
	}
	rest := b.String()
	for _, row := range []string{"revoke char 5,0", "revoke char 5,1", `"char 5,0"`, `"char 5,1"`} {
		_, after, found := strings.Cut(rest, row)
		if !found {
			t.Fatalf("there is no row %s, or it comes too early:\n%s", row, b.String())
		}
		rest = after
	}
}

// A viewer shows spans of one row as a stack: they must follow each other, or lie within each
// other.
func TestSpansOfARowNeverCross(t *testing.T) {
	kinds := []string{"connect", "disconnect", "in", "out", "session", "open", "opened", "cancel", "canceled", "drain", "drained", "close",
		"closed", "revoke", "revoked", "start", "stop", "stopping", "enable", "disable", "break", "ctl"}
	rapid.Check(t, func(t *rapid.T) {
		var events []Event
		at := time.Duration(0)
		for range rapid.IntRange(0, 40).Draw(t, "n") {
			at += time.Duration(rapid.IntRange(0, 2).Draw(t, "pause"))
			events = append(events, Event{
				Time: at, Kind: rapid.SampledFrom(kinds).Draw(t, "kind"), Queue: rapid.IntRange(-1, 1).Draw(t, "queue"),
				Note: rapid.SampledFrom([]string{"", "GET_VRING_BASE"}).Draw(t, "note"),
			})
		}
		spans := Spans(events, at+1)
		for i, a := range spans {
			if a.End < a.Start {
				t.Fatalf("span %+v ends before it begins", a)
			}
			for _, b := range spans[i+1:] {
				if a.Row == b.Row && !a.Instant && !b.Instant && a.Start < b.Start && b.Start < a.End && a.End < b.End {
					t.Fatalf("spans cross: %+v and %+v", a, b)
				}
			}
		}
	})
}

func TestChromeTraceHasARowForEachRing(t *testing.T) {
	events := life(`
		start 10
		start 2 size=128
		open
		opened
		stop 2 why=base`)
	var b strings.Builder
	start := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	if err := WriteChrome(&b, Spans(events, 7*time.Second), "vdev <disk>", 42, start); err != nil {
		t.Fatal(err)
	}
	var out struct {
		TraceEvents []struct {
			Name, Ph string
			TS, Dur  float64
			PID, TID int
			Args     map[string]any
		}
		OtherData struct{ Start time.Time }
	}
	if err := json.Unmarshal([]byte(b.String()), &out); err != nil {
		t.Fatalf("%v:\n%s", err, b.String())
	}
	if !out.OtherData.Start.Equal(start) {
		t.Errorf("start is %v, want %v", out.OtherData.Start, start)
	}
	rowOf := make(map[int]string)
	var rows, slices []string
	for _, e := range out.TraceEvents {
		if e.PID != 42 {
			t.Errorf("%+v is of process %d", e, e.PID)
		}
		switch {
		case e.Ph == "M" && e.Name == "thread_name":
			rowOf[e.TID] = fmt.Sprint(e.Args["name"])
			rows = append(rows, rowOf[e.TID])
		case e.Ph == "X":
			slices = append(slices, fmt.Sprintf("%s %s %v+%v", rowOf[e.TID], e.Name, e.TS/1e6, e.Dur/1e6))
		}
	}
	if got, want := strings.Join(rows, ", "), "device, ring 2, ring 10"; got != want {
		t.Errorf("rows %s; want %s", got, want)
	}
	if got, want := strings.Join(slices, ", "), "ring 10 running 0+7, ring 2 running 1+3, device d_open 2+1, device open 3+4"; got != want {
		t.Errorf("spans %s; want %s", got, want)
	}
	if !strings.Contains(b.String(), "vdev <disk>") {
		t.Error("the process has no name")
	}
}

func TestEventsComeThroughJSON(t *testing.T) {
	for _, e := range []Event{
		{Seq: 7, Time: 1234567890123, Kind: "stop", Queue: 0, Note: "why=base", Err: errors.New("boom")},
		{Time: 1, Kind: "open", Device: "block 14,0", Queue: WholeDevice},
	} {
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		var got Event
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if got.String() != e.String() || got.Seq != e.Seq || got.Time != e.Time || got.Queue != e.Queue || got.Device != e.Device {
			t.Errorf("%s becomes %+v, want %+v", b, got, e)
		}
	}
	var e Event
	if err := json.Unmarshal([]byte(`{"seq":"x"}`), &e); err == nil {
		t.Error("an event with a text for a number is taken")
	}
}

func TestFollowingMissesNothingThatIsHeld(t *testing.T) {
	l := New(4)
	first, more := l.Since(0)
	if len(first) != 0 {
		t.Fatalf("a new log holds %d events", len(first))
	}
	select {
	case <-more:
		t.Fatal("more is said of an empty log")
	default:
	}
	go func() {
		for range 100 {
			l.Add(Event{Kind: "start"})
		}
	}()
	for next := uint64(0); next < 100; {
		<-more
		var events []Event
		events, more = l.Since(next)
		for _, e := range events {
			if e.Seq < next {
				t.Fatalf("event %d comes after %d", e.Seq, next-1)
			}
			next = e.Seq + 1
		}
	}
	if events, _ := l.Since(200); len(events) != 0 {
		t.Errorf("%d events from the future", len(events))
	}
	if events, _ := l.Since(98); len(events) != 2 {
		t.Errorf("%d events since 98, want 2", len(events))
	}
}
