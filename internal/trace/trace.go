// Package trace keeps the last events of one device's life in memory: opens, cancels, drains,
// closes, and rings that start and stop, each with a monotonic time. Tests assert on the order of
// the events. A user can print them, follow them as they come, or see them as a timeline (Spans,
// WriteChrome).
//
// A Log is meant for events that happen a few times in a guest's life, never for each request: it
// has a mutex.
package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sync"
	"time"
)

// WholeDevice is the Queue of an event that concerns no single ring.
const WholeDevice = -1

// Event is one thing that happened to a device.
type Event struct {
	// counts from 0 over the Log's life, so that a gap shows what was overwritten
	Seq  uint64
	Time time.Duration // since the Log was made, on the monotonic clock
	// the step's name, as the package has it that took it: "open", "cancel", "stop"
	Kind string
	// Device is the block or character device that it is about, such as "block 14,0": what is
	// served may have several. Empty where it is about none of them.
	Device string
	Queue  int    // the ring's index, or WholeDevice
	Note   string // what else is worth knowing; may be empty
	Err    error  // why it failed; nil where it did not
}

// String returns the event on one line, such as " 2.636412 stop queue=0: broken" or " 2.636419
// block 14,0 cancel".
func (e Event) String() string {
	s := fmt.Sprintf("%12.6f ", e.Time.Seconds())
	if e.Device != "" {
		s += e.Device + " "
	}
	s += e.Kind
	if e.Queue != WholeDevice {
		s += fmt.Sprintf(" queue=%d", e.Queue)
	}
	if e.Note != "" {
		s += " " + e.Note
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// eventJSON is an Event as JSON. Without a queue it concerns the whole device.
type eventJSON struct {
	Seq     uint64  `json:"seq"`
	Seconds float64 `json:"seconds"`
	Kind    string  `json:"kind"`
	Device  string  `json:"device,omitempty"`
	Queue   *int    `json:"queue,omitempty"`
	Note    string  `json:"note,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// MarshalJSON gives the event as an object with seq, seconds, kind and, where there are such,
// device, queue, note and error.
func (e Event) MarshalJSON() ([]byte, error) {
	j := eventJSON{Seq: e.Seq, Seconds: e.Time.Seconds(), Kind: e.Kind, Device: e.Device, Note: e.Note}
	if e.Queue != WholeDevice {
		j.Queue = &e.Queue
	}
	if e.Err != nil {
		j.Error = e.Err.Error()
	}
	return json.Marshal(j)
}

// UnmarshalJSON reads what MarshalJSON writes. Of an error the text remains.
func (e *Event) UnmarshalJSON(b []byte) error {
	var j eventJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*e = Event{Seq: j.Seq, Time: time.Duration(math.Round(j.Seconds * 1e9)), Kind: j.Kind, Device: j.Device, Queue: WholeDevice, Note: j.Note}
	if j.Queue != nil {
		e.Queue = *j.Queue
	}
	if j.Error != "" {
		e.Err = errors.New(j.Error)
	}
	return nil
}

// Log holds the newest events of one device in a ring of fixed size. All its methods may be called
// from any goroutine.
type Log struct {
	start time.Time
	cheap map[string]bool // kinds that are kept in a ring of their own; does not change

	mu    sync.Mutex
	rings [2]ring       // the second one is for the cheap
	next  uint64        // Seq of the event to come
	more  chan struct{} // closed by the next Add; nil while nobody waits for it
}

// ring is the newest of some events.
type ring struct {
	size   uint64  // of events when it is full
	events []Event // grows up to size: most devices' lives are short of events
	added  uint64
}

// New returns a Log that keeps the newest size events; a size below 1 counts as 1. The cheap kinds
// are those of which others can cause as many as they like. They have a ring of their own, a
// quarter as large, so that they overwrite only each other.
func New(size int, cheap ...string) *Log {
	l := &Log{start: time.Now(), cheap: map[string]bool{}}
	for _, kind := range cheap {
		l.cheap[kind] = true
	}
	l.rings[0].size, l.rings[1].size = uint64(max(size, 1)), uint64(max(size/4, 1))
	return l
}

func (r *ring) add(e Event) {
	if r.added < r.size {
		r.events = append(r.events, e)
	} else {
		r.events[r.added%r.size] = e
	}
	r.added++
}

// newest gives the i-th newest event, from 0 on.
func (r *ring) newest(i int) *Event { return &r.events[(r.added-1-uint64(i))%r.size] }

// frozen is an error with the text that it had at a moment: some tell how long something has lasted
// until they are asked.
type frozen struct {
	text string
	err  error
}

func (f *frozen) Error() string { return f.text }
func (f *frozen) Unwrap() error { return f.err }

// Add records what happens now, and returns the event as it was recorded. It ignores Seq and Time
// of e. It wraps Err, so that the error keeps the text it has now.
func (l *Log) Add(e Event) Event {
	if e.Err != nil {
		e.Err = &frozen{e.Err.Error(), e.Err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The time is taken with mu held, so that events are in the order of their times.
	e.Seq, e.Time = l.next, time.Since(l.start)
	r := &l.rings[0]
	if l.cheap[e.Kind] {
		r = &l.rings[1]
	}
	r.add(e)
	l.next++
	if l.more != nil {
		close(l.more)
		l.more = nil
	}
	return e
}

// Start returns when the Log was made: the zero of its events' times.
func (l *Log) Start() time.Time { return l.start }

// Snapshot returns the events that are still held, oldest first. The slice is the caller's.
func (l *Log) Snapshot() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.sinceLocked(0)
}

// Since returns the events from Seq seq on that are still held, oldest first, and a channel that is
// closed when there is another one. To follow the log, ask again from the Seq after the last one. A
// gap in Seq shows what was overwritten meanwhile. The slice is the caller's.
func (l *Log) Since(seq uint64) (events []Event, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return l.sinceLocked(seq), l.more
}

func (l *Log) sinceLocked(seq uint64) []Event {
	events := []Event{}
	for at := [2]int{}; ; {
		// Of the two rings the newer one goes first.
		var next *Event
		from := 0
		for i := range l.rings {
			r := &l.rings[i]
			if at[i] < len(r.events) {
				if e := r.newest(at[i]); e.Seq >= seq && (next == nil || e.Seq > next.Seq) {
					next, from = e, i
				}
			}
		}
		if next == nil {
			slices.Reverse(events)
			return events
		}
		at[from]++
		events = append(events, *next)
	}
}

// WriteTo writes the events that are still held to w, oldest first, one a line, and where some were
// overwritten a line that says how many.
func (l *Log) WriteTo(w io.Writer) (int64, error) {
	var total int64
	line := func(format string, args ...any) error {
		n, err := fmt.Fprintf(w, format, args...)
		total += int64(n)
		return err
	}
	next := uint64(0)
	for _, e := range l.Snapshot() {
		what := "events"
		if next == 0 {
			what = "older events"
		}
		if e.Seq > next {
			if err := line("%d %s were overwritten\n", e.Seq-next, what); err != nil {
				return total, err
			}
		}
		next = e.Seq + 1
		if err := line("%s\n", e); err != nil {
			return total, err
		}
	}
	return total, nil
}
