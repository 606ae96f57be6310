package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"vdev/vhostuser/vhostusertest"
)

// Result is what a Job has measured in the time that counts.
type Result struct {
	Length   time.Duration
	Requests uint64
	Bytes    uint64
	// Latency has a request's time from when it was shown to the back-end until it was found
	// complete, in nanoseconds, for the requests that were shown in Length, also where they ended
	// later; NewLatency makes one.
	Latency *hdrhistogram.Histogram
	// Waited is, of the turns in which a queue found completions, the share in which it had looked
	// in vain before: from 0 to 1. Near 0 the load, and not the back-end, is the limit. NaN where
	// there was no such turn.
	Waited  float64
	Backend Usage // the back-end's process
	Own     Usage // this process
	Idle    Usage // the back-end's process, in the time of Job.Idle
	// PID is the back-end's process, which has this end's counterpart; 0 where it cannot be seen
	// from here.
	PID int
}

// IOPS is requests in a second.
func (r *Result) IOPS() float64 { return float64(r.Requests) / r.Length.Seconds() }

// BytesPerSecond is what it says.
func (r *Result) BytesPerSecond() float64 { return float64(r.Bytes) / r.Length.Seconds() }

// Percentile gives the latency that p per cent of the requests did not exceed.
func (r *Result) Percentile(p float64) time.Duration {
	return time.Duration(r.Latency.ValueAtQuantile(p))
}

// NewLatency makes a histogram for Result.Latency: from a nanosecond to a minute (its
// HighestTrackableValue), to three digits.
func NewLatency() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency, 3) }

// maxLatency is what a latency that is longer counts as.
const maxLatency = int64(time.Minute)

// ErrNoRequest is wrapped by Run's error where no request was completed: on a machine that is busy
// with something else, or where the back-end takes longer for a request than the measurement lasts.
var ErrNoRequest = errors.New("no request was completed")

// patience is how long a back-end may take to complete a request.
const patience = 10 * time.Second

// idleAfter is when a back-end counts as idle, from its last request on.
const idleAfter = time.Second

// Run does a Job on the back-end that listens at socket and must serve nobody else. It leaves the
// back-end as it was, but for what was written. The end of ctx ends Run early, with ctx's error.
// Errors name what is wrong: with the Job, with the connection, with an answer.
func Run(ctx context.Context, socket string, j Job) (Result, error) {
	if err := j.check(); err != nil {
		return Result{}, err
	}
	var r Result
	err := with(ctx, socket, func(d *disk) (err error) {
		if err := d.start(ctx, &j); err != nil {
			return err
		}
		r, err = d.run(ctx, &j)
		return err
	})
	return r, err
}

// Check looks whether t can do jobs, before any of them is begun. It uses one connection, and moves
// no data. pid is Result.PID. Where t is no back-end (Target.Do), Check looks only at the Jobs
// themselves, and pid is 0. The error names what is wrong with the first Job that cannot be done,
// or with the connection.
func Check(ctx context.Context, t Target, jobs []Job) (pid int, err error) {
	for i := range jobs {
		if err := jobs[i].check(); err != nil {
			return 0, err
		}
	}
	if t.Do != nil {
		return 0, nil
	}
	err = with(ctx, t.Socket, func(d *disk) error {
		pid = d.pid
		for i := range jobs {
			if err := errors.Join(d.fits(&jobs[i]), d.binds(&jobs[i])); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		err = fmt.Errorf("%s: %w", t.Name, err)
	}
	return pid, err
}

func (d *disk) run(ctx context.Context, j *Job) (r Result, err error) {
	if len(j.BackendCPUs) > 0 {
		bound, bindErr := bind(d.pid, j.BackendCPUs)
		if bindErr != nil {
			return r, bindErr
		}
		defer func() { err = errors.Join(err, bound.undo()) }()
	}
	var ready, threads sync.WaitGroup
	begin := make(chan struct{})
	failed := make(chan error, len(d.queues)+1)
	unwatch := d.watch(failed)
	defer unwatch()
	for i, q := range d.queues {
		var cpus []int
		if len(j.CPUs) > 0 {
			cpus = j.CPUs[i%len(j.CPUs):][:1]
		}
		ready.Add(1)
		threads.Go(func() {
			if err := q.run(cpus, ready.Done, begin); err != nil {
				failed <- err
			}
		})
	}
	set := func(state int32) {
		for _, q := range d.queues {
			q.set(state)
		}
	}
	filled, drained := closedAfter(ready.Wait), closedAfter(threads.Wait)
	// The threads use guest memory: they end before it does.
	defer func() {
		set(aborting)
		<-drained
	}()
	err = d.await(ctx, failed, filled, 0)
	if j.Length == 0 {
		set(stopping) // before there is any load
	}
	close(begin)
	if err == nil && j.Length > 0 {
		err = d.measure(ctx, failed, set, j, &r)
	}
	if err != nil {
		return r, err
	}
	if err := d.await(ctx, failed, drained, 0); err != nil {
		return r, err
	}
	if j.Idle > 0 {
		if err := d.await(ctx, failed, nil, idleAfter); err != nil {
			return r, err
		}
		before := usedBy(d.pid)
		if err := d.await(ctx, failed, nil, j.Idle); err != nil {
			return r, err
		}
		r.Idle = usedBy(d.pid).since(before)
	}
	unwatch()
	if err := d.stop(); err != nil {
		return r, err
	}
	d.add(&r, j)
	if r.Requests == 0 && j.Length > 0 {
		return r, fmt.Errorf("%w in the %v that count: a longer length is needed", ErrNoRequest, j.Length)
	}
	return r, nil
}

// measure has the queues warm up, counts for as long as is to be counted, and stops them.
func (d *disk) measure(ctx context.Context, failed <-chan error, set func(state int32), j *Job, r *Result) error {
	if err := d.await(ctx, failed, nil, j.Warmup); err != nil {
		return err
	}
	before, own := usedBy(d.pid), usedBy(os.Getpid())
	start := time.Now()
	set(measuring)
	err := d.await(ctx, failed, nil, j.Length)
	set(stopping)
	r.Length = time.Since(start)
	r.Backend, r.Own = usedBy(d.pid).since(before), usedBy(os.Getpid()).since(own)
	return err
}

// closedAfter returns a channel that is closed when wait returns.
func closedAfter(wait func()) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		wait()
	}()
	return done
}

// watch has failed told when the back-end hangs up, which has nothing to say while its rings run,
// until unwatch is called.
func (d *disk) watch(failed chan<- error) (unwatch func()) {
	conn, done := d.f.Conn(), make(chan struct{})
	conn.SetReadDeadline(time.Time{})
	go func() {
		defer close(done)
		_, err := conn.Read(make([]byte, 1))
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded): // that is unwatch
		case err == nil:
			failed <- errors.New("the back-end has sent a message that it was not asked for")
		default:
			failed <- vhostusertest.ErrHungUp
		}
	}()
	return func() {
		conn.SetReadDeadline(time.Unix(1, 0))
		<-done
	}
}

// stalled returns an error where a queue has broken, or completed nothing of what it was asked for
// since too long. It is called now and then.
func (d *disk) stalled(now time.Time) error {
	for _, q := range d.queues {
		used := q.usedIdx.Load()
		switch idle := uint16(q.avail.Load()>>16) == used; {
		case q.ring.Failed():
			return fmt.Errorf("queue %d: the back-end has given it up as broken", q.index)
		case idle || used != q.seen || q.since.IsZero():
			q.seen, q.since = used, now
		case now.Sub(q.since) >= patience:
			return fmt.Errorf("queue %d: no request was completed for %v", q.index, patience)
		}
	}
	return nil
}

// await waits until done is closed, or, where that is nil, for that time. A queue that fails or
// stalls, or the end of ctx, ends it with an error.
func (d *disk) await(ctx context.Context, failed <-chan error, done <-chan struct{}, length time.Duration) error {
	var timeout <-chan time.Time
	if done == nil {
		timer := time.NewTimer(length)
		defer timer.Stop()
		timeout = timer.C
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-timeout:
			waiting = false
		case now := <-tick.C:
			if err := d.stalled(now); err != nil {
				return err
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	// Who is done may have failed.
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// add adds up what the queues have counted.
func (d *disk) add(r *Result, j *Job) {
	r.PID = d.pid
	r.Latency = NewLatency()
	var turns, waited uint64
	for _, q := range d.queues {
		r.Requests += q.done
		r.Latency.Merge(q.hist)
		turns += q.turns
		waited += q.waited
	}
	r.Bytes = r.Requests * uint64(j.BlockSize)
	r.Waited = float64(waited) / float64(turns)
}
