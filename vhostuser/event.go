package vhostuser

import (
	"fmt"
	"strings"
	"time"
)

// EventKind says what an Event tells of.
type EventKind string

const (
	EventConnect EventKind = "connect" // a front-end is served from now on
	// its connection has ended, and all of it is released; Err is nil for a hang-up
	EventDisconnect EventKind = "disconnect"
	EventRefuse     EventKind = "refuse" // a front-end was refused: ErrBusy, ErrClosing
	// a front-end waits to be accepted until the host has what Err says it has not, such as
	// descriptors
	EventShort EventKind = "short"
	// SET_OWNER on a connection that had an owner: a new session
	EventSession EventKind = "session"
	// a message from the front-end; Fields are its payload's
	EventIn   EventKind = "in"
	EventOut  EventKind = "out"  // a reply or a message to it
	EventFail EventKind = "fail" // a message was refused; Err says why
	// a ring is handed to the Device next; resubmitted is what its in-flight region brought
	EventStart   EventKind = "start"
	EventEnable  EventKind = "enable"  // a running ring is fetched from again
	EventDisable EventKind = "disable" // a running ring is fetched from no more
	EventDrain   EventKind = "drain"   // requests of a disabled ring are waited for
	// they have ended, but for those that the Device keeps; its memory is not used
	EventDrained  EventKind = "drained"
	EventStopping EventKind = "stopping" // a ring is being stopped: the Device is asked next
	// a ring has stopped: its memory is used no more; suspended is what is left in its region
	EventStop  EventKind = "stop"
	EventBreak EventKind = "break" // a ring broke; Err says why
)

// Event is one thing that happened on a Backend.
type Event struct {
	Time time.Time // when Config.Trace was called
	Kind EventKind // what happened
	Ring int       // the ring it is about, -1 for none
	// of EventIn, EventOut, EventFail: the specification's name without VHOST_USER_
	Message string
	// of a message: its flags, payload and number of descriptors; of others: details
	Fields []Field
	Err    error // where something has failed, as the kind says
}

// Field is a name and a value of an Event.
type Field struct {
	Name  string // lower case, with _
	Value any    // printable: a number, Hex, string
}

// Hex is a number that prints in hexadecimal.
type Hex uint64

// String returns the number with its 0x.
func (h Hex) String() string { return fmt.Sprintf("%#x", uint64(h)) }

// String returns the event in one line, without its time.
func (e Event) String() string {
	var b strings.Builder
	b.WriteString(string(e.Kind))
	if e.Message != "" {
		b.WriteString(" " + e.Message)
	}
	if e.Ring >= 0 {
		fmt.Fprintf(&b, " ring=%d", e.Ring)
	}
	for _, f := range e.Fields {
		fmt.Fprintf(&b, " %s=%v", f.Name, f.Value)
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// describe decodes a payload for an Event. It takes what is there: the payload has not been
// checked.
func (p payload) describe(b []byte) (ring int, fields []Field) {
	ring = -1
	add := func(name string, value any) { fields = append(fields, Field{name, value}) }
	region := func(r MemoryRegion) {
		add("guest_phys", Hex(r.GuestPhys))
		add("size", Hex(r.Size))
		add("user_addr", Hex(r.UserAddr))
		add("mmap_offset", Hex(r.MmapOffset))
	}
	if least, greatest := p.size(); uint32(len(b)) < least || uint32(len(b)) > greatest {
		if len(b) > 0 {
			add("payload_size", len(b))
		}
		return ring, fields
	}
	switch p {
	case payloadU64:
		add("u64", Hex(ParseU64(b)))
	case payloadVringFD:
		v := ParseU64(b)
		ring = int(v & VringIndexMask)
		if v&VringNoFD != 0 {
			add("no_fd", true)
		}
	case payloadState:
		s := ParseVringState(b)
		ring = int(s.Index)
		add("num", s.Num)
	case payloadAddr:
		a := ParseVringAddr(b)
		ring = int(a.Index)
		add("flags", Hex(a.Flags))
		add("desc", Hex(a.Desc))
		add("avail", Hex(a.Avail))
		add("used", Hex(a.Used))
		add("log", Hex(a.Log))
	case payloadTable:
		if regions, err := ParseMemoryTable(b); err == nil {
			for _, r := range regions {
				region(r)
			}
		}
	case payloadRegion:
		region(ParseMemoryRegion(b))
	case payloadConfig:
		if c, err := ParseConfigSpace(b); err == nil {
			add("offset", c.Offset)
			add("size", len(c.Data))
			add("flags", Hex(c.Flags))
		}
	case payloadLog:
		d := parseLogBase(b)
		add("mmap_size", Hex(d.MmapSize))
		add("mmap_offset", Hex(d.MmapOffset))
	case payloadInflight:
		if d, err := ParseInflight(b); err == nil {
			add("mmap_size", Hex(d.MmapSize))
			add("mmap_offset", Hex(d.MmapOffset))
			add("num_queues", d.NumQueues)
			add("queue_size", d.QueueSize)
		}
	}
	return ring, fields
}
