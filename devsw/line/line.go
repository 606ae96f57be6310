package line

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"vdev/devsw"
)

// Overflow says what happens to output that there is no room for.
type Overflow uint8

const (
	// Drop: d_write takes everything at once, and the oldest bytes go. It is for consoles.
	Drop Overflow = iota
	// Wait: no byte is lost. d_write waits, or answers EAGAIN, until the main end has taken enough.
	Wait
)

// String gives "drop" or "wait".
func (o Overflow) String() string {
	if o == Wait {
		return "wait"
	}
	return "drop"
}

// DefaultScrollback is Config.Scrollback where that is 0, in bytes.
const DefaultScrollback = 1 << 20

// maxHungup is how many ends that have hung up may have input that was not read, on a line with the
// overflow Drop. One more, and the oldest of them is removed.
const maxHungup = 8

// Config describes a Line.
type Config struct {
	// Scrollback is how many bytes of the output are kept. 0: DefaultScrollback. With the overflow
	// Wait it is also how many d_write takes that the main end has not taken.
	Scrollback int
	// Overflow is Drop or Wait.
	Overflow Overflow
	// Size is the size of the window while no end has one. Zero: none.
	Size devsw.Winsize
}

// Line is one character device, with what is at its other side. Make one with New. Its methods may
// be called on any goroutine; none waits for an end, but Drain and Wait.
type Line struct {
	conf  Config
	input input
	notes devsw.Klist
	polls devsw.Selinfo
	users devsw.Localcount // ends that were added, until they are done
	room  *devsw.Cv        // of mu: who sleeps in d_write

	mu     sync.Mutex
	kept   kept
	ends   []*Base // that are seated or have hung up, the oldest first
	main   *Base   // the oldest main end that is seated, or nil
	closed bool
	open   bool // there was a d_open, and no d_close since
	// reached is up to where output has reached the main end, or, with the overflow Drop, any end.
	// With Wait it is never below kept.head.
	reached int64
	leaving int // main ends that have gone, and whose last Writev has not returned
	dropped int64
	size    devsw.Winsize
	full    bool // a d_write or a d_poll was told that there is no room
	// moved is closed when an end has got further, or has gone; nil: nobody waits for that.
	moved chan struct{}
}

// New makes a Line without ends.
func New(conf Config) *Line {
	if conf.Scrollback <= 0 {
		conf.Scrollback = DefaultScrollback
	}
	l := &Line{conf: conf, size: conf.Size}
	l.room = devsw.NewCv(&l.mu)
	l.input.line, l.input.cv = l, devsw.NewCv(&l.input.mu)
	return l
}

// Add adds an End, whose Base was never added. It begins with the oldest output that is kept; a
// main end of a line with the overflow Wait that is the only one begins with what none before has
// taken. ENXIO: the Line is closed, and the End is not touched.
func (l *Line) Add(e End, name string, role Role) error {
	b := e.base()
	b.end, b.name, b.role = e, name, role
	b.in, _ = e.(Input)
	b.direct, _ = e.(Direct)
	b.wake, b.done = make(chan struct{}, 1), make(chan struct{})
	b.users.Store(2)

	l.input.mu.Lock()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		l.input.mu.Unlock()
		return fmt.Errorf("line: closed: %w", devsw.ENXIO)
	}
	b.line.Store(l)
	l.users.Acquire()
	b.state = seated
	b.cur.pos = l.kept.head
	if l.conf.Overflow == Wait && role == Main && l.main == nil {
		b.stake = fresh
	}
	l.ends = append(l.ends, b)
	if b.in != nil {
		b.ready = true
		l.input.ends = append(l.input.ends, b)
		l.input.cv.Broadcast()
	}
	l.seatedLocked()
	l.mu.Unlock()
	l.input.mu.Unlock()

	go l.feed(b)
	l.tell(devsw.EVFILTLine)
	if b.in != nil {
		l.tell(devsw.EVFILTRead)
	}
	return nil
}

// seatedLocked finds out what follows from who is seated. It tells whether there is room now that
// somebody was told there is none.
func (l *Line) seatedLocked() (roomier bool) {
	l.main = nil
	if i := slices.IndexFunc(l.ends, func(b *Base) bool { return b.role == Main && b.state == seated }); i >= 0 {
		l.main = l.ends[i]
		if l.main.stake == none {
			l.main.stake = counts
		}
		l.reached = max(l.reached, l.main.cur.pos)
	}
	l.sizeLocked()
	return l.releaseLocked()
}

// sizeLocked finds the size of the window, and tells whether it has changed. When nobody has one
// any more it stays what it was, or is that of the Config.
func (l *Line) sizeLocked() (changed bool) {
	was := l.size
	if l.conf.Size != (devsw.Winsize{}) {
		l.size = l.conf.Size
	}
	for _, b := range l.ends {
		if s := b.size.Load(); s != nil && b.state == seated {
			l.size = *s
		}
	}
	return l.size != was
}

func (l *Line) sizeChanged() {
	l.mu.Lock()
	changed := l.sizeLocked()
	l.mu.Unlock()
	if changed {
		l.tell(devsw.EVFILTLine)
	}
}

// releaseLocked lets go of what nobody needs, which is nothing with the overflow Drop. It tells
// whether there is room now that somebody was told there is none.
func (l *Line) releaseLocked() (roomier bool) {
	if l.conf.Overflow == Drop {
		return false
	}
	low := l.reached
	for _, b := range l.ends {
		if b.state == seated && b.stake != fresh {
			low = min(low, b.cur.pos)
		}
	}
	l.kept.drop(low)
	if !l.full || l.roomLocked() == 0 {
		return false
	}
	l.full = false
	l.room.Broadcast()
	return true
}

// roomLocked is how many bytes d_write takes now. With the overflow Drop it takes any number.
func (l *Line) roomLocked() int {
	return l.conf.Scrollback - int(l.kept.tail-l.reached)
}

// hangup takes b from those that get output. If it has no input, it is removed.
func (l *Line) hangup(b *Base) {
	l.input.mu.Lock()
	l.mu.Lock()
	if b.state != seated || b.in == nil {
		l.mu.Unlock()
		l.input.mu.Unlock()
		if b.in == nil {
			l.remove(b)
		}
		return
	}
	b.state = hungup
	b.ready = true
	l.input.cv.Broadcast()
	var first *Base
	hungups := 0
	for _, e := range l.ends {
		if e.state == hungup {
			if hungups++; first == nil {
				first = e
			}
		}
	}
	roomier := l.goneLocked(b)
	l.mu.Unlock()
	l.input.mu.Unlock()

	l.tellGone(roomier)
	l.tell(devsw.EVFILTRead)
	if hungups > maxHungup && l.conf.Overflow == Drop {
		l.remove(first)
	}
}

// remove takes b out. It does nothing where that was done before.
func (l *Line) remove(b *Base) {
	l.input.mu.Lock()
	l.mu.Lock()
	if b.state == out {
		l.mu.Unlock()
		l.input.mu.Unlock()
		return
	}
	b.state = out
	is := func(e *Base) bool { return e == b }
	l.ends = slices.DeleteFunc(l.ends, is)
	l.input.ends = slices.DeleteFunc(l.input.ends, is)
	roomier := l.goneLocked(b)
	l.mu.Unlock()
	l.input.mu.Unlock()

	b.end.Close()
	b.leave(l)
	l.tellGone(roomier)
}

// goneLocked is called when b is not seated any more.
func (l *Line) goneLocked(b *Base) (roomier bool) {
	if b.stake == counts && b.feed == writing {
		b.stake = leaving
		l.leaving++
	}
	b.wakeLocked()
	l.movedLocked()
	return l.seatedLocked()
}

func (l *Line) tellGone(roomier bool) {
	l.tell(devsw.EVFILTLine)
	if roomier {
		l.tell(devsw.EVFILTWrite)
	}
}

// wakeLocked has the goroutine of b look.
func (b *Base) wakeLocked() {
	if b.feed == asleep {
		b.feed = looking
		b.wake <- struct{}{} // there is room: it is empty while the goroutine sleeps
	}
}

func (l *Line) movedLocked() {
	if l.moved != nil {
		close(l.moved)
		l.moved = nil
	}
}

// feed is the goroutine of b: it gives it the output.
func (l *Line) feed(b *Base) {
	defer b.leave(l)
	var next batch
	for l.next(b, &next) {
		n, err := b.end.Writev(next.pieces[:next.n])
		l.fed(b, &next, n)
		if err != nil {
			l.hangup(b)
			return
		}
	}
}

// next waits for output for b. It is over when b is not seated any more.
func (l *Line) next(b *Base, next *batch) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for b.state == seated {
		// A new main end goes on where the last one has stopped, which it says when its Writev has
		// returned.
		if b.stake == fresh && l.leaving == 0 {
			b.stake = counts
			b.cur.pos = l.reached
			l.movedLocked()
		}
		if b.stake != fresh {
			b.lost += l.kept.next(&b.cur, next)
			if next.n > 0 {
				b.feed = writing
				return true
			}
		}
		b.feed = asleep
		l.mu.Unlock()
		<-b.wake
		l.mu.Lock()
	}
	return false
}

// fed is called when b has taken n bytes.
func (l *Line) fed(b *Base, done *batch, n int) {
	l.mu.Lock()
	l.kept.done(&b.cur, done, n)
	b.sent += int64(n)
	b.feed = looking
	if b == l.main || b.stake == leaving || l.conf.Overflow == Drop {
		l.reached = max(l.reached, b.cur.pos)
	}
	if b.stake == leaving {
		l.leaving--
		if l.main != nil {
			l.main.wakeLocked()
		}
	}
	roomier := l.releaseLocked()
	l.movedLocked()
	l.mu.Unlock()
	if roomier {
		l.tell(devsw.EVFILTWrite)
	}
}

// write is d_write.
func (l *Line) write(u *devsw.Uio, flag devsw.Flag) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.closed {
			return devsw.ENXIO
		}
		if l.room.Cancelled() {
			return devsw.ECANCELED
		}
		if l.passLocked(u); u.Resid == 0 {
			return nil
		}
		n := u.Resid
		if l.conf.Overflow == Wait {
			if n = min(n, l.roomLocked()); n < u.Resid {
				l.full = true
			}
			if n == 0 && u.Resid > 0 {
				if flag&devsw.FNONBLOCK != 0 {
					return devsw.EAGAIN
				}
				if err := l.room.Wait(l.hasRoomLocked); err != nil {
					return err
				}
				continue
			}
		}
		if err := l.takeLocked(u, n); err != nil || u.Resid == 0 || flag&devsw.FNONBLOCK != 0 {
			return err
		}
	}
}

// passBytes is how much a d_write must have for a system call to cost less than a copy, and another
// goroutine's call.
const passBytes = 16 << 10

// passLocked has the main end take what it takes at once. Nothing is copied. That is for data lines
// where nothing is kept: then the end has taken all that came before, and nothing is in its
// goroutine's hands. Where a watcher is there, or input of one that has gone, all goes by the
// buffer.
func (l *Line) passLocked(u *devsw.Uio) {
	b := l.main
	if l.conf.Overflow != Wait || u.Resid < passBytes || b == nil || b.direct == nil || len(l.ends) > 1 || l.kept.head < l.kept.tail {
		return
	}
	n, _ := b.direct.WritevNow(u.Iov) // an error comes again when the rest is written
	if n <= 0 {
		return
	}
	u.Advance(n)
	l.kept.skip(int64(n))
	l.reached, b.cur.pos = l.kept.tail, l.kept.tail
	b.sent += int64(n)
}

// hasRoomLocked tells whether there is room. Where there is none, who makes some tells of it.
func (l *Line) hasRoomLocked() bool {
	if l.closed || l.roomLocked() > 0 {
		return true
	}
	l.full = true
	return false
}

// takeLocked takes n bytes of u, and lets go of the oldest that there is no room for.
func (l *Line) takeLocked(u *devsw.Uio, n int) error {
	k := &l.kept
	over := int64(n - l.conf.Scrollback)
	if over > 0 {
		l.dropLocked(k.tail)
		l.dropped += over
		k.skip(over)
		l.reached = max(l.reached, k.tail)
		u.Advance(int(over))
		n = l.conf.Scrollback
	}
	l.dropLocked(k.tail + int64(n-l.conf.Scrollback))
	err := k.write(u, n)
	for _, b := range l.ends {
		b.wakeLocked()
	}
	return err
}

// dropLocked lets go of what comes before to.
func (l *Line) dropLocked(to int64) {
	if l.reached < to {
		l.dropped += to - l.reached
		l.reached = to
	}
	l.kept.drop(to)
}

// tell has those look that wait for one of the filter's events.
func (l *Line) tell(f devsw.Filter) {
	l.notes.Notify(f, -1)
	l.polls.Notify()
}

// Close removes all ends, and has every d_read and d_write answer ENXIO, those that sleep too. It
// waits for nobody; Wait does.
func (l *Line) Close() {
	l.input.mu.Lock()
	l.mu.Lock()
	l.closed, l.input.closed = true, true
	l.room.Broadcast()
	l.input.cv.Broadcast()
	ends := slices.Clone(l.ends)
	l.mu.Unlock()
	l.input.mu.Unlock()
	for _, b := range ends {
		l.remove(b)
	}
	l.users.Close()
	for _, f := range []devsw.Filter{devsw.EVFILTLine, devsw.EVFILTRead, devsw.EVFILTWrite} {
		l.tell(f)
	}
}

// Wait waits, after Close, until the Line has done with all ends: see Base.Done. Where ctx is done
// first, it returns ctx's error.
func (l *Line) Wait(ctx context.Context) error { return l.users.Drain(ctx) }

// Drain waits until every end has taken the output that is there now, or has gone. Where ctx is
// done first, it returns ctx's error: an end that does not read is to be waited for no longer than
// that.
func (l *Line) Drain(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	to := l.kept.tail
	for slices.ContainsFunc(l.ends, func(b *Base) bool { return b.state == seated && b.cur.pos < to }) {
		if l.moved == nil {
			l.moved = make(chan struct{})
		}
		moved := l.moved
		l.mu.Unlock()
		var err error
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctx.Err()
		}
		l.mu.Lock()
		if err != nil {
			return err
		}
	}
	return nil
}
