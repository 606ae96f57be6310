package vhostuser

import (
	"vdev/virtq"
)

// setLogBase takes the dirty log that rings mark in from now on, also those that run: a migration
// begins in the midst of I/O, and may need a larger log when memory is added. When it is answered,
// nothing is marked in the log before it any more. The answer is a message that the front-end waits
// for and whose payload it does not look at.
//
// The log need not cover all of guest memory; a ring breaks when something is to be marked outside
// of it.
func (s *session) setLogBase(m *message) ([]byte, error) {
	d := parseLogBase(m.payload)
	log, err := s.b.space.NewLog(m.fds[0], d.MmapSize, d.MmapOffset)
	if err != nil {
		return nil, err
	}
	old := s.log
	s.log = log
	s.relog()
	if old != nil {
		old.Close()
	}
	return AppendU64(nil, 0), nil
}

// setLogFD takes the descriptor that is signalled when something was marked.
func (s *session) setLogFD(m *message) ([]byte, error) {
	fd, err := m.takeEventfd()
	if err != nil {
		return nil, err
	}
	old := s.logFD
	s.logFD = fd
	s.relog()
	closeFD(&old)
	return nil, nil
}

// dropLog lets go of the log. No ring runs.
func (s *session) dropLog() {
	if s.log != nil {
		s.log.Close()
		s.log = nil
	}
	closeFD(&s.logFD)
}

// relog tells all rings that run what to mark, and where, by what the front-end has said last. It
// is a barrier.
func (s *session) relog() {
	for _, r := range s.rings {
		if r.q != nil {
			s.relogRing(r, r.q)
		}
	}
}

// relogRing is relog for one ring, whose Queue is q.
func (s *session) relogRing(r *ring, q *Queue) {
	d := s.dirtyLog(r)
	if d.Log == nil && !q.logs {
		return
	}
	q.logs = d.Log != nil
	logged := signal{fd: -1}
	if q.logs {
		logged = newSignal(s.logFD)
	}
	q.reactor.Do(func() { q.setLog(d, logged) })
}

// dirtyLog says what a ring is to mark: the chains' buffers with VHOST_F_LOG_ALL, the used ring
// with VHOST_VRING_F_LOG (vhost-user, "Migration"). Without a log that is nothing: front-ends set
// the features of a device that starts before SET_LOG_BASE, and enable its rings afterwards.
func (s *session) dirtyLog(r *ring) virtq.DirtyLog {
	d := virtq.DirtyLog{
		Log:  (*virtq.Log)(s.log),
		Data: s.features&FLogAll != 0,
		Used: r.addr.Flags&VringLog != 0, UsedAddr: r.addr.Log,
	}
	if !d.Data && !d.Used {
		d.Log = nil
	}
	return d
}

// setLog changes what the ring marks. On the reactor.
func (q *Queue) setLog(d virtq.DirtyLog, logged signal) {
	defer q.RecoverFault()
	q.logged = logged
	if err := q.vq.SetLog(d); err != nil {
		q.fail(err)
	}
}
