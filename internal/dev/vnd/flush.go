package vnd

import (
	"sync"

	"vdev/devsw"
	"vdev/internal/sys"
)

// syncer puts writes on stable storage, one fdatasync at a time: flushes that come while one runs share the next one, which
// covers all that ended before they came. So a flush can never succeed because another one has been told of the failure.
type syncer struct {
	sync func() devsw.Errno // does not change; 0 is success, ECANCELED tells nothing of the storage

	mu      sync.Mutex
	next    *batch // flushes that wait for an fdatasync that has not begun
	running bool
	failed  devsw.Errno // the first failure; for good
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
			if e != 0 && e != devsw.ECANCELED {
				s.fail(e)
			}
		}
		b.e = e
		close(b.done)
	}
}

// fail makes all later flushes fail with e, unless they do already.
func (s *syncer) fail(e devsw.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failed == 0 {
		s.failed = e
	}
}

// flush is DIOCCACHESYNC.
func (im *image) flush() error {
	if im.conf.ReadOnly {
		return nil
	}
	if e := im.syncer.flush(); e != 0 {
		return e
	}
	return nil
}

func (im *image) fdatasync() devsw.Errno {
	if im.cancelled.Load() {
		return devsw.ECANCELED
	}
	return sys.Fdatasync(im.fd)
}
