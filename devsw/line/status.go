package line

import "vdev/devsw"

// Status is how a Line stands.
type Status struct {
	Overflow Overflow
	Written  int64 // bytes taken from the guest, or whoever writes
	Read     int64 // bytes given to it
	Dropped  int64 // bytes written that have gone without having reached any end
	Kept     int   // bytes in the buffer
	// Waiting is how many of the bytes kept the main end has not taken; with the overflow Drop, how
	// many no end has taken.
	Waiting int
	Size    devsw.Winsize // of the window; zero: not known
	Ends    []EndStatus   // the oldest first
}

// EndStatus is how an End stands.
type EndStatus struct {
	Name     string
	Role     Role
	Hungup   bool  // the other side has gone, and has left input that was not read
	Sent     int64 // bytes of output that it has taken
	Lost     int64 // bytes of output that went before it could take them
	Received int64 // bytes of input
	Size     devsw.Winsize
}

// Status tells how the Line stands.
func (l *Line) Status() Status {
	l.input.mu.Lock()
	defer l.input.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Status{
		Overflow: l.conf.Overflow, Written: l.kept.tail, Read: l.input.read, Dropped: l.dropped,
		Kept: int(l.kept.tail - l.kept.head), Waiting: int(l.kept.tail - l.reached), Size: l.size,
	}
	for _, b := range l.ends {
		e := EndStatus{Name: b.name, Role: b.role, Hungup: b.state == hungup, Sent: b.sent,
			Lost: b.lost + max(0, l.kept.head-b.cur.pos), Received: b.received}
		if size := b.size.Load(); size != nil {
			e.Size = *size
		}
		s.Ends = append(s.Ends, e)
	}
	return s
}
