package serve

import (
	"log/slog"
	"net"
	"time"

	"vdev/internal/control"
	"vdev/internal/offload"
	"vdev/vhostuser"
)

// Config says what a Set serves, and how.
type Config struct {
	Devices []DeviceConfig // at least one; their names differ
	Loops   Loops
	// Strict ends the Set where one device cannot be opened at the start, whatever others there
	// are.
	Strict bool
	// Control, where it is not nil, is the socket for commands. Process answers those that are
	// about no device.
	Control net.Listener
	Process control.Process

	Version string
	Start   time.Time // when vdev was started
	// Log makes the Log of the device of that name; "" is the process, or its only device.
	Log func(name string) Log
	// Trace, where it is set, takes each line of the trace. Any goroutine; it must not wait.
	Trace func(Line)
}

// Loops are the event loops that devices share.
type Loops struct {
	// Mode is vhostuser.ModeURing or ModeThreads. Empty: ModeURing, and ModeThreads where the host
	// refuses io_uring.
	Mode     vhostuser.Mode
	Reactors int // 0: chosen
	// PollMax is vhostuser.ReactorConfig's.
	PollMax time.Duration
}

// DeviceConfig describes a device.
type DeviceConfig struct {
	Kind Kind
	Name string // what it is called where there are several; may be empty where it is the only one
	// Listen makes the socket, or takes it over. It asks no storage. Socket says where that is.
	Listen func() (net.Listener, error)
	Socket string
	// Migratable, AnyMemory and CancelAfter are for the vhostuser.Backend: see vhostuser.Config.
	Migratable  bool
	AnyMemory   bool
	CancelAfter time.Duration
}

// host is what the devices of a Set have in common.
type host struct {
	Config
	log      *slog.Logger
	reactors *vhostuser.Reactors
	pool     *offload.Pool
	ended    chan struct{} // closed when no device is served any more
	again    time.Duration // firstAgain, but in tests
}
