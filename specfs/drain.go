package specfs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"vdev/devsw"
)

// Operation is something in progress on a device.
type Operation struct {
	// What is "open", "read", "ioctl DIOCCACHESYNC" and so on, or "strategy" for
	// the transfers of one queue.
	What string
	// Count is 1, and for strategy the number of transfers (Counter.InProgress).
	Count int
	// Since is when it began. Transfers do not remember it: zero for strategy.
	Since time.Time
}

// DrainError says that operations did not end while they were waited for.
type DrainError struct {
	Mode    devsw.Mode  // of the device: block or character
	Dev     devsw.Dev   // its number
	Began   time.Time   // when the wait began; transfers in Waiting are older
	Waiting []Operation // the oldest first, transfers last
	Err     error       // the context's
}

// Error names the device and what is in progress, with its age.
func (e *DrainError) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%v device %v: drain: %v", e.Mode, e.Dev, e.Err)
	at := now()
	for i, o := range e.Waiting {
		if i == 0 {
			s.WriteString("; in progress: ")
		} else {
			s.WriteString(", ")
		}
		s.WriteString(o.What)
		if o.Count != 1 {
			fmt.Fprintf(&s, " ×%d", o.Count)
		}
		if o.Since.IsZero() {
			fmt.Fprintf(&s, " (more than %v)", at.Sub(e.Began).Round(time.Millisecond))
		} else {
			fmt.Fprintf(&s, " (%v)", at.Sub(o.Since).Round(time.Millisecond))
		}
	}
	return s.String()
}

// Unwrap gives the context's error.
func (e *DrainError) Unwrap() error { return e.Err }

// Drain waits until every operation on the device that is in progress at the
// time of the call has ended, those of other nodes and opens included. It closes
// nothing and cancels nothing: operations may begin meanwhile, and may be waited
// for too. Where ctx is done first it returns a *DrainError. NetBSD:
// spec_io_drain, which waits for ever.
func (n *Node) Drain(ctx context.Context) error {
	fs := n.fs
	began := now()
	fs.mu.Lock()
	sd := fs.devs[n.key]
	if sd == nil {
		fs.mu.Unlock()
		return nil
	}
	counts := sd.countsLocked()
	fs.mu.Unlock()
	for _, c := range counts {
		if err := c.Drain(ctx); err != nil {
			return fs.drainError(n.key, began, err)
		}
	}
	return nil
}

// drain waits until nothing is in progress on a device that is closing. The
// counts are closed, so those that have been seen empty stay so.
func drain(counts []*devsw.Localcount) {
	for _, c := range counts {
		// Background never ends, so this does not fail.
		_ = c.Drain(context.Background())
	}
}

// drain is drain as a step of the device's life.
func (fs *FS) drain(k devKey, counts []*devsw.Localcount) {
	fs.event(k, EventDrain, nil)
	drain(counts)
	fs.event(k, EventDrained, nil)
}

// countsLocked gives everything a drain of the device waits for.
func (sd *specdev) countsLocked() []*devsw.Localcount {
	counts := []*devsw.Localcount{&sd.opens}
	for n := range sd.nodes {
		counts = append(counts, &n.ops)
		for _, c := range n.counters {
			counts = append(counts, &c.count)
		}
	}
	return counts
}

func (fs *FS) drainError(key devKey, began time.Time, err error) error {
	return &DrainError{Mode: key.kind, Dev: key.dev, Began: began, Waiting: fs.InProgress(key.kind, key.dev), Err: err}
}

// InProgress lists the operations in progress on a device, the oldest first and
// transfers last.
func (fs *FS) InProgress(kind devsw.Mode, dev devsw.Dev) []Operation {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	sd := fs.devs[devKey{kind, dev}]
	if sd == nil {
		return nil
	}
	return sd.operationsLocked()
}

func (sd *specdev) operationsLocked() []Operation {
	var all []Operation
	for o := range sd.ops {
		all = append(all, Operation{What: o.what, Count: 1, Since: o.since})
	}
	slices.SortFunc(all, func(a, b Operation) int { return a.Since.Compare(b.Since) })
	for n := range sd.nodes {
		for _, c := range n.counters {
			if count := c.InProgress(); count > 0 {
				all = append(all, Operation{What: "strategy", Count: count})
			}
		}
	}
	return all
}
