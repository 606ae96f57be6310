package serve

import (
	"context"
	"fmt"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/offload"
	"vdev/specfs"
	"vdev/vhostuser"
)

// Kind is what a device is, as somebody has described it. It opens nothing by itself. Its methods
// are called on any goroutine.
type Kind interface {
	// Name is what the device model is called in the trace: blk, say.
	Name() string
	// Title is a short name for what the device gives access to: an image's file, say.
	Title() string
	// About tells of that in the log: pairs of a name and a value, as for slog.
	About() []any
	// Queues is how many queues are offered at most.
	Queues() int
	// Programs is how many tasks the programs have that the device starts beside: at least, and at
	// most. It may look at storage, but not beyond the end of ctx.
	Programs(ctx context.Context) (least, most int)
	// Describe puts into a status what is known of a device that is not served yet.
	Describe(st *control.Status)
	// Open makes what stands behind the queues, which takes as long as storage does, or until ctx
	// ends. It is called again after it has failed, with new Parts.
	Open(ctx context.Context, p Parts) (Model, error)
}

// Parts are what a Kind makes a Model with.
type Parts struct {
	Table *devsw.Table // for its drivers
	FS    *specfs.FS   // on Table
	Pool  *offload.Pool
	Log   Log
	// Commands are those that come by the control socket.
	Commands *Commands
	// Warn puts what the user may have done wrong into the log, once however often the device is
	// opened.
	Warn func(text string)
	// Note is told by the device model what went wrong, or took long, where nobody is there to take
	// an error.
	Note func(msg string, err error)
	// Trace takes what each request comes to. nil: nobody wants to know.
	Trace func(what fmt.Stringer)
	// ConfigChanged has the front-end told that the configuration space has changed. It waits for
	// nothing. It is called once Open has returned.
	ConfigChanged func()
}

// Model is a device that is open to front-ends: a device model, with all that stands behind it. It
// may have the methods of control.Sized, control.Failing and control.Faulty beside. Its methods are
// called on any goroutine.
type Model interface {
	// Backend has the Device that the back-end serves, and what the device wants of it: OneReactor
	// and Decline. The rest of it is empty.
	Backend() vhostuser.Config
	// Noun says in a word what the device is.
	Noun() string
	// About tells of it in the log: pairs of a name and a value, as for slog.
	About() []any
	// FeatureNames are the names of the device's own feature bits, without prefix.
	FeatureNames() map[int]string
	// Status asks the device model what it is doing, and gives a function that adds that to a
	// status, which has the front-end and its rings by then. It waits for event loops that are
	// busy, a second at most, and for no storage.
	Status() (add func(st *control.Status))
	// Reload looks again at what may have changed outside, as SIGHUP asks for. It may wait for
	// storage.
	Reload()
	// Moving is told that the front-end begins to move the guest elsewhere while it runs, or to
	// save it. inflight: the in-flight region goes along. It waits for nothing.
	Moving(inflight bool)
	// WaitClosed waits until no close goes on in the background any more, or ctx ends.
	WaitClosed(ctx context.Context) error
	// Close takes drivers and device model away. Nothing is open any more.
	Close() error
}
