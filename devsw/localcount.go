package devsw

import (
	"context"
	"sync"
	"sync/atomic"
)

// Localcount counts the users of something that is to be taken down: close it, so that nobody new
// gets in, then drain it. NetBSD: localcount(9), where the count is per CPU. Here, whoever wants
// counts on cache lines of their own makes several, and drains them one after the other. That is
// sound: a closed one that has been seen empty stays empty.
//
// Everything is in one word, so to enter or leave is one atomic addition:
//
//	bit 0   closed: Acquire fails
//	bit 1   somebody drains: the last to leave wakes them
//	bit 2.. number of users (and of Acquires on their way to failing)
//
// mu is a leaf: nothing else is locked under it. The zero Localcount is open
// and ready to use; it must not be copied.
type Localcount struct {
	v atomic.Int64

	mu       sync.Mutex
	drainers int
	idle     chan struct{} // closed, then replaced, whenever drainers must look again
}

const (
	lcClosed = 1 << iota
	lcDrain
	lcUnit
)

// Acquire enters. It fails once the count is closed, and never blocks.
func (l *Localcount) Acquire() bool { return l.AcquireN(1) }

// AcquireN enters n times at once, for as many Releases; or not at all.
func (l *Localcount) AcquireN(n int64) bool {
	// The count is published before closed is looked at, in one step. The other
	// way round, a user could get in behind a drain that has found nobody.
	return l.v.Add(n*lcUnit)&lcClosed == 0 || l.refuse(n)
}

// refuse takes back the count of an Acquire that came too late.
func (l *Localcount) refuse(n int64) bool {
	l.ReleaseN(n)
	return false
}

// Release leaves. It is called once for each Acquire that succeeded, on any
// goroutine, and does not block.
func (l *Localcount) Release() { l.ReleaseN(1) }

// ReleaseN leaves n times at once.
func (l *Localcount) ReleaseN(n int64) {
	if v := l.v.Add(-n * lcUnit); v < lcUnit && v != 0 {
		l.released(v)
	}
}

// released looks after a Release that left no user but some flag.
func (l *Localcount) released(v int64) {
	if v < 0 {
		panic("devsw: Localcount released more often than acquired")
	}
	if v&lcDrain != 0 {
		step("release wakes")
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.idle != nil {
			close(l.idle)
			l.idle = nil
		}
	}
}

// Close makes every Acquire from now on fail. Those who are in stay in.
func (l *Localcount) Close() { l.v.Or(lcClosed) }

// Reopen lets users in again.
func (l *Localcount) Reopen() { l.v.And(^lcClosed) }

// Closed tells whether Acquire fails. It is one load: whoever holds the count
// already may ask before each use of it.
func (l *Localcount) Closed() bool { return l.v.Load()&lcClosed != 0 }

// Count is the number of users now. It may count an Acquire that is failing.
func (l *Localcount) Count() int { return int(l.v.Load() / lcUnit) }

// Drain waits until there is no user, or ctx is done, whose error it returns
// then. On a closed count nobody is in when Drain has returned nil, nor gets in
// until Reopen. On an open one Drain says only that there was a moment without
// users, hence that all who were in when it was called have left. It may be
// called on several goroutines.
func (l *Localcount) Drain(ctx context.Context) error {
	if l.v.Load() < lcUnit {
		return nil
	}
	l.mu.Lock()
	l.drainers++
	l.v.Or(lcDrain)
	defer func() {
		if l.drainers--; l.drainers == 0 {
			l.v.And(^lcDrain)
		}
		l.mu.Unlock()
	}()
	for {
		if l.v.Load() < lcUnit {
			return nil
		}
		if l.idle == nil {
			l.idle = make(chan struct{})
		}
		idle := l.idle
		l.mu.Unlock()
		step("drain sleeps")
		select {
		case <-idle:
			l.mu.Lock()
		case <-ctx.Done():
			l.mu.Lock()
			return ctx.Err()
		}
	}
}
