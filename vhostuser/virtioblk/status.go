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
	// Oldest is by ring how long the oldest request in flight has been so, to a few batches. It is
	// 0 without one, and where the ring's reactor has not answered in time.
	Oldest []time.Duration
	// Fenced is how many reads and writes storage has not returned, that were fenced from the
	// guest's memory and that the next start waits for.
	Fenced int
	// Failures are those since the Device was made.
	Failures Failures
	// Operations are the I/O sections in progress, the oldest first.
	Operations []specfs.Operation
}

// statusWait is how long a reactor has time to answer.
const statusWait = time.Second

// Status tells what the device is doing. It waits for the queues' reactors to answer, a second at
// most, and for nothing else. Any goroutine.
func (d *Device) Status() Status {
	s := Status{Dev: d.config.Dev, State: StateClosed, Fenced: d.lost.Count(), Oldest: make([]time.Duration, d.config.NumQueues)}
	s.Lost, s.Cache = d.memory.status()
	s.Stable = d.stable.Load()
	d.mu.Lock()
	s.Disk, s.Failures = d.info, d.failures
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
	type age struct {
		ring   int
		oldest time.Duration
	}
	asked := len(d.queues)
	answers := make(chan age, asked)
	for q := range d.queues {
		q.vq.Post(func() { answers <- age{q.vq.Index(), q.oldest()} })
	}
	d.mu.Unlock()
	for _, sd := range d.config.FS.Devices() {
		if sd.Mode == devsw.IFBLK && sd.Dev == d.config.Dev {
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
		case a := <-answers:
			s.Oldest[a.ring] = a.oldest
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

// oldest tells how long the oldest request in flight has been so. On the reactor.
func (q *queue) oldest() (age time.Duration) {
	now := q.loop.Now()
	for _, r := range q.requests {
		if r.status != nil {
			age = max(age, now-r.began)
		}
	}
	return age
}
