package guesttests

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"vdev/guest-tests/internal/vm"
)

// migrate is "migrate [-bandwidth BYTES] [-downtime DURATION] [-meanwhile COMMAND] NAME=OTHER...":
// a second machine is started whose disk NAME is the back-end OTHER, the guest moves there while it
// works, at so many bytes a second, and the first machine ends. It is stopped when what is left to
// be copied fits into that time; not before the guest's agent has done the command, which it is
// given when all memory has been copied once (both have to be QEMU 8.1 or later for that).
func migrate(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("migrate", flag.ContinueOnError)
	bandwidth := flags.Int64("bandwidth", 1<<30, "")
	downtime := flags.Duration("downtime", 300*time.Millisecond, "")
	meanwhile := flags.String("meanwhile", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	source, err := w.running()
	if err != nil {
		return "", err
	}
	c := w.last
	w.machines++
	c.Dir = filepath.Join(w.dir, fmt.Sprintf("vm%d", w.machines))
	if err := os.Mkdir(c.Dir, 0o755); err != nil {
		return "", err
	}
	c.Devices = slices.Clone(c.Devices)
	for _, a := range flags.Args() {
		name, other, _ := strings.Cut(a, "=")
		b, err := w.backend(other)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(c.Devices, func(d vm.Device) bool { return d.Name == name })
		if i < 0 {
			return "", fmt.Errorf("no device %s", name)
		}
		c.Devices[i].Socket = w.socketFor(b, other)
	}
	socket := filepath.Join(c.Dir, "migrate.sock")
	incoming := c
	incoming.Args = append(slices.Clone(c.Args), "-incoming", "unix:"+socket)
	ctx, cancel := w.context()
	defer cancel()
	target, err := vm.Start(ctx, incoming)
	if err != nil {
		return "", err
	}
	begun, events := source.Events(), target.Events()
	parameters := func(downtime time.Duration, bandwidth int64) error {
		_, err := source.Do(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": downtime.Milliseconds(), "max-bandwidth": bandwidth})
		return err
	}
	err = func() error {
		var consent *returnPath
		if *meanwhile != "" {
			// With so little to be left, what has changed is not asked for again before all has
			// been copied.
			if err := parameters(time.Millisecond, 30e6); err != nil {
				return err
			}
			// A guest that is slow at the moment changes even less. It is not stopped all the same
			// before the target has consented.
			if err := errors.Join(switchoverAck(ctx, source), switchoverAck(ctx, target)); err != nil {
				return err
			}
			if consent, err = holdReturnPath(socket); err != nil {
				return err
			}
			defer consent.close()
			socket = consent.path
		} else if err := parameters(*downtime, *bandwidth); err != nil {
			return err
		}
		if _, err := source.Do(ctx, "migrate", map[string]any{"uri": "unix:" + socket}); err != nil {
			return err
		}
		if *meanwhile != "" {
			if err := copied(ctx, source); err != nil {
				return err
			}
			if err := beforeItLeaves(ctx, source, begun, *meanwhile); err != nil {
				return err
			}
			consent.release()
			if err := parameters(*downtime, *bandwidth); err != nil {
				return err
			}
		}
		if err := migrated(ctx, source); err != nil {
			return err
		}
		return target.AwaitEvent(ctx, events, "RESUME", nil)
	}()
	if err != nil {
		target.Kill()
		return "", err
	}
	target.Console.Adopt(source.Console)
	source.Kill()
	w.machine, w.last = target, c
	return "", nil
}

// beforeItLeaves has the guest do a command, and tells of a guest that was stopped before it had,
// by the events since begun: its answer comes elsewhere.
func beforeItLeaves(ctx context.Context, m *vm.Machine, begun int, command string) error {
	ctx, stop := context.WithCancelCause(ctx)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop(nil)
	watching.Go(func() {
		if m.AwaitEvent(ctx, begun, "STOP", nil) == nil {
			stop(errors.New("the guest was stopped meanwhile"))
		}
	})
	_, err := m.Guest(ctx, command)
	return err
}

// switchoverAck has a machine's migration wait, before the guest is stopped, until the target says
// on the return path that it may be.
func switchoverAck(ctx context.Context, m *vm.Machine) error {
	var on []map[string]any
	for _, name := range []string{"return-path", "switchover-ack"} {
		on = append(on, map[string]any{"capability": name, "state": true})
	}
	_, err := m.Do(ctx, "migrate-set-capabilities", map[string]any{"capabilities": on})
	return err
}

// returnPath stands between a migration's source and its target, and holds back what the target
// says until it is released.
type returnPath struct {
	path     string // of the socket for the source
	listener *net.UnixListener
	released chan struct{}
	closed   context.Context
	cancel   func()
	forwards sync.WaitGroup
}

func holdReturnPath(target string) (*returnPath, error) {
	p := &returnPath{path: target + ".source", released: make(chan struct{})}
	var err error
	if p.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: p.path, Net: "unix"}); err != nil {
		return nil, err
	}
	p.closed, p.cancel = context.WithCancel(context.Background())
	p.forwards.Go(func() { p.forward(target) })
	return p, nil
}

// forward serves one source. Where it fails, the migration fails with it, and says so.
func (p *returnPath) forward(target string) {
	source, err := p.listener.AcceptUnix()
	if err != nil {
		return
	}
	defer source.Close()
	to, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: target, Net: "unix"})
	if err != nil {
		return
	}
	defer to.Close()
	defer context.AfterFunc(p.closed, func() {
		source.Close()
		to.Close()
	})()
	p.forwards.Go(func() {
		select {
		case <-p.released:
			_, _ = io.Copy(source, to)
			_ = source.CloseWrite()
		case <-p.closed.Done():
		}
	})
	_, _ = io.Copy(to, source)
	_ = to.CloseWrite()
	<-p.closed.Done()
}

func (p *returnPath) release() { close(p.released) }

// close ends it, when the migration has ended or has to.
func (p *returnPath) close() {
	p.listener.Close()
	p.cancel()
	p.forwards.Wait()
}

// migration is what QEMU says of one.
type migration struct {
	Status string
	Desc   string `json:"error-desc"`
	RAM    struct {
		// how often it was asked what memory has changed, first of all before anything was copied
		Syncs int `json:"dirty-sync-count"`
	}
}

// migrated waits until a machine's guest has left it.
func migrated(ctx context.Context, m *vm.Machine) error {
	return awaitMigration(ctx, m, func(s migration) (bool, error) { return s.Status == "completed", nil })
}

// copied waits until all memory of a machine has been copied once, and tells of a guest that has
// left by then.
func copied(ctx context.Context, m *vm.Machine) error {
	return awaitMigration(ctx, m, func(s migration) (bool, error) {
		if s.Status == "completed" {
			return false, errors.New("the guest has left already")
		}
		return s.RAM.Syncs >= 2, nil
	})
}

// awaitMigration waits until a machine's migration is as done wants it. QEMU has no event for most
// of that.
func awaitMigration(ctx context.Context, m *vm.Machine, done func(migration) (bool, error)) error {
	for {
		raw, err := m.Do(ctx, "query-migrate", nil)
		if err != nil {
			return err
		}
		var state migration
		if err := json.Unmarshal(raw, &state); err != nil {
			return err
		}
		if state.Status == "failed" || state.Status == "cancelled" {
			return fmt.Errorf("the migration has %s: %s", state.Status, state.Desc)
		}
		if ok, err := done(state); ok || err != nil {
			return err
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the migration does not end: %w; it is %s", context.Cause(ctx), state.Status)
		}
	}
}
