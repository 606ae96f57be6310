package serve

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// patience bounds waits for what comes long before.
const patience = 30 * time.Second

// ports is a Kind that is no disk: two character devices, which are open while the ring runs.
type ports struct {
	broken func() error // why it cannot be opened; nil: it can
}

func (p ports) Name() string                        { return "port" }
func (p ports) Title() string                       { return "two ports" }
func (p ports) About() []any                        { return nil }
func (p ports) Queues() int                         { return 1 }
func (p ports) Programs(context.Context) (int, int) { return 0, 0 }
func (p ports) Describe(*control.Status)            {}

func (p ports) Open(_ context.Context, parts Parts) (Model, error) {
	if p.broken != nil {
		if err := p.broken(); err != nil {
			return nil, err
		}
	}
	yes := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
	_, major, err := parts.Table.Attach("port", nil, -1, &devsw.Cdevsw{Name: "port", Open: yes, Cancel: yes, Close: yes, Flag: devsw.DMPSafe}, -1)
	if err != nil {
		return nil, err
	}
	m := &portsModel{parts: parts}
	for minor := range uint32(2) {
		m.devs = append(m.devs, devsw.Makedev(uint32(major), minor))
	}
	return m, nil
}

// portsModel is the Model, and the device model.
type portsModel struct {
	vhostuser.BaseDevice
	parts Parts
	devs  []devsw.Dev

	mu    sync.Mutex
	nodes []*specfs.Node
}

func (m *portsModel) Backend() vhostuser.Config    { return vhostuser.Config{Device: m, OneReactor: true} }
func (m *portsModel) Noun() string                 { return "pair of ports" }
func (m *portsModel) About() []any                 { return []any{"ports", len(m.devs)} }
func (m *portsModel) FeatureNames() map[int]string { return map[int]string{1: "MULTIPORT"} }
func (m *portsModel) Status() func(*control.Status) {
	return func(st *control.Status) {
		m.mu.Lock()
		defer m.mu.Unlock()
		if st.State = "closed"; len(m.nodes) > 0 {
			st.State = "open"
		}
	}
}
func (m *portsModel) Reload()                          { m.parts.Log.Asked.Info("looked again") }
func (m *portsModel) Moving(bool)                      {}
func (m *portsModel) WaitClosed(context.Context) error { return nil }
func (m *portsModel) Close() error                     { return nil }

func (m *portsModel) Process(*vhostuser.Queue) bool { return false }

func (m *portsModel) StartQueue(*vhostuser.Queue) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, dev := range m.devs {
		n := m.parts.FS.Node(devsw.IFCHR, dev)
		if err := n.Open(context.Background(), devsw.FREAD|devsw.FWRITE); err != nil {
			return err
		}
		m.nodes = append(m.nodes, n)
		m.parts.Trace(text(fmt.Sprintf("%v is open", dev)))
	}
	return nil
}

func (m *portsModel) StopDevice([]*vhostuser.Queue, vhostuser.Stop) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range m.nodes {
		_ = n.Close(devsw.FREAD | devsw.FWRITE) // it may have been revoked
	}
	m.nodes = nil
}

// process is a control.Process.
type process struct{}

func (process) LogLevel() string         { return "info" }
func (process) SetLogLevel(string) error { return nil }

// transcript is what was written, and is written to by any goroutine.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *transcript) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

func (s *transcript) log(name string) Log {
	log := slog.New(slog.NewTextHandler(s, nil)).With("device", name)
	return Log{Asked: log, Found: log, Vital: log}
}

// until waits until cond holds.
func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come", what)
		}
	}
}

// newSet makes a Set of devices with these names and kinds, which have their sockets in dir.
func newSet(t *testing.T, out *transcript, kinds map[string]Kind) (s *Set, dir string) {
	t.Helper()
	dir = t.TempDir()
	c := Config{
		Process: process{}, Version: "test", Start: time.Now(), Log: out.log, Loops: Loops{Reactors: 1, Mode: vhostuser.ModeThreads},
		Trace: func(l Line) { fmt.Fprintf(out, "trace %s %s %v\n", l.Device, l.From, l.What) },
	}
	for name, kind := range kinds {
		path := filepath.Join(dir, name)
		c.Devices = append(c.Devices, DeviceConfig{
			Kind: kind, Name: name, Socket: path, Listen: func() (net.Listener, error) { return vhostuser.Listen(path) }, Migratable: true,
			CancelAfter: 7 * time.Second,
		})
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, dir
}

// serving is newSet that runs, until end is called, which gives what comes of it.
func serving(t *testing.T, out *transcript, kinds map[string]Kind) (s *Set, end func() error, dir string) {
	t.Helper()
	s, dir = newSet(t, out, kinds)
	s.again = time.Hour // it is Reload that has a device tried again
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	end = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { _ = end() })
	return s, end, dir
}

// device is the one of a name.
func (s *Set) device(name string) *Device {
	return s.devices[slices.IndexFunc(s.devices, func(d *Device) bool { return d.Name() == name })]
}

// TestASocketIsToldWhenItIsThere: whoever sees it in the status can connect.
func TestASocketIsToldWhenItIsThere(t *testing.T) {
	var out transcript
	s, dir := newSet(t, &out, map[string]Kind{"good": ports{}})
	d := s.device("good")
	listen, before := d.config.Listen, make(chan string, 1)
	d.config.Listen = func() (net.Listener, error) {
		before <- d.Status(t.Context()).Socket
		return listen()
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if got := <-before; got != "none" {
		t.Errorf("before there is a socket, it is %s", got)
	}
	until(t, "a socket", func() bool { return d.Status(t.Context()).Socket == filepath.Join(dir, "good") })
	f, err := vhostusertest.Dial(filepath.Join(dir, "good"))
	if err != nil {
		t.Error(err)
	} else {
		f.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestADeviceThatIsNoDiskIsServed, with what it has of its own, and tried again until it can be.
func TestADeviceThatIsNoDiskIsServed(t *testing.T) {
	var out transcript
	var mu sync.Mutex
	why := errors.New("no such terminal")
	s, end, dir := serving(t, &out, map[string]Kind{
		"good": ports{},
		"late": ports{broken: func() error { mu.Lock(); defer mu.Unlock(); return why }},
	})
	late := s.device("late")
	until(t, "a device", func() bool { return s.device("good").Status(t.Context()).Socket != "none" })
	until(t, "a failure", func() bool { return late.Status(t.Context()).State == stateFailed })
	st := late.Status(t.Context())
	if st.Name != "late" || st.Error != "no such terminal" || st.RetryIn == nil || st.Socket != "none" || st.Disk != nil || st.CancelAfter != 7 {
		t.Errorf("the status of what is not served is %+v", st)
	}
	var refused *control.Error
	for what, err := range map[string]error{"revoke": late.Revoke(t.Context()), "model": func() error { _, err := late.Model(); return err }()} {
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), "not served: no such terminal (it is tried again in ") {
			t.Errorf("%s of what is not served: %v", what, err)
		}
	}
	mu.Lock()
	why = nil
	mu.Unlock()
	s.Reload()
	until(t, "the device that was tried again", func() bool { return late.Status(t.Context()).Socket == filepath.Join(dir, "late") })
	until(t, "the look at the other one", func() bool { return strings.Contains(out.String(), `msg="looked again" device=good`) })

	f, err := vhostusertest.Dial(filepath.Join(dir, "late"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if _, err := f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.SetFeatures(virtq.FeatureVersion1|vhostuser.FProtocolFeatures), f.AddMemory(mem)); err != nil {
		t.Fatal(err)
	}
	ring, err := f.NewRing(mem, 0, 16)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	if err := ring.Start(); err != nil {
		t.Fatal(err)
	}
	var open []string
	st = late.Status(t.Context())
	for _, d := range st.Devices {
		open = append(open, fmt.Sprintf("%s of %s: %d", d.Device, d.Driver, d.Opens))
	}
	slices.Sort(open)
	if len(open) != 2 || !strings.HasSuffix(open[0], ",0 of port: 1") || !strings.HasSuffix(open[1], ",1 of port: 1") || st.State != "open" ||
		st.FrontEnd == nil || !slices.Contains(st.FrontEnd.Features.Names, "VERSION_1") || len(st.Rings) != 1 || st.Disk != nil || st.RetryIn != nil {
		t.Errorf("open are %q, and the status is %+v", open, st)
	}
	if got := s.device("good").Status(t.Context()); len(got.Devices) != 0 || got.FrontEnd != nil {
		t.Errorf("the status of the other one is %+v", got)
	}
	if err := late.Revoke(t.Context()); err != nil {
		t.Error(err)
	}
	if st := late.Status(t.Context()); len(st.Devices) != 0 || st.State != stateRevoked {
		t.Errorf("after the revoke the status is %+v", st)
	}
	if err := late.Revoke(t.Context()); !errors.As(err, &refused) || !strings.Contains(err.Error(), "not open") {
		t.Errorf("another revoke: %v", err)
	}
	about, life := late.Trace()
	if about.Name != "late" || about.Process != "vdev late" {
		t.Errorf("the record is %+v", about)
	}
	happened := map[string]int{}
	for _, e := range life.Snapshot() {
		happened[e.Kind+" of "+e.Device]++
	}
	for _, d := range []string{strings.Fields(open[0])[1], strings.Fields(open[1])[1]} {
		for _, kind := range []string{"open", "opened", "revoke", "cancel", "close", "closed", "revoked"} {
			if happened[kind+" of character "+d] != 1 {
				t.Errorf("%s of %s has happened %d times: %v", kind, d, happened[kind+" of character "+d], happened)
			}
		}
		if want := "trace late port " + d + " is open\n"; !strings.Contains(out.String(), want) {
			t.Errorf("the trace has no %q", want)
		}
	}
	if err := end(); err != nil {
		t.Errorf("at the end: %v", err)
	}
	for _, want := range []string{`msg="serving a pair of ports" device=late ports=2 socket=` + filepath.Join(dir, "late") + " aio=threads", "msg=ended device=late", "msg=ended device=good"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log has no %s:\n%s", want, out.String())
		}
	}
	for _, name := range []string{"good", "late"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWhatCannotBeOpenedIsToldAtTheEnd, and where nothing can be opened there is nothing to wait
// for.
func TestWhatCannotBeOpenedIsToldAtTheEnd(t *testing.T) {
	var out transcript
	never := ports{broken: func() error { return errors.New("no such terminal") }}
	s, end, _ := serving(t, &out, map[string]Kind{"good": ports{}, "never": never})
	until(t, "a device", func() bool { return s.device("good").Status(t.Context()).Socket != "none" })
	if err := end(); err == nil || err.Error() != "1 device not served: see the log" {
		t.Errorf("at the end: %v", err)
	}
	for want, kinds := range map[string]map[string]Kind{
		"no device can be served":        {"a": never, "b": never},
		"device alone: no such terminal": {"alone": never},
	} {
		s, _ := newSet(t, &out, kinds)
		if err := s.Run(t.Context()); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
