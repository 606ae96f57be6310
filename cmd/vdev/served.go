package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/fault"
	"vdev/internal/spec"
	"vdev/internal/trace"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/virtioblk"
)

// served is a disk that is served, with all that stands behind it. It is what signals and the control socket act on
// (control.Target); its methods are called on any goroutine.
type served struct {
	program  *program
	config   spec.Disk
	log      *slog.Logger
	rep      *reporter
	table    *devsw.Table
	fs       *specfs.FS
	disk     *openedDisk
	info     devsw.DiskInfo // when it was made
	device   *virtioblk.Device
	backend  *vhostuser.Backend
	listener net.Listener // nil before listen
	history  *history
	again    chan struct{} // the disk's size is to be read; see disks
	closing  sync.Once
	commands atomic.Int32 // in progress, of those that may wait
}

// aio is how files are read and written.
func (s *served) aio() string { return string(s.program.reactors.Mode()) }

var _ control.Target = (*served)(nil)

// Status implements control.Target.
func (s *served) Status(ctx context.Context) control.Status {
	st := control.Status{
		Name: s.config.Name, PID: os.Getpid(), Version: version(), Seconds: time.Since(s.rep.start).Seconds(), LogLevel: s.LogLevel(), Disk: s.diskStatus(),
		Rings: []control.Ring{}, Devices: []control.Device{},
	}
	// First: what is told to hang here was fetched from a ring before.
	if f, err := s.Faults(); err == nil {
		st.Faults = &f
	}
	model := make(chan virtioblk.Status, 1)
	go func() { model <- s.device.Status() }()
	vs := s.backend.Status(ctx)
	st.Waiting = vs.Waiting
	if f := vs.FrontEnd; f != nil {
		st.FrontEnd = frontEnd(f)
		for _, r := range f.Rings {
			st.Rings = append(st.Rings, ring(r))
		}
	}
	// It bounds its own wait for the event loops.
	s.addModel(&st, <-model)
	for _, d := range s.fs.Devices() {
		st.Devices = append(st.Devices, s.deviceStatus(d))
	}
	if st.State == string(virtioblk.StateOpen) && !s.isOpen() {
		st.State = "revoked" // the rings run, and their requests fail
	}
	return st
}

// addModel adds what the device model knows.
func (s *served) addModel(st *control.Status, m virtioblk.Status) {
	st.Disk.Bytes, st.Disk.BlockSize, st.Disk.ReadOnly = m.Disk.Size, m.Disk.SectorSize, m.Disk.ReadOnly
	st.State, st.Fenced = string(m.State), m.Fenced
	if m.Err != nil {
		st.Error = m.Err.Error()
	}
	if f := m.Failures; f.Count > 0 {
		st.Failed = &control.Failed{Requests: f.Count, Last: f.Last.String(), Seconds: since(f.At)}
	}
	if e := m.Lost.FlushError; e != 0 {
		st.FailedFlush = e.Error()
	}
	st.Unflushed = m.Lost.Unflushed
	if st.FrontEnd != nil && !m.Disk.ReadOnly {
		st.Cache, st.StableWrites = m.Cache, m.Stable
	}
	if !m.CancelAt.IsZero() {
		in := time.Until(m.CancelAt).Seconds()
		st.CancelIn = &in
	}
	for i := range st.Rings {
		r, q := &st.Rings[i], &m.Queues[i]
		r.Oldest, r.Resubmitted, r.Suspended, r.Kept = q.Oldest.Seconds(), q.Resubmitted, q.Suspended, q.Kept
	}
}

func (s *served) diskStatus() control.Disk {
	c := &s.config
	d := control.Disk{
		Driver: c.Driver.Name, File: c.Driver.File, Serial: c.Serial, Socket: c.SocketPath, AIO: s.aio(),
		Migratable: c.Migratable, CancelAfter: c.CancelWait.Seconds(),
	}
	d.Warnings = s.disk.warnings()
	if c.Driver.Faults != nil {
		d.Driver = "fault on " + d.Driver
	}
	if c.SocketPath == "" {
		d.Socket = fmt.Sprintf("descriptor %d", c.FD)
	}
	return d
}

func frontEnd(f *vhostuser.FrontEndStatus) *control.FrontEnd {
	to := &control.FrontEnd{
		PID: f.PID, UID: f.UID, Seconds: since(f.Since), Features: named(f.Features, featureNames),
		Protocol: protocolFeatures(f.Protocol), DeviceStatus: named(uint64(f.Device), statusNames),
		Regions: f.Regions, Memory: f.Memory, Inflight: f.Inflight,
	}
	if f.Message != "" {
		to.WaitsFor, to.WaitSeconds = f.Message, since(f.MessageAt)
	}
	return to
}

func ring(r vhostuser.RingStatus) control.Ring {
	to := control.Ring{Index: r.Index, State: string(r.State), Size: r.Size}
	if r.State == vhostuser.RingStopping {
		to.Why = r.Why.String()
	}
	if r.Err != nil {
		to.Error = r.Err.Error()
	}
	if r.Known {
		to.Answered, to.Next, to.Used, to.Pending, to.InFlight = true, r.Next, r.Used, r.Pending, r.InFlight
	}
	return to
}

func (s *served) deviceStatus(d specfs.DeviceStatus) control.Device {
	to := control.Device{Device: fmt.Sprintf("%v %v", d.Mode, d.Dev), Opens: d.Opens, Opening: d.Opening, Closing: d.Closing}
	if d.Mode == devsw.IFBLK {
		to.Driver = s.table.BdevswGetname(int(d.Dev.Major()))
	} else {
		to.Driver = s.table.CdevswGetname(int(d.Dev.Major()))
	}
	for _, o := range d.Operations {
		to.InProgress = append(to.InProgress, control.Operation{What: o.What, Count: o.Count, Seconds: since(o.Since)})
	}
	return to
}

// since gives the age of something in seconds, 0 where its time is not known.
func since(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return time.Since(t).Seconds()
}

// Trace implements control.Target.
func (s *served) Trace() (control.Trace, *trace.Log) {
	return control.Trace{Process: "vdev " + cmp.Or(s.config.Name, s.config.Driver.File, s.config.Driver.Name), PID: os.Getpid()}, s.rep.life
}

// faultDriver runs a command of the driver fault.
func (s *served) faultDriver(cmd devsw.Cmd, data any) error {
	if s.disk.faults == nil {
		return control.Impossible("the disk has no faults: vdev was not started with --driver fault,...")
	}
	return s.disk.faults.Control(0, cmd, data)
}

// Faults implements control.Target.
func (s *served) Faults() (control.Faults, error) {
	var st fault.State
	if err := s.faultDriver(fault.FAULTGET, &st); err != nil {
		return control.Faults{}, err
	}
	f := control.Faults{
		Rules: []control.FaultRule{}, Held: []control.Held{}, Ops: map[string]uint64{}, Injected: map[string]uint64{},
		Cached: st.Cached, Off: st.Off,
	}
	for _, r := range st.Rules {
		f.Rules = append(f.Rules, control.FaultRule{ID: r.ID, Rule: r.Rule.String(), Matched: r.Matched, Hit: r.Hit})
	}
	for _, h := range st.Held {
		f.Held = append(f.Held, control.Held{Op: h.Op.String(), Offset: h.Pos, Bytes: h.N, Seconds: since(h.Since), Rule: h.Rule,
			Hangs: h.Hangs, Uncancellable: h.Uncancellable})
	}
	for op, n := range st.Ops {
		f.Ops[op.String()] = n
	}
	for a, n := range st.Injected {
		f.Injected[a.String()] = n
	}
	return f, nil
}

// SetFaults implements control.Target.
func (s *served) SetFaults(texts []string) (ids []int, err error) {
	rules := make([]fault.Rule, len(texts))
	for i, text := range texts {
		if rules[i], err = fault.ParseRule(text); err != nil {
			return nil, control.Wrong("%s", withoutEINVAL(err))
		}
	}
	err = s.command("fault "+strings.Join(texts, " "), func() error {
		for i := range rules {
			if err := s.faultDriver(fault.FAULTSET, &rules[i]); err != nil {
				for _, id := range ids {
					err = errors.Join(err, s.faultDriver(fault.FAULTCLEAR, &id))
				}
				if errors.Is(err, devsw.EINVAL) {
					return control.Impossible("%s", withoutEINVAL(err))
				}
				return err
			}
			ids = append(ids, rules[i].ID)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

// command records a command, does it, and records where it has failed. It is recorded first, so that it stands before what
// comes of it.
func (s *served) command(what string, do func() error) error {
	s.rep.command(what, nil)
	err := do()
	if err != nil {
		s.rep.command(what, err)
	}
	return err
}

// withoutEINVAL is the text of an error without the words of EINVAL behind it, which say less than what stands before.
func withoutEINVAL(err error) string {
	return strings.TrimSuffix(err.Error(), ": "+devsw.EINVAL.Error())
}

// ClearFaults implements control.Target.
func (s *served) ClearFaults(ids []int) error {
	return s.eachRule("fault clear", fault.FAULTCLEAR, ids)
}

// ReleaseFaults implements control.Target.
func (s *served) ReleaseFaults(ids []int) error {
	return s.eachRule("fault release", fault.FAULTRELEASE, ids)
}

// eachRule runs a command of the driver fault for each of these rules, or once for all.
func (s *served) eachRule(what string, cmd devsw.Cmd, ids []int) error {
	if len(ids) == 0 {
		return s.command(what, func() error { return s.faultDriver(cmd, nil) })
	}
	for _, id := range ids {
		err := s.command(fmt.Sprint(what, " ", id), func() error { return s.faultDriver(cmd, &id) })
		switch {
		case errors.Is(err, devsw.ENOENT):
			return control.Impossible("no rule %d is in force", id)
		case errors.Is(err, devsw.EINVAL):
			return control.Wrong("%d is no rule: they count from 1", id)
		case err != nil:
			return err
		}
	}
	return nil
}

// Crash implements control.Target.
func (s *served) Crash(ctx context.Context, o control.Outage) (control.Losses, error) {
	if !(o.Keep >= 0 && o.Keep <= 1) {
		return control.Losses{}, control.Wrong("keep=%v: must be from 0 to 1", o.Keep)
	}
	out := fault.Outage{Seed: o.Seed, Keep: o.Keep, Off: o.Off}
	// It writes to the lower device, which may be slow.
	err := s.wait(ctx, func() error {
		return s.command("fault crash", func() error { return s.faultDriver(fault.FAULTCRASH, &out) })
	})
	switch {
	case errors.Is(err, devsw.EINVAL):
		return control.Losses{}, control.Impossible("the disk has no cache whose contents could be lost: --driver fault was given without cache=BYTES")
	case errors.Is(err, devsw.ENXIO):
		return control.Losses{}, control.Impossible("the disk is not open: there is nothing in its cache")
	case err != nil:
		return control.Losses{}, err
	}
	return control.Losses{Kept: out.Kept, Dropped: out.Dropped}, nil
}

// Revoke implements control.Target: it takes the device from the guest as specfs does, and returns when the device is closed.
// What is in progress, and what the guest asks for then, fails until the guest starts the device anew.
func (s *served) Revoke(ctx context.Context) error {
	if !s.isOpen() {
		return control.Impossible("the device is not open: no guest uses it")
	}
	return s.wait(ctx, func() error {
		return s.command("revoke", func() error {
			s.fs.RevokeDevice(devsw.IFBLK, s.disk.dev)
			return nil
		})
	})
}

// isOpen tells whether the device is open, or being opened or closed.
func (s *served) isOpen() bool {
	return slices.ContainsFunc(s.fs.Devices(), func(d specfs.DeviceStatus) bool {
		return d.Mode == devsw.IFBLK && d.Dev == s.disk.dev && (d.Opens > 0 || d.Closing)
	})
}

// maxCommands is how many commands that may have to wait for storage one device has in progress, each with a goroutine and perhaps a
// thread. One whose client has gone goes on, and may hang: more of them would not help.
const maxCommands = 8

// wait runs fn and returns its result; when ctx ends before, fn goes on alone.
func (s *served) wait(ctx context.Context, fn func() error) error {
	if n := s.commands.Add(1); n > maxCommands {
		s.commands.Add(-1)
		return control.Impossible("%d commands are in progress, and wait for the disk", maxCommands)
	}
	done := make(chan error, 1)
	go func() {
		defer s.commands.Add(-1)
		done <- fn()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Resize implements control.Target: it looks at the disk's size again, and has the front-end told where it has changed.
func (s *served) Resize(ctx context.Context) (size control.Size, err error) {
	var now control.Size
	err = s.wait(ctx, func() error {
		return s.command("resize", func() (err error) {
			now, err = s.resize()
			return err
		})
	})
	if err != nil {
		return control.Size{}, err
	}
	return now, nil
}

func (s *served) resize() (size control.Size, err error) {
	// An open driver goes by the size it knows. ENXIO: it is being closed, and will look when it is
	// opened next. ENOTTY: its disks do not change.
	err = devsw.ENXIO
	if node := s.fs.Lookup(devsw.IFBLK, s.disk.dev); node != nil {
		err = node.Ioctl(devsw.DIOCGROW, nil, devsw.FREAD)
	}
	if errors.Is(err, devsw.ENXIO) {
		// EBUSY: it is being opened, and looks.
		if err = s.disk.reread(); errors.Is(err, devsw.EBUSY) {
			err = nil
		}
	}
	if err != nil && !errors.Is(err, devsw.ENOTTY) {
		return size, err
	}
	if size.Changed, err = s.device.Resize(); err != nil {
		return size, err
	}
	info, err := s.disk.info()
	if err != nil {
		return size, err
	}
	size.Bytes = info.Size
	s.log.Info("the disk's size was read again", "bytes", size.Bytes, "changed", size.Changed)
	if size.Changed {
		s.backend.ConfigChanged()
	}
	return size, nil
}

// ClearFailure implements control.Target.
func (s *served) ClearFailure(ctx context.Context) (c control.Cleared, err error) {
	var cleared devsw.DiskState
	err = s.wait(ctx, func() error {
		return s.command("clear-failure", func() (err error) {
			cleared, err = s.device.ClearFailure()
			return err
		})
	})
	if err != nil {
		return c, err
	}
	c.LostUnflushed = cleared.Unflushed
	if e := cleared.FlushError; e != 0 {
		c.FailedFlush = e.Error()
	}
	if cleared != (devsw.DiskState{}) {
		s.log.Warn("what was lost is forgotten", "failed_flush", c.FailedFlush, "unflushed", c.LostUnflushed)
	}
	return c, nil
}

// migrating is told that the front-end begins to move the guest elsewhere while it runs, or to save it. It waits for nothing.
func (s *served) migrating() {
	e := s.device.Failure()
	if e == 0 {
		return
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	f := s.backend.Status(now).FrontEnd
	if f != nil && f.Inflight && f.Protocol&vhostuser.ProtocolGetVringBaseInflight != 0 {
		return // the in-flight region goes along, and says it
	}
	s.rep.vital.Warn("the guest is being moved: where it goes nobody will know that a flush has failed, and that writes are lost "+
		"(with inflight-migration=on of QEMU 11.1 vdev is told)", "error", e)
}

// LogLevel implements control.Target.
func (s *served) LogLevel() string { return s.program.logLevel() }

// SetLogLevel implements control.Target.
func (s *served) SetLogLevel(name string) error { return s.program.setLogLevel(name) }

func (p *program) logLevel() string { return strings.ToLower(p.level.Level().String()) }

func (p *program) setLogLevel(name string) error {
	level, ok := spec.LogLevels[name]
	if !ok {
		return control.Wrong("level %q: must be %s", name, spec.OneOf(spec.LogLevelNames))
	}
	p.level.Set(level)
	return nil
}

// dump puts status and trace into the log.
func (s *served) dump() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.rep.status(s.Status(ctx))
	s.rep.dump()
}
