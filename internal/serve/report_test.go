package serve

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/specfs"
	"vdev/vhostuser"
)

// logs are the lines of a Log, each with the name of the logger that has it.
type logs struct{ bytes.Buffer }

func (l *logs) log() Log {
	to := func(name string) *slog.Logger { return slog.New(slog.NewTextHandler(&l.Buffer, nil)).With("to", name) }
	return Log{Asked: to("asked"), Found: to("found"), Vital: to("vital")}
}

// take gives the lines since it was called last.
func (l *logs) take() []string {
	lines := strings.SplitAfter(l.String(), "\n")
	l.Reset()
	return lines[:len(lines)-1]
}

// TestWhatIsSaidOfADeviceItselfIsVital, and what a front-end does is not: it can do that as often
// as it likes.
func TestWhatIsSaidOfADeviceItselfIsVital(t *testing.T) {
	var out logs
	rep := newReporter("d", out.log(), nil, func() {})
	for what, say := range map[string]func(){
		"vital": func() {
			rep.model("a flush has failed", devsw.EIO)
			rep.model("a flush waits", nil)
			rep.vhostuser(vhostuser.Event{Kind: vhostuser.EventBreak, Err: devsw.EINVAL})
		},
		"found": func() {
			for _, e := range []vhostuser.Event{
				{Kind: vhostuser.EventConnect}, {Kind: vhostuser.EventDisconnect}, {Kind: vhostuser.EventDisconnect, Err: devsw.EIO},
				{Kind: vhostuser.EventRefuse}, {Kind: vhostuser.EventRefuse, Err: vhostuser.ErrClosing},
				{Kind: vhostuser.EventShort, Err: devsw.EIO}, {Kind: vhostuser.EventFail, Err: devsw.EINVAL},
			} {
				rep.vhostuser(e)
			}
		},
		"asked": func() {
			rep.command("revoke", nil)
			rep.command("revoke", devsw.EIO)
		},
	} {
		say()
		lines := out.take()
		for _, line := range lines {
			if !strings.Contains(line, " to="+what) {
				t.Errorf("%s, want it to be %s", line, what)
			}
		}
		if want := map[string]int{"vital": 3, "found": 7, "asked": 2}[what]; len(lines) != want {
			t.Errorf("%d lines that are %s, want %d: %q", len(lines), what, want, lines)
		}
	}
}

// TestAFrontEndPushesNothingOutOfADevicesLife, which it can talk to as much as it likes.
func TestAFrontEndPushesNothingOutOfADevicesLife(t *testing.T) {
	rep := newReporter("", new(logs).log(), nil, func() {})
	rep.specfs(specfs.Event{Kind: specfs.EventOpen})
	rep.model("a flush has failed", devsw.EIO)
	stop := vhostuser.GetVringBase.String()
	for range 3 * lifeEvents {
		for _, e := range []vhostuser.Event{
			{Kind: vhostuser.EventConnect}, {Kind: vhostuser.EventFail, Err: devsw.EINVAL}, {Kind: vhostuser.EventSession},
			{Kind: vhostuser.EventIn, Message: stop}, {Kind: vhostuser.EventOut, Message: stop},
			{Kind: vhostuser.EventRefuse}, {Kind: vhostuser.EventShort, Err: devsw.EIO}, {Kind: vhostuser.EventDisconnect},
		} {
			rep.vhostuser(e)
		}
	}
	events := rep.life.Snapshot()
	if len(events) < 2+lifeEvents/4 || events[0].Kind != "open" || events[1].Note != "a flush has failed" {
		t.Errorf("%d events are left, from %v on", len(events), events[0])
	}
}

// TestTheTraceNamesWhatItIsAbout: the device that is served, and in its record the block or
// character device.
func TestTheTraceNamesWhatItIsAbout(t *testing.T) {
	var lines []string
	rep := newReporter("d", new(logs).log(), func(l Line) { lines = append(lines, fmt.Sprintf("%s %s %v", l.Device, l.From, l.What)) }, func() {})
	rep.specfs(specfs.Event{Mode: devsw.IFCHR, Dev: devsw.Makedev(5, 1), Kind: specfs.EventOpen})
	rep.specfs(specfs.Event{Mode: devsw.IFBLK, Dev: devsw.Makedev(14, 0), Kind: specfs.EventClose, Err: devsw.EIO})
	rep.vhostuser(vhostuser.Event{Kind: vhostuser.EventStop, Ring: 3})
	rep.command("revoke", devsw.EIO)
	want := []string{"d specfs character 5,1 open", "d specfs block 14,0 close: input/output error", "d vhost stop ring=3", "d ctl revoke: input/output error"}
	if got := strings.Join(lines, "\n"); got != strings.Join(want, "\n") {
		t.Errorf("the trace is\n%s", got)
	}
	events := rep.life.Snapshot()
	for i, want := range []string{" character 5,1 open", " block 14,0 close: input/output error", " stop queue=3", " ctl revoke: input/output error"} {
		if got := events[i].String(); !strings.HasSuffix(got, want) {
			t.Errorf("the record has %q, want %q", got, want)
		}
	}
}
