package specfs

import (
	"fmt"
	"time"

	"vdev/devsw"
)

// Kind is a step of a device's life.
type Kind uint8

// The steps. A step that is named by an infinitive is about to be taken, one that is named by a
// participle has been taken. A last close is cancel, canceled, drain, drained, close, closed. With
// a driver without d_cancel it is cancel, canceled (ENODEV), close, closed, drain, drained. Without
// a driver it is drain, drained.
const (
	EventOpen     Kind = iota + 1 // d_open
	EventOpened                   // Err: what it answered
	EventCancel                   // d_cancel
	EventCanceled                 // Err: what it answered
	EventDrain                    // wait for operations in progress
	EventDrained
	EventClose  // d_close
	EventClosed // Err: what it answered
	EventRevoke // of a node
	EventRevoked
)

var kindNames = [...]string{
	EventOpen:     "open",
	EventOpened:   "opened",
	EventCancel:   "cancel",
	EventCanceled: "canceled",
	EventDrain:    "drain",
	EventDrained:  "drained",
	EventClose:    "close",
	EventClosed:   "closed",
	EventRevoke:   "revoke",
	EventRevoked:  "revoked",
}

// String gives the step's name in lower case.
func (k Kind) String() string {
	if k == 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return kindNames[k]
}

// Event is one step of a device's life.
type Event struct {
	Time time.Time  // with the monotonic clock
	Mode devsw.Mode // of the device: block or character
	Dev  devsw.Dev  // its number
	Kind Kind       // the step
	Err  error      // what the driver answered; nil for success and for other steps
}

// String gives the event on one line, without its time.
func (e Event) String() string {
	s := fmt.Sprintf("%v %v %v", e.Mode, e.Dev, e.Kind)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (fs *FS) event(k devKey, kind Kind, err error) {
	if fs.trace != nil {
		fs.trace(Event{Time: time.Now(), Mode: k.kind, Dev: k.dev, Kind: kind, Err: err})
	}
}
