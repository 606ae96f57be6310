package vhostuser

import (
	"errors"
	"fmt"

	"vdev/internal/guestmem"
)

// ErrBusy is returned by ServeConn while another front-end is being served.
var ErrBusy = errors.New("vhostuser: another front-end is connected")

// ErrClosing is returned by ServeConn where too many useless descriptors of front-ends wait to be
// closed: the close blocks, since whoever is behind them does not answer (a file system's server in
// user space, for one). When some have been closed, front-ends are served again.
var ErrClosing = errors.New("vhostuser: descriptors that front-ends have sent cannot be closed, since who is behind them does not answer")

// The errors of messages that share memory wrap these.
var (
	// ErrMemoryFile: memory may not be a file of this kind (see Config.AnyMemoryFiles).
	ErrMemoryFile = guestmem.ErrFile
	// ErrMemorySpace: this front-end, or all front-ends of the process together, would share more
	// than may be mapped.
	ErrMemorySpace = guestmem.ErrSpace
)

// FieldError says which field of a message, or of what came with it, has a value that it must not
// have.
type FieldError struct {
	// the specification's name of it, "size" for the payload's length, "fds" for the number of
	// descriptors
	Field string
	Value uint64 // what it is
	Want  string // what it must be
}

// Error implements error.
func (e *FieldError) Error() string {
	return fmt.Sprintf("%s %#x, must be %s", e.Field, e.Value, e.Want)
}

// DescriptorError says that a descriptor that came with a message is not of the kind that it must
// be.
type DescriptorError struct {
	Kind string // what it is, as in "a pipe"
	Want string // what it must be, as in "an eventfd"
}

// Error implements error.
func (e *DescriptorError) Error() string {
	return fmt.Sprintf("the descriptor is %s, must be %s", e.Kind, e.Want)
}

// ProtocolError says that a front-end's message was refused. It ends the connection, unless the
// front-end asked for an acknowledgement, which then tells it.
type ProtocolError struct {
	Request Request // the message
	// a *FieldError, a *DescriptorError, a *RingError, the host's, or the Device's own
	Err error
}

// Error implements error.
func (e *ProtocolError) Error() string { return fmt.Sprintf("vhostuser: %v: %v", e.Request, e.Err) }

// Unwrap returns e.Err.
func (e *ProtocolError) Unwrap() error { return e.Err }

// RingError says that a ring broke, or will when it is started. A ring stays broken until it is
// stopped.
type RingError struct {
	Ring int // its index
	// a *virtq.BrokenError, a *virtq.ConfigError, a *FieldError, a *FaultError, or the Device's own
	Err error
}

// Error implements error.
func (e *RingError) Error() string { return fmt.Sprintf("vhostuser: ring %d: %v", e.Ring, e.Err) }

// Unwrap returns e.Err.
func (e *RingError) Unwrap() error { return e.Err }

// FaultError says that an access to guest memory, or to a region or log that the front-end shares,
// has faulted: the front-end has truncated the file behind it. It ends the connection.
type FaultError struct {
	Addr uintptr // where in this process
}

// Error implements error.
func (e *FaultError) Error() string { return fmt.Sprintf("fault on guest memory at %#x", e.Addr) }

// errBlocked says that the front-end has filled the counter of an eventfd and cleared O_NONBLOCK,
// so that the reactor had to wait. It breaks the ring and ends the connection.
var errBlocked = errors.New("a write to an eventfd of the front-end's had to wait, since its counter is full and O_NONBLOCK is not set")

// errHangup ends a session whose front-end has closed the connection between two messages.
var errHangup = errors.New("vhostuser: the front-end has closed the connection")

func field(name string, value uint64, want string, args ...any) error {
	return &FieldError{Field: name, Value: value, Want: fmt.Sprintf(want, args...)}
}
