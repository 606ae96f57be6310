package sys

import (
	"os"
	"sync"
	"syscall"
)

// Shared are descriptors that goroutines wait for, until somebody ends that. They are closed when
// none of those uses them any more. Its methods may be called on any goroutine.
type Shared struct {
	fds []*FD
	end *FD // an eventfd, signalled once for all

	mu    sync.Mutex
	users int
	ended bool
}

// NewShared takes descriptors over, also where it fails.
func NewShared(fds ...*FD) (*Shared, error) {
	end, err := NewEventfd()
	if err != nil {
		for _, fd := range fds {
			fd.Close()
		}
		return nil, err
	}
	return &Shared{fds: append(fds, end), end: end}, nil
}

// Enter begins a use of the descriptors, which Leave ends. os.ErrClosed after End.
func (s *Shared) Enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return os.ErrClosed
	}
	s.users++
	return nil
}

// Leave ends a use. The last one closes the descriptors after End.
func (s *Shared) Leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	s.closeLocked()
}

// End ends the uses that wait in Await, and lets no other one begin. It does not wait. More than
// one call does no harm.
func (s *Shared) End() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return
	}
	s.ended = true
	_ = EventfdWrite(s.end.Int())
	s.closeLocked()
}

func (s *Shared) closeLocked() {
	if !s.ended || s.users > 0 {
		return
	}
	for _, fd := range s.fds {
		fd.Close()
	}
}

// Await waits until fd has something to read, or takes something if write is true, or has hung up
// or failed. os.ErrClosed after End. The caller is between Enter and Leave.
func (s *Shared) Await(fd *FD, write bool) error {
	ended, err := await(fd.Int(), write, s.end.Int())
	if ended {
		return os.ErrClosed
	}
	return err
}

// Transfer calls do for fd, which is Readv or Writev, as soon as fd has something to read, or takes
// something if write is true, until do has another answer than EAGAIN. It waits first: fd may be a
// descriptor that would wait otherwise. os.ErrClosed after End.
func (s *Shared) Transfer(fd *FD, write bool, do func(fd int, iov [][]byte) (int, syscall.Errno), iov [][]byte) (int, error) {
	if err := s.Enter(); err != nil {
		return 0, err
	}
	defer s.Leave()
	for {
		if err := s.Await(fd, write); err != nil {
			return 0, err
		}
		n, errno := do(fd.Int(), iov)
		switch {
		case errno == 0:
			return n, nil
		case errno != syscall.EAGAIN:
			return 0, errno
		}
	}
}
