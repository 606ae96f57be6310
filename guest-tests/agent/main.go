// Command agent is the first process of a test guest: /init in Linux's initramfs, /sbin/init on
// NetBSD's root. It takes commands, one a line, from the console, does them on the guest's own
// kernel, and answers with a frame (see internal/wire). "help" lists the commands.
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
	a := &agent{out: con, drain: func() { drain(con) }, started: map[string]background{}}
	a.send(wire.Answer{Token: wire.Hello, OK: true, Text: system()})
	if err := a.serve(con); err != nil {
		fmt.Fprintln(con, "agent:", err)
	}
	halt(haltPowerOff)
}

// agent is the state of a conversation over the console. Only the goroutine in serve uses it;
// commands started in the background hand their results over a channel.
type agent struct {
	mu      sync.Mutex // held while something is written to out
	out     io.Writer
	drain   func() // waits until what went to out has left the guest
	last    wire.Answer
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

func (a *agent) send(w wire.Answer) {
	a.last = w
	a.say(wire.Encode(w))
}

// say writes to the console. What runs in the background does so only to tell that it has failed,
// for whoever looks at the console of a guest that nobody asks any more.
func (a *agent) say(p []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.out.Write(p)
}

func (a *agent) serve(in io.Reader) error {
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		token, rest, _ := strings.Cut(strings.TrimSpace(lines.Text()), " ")
		args := strings.Fields(rest)
		if len(args) == 0 {
			continue
		}
		if args[0] == wire.Again {
			if a.last.Token == token {
				a.send(a.last)
			}
			continue
		}
		text, err := a.do(args, rest)
		w := wire.Answer{Token: token, OK: err == nil, Text: text}
		var stop *haltError
		switch {
		case errors.As(err, &stop):
			w.OK = true
			a.send(w)
			a.drain()
			halt(stop.how)
		case err != nil:
			w.Text = text + explain(err)
		}
		a.send(w)
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
		if _, busy := a.started[args[1]]; busy {
			return "", fmt.Errorf("%s is running already", args[1])
		}
		b := background{make(chan result, 1), make(chan struct{})}
		a.started[args[1]] = b
		go func() {
			text, err := run(args[2:], line, b.quit)
			if err != nil {
				a.say(fmt.Appendf(nil, "\nagent: %s: %s%s\n", args[1], text, explain(err)))
			}
			b.done <- result{text, err}
		}()
		return "", nil
	case "wait", "finish":
		if len(args) != 2 || a.started[args[1]].done == nil {
			return "", fmt.Errorf("usage: %s NAME, after start NAME", args[0])
		}
		b := a.started[args[1]]
		if args[0] == "finish" {
			close(b.quit)
		}
		r := <-b.done
		delete(a.started, args[1])
		return r.text, r.err
	}
	return run(args, line, nil)
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
