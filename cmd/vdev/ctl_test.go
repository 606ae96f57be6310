package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/control"
	"vdev/internal/trace"
	"vdev/virtq/virtqtest"
)

// ctl runs `vdev ctl` on the process's control socket, and returns its exit status and what it
// prints.
func (p *process) ctl(socket string, args ...string) (status int, stdout, stderr string) {
	p.t.Helper()
	var out, errs bytes.Buffer
	status = run(p.t.Context(), append([]string{"ctl", "--socket", socket}, args...), &out, &errs)
	return status, out.String(), errs.String()
}

// told is ctl that must go well.
func (p *process) told(socket string, args ...string) string {
	p.t.Helper()
	status, stdout, stderr := p.ctl(socket, args...)
	if status != exitOK || stderr != "" {
		p.t.Fatalf("vdev ctl %s: exit status %d, %q", strings.Join(args, " "), status, stderr)
	}
	return stdout
}

// refused checks that ctl fails, with one line that says what it should.
func (p *process) refused(socket, says string, args ...string) {
	p.t.Helper()
	status, stdout, stderr := p.ctl(socket, args...)
	if status != exitFailure || stdout != "" || !strings.HasPrefix(stderr, "vdev: ") || !strings.Contains(stderr, says) || strings.Count(stderr, "\n") != 1 {
		p.t.Errorf("vdev ctl %s: exit status %d, %q, %q; want 1 and %q", strings.Join(args, " "), status, stdout, stderr, says)
	}
}

// status asks for the status.
func (p *process) status(socket string) control.Status {
	p.t.Helper()
	var st control.Status
	if err := json.Unmarshal([]byte(p.told(socket, "status", "--json")), &st); err != nil {
		p.t.Fatal(err)
	}
	return st
}

// until asks for the status until cond holds.
func (p *process) until(socket string, cond func(control.Status) bool) control.Status {
	p.t.Helper()
	for {
		if st := p.status(socket); cond(st) {
			return st
		}
		select {
		case <-p.ended:
			p.t.Fatal("vdev has ended")
		default:
		}
	}
}

// hang makes a guest whose read of block 5 is in flight.
func hang(t *testing.T, socket string) *guest {
	t.Helper()
	g := connect(t, socket)
	g.start()
	g.holds(0)
	buf := g.mem.Alloc(1024, 512)
	g.mem.Bytes(buf, 16)[8] = 5
	if _, ok := g.ring.Add([]virtqtest.Seg{{Addr: buf, Len: 16}}, []virtqtest.Seg{{Addr: buf + 16, Len: 512}, {Addr: buf + 600, Len: 1}}); !ok {
		t.Fatal("no room")
	}
	if err := g.ring.Notify(); err != nil {
		t.Fatal(err)
	}
	return g
}

// sockets gives paths for the front-end and for commands.
func sockets(t *testing.T) (front, ctl string) {
	t.Helper()
	dir := t.TempDir()
	return filepath.Join(dir, "s"), filepath.Join(dir, "c")
}

func TestStatusTellsWhatAStopWaitsFor(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--num-queues", "3", "--serial", "S1",
		"--driver", "fault,lower=vnd,file="+image(t, 8))
	if st := p.status(ctl); st.FrontEnd != nil || st.State != "closed" || st.PID != p.cmd.Process.Pid || st.Disk.Driver != "fault on vnd" ||
		st.Disk.Bytes != 8*512 || st.Disk.Serial != "S1" || st.CancelAfter != 30 || !st.Migratable || st.LogLevel != "info" {
		t.Errorf("without a front-end the status is %+v", st)
	}
	if got := p.told(ctl, "fault", "hang:read:blocks=5", "delay:open:time=1ms"); got != "1 hang:read:blocks=5\n2 delay:open:time=1ms\n" {
		t.Errorf("the rules are %q", got)
	}
	g := hang(t, socket)
	st := p.until(ctl, func(st control.Status) bool {
		return len(st.Faults.Held) == 1 && len(st.Rings) == 3 && st.Rings[0].InFlight == 1
	})
	if h := st.Faults.Held[0]; h.Op != "read" || h.Offset != 5*512 || h.Bytes != 512 || !h.Hangs || h.Rule != 1 {
		t.Errorf("what hangs is %+v", h)
	}
	if f := st.FrontEnd; f == nil || f.PID != os.Getpid() || f.WaitsFor != "" || !strings.Contains(strings.Join(f.Features.Names, " "), "VERSION_1") ||
		!strings.Contains(strings.Join(f.Protocol.Names, " "), "REPLY_ACK") || f.Regions != 1 || f.Memory != 1<<20 {
		t.Errorf("the front-end is %+v", f)
	}
	if r := st.Rings[0]; len(st.Rings) != 3 || r.State != "running" || r.Size != 16 || !r.Answered || r.Next != 2 || r.Used != 1 || r.InFlight != 1 || r.Oldest <= 0 {
		t.Errorf("the rings are %+v", st.Rings)
	}
	if d := st.Devices; len(d) != 1 || d[0].Driver != "fault" || d[0].Opens != 1 || d[0].Closing || len(d[0].InProgress) != 1 || st.State != "open" {
		t.Errorf("the device is %s: %+v", st.State, d)
	}

	stopped := make(chan error)
	go func() { stopped <- g.ring.Stop() }()
	st = p.until(ctl, func(st control.Status) bool {
		return st.FrontEnd.WaitsFor == "SET_VRING_ENABLE" && st.Rings[0].State == "draining"
	})
	if r := st.Rings[0]; r.InFlight != 1 {
		t.Errorf("the ring that is drained is %+v", r)
	}
	text := p.told(ctl, "status")
	for _, want := range []string{"waits for the answer to SET_VRING_ENABLE, for ", "read of 512 bytes at 2560 hangs by rule 1, for ", "fault, 1 open\n", "2 rings stopped\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the status has no %q:\n%s", want, text)
		}
	}
	p.signal(syscall.SIGQUIT)
	p.waitFor("the status of vdev:")
	p.waitFor(" drain queue=0")
	p.told(ctl, "fault", "clear", "2")
	p.refused(ctl, "no rule 2 is in force", "fault", "clear", "2")
	p.told(ctl, "fault", "release")
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if st := p.until(ctl, func(st control.Status) bool { return st.State == "closed" }); len(st.Devices) != 0 || st.Rings[0].State != "stopped" {
		t.Errorf("after the stop: %+v", st)
	}
	if err := g.f.Close(); err != nil {
		t.Fatal(err)
	}
	p.waitFor("the front-end has disconnected")

	order := []string{" ctl fault hang:read:blocks=5 delay:open:time=1ms\n", " connect\n", " opened\n", " drain queue=0",
		" ctl fault release\n", " drained queue=0", " in queue=0 GET_VRING_BASE", " cancel\n", " drained\n", " closed\n", " stop queue=0 why=base", " out queue=0 GET_VRING_BASE", " disconnect\n"}
	rest := p.told(ctl, "trace")
	for _, want := range order {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("the trace has no %q, or not in this order:\n%s", want, p.told(ctl, "trace"))
		}
		rest = after
	}
	var chrome struct{ TraceEvents []struct{ Name, Ph string } }
	file := filepath.Join(t.TempDir(), "life.json")
	if got := p.told(ctl, "trace", "--chrome", file); !strings.Contains(got, file) {
		t.Errorf("--chrome says %q", got)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &chrome); err != nil {
		t.Fatal(err)
	}
	spans := make(map[string]int)
	for _, e := range chrome.TraceEvents {
		if e.Ph == "X" {
			spans[e.Name]++
		}
	}
	for _, name := range []string{"connected", "GET_VRING_BASE ring 0", "d_open", "open", "d_cancel", "drain", "d_close", "running", "stopping"} {
		if spans[name] != 1 {
			t.Errorf("the timeline has %d spans %q, want 1", spans[name], name)
		}
	}
	if out := p.told(ctl, "trace", "--chrome", "-"); !json.Valid([]byte(out)) {
		t.Errorf("--chrome - prints %q", out)
	}
	p.refused(ctl, "not a directory", "trace", "--chrome", filepath.Join(file, "x"))
	p.endsCleanly()
}

// TestAStatusDoesNotLookAtStorage, which may hang: a disk that is not open is as the guest was told
// last.
func TestAStatusDoesNotLookAtStorage(t *testing.T) {
	socket, ctl := sockets(t)
	file := image(t, 8)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "vnd,read-only,file="+file)
	before := p.status(ctl).Disk
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	// Whoever opens this waits for a writer.
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if after := p.status(ctl).Disk; !reflect.DeepEqual(after, before) || after.Bytes == 0 || !after.ReadOnly {
		t.Errorf("the disk was %+v, and is %+v", before, after)
	}
	p.endsCleanly()
}

func TestRevokeTakesTheDeviceFromTheGuest(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "fault,rule=hang:read:blocks=5,lower=vnd,file="+image(t, 8))
	p.refused(ctl, "the device is not open: no guest uses it", "revoke")
	g := hang(t, socket)
	p.until(ctl, func(st control.Status) bool { return len(st.Faults.Held) == 1 })
	p.told(ctl, "revoke")
	if _, _, err := g.ring.Wait(); err != nil {
		t.Errorf("the read that hung: %v", err)
	}
	if st := p.status(ctl); st.State != "revoked" || len(st.Devices) != 0 || len(st.Faults.Held) != 0 {
		t.Errorf("after the revoke: %+v", st)
	}
	if _, status := g.read(0); status != 1 { // VIRTIO_BLK_S_IOERR
		t.Errorf("a read ends with status %d, want 1", status)
	}
	p.refused(ctl, "the device is not open", "revoke")
	if err := g.ring.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := g.ring.Start(); err != nil {
		t.Fatal(err)
	}
	g.holds(1)
	p.endsCleanly()
}

func TestACloseThatIsStuckIsSeenAndEnded(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "fault,rule=hang:read:blocks=5:uncancellable,lower=vnd,file="+image(t, 8))
	hang(t, socket)
	p.until(ctl, func(st control.Status) bool { return len(st.Faults.Held) == 1 })
	revoked := make(chan int)
	go func() {
		status, _, _ := p.ctl(ctl, "revoke")
		revoked <- status
	}()
	st := p.until(ctl, func(st control.Status) bool { return st.State == "closing" })
	if d := st.Devices; len(d) != 1 || !d[0].Closing || d[0].Opens != 0 || len(d[0].InProgress) != 1 {
		t.Errorf("the device is %+v", d)
	}
	p.told(ctl, "fault", "release", "1")
	if status := <-revoked; status != exitOK {
		t.Errorf("the revoke ends with status %d", status)
	}
	p.endsCleanly()
}

func TestCommandsForFaultsNeedTheDriver(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "md,size=1M")
	for _, args := range [][]string{{"fault"}, {"fault", "hang:write"}, {"fault", "clear"}, {"fault", "release"}, {"fault", "crash"}} {
		p.refused(ctl, "the disk has no faults: vdev was not started with --driver fault", args...)
	}
	if st := p.status(ctl); st.Faults != nil {
		t.Errorf("the status has faults: %+v", st.Faults)
	}
	p.endsCleanly()
}

func TestRulesComeIntoForceTogetherOrNotAtAll(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "fault,lower=md,size=1M")
	p.refused(ctl, `rule "crash:write:keep=0.5": there is no cache whose contents could be lost`, "fault", "hang:write", "crash:write")
	if got := p.told(ctl, "fault"); got != "faults      no rule is in force\n" {
		t.Errorf("the faults are %q", got)
	}
	p.refused(ctl, "the disk has no cache", "fault", "crash")
	p.endsCleanly()
}

func TestACrashLosesWhatIsInTheCache(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "fault,cache=1M,lower=md,size=1M")
	p.refused(ctl, "the disk is not open", "fault", "crash")
	g := connect(t, socket)
	g.start()
	g.read(0)
	if got := p.told(ctl, "fault", "crash", "--off"); got != "0 sectors have reached the medium, 0 are lost\n" {
		t.Errorf("the crash says %q", got)
	}
	if _, status := g.read(0); status != 1 {
		t.Errorf("a read without power ends with status %d, want 1", status)
	}
	if got := p.told(ctl, "status"); !strings.Contains(got, "power       off, since a crash\n") {
		t.Errorf("the status has no word of it:\n%s", got)
	}
	p.endsCleanly()
}

func TestTheTraceIsFollowedUntilVdevEnds(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "md,size=1M")
	shown := &transcript{more: make(chan struct{})}
	ended := make(chan int)
	go func() {
		ended <- run(t.Context(), []string{"ctl", "--socket", ctl, "trace", "--follow"}, shown, os.Stderr)
	}()
	p.told(ctl, "resize")
	timeout := time.After(patience)
	for {
		text, more := shown.read()
		if strings.Contains(text, " ctl resize\n") {
			break
		}
		select {
		case <-more:
		case <-timeout:
			t.Fatalf("the follower shows %q", text)
		}
	}
	g := connect(t, socket)
	g.start()
	g.read(0)
	p.endsCleanly()
	if status := <-ended; status != exitOK {
		t.Errorf("the follower ends with status %d", status)
	}
	text, _ := shown.read()
	for _, want := range []string{" connect\n", " opened\n", " closed\n", " stop queue=0 why=disconnect", " disconnect\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("the follower has not shown %q:\n%s", want, text)
		}
	}
}

func TestFollowingSaysWhatIsMissing(t *testing.T) {
	events := []trace.Event{
		{Seq: 2, Time: time.Second, Kind: "open", Queue: trace.WholeDevice},
		{Seq: 3, Time: 2 * time.Second, Kind: "stop", Queue: 1, Note: "why=base"},
		{Seq: 7, Time: 3 * time.Second, Kind: "closed", Queue: trace.WholeDevice, Err: errors.New("boom")},
	}
	for asJSON, want := range map[bool]string{
		false: "2 older events were overwritten\n    1.000000 open\n    2.000000 stop queue=1 why=base\n3 older events were overwritten\n    3.000000 closed: boom\n",
		true: `{"seq":2,"seconds":1,"kind":"open"}` + "\n" + `{"seq":3,"seconds":2,"kind":"stop","queue":1,"note":"why=base"}` + "\n" +
			`{"seq":7,"seconds":3,"kind":"closed","error":"boom"}` + "\n",
	} {
		var b strings.Builder
		show := follower(&b, asJSON)
		for _, e := range events {
			if err := show(e); err != nil {
				t.Fatal(err)
			}
		}
		if b.String() != want {
			t.Errorf("JSON %v: got\n%s\nwant\n%s", asJSON, b.String(), want)
		}
		show = follower(&full{20}, asJSON)
		if err := errors.Join(show(events[0]), show(events[1])); !errors.Is(err, errFull) {
			t.Errorf("JSON %v: on a full disk %v", asJSON, err)
		}
	}
}

func TestTheLogLevelChanges(t *testing.T) {
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver", "md,size=1M")
	if got := p.told(ctl, "log-level"); got != "info\n" {
		t.Errorf("the level is %q", got)
	}
	p.told(ctl, "log-level", "error")
	g := connect(t, socket)
	if err := g.f.Close(); err != nil {
		t.Fatal(err)
	}
	p.until(ctl, func(st control.Status) bool { return st.LogLevel == "error" && st.FrontEnd == nil })
	p.told(ctl, "log-level", "info")
	p.told(ctl, "resize")
	p.waitFor("read again")
	p.endsCleanly()
	if text, _ := p.stderr.read(); strings.Contains(text, "a front-end has connected") {
		t.Errorf("at level error the log has\n%s", text)
	}
}

func TestNotMigratableMeansToWaitLess(t *testing.T) {
	for _, tt := range []struct {
		args  []string
		after float64
		logs  bool // VHOST_F_LOG_ALL is offered
	}{
		{nil, 30, true},
		{[]string{"--migratable=off"}, 1, false},
		{[]string{"--migratable=off", "--cancel-after=5s"}, 5, false},
		{[]string{"--migratable=on", "--cancel-after=0"}, 0, true},
	} {
		t.Run(fmt.Sprint(tt.args), func(t *testing.T) {
			socket, ctl := sockets(t)
			p := serving(t, nil, append([]string{"blk", "--socket-path", socket, "--control", ctl, "--driver", "md,size=1M"}, tt.args...)...)
			if d := p.status(ctl); d.CancelAfter != tt.after || d.Migratable != tt.logs {
				t.Errorf("the status says %v s, migratable %v", d.CancelAfter, d.Migratable)
			}
			g := connect(t, socket)
			features, err := g.f.GetFeatures()
			if err != nil {
				t.Fatal(err)
			}
			if got := features&(1<<26) != 0; got != tt.logs {
				t.Errorf("VHOST_F_LOG_ALL is offered: %v, want %v", got, tt.logs)
			}
			p.endsCleanly()
		})
	}
}

func TestTheControlSocketGoesWithVdev(t *testing.T) {
	socket, ctl := sockets(t)
	args := []string{"blk", "--socket-path", socket, "--control", ctl, "--driver", "fault,rule=hang:read:blocks=5:uncancellable,lower=vnd,file=" + image(t, 8)}
	p := serving(t, nil, args...)
	if info, err := os.Stat(ctl); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket is %v, %v", info.Mode(), err)
	}
	second := start(t, nil, args...)
	if status := second.wait(); status != exitFailure {
		t.Errorf("a second vdev ends with status %d", status)
	}
	if text, _ := second.stderr.read(); !strings.Contains(text, "--control: "+ctl+": another process listens on it") {
		t.Errorf("the second vdev says %q", text)
	}

	// Also where storage does not let it go.
	hang(t, socket)
	p.until(ctl, func(st control.Status) bool { return len(st.Faults.Held) == 1 })
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != exitFailure {
		t.Errorf("vdev ends with status %d, want %d: its storage is stuck", status, exitFailure)
	}
	if exists(t, ctl) {
		t.Error("vdev has left its control socket")
	}
}

func TestSIGQUITTellsTheStatusInJSON(t *testing.T) {
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(t.TempDir(), "s"), "--driver", "md,size=1M", "--log-format", "json")
	p.signal(syscall.SIGQUIT)
	p.waitFor(`"msg":"status","status":{"pid":`)
	p.endsCleanly()
	text, _ := p.stderr.read()
	for line := range strings.Lines(text) {
		if !json.Valid([]byte(line)) {
			t.Errorf("line %q is no JSON", line)
		}
	}
}
