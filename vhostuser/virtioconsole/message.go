package virtioconsole

import (
	"encoding/binary"
	"fmt"

	"vdev/devsw"
)

// ControlEvent is what a control message says (virtio 1.2, 5.3.6.2).
type ControlEvent uint16

// The control events. The comments have the specification's names and who sends them. Linux calls
// the two of the device PORT_ADD and PORT_REMOVE.
const (
	DeviceReady ControlEvent = 0 // VIRTIO_CONSOLE_DEVICE_READY, the guest driver
	PortAdd     ControlEvent = 1 // VIRTIO_CONSOLE_DEVICE_ADD, the device
	PortRemove  ControlEvent = 2 // VIRTIO_CONSOLE_DEVICE_REMOVE, the device
	PortReady   ControlEvent = 3 // VIRTIO_CONSOLE_PORT_READY, the guest driver
	ConsolePort ControlEvent = 4 // VIRTIO_CONSOLE_CONSOLE_PORT, the device
	Resize      ControlEvent = 5 // VIRTIO_CONSOLE_RESIZE, the device; the size follows
	PortOpen    ControlEvent = 6 // VIRTIO_CONSOLE_PORT_OPEN, both
	PortName    ControlEvent = 7 // VIRTIO_CONSOLE_PORT_NAME, the device; the name follows
)

var eventNames = [...]string{"DEVICE_READY", "PORT_ADD", "PORT_REMOVE", "PORT_READY", "CONSOLE_PORT", "RESIZE", "PORT_OPEN", "PORT_NAME"}

// String returns the name that Linux has for the event, or its number.
func (e ControlEvent) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return fmt.Sprintf("event %d", uint16(e))
}

// messageSize is the size of struct virtio_console_control: le32 id, le16 event, le16 value.
const messageSize = 8

// Message is one control message.
type Message struct {
	FromGuest bool
	ID        uint32 // of the port; DEVICE_READY has any
	Event     ControlEvent
	Value     uint16
	Name      string        // of PORT_NAME
	Size      devsw.Winsize // of RESIZE
}

// String gives the message on one line.
func (m Message) String() string {
	s := "console control to the guest: "
	if m.FromGuest {
		s = "console control from the guest: "
	}
	s += fmt.Sprintf("%v port=%d value=%d", m.Event, int32(m.ID), m.Value)
	switch {
	case m.FromGuest:
	case m.Event == PortName:
		s += fmt.Sprintf(" name=%q", m.Name)
	case m.Event == Resize:
		s += fmt.Sprintf(" cols=%d rows=%d", m.Size.Col, m.Size.Row)
	}
	return s
}

// append appends the message as it is sent. The size's first field is cols, or rows where rowsFirst
// is set; a name has no NUL behind it.
func (m Message) append(b []byte, rowsFirst bool) []byte {
	b = binary.LittleEndian.AppendUint32(b, m.ID)
	b = binary.LittleEndian.AppendUint16(b, uint16(m.Event))
	b = binary.LittleEndian.AppendUint16(b, m.Value)
	switch m.Event {
	case PortName:
		b = append(b, m.Name...)
	case Resize:
		first, second := m.Size.Col, m.Size.Row
		if rowsFirst {
			first, second = second, first
		}
		b = binary.LittleEndian.AppendUint16(b, first)
		b = binary.LittleEndian.AppendUint16(b, second)
	}
	return b
}

// parseMessage reads a message of the guest driver's.
func parseMessage(b [messageSize]byte) Message {
	return Message{
		FromGuest: true,
		ID:        binary.LittleEndian.Uint32(b[:]),
		Event:     ControlEvent(binary.LittleEndian.Uint16(b[4:])),
		Value:     binary.LittleEndian.Uint16(b[6:]),
	}
}
