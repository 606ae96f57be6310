package consoletest

import (
	"encoding/binary"
	"fmt"
)

// Feature bits of a console (virtio 1.2, 5.3.3).
const (
	FeatureSize       = 1 << 0 // VIRTIO_CONSOLE_F_SIZE
	FeatureMultiport  = 1 << 1 // VIRTIO_CONSOLE_F_MULTIPORT
	FeatureEmergWrite = 1 << 2 // VIRTIO_CONSOLE_F_EMERG_WRITE
)

// Event says what a control message is (virtio 1.2, 5.3.6.2).
type Event uint16

// The events.
const (
	DeviceReady Event = 0 // VIRTIO_CONSOLE_DEVICE_READY
	PortAdd     Event = 1 // VIRTIO_CONSOLE_PORT_ADD
	PortRemove  Event = 2 // VIRTIO_CONSOLE_PORT_REMOVE
	PortReady   Event = 3 // VIRTIO_CONSOLE_PORT_READY
	ConsolePort Event = 4 // VIRTIO_CONSOLE_CONSOLE_PORT
	Resize      Event = 5 // VIRTIO_CONSOLE_RESIZE
	PortOpen    Event = 6 // VIRTIO_CONSOLE_PORT_OPEN
	PortName    Event = 7 // VIRTIO_CONSOLE_PORT_NAME
)

var eventNames = []string{"DEVICE_READY", "PORT_ADD", "PORT_REMOVE", "PORT_READY", "CONSOLE_PORT", "RESIZE", "PORT_OPEN", "PORT_NAME"}

// String gives the specification's name, without its prefix.
func (e Event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return fmt.Sprintf("event %d", uint16(e))
}

// NoPort is the id of a message that is about no port, as Linux has it.
const NoPort = 0xffff_ffff

// messageSize is what struct virtio_console_control has, bytes.
const messageSize = 8

// Message is a control message.
type Message struct {
	ID    uint32 // the port's
	Event Event
	Value uint16
	Rest  string // what follows: a name, or a size
}

// String gives what the message says, such as "1 PORT_OPEN 1".
func (m Message) String() string {
	s := fmt.Sprintf("%d %v %d", int32(m.ID), m.Event, m.Value)
	switch {
	case m.Event == Resize && len(m.Rest) == 4:
		s += fmt.Sprintf(" %d,%d", le16(m.Rest), le16(m.Rest[2:]))
	case m.Rest != "":
		s += fmt.Sprintf(" %q", m.Rest)
	}
	return s
}

func le16(s string) uint16 { return uint16(s[0]) | uint16(s[1])<<8 }

// Append appends the message as the rings have it.
func (m Message) Append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Event))
	b = binary.LittleEndian.AppendUint16(b, m.Value)
	return append(b, m.Rest...)
}

// ParseMessage reads what Append has written. b has messageSize bytes or more.
func ParseMessage(b []byte) Message {
	return Message{
		ID:    binary.LittleEndian.Uint32(b),
		Event: Event(binary.LittleEndian.Uint16(b[4:])),
		Value: binary.LittleEndian.Uint16(b[6:]),
		Rest:  string(b[messageSize:]),
	}
}
