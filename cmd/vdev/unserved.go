package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdev/internal/control"
	"vdev/internal/spec"
	"vdev/internal/trace"
	"vdev/vhostuser/virtioblk"
)

// A disk that could not be opened is tried again after this time, and after twice as long each time
// up to the maximum: what it needs may come when somebody mounts a file system, starts a server, or
// ends another program. Each disk has one attempt at a time.
const (
	firstAgain = 1 * time.Second
	lastAgain  = 1 * time.Minute
)

// unserved is a disk that could not be opened at the start, and has no socket until it can be. The
// control socket knows why not.
type unserved struct {
	program *program
	config  spec.Disk
	history *history
	first   <-chan attempt         // nil: that has ended
	again   chan struct{}          // it is to be tried now
	now     atomic.Pointer[served] // what it has become; nil: it is not served

	mu   sync.Mutex
	err  error     // why not
	next time.Time // when it is tried again; zero: just now
}

var _ control.Replaced = (*unserved)(nil)

func newUnserved(p *program, c spec.Disk, h *history) *unserved {
	return &unserved{program: p, config: c, history: h, again: make(chan struct{}, 1)}
}

// errSilent is why a disk is not served whose first attempt goes on.
var errSilent = errors.New("its storage has not answered since vdev was started")

// newSilent makes one whose first attempt goes on.
func newSilent(p *program, c spec.Disk, h *history, first <-chan attempt) *unserved {
	u := newUnserved(p, c, h)
	u.first, u.err = first, errSilent
	return u
}

// serve tries to open the disk until that works, serves it, and then returns what that gives; nil
// where ctx ends before.
func (u *unserved) serve(ctx context.Context, all *disks) error {
	if u.first != nil {
		s, err := u.take(<-u.first)
		switch {
		case ctx.Err() != nil && s != nil:
			return s.close()
		case ctx.Err() != nil:
			return nil
		case err == nil:
			all.add(s)
			return s.serve(ctx)
		}
		u.notYet(err)
	}
	for wait := firstAgain; ; wait = min(2*wait, lastAgain) {
		u.plan(time.Now().Add(wait))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-u.again:
			// Whoever asks has done something about it, and may not be done.
			wait = firstAgain / 2
		case <-ctx.Done():
		}
		timer.Stop()
		if ctx.Err() != nil {
			return nil
		}
		u.plan(time.Time{})
		s, err := u.try(ctx)
		if err == nil {
			all.add(s)
			return s.serve(ctx)
		}
		if ctx.Err() == nil {
			u.notYet(err)
		}
	}
}

// try opens the disk and makes its socket.
func (u *unserved) try(ctx context.Context) (*served, error) {
	s, err := u.program.open(ctx, u.config, u.history)
	return u.take(attempt{s, err})
}

// take makes the socket of a disk that was opened.
func (u *unserved) take(a attempt) (*served, error) {
	if a.err != nil {
		return nil, a.err
	}
	s := a.served
	u.now.Store(s)
	if err := s.listen(); err != nil {
		u.now.Store(nil)
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// notYet says why the disk is not served, where that is news.
func (u *unserved) notYet(err error) {
	u.mu.Lock()
	news := u.err == nil || u.err.Error() != err.Error()
	u.err = err
	u.mu.Unlock()
	if news {
		const text = "the device is not served"
		u.program.log.Error(text, "device", u.config.Name, "cause", err, "tried_again_within", lastAgain)
		u.history.life.Add(trace.Event{Kind: "log", Queue: trace.WholeDevice, Note: text, Err: err})
	}
}

func (u *unserved) plan(next time.Time) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.next = next
}

// why tells why the disk is not served, and when it is tried again, in seconds.
func (u *unserved) why() (in float64, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.next.IsZero() {
		in = max(0, time.Until(u.next).Seconds())
	}
	return in, u.err
}

// Now implements control.Replaced.
func (u *unserved) Now() control.Target {
	if s := u.now.Load(); s != nil {
		return s
	}
	return u
}

// impossible is the answer to everything that needs a disk.
func (u *unserved) impossible() error {
	in, err := u.why()
	if errors.Is(err, errSilent) {
		return control.Impossible("the device is not served yet: %v", err)
	}
	return control.Impossible("the device is not served: %v (it is tried again in %s; SIGHUP has it tried now)", err, age(in))
}

// Status implements control.Target.
func (u *unserved) Status(context.Context) control.Status {
	c := &u.config
	in, err := u.why()
	state, retry := virtioblk.StateFailed, &in
	if errors.Is(err, errSilent) {
		state, retry = virtioblk.StateOpening, nil
	}
	return control.Status{
		Name: c.Name, PID: os.Getpid(), Version: version(), Seconds: time.Since(u.program.start).Seconds(),
		LogLevel: u.LogLevel(), State: string(state), Error: err.Error(), RetryIn: retry, Rings: []control.Ring{}, Devices: []control.Device{},
		Disk: control.Disk{
			Driver: c.Driver.Name, File: c.Driver.File, Serial: c.Serial, BlockSize: c.BlockSize,
			Socket: "none", AIO: string(u.program.reactors.Mode()), Migratable: c.Migratable, CancelAfter: c.CancelWait.Seconds(),
		},
	}
}

// Trace implements control.Target.
func (u *unserved) Trace() (control.Trace, *trace.Log) {
	name := cmp.Or(u.config.Name, u.config.Driver.File, u.config.Driver.Name)
	return control.Trace{Process: "vdev " + name, PID: os.Getpid()}, u.history.life
}

// reporter makes one for what signals ask for.
func (u *unserved) reporter() *reporter {
	p := u.program
	log := p.log.With("device", u.config.Name)
	return newReporter(p.config, u.config.Name, p.start, log, p.limit, p.out, u.history.life)
}

// dump is served.dump for a disk that is not served. One that is now is among the others.
func (u *unserved) dump() {
	if u.now.Load() == nil {
		rep := u.reporter()
		rep.status(u.Status(context.Background()))
		rep.dump()
	}
}

// dumpLife prints the record alone.
func (u *unserved) dumpLife() {
	if u.now.Load() == nil {
		u.reporter().dump()
	}
}

// Faults implements control.Target.
func (u *unserved) Faults() (control.Faults, error) { return control.Faults{}, u.impossible() }

// SetFaults implements control.Target.
func (u *unserved) SetFaults([]string) ([]int, error) { return nil, u.impossible() }

// ClearFaults implements control.Target.
func (u *unserved) ClearFaults([]int) error { return u.impossible() }

// ReleaseFaults implements control.Target.
func (u *unserved) ReleaseFaults([]int) error { return u.impossible() }

// Crash implements control.Target.
func (u *unserved) Crash(context.Context, control.Outage) (control.Losses, error) {
	return control.Losses{}, u.impossible()
}

// Revoke implements control.Target.
func (u *unserved) Revoke(context.Context) error { return u.impossible() }

// Resize implements control.Target.
func (u *unserved) Resize(context.Context) (control.Size, error) {
	return control.Size{}, u.impossible()
}

// ClearFailure implements control.Target.
func (u *unserved) ClearFailure(context.Context) (control.Cleared, error) {
	return control.Cleared{}, u.impossible()
}

// LogLevel implements control.Target.
func (u *unserved) LogLevel() string { return u.program.logLevel() }

// SetLogLevel implements control.Target.
func (u *unserved) SetLogLevel(name string) error { return u.program.setLogLevel(name) }

// notServed is the error of a vdev at its end, that has not served them all.
func notServed(failed []*unserved) error {
	n := 0
	for _, u := range failed {
		if u.now.Load() == nil {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s not served: see the log", count(n, "device"))
}

// disks are those that are served. They may become more.
type disks struct {
	ended chan struct{}

	mu  sync.Mutex
	all []*served
}

func newDisks() *disks { return &disks{ended: make(chan struct{})} }

// add adds one, and from then on reads its size when it is asked to. That may take as long as storage
// does, and must keep nobody from asking why, nor from another disk's.
func (d *disks) add(s *served) {
	s.again = make(chan struct{}, 1)
	d.mu.Lock()
	d.all = append(d.all, s)
	d.mu.Unlock()
	go func() {
		for {
			select {
			case <-s.again:
				if _, err := s.resize(); err != nil {
					s.log.Error("the disk's size could not be read again", "cause", err)
				}
			case <-d.ended:
				return
			}
		}
	}()
}

// ask asks for something, once where that was not done yet.
func ask(again chan<- struct{}) {
	select {
	case again <- struct{}{}:
	default:
	}
}

func (d *disks) remove(s *served) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = slices.DeleteFunc(d.all, func(other *served) bool { return other == s })
}

func (d *disks) list() []*served {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.all)
}

// close closes all. No more are added.
func (d *disks) close() (err error) {
	close(d.ended)
	for _, s := range d.list() {
		err = errors.Join(err, s.close())
	}
	return err
}
