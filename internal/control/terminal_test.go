package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"vdev/internal/control"
)

// line is a Ported whose only port shows what is typed, once it may.
type line struct {
	*fake
	shown chan string // what the port shows beside
	echo  chan int    // so many bytes of what was typed are taken, and shown
	sizes chan string
	ended chan struct{} // has one for each terminal that was served
	close chan string   // why the terminal is closed
}

func newLine() *line {
	return &line{
		fake: newFake(), shown: make(chan string), echo: make(chan int), sizes: make(chan string, 8), ended: make(chan struct{}, 8),
		close: make(chan string),
	}
}

func (l *line) Model() (any, error) { return l, nil }

func (l *line) Ports(context.Context) []control.Port { return []control.Port{{ID: 3, Name: "x"}} }

func (l *line) AddPort(_ context.Context, text string) (control.Port, error) {
	return control.Port{ID: 4}, l.note("add %s", text)
}

func (l *line) RemovePort(_ context.Context, port string) error { return l.note("remove %s", port) }

func (l *line) Attach(port string, watch bool) (func(*control.Terminal), error) {
	if err := l.note("attach %q %v", port, watch); err != nil {
		return nil, err
	}
	return func(t *control.Terminal) {
		quit := make(chan struct{})
		gone := make(chan struct{})
		typed := make(chan byte, 2*control.Unread)
		go func() {
			defer close(gone)
			for {
				select {
				case text := <-l.shown:
					_, _ = t.Write([]byte(text))
				case n := <-l.echo:
					for range n {
						_, _ = t.Write([]byte{<-typed})
					}
					t.Taken(n)
				case why := <-l.close:
					t.Close(why)
				case <-quit:
					return
				}
			}
		}()
		t.Serve(func(p []byte) {
			for _, c := range p {
				typed <- c
			}
		}, func(rows, cols uint16) { l.sizes <- fmt.Sprintf("%dx%d", cols, rows) })
		close(quit)
		<-gone
		l.ended <- struct{}{}
	}, nil
}

// attached attaches to the port of l.
func attached(t *testing.T, l *line) (a *control.Attachment, path string, end func()) {
	t.Helper()
	path, end = serveTarget(t, l)
	a, err := control.NewClient(path).Attach(t.Context(), "", false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, path, end
}

// shows reads what is to be shown, which must be this.
func shows(t *testing.T, a *control.Attachment, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(a, got); err != nil || string(got) != want {
		t.Fatalf("%q is shown, %v; want %q", got, err, want)
	}
}

func TestATerminalShowsAndTakesWhatIsTyped(t *testing.T) {
	l := newLine()
	a, path, _ := attached(t, l)
	long := strings.Repeat("0123456789abcdef", 1<<13)
	go func() { l.shown <- "kept\r\n"; l.shown <- long }()
	shows(t, a, "kept\r\n")
	shows(t, a, long)
	if err := a.Resize(40, 100); err != nil {
		t.Fatal(err)
	}
	if got := <-l.sizes; got != "100x40" {
		t.Errorf("the size is %s", got)
	}
	// What the guest does not take waits here, beyond what vdev keeps.
	text := bytes.Repeat([]byte("0123456789"), control.Unread/5)
	wrote := make(chan error, 1)
	go func() {
		_, err := a.Write(text)
		wrote <- err
	}()
	go func() {
		for range len(text) / 10 {
			l.echo <- 10
		}
	}()
	got := make([]byte, len(text))
	if _, err := io.ReadFull(a, got); err != nil || !bytes.Equal(got, text) {
		t.Errorf("other bytes are echoed than were typed (%v)", err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	l.close <- "the port was removed"
	if n, err := a.Read(got); n != 0 || err != io.EOF || a.Why() != "the port was removed" {
		t.Errorf("at the end: %d, %v, %q", n, err, a.Why())
	}
	<-l.ended
	// Who types meanwhile does not hear of it before the one who reads.
	if err := a.Resize(1, 1); err != nil {
		t.Error(err)
	}
	if _, err := a.Write(make([]byte, 2*control.Unread)); err != nil {
		t.Error(err)
	}
	if _, err := control.NewClient(path).Attach(t.Context(), "x", true); err != nil {
		t.Error(err)
	}
	if got, want := fmt.Sprint(l.calls), `[attach "" false attach "x" true]`; got != want {
		t.Errorf("the calls are %s, want %s", got, want)
	}
}

func TestAClientThatGoesIsDetached(t *testing.T) {
	l := newLine()
	a, path, _ := attached(t, l)
	// Also where the guest takes nothing of what it has typed.
	if _, err := a.Write(make([]byte, control.Unread)); err != nil {
		t.Fatal(err)
	}
	a.Close()
	<-l.ended
	if _, err := a.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("after Close: %v", err)
	}
	// And where it has not read what was shown.
	b, err := control.NewClient(path).Attach(t.Context(), "", false)
	if err != nil {
		t.Fatal(err)
	}
	l.shown <- strings.Repeat("x", 1<<22)
	b.Close()
	<-l.ended
}

func TestTheEndOfVdevIsTold(t *testing.T) {
	l := newLine()
	a, path, end := attached(t, l)
	stuck, err := control.NewClient(path).Attach(t.Context(), "", false)
	if err != nil {
		t.Fatal(err)
	}
	defer stuck.Close()
	ended := make(chan struct{})
	go func() { end(); close(ended) }()
	if _, err := io.ReadAll(a); err != nil || a.Why() != "vdev ends" {
		t.Errorf("%v, %q", err, a.Why())
	}
	<-ended
}

func TestAPortThatCannotBeAttachedIsRefused(t *testing.T) {
	l := newLine()
	path, _ := serveTarget(t, l)
	var refused *control.Error
	l.refuse = control.Impossible("there is no port y; there are: x")
	_, err := control.NewClient(path).Attach(t.Context(), "y", false)
	if !errors.As(err, &refused) || refused.Message != "there is no port y; there are: x" {
		t.Errorf("%v", err)
	}
	none, _ := serve(t, newFake())
	if _, err := control.NewClient(none).Attach(t.Context(), "", false); err == nil || !strings.Contains(err.Error(), "none that can be asked for ports") {
		t.Errorf("%v", err)
	}
}

// TestWhoSendsWhatMustNotBeIsTold, and let go.
func TestWhoSendsWhatMustNotBeIsTold(t *testing.T) {
	for name, frames := range map[string]string{
		"a type":              "x\x00\x00",
		"a size":              "s\x00\x03123",
		"more than may be":    "d\x10\x00" + strings.Repeat("x", 4096) + "d\x00\x01y",
		"too much at once":    "d\x10\x01",
		"what only vdev says": "e\x00\x00",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLine()
			path, _ := serveTarget(t, l)
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := io.WriteString(c, "GET /v1/ports/attach HTTP/1.1\r\nHost: vdev\r\nConnection: Upgrade\r\nUpgrade: vdev-terminal\r\n\r\n"+frames); err != nil {
				t.Fatal(err)
			}
			all, err := io.ReadAll(c)
			if err != nil && !errors.Is(err, net.ErrClosed) || !strings.Contains(string(all), "\r\n\r\ne\x00") ||
				!strings.Contains(string(all), "is none that a client may send now") {
				t.Errorf("%q, %v", all, err)
			}
			<-l.ended
		})
	}
	path, _ := serveTarget(t, newLine())
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := io.WriteString(c, "GET /v1/ports/attach?watch=perhaps HTTP/1.0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if all, err := io.ReadAll(c); err != nil || !strings.Contains(string(all), "watch=perhaps: must be true or false") {
		t.Errorf("%q, %v", all, err)
	}
}
