package scale

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/test/halt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// config builds vdev.
func config(t *testing.T) Config {
	t.Helper()
	c := Config{VDev: filepath.Join(t.TempDir(), "vdev"), Dir: t.TempDir()}
	if out, err := exec.Command("go", "build", "-o", c.VDev, "vdev/cmd/vdev").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return c
}

func TestEverythingIsMeasured(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures for many seconds")
	}
	c := config(t)
	command := []string{c.VDev, "blk", "--fd", "3", "--driver", "md,size=1M"}

	idle, err := MeasureIdle(t.Context(), c, "null,size=1G", 20, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// The socket, the connection, guest memory, three descriptors of the ring and the back-end's
	// channel, for each.
	if idle.Private < idle.Anonymous || idle.Anonymous <= 0 || idle.Descriptors < 7*20 || idle.Threads < 2 {
		t.Errorf("idle: %+v", idle)
	}
	if d, err := MeasureStart(t.Context(), c, command); err != nil || d <= 0 {
		t.Errorf("start: %v, %v", d, err)
	}
	for _, depth := range []int{0, 128} {
		if all, err := MeasureStop(t.Context(), c, command, depth, 3); err != nil || len(all) != 3 {
			t.Errorf("stop at depth %d: %v, %v", depth, all, err)
		}
		if all, err := MeasureStopAll(t.Context(), c, "md,size=1M", 10, depth); err != nil || len(all) != 10 || all[0] <= 0 || all[9] < all[0] {
			t.Errorf("stop of all at depth %d: %v, %v", depth, all, err)
		}
	}
	// A terabyte, of which nothing is touched: what is private then is the message's own.
	if h, err := MeasureHuge(t.Context(), c, command, 1<<40); err != nil || h.Added <= 0 || h.Private > 1<<20 {
		t.Errorf("huge: %+v, %v", h, err)
	}
}

// TestADeepQueueDoesNotStarveOthers counts requests, and no time.
func TestADeepQueueDoesNotStarveOthers(t *testing.T) {
	b, err := MeasureBusy(t.Context(), config(t), "null,size=1G", 50, 128, 200*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// One look at a ring is at most 128 requests.
	if b.Least == 0 || b.Most > 3*b.Least || b.First > 3*128*b.Least {
		t.Errorf("%+v", b)
	}
}

// TestTheEndOfTheContextEndsIt before a hundred hours have passed, whatever it waits for.
func TestTheEndOfTheContextEndsIt(t *testing.T) {
	c := config(t)
	never := filepath.Join(t.TempDir(), "never")
	if err := os.WriteFile(never, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough")
	for name, measure := range map[string]func(context.Context) error{
		"idle": func(ctx context.Context) error {
			_, err := MeasureIdle(ctx, c, "null,size=1G", 2, 100*time.Hour)
			return err
		},
		"busy": func(ctx context.Context) error {
			_, err := MeasureBusy(ctx, c, "null,size=1G", 2, 1, 100*time.Hour)
			return err
		},
		"stop": func(ctx context.Context) error {
			_, err := MeasureStop(ctx, c, []string{c.VDev, "blk", "--fd", "3", "--driver", "null,size=1G"}, 0, 1<<40)
			return err
		},
		"connecting": func(ctx context.Context) error {
			_, err := MeasureStopAll(ctx, Config{VDev: never, Dir: c.Dir}, "null,size=1G", 1, 0)
			return err
		},
		"read": func(ctx context.Context) error {
			_, err := MeasureStart(ctx, c, []string{c.VDev, "blk", "--fd", "3", "--driver", "fault,rule=hang:read,lower=null,size=1G"})
			return err
		},
		"answer at the start": func(ctx context.Context) error {
			_, err := MeasureStart(ctx, c, []string{never})
			return err
		},
		"answer, and an end": func(ctx context.Context) error {
			_, err := MeasureHuge(ctx, c, []string{"sh", "-c", "trap '' TERM; while :; do sleep 0.01; done"}, 1<<40)
			return err
		},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(100*time.Millisecond, func() { cancel(enough) })
		if err := measure(ctx); !errors.Is(err, enough) {
			t.Errorf("%s: %v", name, err)
		}
		cancel(nil)
	}
}

// TestTheEndOfTheContextIsHeardBesideAMuteBackEnd looks at what a guest is told: that it has given
// up by itself, after a while, does not show in what is measured.
func TestTheEndOfTheContextIsHeardBesideAMuteBackEnd(t *testing.T) {
	c := config(t)
	enough := errors.New("enough")
	for name, mute := range map[string]struct {
		wait func(context.Context, *guest) error
		want error
	}{
		"read": {func(ctx context.Context, g *guest) error { return g.read(ctx) }, enough},
		"stop": {func(_ context.Context, g *guest) error { return g.ring.Stop() }, net.ErrClosed},
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		f, err := c.newFleet(ctx, -1, 1, "null,size=1G", func(int) int { return 1 })
		if err != nil {
			t.Fatal(err)
		}
		// Not a read that hangs: vdev would end that with the connection, and wake the guest.
		halt.Process(t, f.p.PID())
		time.AfterFunc(100*time.Millisecond, func() { cancel(enough) })
		if err := mute.wait(ctx, f.guests[0]); !errors.Is(err, mute.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := f.close(ctx, nil); !errors.Is(err, enough) {
			t.Errorf("%s: the end: %v", name, err)
		}
	}
}

func TestABackEndThatDoesNotStartIsNamed(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	_, err := MeasureStart(t.Context(), c, []string{"sh", "-c", "echo no such disk; exit 3"})
	if err == nil || !strings.Contains(err.Error(), "no such disk") {
		t.Errorf("error %v", err)
	}
}
