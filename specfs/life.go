package specfs

import (
	"context"
	"runtime"
	"sync"
	"time"

	"vdev/devsw"
)

// Lives is what one user of a device makes of it who opens it, has it closed, and opens it again:
// a virtual disk, or a port of a console. Each time is a Life. A Life does all that waits in the
// background, so that its user never waits longer than it likes: for the close before, for d_open,
// and for cancel, drain and close.
//
// Set the fields before the first Begin, and leave them. The functions may be nil. They are called
// on goroutines of the Life with no lock held, and may wait, but the Life waits with them. Ending
// may be called while the open is still in progress; Ended comes last, when the others have
// returned. vdev's own: NetBSD's users of a device are processes, which may sleep.
type Lives struct {
	FS   *FS
	Mode devsw.Mode // IFBLK or IFCHR
	Dev  devsw.Dev

	// Flag gives the flags for d_open. It is called once for each Life that opens the device,
	// right before, when all that a Life of these waits for has ended. nil: FREAD and FWRITE.
	Flag func() devsw.Flag
	// Opened is called when d_open has succeeded, and before the Life counts as open.
	Opened func(*Life)
	// Began is called when the open has succeeded or failed (Life.Err), after Life.Began was
	// closed.
	Began func(*Life)
	// Ending is called when the Life is to end, before anything is cancelled.
	Ending func(*Life)
	// Revoked is called when the Life's node is revoked, by whomever, before anything is cancelled:
	// the Life goes on, but nothing can be done with its device any more. The revoke waits for it.
	// It may be called again.
	Revoked func(*Life)
	// Ended is called when all of the Life has ended, before Life.Ended is closed and a Life that
	// waits for this one goes on. err is what d_close has answered.
	Ended func(l *Life, err error)

	ending devsw.Localcount // Lives from Close or Revoke on, until they have ended
}

// lifeState is where a Life stands. It only grows.
type lifeState uint8

const (
	lifeWaiting lifeState = iota // for the end of Lives before, and of closes of others
	lifeOpening                  // d_open was called, or is about to be
	lifeOpen
	lifeFailed  // d_open has failed
	lifeClosing // Close or Revoke was called
	lifeLate    // and an Await was over before the Life
	lifeTold    // and TellLate has told that
	lifeEnded
)

// Life is one open of a device, from Lives.Begin to its end:
//
//	waiting ──► opening ──► open ────┐ Close or Revoke, from each of these
//	                └─────► failed ──┴──► closing ──► (late ──► told) ──► ended
//
// It has a Node of its own. Its methods may be called on any goroutine, with the user's locks
// held: but for Await none of them waits.
type Life struct {
	lives *Lives
	node  *Node
	quit  context.CancelFunc // has the open stop waiting
	began chan struct{}
	err   error         // valid once began is closed
	down  chan struct{} // closed when the close of the device has begun
	ended chan struct{}
	holds devsw.Localcount

	mu    sync.Mutex // a leaf
	state lifeState
}

// Begin begins a Life: it has the device opened in the background, once every Life of these that
// was closed or revoked before has ended, and no close of the device is in progress any more
// (Node.WaitClosed). The Life is over only after Close or Revoke, also where the open fails.
func (s *Lives) Begin() *Life {
	ctx, quit := context.WithCancel(context.Background())
	l := &Life{lives: s, node: s.FS.Node(s.Mode, s.Dev), quit: quit,
		began: make(chan struct{}), down: make(chan struct{}), ended: make(chan struct{})}
	l.node.begun = sync.OnceFunc(func() { close(l.down) })
	if s.Revoked != nil {
		l.node.revoked = func() { s.Revoked(l) }
	}
	l.Hold() // for the open
	go l.open(ctx)
	return l
}

// WaitClosed waits until no Life of these is between Close, or Revoke, and its end. Where ctx is
// done first it returns ctx's error.
func (s *Lives) WaitClosed(ctx context.Context) error { return s.ending.Drain(ctx) }

// Node is the Life's way to the device. It can be entered from Began on, where Err is nil, until
// the Life is closed or revoked. The Life opens and closes it: nobody else does.
func (l *Life) Node() *Node { return l.node }

// Began is closed when the open has succeeded or failed. A Life that is closed or revoked while it
// waits fails with context.Canceled.
func (l *Life) Began() <-chan struct{} { return l.began }

// Err is why the open has failed: see Node.Open, and Began. It is nil before Began is closed.
func (l *Life) Err() error {
	select {
	case <-l.began:
		return l.err
	default:
		return nil
	}
}

// Hold has the Life not end before a Release: something goes on that must have ended before the
// device is opened again, and that is no I/O section at every moment. It is called before the Life
// is closed or revoked, or while something else holds it. Hold and Release take no lock.
func (l *Life) Hold() { l.holds.Acquire() }

// Release undoes one Hold.
func (l *Life) Release() { l.holds.Release() }

// Close ends the Life, and tells whether this call does: a further one, and one after Revoke, do
// nothing. In the background it calls Lives.Ending, then closes the node (Node.Close: cancel,
// drain, close), or revokes it where d_open has not returned, waits for a close that somebody else
// has begun, and for what holds the Life. flag is d_close's.
//
// Where others have the character device open, it stays open, and what was in progress on this
// node goes on: what must have ended is to hold the Life.
func (l *Life) Close(flag devsw.Flag) (first bool) { return l.end(false, flag) }

// Revoke is Close, but it revokes the node (Node.Revoke) in any case.
func (l *Life) Revoke() (first bool) { return l.end(true, 0) }

// Ended is closed when the Life has ended: no operation of its node is in progress where the
// device was closed, and nothing holds it.
func (l *Life) Ended() <-chan struct{} { return l.ended }

// Await waits for the end of the Life, for patience at most, and tells whether it has ended. Where
// it has not, the Life is late, if it is closed or revoked at all. Then patience is for the close
// of the device: it counts from when that has begun, after Lives.Ending.
func (l *Life) Await(patience time.Duration) bool {
	runtime.Gosched() // as a rule the Life has ended by then
	l.mu.Lock()
	closing := l.state >= lifeClosing
	l.mu.Unlock()
	if closing {
		<-l.down
	}
	select {
	case <-l.ended:
		return true
	default:
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-l.ended:
		return true
	case <-timeout.C:
		l.change(lifeClosing, lifeLate)
		return false
	}
}

// Late tells whether the Life has not ended though somebody has waited for that.
func (l *Life) Late() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state == lifeLate || l.state == lifeTold
}

// TellLate returns once, of a Life that is late and whose device is still being closed, what the
// close waits for: a *DrainError. Else it returns nil.
func (l *Life) TellLate() error {
	l.mu.Lock()
	late := l.state == lifeLate
	l.mu.Unlock()
	if !late {
		return nil
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.node.WaitClosed(now); err != nil && l.change(lifeLate, lifeTold) {
		return err
	}
	return nil
}

// change goes over from one state to another, and tells whether it was in that.
func (l *Life) change(from, to lifeState) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.state != from {
		return false
	}
	l.state = to
	return true
}

// open is the first half of the Life.
func (l *Life) open(ctx context.Context) {
	defer l.Release()
	s := l.lives
	// In this order: a close may have been decided upon and not begun.
	err := s.ending.Drain(ctx)
	if err == nil {
		err = l.node.WaitClosed(ctx)
	}
	if err == nil && !l.change(lifeWaiting, lifeOpening) {
		err = context.Canceled
	}
	if err == nil {
		flag := devsw.FREAD | devsw.FWRITE
		if s.Flag != nil {
			flag = s.Flag()
		}
		err = l.node.Open(ctx, flag)
	}
	state := lifeOpen
	if l.err = err; err != nil {
		state = lifeFailed
	} else if s.Opened != nil {
		s.Opened(l)
	}
	l.change(lifeOpening, state)
	close(l.began)
	if s.Began != nil {
		s.Began(l)
	}
}

// end has the Life end.
func (l *Life) end(revoke bool, flag devsw.Flag) (first bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	was := l.state
	if was >= lifeClosing {
		return false
	}
	l.state = lifeClosing
	l.lives.ending.Acquire() // a Life that begins from now on waits for this one
	go l.close(was, revoke, flag)
	return true
}

// close is the second half of the Life.
func (l *Life) close(was lifeState, revoke bool, flag devsw.Flag) {
	s := l.lives
	if s.Ending != nil {
		s.Ending(l)
	}
	l.quit()
	var err error
	switch {
	case was == lifeWaiting: // it opens nothing any more
	case revoke || was == lifeOpening: // d_open may sleep; a revoke wakes it
		l.node.Revoke()
	case was == lifeOpen:
		err = l.node.Close(flag)
	}
	l.node.begun() // where there was nothing to close
	// Background never ends, so these do not fail.
	if was != lifeWaiting {
		// Where somebody else has revoked the device, that close may not be done yet.
		_ = l.node.WaitClosed(context.Background())
	}
	_ = l.holds.Drain(context.Background())
	if s.Ended != nil {
		s.Ended(l, err)
	}
	l.mu.Lock()
	l.state = lifeEnded
	l.mu.Unlock()
	close(l.ended)
	s.ending.Release()
}
