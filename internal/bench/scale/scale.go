// Package scale measures what one busy device does not show: a process that serves a thousand
// devices, which are idle, busy, or stopped at once; the start of a process; and a guest with a
// terabyte of memory. It does for scripts/bench what package load cannot, which has too many
// threads or begins too late.
//
// A command is that of a back-end which serves the listening socket that it inherits, descriptor 3.
// Any back-end will do, but measurements with many devices need vdev.
package scale

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"vdev/internal/child"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// Config says where things are.
type Config struct {
	VDev      string // the program
	Dir       string // a folder for sockets
	ServerCPU int    // the processor of a back-end that is busy or stopped
	ClientCPU int    // that of the guests then
}

// Idle is what devices cost that have nothing to do: each has a front-end, guest memory and a
// started ring, and has read once. Sizes are in bytes.
type Idle struct {
	CPU time.Duration // of the process
	// mapped by nobody else: all but guest memory, with what is loaded of the program's file
	Private     int64
	Anonymous   int64 // of it, what no file is behind
	PerDevice   int64 // what Private grows by with each further device
	Descriptors int
	Threads     int
}

// MeasureIdle has vdev serve n disks, at least two, of a kind (a value of --driver), and looks at
// it for the time length, from one second after the last request on.
func MeasureIdle(ctx context.Context, c Config, driver string, n int, length time.Duration) (Idle, error) {
	one, err := c.idle(ctx, driver, 1, 0)
	if err != nil {
		return Idle{}, err
	}
	many, err := c.idle(ctx, driver, n, length)
	many.PerDevice = (many.Private - one.Private) / int64(n-1)
	return many, err
}

func (c *Config) idle(ctx context.Context, driver string, n int, length time.Duration) (r Idle, err error) {
	f, err := c.newFleet(ctx, -1, n, driver, func(int) int { return 1 })
	if err != nil {
		return r, err
	}
	defer func() { err = f.close(ctx, err) }()
	pid := f.p.PID()
	if err := sleep(ctx, time.Second); err != nil {
		return r, err
	}
	before, err := sys.ProcessCPU(pid)
	if err != nil {
		return r, err
	}
	if err := sleep(ctx, length); err != nil {
		return r, err
	}
	after, err := sys.ProcessCPU(pid)
	if err != nil {
		return r, err
	}
	r.CPU = after - before
	if r.Private, r.Anonymous, err = memory(pid); err != nil {
		return r, err
	}
	if r.Descriptors, err = entries(pid, "fd"); err != nil {
		return r, err
	}
	r.Threads, err = entries(pid, "task")
	return r, err
}

// Busy is how devices that are all busy share a process: the requests of the first one, and the
// least, the median and the most of any other.
type Busy struct {
	IOPS                       float64 // of all
	First, Least, Median, Most uint64
}

// MeasureBusy keeps n disks busy, the first one with depth requests in flight and each of the
// others, of which there are some, with one. The guests are one thread, which looks at one after
// the other.
func MeasureBusy(ctx context.Context, c Config, driver string, n, depth int, length time.Duration) (r Busy, err error) {
	f, err := c.newFleet(ctx, c.ServerCPU, n, driver, func(i int) int {
		if i == 0 {
			return depth
		}
		return 1
	})
	if err != nil {
		return r, err
	}
	defer func() { err = f.close(ctx, err) }()
	err = onCPU(c.ClientCPU, func() error {
		for _, g := range f.guests {
			if err := g.fill(); err != nil {
				return err
			}
		}
		if err := turnFor(ctx, f.guests, length/4); err != nil {
			return err
		}
		before := counts(f.guests)
		if err := turnFor(ctx, f.guests, length); err != nil {
			return err
		}
		done := counts(f.guests)
		var total uint64
		for i := range done {
			done[i] -= before[i]
			total += done[i]
		}
		rest := slices.Sorted(slices.Values(done[1:]))
		r = Busy{float64(total) / length.Seconds(), done[0], rest[0], rest[len(rest)/2], rest[len(rest)-1]}
		return nil
	})
	return r, err
}

// sleep sleeps, unless ctx ends, whose cause it then returns.
func sleep(ctx context.Context, length time.Duration) error {
	select {
	case <-time.After(length):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// turnFor serves guests for a time, or until ctx ends, whose cause it then returns.
func turnFor(ctx context.Context, guests []*guest, length time.Duration) error {
	for end := time.Now().Add(length); time.Now().Before(end); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		for _, g := range guests {
			if err := g.turn(); err != nil {
				return err
			}
		}
	}
	return nil
}

func counts(guests []*guest) []uint64 {
	all := make([]uint64, len(guests))
	for i, g := range guests {
		all[i] = g.done
	}
	return all
}

// onCPU does f in a thread of its own on one processor.
func onCPU(cpu int, f func() error) error {
	done := make(chan error)
	go func() {
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		err := sys.SetAffinity(0, cpu)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// listen makes a socket for a back-end to inherit, and a connection to it, both the caller's.
func (c *Config) listen() (_ *os.File, _ *net.UnixConn, err error) {
	path := filepath.Join(c.Dir, "inherited.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	file, err := l.File()
	if err != nil {
		conn.Close()
	}
	return file, conn, err
}

// serve starts a back-end on one processor, or on any where cpu is negative, calls do with its
// front-end, and ends both.
func (c *Config) serve(ctx context.Context, cpu int, command []string, do func(*child.Process, *vhostusertest.Frontend) error) (err error) {
	socket, conn, err := c.listen()
	if err != nil {
		return err
	}
	defer hangUp(ctx, conn)()
	f := vhostusertest.New(conn)
	defer f.Close()
	p, err := child.Program{Args: command, CPU: child.On(cpu), File: socket}.Start()
	// Where the back-end ends, so does the connection.
	socket.Close()
	if err != nil {
		return err
	}
	defer func() {
		err = stop(ctx, p, err)
	}()
	return do(p, f)
}

// MeasureStart starts a back-end and returns how long that takes: from before its process is made
// until a front-end, which has waited to be accepted, has read a block.
func MeasureStart(ctx context.Context, c Config, command []string) (took time.Duration, err error) {
	begun := time.Now()
	err = c.serve(ctx, -1, command, func(_ *child.Process, f *vhostusertest.Frontend) error {
		g, err := newGuest(f, 1)
		if err != nil {
			return err
		}
		defer g.close()
		err = g.read(ctx)
		took = time.Since(begun)
		return err
	})
	return took, err
}

// Huge is what guest memory costs that is large and nearly empty.
type Huge struct {
	Added   time.Duration // from ADD_MEM_REG to its reply
	Private int64         // what the back-end's memory has grown by, in bytes
}

// MeasureHuge gives a back-end a region of guest memory of size bytes.
func MeasureHuge(ctx context.Context, c Config, command []string, size uint64) (r Huge, err error) {
	err = c.serve(ctx, -1, command, func(p *child.Process, f *vhostusertest.Frontend) error {
		if _, err := f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
			return err
		}
		mem, err := virtqtest.NewMem(virtqtest.Range{Size: size})
		if err != nil {
			return err
		}
		defer mem.Close()
		before, _, err := memory(p.PID())
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := f.AddMemReg(vhostuser.MemoryRegion(mem.Regions()[0]), mem.FD()); err != nil {
			return err
		}
		r.Added = time.Since(begun)
		after, _, err := memory(p.PID())
		r.Private = after - before
		return err
	})
	return r, err
}

// beforeStop is how long a device is idle, or busy, before it is stopped.
const beforeStop = 5 * time.Millisecond

// MeasureStop stops the ring of a guest with depth requests in flight (0: an idle one) and starts
// it again, rounds times. It returns how long the front-end waits in each round, from
// SET_VRING_ENABLE 0 to the answer to GET_VRING_BASE.
func MeasureStop(ctx context.Context, c Config, command []string, depth, rounds int) (all []time.Duration, err error) {
	err = c.serve(ctx, c.ServerCPU, command, func(_ *child.Process, f *vhostusertest.Frontend) error {
		g, err := newGuest(f, max(depth, 1))
		if err != nil {
			return err
		}
		defer g.close()
		return onCPU(c.ClientCPU, func() error {
			for range rounds {
				if err := g.read(ctx); err != nil {
					return err
				}
				if depth == 0 {
					if err := sleep(ctx, beforeStop); err != nil {
						return err
					}
				} else if err := errors.Join(g.fill(), turnFor(ctx, []*guest{g}, beforeStop)); err != nil {
					return err
				}
				begun := time.Now()
				if err := g.ring.Stop(); err != nil {
					return err
				}
				all = append(all, time.Since(begun))
				if err := g.again(ctx); err != nil {
					return err
				}
			}
			return nil
		})
	})
	return all, err
}

// MeasureStopAll stops n disks at once, each with depth requests in flight, and returns when each
// has been, in order.
func MeasureStopAll(ctx context.Context, c Config, driver string, n, depth int) (took []time.Duration, err error) {
	f, err := c.newFleet(ctx, c.ServerCPU, n, driver, func(int) int { return max(depth, 1) })
	if err != nil {
		return nil, err
	}
	defer func() { err = f.close(ctx, err) }()
	if depth > 0 {
		for _, g := range f.guests {
			err = errors.Join(err, g.fill())
		}
		if err = errors.Join(err, turnFor(ctx, f.guests, 200*time.Millisecond)); err != nil {
			return nil, err
		}
	}
	took = make([]time.Duration, n)
	ended := make(chan error, n)
	begun := time.Now()
	for i, g := range f.guests {
		go func() {
			err := g.ring.Stop()
			took[i] = time.Since(begun)
			ended <- err
		}()
	}
	for range n {
		err = errors.Join(err, <-ended)
	}
	slices.Sort(took)
	return took, err
}
