// Package trace keeps the last events of one device's life in memory: opens, cancels, drains, closes, and rings
// that start and stop, each with a monotonic time. Tests assert on the order of the events, and a user can have
// them printed, follow them as they come, or see them as a timeline (Spans, WriteChrome).
//
// A Log is meant for events that happen a few times in a guest's life, never for each request: it has a mutex.
package trace

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"time"
)

// WholeDevice is the Queue of an event that concerns no single ring.
const WholeDevice = -1

// Event is one thing that happened to a device.
type Event struct {
	Seq   uint64        // counts from 0 over the Log's life, so that a gap shows what was overwritten
	Time  time.Duration // since the Log was made, on the monotonic clock
	Kind  string        // the step's name, as the package has it that took it: "open", "cancel", "stop"
	Queue int           // the ring's index, or WholeDevice
	Note  string        // what else is worth knowing; may be empty
	Err   error         // why it failed; nil where it did not
}

// String returns the event on one line, such as "    2.636412 stop queue=0: broken".
func (e Event) String() string {
	s := fmt.Sprintf("%12.6f %s", e.Time.Seconds(), e.Kind)
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
	Queue   *int    `json:"queue,omitempty"`
	Note    string  `json:"note,omitempty"`
	Error   string  `json:"error,omitempty"`
}

// MarshalJSON gives the event as an object with seq, seconds, kind and, where there are such, queue, note and error.
func (e Event) MarshalJSON() ([]byte, error) {
	j := eventJSON{Seq: e.Seq, Seconds: e.Time.Seconds(), Kind: e.Kind, Note: e.Note}
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
	*e = Event{Seq: j.Seq, Time: time.Duration(math.Round(j.Seconds * 1e9)), Kind: j.Kind, Queue: WholeDevice, Note: j.Note}
	if j.Queue != nil {
		e.Queue = *j.Queue
	}
	if j.Error != "" {
		e.Err = errors.New(j.Error)
	}
	return nil
}

// Log holds the newest events of one device in a ring of fixed size. All its methods may be called from any
// goroutine.
type Log struct {
	start time.Time

	size uint64 // of ring when it is full

	mu   sync.Mutex
	ring []Event       // grows up to size: most devices' lives are short of events
	next uint64        // Seq of the event to come
	more chan struct{} // closed by the next Add; nil while nobody waits for it
}

// New returns a Log that keeps the newest size events. A size below 1 is taken as 1.
func New(size int) *Log {
	return &Log{start: time.Now(), size: uint64(max(size, 1))}
}

// frozen is an error with the text that it had at a moment: some tell how long something has lasted until they are asked.
type frozen struct {
	text string
	err  error
}

func (f *frozen) Error() string { return f.text }
func (f *frozen) Unwrap() error { return f.err }

// Add records what happened now and returns the event as it was recorded. Seq and Time of e are ignored. Err keeps the text
// that it has now, and is wrapped for that.
func (l *Log) Add(e Event) Event {
	if e.Err != nil {
		e.Err = &frozen{e.Err.Error(), e.Err}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	// The time is taken with mu held, so that events are in the order of their times.
	e.Seq, e.Time = l.next, time.Since(l.start)
	if l.next < l.size {
		l.ring = append(l.ring, e)
	} else {
		l.ring[l.next%l.size] = e
	}
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

// Since returns the events with a Seq of seq and more that are still held, oldest first, and a channel that is closed when
// there is another one. To follow the log, ask for those since the one after the last; a gap in Seq shows what was
// overwritten before it was asked for. The slice is the caller's.
func (l *Log) Since(seq uint64) (events []Event, more <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.more == nil {
		l.more = make(chan struct{})
	}
	return l.sinceLocked(seq), l.more
}

func (l *Log) sinceLocked(seq uint64) []Event {
	first := min(max(seq, l.next-min(l.next, l.size)), l.next)
	events := make([]Event, 0, l.next-first)
	for seq := first; seq < l.next; seq++ {
		events = append(events, l.ring[seq%l.size])
	}
	return events
}

// WriteTo writes the events that are still held to w, oldest first, one a line, after a line that says how many
// older ones were overwritten, where any were.
func (l *Log) WriteTo(w io.Writer) (int64, error) {
	var total int64
	line := func(format string, args ...any) error {
		n, err := fmt.Fprintf(w, format, args...)
		total += int64(n)
		return err
	}
	for i, e := range l.Snapshot() {
		if i == 0 && e.Seq > 0 {
			if err := line("%d older events were overwritten\n", e.Seq); err != nil {
				return total, err
			}
		}
		if err := line("%s\n", e); err != nil {
			return total, err
		}
	}
	return total, nil
}
