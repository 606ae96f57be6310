package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"vdev/internal/control"
)

// writeStatus writes a status for people.
func writeStatus(w io.Writer, st control.Status) error {
	t := &table{w: w}
	t.row("vdev", "process %d, for %s, log level %s, %s", st.PID, age(st.Seconds), st.LogLevel, st.Version)
	if st.Name != "" {
		t.row("device", "%s", st.Name)
	}
	if d := st.Disk; d != nil {
		t.row("disk", "%s", describeDisk(d, st.AIO))
		for _, text := range d.Warnings {
			t.row("warning", "%s", text)
		}
	}
	if c := st.Console; c != nil {
		t.row("console", "%s", describeConsole(c))
	}
	t.row("socket", "%s", st.Socket)
	state := st.State
	if st.Error != "" {
		state += ": " + st.Error
	}
	t.row("state", "%s", state)
	if st.RetryIn != nil {
		t.row("", "is not served; it is tried again in %s, or at once after SIGHUP", age(*st.RetryIn))
	}
	if st.Disk != nil {
		describeLosses(t, st.Disk)
	}
	if st.CancelIn != nil {
		if in := *st.CancelIn; in > 0 {
			t.row("", "is being stopped; requests in flight are cancelled in %s", age(in))
		} else {
			t.row("", "is being stopped; requests in flight were cancelled %s ago", age(-in))
		}
	}
	if st.Fenced > 0 {
		t.row("", "waits for %s that storage has not completed, fenced from the guest's memory", count(st.Fenced, "transfer"))
	}
	t.row("on a stop", "%s", describeStop(&st))
	if f := st.FrontEnd; f == nil {
		t.row("front-end", "none")
	} else {
		t.row("front-end", "process %d of user %d, connected for %s", f.PID, f.UID, age(f.Seconds))
		if f.WaitsFor != "" {
			t.row("", "waits for the answer to %s, for %s", f.WaitsFor, age(f.WaitSeconds))
		}
		region := "no in-flight region"
		if f.Inflight {
			region = "an in-flight region"
		}
		t.row("memory", "%d bytes in %s, %s", f.Memory, count(f.Regions, "region"), region)
		t.row("features", "%s", describeBits(f.Features))
		t.row("protocol", "%s", describeBits(f.Protocol))
		t.row("status", "%s", describeBits(f.DeviceStatus))
	}
	if st.Waiting {
		t.row("", "another front-end waits to be served")
	}
	for i := range st.Devices {
		describeDevice(t, &st.Devices[i])
	}
	if st.Faults != nil {
		describeFaults(t, st.Faults)
	}
	if st.Console != nil {
		describePorts(t, st.Console.Ports)
	}
	describeRings(t, st.Rings)
	return t.err
}

// describeStop says what a stop does with what is in progress.
func describeStop(st *control.Status) string {
	stop := "requests in flight are cancelled after " + age(st.CancelAfter)
	if st.Console != nil {
		stop = "nothing of a console is in flight"
	}
	if !st.Migratable {
		stop += ", not migratable"
	}
	return stop
}

func describeDisk(d *control.Disk, aio string) string {
	words := []string{d.Driver}
	if d.File != "" {
		words = append(words, d.File)
	}
	words = append(words, fmt.Sprintf("%d bytes in blocks of %d", d.Bytes, d.BlockSize), aio)
	if d.ReadOnly {
		words = append(words, "read-only")
	}
	if d.Serial != "" {
		words = append(words, "serial "+d.Serial)
	}
	return strings.Join(words, ", ")
}

// describeLosses writes what storage has failed, and what has come of that.
func describeLosses(t *table, d *control.Disk) {
	if d.FailedFlush != "" {
		t.row("", "a flush has failed (%s), and all fail since: acknowledged writes are lost; 'vdev ctl clear-failure' ends it", d.FailedFlush)
	}
	if d.Unflushed {
		t.row("", "what the guest has written is lost: every request fails until the guest is reset")
	}
	if f := d.Failed; f != nil {
		t.row("failed", "%s, the last %s ago: %s", count(int(f.Requests), "request"), age(f.Seconds), f.Last)
	}
	if d.Cache != "" {
		cache := d.Cache
		if d.StableWrites {
			cache += ", each write is made stable"
		}
		t.row("cache mode", "%s", cache)
	}
}

func describeBits(b control.Bits) string {
	if len(b.Names) == 0 {
		return "none"
	}
	return fmt.Sprintf("%s (%s)", strings.Join(b.Names, " "), b.Value)
}

func describeDevice(t *table, d *control.Device) {
	state := count(d.Opens, "open")
	if d.Opening > 0 {
		state += fmt.Sprintf(" (%d in progress)", d.Opening)
	}
	if d.Closing {
		state += ", closing"
	}
	t.row(d.Device, "%s, %s", d.Driver, state)
	for _, o := range d.InProgress {
		what := o.What
		if o.Count != 1 {
			what += fmt.Sprintf(" ×%d", o.Count)
		}
		if o.Seconds > 0 {
			what += ", for " + age(o.Seconds)
		}
		t.row("", "in progress: %s", what)
	}
}

// describeFaults writes the rules in force, and what they hold.
func describeFaults(t *table, f *control.Faults) {
	if len(f.Rules) == 0 {
		t.row("faults", "no rule is in force")
	}
	for _, r := range f.Rules {
		t.row("fault "+strconv.Itoa(r.ID), "%s, has acted on %d of %d", r.Rule, r.Hit, r.Matched)
	}
	for _, h := range f.Held {
		what := h.Op
		if h.Bytes > 0 {
			what += fmt.Sprintf(" of %d bytes at %d", h.Bytes, h.Offset)
		}
		how := "is delayed"
		if h.Hangs {
			how = "hangs"
		}
		if h.Uncancellable {
			how += " uncancellably"
		}
		t.row("", "%s %s by rule %d, for %s", what, how, h.Rule, age(h.Seconds))
	}
	if f.Cached > 0 {
		t.row("cache", "%d sectors that are not flushed", f.Cached)
	}
	if f.Off {
		t.row("power", "off, since a crash")
	}
}

// quiet tells that there is nothing to tell of a ring but that it is stopped.
func quiet(r *control.Ring) bool { return r.State == "stopped" && r.Suspended == 0 }

// describeRings writes those rings that are not stopped, or have suspended requests.
func describeRings(t *table, rings []control.Ring) {
	stopped := 0
	for _, r := range rings {
		if quiet(&r) {
			stopped++
		}
	}
	if stopped < len(rings) && t.err == nil {
		var lines strings.Builder // does not fail
		w := tabwriter.NewWriter(&lines, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ring\tstate\tsize\tnext\tused\tin flight\toldest\t")
		for i := range rings {
			if !quiet(&rings[i]) {
				fmt.Fprintln(w, describeRing(&rings[i]))
			}
		}
		_ = w.Flush()
		for line := range strings.Lines(lines.String()) {
			if t.err == nil {
				_, t.err = fmt.Fprintln(t.w, strings.TrimRight(line, " \n"))
			}
		}
	}
	if stopped > 0 {
		t.row("", "%s stopped", count(stopped, "ring"))
	}
}

// describeRing gives the cells of a ring's line.
func describeRing(r *control.Ring) string {
	cells := []string{strconv.Itoa(r.Index), r.State, strconv.Itoa(r.Size), "-", "-", "-", "-", ""}
	if r.Answered {
		next := strconv.Itoa(int(r.Next))
		if r.Pending {
			next += "+"
		}
		copy(cells[3:], []string{next, strconv.Itoa(int(r.Used)), strconv.Itoa(r.InFlight)})
		if r.Oldest > 0 {
			cells[6] = age(r.Oldest)
		}
	}
	var more []string
	add := func(on bool, format string, args ...any) {
		if on {
			more = append(more, fmt.Sprintf(format, args...))
		}
	}
	add(r.Why != "", "by %s", r.Why)
	add(r.Resubmitted > 0, "%d were resubmitted", r.Resubmitted)
	add(r.Suspended > 0, "%d are suspended", r.Suspended)
	add(r.Error != "", "%s", r.Error)
	add(!r.Answered && r.State != "started" && r.State != "stopped" && r.Error == "", "its event loop does not answer")
	cells[7] = strings.Join(more, ", ")
	return strings.Join(cells, "\t")
}
