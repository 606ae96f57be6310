// Command agent is the first process of a test guest: /init in Linux's initramfs, /sbin/init on
// NetBSD's root. It takes commands, one a line, from the serial line or from a port of a virtio
// console, does them on the guest's own kernel, and answers with a frame (see internal/wire).
// "help" lists the commands.
//
// It is linked statically and needs nothing else in the guest. With vdev.shell on Linux's command
// line, or a file /interactive on NetBSD, it serves a person instead.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"vdev/guest-tests/internal/wire"
)

func main() {
	con, err := setup()
	if err != nil {
		fmt.Fprintln(con, "agent:", err)
		halt(haltPowerOff)
	}
	if wantShell() {
		fmt.Fprintln(con, "agent:", shell(con))
		halt(haltPowerOff)
	}
	a := &agent{console: con, started: map[string]background{}}
	go a.servePort()
	err = a.serve(con)
	if err != nil {
		fmt.Fprintln(con, "agent:", err)
	}
	halt(haltPowerOff)
}

// agent is what all conversations share. There is one on the serial line, and one on the agent's
// port, where there is that.
type agent struct {
	console io.Writer // the serial line

	mu      sync.Mutex
	started map[string]background // by the name that start was given
}

// background is a command that was started.
type background struct {
	done chan result
	quit chan struct{} // closed by finish
}

type result struct {
	text string
	err  error
}

// conversation is with a host that has one command done after the other. One goroutine uses it.
type conversation struct {
	out  io.Writer
	last wire.Answer
}

func (c *conversation) send(w wire.Answer) {
	c.last = w
	c.out.Write(wire.Encode(w))
}

// byeLimit is how long a guest that is to stop waits for the host to say that it has the answer.
const byeLimit = 10 * time.Second

// serve holds a conversation until its end. It begins with a hello.
func (a *agent) serve(line io.ReadWriter) error {
	c := &conversation{out: line}
	c.send(wire.Answer{Token: wire.Hello, OK: true, Text: system()})
	stop := func() {} // once the last answer has been given
	lines := bufio.NewScanner(line)
	for lines.Scan() {
		token, rest, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		args := strings.Fields(rest)
		switch {
		case len(args) == 0:
			continue
		case args[0] == wire.Again:
			if c.last.Token == token {
				c.send(c.last)
			}
			continue
		case args[0] == wire.Bye:
			if c.last.Token == token {
				stop()
			}
			continue
		}
		text, err := a.do(args, rest)
		w := wire.Answer{Token: token, OK: err == nil, Text: text}
		var halting *haltError
		switch {
		case errors.As(err, &halting):
			w.OK, w.Last = true, true
			stop = func() { halt(halting.how) }
			time.AfterFunc(byeLimit, stop)
		case err != nil:
			w.Text = text + explain(err)
		}
		c.send(w)
	}
	return lines.Err()
}

// haltError is how a command says that the system is to stop once it was answered.
type haltError struct{ how haltKind }

func (*haltError) Error() string { return "halting" }

func (a *agent) do(args []string, line string) (string, error) {
	switch args[0] {
	case "start":
		if len(args) < 3 {
			return "", errors.New("usage: start NAME COMMAND [ARG...]")
		}
		return "", a.start(args[1], args[2:], line)
	case "wait", "finish":
		if len(args) != 2 {
			return "", fmt.Errorf("usage: %s NAME", args[0])
		}
		a.mu.Lock()
		b, ok := a.started[args[1]]
		a.mu.Unlock()
		if !ok {
			return "", fmt.Errorf("%s was not started", args[1])
		}
		if args[0] == "finish" {
			close(b.quit)
		}
		r := <-b.done
		a.mu.Lock()
		delete(a.started, args[1])
		a.mu.Unlock()
		return r.text, r.err
	}
	return run(args, line, nil)
}

// start has a command done in the background.
func (a *agent) start(name string, args []string, line string) error {
	b := background{make(chan result, 1), make(chan struct{})}
	a.mu.Lock()
	_, busy := a.started[name]
	if !busy {
		a.started[name] = b
	}
	a.mu.Unlock()
	if busy {
		return fmt.Errorf("%s is running already", name)
	}
	go func() {
		text, err := run(args, line, b.quit)
		if err != nil {
			// For whoever looks at the console of a guest that nobody asks any more.
			fmt.Fprintf(a.console, "\nagent: %s: %s%s\n", name, text, explain(err))
		}
		b.done <- result{text, err}
	}()
	return nil
}

// run does one command; line is the whole of it, for those that take free text, and quit ends those
// that have no end.
func run(args []string, line string, quit <-chan struct{}) (string, error) {
	c, ok := commands[args[0]]
	if !ok {
		return "", fmt.Errorf("no command %q; try help", args[0])
	}
	p := parse(args[1:], c.keys)
	p.line, p.quit = line, quit
	if len(p.words) < c.words || len(p.words) > c.words && !c.more {
		return "", fmt.Errorf("usage: %s %s", args[0], c.usage)
	}
	return c.run(p)
}

// explain writes an error with the symbolic name of its errno, where it has one: scripts match on
// that.
func explain(err error) string {
	if name := errnoName(err); name != "" {
		return fmt.Sprintf("%v (%s)", err, name)
	}
	return err.Error()
}
