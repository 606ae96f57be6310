package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/digitalocean/go-qemu/qmp"

	"vdev/internal/child"
)

const (
	consoleSocket = "console.sock"
	consoleLog    = "console.log"
	monitorSocket = "qmp.sock"
	meterSocket   = "meter.sock"
	errorLog      = "qemu.log"
)

// ErrExited says that QEMU has ended while something was expected of it.
var ErrExited = errors.New("QEMU has ended")

// Machine is a running QEMU. Its methods may be called by any goroutine, but commands for the guest
// one at a time.
type Machine struct {
	Console *Console // on the serial port; nil where the caller has that to itself
	Agent   *Console // where the agent is spoken to: Console, or the port of Config.Agent
	Serial  net.Conn // the machine's serial port, closed by Kill

	dir     string
	cmd     *exec.Cmd
	process *child.Process
	killed  sync.Once
	mon     *qmp.SocketMonitor
	boots   int // of Agent, before this machine

	mu      sync.Mutex
	events  []qmp.Event
	changed chan struct{} // closed, and replaced, when an event comes in
}

// Start starts QEMU and returns once it answers on its monitor. The guest then boots.
func Start(ctx context.Context, c Config) (*Machine, error) {
	args, err := c.args()
	if err != nil {
		return nil, err
	}
	// Sockets are named relative to the folder, which may have a name too long for them.
	listener, err := net.Listen("unix", filepath.Join(c.Dir, consoleSocket))
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	log, err := os.OpenFile(filepath.Join(c.Dir, errorLog), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	m := &Machine{dir: c.Dir, changed: make(chan struct{})}
	m.cmd = exec.Command(c.QEMU.Program("qemu-system-x86_64"), args...)
	m.cmd.Dir = c.Dir
	m.cmd.Stdout, m.cmd.Stderr = log, log
	if m.process, err = child.Start(m.cmd, syscall.SIGKILL); err != nil {
		return nil, err
	}
	go func() {
		<-m.Exited()
		listener.Close()
	}()
	conn, err := listener.Accept()
	if err != nil {
		m.Kill()
		return nil, m.ended()
	}
	m.Serial = conn
	if !c.RawSerial {
		m.Console = NewConsole(conn)
	}
	m.Agent, m.boots = m.Console, 0
	if c.Agent != nil {
		m.Agent, m.boots = c.Agent, c.Agent.Boots()
	}
	if err := m.connect(ctx); err != nil {
		m.Kill()
		return nil, fmt.Errorf("%w: %w", err, m.ended())
	}
	return m, nil
}

// connect opens the monitor. Nothing tells when QEMU has made the socket, so it is tried until it
// is there.
func (m *Machine) connect(ctx context.Context) error {
	path := filepath.Join(m.dir, monitorSocket)
	for {
		mon, err := qmp.NewSocketMonitor("unix", path, time.Second)
		if err == nil {
			if err := mon.Connect(); err != nil {
				return fmt.Errorf("QEMU's monitor: %w", err)
			}
			m.mon = mon
			break
		}
		select {
		case <-m.Exited():
			return m.ended()
		case <-ctx.Done():
			return fmt.Errorf("QEMU's monitor: %w", context.Cause(ctx))
		case <-time.After(10 * time.Millisecond):
		}
	}
	events, err := m.mon.Events(ctx)
	if err != nil {
		return fmt.Errorf("QEMU's monitor: %w", err)
	}
	go func() {
		for e := range events {
			m.mu.Lock()
			m.events = append(m.events, e)
			close(m.changed)
			m.changed = make(chan struct{})
			m.mu.Unlock()
		}
	}()
	return nil
}

// ended makes an error of QEMU's end and its last words.
func (m *Machine) ended() error {
	status := m.process.Err()
	words, _ := os.ReadFile(filepath.Join(m.dir, errorLog))
	if status != nil {
		return fmt.Errorf("%w: %w\n%s", ErrExited, status, bytes.TrimSpace(words))
	}
	return fmt.Errorf("%w\n%s", ErrExited, bytes.TrimSpace(words))
}

// Kill ends QEMU at once and waits for its end. It may be called again.
func (m *Machine) Kill() {
	m.killed.Do(func() {
		m.cmd.Process.Kill()
		<-m.Exited()
		if m.mon != nil {
			m.mon.Disconnect()
		}
		if m.Serial != nil {
			m.Serial.Close()
		}
		if m.Console != nil {
			<-m.Console.done
		}
	})
}

// Wait waits for QEMU to end on its own, as it does when its guest powers off, and returns what
// became of it.
func (m *Machine) Wait(ctx context.Context) error {
	select {
	case <-m.Exited():
		if m.process.Err() != nil {
			return m.ended()
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("QEMU still runs: %w", context.Cause(ctx))
	}
}

// Exited is closed when QEMU has ended.
func (m *Machine) Exited() <-chan struct{} { return m.process.Ended() }

// Run gives a command to QEMU's monitor, in QMP's JSON, and returns what it returns. That must be
// short, less than 2 KB: go-qemu hands out a part of its 4 KB read buffer and reads on before that
// was looked at.
func (m *Machine) Run(ctx context.Context, command string) (json.RawMessage, error) {
	type answer struct {
		Return json.RawMessage
		err    error
	}
	done := make(chan answer, 1)
	go func() {
		var a answer
		raw, err := m.mon.Run([]byte(command))
		if err == nil {
			err = json.Unmarshal(raw, &a)
		}
		a.err = err
		done <- a
	}()
	select {
	case a := <-done:
		return a.Return, a.err
	case <-m.Exited():
		return nil, m.ended()
	case <-ctx.Done():
		return nil, fmt.Errorf("QEMU's monitor does not answer to %s: %w", command, context.Cause(ctx))
	}
}

// Do is Run for a command given by its name and arguments.
func (m *Machine) Do(ctx context.Context, name string, args map[string]any) (json.RawMessage, error) {
	c := qmp.Command{Execute: name}
	if args != nil {
		c.Args = args
	}
	command, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return m.Run(ctx, string(command))
}

// Monitor gives a command to QEMU's monitor for people.
func (m *Machine) Monitor(ctx context.Context, line string) (string, error) {
	raw, err := m.Do(ctx, "human-monitor-command", map[string]any{"command-line": line})
	if err != nil {
		return "", err
	}
	var text string
	err = json.Unmarshal(raw, &text)
	return strings.ReplaceAll(text, "\r", ""), err
}

// AwaitBoot waits until the guest has started for the first time, and returns what it runs.
func (m *Machine) AwaitBoot(ctx context.Context) (string, error) {
	return m.ask(ctx, func(ctx context.Context) (string, error) { return m.Agent.AwaitBoot(ctx, m.boots) })
}

// AwaitReboot does something that makes the guest start again, and waits until it has.
func (m *Machine) AwaitReboot(ctx context.Context, how func(context.Context, *Machine) error) (string, error) {
	boots := m.Agent.Boots()
	if err := how(ctx, m); err != nil {
		return "", err
	}
	return m.ask(ctx, func(ctx context.Context) (string, error) { return m.Agent.AwaitBoot(ctx, boots) })
}

// Guest gives a command to the agent and returns its answer, which is a *GuestError where the agent
// failed.
func (m *Machine) Guest(ctx context.Context, command string) (string, error) {
	return m.ask(ctx, func(ctx context.Context) (string, error) { return m.Agent.Guest(ctx, command) })
}

// ask waits for the agent no longer than the machine lives. The serial line ends with the machine,
// a port does not.
func (m *Machine) ask(ctx context.Context, f func(context.Context) (string, error)) (string, error) {
	if m.Agent == m.Console {
		return f(ctx)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-m.Exited():
			stop(m.ended())
		case <-ctx.Done():
		}
	}()
	text, err := f(ctx)
	var fault *GuestError
	if err != nil && !errors.As(err, &fault) && m.Console != nil {
		err = fmt.Errorf("%w; the serial line's end:\n%s", err, m.Console.Tail(20))
	}
	return text, err
}

// Events returns how many events QEMU has sent so far: where AwaitEvent is to begin.
func (m *Machine) Events() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.events)
}

// AwaitEvent waits for an event of that name, with data that match, among those that came after the
// first "after".
func (m *Machine) AwaitEvent(ctx context.Context, after int, name string, match func(data map[string]any) bool) error {
	for {
		m.mu.Lock()
		events, changed := m.events[after:], m.changed
		m.mu.Unlock()
		for _, e := range events {
			if e.Event == name && (match == nil || match(e.Data)) {
				return nil
			}
		}
		after += len(events)
		select {
		case <-changed:
		case <-m.Exited():
			return m.ended()
		case <-ctx.Done():
			return fmt.Errorf("no event %s: %w", name, context.Cause(ctx))
		}
	}
}
