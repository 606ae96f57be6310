package vnd

import (
	"fmt"
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// syncer puts writes on stable storage, one fdatasync at a time: flushes that come while one runs
// share the next one, which covers all that ended before they came. So a flush can never succeed
// because another one has been told of the failure.
type syncer struct {
	sync func() devsw.Errno // does not change; 0 is success, ECANCELED tells nothing of the storage
	// record has the failure known to who opens the image next. It may wait. Does not change; nil
	// for nobody.
	record func(devsw.Errno)

	mu      sync.Mutex
	next    *batch // flushes that wait for an fdatasync that has not begun
	running bool
	failed  devsw.Errno // the first failure; until forget
}

type batch struct {
	done chan struct{} // closed when e is set
	e    devsw.Errno
}

// flush waits for an fdatasync that begins after the call.
func (s *syncer) flush() devsw.Errno {
	s.mu.Lock()
	if s.next == nil {
		s.next = &batch{done: make(chan struct{})}
	}
	b := s.next
	if !s.running {
		s.running = true
		go s.run()
	}
	s.mu.Unlock()
	<-b.done
	return b.e
}

// run serves batches until there is none.
func (s *syncer) run() {
	for {
		s.mu.Lock()
		b, e := s.next, s.failed
		s.next = nil
		s.running = b != nil
		s.mu.Unlock()
		if b == nil {
			return
		}
		if e == 0 {
			e = s.sync()
			if e != 0 && e != devsw.ECANCELED && s.fail(e) && s.record != nil {
				s.record(e)
			}
		}
		b.e = e
		close(b.done)
	}
}

// fail makes all later flushes fail with e, unless they do already, which it tells.
func (s *syncer) fail(e devsw.Errno) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed != 0 {
		return false
	}
	s.failed = e
	return true
}

// failure returns with what flushes fail: 0 where they do not.
func (s *syncer) failure() devsw.Errno {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// forget lets flushes succeed again.
func (s *syncer) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = 0
}

// Flush implements disk.Medium.
func (im *image) Flush() error {
	if im.conf.ReadOnly {
		return nil
	}
	if e := im.syncer.flush(); e != 0 {
		return e
	}
	return nil
}

func (im *image) fdatasync() devsw.Errno {
	if im.Cancelled() {
		return devsw.ECANCELED
	}
	return sys.Fdatasync(im.fd)
}

// record has it known to who opens the image next that a flush has failed with e.
func (im *image) record(e devsw.Errno) { im.conf.Failures.Record(im.identity, im.conf.Path, e) }

// biodone ends a transfer. One that has failed as a flush does is not ended before that is on
// record, for which the goroutine of its AIO must not wait.
func (im *image) biodone(b *devsw.Buf) {
	if b.Error == 0 || !im.unrecorded.CompareAndSwap(true, false) {
		b.Biodone()
		return
	}
	b.InContext = false
	go func() {
		im.record(im.syncer.failure())
		b.Biodone()
	}()
}

// State tells what a successor has to know of disk unit, open or not.
func (d *Driver) State(unit int) (s devsw.DiskState) {
	sc, im, err := d.unit(unit)
	if err != nil || sc.conf.ReadOnly {
		return s
	}
	if im != nil {
		s.FlushError = im.syncer.failure()
	} else {
		s.FlushError = sc.conf.Failures.Known(*sc.identity.Load())
	}
	return s
}

// SetState tells disk unit, which is open, what a predecessor knew of it.
func (d *Driver) SetState(unit int, s devsw.DiskState) {
	_, im, err := d.unit(unit)
	if err != nil || s.FlushError == 0 {
		return
	}
	if im != nil && im.syncer.fail(s.FlushError) {
		im.record(s.FlushError)
	}
}

// ClearState has it forgotten that a flush has failed, and returns what that was. ENXIO where there
// is no such unit; else why it could not be forgotten.
func (d *Driver) ClearState(unit int) (s devsw.DiskState, err error) {
	sc, im, err := d.unit(unit)
	if err != nil {
		return s, err
	}
	identity := *sc.identity.Load()
	if im != nil {
		identity = im.identity
	}
	if s.FlushError, err = sc.conf.Failures.Forget(identity); err != nil {
		return s, fmt.Errorf("vnd%d: %w", unit, err)
	}
	if im != nil {
		s.FlushError = max(s.FlushError, im.syncer.failure())
		im.syncer.forget()
	}
	return s, nil
}
