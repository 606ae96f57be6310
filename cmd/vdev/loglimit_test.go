package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
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

// TestWhatIsSaidOfADeviceItselfGetsThrough what all the others say, and what others do to it, and
// has a bound as well.
func TestWhatIsSaidOfADeviceItselfGetsThrough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out lockedBuffer
		p := &printer{log: slog.New(slog.NewTextHandler(&out, nil)), limit: newLogLimit()}
		log := p.logs("d")
		flood := func() {
			for i := range 200 {
				d := p.logs(fmt.Sprint(i)).Found
				for j := range 100 {
					d.Warn(strings.Repeat("x", j))
				}
			}
			for range 100 {
				log.Found.Error("a message was refused")
			}
			out.take()
		}
		say := func() []string {
			log.Vital.Warn("a flush has failed")
			log.Vital.Error("a ring is broken")
			log.Vital.Error("the disk's server has lost writes")
			log.Vital.Warn("the disk's server is gone")
			return out.take()
		}
		flood()
		if lines := say(); len(lines) != 4 || !strings.Contains(lines[0], "device=d") {
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
			log.Vital.Warn(strings.Repeat("y", i))
			log.Vital.Warn(fmt.Sprintf("%d writes are late", i))
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
