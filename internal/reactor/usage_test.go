package reactor

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// TestUsageIsTheAverageOfLate: after some seconds of the same it is that, however often it was counted, and when nothing is counted any
// more it fades to 1/e in a second.
func TestUsageIsTheAverageOfLate(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u usage
		at := time.Duration(rapid.Int64Range(0, int64(1000*time.Hour)).Draw(t, "begin"))
		u.set(at, rapid.Float64Range(0, 1).Draw(t, "before"))
		share := rapid.Float64Range(0, 1).Draw(t, "share")
		for end := at + 10*time.Second; at < end; {
			at += time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(time.Second)).Draw(t, "step"))
			u.count(at, share)
		}
		if got := u.now(at); math.Abs(got-share) > 1e-3 {
			t.Fatalf("after ten seconds of %v it is %v", share, got)
		}
		if got := u.now(at + time.Second); math.Abs(got-share/math.E) > 1e-3 {
			t.Fatalf("a second after %v it is %v", share, got)
		}
	})
}

func TestUsageThatIsExpectedIsNeverMoreThanAll(t *testing.T) {
	var u usage
	for range 10 {
		u.expect(time.Second, newSource)
	}
	if got := u.now(time.Second); got != 1 {
		t.Errorf("it is %v", got)
	}
}

// TestPickAvoidsTheBusyReactor, though the other one has many Sources that are idle.
func TestPickAvoidsTheBusyReactor(t *testing.T) {
	for _, mode := range []Mode{ModeURing, ModeThreads} {
		t.Run(string(mode), func(t *testing.T) {
			p := newPoolOf(t, Config{Mode: mode, Reactors: 2})
			busy, idle := p.reactors[0], p.reactors[1]
			for range 10 {
				addOne(t, idle, false)
			}
			if got := p.Pick(); got != busy {
				t.Error("while both are idle, not the one without Sources was picked")
			}
			addOne(t, busy, true)
			for p.Pick() != idle {
				time.Sleep(time.Millisecond)
			}
			for busy.usage.now(time.Since(epoch)) < 0.9 || idle.usage.now(time.Since(epoch)) > 0.1 {
				time.Sleep(time.Millisecond)
			}
			if p.Pick() != idle {
				t.Error("the busy one was picked")
			}
		})
	}
}
