package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"vdev/internal/control"
	"vdev/internal/serve"
	"vdev/internal/spec"
)

// statusWait is how long a status that a signal asks for waits for event loops that are busy.
const statusWait = time.Second

// printer writes the log, the trace (--trace), and what signals ask for. Its methods are called on
// any goroutine, and do not wait for whoever reads that. It is the control.Process.
type printer struct {
	out    *queuedWriter
	start  time.Time
	log    *slog.Logger
	level  *slog.LevelVar
	limit  *logLimit
	json   bool
	traces bool
}

func newPrinter(c spec.Config, out *queuedWriter, start time.Time) *printer {
	p := &printer{out: out, start: start, level: new(slog.LevelVar), limit: newLogLimit(), json: c.LogJSON, traces: c.Trace}
	p.level.Set(c.LogLevel)
	p.log = newLogger(out, p.level, c.LogJSON)
	return p
}

// logs makes what the lines about the device of that name go to; "" is vdev itself, or its only
// device.
func (p *printer) logs(name string) serve.Log {
	log := p.log
	if name != "" {
		log = log.With("device", name)
	}
	return serve.Log{Asked: log, Found: p.limit.logger(log), Vital: p.limit.vital(log)}
}

// trace gives what takes the lines of the trace; nil where there is none.
func (p *printer) trace() func(serve.Line) {
	if !p.traces {
		return nil
	}
	return p.line
}

// line puts one line into the trace: when (since vdev was started), who says it, and what.
func (p *printer) line(l serve.Line) {
	if l.Many && p.out.crowded() {
		p.out.skip()
		return
	}
	p.out.inOrder(func(at time.Time) {
		seconds, from := at.Sub(p.start).Seconds(), l.From
		if p.json {
			log := p.log
			if l.Device != "" {
				log = log.With("device", l.Device)
			}
			log.Info("trace", "seconds", seconds, "from", from, "event", l.What.String())
			return
		}
		if l.Device != "" {
			from = fmt.Sprintf("%s %-7s", l.Device, from)
		}
		fmt.Fprintf(p.out, "%12.6f %-7s %s\n", seconds, from, l.What)
	})
}

// status prints a device's status.
func (p *printer) status(d *serve.Device) {
	ctx, cancel := context.WithTimeout(context.Background(), statusWait)
	defer cancel()
	st := d.Status(ctx)
	if p.json {
		p.logs(d.Name()).Asked.Info("status", "status", st)
		return
	}
	var b strings.Builder
	b.WriteString("the status of " + whose(d, "vdev") + ":\n")
	// A Builder does not fail.
	_ = writeStatus(&b, st)
	_, _ = p.out.Write([]byte(b.String()))
}

// life prints the record of a device's life.
func (p *printer) life(d *serve.Device) {
	if p.json {
		log := p.logs(d.Name()).Asked
		for _, e := range d.Life().Snapshot() {
			log.Info("life", "seq", e.Seq, "seconds", e.Time.Seconds(), "event", strings.TrimSpace(e.String()))
		}
		return
	}
	fmt.Fprintf(p.out, "the last events of %s's life, in seconds since vdev was started:\n", whose(d, "the device"))
	_, _ = d.Life().WriteTo(p.out)
}

// whose names the device, where there are several.
func whose(d *serve.Device, only string) string {
	if d.Name() == "" {
		return only
	}
	return "device " + d.Name()
}

// LogLevel implements control.Process.
func (p *printer) LogLevel() string { return strings.ToLower(p.level.Level().String()) }

// SetLogLevel implements control.Process.
func (p *printer) SetLogLevel(name string) error {
	level, ok := spec.LogLevels[name]
	if !ok {
		return control.Wrong("level %q: must be %s", name, spec.OneOf(spec.LogLevelNames))
	}
	p.level.Set(level)
	return nil
}
