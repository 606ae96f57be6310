package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/control"
	"vdev/internal/trace"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds what comes long before.
const patience = 30 * time.Second

// fake is a Process with one Target, and that one's model, that notes what it is asked for.
type fake struct {
	life *trace.Log
	hold chan struct{} // Revoke waits for it to be closed
	in   chan struct{} // closed when Revoke has come

	mu     sync.Mutex
	calls  []string
	level  string
	refuse error // what every command answers
}

func newFake() *fake {
	return &fake{life: trace.New(16), hold: make(chan struct{}), in: make(chan struct{}), level: "info"}
}

func (f *fake) Name() string        { return "" }
func (f *fake) Model() (any, error) { return f, nil }

func (f *fake) note(format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	return f.refuse
}

func (f *fake) Status(ctx context.Context) control.Status {
	if _, ok := ctx.Deadline(); !ok {
		panic("a status that may wait for ever")
	}
	return control.Status{
		PID: 42, State: "open", FrontEnd: &control.FrontEnd{PID: 7, Features: control.Bits{Value: "0x1", Names: []string{"<one>"}}},
		Rings: []control.Ring{{Index: 0, State: "running", Answered: true, Next: 65535, InFlight: 3, Oldest: 1.5}},
	}
}

func (f *fake) Trace() (control.Trace, *trace.Log) {
	return control.Trace{Process: "vdev blk disk.img", PID: 42}, f.life
}

func (f *fake) Faults() (control.Faults, error) {
	return control.Faults{Rules: []control.FaultRule{{ID: 1, Rule: "hang:write"}}}, f.note("faults")
}

func (f *fake) SetFaults(rules []string) ([]int, error) { return []int{4, 5}, f.note("set %q", rules) }
func (f *fake) ClearFaults(ids []int) error             { return f.note("clear %d", ids) }
func (f *fake) ReleaseFaults(ids []int) error           { return f.note("release %d", ids) }

func (f *fake) Crash(_ context.Context, o control.Outage) (control.Losses, error) {
	return control.Losses{Kept: 1, Dropped: 2}, f.note("crash %+v", o)
}

func (f *fake) Revoke(ctx context.Context) error {
	close(f.in)
	select {
	case <-f.hold:
		return f.note("revoke")
	case <-ctx.Done():
		f.note("revoke given up")
		return ctx.Err()
	}
}

func (f *fake) Resize(context.Context) (control.Size, error) {
	return control.Size{Bytes: 1 << 40, Changed: true}, f.note("resize")
}

func (f *fake) ClearFailure(context.Context) (control.Cleared, error) {
	return control.Cleared{FailedFlush: "no space left on device"}, f.note("clear-failure")
}

func (f *fake) LogLevel() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.level
}

func (f *fake) SetLogLevel(level string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if level == "loud" {
		return control.Wrong("level %q: must be quieter", level)
	}
	f.level = level
	return nil
}

// serve serves f on a socket and returns its path. end, which the test's end calls as well, ends
// the server.
func serve(t *testing.T, f *fake) (path string, end func()) {
	t.Helper()
	return serveTarget(t, f)
}

// target is what a Server serves, as its only device.
type target interface {
	control.Process
	control.Target
}

// serveTarget is serve for another one.
func serveTarget(t *testing.T, f target) (path string, end func()) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ctl")
	ln, err := control.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := control.NewServer(f, []control.Target{f}, nil)
	s.Start(ln)
	end = sync.OnceFunc(s.Close)
	t.Cleanup(end)
	return path, end
}

func TestEachCommandReachesTheTarget(t *testing.T) {
	f := newLine()
	close(f.hold)
	path, _ := serveTarget(t, f)
	c := control.NewClient(path)
	ctx := t.Context()
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	st, err := c.Status(ctx)
	check("status", err)
	if st.PID != 42 || st.FrontEnd == nil || st.FrontEnd.Features.Names[0] != "<one>" || len(st.Rings) != 1 || st.Rings[0].Oldest != 1.5 || st.Rings[0].Next != 65535 {
		t.Errorf("the status is %+v", st)
	}
	rules, err := c.Faults(ctx)
	check("faults", err)
	if len(rules.Rules) != 1 || rules.Rules[0].Rule != "hang:write" {
		t.Errorf("the faults are %+v", rules)
	}
	ids, err := c.SetFaults(ctx, []string{"hang:write", "error:read"})
	check("fault", err)
	if !slices.Equal(ids, []int{4, 5}) {
		t.Errorf("the rules' numbers are %d", ids)
	}
	check("clear", c.ClearFaults(ctx, []int{4}))
	check("release", c.ReleaseFaults(ctx, nil))
	lost, err := c.Crash(ctx, control.Outage{Seed: 1<<64 - 1, Keep: 0.25, Off: true})
	check("crash", err)
	if lost != (control.Losses{Kept: 1, Dropped: 2}) {
		t.Errorf("the crash has lost %+v", lost)
	}
	check("revoke", c.Revoke(ctx))
	size, err := c.Resize(ctx)
	check("resize", err)
	if size != (control.Size{Bytes: 1 << 40, Changed: true}) {
		t.Errorf("the size is %+v", size)
	}
	cleared, err := c.ClearFailure(ctx)
	check("clear-failure", err)
	if cleared.FailedFlush != "no space left on device" {
		t.Errorf("cleared %+v", cleared)
	}
	check("log-level debug", c.SetLogLevel(ctx, "debug"))
	level, err := c.LogLevel(ctx)
	check("log-level", err)
	if level != "debug" {
		t.Errorf("the level is %q", level)
	}
	ports, err := c.Ports(ctx)
	check("ports", err)
	if len(ports) != 1 || ports[0].Name != "x" {
		t.Errorf("the ports are %+v", ports)
	}
	port, err := c.AddPort(ctx, "driver=null")
	check("port add", err)
	if port.ID != 4 {
		t.Errorf("the port that was added is %+v", port)
	}
	check("port remove", c.RemovePort(ctx, "x"))
	want := []string{"faults", `set ["hang:write" "error:read"]`, "clear [4]", "release []", "crash {Seed:18446744073709551615 Keep:0.25 Off:true}", "revoke", "resize", "clear-failure", "add driver=null", "remove x"}
	if !slices.Equal(f.calls, want) {
		t.Errorf("the target was asked %q, want %q", f.calls, want)
	}
}

func TestWhatTheTargetRefusesIsToldAsItSaysIt(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	c := control.NewClient(path)
	for _, tt := range []struct {
		refuse error
		status int
	}{
		{control.Wrong("the <rule> is no rule"), http.StatusBadRequest},
		{fmt.Errorf("now: %w", control.Impossible("not open")), http.StatusConflict},
		{errors.New("the disk burns"), http.StatusInternalServerError},
	} {
		f.refuse = tt.refuse
		_, err := c.Resize(t.Context())
		var e *control.Error
		if !errors.As(err, &e) || e.Status != tt.status || err.Error() != tt.refuse.Error() {
			t.Errorf("%v arrives as %v (%+v), want status %d", tt.refuse, err, e, tt.status)
		}
	}
	if err := c.SetLogLevel(t.Context(), "loud"); err == nil || !strings.Contains(err.Error(), `level "loud"`) {
		t.Errorf("a bad level: %v", err)
	}
	if _, err := c.SetFaults(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "there are none") {
		t.Errorf("no rules: %v", err)
	}
}

// plain is a device with nothing but what every device has.
type plain struct {
	*fake
	absent error // why it is not served
}

func (p plain) Model() (any, error) { return struct{}{}, p.absent }

func TestADeviceIsAskedOnlyForWhatItsKindHas(t *testing.T) {
	f := newFake()
	for want, absent := range map[string]error{"the device is none that can be asked for ": nil, "not yet": control.Impossible("not yet")} {
		s := control.NewServer(f, []control.Target{plain{f, absent}}, nil)
		t.Cleanup(s.Close)
		for _, what := range []string{"GET /v1/faults", "POST /v1/faults", "POST /v1/faults/clear", "POST /v1/faults/release", "POST /v1/faults/crash",
			"POST /v1/resize", "POST /v1/clear-failure", "GET /v1/ports", "POST /v1/ports", "POST /v1/ports/remove", "GET /v1/ports/attach"} {
			method, path, _ := strings.Cut(what, " ")
			answer := httptest.NewRecorder()
			s.Handler().ServeHTTP(answer, httptest.NewRequest(method, path, nil))
			if answer.Code != http.StatusConflict || !strings.Contains(answer.Body.String(), want) {
				t.Errorf("%s: %d %s, want a conflict: %s", what, answer.Code, answer.Body, want)
			}
		}
		answer := httptest.NewRecorder()
		s.Handler().ServeHTTP(answer, httptest.NewRequest("GET", "/v1/status", nil))
		if answer.Code != http.StatusOK {
			t.Errorf("its status: %d %s", answer.Code, answer.Body)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("the target was asked %q", f.calls)
	}
}

func TestRequestsThatAreNoneAreRefused(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	for _, tt := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/", "", 404, "there is no GET /"},
		{"GET", "/v1/reboot", "", 404, "there is no GET /v1/reboot"},
		{"POST", "/v1/status", "", 404, "there is no POST /v1/status"},
		{"POST", "/v1/faults", "{", 400, "body: unexpected EOF"},
		{"POST", "/v1/faults", `{"rule":"hang:write"}`, 400, `unknown field "rule"`},
		{"POST", "/v1/faults/clear", `{"ids":["1"]}`, 400, "body: json: cannot unmarshal"},
		{"PUT", "/v1/log-level", `{"level":"` + strings.Repeat("x", 2<<20) + `"}`, 400, "too large"},
		{"GET", "/v1/trace/follow?since=-1", "", 400, "since=-1: must be the number of an event"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://vdev"+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := client.Do(r)
		if err != nil {
			t.Errorf("%s %s: %v", tt.method, tt.path, err)
			continue
		}
		var fault control.Failure
		err = json.NewDecoder(answer.Body).Decode(&fault)
		answer.Body.Close()
		if err != nil || answer.StatusCode != tt.status || !strings.Contains(fault.Message, tt.says) {
			t.Errorf("%s %s: %d %q (%v), want %d %q", tt.method, tt.path, answer.StatusCode, fault.Message, err, tt.status, tt.says)
		}
	}
	if len(f.calls) != 0 {
		t.Errorf("the target was asked %q", f.calls)
	}
}

func TestTheTraceIsFollowedToTheEnd(t *testing.T) {
	f := newFake()
	path, end := serve(t, f)
	c := control.NewClient(path)
	f.life.Add(trace.Event{Kind: "connect", Queue: trace.WholeDevice})
	tr, err := c.Trace(t.Context())
	if err != nil || tr.Process != "vdev blk disk.img" || len(tr.Events) != 1 || !tr.Start.Equal(f.life.Start()) {
		t.Fatalf("the trace is %+v, %v", tr, err)
	}

	seen := make(chan trace.Event, 16)
	followed := make(chan error)
	go func() {
		followed <- c.Follow(t.Context(), func(e trace.Event) error {
			seen <- e
			return nil
		})
	}()
	next := func() trace.Event {
		t.Helper()
		select {
		case e := <-seen:
			return e
		case <-time.After(patience):
			t.Fatal("nothing comes")
			return trace.Event{}
		}
	}
	if e := next(); e.Kind != "connect" {
		t.Errorf("the first event is %v", e)
	}
	f.life.Add(trace.Event{Kind: "stop", Queue: 3, Err: errors.New("boom")})
	if e := next(); e.Kind != "stop" || e.Queue != 3 || e.Err == nil || e.Err.Error() != "boom" {
		t.Errorf("the second event is %v", e)
	}
	f.life.Add(trace.Event{Kind: "disconnect", Queue: trace.WholeDevice})
	end()
	if e := next(); e.Kind != "disconnect" {
		t.Errorf("the last event is %v", e)
	}
	if err := <-followed; err != nil {
		t.Errorf("at the end: %v", err)
	}
}

func TestFollowingEndsWhenTheFollowerHasEnough(t *testing.T) {
	f := newFake()
	path, _ := serve(t, f)
	c := control.NewClient(path)
	f.life.Add(trace.Event{Kind: "connect"})
	enough := errors.New("enough")
	if err := c.Follow(t.Context(), func(trace.Event) error { return enough }); err != enough {
		t.Errorf("Follow gives %v, want what the function gave", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := c.Follow(ctx, func(trace.Event) error { cancel(); return nil }); err != nil {
		t.Errorf("Follow gives %v when it is interrupted", err)
	}
}

func TestWhoDoesNotReadDoesNotHoldUpTheEnd(t *testing.T) {
	f := newFake()
	path, end := serve(t, f)
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("GET /v1/trace/follow HTTP/1.1\r\nHost: vdev\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	long := strings.Repeat("x", 1<<20)
	for range 16 {
		f.life.Add(trace.Event{Kind: "ctl", Note: long})
	}
	ended := make(chan struct{})
	go func() {
		end()
		close(ended)
	}()
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the server waits for its client")
	}
}

func TestAClientThatGoesGivesUpARevoke(t *testing.T) {
	f := newFake()
	path, end := serve(t, f)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-f.in
		cancel()
	}()
	err := control.NewClient(path).Revoke(ctx)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), path) {
		t.Errorf("Revoke gives %v", err)
	}
	end()
	if !slices.Equal(f.calls, []string{"revoke given up"}) {
		t.Errorf("the target was asked %q", f.calls)
	}
}

func TestASocketWithoutVdevBehindItIsToldApart(t *testing.T) {
	dir := t.TempDir()
	mute := filepath.Join(dir, "mute")
	ln, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	other := filepath.Join(dir, "other")
	ln2, err := net.Listen("unix", other)
	if err != nil {
		t.Fatal(err)
	}
	defer ln2.Close()
	go func() {
		for {
			c, err := ln2.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1024))
			_, _ = c.Write([]byte("500 what?\r\n"))
			c.Close()
		}
	}()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "missing"): "there is no such socket",
		file:                          "nobody listens on it",
		mute:                          "what answers is not vdev's --control",
		other:                         "what answers is not vdev's --control",
	} {
		_, err := control.NewClient(path).Status(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), path+": "+want) {
			t.Errorf("status gives %v, want %q", err, want)
		}
	}
}

func TestTheSocketIsItsOwnersAlone(t *testing.T) {
	path, end := serve(t, newFake())
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the socket's permissions are %v", info.Mode().Perm())
	}
	if _, err := control.Listen(path); err == nil || !strings.Contains(err.Error(), path+": another process listens") {
		t.Errorf("a second server: %v", err)
	}
	end()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the server has left its socket: %v", err)
	}
	if _, err := control.Listen(filepath.Join(path, "x")); err == nil || strings.Contains(err.Error(), "listen unix") {
		t.Errorf("in a folder that does not exist: %v", err)
	}
}
