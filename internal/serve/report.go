package serve

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"vdev/devsw"
	"vdev/internal/trace"
	"vdev/specfs"
	"vdev/vhostuser"
)

// Log is where lines about one device go.
type Log struct {
	Asked *slog.Logger // for what was asked for
	Found *slog.Logger // for what others do, as often as they like: its lines have a bound
	Vital *slog.Logger // for what is said of the device itself: bounded, but each kind gets through
}

// Line is a line of the trace of what happens.
type Line struct {
	Device string // its name, where there are several
	From   string // who says it: vhost, specfs, ctl, or the device model
	What   fmt.Stringer
	// Many: a guest makes more of these than can be written. They are to be left out first.
	Many bool
}

// text is What of a Line.
type text string

func (t text) String() string { return string(t) }

// lifeEvents is how many events of a device's life are kept. A start and a stop of all rings are
// six events for each of them.
const lifeEvents = 2048

// newLife makes the record of a device's life. What a front-end says, and how it comes and goes,
// costs it nothing, and is not to push out what the device has done: see trace.New.
func newLife() *trace.Log {
	return trace.New(lifeEvents, string(vhostuser.EventConnect), string(vhostuser.EventDisconnect),
		string(vhostuser.EventRefuse), string(vhostuser.EventShort), string(vhostuser.EventSession),
		string(vhostuser.EventIn), string(vhostuser.EventOut), string(vhostuser.EventFail))
}

// reporter takes what the layers tell of one device and makes of it the log, the trace and the
// record of the device's life. Its methods are called on any goroutine, and none of them waits.
type reporter struct {
	name   string // of the device, where there are several
	log    Log
	trace  func(Line) // or nil
	life   *trace.Log
	moving func() // called when a front-end begins to move its guest
}

func newReporter(name string, log Log, lines func(Line), moving func()) *reporter {
	return &reporter{name: name, log: log, trace: lines, life: newLife(), moving: moving}
}

// line puts one line into the trace, where there is one.
func (r *reporter) line(from string, what fmt.Stringer) {
	if r.trace != nil {
		r.trace(Line{Device: r.name, From: from, What: what})
	}
}

// add puts an event into the record that is about no ring.
func (r *reporter) add(kind, device, note string, err error) {
	r.life.Add(trace.Event{Kind: kind, Device: device, Queue: trace.WholeDevice, Note: note, Err: err})
}

// vhostuser is the vhost-user back-end's hook.
func (r *reporter) vhostuser(e vhostuser.Event) {
	r.line("vhost", e)
	// How long the front-end waits in a stop belongs to the device's life. Other messages are many,
	// and answered at once.
	if e.Message == vhostuser.GetVringBase.String() || e.Kind != vhostuser.EventIn && e.Kind != vhostuser.EventOut {
		r.life.Add(trace.Event{Kind: string(e.Kind), Queue: e.Ring, Note: note(e), Err: e.Err})
	}
	if e.Kind == vhostuser.EventIn && e.Message == vhostuser.SetLogBase.String() {
		r.moving()
	}
	switch found := r.log.Found; e.Kind {
	case vhostuser.EventConnect:
		found.Info("a front-end has connected")
	case vhostuser.EventDisconnect:
		if e.Err != nil {
			found.Error("the connection was ended", "cause", e.Err)
		} else {
			found.Info("the front-end has disconnected")
		}
	case vhostuser.EventRefuse:
		if errors.Is(e.Err, vhostuser.ErrClosing) {
			found.Error("a front-end was refused", "cause", e.Err)
			break
		}
		found.Warn("a second front-end was refused: one is being served")
	case vhostuser.EventShort:
		found.Error("a front-end has to wait: it cannot be accepted now (look at 'ulimit -Hn' for descriptors)", "cause", e.Err)
	case vhostuser.EventFail:
		about := []any{"message", e.Message, "cause", e.Err}
		if errors.Is(e.Err, vhostuser.ErrMemoryFile) {
			about = append(about, "way_out", "share=on with memory-backend-memfd, or with a file in /dev/shm; or vdev's --memory-files any")
		}
		found.Error("a message was refused", about...)
	case vhostuser.EventBreak:
		r.log.Vital.Error("a ring is broken", "ring", e.Ring, "cause", e.Err)
	}
}

// note puts what an event tells besides its kind and its ring into one line.
func note(e vhostuser.Event) string {
	var words []string
	if e.Message != "" {
		words = append(words, e.Message)
	}
	for _, f := range e.Fields {
		words = append(words, fmt.Sprintf("%s=%v", f.Name, f.Value))
	}
	return strings.Join(words, " ")
}

// command records that somebody intervenes, or, with an error, could not.
func (r *reporter) command(what string, err error) {
	r.add("ctl", "", what, err)
	if err != nil {
		r.line("ctl", text(what+": "+err.Error()))
		r.log.Asked.Warn("a command has failed", "command", what, "cause", err)
	} else {
		r.line("ctl", text(what))
		r.log.Asked.Info("a command has come", "command", what)
	}
}

// specfs is the hook of the file system of devices.
func (r *reporter) specfs(e specfs.Event) {
	r.line("specfs", e)
	r.add(e.Kind.String(), specfsName(e.Mode, e.Dev), "", e.Err)
}

// model is told by the device model what went wrong where nobody could be given an error.
func (r *reporter) model(msg string, err error) {
	r.add("log", "", msg, err)
	if err != nil {
		r.log.Vital.Warn(msg, "cause", err)
	} else {
		r.log.Vital.Warn(msg)
	}
}

// specfsName is what a block or a character device is called in status and record, such as "block
// 14,0".
func specfsName(mode devsw.Mode, dev devsw.Dev) string { return fmt.Sprintf("%v %v", mode, dev) }
