package virtioblk

import (
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/specfs"
)

// traced is what the trace hooks of a device's requests were told, each with the step of the
// device's life that came before.
type traced struct {
	w  atomic.Pointer[bench]
	mu sync.Mutex
	of []tracedRequest
}

type tracedRequest struct {
	Request
	behind specfs.Kind
}

func (l *traced) add(r Request) {
	w := l.w.Load()
	w.trace.Lock()
	behind := w.trace.events[len(w.trace.events)-1].Kind
	w.trace.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.of = append(l.of, tracedRequest{r, behind})
}

// take gives what was traced until now.
func (l *traced) take() []tracedRequest {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.of)
}

// TestTheTraceTellsOfNoTransferBehindTheDrain: what storage has made of one is told before the
// drain is over. That the guest is told later is no I/O.
func TestTheTraceTellsOfNoTransferBehindTheDrain(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		var l traced
		f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:read+write")
		w, _ := newSuspendBench(t, mode, 1, f.disk, noInflight, func(c *benchConfig) {
			c.Trace, c.CancelAfter = l.add, time.Millisecond
		})
		l.w.Store(w)
		w.request(0, tIn)
		w.request(0, tOut)
		f.waitHeld(2)
		w.stopRings()
		w.close()
		cancelled, answered := 0, 0
		for _, r := range l.take() {
			switch {
			case r.Cancelled:
				cancelled++
				if slices.Contains([]specfs.Kind{specfs.EventDrained, specfs.EventClose, specfs.EventClosed}, r.behind) {
					t.Errorf("%v, behind %v", r.Request, r.behind)
				}
			case r.Answered:
				answered++
			default:
				t.Errorf("%v, behind %v", r.Request, r.behind)
			}
		}
		if cancelled != 2 || answered != 2 {
			t.Errorf("%d transfers are told to be cancelled, and %d to be answered, want 2 and 2", cancelled, answered)
		}
	})
}

// TestATransferThatEndsInTheDrainIsTracedThere, although its reactor is busy with something else
// until the device is closed.
func TestATransferThatEndsInTheDrainIsTracedThere(t *testing.T) {
	var l traced
	d := &keeper{hold: true, wrote: map[int64][]byte{}}
	w := newBench(t, reactor.ModeURing, 1, d.disk, func(c *benchConfig) {
		info := c.Info
		c.Info = func() (devsw.DiskInfo, error) {
			i, err := info()
			i.Pinned = true // it is not fenced, however long this takes
			return i, err
		}
		c.Trace = l.add
	})
	l.w.Store(w)
	w.start(w.all())
	w.write(0, 1, 1)
	d.await(t, 1)
	q := w.dev.startedQueues()[0]
	stopped := make(chan error, 1)
	go func() { stopped <- w.rings[0].Stop() }()
	reached := func(k specfs.Kind) func() bool { return func() bool { return slices.Contains(w.order(), k) } }
	w.until("the device is drained", reached(specfs.EventDrain))
	busy := make(chan struct{})
	q.vq.Post(func() { <-busy })
	d.release()
	w.until("the device is closed", reached(specfs.EventClosed))
	close(busy)
	w.check(<-stopped)
	if got := l.take(); len(got) != 1 || got[0].behind != specfs.EventDrain || got[0].Status != statusOK {
		t.Errorf("%+v is told, want one write behind %v", got, specfs.EventDrain)
	}
}
