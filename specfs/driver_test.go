package specfs

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"vdev/devsw"
)

// unit is a device of a driver for tests. It does what it is told, and watches
// over what a driver may rely on (watch). The same unit serves as block and as
// character device.
type unit struct {
	// Set before use.

	flag      devsw.DFlag // DMPSafe, or 0: then mu is the table's one lock
	noCancel  bool        // no d_cancel
	cancelErr error       // what d_cancel answers; it interrupts only if nil

	mu    sync.Locker // within an operation
	outer sync.Locker // elsewhere
	cv    *devsw.Cv

	// Under mu.

	calls      []string // d_open, d_cancel, d_close and d_strategy, as they come
	sleepOpens bool     // d_open sleeps until a decision
	openErr    error    // what d_open answers if it does not sleep
	sleepers   []*sleeper
	hold       chan struct{} // d_close sleeps until it is closed; for DMPSafe only
	closeErr   error
	readable   int // bytes to read
	inside     int // operations in progress, d_cancel and d_close not counted
	closing    int // d_closes in progress
	cancels    int
	closes     int
	wrong      []string // promises broken

	bufs devsw.BufSet
	bmu  sync.Mutex // guards pending, above all other locks here
	// pending are the transfers, by Buf; a stuck one does not end by d_cancel.
	pending map[*devsw.Buf]devsw.Ticket
	stuck   map[*devsw.Buf]bool
}

// sleeper is a d_open that sleeps.
type sleeper struct {
	flag    devsw.Flag // its argument
	decided bool
	err     error
}

// attach makes the unit device 0 of a new driver. Only one of its devices is to
// be open at a time, or the unit takes two closes for one.
func (u *unit) attach(t testing.TB, table *devsw.Table) (block, char devsw.Dev) {
	t.Helper()
	if u.flag&devsw.DMPSafe != 0 {
		u.mu = new(sync.Mutex)
		u.outer = u.mu
	} else {
		u.mu = noLock{}
		u.outer = table
	}
	u.cv = devsw.NewCv(u.outer)
	u.pending = make(map[*devsw.Buf]devsw.Ticket)
	u.stuck = make(map[*devsw.Buf]bool)
	bdev := &devsw.Bdevsw{
		Open: u.open, Cancel: u.cancel, Close: u.close, Strategy: u.strategy, Ioctl: u.ioctl, Discard: u.discard,
		Psize:     func(devsw.Dev) int64 { defer u.op()(); return 2048 },
		CancelBuf: func(b *devsw.Buf) { defer u.op()(); u.bufs.CancelBuf(b) },
		Flag:      u.flag | devsw.DDisk,
	}
	cdev := &devsw.Cdevsw{
		Open: u.open, Cancel: u.cancel, Close: u.close, Ioctl: u.ioctl, Discard: u.discard,
		Read: u.read,
		Write: func(_ devsw.Dev, uio *devsw.Uio, _ devsw.Flag) error {
			defer u.op()()
			uio.Advance(uio.Resid)
			return nil
		},
		Poll: func(_ devsw.Dev, events devsw.PollEvents, _ func()) devsw.PollEvents {
			defer u.op()()
			return events & devsw.POLLOUT
		},
		Kqfilter: func(devsw.Dev, *devsw.Knote) error { defer u.op()(); return nil },
		Flag:     u.flag,
	}
	if u.noCancel {
		bdev.Cancel, cdev.Cancel = nil, nil
	}
	bm, cm, err := table.Attach(fmt.Sprintf("unit%p", u), bdev, devsw.NODEVMAJOR, cdev, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bm), 0), devsw.Makedev(uint32(cm), 0)
}

// noLock stands for the one lock, which an operation of a driver without
// DMPSafe already has.
type noLock struct{}

func (noLock) Lock()   {}
func (noLock) Unlock() {}

// cancelsFirst tells whether a close of this unit goes cancel, drain, close.
func (u *unit) cancelsFirst() bool { return !u.noCancel && u.cancelErr == nil }

func (u *unit) enter() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inside++
	if u.closing > 0 && u.cancelsFirst() {
		u.wrong = append(u.wrong, "an operation begins during d_close")
	}
}

func (u *unit) exit() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inside--
}

// op is to be deferred: defer u.op()().
func (u *unit) op() func() {
	u.enter()
	return u.exit
}

func (u *unit) open(_ devsw.Dev, flag devsw.Flag, _ devsw.Mode) error {
	defer u.op()()
	step("d_open")
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls = append(u.calls, "open")
	if !u.sleepOpens {
		return u.openErr
	}
	s := &sleeper{flag: flag}
	u.sleepers = append(u.sleepers, s)
	defer func() { u.sleepers = slices.DeleteFunc(u.sleepers, func(o *sleeper) bool { return o == s }) }()
	if err := u.cv.Wait(func() bool { return s.decided }); err != nil {
		return err
	}
	return s.err
}

func (u *unit) cancel(devsw.Dev, devsw.Flag, devsw.Mode) error {
	u.mu.Lock()
	u.calls = append(u.calls, "cancel")
	u.cancels++
	if u.cancels != u.closes+1 {
		u.wrong = append(u.wrong, fmt.Sprintf("%d d_cancels after %d d_closes", u.cancels, u.closes))
	}
	if u.cancelErr == nil {
		u.cv.Cancel()
	}
	u.mu.Unlock()
	step("d_cancel between")
	if u.cancelErr == nil {
		u.bufs.Cancel()
	}
	return u.cancelErr
}

func (u *unit) close(devsw.Dev, devsw.Flag, devsw.Mode) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.calls = append(u.calls, "close")
	u.closing++
	if u.closing > 1 {
		u.wrong = append(u.wrong, "two d_closes at once")
	}
	if u.cancelsFirst() {
		u.alone("begins")
	} else {
		u.cv.Cancel()
		u.bufs.Cancel()
	}
	hold := u.hold
	u.mu.Unlock()
	step("d_close")
	if hold != nil {
		<-hold
	}
	u.mu.Lock()
	if u.cancelsFirst() {
		u.alone("ends")
	}
	u.cv.Reset()
	u.bufs.Reset()
	u.closing--
	u.closes++
	return u.closeErr
}

// alone checks, with mu held, that nothing of the unit runs.
func (u *unit) alone(when string) {
	u.bmu.Lock()
	defer u.bmu.Unlock()
	if u.inside != 0 || len(u.pending) != 0 {
		u.wrong = append(u.wrong, fmt.Sprintf("d_close %s with %d operations and %d transfers in progress", when, u.inside, len(u.pending)))
	}
}

// setHold makes d_close sleep from now on.
func (u *unit) setHold() { u.lock(func() { u.hold = make(chan struct{}) }) }

// releaseHold lets it go on.
func (u *unit) releaseHold() {
	u.lock(func() {
		close(u.hold)
		u.hold = nil
	})
}

// stuckContext is the Context of a transfer that d_cancel cannot interrupt.
const stuckContext = "stuck"

func (u *unit) strategy(b *devsw.Buf) {
	defer u.op()()
	u.mu.Lock()
	u.calls = append(u.calls, "strategy")
	u.mu.Unlock()
	u.bmu.Lock()
	u.pending[b] = 0
	u.stuck[b] = b.Context == stuckContext
	u.bmu.Unlock()
	if b.Context == stuckContext {
		return
	}
	done := b.Iodone
	b.Iodone = func(b *devsw.Buf) {
		u.forget(b)
		if done != nil {
			done(b)
		}
	}
	step("d_strategy before add")
	if ticket, ok := u.bufs.Add(b); ok {
		u.bmu.Lock()
		if _, ok := u.pending[b]; ok {
			u.pending[b] = ticket
		}
		u.bmu.Unlock()
	}
	step("d_strategy after add")
}

func (u *unit) forget(b *devsw.Buf) {
	u.bmu.Lock()
	defer u.bmu.Unlock()
	delete(u.pending, b)
	delete(u.stuck, b)
}

// finish ends a transfer well, unless it was cancelled.
func (u *unit) finish(b *devsw.Buf) {
	u.bmu.Lock()
	ticket, stuck := u.pending[b], u.stuck[b]
	u.bmu.Unlock()
	if stuck {
		u.forget(b)
		b.Biodone()
	} else if b := u.bufs.Claim(ticket); b != nil {
		b.Biodone()
	}
}

func (u *unit) ioctl(_ devsw.Dev, cmd devsw.Cmd, _ any, _ devsw.Flag) error {
	defer u.op()()
	if cmd == devsw.CmdDriver { // sleeps until cancelled
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.cv.Wait(func() bool { return false })
	}
	return nil
}

func (u *unit) discard(devsw.Dev, int64, int64) error {
	defer u.op()()
	return nil
}

// read sleeps until there are bytes, and takes all there are.
func (u *unit) read(_ devsw.Dev, uio *devsw.Uio, _ devsw.Flag) error {
	defer u.op()()
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.cv.Wait(func() bool { return u.readable > 0 }); err != nil {
		return err
	}
	u.readable -= uio.Uiomove(make([]byte, u.readable))
	return nil
}

// lock runs f with the unit's lock, from outside of its operations.
func (u *unit) lock(f func()) {
	u.outer.Lock()
	defer u.outer.Unlock()
	f()
}

// decide lets the sleeping d_opens with this flag return.
func (u *unit) decide(flag devsw.Flag, err error) {
	u.lock(func() {
		for _, s := range u.sleepers {
			if s.flag == flag {
				s.decided, s.err = true, err
			}
		}
		u.cv.Broadcast()
	})
}

// feed brings n bytes to read.
func (u *unit) feed(n int) {
	u.lock(func() {
		u.readable += n
		u.cv.Broadcast()
	})
}

func (u *unit) setSleepOpens(sleep bool) { u.lock(func() { u.sleepOpens = sleep }) }

// check fails the test if a promise was broken, and compares the calls.
func (u *unit) check(t testing.TB, want ...string) {
	t.Helper()
	u.lock(func() {
		for _, w := range u.wrong {
			t.Error(w)
		}
		if want != nil && !slices.Equal(u.calls, want) {
			t.Errorf("the driver was called %q, want %q", u.calls, want)
		}
	})
}

// tracer collects events.
type tracer struct {
	mu     sync.Mutex
	events []Event
}

func (tr *tracer) add(e Event) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.events = append(tr.events, e)
}

// take gives the events since the last take, as words.
func (tr *tracer) take() []string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	var words []string
	for _, e := range tr.events {
		w := e.Kind.String()
		if e.Err != nil {
			w += ": " + errName(e.Err)
		}
		words = append(words, w)
	}
	tr.events = nil
	return words
}

func errName(err error) string {
	for _, e := range []devsw.Errno{devsw.EBADF, devsw.ENODEV, devsw.ENXIO, devsw.EBUSY, devsw.EIO, devsw.ECANCELED} {
		if errors.Is(err, e) {
			return map[devsw.Errno]string{devsw.EBADF: "EBADF", devsw.ENODEV: "ENODEV", devsw.ENXIO: "ENXIO",
				devsw.EBUSY: "EBUSY", devsw.EIO: "EIO", devsw.ECANCELED: "ECANCELED"}[e]
		}
	}
	return err.Error()
}
