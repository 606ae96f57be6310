package trace

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Span is something that took time. With Instant it is something that happened at once: End equals
// Start.
type Span struct {
	// what it is about: "front-end", "control", "revoke block 14,0", "block 14,0", "ring 3"
	Row        string
	Name       string
	Start, End time.Duration // since the Log was made
	Instant    bool
	Unfinished bool   // it goes on: End is when it was looked at
	Note       string // of the event it began with
	EndNote    string // of the event it ended with
	Err        error
}

// The rows that are not rings, in the order they are shown in. Those of a device that has a name
// have it in theirs.
const (
	rowFrontEnd = "front-end"
	rowControl  = "control"
	rowRevoke   = "revoke"
	rowDevice   = "device" // or the device's name
)

// Spans turns a device's events into what a timeline shows:
//
//   - on the row front-end, how long one was connected, and, within, how long it waited for the
//     answer to a message (in, out);
//   - on a row for each device, its state: d_open, open, d_cancel, drain, d_close, one after the
//     other;
//   - on another row for each device, each revoke, and on the row control, the commands that came
//     (ctl);
//   - on a row for each ring: running, disabled, draining, stopping, broken.
//
// Other events are instants: what the device model has said (log) on the row device, and unknown
// kinds on the row control. What has not ended yet ends at now, the age of the Log. Spans of one
// row either follow each other or lie within each other; they are ordered by Start, the outer one
// first.
func Spans(events []Event, now time.Duration) []Span {
	b := builder{now: now, open: make(map[string][]int)}
	for _, e := range events {
		b.now = max(b.now, e.Time)
		if e.Queue != WholeDevice && e.Kind != "in" && e.Kind != "out" {
			b.ring(fmt.Sprintf("ring %d", e.Queue), e)
			continue
		}
		b.whole(e)
	}
	for row := range b.open {
		for len(b.open[row]) > 0 {
			b.spans[b.pop(row)].Unfinished = true
		}
	}
	for i := range b.spans {
		if s := &b.spans[i]; s.Unfinished {
			s.End = b.now
		}
	}
	slices.SortStableFunc(b.spans, func(x, y Span) int {
		return cmp.Or(cmp.Compare(x.Start, y.Start), cmp.Compare(y.End, x.End))
	})
	return b.spans
}

// builder makes spans.
type builder struct {
	now   time.Duration
	spans []Span
	open  map[string][]int // the spans of a row that have not ended, the innermost last
}

// begin begins a span within those that are open on the row.
func (b *builder) begin(row, name string, e Event) {
	b.open[row] = append(b.open[row], len(b.spans))
	b.spans = append(b.spans, Span{Row: row, Name: name, Start: e.Time, Note: e.Note, Err: e.Err})
}

func (b *builder) pop(row string) int {
	stack := b.open[row]
	last := stack[len(stack)-1]
	b.open[row] = stack[:len(stack)-1]
	return last
}

// end ends the innermost span of the row if it has that name ("" is any), and tells whether there
// was one.
func (b *builder) end(row, name string, e Event) bool {
	stack := b.open[row]
	if len(stack) == 0 || name != "" && b.spans[stack[len(stack)-1]].Name != name {
		return false
	}
	s := &b.spans[b.pop(row)]
	s.End, s.EndNote = e.Time, e.Note
	if e.Err != nil {
		s.Err = e.Err
	}
	return true
}

// become ends what is open on the row and begins another span: the row shows a state.
func (b *builder) become(row, name string, e Event) {
	b.endAll(row, Event{Time: e.Time})
	b.begin(row, name, e)
}

func (b *builder) endAll(row string, e Event) {
	for b.end(row, "", e) {
	}
}

func (b *builder) instant(row string, e Event) {
	b.spans = append(b.spans, Span{Row: row, Name: e.Kind, Start: e.Time, End: e.Time, Instant: true, Note: e.Note, Err: e.Err})
}

// ring takes an event of one ring.
func (b *builder) ring(row string, e Event) {
	switch e.Kind {
	case "start", "enable":
		b.become(row, "running", e)
	case "disable", "drained":
		b.become(row, "disabled", e)
	case "drain":
		b.become(row, "draining", e)
	case "stopping":
		b.become(row, "stopping", e)
	case "break":
		b.become(row, "broken", e)
	case "stop":
		b.endAll(row, e)
	default:
		b.instant(row, e)
	}
}

// whole takes an event of the whole device, or a message.
func (b *builder) whole(e Event) {
	front, dev, revoke := rowFrontEnd, cmp.Or(e.Device, rowDevice), rowRevoke
	if e.Device != "" {
		revoke += " " + e.Device
	}
	switch e.Kind {
	case "connect":
		b.become(front, "connected", e)
	case "disconnect":
		b.endAll(front, e)
	case "in":
		b.begin(front, message(e), e)
	case "out":
		b.end(front, message(e), e)
	case "session", "refuse", "fail":
		b.instant(front, e)
	case "open":
		b.become(dev, "d_open", e)
	case "opened":
		switch {
		case !b.end(dev, "d_open", e):
			b.instant(dev, e) // a close has come in between
		case e.Err == nil:
			b.begin(dev, "open", e)
		}
	case "cancel":
		b.become(dev, "d_cancel", e)
	case "canceled":
		b.end(dev, "d_cancel", e)
	case "drain":
		b.become(dev, "drain", e)
	case "drained":
		b.end(dev, "drain", e)
	case "close":
		b.become(dev, "d_close", e)
	case "closed":
		b.end(dev, "d_close", e)
	case "revoke":
		b.begin(revoke, "revoke", e)
	case "revoked":
		b.end(revoke, "revoke", e)
	case "log":
		b.instant(rowDevice, Event{Time: e.Time, Kind: e.Note, Err: e.Err})
	case "ctl":
		b.instant(rowControl, Event{Time: e.Time, Kind: e.Note, Err: e.Err})
	default:
		b.instant(rowControl, e)
	}
}

// message names the message that the event is about: the first word of its note, and the ring.
func message(e Event) string {
	name, _, _ := strings.Cut(e.Note, " ")
	if e.Queue != WholeDevice {
		name += fmt.Sprintf(" ring %d", e.Queue)
	}
	return name
}

// chromeEvent is an event of Chrome's trace format ("Trace Event Format", JSON Object Format),
// which Perfetto reads as well. Times are in microseconds.
type chromeEvent struct {
	Name string `json:"name"`
	// X: with a duration; i: an instant; M: about a process or a thread
	Phase string         `json:"ph"`
	Time  float64        `json:"ts"`
	Dur   *float64       `json:"dur,omitempty"`
	PID   int            `json:"pid"`
	TID   int            `json:"tid"`
	Scope string         `json:"s,omitempty"` // of an instant; t: its thread
	Args  map[string]any `json:"args,omitempty"`
}

// WriteChrome writes spans as a trace for https://ui.perfetto.dev and chrome://tracing. Each row is
// shown as a thread of a process with this name and number. start is the wall-clock time of the
// Log's zero.
func WriteChrome(w io.Writer, spans []Span, process string, pid int, start time.Time) error {
	threads := make(map[string]int)
	var names []string
	for _, s := range spans {
		if _, ok := threads[s.Row]; !ok {
			threads[s.Row] = 0
			names = append(names, s.Row)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(rowOrder(a), rowOrder(b)), strings.Compare(a, b)) })
	list := []chromeEvent{{Name: "process_name", Phase: "M", PID: pid, Args: map[string]any{"name": process}}}
	for i, name := range names {
		threads[name] = i + 1
		list = append(list,
			chromeEvent{Name: "thread_name", Phase: "M", PID: pid, TID: i + 1, Args: map[string]any{"name": name}},
			chromeEvent{Name: "thread_sort_index", Phase: "M", PID: pid, TID: i + 1, Args: map[string]any{"sort_index": i + 1}})
	}
	for _, s := range spans {
		e := chromeEvent{Name: s.Name, Phase: "X", Time: micros(s.Start), PID: pid, TID: threads[s.Row], Args: make(map[string]any)}
		if s.Instant {
			e.Phase, e.Scope = "i", "t"
		} else {
			dur := micros(s.End - s.Start)
			e.Dur = &dur
		}
		if s.Note != "" {
			e.Args["note"] = s.Note
		}
		if s.EndNote != "" {
			e.Args["end"] = s.EndNote
		}
		if s.Err != nil {
			e.Args["error"] = s.Err.Error()
		}
		if s.Unfinished {
			e.Args["unfinished"] = true
		}
		list = append(list, e)
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	return enc.Encode(map[string]any{
		"traceEvents": list, "displayTimeUnit": "ms", "otherData": map[string]any{"start": start.Format(time.RFC3339Nano)},
	})
}

// rowOrder puts the rings behind the other rows, by number.
func rowOrder(row string) int {
	var n int
	switch {
	case row == rowFrontEnd:
		return 0
	case row == rowControl:
		return 1
	case strings.HasPrefix(row, rowRevoke):
		return 2
	}
	if _, err := fmt.Sscanf(row, "ring %d", &n); err == nil {
		return 4 + n
	}
	return 3
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
