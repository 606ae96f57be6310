package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"vdev/guest-tests/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// guest is the far end of a console, which a test plays.
type guest struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Scanner
}

func newGuest(t *testing.T) (*Console, *guest) {
	near, far := net.Pipe()
	c := NewConsole(near)
	t.Cleanup(func() {
		far.Close()
		near.Close()
		<-c.done
	})
	return c, &guest{t, far, bufio.NewScanner(far)}
}

func (g *guest) say(s string) {
	if _, err := g.conn.Write([]byte(s)); err != nil {
		g.t.Error(err)
	}
}

func (g *guest) hello() {
	g.say(string(wire.Encode(wire.Answer{Token: wire.Hello, OK: true, Text: "Linux 1"})))
}

// hear returns the token and the rest of the next line that the host has sent.
func (g *guest) hear() (token, rest string) {
	if !g.in.Scan() {
		g.t.Error("the host says nothing")
	}
	token, rest, _ = strings.Cut(g.in.Text(), " ")
	return token, rest
}

func boot(t *testing.T, c *Console, g *guest) {
	t.Helper()
	go g.hello()
	if system, err := c.AwaitBoot(context.Background(), 0); err != nil || system != "Linux 1" {
		t.Fatalf("AwaitBoot = %q, %v", system, err)
	}
}

func TestAnAnswerIsFoundAmongKernelMessages(t *testing.T) {
	c, g := newGuest(t)
	boot(t, c, g)
	go func() {
		token, _ := g.hear()
		g.say("[ 1.0] something\r\n[ 1.1] more" + string(wire.Encode(wire.Answer{Token: token, OK: true, Text: "done"})) + "[ 1.2] x\r\n")
	}()
	if text, err := c.Guest(context.Background(), "do it"); err != nil || text != "done" {
		t.Errorf("Guest = %q, %v", text, err)
	}
	if err := c.AwaitText(context.Background(), regexp.MustCompile(`(?m)^\[ 1\.2\] x$`)); err != nil {
		t.Error(err)
	}
}

func TestATornAnswerIsAskedForAgain(t *testing.T) {
	c, g := newGuest(t)
	boot(t, c, g)
	go func() {
		token, _ := g.hear()
		frame := string(wire.Encode(wire.Answer{Token: token, OK: false, Text: "broken pipe"}))
		g.say(frame[:12] + "[ 2.0] oops\n" + frame[12:])
		for range 2 { // each half is noticed
			if again, what := g.hear(); again != token || what != wire.Again {
				g.t.Errorf("the host says %s %s", again, what)
			}
		}
		g.say(frame)
	}()
	_, err := c.Guest(context.Background(), "do it")
	var fault *GuestError
	if !errors.As(err, &fault) || fault.Text != "broken pipe" {
		t.Errorf("Guest: %v; want the guest's own error", err)
	}
}

func TestAGuestThatStartsAgainIsNoticed(t *testing.T) {
	c, g := newGuest(t)
	boot(t, c, g)
	go func() {
		g.hear()
		g.hello()
	}()
	if _, err := c.Guest(context.Background(), "crash"); !errors.Is(err, ErrRebooted) {
		t.Errorf("Guest: %v; want ErrRebooted", err)
	}
	// Nobody has waited for that boot, so it is still not expected.
	if _, err := c.Guest(context.Background(), "info"); !errors.Is(err, ErrRebooted) {
		t.Errorf("Guest, later: %v; want ErrRebooted", err)
	}
	if _, err := c.AwaitBoot(context.Background(), 1); err != nil {
		t.Error(err)
	}
}

func TestWaitingEndsWithTheConsoleAndWithTheContext(t *testing.T) {
	c, g := newGuest(t)
	boot(t, c, g)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(fmt.Errorf("enough"))
	go g.hear()
	if _, err := c.Guest(ctx, "x"); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("Guest: %v; want the context's cause", err)
	}
	g.say("last words")
	g.conn.Close()
	if _, err := c.AwaitBoot(context.Background(), 1); !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "last words") {
		t.Errorf("AwaitBoot: %v; want ErrExited and the last words", err)
	}
}
