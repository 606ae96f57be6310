// Package control is how a person, or a program, looks at a running vdev and intervenes: HTTP with
// JSON over a Unix socket that only its owner can use. Server is vdev's side, over Targets. Client
// is the side of `vdev ctl`.
//
//	GET  /v1/devices                     Devices
//	GET  /v1/status                      Status
//	GET  /v1/trace                       Trace
//	GET  /v1/trace/follow?since=SEQ      trace.Event, one a line, until either side ends it
//	GET  /v1/faults                      Faults
//	POST /v1/faults          Rules       IDs: puts rules in force, all or none of them
//	POST /v1/faults/clear    IDs         takes rules out of force; without ids all of them
//	POST /v1/faults/release  IDs         ends the hangs that these rules have made; without ids all
//	POST /v1/faults/crash    Outage      Losses
//	POST /v1/revoke                      takes the device from the guest
//	POST /v1/resize                      Size
//	POST /v1/clear-failure               Cleared: has it forgotten that a flush has failed
//	GET  /v1/ports                       Ports, of a console
//	POST /v1/ports           NewPort     Port: gives the guest a port, by a text as --port has it
//	POST /v1/ports/remove    NewPort     takes the port of that name or id from the guest
//	GET  /v1/ports/attach?port=NAME      see below
//	GET  /v1/log-level                   Level
//	PUT  /v1/log-level       Level       Level
//
// Where vdev serves several devices, the paths of one are below /v1/devices/NAME, such as GET
// /v1/devices/NAME/status. /v1/devices and /v1/log-level are for all of them.
//
// A client that attaches to a port sends with its request the headers Connection: Upgrade and
// Upgrade: vdev-terminal, and has the answer 101. port is a name or an id, and may be missing where
// there is one port, or one console. With watch=true nothing can be typed. From then on both sides
// send frames: a byte of type, the length of what follows in two bytes, the higher one first, and
// that.
//
//	d  bytes: from the client what is typed, from vdev what is to be shown, first what the port has
//	   kept
//	s  from the client: rows and columns of its window, two bytes each
//	t  from vdev: how many bytes of what was typed the guest has taken, in two bytes; a client
//	   may have 4096 that are not taken
//	e  from vdev, as the last one: why the connection ends
//
// Either side ends it by closing the connection.
//
// An answer other than 200 (or, for who attaches, 101) has a Failure in it. Durations are in
// seconds and sizes in bytes. With curl:
//
//	curl --unix-socket /run/vm1.ctl http://vdev/v1/status
package control

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"vdev/internal/trace"
)

// Status is all there is to know of a device at a moment, and of its vdev. What only a device of
// one kind has stands below that kind's name.
type Status struct {
	Name     string    `json:"name,omitempty"` // of the device, where there are several
	PID      int       `json:"pid"`
	Version  string    `json:"version"`
	Seconds  float64   `json:"seconds"` // since vdev was started
	LogLevel string    `json:"log_level"`
	Socket   string    `json:"socket"`
	AIO      string    `json:"aio"`
	FrontEnd *FrontEnd `json:"front_end"` // null: none is connected
	Waiting  bool      `json:"front_end_waiting,omitempty"`
	// of the device: closed, opening, open, failed, revoked, closing
	State string `json:"state"`
	Error string `json:"error,omitempty"` // why it could not be opened
	// RetryIn is when that is tried again, where the device is not served because of it; 0: now.
	RetryIn *float64 `json:"retry_in_seconds,omitempty"`
	// Migratable and CancelAfter are --migratable and --cancel-after.
	Migratable  bool    `json:"migratable"`
	CancelAfter float64 `json:"cancel_after_seconds"`
	// CancelIn is in how many seconds the stop that is under way cancels the requests in flight;
	// negative where it has done so.
	CancelIn *float64 `json:"cancel_in_seconds,omitempty"`
	// Fenced is how many fenced reads and writes storage has not completed. The next start waits
	// for them.
	Fenced  int      `json:"fenced,omitempty"`
	Rings   []Ring   `json:"rings"`
	Devices []Device `json:"devices"` // those that are open, or being opened or closed
	Disk    *Disk    `json:"disk,omitempty"`
	Console *Console `json:"console,omitempty"`
	Faults  *Faults  `json:"faults,omitempty"`
}

// Failed are requests that storage has failed.
type Failed struct {
	Requests uint64  `json:"requests"`
	Last     string  `json:"last"`         // the last one, and why
	Seconds  float64 `json:"last_seconds"` // since then
}

// Devices are the names of the devices that are served; none where there is one, without a name.
type Devices struct {
	Devices []string `json:"devices"`
}

// Disk is what a disk has beside what every device has.
type Disk struct {
	Driver    string `json:"driver"`
	File      string `json:"file,omitempty"`
	Bytes     int64  `json:"bytes"`
	BlockSize uint32 `json:"block_size"`
	ReadOnly  bool   `json:"read_only,omitempty"`
	Serial    string `json:"serial,omitempty"`
	// Warnings are what the operator should know of the disk, one line each.
	Warnings []string `json:"warnings,omitempty"`
	// Failed is what storage has failed since vdev was started; null: nothing.
	Failed *Failed `json:"failed,omitempty"`
	// FailedFlush is why a flush has failed. Since then all fail: acknowledged writes are lost.
	// Empty: none has.
	FailedFlush string `json:"failed_flush,omitempty"`
	// Unflushed: what held the guest's writes has ended. Every request fails until the guest is
	// reset.
	Unflushed bool `json:"lost_unflushed,omitempty"`
	// Cache is what the guest takes the disk's cache for: writeback, writethrough or unknown. It
	// is empty where no ring has started. StableWrites: each write is therefore made stable
	// before it is answered.
	Cache        string `json:"cache,omitempty"`
	StableWrites bool   `json:"stable_writes,omitempty"`
}

// Console is what a console has beside what every device has.
type Console struct {
	Multiport bool `json:"multiport"` // it is offered
	MaxPorts  int  `json:"max_ports"`
	Queues    int  `json:"queues"` // num_vqs of QEMU
	// ResizeOrder is columns-first or rows-first.
	ResizeOrder string `json:"resize_order"`
	Ports       []Port `json:"ports"`
}

// Ports are those of a console.
type Ports struct {
	Ports []Port `json:"ports"`
}

// NewPort is a port as --port has it, or the name or the id of one.
type NewPort struct {
	Port string `json:"port"`
}

// Port is a port of a console.
type Port struct {
	ID      int    `json:"id"`
	Name    string `json:"name,omitempty"`
	Console bool   `json:"console"`
	// Driver is what stands behind it, with its path or address.
	Driver   string `json:"driver"`
	Overflow string `json:"overflow"` // drop or wait
	State    string `json:"state"`    // of its device, as Status has it
	Error    string `json:"error,omitempty"`
	// GuestReady and GuestOpen: the guest's driver knows the port, and a process of the guest
	// has it open.
	GuestReady bool `json:"guest_ready"`
	GuestOpen  bool `json:"guest_open"`
	Attached   bool `json:"attached"` // somebody is at the other side
	// Size is the window's, and Told what the guest was told of it with MULTIPORT.
	Size Window `json:"size,omitzero"`
	Told Window `json:"size_told,omitzero"`
	// Output is what has come from the guest, in bytes, and Input what has gone to it.
	Output  int64 `json:"output_bytes"`
	Input   int64 `json:"input_bytes"`
	Dropped int64 `json:"dropped_bytes,omitempty"` // of the output; nobody has seen them
	Kept    int   `json:"kept_bytes,omitempty"`    // of the output, for who attaches
	Waiting int   `json:"waiting_bytes,omitempty"` // of them, for who is attached
	Ends    []End `json:"ends"`                    // who is at the other side, the oldest first
}

// End is one of those at the other side of a port.
type End struct {
	Name    string `json:"name"`
	Watches bool   `json:"watches,omitempty"` // it only reads
	Gone    bool   `json:"gone,omitempty"`    // what it has left is still to be read
	Output  int64  `json:"output_bytes"`      // that it has taken
	Input   int64  `json:"input_bytes"`       // that it has given
	Lost    int64  `json:"lost_bytes,omitempty"`
	Size    Window `json:"size,omitzero"`
}

// Window is the size of a window in characters; zero: not known.
type Window struct {
	Columns uint16 `json:"columns"`
	Rows    uint16 `json:"rows"`
}

// FrontEnd is the connection that is served.
type FrontEnd struct {
	PID          int     `json:"pid"` // 0 where the host does not tell
	UID          int     `json:"uid"`
	Seconds      float64 `json:"seconds"` // since it connected
	Features     Bits    `json:"features"`
	Protocol     Bits    `json:"protocol_features"`
	DeviceStatus Bits    `json:"device_status"`
	Regions      int     `json:"memory_regions"`
	Memory       uint64  `json:"memory_bytes"`
	Inflight     bool    `json:"inflight_region"`
	// the message that it has sent and that is not answered
	WaitsFor    string  `json:"waits_for,omitempty"`
	WaitSeconds float64 `json:"wait_seconds,omitempty"`
}

// Bits are flags by name, those that have none here as "bit N".
type Bits struct {
	Value string   `json:"value"` // hexadecimal
	Names []string `json:"names"`
}

// Ring is one virtqueue.
type Ring struct {
	Index int    `json:"index"`
	State string `json:"state"` // stopped, started, running, disabled, stopping, broken
	Size  int    `json:"size,omitempty"`
	Why   string `json:"why,omitempty"` // it is stopping
	Error string `json:"error,omitempty"`

	// Answered: the ring runs, and its event loop has told what follows.
	Answered bool `json:"answered"`
	// free-running index of the next entry to take from the available ring
	Next     uint16  `json:"next"`
	Used     uint16  `json:"used"`    // free-running index of the used ring
	Pending  bool    `json:"pending"` // there is more to take
	InFlight int     `json:"in_flight"`
	Oldest   float64 `json:"oldest_seconds,omitempty"` // age of the oldest request in flight

	// found in the in-flight region when it was started
	Resubmitted int `json:"resubmitted,omitempty"`
	// left there when it was stopped, or waiting for the ring to be enabled or stopped
	Suspended int `json:"suspended,omitempty"`
}

// Device is a device of the switch that is open, or being opened or closed.
type Device struct {
	Device     string      `json:"device"` // such as "block 14,0"
	Driver     string      `json:"driver"`
	Opens      int         `json:"opens"`
	Opening    int         `json:"opening,omitempty"`
	Closing    bool        `json:"closing,omitempty"`
	InProgress []Operation `json:"in_progress,omitempty"` // its I/O sections
}

// Operation is something in progress on a Device.
type Operation struct {
	What    string  `json:"what"`
	Count   int     `json:"count"`
	Seconds float64 `json:"seconds,omitempty"` // transfers do not know it
}

// Faults is what the driver fault does, and has done.
type Faults struct {
	Rules    []FaultRule       `json:"rules"`
	Held     []Held            `json:"held"` // the oldest first
	Ops      map[string]uint64 `json:"operations"`
	Injected map[string]uint64 `json:"injected"`
	Cached   int               `json:"cached_sectors,omitempty"`
	Off      bool              `json:"off,omitempty"` // the power is off, since a crash
}

// FaultRule is a rule in force.
type FaultRule struct {
	ID      int    `json:"id"`
	Rule    string `json:"rule"`
	Matched uint64 `json:"matched"` // operations it was about
	Hit     uint64 `json:"hit"`     // those it has acted on
}

// Held is an operation that is delayed, or hangs.
type Held struct {
	Op            string  `json:"operation"`
	Offset        int64   `json:"offset,omitempty"`
	Bytes         int64   `json:"bytes,omitempty"`
	Seconds       float64 `json:"seconds"`
	Rule          int     `json:"rule"`
	Hangs         bool    `json:"hangs,omitempty"`
	Uncancellable bool    `json:"uncancellable,omitempty"`
}

// Trace is the record of the device's life.
type Trace struct {
	Name    string        `json:"name,omitempty"` // of the device, where there are several
	Process string        `json:"process"`        // a name for the timeline
	PID     int           `json:"pid"`
	Start   time.Time     `json:"start"`   // the zero of the events' times
	Seconds float64       `json:"seconds"` // since then
	Events  []trace.Event `json:"events"`
}

// Rules are rules as fault.ParseRule reads them.
type Rules struct {
	Rules []string `json:"rules"`
}

// IDs are rules in force.
type IDs struct {
	IDs []int `json:"ids"`
}

// Outage is a loss of power: see fault.Outage.
type Outage struct {
	Seed uint64  `json:"seed"`
	Keep float64 `json:"keep"`
	Off  bool    `json:"off"`
}

// Losses say what an Outage did with the sectors in the cache.
type Losses struct {
	Kept    int `json:"kept"`
	Dropped int `json:"dropped"`
}

// Size is the disk's.
type Size struct {
	Bytes   int64 `json:"bytes"`
	Changed bool  `json:"changed"`
}

// Cleared is what is forgotten now: why a flush had failed (empty where none had), and whether
// writes had been lost with what held them.
type Cleared struct {
	FailedFlush   string `json:"failed_flush"`
	LostUnflushed bool   `json:"lost_unflushed"`
}

// Level is how severe something must be to be logged: debug, info, warn or error.
type Level struct {
	Level string `json:"level"`
}

// Failure is the answer to what could not be done.
type Failure struct {
	Message string `json:"error"`
}

// Process is what a Server shows and changes of all of vdev. Its methods are called on any
// goroutine.
type Process interface {
	LogLevel() string
	SetLogLevel(level string) error
}

// Target is a device that a Server shows and changes. Its methods are called on any goroutine.
// Those with a context stop waiting when it is done; what they have begun goes on. An *Error is
// answered with its own status, any other error with 500. The same holds for what Model returns.
type Target interface {
	Name() string // may be empty where the device is the only one
	Status(ctx context.Context) Status
	Trace() (about Trace, log *trace.Log)
	// Revoke takes the device from the guest. It returns when the device is closed.
	Revoke(ctx context.Context) error
	// Model returns what only a device of its kind can be asked for: a Sized, a Failing, a Faulty
	// or a Ported, or several of them. Its error says why the device is not served.
	Model() (any, error)
}

// Sized is a device with a size that may change.
type Sized interface {
	Resize(ctx context.Context) (Size, error)
}

// Failing is a device that keeps in mind what it has lost.
type Failing interface {
	ClearFailure(ctx context.Context) (Cleared, error)
}

// Faulty is a device that may have the driver fault.
type Faulty interface {
	Faults() (Faults, error)
	SetFaults(rules []string) (ids []int, err error)
	ClearFaults(ids []int) error
	ReleaseFaults(ids []int) error
	Crash(ctx context.Context, o Outage) (Losses, error)
}

// Ported is a device with ports that come and go. Where a port is named, it is by its name or its
// id, and need not be where there is one port, or one console.
type Ported interface {
	// Ports waits for event loops that are busy, until ctx ends.
	Ports(ctx context.Context) []Port
	// AddPort gives the guest a port, by a text as --port has it.
	AddPort(ctx context.Context, text string) (Port, error)
	// RemovePort returns when the port is closed.
	RemovePort(ctx context.Context, port string) error
	// Attach gives what serves a terminal at the port, until its client has gone, or the port.
	// watch: it only reads.
	Attach(port string, watch bool) (serve func(*Terminal), err error)
}

// Error says what a Server has refused, or failed to do.
type Error struct {
	Status  int // of HTTP
	Message string
}

func (e *Error) Error() string { return e.Message }

// Wrong is the error for a request that makes no sense.
func Wrong(format string, args ...any) *Error {
	return &Error{http.StatusBadRequest, fmt.Sprintf(format, args...)}
}

// Impossible is the error for a request that cannot be met as things stand.
func Impossible(format string, args ...any) *Error {
	return &Error{http.StatusConflict, fmt.Sprintf(format, args...)}
}
