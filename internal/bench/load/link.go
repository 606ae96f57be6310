package load

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"vdev/vhostuser/vhostusertest"
)

// link is a connection to a back-end.
type link struct {
	f    *vhostusertest.Frontend
	pid  int         // of the back-end; 0: not known
	stay func() bool // keeps the end of the context from hanging up
	// look returns an error where the load has stalled. It is called now and then.
	look func(now time.Time) error
}

// explained does something with the back-end at socket, and makes its error say which one it is, or
// that ctx has ended.
func explained(ctx context.Context, socket string, do func() error) error {
	err := do()
	if ctx.Err() != nil {
		err = context.Cause(ctx) // whatever else that has led to
	}
	if err != nil {
		return fmt.Errorf("%s: %w", socket, err)
	}
	return nil
}

// connect connects to the back-end at socket. When ctx ends, it hangs up.
func (l *link) connect(ctx context.Context, socket string, look func(now time.Time) error) error {
	f, err := vhostusertest.Dial(socket)
	if err == nil {
		l.use(ctx, f, look)
	}
	return err
}

// use makes f the connection. When ctx ends, it hangs up.
func (l *link) use(ctx context.Context, f *vhostusertest.Frontend, look func(now time.Time) error) {
	l.f, l.look, l.stay = f, look, context.AfterFunc(ctx, func() { f.Conn().Close() })
}

// hangUp ends the connection.
func (l *link) hangUp() {
	l.stay()
	l.f.Close()
}

// perhaps adds what may be the cause where a back-end does not answer as it should.
func perhaps(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w (does it serve another front-end?)", err)
	case errors.Is(err, vhostusertest.ErrHungUp):
		return fmt.Errorf("%w (does it serve another front-end, or is it no vhost-user back-end?)", err)
	}
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

// measure has the load warm up, counts for as long as is to be counted, and stops it.
func (l *link) measure(ctx context.Context, failed <-chan error, set func(state int32), j *Job, r *Result) error {
	if err := l.await(ctx, failed, nil, j.Warmup); err != nil {
		return err
	}
	before, own := usedBy(l.pid), usedBy(os.Getpid())
	start := time.Now()
	set(measuring)
	err := l.await(ctx, failed, nil, j.Length)
	set(stopping)
	r.Length = time.Since(start)
	r.Backend, r.Own = usedBy(l.pid).since(before), usedBy(os.Getpid()).since(own)
	return err
}

// watch has failed told when the back-end hangs up, which has nothing to say while its rings run,
// until unwatch is called.
func (l *link) watch(failed chan<- error) (unwatch func()) {
	conn, done := l.f.Conn(), make(chan struct{})
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

// await waits until done is closed, or, where that is nil, for that time. What fails or
// stalls, or the end of ctx, ends it with an error.
func (l *link) await(ctx context.Context, failed <-chan error, done <-chan struct{}, length time.Duration) error {
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
			if err := l.look(now); err != nil {
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
