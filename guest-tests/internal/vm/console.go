package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"sync"

	"vdev/guest-tests/internal/wire"
)

// GuestError is the agent's answer to a command that failed.
type GuestError struct {
	Command string
	Text    string
}

func (e *GuestError) Error() string { return fmt.Sprintf("guest: %s: %s", e.Command, e.Text) }

// ErrRebooted says that the guest has started again when nobody expected it.
var ErrRebooted = errors.New("the guest has started again")

// Console is a line to the agent in a guest: the serial one, where the kernel speaks too, or a port
// of a virtio console, which outlives the machines.
type Console struct {
	conn net.Conn
	done chan struct{} // closed when the reader has ended

	mu      sync.Mutex
	lines   []string // what is not a frame
	partial string   // the line that has not ended
	boots   int      // agents that have said hello
	awaited int      // of those, the ones that AwaitBoot has returned for
	system  string   // what the last one runs on
	answers map[string]wire.Answer
	waiting string // the token of the command under way
	next    int
	changed chan struct{} // closed, and replaced, when anything above changes
}

// NewConsole speaks with the agents at the other end of a connection until that ends.
func NewConsole(conn net.Conn) *Console {
	c := &Console{conn: conn, done: make(chan struct{}), answers: map[string]wire.Answer{}, changed: make(chan struct{})}
	go c.read()
	return c
}

// read takes the console's output apart until the connection ends.
func (c *Console) read() {
	defer close(c.done)
	in := bufio.NewReader(c.conn)
	buf := make([]byte, 4096)
	for {
		n, err := in.Read(buf)
		c.mu.Lock()
		lines := strings.Split(c.partial+string(buf[:n]), "\n")
		c.partial = lines[len(lines)-1]
		for _, line := range lines[:len(lines)-1] {
			c.takeLocked(strings.TrimRight(line, "\r"))
		}
		close(c.changed)
		c.changed = make(chan struct{})
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *Console) takeLocked(line string) {
	a, found, err := wire.Decode(line)
	switch {
	case err != nil:
		// A kernel message has torn it apart; whose it was decides what to ask for again.
		token := c.waiting
		if token == "" {
			token = wire.Hello
		}
		fmt.Fprintf(c.conn, "%s %s\n", token, wire.Again)
	case !found:
		c.lines = append(c.lines, line)
	case a.Token == wire.Hello:
		c.boots++
		c.system = a.Text
	default:
		c.answers[a.Token] = a
		if a.Last {
			fmt.Fprintf(c.conn, "%s %s\n", a.Token, wire.Bye)
		}
	}
}

// until waits for a condition on what the console has received. ok runs under the lock.
func (c *Console) until(ctx context.Context, what string, ok func() bool) error {
	for {
		c.mu.Lock()
		fine, changed := ok(), c.changed
		c.mu.Unlock()
		if fine {
			return nil
		}
		select {
		case <-changed:
		case <-c.done:
			// What came last has been looked at only if nothing changed since.
			c.mu.Lock()
			fine := ok()
			c.mu.Unlock()
			if fine {
				return nil
			}
			return fmt.Errorf("waiting for %s: %w; the console's end:\n%s", what, ErrExited, c.Tail(20))
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w; the console's end:\n%s", what, context.Cause(ctx), c.Tail(20))
		}
	}
}

// Done is closed when the connection has ended.
func (c *Console) Done() <-chan struct{} { return c.done }

// Adopt makes c the console of the guest that old was the console of until it was migrated. Nothing
// may be under way.
func (c *Console) Adopt(old *Console) {
	old.mu.Lock()
	defer old.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.boots, c.awaited, c.system, c.next = old.boots, old.awaited, old.system, old.next
}

// Boots returns how many times an agent has started.
func (c *Console) Boots() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.boots
}

// AwaitBoot waits until an agent has started more than "after" times, and returns what it runs on.
func (c *Console) AwaitBoot(ctx context.Context, after int) (string, error) {
	var system string
	err := c.until(ctx, "the guest to boot", func() bool {
		system, c.awaited = c.system, c.boots
		return c.boots > after
	})
	return system, err
}

// Guest gives a command to the agent and returns its answer, which is a *GuestError where the agent
// failed.
func (c *Console) Guest(ctx context.Context, command string) (string, error) {
	c.mu.Lock()
	c.next++
	token := fmt.Sprintf("t%d-%d", c.boots, c.next)
	c.waiting = token
	boots, awaited := c.boots, c.awaited
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.waiting = ""
		delete(c.answers, token)
		c.mu.Unlock()
	}()
	switch {
	case awaited == 0:
		return "", errors.New("the guest has not booted yet")
	case awaited != boots:
		return "", fmt.Errorf("before %s: %w", command, ErrRebooted)
	}
	if _, err := fmt.Fprintf(c.conn, "%s %s\n", token, command); err != nil {
		return "", err
	}
	var a wire.Answer
	var answered, rebooted bool
	err := c.until(ctx, "an answer to "+command, func() bool {
		a, answered = c.answers[token]
		rebooted = c.boots != boots
		return answered || rebooted
	})
	switch {
	case err != nil:
		return "", err
	case !answered:
		return "", fmt.Errorf("%s: %w; the console's end:\n%s", command, ErrRebooted, c.Tail(20))
	case !a.OK:
		return a.Text, &GuestError{command, a.Text}
	}
	return a.Text, nil
}

// AwaitText waits until the console has shown a text, from the machine's start on.
func (c *Console) AwaitText(ctx context.Context, re *regexp.Regexp) error {
	return c.until(ctx, re.String(), func() bool {
		return re.MatchString(strings.Join(c.lines, "\n") + "\n" + c.partial)
	})
}

// Tail returns the last lines that the console has shown, frames left out.
func (c *Console) Tail(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	lines := append(c.lines[max(0, len(c.lines)-n):len(c.lines):len(c.lines)], c.partial)
	return strings.TrimSpace(strings.Join(lines, "\n"))
}
