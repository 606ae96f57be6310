package load

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Result is what came of a Job, of the time that was counted.
type Result struct {
	Length   time.Duration
	Requests uint64
	Writes   uint64 // of them
	Bytes    uint64
	// Latency has a request's time from when it was shown to the back-end until it was found complete, in nanoseconds.
	Latency *hdrhistogram.Histogram
	// Waited is in how many of the turns in which a queue found completions it had looked in vain before, from 0 to 1. Near 0 the
	// load, and not the back-end, is the limit.
	Waited  float64
	Backend Usage // the back-end's process
	Own     Usage // this process
	Idle    Usage // the back-end's process, in the time of Job.Idle
}

// IOPS is requests in a second.
func (r *Result) IOPS() float64 { return float64(r.Requests) / r.Length.Seconds() }

// BytesPerSecond is what it says.
func (r *Result) BytesPerSecond() float64 { return float64(r.Bytes) / r.Length.Seconds() }

// Percentile gives the latency that p per cent of the requests did not exceed.
func (r *Result) Percentile(p float64) time.Duration {
	return time.Duration(r.Latency.ValueAtQuantile(p))
}

// endPatience is how long what is in flight may take to end, when the load does.
const endPatience = 10 * time.Second

// idleAfter is when a back-end counts as idle, from its last request on.
const idleAfter = time.Second

// Run does a Job on the back-end that listens at socket, which must serve nobody else, and leaves it as it was but for what was
// written. ctx's end ends it early, with its error. Errors name what is wrong: with the Job, with the connection, with an answer.
func Run(ctx context.Context, socket string, j Job) (Result, error) {
	if err := j.check(); err != nil {
		return Result{}, err
	}
	d, err := connect(socket, &j)
	if err != nil {
		return Result{}, fmt.Errorf("%s: %w", socket, err)
	}
	defer d.close()
	r, err := d.run(ctx, &j)
	if err != nil {
		return r, fmt.Errorf("%s: %w", socket, err)
	}
	return r, nil
}

func (d *disk) run(ctx context.Context, j *Job) (r Result, err error) {
	var ready, threads sync.WaitGroup
	begin := make(chan struct{})
	failed := make(chan error, len(d.queues))
	for i, q := range d.queues {
		cpu := -1
		if len(j.CPUs) > 0 {
			cpu = j.CPUs[i%len(j.CPUs)]
		}
		ready.Add(1)
		threads.Go(func() {
			if err := q.run(cpu, ready.Done, begin); err != nil {
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
	err = await(ctx, failed, filled, 0)
	close(begin)
	if err == nil {
		err = await(ctx, failed, nil, j.Warmup)
	}
	if err != nil {
		return r, err
	}
	before, own := usageOf(d.pid), usageOf(0)
	start := time.Now()
	set(measuring)
	err = await(ctx, failed, nil, j.Length)
	set(stopping)
	r.Length = time.Since(start)
	r.Backend, r.Own = usageOf(d.pid).since(before), usageOf(0).since(own)
	if err != nil {
		return r, err
	}
	ending, cancel := context.WithTimeoutCause(ctx, endPatience, fmt.Errorf("requests in flight were not answered within %v", endPatience))
	defer cancel()
	if err := await(ending, failed, drained, 0); err != nil {
		return r, err
	}
	if j.Idle > 0 {
		if err := await(ctx, failed, nil, idleAfter); err != nil {
			return r, err
		}
		before = usageOf(d.pid)
		if err := await(ctx, failed, nil, j.Idle); err != nil {
			return r, err
		}
		r.Idle = usageOf(d.pid).since(before)
	}
	if err := d.stop(); err != nil {
		return r, err
	}
	d.add(&r, j)
	return r, nil
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

// await waits until done is closed, or, where that is nil, for that time. A queue that fails, or the end of ctx, ends it with an error.
func await(ctx context.Context, failed <-chan error, done <-chan struct{}, length time.Duration) error {
	var timeout <-chan time.Time
	if done == nil {
		timer := time.NewTimer(length)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-done:
	case <-timeout:
	case err := <-failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
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
	r.Latency = hdrhistogram.New(1, maxLatency, latencyDigits)
	var turns, waited uint64
	for _, q := range d.queues {
		r.Requests += q.done
		r.Writes += q.written
		r.Latency.Merge(q.hist)
		turns += q.turns
		waited += q.waited
	}
	r.Bytes = r.Requests * uint64(j.BlockSize)
	if turns > 0 {
		r.Waited = float64(waited) / float64(turns)
	}
}
