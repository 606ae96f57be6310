package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"vdev/internal/control"
)

const (
	// endPatience is how long the end waits for storage that does not complete what is in flight.
	// Who sent a SIGTERM sends SIGKILL after a few seconds.
	endPatience = 3 * time.Second
	// startPatience is how long the start waits for storage that does not answer, where there are
	// other devices.
	startPatience = 5 * time.Second
)

// Set has all devices of a process.
type Set struct {
	host
	devices []*Device
}

// New makes a Set, with its event loops, but opens nothing. Run is to be called, and ends them.
func New(c Config) (*Set, error) {
	s := &Set{host: host{Config: c, log: c.Log("").Asked, ended: make(chan struct{}), again: firstAgain}}
	if err := s.startLoops(); err != nil {
		return nil, err
	}
	for _, d := range c.Devices {
		s.devices = append(s.devices, newDevice(&s.host, d))
	}
	return s, nil
}

// Devices are those of the Set, in the order of Config.
func (s *Set) Devices() []*Device { return s.devices }

// Reload has each device looked at again that is served, and each other one opened now.
func (s *Set) Reload() {
	for _, d := range s.devices {
		d.askAgain()
	}
}

// Run opens the devices and serves them until ctx ends, or those that have nothing but a connected
// socket have lost their front-ends. Then it takes all down. Once ctx has ended it does not wait
// long for storage that is stuck: then it returns an error, and not all is taken down.
func (s *Set) Run(ctx context.Context) error {
	served := make(chan error, 1)
	go func() { served <- s.run(ctx) }()
	return await(ctx, served)
}

// await returns what comes from served; but when ctx ends and nothing comes soon, an error: whoever
// said that vdev is to end does not wait for storage that is stuck.
func await(ctx context.Context, served <-chan error) error {
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-served:
		return err
	case <-time.After(endPatience):
		return errors.New("storage has not completed what is in progress: vdev ends without it")
	}
}

// run is Run, but waits for storage.
func (s *Set) run(ctx context.Context) (err error) {
	defer s.reactors.Close()
	defer s.pool.Close()
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return err
	}
	if s.Control != nil {
		targets := make([]control.Target, len(s.devices))
		for i, d := range s.devices {
			targets[i] = d
		}
		server := control.NewServer(s.Process, targets, slog.NewLogLogger(s.Log("").Found.Handler(), slog.LevelWarn))
		server.Start(s.Control)
		// Last but for the event loops, which it asks: who follows the trace sees the device's end.
		defer server.Close()
	}
	defer close(s.ended)
	results := make(chan error, len(s.devices))
	for _, d := range s.devices {
		go func() { results <- d.serve(ctx) }()
	}
	for range s.devices {
		err = errors.Join(err, <-results)
	}
	return errors.Join(err, s.notServed())
}

// open opens all devices and makes their sockets. One that cannot be opened, or whose storage does
// not answer, is its own trouble while there are others.
func (s *Set) open(ctx context.Context) error {
	alone := s.Strict || len(s.devices) == 1
	for _, d := range s.devices {
		d.begin(ctx)
	}
	patience, enough := context.WithTimeout(context.Background(), startPatience)
	defer enough()
	// What an attempt has of the event loops must be discarded before they end: all are awaited
	// before one that failed ends the Set.
	came := make([]*attempt, len(s.devices)) // nil: storage does not answer
	for i, d := range s.devices {
		a, ended := d.awaitFirst(patience)
		if !ended {
			d.tellSilent(alone)
		}
		if !ended && alone {
			a, ended = d.awaitFirst(context.Background())
		}
		if ended {
			came[i] = &a
			d.up.Store(a.stack)
		}
	}
	failed := func(d *Device, err error) error {
		if alone || ctx.Err() != nil {
			return d.ofDevice(err)
		}
		d.notYet(err)
		return nil
	}
	for i, d := range s.devices {
		if came[i] != nil && came[i].err != nil {
			if err := failed(d, came[i].err); err != nil {
				return err
			}
		}
	}
	// The sockets come last: whoever finds one can connect.
	left := false
	for i, d := range s.devices {
		if came[i] != nil && came[i].err == nil {
			if err := d.listen(came[i].stack); err != nil {
				if err := failed(d, err); err != nil {
					return err
				}
				continue
			}
		}
		left = left || came[i] == nil || came[i].err == nil
	}
	if !left {
		return errors.New("no device can be served")
	}
	return nil
}

// close takes down all devices, none of which is open.
func (s *Set) close() (err error) {
	for _, d := range s.devices {
		if up := d.up.Load(); up != nil {
			err = errors.Join(err, up.close())
		}
	}
	return err
}

// notServed is the error of a Set at its end that has not served all.
func (s *Set) notServed() error {
	n := 0
	for _, d := range s.devices {
		if d.up.Load() == nil {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return fmt.Errorf("%s not served: see the log", count(n))
}
