package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"vdev/internal/control"
	"vdev/internal/dev/nbd"
	"vdev/internal/spec"
	"vdev/internal/trace"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioblk"
)

// lifeEvents is how many events of the device's life are kept. A start and a stop of all rings are six events for each of them.
const lifeEvents = 2048

// newLife makes the record of a device's life. What a front-end says, and how it comes and goes,
// costs it nothing, and is not to push out what the device has done: see trace.New.
func newLife() *trace.Log {
	return trace.New(lifeEvents, string(vhostuser.EventConnect), string(vhostuser.EventDisconnect),
		string(vhostuser.EventRefuse), string(vhostuser.EventShort), string(vhostuser.EventSession),
		string(vhostuser.EventIn), string(vhostuser.EventOut), string(vhostuser.EventFail))
}

// reporter takes what the layers tell and makes of it the log, the trace (--trace) and the record of the device's
// life. Its methods are called on any goroutine, and none of them waits.
type reporter struct {
	name  string       // of the device, where there are several
	log   *slog.Logger // for what was asked for
	found *slog.Logger // for what others do, as often as they like: its lines have a bound
	vital *slog.Logger // for what is said of the disk itself: likewise, but each kind gets through
	life  *trace.Log
	out   *queuedWriter
	start time.Time
	trace bool
	json  bool

	migrating func() // called when a front-end begins to move its guest
}

func newReporter(c spec.Config, name string, start time.Time, log *slog.Logger, limit *logLimit, out *queuedWriter, life *trace.Log) *reporter {
	return &reporter{
		name: name, log: log, found: limit.logger(log), vital: limit.vital(log), life: life, out: out, start: start,
		trace: c.Trace, json: c.LogJSON, migrating: func() {},
	}
}

// whose names the device, where there are several.
func (r *reporter) whose(only string) string {
	if r.name == "" {
		return only
	}
	return "device " + r.name
}

// line puts one line into the trace: when (since vdev was started), who says it, and what.
func (r *reporter) line(from, what string) {
	r.out.inOrder(func(at time.Time) { r.lineAt(at.Sub(r.start).Seconds(), from, what) })
}

func (r *reporter) lineAt(seconds float64, from, what string) {
	if r.json {
		r.log.Info("trace", "seconds", seconds, "from", from, "event", what)
		return
	}
	if r.name != "" {
		from = fmt.Sprintf("%s %-7s", r.name, from)
	}
	fmt.Fprintf(r.out, "%12.6f %-7s %s\n", seconds, from, what)
}

// vhostuser is the vhost-user back-end's hook.
func (r *reporter) vhostuser(e vhostuser.Event) {
	if r.trace {
		r.line("vhost", e.String())
	}
	// How long the front-end waits in a stop belongs to the device's life. Other messages are many, and answered at once.
	if e.Message == vhostuser.GetVringBase.String() || e.Kind != vhostuser.EventIn && e.Kind != vhostuser.EventOut {
		r.life.Add(trace.Event{Kind: string(e.Kind), Queue: e.Ring, Note: note(e), Err: e.Err})
	}
	if e.Kind == vhostuser.EventIn && e.Message == vhostuser.SetLogBase.String() {
		r.migrating()
	}
	switch e.Kind {
	case vhostuser.EventConnect:
		r.found.Info("a front-end has connected")
	case vhostuser.EventDisconnect:
		if e.Err != nil {
			r.found.Error("the connection was ended", "cause", e.Err)
		} else {
			r.found.Info("the front-end has disconnected")
		}
	case vhostuser.EventRefuse:
		if errors.Is(e.Err, vhostuser.ErrClosing) {
			r.found.Error("a front-end was refused", "cause", e.Err)
			break
		}
		r.found.Warn("a second front-end was refused: one is being served")
	case vhostuser.EventShort:
		r.found.Error("a front-end has to wait: it cannot be accepted now (look at 'ulimit -Hn' for descriptors)", "cause", e.Err)
	case vhostuser.EventFail:
		about := []any{"message", e.Message, "cause", e.Err}
		if errors.Is(e.Err, vhostuser.ErrMemoryFile) {
			about = append(about, "way_out", "share=on with memory-backend-memfd, or with a file in /dev/shm; or vdev's --memory-files any")
		}
		r.found.Error("a message was refused", about...)
	case vhostuser.EventBreak:
		r.vital.Error("a ring is broken", "ring", e.Ring, "cause", e.Err)
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
	r.life.Add(trace.Event{Kind: "ctl", Queue: trace.WholeDevice, Note: what, Err: err})
	if r.trace {
		line := what
		if err != nil {
			line += ": " + err.Error()
		}
		r.line("ctl", line)
	}
	if err != nil {
		r.log.Warn("a command has failed", "command", what, "cause", err)
	} else {
		r.log.Info("a command has come", "command", what)
	}
}

// specfs is the hook of the file system of devices.
func (r *reporter) specfs(e specfs.Event) {
	if r.trace {
		r.line("specfs", e.String())
	}
	r.life.Add(trace.Event{Kind: e.Kind.String(), Queue: trace.WholeDevice, Err: e.Err})
}

// request is told of each request that has ended, where there is a trace. A guest makes more of them than can be
// written: they must not push out what is worth more.
func (r *reporter) request(q virtioblk.Request) {
	if r.out.crowded() {
		r.out.skip()
		return
	}
	r.line("blk", q.String())
}

// failed is told of each request that storage has failed.
func (r *reporter) failed(q virtioblk.Request) {
	r.found.Warn("storage has failed a request", "request", q.String())
}

// virtioblk is told by the device model what went wrong where nobody could be given an error.
func (r *reporter) virtioblk(msg string, err error) {
	r.life.Add(trace.Event{Kind: "log", Queue: trace.WholeDevice, Note: msg, Err: err})
	if err != nil {
		r.vital.Warn(msg, "cause", err)
	} else {
		r.vital.Warn(msg)
	}
}

// server is told what the server behind the disk has done: that it is gone, with nil that it is back,
// and of a loss.
func (r *reporter) server(err error) {
	var lost *nbd.LostError
	switch {
	case errors.As(err, &lost) && lost.Split:
		r.vital.Error("the disk's server shows another disk by each connection", "error", err)
	case errors.As(err, &lost) && lost.Perhaps:
		r.vital.Warn("the disk's server may have lost writes", "error", err)
	case errors.As(err, &lost):
		r.vital.Error("the disk's server has lost writes", "error", err)
	case err != nil:
		r.vital.Warn("the disk's server is gone", "error", err)
	default:
		r.vital.Info("the disk's server is back")
	}
}

// status prints the status.
func (r *reporter) status(st control.Status) {
	if r.json {
		r.log.Info("status", "status", st)
		return
	}
	var b strings.Builder
	b.WriteString("the status of " + r.whose("vdev") + ":\n")
	// A Builder does not fail.
	_ = writeStatus(&b, st)
	_, _ = r.out.Write([]byte(b.String()))
}

// dump prints the record of the device's life.
func (r *reporter) dump() {
	if r.json {
		for _, e := range r.life.Snapshot() {
			r.log.Info("life", "seq", e.Seq, "seconds", e.Time.Seconds(), "event", strings.TrimSpace(e.String()))
		}
		return
	}
	fmt.Fprintf(r.out, "the last events of %s's life, in seconds since vdev was started:\n", r.whose("the device"))
	_, _ = r.life.WriteTo(r.out)
}
