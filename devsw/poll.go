package devsw

import "sync"

// PollEvents is a set of what a character device can be ready for.
// NetBSD: <sys/poll.h>, whose values these are.
type PollEvents int16

// The events.
const (
	POLLIN  PollEvents = 0x01 // a read would not sleep
	POLLOUT PollEvents = 0x04 // a write would not sleep
	POLLERR PollEvents = 0x08 // the device is gone; always reported
	POLLHUP PollEvents = 0x10 // the other side has hung up; always reported
)

// Selinfo is where a driver keeps those who wait for it in poll.
// NetBSD: struct selinfo, selrecord(9). The zero Selinfo is ready to use. It
// may be used on any goroutine and takes no lock but its own.
type Selinfo struct {
	mu    sync.Mutex
	wakes []func()
}

// Record notes that wake is to be called by the next Notify. d_poll calls it
// when nothing is ready and wake is not nil, and looks once more afterwards, or
// holds the lock under which Notify is called.
func (s *Selinfo) Record(wake func()) {
	if wake == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wakes = append(s.wakes, wake)
}

// Notify calls, once each, what was recorded since the last Notify.
// NetBSD: selnotify(9).
func (s *Selinfo) Notify() {
	s.mu.Lock()
	wakes := s.wakes
	s.wakes = nil
	s.mu.Unlock()
	for _, wake := range wakes {
		wake()
	}
}

// Filter is what a Knote is about. NetBSD: kqueue(2).
type Filter int16

// The filters.
const (
	EVFILTRead  Filter = -1 // data to read
	EVFILTWrite Filter = -2 // room to write
	// EVFILTLine: who is at the other side of a line, or the size of its window, may have changed.
	// vdev's own.
	EVFILTLine Filter = -100
)

// Knote is one interest in a character device's events, which lasts until it is
// detached. NetBSD: struct knote.
type Knote struct {
	Filter Filter // what is waited for
	// Activate is called by the driver, on any goroutine, when the filter's
	// event may have come; data is the number of bytes, or -1 where the driver
	// does not know. It must not block.
	Activate func(data int64)

	mu   sync.Mutex
	list *Klist
}

// Detach ends the interest. After it Activate is not called any more, except by
// a Notify that runs at this moment. It does nothing for a Knote that is not
// attached.
func (kn *Knote) Detach() {
	kn.mu.Lock()
	l := kn.list
	kn.list = nil
	kn.mu.Unlock()
	if l == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.notes, kn)
}

// Klist is where a driver keeps the Knotes of a unit. NetBSD: struct klist. The
// zero Klist is ready to use, on any goroutine.
type Klist struct {
	mu    sync.Mutex
	notes map[*Knote]struct{}
}

// Insert attaches kn, which is not attached anywhere. d_kqfilter calls it.
func (l *Klist) Insert(kn *Knote) {
	kn.mu.Lock()
	kn.list = l
	kn.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.notes == nil {
		l.notes = make(map[*Knote]struct{})
	}
	l.notes[kn] = struct{}{}
}

// Notify activates every Knote with this filter. NetBSD: KNOTE(9).
func (l *Klist) Notify(f Filter, data int64) {
	var few [8]*Knote // as a rule there are no more: no allocation
	notes := few[:0]
	l.mu.Lock()
	for kn := range l.notes {
		if kn.Filter == f {
			notes = append(notes, kn)
		}
	}
	l.mu.Unlock()
	for _, kn := range notes {
		kn.Activate(data)
	}
}
