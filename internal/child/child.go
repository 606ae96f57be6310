// Package child runs programs for as long as this one runs, and no longer. It is the one place that
// starts programs so: the host's signal at a parent's end is about a thread (see Start).
package child

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"vdev/internal/sys"
)

// Program says what is to run, and how.
type Program struct {
	Args   []string  // its name or path, and its arguments
	CPU    CPU       // where it runs
	File   *os.File  // its descriptor 3, where it is not nil; it stays the caller's
	Stdout io.Writer // nil: kept with what it writes to the standard error
}

// CPU says where a program runs: on one processor, or, which is the zero value, on any.
type CPU struct {
	one    bool
	number int
}

// On is the processor of that number, or any where it is negative.
func On(number int) CPU { return CPU{number >= 0, number} }

// Process is a program that was started. It ends with this process, however that ends, and a
// terminal's signals do not reach it. Its methods may be called on any goroutine.
type Process struct {
	cmd   *exec.Cmd
	said  output        // of a Program
	ended chan struct{} // closed when it has; err is valid then
	err   error
}

// Start starts cmd as the leader of a process group of its own, and waits for its end: nobody else
// may call cmd.Wait. onDeath is the signal that the program gets when this process ends, however
// that does. What the program has started itself does not get it.
//
// The host sends that signal when the thread ends that has started the program, and not the process
// (PR_SET_PDEATHSIG, prctl(2)). A thread of Go's may end at any time: with a goroutine that is
// locked to it, for one. So one goroutine starts the program, keeps its thread, and waits for the
// end.
func Start(cmd *exec.Cmd, onDeath syscall.Signal) (*Process, error) {
	c := &Process{cmd: cmd, ended: make(chan struct{})}
	if err := c.start(onDeath); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Process) start(onDeath syscall.Signal) error {
	c.cmd.SysProcAttr = sys.ChildAttr(onDeath)
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := c.cmd.Start()
		started <- err
		if err == nil {
			if c.err = c.cmd.Wait(); errors.Is(c.err, exec.ErrWaitDelay) {
				c.err = nil // it is the program's own that holds the pipe
			}
			close(c.ended)
		}
	}()
	return <-started
}

// Start starts a program. What the program has started is told to end when it is, by Stop. The
// error names the program.
func (p Program) Start() (*Process, error) {
	args := p.Args
	if p.CPU.one {
		// Which becomes the program.
		args = append([]string{"taskset", "-c", strconv.Itoa(p.CPU.number)}, args...)
	}
	c := &Process{cmd: exec.Command(args[0], args[1:]...), ended: make(chan struct{})}
	c.cmd.Stdout, c.cmd.Stderr = p.Stdout, &c.said
	if p.Stdout == nil {
		c.cmd.Stdout = &c.said
	}
	if p.File != nil {
		c.cmd.ExtraFiles = []*os.File{p.File}
	}
	// Whoever is left of the program's own may hold the pipe.
	c.cmd.WaitDelay = time.Second
	if err := c.start(syscall.SIGKILL); err != nil {
		return nil, fmt.Errorf("%s: %w", p.Args[0], err)
	}
	return c, nil
}

// PID is the program's process.
func (c *Process) PID() int { return c.cmd.Process.Pid }

// Ended is closed when the program has ended.
func (c *Process) Ended() <-chan struct{} { return c.ended }

// Err is how cmd.Wait has ended, once Ended is closed: nil where the exit status is 0.
func (c *Process) Err() error {
	<-c.ended
	return c.err
}

// State tells how the program ended, once it has.
func (c *Process) State() *os.ProcessState { return c.cmd.ProcessState }

// Error wraps err in an error that says which program it is about, how that has ended if it has,
// and what it has written.
func (c *Process) Error(err error) error {
	select {
	case <-c.ended:
		state := "it has ended"
		if c.err != nil {
			state = "it has ended: " + c.err.Error()
		}
		err = fmt.Errorf("%w (%s)", err, state)
	default:
	}
	if said := c.said.String(); said != "" {
		return fmt.Errorf("%s: %w: %s", c.cmd, err, said)
	}
	return fmt.Errorf("%s: %w", c.cmd, err)
}

// Said is the last of what a Program has written.
func (c *Process) Said() string { return c.said.String() }

const (
	// stopTime is how long a program may take to end.
	stopTime = 20 * time.Second
	// hurriedTime is how long it may where nobody wants to wait.
	hurriedTime = time.Second
)

// Stop ends the program by SIGTERM, and waits for it. If that is not enough, or ctx has ended a
// second ago, it sends SIGKILL and returns an error. It also returns an error if the program has
// ended by itself before, or ends with a failure.
func (c *Process) Stop(ctx context.Context) error {
	if !c.signal(syscall.SIGTERM) {
		<-c.ended
		return c.Error(errors.New("ended before it was told to"))
	}
	return c.end(ctx)
}

// end waits for the end of a program that was told to: see Stop.
func (c *Process) end(ctx context.Context) error {
	killed := !c.endsIn(ctx, stopTime) && !c.endsIn(context.Background(), hurriedTime) && c.signal(syscall.SIGKILL)
	<-c.ended
	if killed {
		return c.Error(errors.New("did not end on SIGTERM"))
	}
	if c.err != nil && c.State().String() != "signal: terminated" {
		return c.Error(errors.New("failed when it was told to end"))
	}
	return nil
}

// endsIn waits for the program's end, for a time or until ctx ends.
func (c *Process) endsIn(ctx context.Context, patience time.Duration) bool {
	select {
	case <-c.ended:
		return true
	case <-time.After(patience):
	case <-ctx.Done():
	}
	return false
}

// signal sends a signal to the program and what it has started, unless the program has ended and
// was waited for, which it tells by false: the group's number may be another's then, even before
// ended is closed, which takes as long as somebody holds the program's output.
func (c *Process) signal(sig syscall.Signal) bool {
	if c.cmd.Process.Signal(syscall.Signal(0)) != nil {
		return false
	}
	_ = sys.SignalGroup(c.PID(), sig)
	return true
}

// Run runs a program until it ends. The end of ctx stops it, and the error is ctx's cause then;
// otherwise the error says how the program has failed.
func Run(ctx context.Context, p Program) (*Process, error) {
	c, err := p.Start()
	if err != nil {
		return nil, err
	}
	return c, c.run(ctx)
}

// run is Run for a program that was started.
func (c *Process) run(ctx context.Context) error {
	select {
	case <-c.ended:
	case <-ctx.Done():
		// Where it has ended meanwhile, nobody wants to know how.
		if !c.signal(syscall.SIGTERM) {
			<-c.ended
			return context.Cause(ctx)
		}
		if err := c.end(ctx); err != nil {
			return errors.Join(context.Cause(ctx), err)
		}
		return context.Cause(ctx)
	}
	if c.err != nil {
		return c.Error(errors.New("failed"))
	}
	return nil
}

// output keeps the last of what a program has written.
type output struct {
	mu   sync.Mutex
	text []byte
}

// mostSaid is how much is kept, in bytes.
const mostSaid = 16 << 10

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, p...)
	if over := len(o.text) - mostSaid; over > 0 {
		o.text = o.text[:copy(o.text, o.text[over:])]
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(string(bytes.ToValidUTF8(o.text, nil)))
}
