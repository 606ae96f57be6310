package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"time"

	"vdev/internal/control"
	"vdev/internal/trace"
)

// unserved is a disk that could not be opened at the start, and is not served: it has no socket.
// The others are, and the control socket knows of this one why not.
type unserved struct {
	program *program
	config  diskConfig
	err     error
	life    *trace.Log
}

var _ control.Target = (*unserved)(nil)

func newUnserved(p *program, c diskConfig, err error) *unserved {
	return &unserved{program: p, config: c, err: err, life: trace.New(1)}
}

// impossible is the answer to everything that needs a disk.
func (u *unserved) impossible() error {
	return control.Impossible("the device is not served, since vdev was started: %v", u.err)
}

// Status implements control.Target.
func (u *unserved) Status(context.Context) control.Status {
	c := &u.config
	return control.Status{
		Name: c.name, PID: os.Getpid(), Version: version(), Seconds: time.Since(u.program.start).Seconds(),
		LogLevel: u.LogLevel(), State: "failed", Error: u.err.Error(), Rings: []control.Ring{}, Devices: []control.Device{},
		Disk: control.Disk{
			Driver: c.driver.name, File: c.driver.file, Serial: c.serial, BlockSize: c.blockSize,
			Socket: "none", AIO: string(u.program.reactors.Mode()), Migratable: c.migratable, CancelAfter: c.cancelWait.Seconds(),
		},
	}
}

// Trace implements control.Target.
func (u *unserved) Trace() (control.Trace, *trace.Log) {
	name := cmp.Or(u.config.name, u.config.driver.file, u.config.driver.name)
	return control.Trace{Process: "vdev " + name, PID: os.Getpid()}, u.life
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
func notServed(n int) error {
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s not served: see the log's beginning", count(n, "device"))
}
