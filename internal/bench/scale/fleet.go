package scale

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"vdev/internal/child"
	"vdev/vhostuser/vhostusertest"
)

// dial connects to a socket that a back-end is about to make.
func dial(ctx context.Context, p *child.Process, socket string) (*net.UnixConn, error) {
	deadline := time.After(20 * time.Second)
	for {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-p.Ended():
			return nil, err
		case <-deadline:
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// memory is what a process has of the machine's memory, in bytes: private is what nobody else maps,
// which is all but guest memory, and anonymous what no file is behind (/proc/PID/smaps_rollup).
func memory(pid int) (private, anonymous int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		var clean, dirty, anon int64
		// Each line is one of them at most; the others stay 0.
		_, _ = fmt.Sscanf(line, "Private_Clean: %d kB", &clean)
		_, _ = fmt.Sscanf(line, "Private_Dirty: %d kB", &dirty)
		_, _ = fmt.Sscanf(line, "Anonymous: %d kB", &anon)
		private, anonymous = private+(clean+dirty)<<10, anonymous+anon<<10
	}
	return private, anonymous, nil
}

// entries is how many entries there are in a folder that /proc has of a process: fd or task.
func entries(pid int, of string) (int, error) {
	names, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", pid, of))
	return len(names), err
}

// fleet is vdev with many disks, each with a guest of its own. The end of the context that it was
// made with hangs up all of them.
type fleet struct {
	p      *child.Process
	guests []*guest
	hear   []func() bool // what hangUp has returned
}

// newFleet has vdev serve n disks of a kind, on one processor or on any where cpu is negative, and
// connects a guest to each, with so many slots, which has read once.
func (c *Config) newFleet(ctx context.Context, cpu, n int, driver string, depth func(i int) int) (_ *fleet, err error) {
	socket := func(i int) string { return filepath.Join(c.Dir, fmt.Sprintf("%d.sock", i)) }
	var conf strings.Builder
	for i := range n {
		fmt.Fprintf(&conf, "[[device]]\nname = \"d%d\"\nsocket-path = %q\ndriver = %q\n", i, socket(i), driver)
	}
	name := filepath.Join(c.Dir, "many.toml")
	if err := os.WriteFile(name, []byte(conf.String()), 0o600); err != nil {
		return nil, err
	}
	f := new(fleet)
	if f.p, err = (child.Program{Args: []string{c.VDev, "serve", "--log-level", "warn", name}, CPU: child.On(cpu)}).Start(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = f.close(ctx, err)
		}
	}()
	for i := range n {
		if err := f.connect(ctx, socket(i), depth(i)); err != nil {
			return nil, fmt.Errorf("disk %d: %w", i, err)
		}
	}
	return f, nil
}

// connect connects one guest, which reads.
func (f *fleet) connect(ctx context.Context, socket string, depth int) error {
	conn, err := dial(ctx, f.p, socket)
	if err != nil {
		return err
	}
	f.hear = append(f.hear, hangUp(ctx, conn))
	front := vhostusertest.New(conn)
	g, err := newGuest(front, depth)
	if err != nil {
		front.Close()
		return err
	}
	f.guests = append(f.guests, g)
	return g.read(ctx)
}

// close ends it all. It returns err, if there is one, as one of the back-end's; the end of ctx is
// its cause.
func (f *fleet) close(ctx context.Context, err error) error {
	for _, g := range f.guests {
		g.f.Close()
		g.close()
	}
	for _, done := range f.hear {
		done()
	}
	return stop(ctx, f.p, err)
}

// stop ends a back-end. It returns err, if there is one, as one of the back-end's; the end of ctx
// is its cause.
func stop(ctx context.Context, p *child.Process, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx) // whatever else that has led to
	}
	if err == nil {
		return p.Stop(ctx)
	}
	err = p.Error(err)
	_ = p.Stop(ctx)
	return err
}

// hangUp hangs up when ctx ends, so that nobody waits for a back-end's answer any more, until done
// is called.
func hangUp(ctx context.Context, conn net.Conn) (done func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}
