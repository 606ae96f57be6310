package main

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// What a guest, a front-end or storage does can be worth a line of the log, and each of them can do
// it as often as it likes: a message that is refused costs a front-end 10 us. So lines of one kind
// are written at this rate at most, for each device; those of all devices together have a bound as
// well. What is left out is counted and told.
const (
	lineBurst    = 20   // lines of one kind and device that may come at once
	linesPerSec  = 1    // and those that may follow
	allBurst     = 1000 // likewise of all kinds and devices
	allPerSec    = 100
	maxLineKinds = 64 // of a device; those beyond count as one
	// how often it is told for one kind and device what was left out
	tellLinesLost = 10 * time.Second

	// What is said of a disk itself (that a flush has failed, that writes are lost, that a ring is
	// broken) must get through whatever others flood. So one line of a kind may come beyond those
	// of all devices each time so long has gone by, for this many kinds of a device.
	vitalPause    = time.Minute
	maxVitalKinds = 32
)

// bucket lets things pass at a rate.
type bucket struct {
	burst, perSec float64
	left          float64
	at            time.Time // when left was true; zero before the first
}

// refill brings left up to date.
func (b *bucket) refill(now time.Time) {
	if b.at.IsZero() {
		b.left = b.burst
	} else {
		b.left = min(b.left+now.Sub(b.at).Seconds()*b.perSec, b.burst)
	}
	b.at = now
}

// logLimit is what all devices' lines have together.
type logLimit struct {
	mu  sync.Mutex
	all bucket
}

func newLogLimit() *logLimit { return &logLimit{all: bucket{burst: allBurst, perSec: allPerSec}} }

// logger returns one for the lines of one device, which are written to log.
func (l *logLimit) logger(log *slog.Logger) *slog.Logger {
	return slog.New(&limitedHandler{
		Handler: log.Handler(), limit: l, maxKinds: maxLineKinds, kinds: make(map[string]*lineKind),
	})
}

// vital returns one for what is said of one device's disk itself.
func (l *logLimit) vital(log *slog.Logger) *slog.Logger {
	return slog.New(&limitedHandler{
		Handler: log.Handler(), limit: l, vital: true, maxKinds: maxVitalKinds, kinds: make(map[string]*lineKind),
	})
}

// limitedHandler leaves out lines that come too fast. Lines with the same message, but for the
// numbers in it, are of one kind.
type limitedHandler struct {
	slog.Handler
	limit    *logLimit
	vital    bool
	maxKinds int
	kinds    map[string]*lineKind // guarded by limit.mu
}

// lineKind is one kind of lines. limit.mu guards it.
type lineKind struct {
	bucket
	beyond  time.Time // when one came beyond those of all devices
	leftOut int       // since it was told last
}

// kindOf is what lines of one kind have in common.
func kindOf(msg string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, msg)
}

// Handle implements slog.Handler.
func (h *limitedHandler) Handle(ctx context.Context, r slog.Record) error {
	if !h.admit(r) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// admit tells whether r is to be written, and counts it where it is not.
func (h *limitedHandler) admit(r slog.Record) bool {
	h.limit.mu.Lock()
	defer h.limit.mu.Unlock()
	kind := kindOf(r.Message)
	k := h.kinds[kind]
	if k == nil && len(h.kinds) >= h.maxKinds {
		kind, r.Message = "others", "others"
		k = h.kinds[kind]
	}
	if k == nil {
		k = &lineKind{bucket: bucket{burst: lineBurst, perSec: linesPerSec}}
		h.kinds[kind] = k
	}
	now := time.Now()
	k.refill(now)
	h.limit.all.refill(now)
	if k.left >= 1 && h.limit.all.left >= 1 {
		k.left--
		h.limit.all.left--
		return true
	}
	if h.vital && (k.beyond.IsZero() || now.Sub(k.beyond) >= vitalPause) {
		k.beyond = now
		return true
	}
	if k.leftOut++; k.leftOut == 1 {
		time.AfterFunc(tellLinesLost, func() { h.tell(k, r.Level, r.Message) })
	}
	return false
}

// tell writes how many lines of a kind were left out.
func (h *limitedHandler) tell(k *lineKind, level slog.Level, msg string) {
	h.limit.mu.Lock()
	n := k.leftOut
	k.leftOut = 0
	h.limit.mu.Unlock()
	r := slog.NewRecord(time.Now(), level, "lines of the log were left out: they came too fast", 0)
	r.AddAttrs(slog.Int("lines", n), slog.String("like", msg))
	// A log that cannot be written has nowhere to say so.
	_ = h.Handler.Handle(context.Background(), r)
}

// WithAttrs implements slog.Handler.
func (h *limitedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.on(h.Handler.WithAttrs(attrs))
}

// WithGroup implements slog.Handler.
func (h *limitedHandler) WithGroup(name string) slog.Handler { return h.on(h.Handler.WithGroup(name)) }

// on is the same limit on another handler.
func (h *limitedHandler) on(other slog.Handler) slog.Handler {
	limited := *h
	limited.Handler = other
	return &limited
}
