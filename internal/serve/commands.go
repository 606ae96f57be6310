package serve

import (
	"context"
	"sync/atomic"

	"vdev/internal/control"
)

// maxCommands is how many commands that may have to wait for storage one device has in progress,
// each with a goroutine and perhaps a thread. One whose client has gone goes on, and may hang: more
// of them would not help.
const maxCommands = 8

// Commands are those that come by the control socket for one device.
type Commands struct {
	report  *reporter
	waiting atomic.Int32 // in progress, of those that may wait
}

// Do records a command, does it, and records where it has failed. It is recorded first, so that it
// stands before what comes of it.
func (c *Commands) Do(what string, do func() error) error {
	c.report.command(what, nil)
	err := do()
	if err != nil {
		c.report.command(what, err)
	}
	return err
}

// Wait runs fn, which may wait for storage, and returns its result. When ctx ends before, fn goes
// on alone.
func (c *Commands) Wait(ctx context.Context, fn func() error) error {
	if n := c.waiting.Add(1); n > maxCommands {
		c.waiting.Add(-1)
		return control.Impossible("%d commands are in progress, and wait for the device", maxCommands)
	}
	done := make(chan error, 1)
	go func() {
		defer c.waiting.Add(-1)
		done <- fn()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
