package virtioblk

import (
	"time"

	"vdev/devsw"
	"vdev/specfs"
)

// State is how the block device stands to its Device.
type State string

// The states of a Device.
const (
	StateClosed  State = "closed"  // no ring is started
	StateOpening State = "opening" // requests wait in their rings
	StateOpen    State = "open"
	StateFailed  State = "failed"  // could not be opened; requests fail until the next start
	StateClosing State = "closing" // cancel, drain, close
)

// Status is what a Device is doing at the moment.
type Status struct {
	Dev   devsw.Dev      // Config.Dev
	Disk  devsw.DiskInfo // as the front-end is told of it: storage is not asked
	State State
	Err   error // of StateFailed: why it could not be opened
	// Lost is what the disk has lost: with what a flush has failed, for one.
	Lost devsw.DiskState
	// Cache says what the guest driver takes the disk's cache for: "writeback", "writethrough", or
	// "unknown", while the first ring has not started, and where the guest driver began elsewhere.
	// Stable: each write is made stable before it is answered.
	Cache  string
	Stable bool
	// CancelAt is when requests in flight will be cancelled, or have been: the deadline of the
	// stop that the front-end waits for. Zero without one.
	CancelAt time.Time
	Queues   []QueueStatus // by Index, from 0 on; those that are not started as well
	// Fenced is how many reads and writes storage has not returned, that were fenced from the
	// guest's memory and that the next start waits for.
	Fenced int
	// Failures are those since the Device was made.
	Failures Failures
	// Operations are the I/O sections in progress, the oldest first.
	Operations []specfs.Operation
}

// QueueStatus is what a queue is doing.
type QueueStatus struct {
	Index   int  // from 0 on
	Started bool // from StartQueue on, until it has stopped
	// Suspended is how many requests the last stop left in the in-flight region. Of a queue that
	// is started it is 0.
	Suspended int

	// Of a queue that is started:

	Resubmitted int // found in the in-flight region by the start
	InFlight    int // fetched and not ended, those Kept included
	// suspended, until the device is open and the ring enabled, or stopped
	Kept int
	// how long the oldest of those in flight has been so, to a few batches
	Oldest time.Duration
	// its reactor has not answered in time: InFlight, Kept and Oldest are not known
	Late bool
}

// statusWait is how long a reactor has time to answer.
const statusWait = time.Second

// Status tells what the device is doing. It waits for the queues' reactors to answer, a second at
// most, and for nothing else. Any goroutine.
func (d *Device) Status() Status {
	s := Status{Dev: d.dev, State: StateClosed, Fenced: d.lost.Count(), Queues: make([]QueueStatus, d.numQueues)}
	s.Lost, s.Cache = d.memory.status()
	s.Stable = d.stable.Load()
	s.Failures = d.failures.get()
	d.mu.Lock()
	s.Disk = d.info
	for i := range s.Queues {
		s.Queues[i] = QueueStatus{Index: i, Suspended: d.suspended[i]}
	}
	switch o := d.open; {
	case o == nil:
	case !ended(o.Began()):
		s.State = StateOpening
	case o.Err() != nil:
		s.State, s.Err = StateFailed, o.Err()
	default:
		s.State = StateOpen
	}
	s.CancelAt = d.stop.cancelAt
	asked := len(d.queues)
	answers := make(chan QueueStatus, asked)
	for q := range d.queues {
		i := q.vq.Index()
		s.Queues[i] = QueueStatus{Index: i, Started: true, Resubmitted: q.vq.Resubmitted(), Late: true}
		q.vq.Post(func() { answers <- q.status() })
	}
	d.mu.Unlock()
	for _, sd := range d.fs.Devices() {
		if sd.Mode == devsw.IFBLK && sd.Dev == d.dev {
			s.Operations = sd.Operations
			if sd.Closing {
				s.State = StateClosing
			}
		}
	}

	timeout := time.NewTimer(statusWait)
	defer timeout.Stop()
	for range asked {
		select {
		case q := <-answers:
			s.Queues[q.Index] = q
		case <-timeout.C:
			return s
		}
	}
	return s
}

func ended(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// status tells what the queue is doing. On the reactor.
func (q *queue) status() QueueStatus {
	s := QueueStatus{Index: q.vq.Index(), Started: true, Resubmitted: q.vq.Resubmitted(), Kept: q.vq.Suspended()}
	s.InFlight = q.vq.InFlight() + s.Kept
	now := q.loop.Now()
	for _, r := range q.requests {
		if r.status != nil {
			s.Oldest = max(s.Oldest, now-r.began)
		}
	}
	return s
}
