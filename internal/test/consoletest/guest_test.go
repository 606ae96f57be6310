package consoletest_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"vdev/internal/test/consoletest"
	"vdev/virtq/virtqtest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// msg makes a message.
func msg(id uint32, event consoletest.Event, value uint16, rest ...byte) consoletest.Message {
	return consoletest.Message{ID: id, Event: event, Value: value, Rest: string(rest)}
}

// twoPorts is a console on port 0 and a data port 1, told as a device does.
func twoPorts() []consoletest.Message {
	return []consoletest.Message{
		msg(0, consoletest.PortAdd, 1), msg(0, consoletest.ConsolePort, 1), msg(0, consoletest.PortOpen, 1),
		msg(0, consoletest.Resize, 0, 100, 0, 40, 0),
		msg(1, consoletest.PortAdd, 1), msg(1, consoletest.PortName, 1, []byte("org.example.0")...), msg(1, consoletest.PortOpen, 1),
	}
}

// withPorts returns a console with twoPorts, and a guest that knows them.
func withPorts(t *testing.T) (*console, *consoletest.Guest) {
	t.Helper()
	c := newConsole(true, 4)
	c.onReady = twoPorts()
	g, _ := c.guest(t, consoletest.Linux())
	must(t, waitReady(g))
	return c, g
}

func waitReady(g *consoletest.Guest) error {
	return g.Wait("ports", func() bool { return g.Port(1) != nil && g.Port(1).HostOpen })
}

// said gives what the guest has told the console.
func (c *console) said() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprint(c.heard)
}

// used gives the chains that the console has used.
func (c *console) used() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.chains)
}

func TestGuestAnswersAsLinux(t *testing.T) {
	for _, tt := range []struct {
		name string
		tell []consoletest.Message
		want string
	}{
		{"one port after the other", twoPorts(), "[-1 DEVICE_READY 1 0 PORT_READY 1 0 PORT_OPEN 1 1 PORT_READY 1]"},
		{"both ports first", []consoletest.Message{
			msg(0, consoletest.PortAdd, 1), msg(1, consoletest.PortAdd, 1), msg(0, consoletest.ConsolePort, 1), msg(1, consoletest.PortOpen, 1),
		}, "[-1 DEVICE_READY 1 0 PORT_READY 1 1 PORT_READY 1 0 PORT_OPEN 1]"},
		{"what is about no port", []consoletest.Message{
			msg(3, consoletest.PortOpen, 1), msg(9, consoletest.PortAdd, 1), msg(2, consoletest.ConsolePort, 1), msg(3, 77, 1),
			msg(1, consoletest.PortAdd, 1), msg(1, consoletest.PortAdd, 1), msg(1, consoletest.PortOpen, 1),
		}, "[-1 DEVICE_READY 1 1 PORT_READY 1 1 PORT_READY 1]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newConsole(true, 4)
			c.onReady = tt.tell
			g, _ := c.guest(t, consoletest.Linux())
			must(t, waitReady(g))
			if got := c.said(); got != tt.want {
				t.Errorf("the guest said %s, want %s", got, tt.want)
			}
			if got, want := fmt.Sprint(g.Received), fmt.Sprint(tt.tell); got != want {
				t.Errorf("the guest received %s, want %s", got, want)
			}
		})
	}
}

func TestGuestKnowsItsPorts(t *testing.T) {
	c, g := withPorts(t)
	p0, p1 := g.Port(0), g.Port(1)
	if !p0.Console || p0.Cols != 100 || p0.Rows != 40 || p0.Sizes != 1 || p1.Console || p1.Name != "org.example.0" || g.Port(2) != nil || g.Port(99) != nil {
		t.Errorf("ports: %+v, %+v", p0, p1)
	}
	c.say(msg(1, consoletest.PortName, 1, 'x'), msg(1, consoletest.Resize, 0, 1, 0, 1, 0), msg(0, consoletest.Resize, 0, 80, 0, 24, 0))
	must(t, g.Wait("a size", func() bool { return p0.Sizes == 2 }))
	if p0.Cols != 80 || p0.Rows != 24 || p1.Name != "org.example.0" || p1.Sizes != 0 {
		t.Errorf("ports: %+v, %+v", p0, p1)
	}
}

func TestBufferCountsAreLinuxs(t *testing.T) {
	_, g := withPorts(t)
	for _, ring := range []int{0, 2, 4} {
		if n := g.Ring(ring).InFlight(); n != 64 {
			t.Errorf("ring %d has %d buffers, want 64", ring, n)
		}
	}
	if n := g.Ring(6).InFlight(); n != 0 {
		t.Errorf("a port that was not added has %d buffers", n)
	}
}

// random returns n bytes.
func random(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// shaped are chains of all shapes, as lengths of descriptors.
var shaped = []struct {
	name  string
	shape consoletest.Shape
	n     int
	want  string // of each chain on ring 5
}{
	{"written", consoletest.Shape{}, 32 << 10, "5: 32768"},
	{"in pieces", consoletest.Shape{Piece: 1000}, 3500, "5: 1000 1000 1000 500"},
	{"of as many pieces as the ring has descriptors", consoletest.Shape{Piece: 7}, 64 * 7, "5:" + strings.Repeat(" 7", 64)},
	{"spliced", consoletest.Spliced, 1 << 20, "5:" + strings.Repeat(" 4096", 256)},
	{"spliced, a part of a page at the end", consoletest.Spliced, 8193, "5: 4096 4096 1"},
	{"empty", consoletest.Shape{}, 0, "5:"},
}

func TestChainsHaveTheirShape(t *testing.T) {
	for _, tt := range shaped {
		t.Run(tt.name, func(t *testing.T) {
			c, g := withPorts(t)
			p := g.Port(1)
			must(t, p.Open())
			sent := random(tt.n)
			must(t, p.Transmit(sent, tt.shape))
			got := make([]byte, tt.n)
			if _, err := io.ReadFull(p, got); err != nil || !bytes.Equal(got, sent) {
				t.Fatalf("read %d bytes, equal %v, %v", len(got), bytes.Equal(got, sent), err)
			}
			must(t, p.Flush())
			if got, want := c.used(), []string{tt.want}; !slices.Equal(got, want) {
				t.Errorf("chains %q, want %q", got, want)
			}
		})
	}
}

func TestWritesAndPrintsAreCutAsLinuxDoes(t *testing.T) {
	c, g := withPorts(t)
	p := g.Port(1)
	must(t, p.Open())
	sent := random(100000)
	if n, err := p.Write(sent); n != len(sent) || err != nil {
		t.Fatal(n, err)
	}
	must(t, p.Flush())
	must(t, g.Port(0).Print([]byte("0123456789abcdefghi\n")))
	want := []string{"5: 32768", "5: 32768", "5: 32768", "5: 1696", "1: 16", "1: 5"}
	if got := c.used(); !slices.Equal(got, want) {
		t.Errorf("chains %q, want %q", got, want)
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(p, got); err != nil || !bytes.Equal(got, sent) {
		t.Error("what came back is something else", err)
	}
	// A console keeps its input until somebody opens it.
	line := make([]byte, 21)
	if _, err := io.ReadFull(g.Port(0), line); err != nil || string(line) != "0123456789abcdefghi\r\n" {
		t.Errorf("%q, %v", line, err)
	}
}

func TestMoreThanTheRingHolds(t *testing.T) {
	_, g := withPorts(t)
	p := g.Port(1)
	must(t, p.Open())
	sent, got := random(10<<20), make([]byte, 0, 10<<20)
	for rest := sent; len(got) < len(sent); {
		n := min(len(rest), 32<<10)
		if ok, err := p.Offer(rest[:n], consoletest.Shape{}); err != nil {
			t.Fatal(err)
		} else if ok {
			rest = rest[n:]
		}
		must(t, g.Wait("anything", func() bool { return p.Buffered() > 0 || len(rest) > 0 }))
		for p.Buffered() > 0 {
			got = append(got, p.Peek()...)
			must(t, p.Skip(len(p.Peek())))
		}
	}
	if !bytes.Equal(got, sent) {
		t.Error("what came back is something else")
	}
	if p.Empty != 0 || p.Discarded != 0 {
		t.Errorf("%d empty buffers, %d bytes thrown away", p.Empty, p.Discarded)
	}
}

func TestDataForAClosedPortIsThrownAway(t *testing.T) {
	c, g := withPorts(t)
	p := g.Port(1)
	c.do(func() { c.echo[4] = random(300000) })
	must(t, g.Wait("the data", func() bool { return p.Discarded == 300000 }))
	if n := g.Ring(4).InFlight(); n != 64 {
		t.Errorf("%d buffers are posted, want 64", n)
	}
	must(t, p.Open())
	if err := p.Open(); !errors.Is(err, consoletest.ErrBusy) {
		t.Errorf("second open: %v", err)
	}
	c.do(func() { c.echo[4] = random(10000) })
	must(t, g.Wait("the data", func() bool { return p.Buffered() == 3 }))
	must(t, p.Close())
	if n := g.Ring(4).InFlight(); n != 64 || p.Buffered() != 0 {
		t.Errorf("%d buffers are posted, want 64, and %d unread", n, p.Buffered())
	}
	if got := c.said(); !strings.HasSuffix(got, "1 PORT_OPEN 1 1 PORT_OPEN 0]") {
		t.Error(got)
	}
}

func TestAReaderSeesTheHostsSideClosedAndRemoved(t *testing.T) {
	c, g := withPorts(t)
	p := g.Port(1)
	must(t, p.Open())
	must(t, p.Transmit([]byte("abc"), consoletest.Shape{}))
	c.say(msg(1, consoletest.PortOpen, 0))
	must(t, g.Wait("the end", func() bool { return !p.HostOpen && p.Buffered() > 0 }))
	b := make([]byte, 2)
	if n, err := p.Read(b); n != 2 || err != nil || string(b) != "ab" {
		t.Errorf("%d %q %v", n, b, err)
	}
	if n, err := p.Read(b); n != 1 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, err := p.Read(b); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
	c.say(msg(1, consoletest.PortOpen, 1), msg(1, consoletest.PortRemove, 1))
	if _, err := p.Write(b); err != nil && !errors.Is(err, consoletest.ErrRemoved) {
		t.Error(err)
	}
	if err := g.Wait("the removal", p.Removed); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Read(b); !errors.Is(err, consoletest.ErrRemoved) {
		t.Errorf("read: %v", err)
	}
	if _, err := p.Write(b); !errors.Is(err, consoletest.ErrRemoved) {
		t.Errorf("write: %v", err)
	}
	// The buffers stay where they are, and are used when the port is there again.
	must(t, g.Poll())
	said := c.said()
	must(t, p.Close())
	c.say(msg(1, consoletest.PortAdd, 1), msg(1, consoletest.PortOpen, 1))
	must(t, waitReady(g))
	if p = g.Port(1); p.Opened || g.Ring(4).InFlight() != 64 {
		t.Errorf("%+v", p)
	}
	if got := strings.TrimPrefix(c.said(), strings.TrimSuffix(said, "]")); got != " 1 PORT_READY 1]" {
		t.Errorf("the guest said%s", got)
	}
}

func TestRebindForgetsAndPauseDoesNot(t *testing.T) {
	c, g := withPorts(t)
	p := g.Port(1)
	must(t, p.Open())
	before := c.said()
	must(t, g.Pause())
	c.do(func() { c.echo[4] = []byte("slept") })
	must(t, g.Resume())
	b := make([]byte, 5)
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "slept" {
		t.Fatalf("%q, %v", b, err)
	}
	if after := c.said(); after != before {
		t.Errorf("after a pause the guest said something: %s", after)
	}
	for range 300 { // memory is used again
		must(t, g.Unbind())
		if g.Port(1) != nil || !p.Removed() {
			t.Fatal("the port is still there")
		}
		must(t, g.Bind())
		must(t, waitReady(g))
	}
	if n := strings.Count(c.said(), "DEVICE_READY"); n != 301 {
		t.Errorf("%d times DEVICE_READY, want 301", n)
	}
	p = g.Port(1)
	must(t, p.Open())
	must(t, p.Transmit([]byte("again"), consoletest.Shape{}))
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "again" {
		t.Fatalf("%q, %v", b, err)
	}
}

func TestAnotherBackendGoesOn(t *testing.T) {
	c := newConsole(true, 4)
	c.onReady = twoPorts()
	_, connect := c.serve(t)
	g, err := consoletest.New(connect(), consoletest.Linux())
	must(t, err)
	defer g.Close()
	must(t, g.Bind())
	must(t, waitReady(g))
	p := g.Port(1)
	must(t, p.Open())
	c.do(func() { c.hold = true })
	must(t, p.Transmit([]byte("kept"), consoletest.Shape{}))
	g.Frontend().Close()
	front := connect()
	c.do(func() { c.hold = false })
	must(t, g.Reconnect(front))
	b := make([]byte, 4)
	if _, err := io.ReadFull(p, b); err != nil || string(b) != "kept" {
		t.Fatalf("%q, %v", b, err)
	}
	if n := strings.Count(c.said(), "DEVICE_READY"); n != 1 {
		t.Errorf("%d times DEVICE_READY, want 1", n)
	}
}

func TestOnePortWithoutMultiport(t *testing.T) {
	for _, tt := range []struct {
		name      string
		cfg       consoletest.Config
		multiport bool // offered
		keeps     bool // what comes while the terminal is closed
	}{
		{"Linux", consoletest.Linux(), false, true},
		{"NetBSD", consoletest.NetBSD(), true, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newConsole(tt.multiport, 4)
			g, backend := c.guest(t, tt.cfg)
			if g.Multiport() {
				t.Fatal("MULTIPORT was negotiated")
			}
			p := g.Port(0)
			if !p.Console || g.Cols != 100 || g.Rows != 40 {
				t.Errorf("%+v, %d x %d", p, g.Cols, g.Rows)
			}
			c.do(func() { c.echo[0] = []byte("early") })
			must(t, g.Wait("input", func() bool { return p.Buffered() > 0 || p.Discarded == 5 }))
			if kept := p.Buffered() > 0; kept != tt.keeps {
				t.Errorf("early input: kept %v", kept)
			} else if kept {
				must(t, p.Skip(5))
			}
			must(t, p.Open())
			sent := random(300)
			if _, err := p.Write(sent); err != nil {
				t.Fatal(err)
			}
			must(t, p.Flush())
			var lengths []int
			var got []byte
			for len(got) < len(sent) {
				must(t, g.Wait("input", func() bool { return p.Buffered() > 0 }))
				lengths = append(lengths, len(p.Peek()))
				got = append(got, p.Peek()...)
				must(t, p.Skip(len(p.Peek())))
			}
			if !bytes.Equal(got, sent) {
				t.Error("what came back is something else")
			}
			if tt.cfg.Buffer == 128 && !slices.Equal(c.used(), []string{"1: 128", "1: 128", "1: 44"}) {
				t.Errorf("chains %q", c.used())
			}
			if slices.Max(lengths) > tt.cfg.Buffer {
				t.Errorf("buffers of %v bytes", lengths)
			}
			c.do(func() { c.cols, c.rows = 131, 47 })
			backend.ConfigChanged()
			must(t, g.Wait("the change", func() bool { return g.ConfigChanges == 1 }))
			if g.Cols != 131 || g.Rows != 47 {
				t.Errorf("%d x %d", g.Cols, g.Rows)
			}
		})
	}
}

func TestLateSizeIsReadAfterAChangeOnly(t *testing.T) {
	c := newConsole(false, 1)
	cfg := consoletest.Linux()
	cfg.LateSize = true
	g, backend := c.guest(t, cfg)
	if g.Cols != 0 || g.Rows != 0 {
		t.Errorf("%d x %d at probe", g.Cols, g.Rows)
	}
	backend.ConfigChanged()
	must(t, g.Wait("the size", func() bool { return g.Cols == 100 && g.Rows == 40 }))
}

func TestEmergencyWritesComeInAnyState(t *testing.T) {
	c := newConsole(true, 1)
	_, connect := c.serve(t)
	g, err := consoletest.New(connect(), consoletest.Linux())
	must(t, err)
	defer g.Close()
	must(t, g.EmergencyWrite('a'))
	must(t, g.Bind())
	must(t, g.EmergencyWrite('b'))
	must(t, g.EmergencyWrite('b'))
	must(t, g.Frontend().Barrier())
	c.await(t, func() bool { return string(c.emergency) == "abb" })
}

func TestTooFewQueuesFailTheProbe(t *testing.T) {
	c := newConsole(true, 4)
	c.queues = 9
	_, connect := c.serve(t)
	g, err := consoletest.New(connect(), consoletest.Linux())
	must(t, err)
	defer g.Close()
	if err := g.Bind(); !errors.Is(err, consoletest.ErrTooFewQueues) {
		t.Fatal(err)
	}
}

func TestABrokenRingIsTold(t *testing.T) {
	_, g := withPorts(t)
	r := g.Ring(5)
	if _, ok := r.Add([]virtqtest.Seg{{Addr: 1 << 60, Len: 16}}, nil); !ok {
		t.Fatal("no room")
	}
	must(t, r.Notify())
	never := func() bool { return false }
	if err := g.Wait("anything", never); !errors.Is(err, consoletest.ErrBroken) || !strings.Contains(err.Error(), "ring 5") {
		t.Fatal(err)
	}
	// The others go on.
	must(t, g.Port(0).Print([]byte("x\n")))
}

func TestWhatDoesNotComeEndsTheWait(t *testing.T) {
	_, g := withPorts(t)
	g.Patience = 1
	if err := g.Wait("nothing", func() bool { return false }); !errors.Is(err, consoletest.ErrTimeout) {
		t.Fatal(err)
	}
}

func TestWakeHasWaitLookAgain(t *testing.T) {
	_, g := withPorts(t)
	looks, done := 0, make(chan struct{})
	must(t, g.Wait("a wake-up", func() bool {
		if looks++; looks == 1 {
			go func() {
				defer close(done)
				g.Wake()
			}()
			return false
		}
		<-done
		return true
	}))
}

func TestTransfersDoNotAllocate(t *testing.T) {
	c, g := withPorts(t)
	p := g.Port(0)
	data := random(4096)
	looked := false
	some := func() bool { looked = true; return p.Buffered() > 0 }
	used := func() bool { return g.Ring(1).InFlight() == 0 }
	once := func() {
		if ok, err := p.Offer(data, consoletest.Shape{}); !ok || err != nil {
			t.Fatal(ok, err)
		}
		if err := errors.Join(g.Wait("input", some), g.Wait("use", used)); err != nil {
			t.Fatal(err)
		}
		if err := p.Skip(len(p.Peek())); err != nil {
			t.Fatal(err)
		}
	}
	c.do(func() {
		c.sink = true
		c.echo[0] = make([]byte, 4<<20)
	})
	for range 64 {
		once()
	}
	if n := testing.AllocsPerRun(100, once); n > 0 || !looked {
		t.Errorf("%v allocations", n)
	}
}
