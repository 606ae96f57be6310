package main

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/nbd"
	"vdev/internal/spec"
	"vdev/specfs"
	"vdev/vhostuser"
)

// lockedBuffer is written to by timers, too.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// take returns the lines that were written since it was called last.
func (l *lockedBuffer) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := strings.SplitAfter(l.b.String(), "\n")
	l.b.Reset()
	return lines[:len(lines)-1]
}

func TestLinesThatComeTooFastAreLeftOutAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		limit := newLogLimit()
		log := slog.New(slog.NewTextHandler(&out, nil))
		a := limit.logger(log.With("device", "a"))
		b := limit.logger(log.With("device", "b"))
		for range 5000 {
			a.Error("a message was refused", "cause", "x")
		}
		lines := out.take()
		if len(lines) != lineBurst {
			t.Errorf("%d lines, want %d", len(lines), lineBurst)
		}
		// Other kinds, and other devices, are as they were.
		a.Error("a ring is broken")
		b.With("ring", 1).Error("a message was refused")
		if lines := out.take(); len(lines) != 2 || !strings.Contains(lines[1], "device=b ring=1") {
			t.Errorf("%q, want a line of another kind and one of another device", lines)
		}
		time.Sleep(tellLinesLost + time.Second)
		synctest.Wait()
		lines = out.take()
		if len(lines) != 1 || !strings.Contains(lines[0], "lines=4980") || !strings.Contains(lines[0], `like="a message was refused"`) {
			t.Errorf("%q, want what was left out", lines)
		}
		a.Error("a message was refused")
		if lines := out.take(); len(lines) != 1 {
			t.Errorf("%q, want that it goes on", lines)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if lines := out.take(); len(lines) != 0 {
			t.Errorf("%q though nothing was left out", lines)
		}
		// A flood that lasts costs as much as the rate.
		for range 100 * 60 {
			a.Error("a message was refused")
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(out.take()); n > lineBurst+60*linesPerSec+60/10+1 {
			t.Errorf("%d lines in a minute", n)
		}
		time.Sleep(time.Hour)
		out.take()
		// Many devices, and messages that are never the same.
		for i := range 200 {
			d := limit.logger(log.With("device", i))
			for j := range 100 {
				d.Warn(strings.Repeat("x", j))
			}
		}
		if n := len(out.take()); n != allBurst {
			t.Errorf("%d lines of many devices, want %d", n, allBurst)
		}
		time.Sleep(time.Hour)
	})
}

func TestTheKindsOfLinesHaveABound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		log := newLogLimit().logger(slog.New(slog.NewTextHandler(&out, nil)))
		for i := range 300 {
			log.Warn(strings.Repeat("x", i))
		}
		if n := len(log.Handler().(*limitedHandler).kinds); n > maxLineKinds+1 {
			t.Errorf("%d kinds are kept, want %d and the others", n, maxLineKinds)
		}
		if n := len(out.take()); n != maxLineKinds+lineBurst {
			t.Errorf("%d lines, want %d", n, maxLineKinds+lineBurst)
		}
		time.Sleep(time.Hour)
	})
}

// TestWhatIsSaidOfADiskGetsThrough what all the others say, and its own front-end, and has a bound as
// well.
func TestWhatIsSaidOfADiskGetsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		limit := newLogLimit()
		log := slog.New(slog.NewTextHandler(&out, nil))
		rep := newReporter(spec.Config{}, "d", time.Now(), log.With("device", "d"), limit, nil, newLife())
		flood := func() {
			for i := range 200 {
				d := limit.logger(log.With("device", i))
				for j := range 100 {
					d.Warn(strings.Repeat("x", j))
				}
			}
			for range 100 {
				rep.vhostuser(vhostuser.Event{Kind: vhostuser.EventFail, Err: devsw.EINVAL})
			}
			out.take()
		}
		say := func() []string {
			rep.virtioblk("a flush has failed", devsw.EIO)
			rep.vhostuser(vhostuser.Event{Kind: vhostuser.EventBreak, Err: devsw.EINVAL})
			rep.server(&nbd.LostError{Writes: 1})
			rep.server(errors.New("connection refused"))
			return out.take()
		}
		flood()
		if lines := say(); len(lines) != 4 {
			t.Errorf("%d lines, want 4: %q", len(lines), lines)
		}
		for range 100 {
			if lines := say(); len(lines) != 0 {
				t.Fatalf("and then %q", lines)
			}
		}
		time.Sleep(vitalPause)
		flood()
		if lines := say(); len(lines) != 4 {
			t.Errorf("a minute later %d lines, want 4: %q", len(lines), lines)
		}
		// However many kinds there are.
		for i := range 1000 {
			rep.virtioblk(strings.Repeat("y", i), nil)
			rep.virtioblk(fmt.Sprintf("%d writes are late", i), nil)
		}
		if n := len(out.take()); n == 0 || n > maxVitalKinds+1 {
			t.Errorf("%d lines of a thousand kinds, want at most %d", n, maxVitalKinds+1)
		}
		time.Sleep(time.Hour)
	})
}

func TestLinesThatDifferInNumbersAreOfOneKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		log := newLogLimit().logger(slog.New(slog.NewTextHandler(&out, nil)))
		for i := range 100 {
			log.Warn(fmt.Sprintf("%d reads are late", i))
		}
		if n := len(out.take()); n != lineBurst {
			t.Errorf("%d lines, want %d", n, lineBurst)
		}
		time.Sleep(time.Hour)
	})
}

// TestAFrontEndPushesNothingOutOfADevicesLife, which it can talk to as much as it likes.
func TestAFrontEndPushesNothingOutOfADevicesLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		rep := newReporter(spec.Config{}, "", time.Now(), slog.New(slog.NewTextHandler(&out, nil)), newLogLimit(), nil, newLife())
		rep.specfs(specfs.Event{Kind: specfs.EventOpen})
		rep.virtioblk("a flush has failed", devsw.EIO)
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
		time.Sleep(time.Hour)
	})
}
