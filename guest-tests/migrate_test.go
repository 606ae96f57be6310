package guesttests

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"vdev/guest-tests/internal/vm"
)

// migrate is "migrate [-bandwidth BYTES] [-downtime DURATION] [-meanwhile COMMAND] NAME=OTHER...": a second machine is started whose
// disk NAME is the back-end OTHER, the guest moves there while it works, at so many bytes a second, and the first machine ends. It is
// stopped when what is left to be copied fits into that time; not before the guest's agent has done the command, which it is given
// when all memory has been copied once.
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
	c.Disks = slices.Clone(c.Disks)
	for _, a := range flags.Args() {
		name, other, _ := strings.Cut(a, "=")
		b, err := w.backend(other)
		if err != nil {
			return "", err
		}
		i := slices.IndexFunc(c.Disks, func(d vm.Disk) bool { return d.Name == name })
		if i < 0 {
			return "", fmt.Errorf("no disk %s", name)
		}
		c.Disks[i].Socket = w.socketFor(b, other)
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
	events := target.Events()
	parameters := func(downtime time.Duration, bandwidth int64) error {
		_, err := source.Do(ctx, "migrate-set-parameters", map[string]any{"downtime-limit": downtime.Milliseconds(), "max-bandwidth": bandwidth})
		return err
	}
	err = func() error {
		if *meanwhile != "" {
			// A guest that does anything at all never has so little left.
			if err := parameters(time.Millisecond, 30e6); err != nil {
				return err
			}
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
			if _, err := source.Console.Guest(ctx, *meanwhile); err != nil {
				return err
			}
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

// migration is what QEMU says of one.
type migration struct {
	Status string
	Desc   string `json:"error-desc"`
	RAM    struct {
		Syncs int `json:"dirty-sync-count"` // how often it was asked what memory has changed, first of all before anything was copied
	}
}

// migrated waits until a machine's guest has left it.
func migrated(ctx context.Context, m *vm.Machine) error {
	return awaitMigration(ctx, m, func(s migration) (bool, error) { return s.Status == "completed", nil })
}

// copied waits until all memory of a machine has been copied once, and tells of a guest that has left by then.
func copied(ctx context.Context, m *vm.Machine) error {
	return awaitMigration(ctx, m, func(s migration) (bool, error) {
		if s.Status == "completed" {
			return false, errors.New("the guest has left already")
		}
		return s.RAM.Syncs >= 2, nil
	})
}

// awaitMigration waits until a machine's migration is as done wants it. QEMU has no event for most of that.
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
