package stdio

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"go.uber.org/goleak"
	"golang.org/x/term"

	"vdev/devsw"
	"vdev/devsw/line"
	"vdev/internal/terminal"
	"vdev/internal/test/linetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a guest whose line has a person's terminal: what is typed and seen is at the side of p.
type rig struct {
	*linetest.Guest
	t      testing.TB
	p, tty *os.File
	before *term.State
	left   chan error
}

func newRig(t testing.TB, conf line.Config) *rig {
	t.Helper()
	r := &rig{t: t, left: make(chan error, 10)}
	var err error
	r.p, r.tty, err = pty.Open()
	must(t, err)
	t.Cleanup(func() { r.p.Close(); r.tty.Close() })
	must(t, pty.Setsize(r.p, &pty.Winsize{Rows: 40, Cols: 100}))
	r.before = r.settings()
	r.Guest = linetest.New(t, conf)
	_, err = Open(r.Line, line.Main, Config{In: r.tty, Out: r.tty, Left: func(why error) { r.left <- why }})
	must(t, err)
	if reflect.DeepEqual(r.settings(), r.before) {
		t.Fatal("the terminal is not raw")
	}
	return r
}

func (r *rig) settings() (s *term.State) {
	r.t.Helper()
	c, err := r.tty.SyscallConn()
	must(r.t, err)
	var callErr error
	must(r.t, c.Control(func(fd uintptr) { s, callErr = term.GetState(int(fd)) }))
	must(r.t, callErr)
	return s
}

func (r *rig) type_(text string) {
	r.t.Helper()
	_, err := r.p.WriteString(text)
	must(r.t, err)
}

// see reads until end has come, which is to be the end.
func see(t testing.TB, f *os.File, end string) string {
	t.Helper()
	var all []byte
	buf := make([]byte, 64<<10)
	for !bytes.HasSuffix(all, []byte(end)) {
		f.SetReadDeadline(time.Now().Add(time.Minute))
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("waiting for %q, seen %q: %v", end, all, err)
		}
		all = append(all, buf[:n]...)
	}
	return string(all)
}

func TestBothWaysUntilTheLineCloses(t *testing.T) {
	r := newRig(t, line.Config{})
	if !r.Attached() || r.Size() != (devsw.Winsize{Row: 40, Col: 100}) {
		t.Errorf("attached %v, size %+v", r.Attached(), r.Size())
	}
	r.Write("login: ")
	see(t, r.p, "login: ")
	r.type_("root\r\x03\x13")
	r.Read("root\r\x03\x13")
	r.Write(strings.Repeat("x", 100<<10) + "$ ")
	if got := see(t, r.p, "$ "); len(got) != 100<<10+2 {
		t.Errorf("%d bytes", len(got))
	}
	r.Line.Close()
	must(t, r.Line.Wait(t.Context()))
	if !reflect.DeepEqual(r.settings(), r.before) {
		t.Error("the settings are not as before")
	}
	select {
	case why := <-r.left:
		t.Errorf("it has left: %v", why)
	default:
	}
}

func TestEscapeLeavesAndTheLineGoesOn(t *testing.T) {
	r := newRig(t, line.Config{})
	r.type_("poweroff\r\x1dmore")
	if why := <-r.left; !errors.Is(why, terminal.ErrEscape) {
		t.Errorf("left: %v", why)
	}
	if !reflect.DeepEqual(r.settings(), r.before) {
		t.Error("the settings are not as before")
	}
	r.Read("poweroff\r")
	if r.Attached() || r.TryRead(10) != "" {
		t.Error("it is still there")
	}
	r.Write("goes on")
	// The person's own shell has the terminal.
	if _, err := io.WriteString(r.tty, "shell$"); err != nil {
		t.Error(err)
	}
	if got := see(t, r.p, "shell$"); strings.Contains(got, "goes on") {
		t.Errorf("seen %q", got)
	}
}

// TestWhatWasTypedBeforeIsRead: however late the guest reads it, and though it is more than the
// line takes at once.
func TestWhatWasTypedBeforeIsRead(t *testing.T) {
	r := newRig(t, line.Config{})
	want := strings.Repeat("0123456789", 1000)
	for i := range 10 {
		r.type_(want[i*1000 : i*1000+1000])
	}
	r.type_("end\x1dmore")
	if why := <-r.left; !errors.Is(why, terminal.ErrEscape) {
		t.Errorf("left: %v", why)
	}
	r.Read(want + "end")
	r.Await("it is out of the line", func() bool { return r.TryRead(1) == "" && len(r.Line.Status().Ends) == 0 })
}

func TestTerminalThatGoesLeavesWhileNobodyReads(t *testing.T) {
	r := newRig(t, line.Config{})
	for range 10 {
		r.type_(strings.Repeat("y", 1000)) // more than the line takes
	}
	r.p.Close()
	if why := <-r.left; !errors.Is(why, io.EOF) {
		t.Errorf("left: %v", why)
	}
	if r.Attached() {
		t.Error("it is still attached")
	}
}

func TestEscapeIsSeenWhileNobodyReadsOrTakes(t *testing.T) {
	r := newRig(t, line.Config{Scrollback: 64 << 10})
	for range 100 {
		r.TryWrite(strings.Repeat("x", 4096)) // more than the terminal takes
	}
	for range 20 {
		r.type_(strings.Repeat("y", 1000)) // more than the line takes
	}
	r.type_("\x1d")
	if why := <-r.left; !errors.Is(why, terminal.ErrEscape) {
		t.Errorf("left: %v", why)
	}
	r.Await("it is not attached", func() bool { return !r.Attached() })
}

func TestPasteThatIsLongerThanTheLineTakesIsReadWhole(t *testing.T) {
	r := newRig(t, line.Config{})
	want := strings.Repeat("0123456789abcdef", 16<<10/16*4)
	go io.WriteString(r.p, want)
	r.Read(want)
}

func TestTerminalThatGoesLeaves(t *testing.T) {
	r := newRig(t, line.Config{})
	r.p.Close()
	if why := <-r.left; !errors.Is(why, io.EOF) {
		t.Errorf("left: %v", why)
	}
	r.Await("it is not attached", func() bool { return !r.Attached() })
}

func TestPipesEndTheInputAndNotTheOutput(t *testing.T) {
	in, typed, err := os.Pipe()
	must(t, err)
	defer in.Close()
	shown, out, err := os.Pipe()
	must(t, err)
	defer shown.Close()
	defer out.Close()
	g := linetest.New(t, line.Config{})
	_, err = Open(g.Line, line.Main, Config{In: in, Out: out, Left: func(why error) { t.Errorf("left: %v", why) }})
	must(t, err)
	want := strings.Repeat("one line \x1d\n", 2000)
	go func() {
		io.WriteString(typed, want)
		typed.Close()
	}()
	g.Read(want)
	g.Write("still shown")
	see(t, shown, "still shown")
	if !g.Attached() || g.Size() != (devsw.Winsize{}) {
		t.Errorf("attached %v, size %+v", g.Attached(), g.Size())
	}
}
