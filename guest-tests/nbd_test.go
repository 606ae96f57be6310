package guesttests

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"vdev/guest-tests/internal/nbdlog"
)

// record is what stands between vdev and an NBD server.
type record struct {
	*nbdlog.Proxy
	log string
}

// startRecord is "record [-of DISK] NAME": a recorder stands before the NBD server NAME, at
// NAME.nbd. With -of the disk DISK, which is watched, must not ask the server for anything while
// its rings are stopped.
func startRecord(w *world, args []string) (string, error) {
	flags := flag.NewFlagSet("record", flag.ContinueOnError)
	disk := flags.String("of", "", "")
	if err := flags.Parse(args); err != nil {
		return "", err
	}
	name := flags.Arg(0)
	r := w.records[name]
	if r == nil {
		b, err := w.backend(name)
		if err != nil {
			return "", err
		}
		r = &record{log: filepath.Join(w.dir, name+".record")}
		if r.Proxy, err = nbdlog.Listen(filepath.Join(w.dir, name+".nbd"), b.socket, r.log); err != nil {
			return "", err
		}
		w.records[name] = r
	}
	if *disk == "" {
		return "", nil
	}
	p, err := w.proxy(*disk)
	if err != nil {
		return "", err
	}
	w.storage[*disk] = name
	p.Rings(func(run bool) {
		if run {
			r.Wake()
		} else {
			r.Quiet()
		}
	})
	return "", nil
}

func (w *world) record(name string) (*record, error) {
	if r := w.records[name]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("nobody records %q", name)
}

// recorded is "[!] recorded NAME": what vdev has sent to the server is in order, or, negated, is
// not.
func recorded(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: recorded NAME")
	}
	record, err := worldOf(ts).record(args[0])
	ts.Check(err)
	r := record.Report()
	ts.Logf("the log is %s", record.log)
	judge(ts, neg, r, r.Findings, r.Dropped)
}

// changeLine is "line NAME stop|hold|go|cut|slow TIME TIME": what becomes of what vdev and the
// server send to each other.
func changeLine(w *world, args []string) (string, error) {
	usage := errors.New("usage: line NAME stop|hold|go|cut|slow TIME TIME")
	if len(args) < 2 {
		return "", usage
	}
	r, err := w.record(args[0])
	if err != nil {
		return "", err
	}
	switch {
	case args[1] == "slow" && len(args) == 4:
		from, err := time.ParseDuration(args[2])
		if err != nil {
			return "", err
		}
		to, err := time.ParseDuration(args[3])
		if err != nil {
			return "", err
		}
		if from > to {
			return "", usage
		}
		r.Slow(from, to)
	case len(args) != 2:
		return "", usage
	case args[1] == "stop":
		r.Stop()
	case args[1] == "hold":
		r.Hold()
	case args[1] == "go":
		r.Go()
	case args[1] == "cut":
		r.Cut()
	default:
		return "", usage
	}
	return "", nil
}

// hang is "hang NAME...": the storage of those disks hangs. An NBD server is stopped, for others
// there is the driver fault.
func hang(w *world, args []string) (string, error) {
	for _, name := range args {
		var err error
		if server := w.storage[name]; server != "" {
			_, err = sendSignal(w, []string{server, "STOP"})
		} else {
			_, err = control(w, []string{name, "fault", "hang:any"})
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}

// goOn has the storage of disks go on, and hang no more.
func (w *world) goOn(names []string) error {
	for _, name := range names {
		if server := w.storage[name]; server != "" {
			w.records[server].Go()
			if _, err := sendSignal(w, []string{server, "CONT"}); err != nil {
				return err
			}
			continue
		}
		for _, what := range []string{"clear", "release"} {
			if _, err := control(w, []string{name, "fault", what}); err != nil {
				return err
			}
		}
	}
	return nil
}

// awaitQuiet waits until all rings of the disk have stopped more often than before.
func (r *record) awaitQuiet(ctx context.Context, before int) error {
	for r.Report().Quiets == before {
		select {
		case <-time.After(2 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the rings do not stop: %w", context.Cause(ctx))
		}
	}
	return nil
}
