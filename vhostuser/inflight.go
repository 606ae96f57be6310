package vhostuser

import (
	"errors"

	"vdev/internal/guestmem"
	"vdev/internal/sys"
	"vdev/virtq"
)

var errInflightRunning = errors.New("the in-flight region cannot be changed while a ring runs")

// inflight is the in-flight region of a session: memory of the front-end's that outlives this
// process, in which the rings record what they have fetched and not completed (vhost-user,
// "Inflight I/O tracking"). It is mapped as a region of guest memory is.
type inflight struct {
	region    *guestmem.Region
	queues    int
	queueSize int // descriptors
}

// queue returns the part of ring i, nil for one that is not in the region.
func (f *inflight) queue(i int) []byte {
	if f == nil || i >= f.queues {
		return nil
	}
	n := virtq.InflightSize(f.queueSize)
	return f.region.Bytes()[i*n:][:n:n]
}

// dropInflight lets go of the region. No ring runs. What was suspended in it is the front-end's to
// bring again, or not.
func (s *session) dropInflight() {
	if s.inflight == nil {
		return
	}
	if k := s.b.keeper; k != nil {
		k.SetStatePage(nil)
	}
	s.inflight.region.Release()
	s.inflight = nil
	for _, r := range s.rings {
		r.suspended = 0
	}
}

// parseInflight reads and checks what is the same in both messages.
func (s *session) parseInflight(m *message) (Inflight, error) {
	d, err := ParseInflight(m.payload)
	if err != nil {
		return d, err
	}
	if d.NumQueues == 0 || int(d.NumQueues) > len(s.rings) {
		return d, field("num queues", uint64(d.NumQueues), "1 to %d", len(s.rings))
	}
	if d.QueueSize == 0 || d.QueueSize > virtq.MaxSize {
		return d, field("queue size", uint64(d.QueueSize), "1 to %d", virtq.MaxSize)
	}
	return d, nil
}

// size returns the bytes that all queues take together.
func (d Inflight) size() uint64 {
	return uint64(d.NumQueues) * uint64(virtq.InflightSize(int(d.QueueSize)))
}

// getInflightFD answers with a new region, all zero, which becomes the session's only when the
// front-end brings it back: it asks where nothing of before is to go on.
func (s *session) getInflightFD(m *message) ([]byte, error) {
	d, err := s.parseInflight(m)
	if err != nil {
		return nil, err
	}
	d.MmapSize, d.MmapOffset = d.size(), 0
	if s.b.keeper != nil {
		d.MmapSize = d.statePage() + statePageSize
	}
	if m.reply, err = sys.NewSealedMemfd("vhost-user-inflight", int64(d.MmapSize)); err != nil {
		return nil, err
	}
	if s.b.keeper != nil {
		if err := markStatePage(m.reply, int64(d.statePage())); err != nil {
			return nil, err
		}
	}
	return d.Append(nil)[:len(m.payload)], nil
}

// setInflightFD takes the region that rings use from their next start on: a new one, or one that a
// back-end before this one has written, or this one before a pause. Its contents are checked then,
// ring by ring.
func (s *session) setInflightFD(m *message) ([]byte, error) {
	d, err := s.parseInflight(m)
	if err != nil {
		return nil, err
	}
	if s.running() {
		return nil, errInflightRunning
	}
	if d.MmapSize < d.size() {
		return nil, field("mmap size", d.MmapSize, "%#x or more for %d queues of %d", d.size(), d.NumQueues, d.QueueSize)
	}
	if d.MmapOffset%8 != 0 {
		return nil, field("mmap offset", d.MmapOffset, "a multiple of 8")
	}
	fd, err := s.takeMemory(m, 0)
	if err != nil {
		return nil, err
	}
	// Not more than is used: the rest is not ours to map. The state page is another mapping.
	region, err := s.b.space.Map(0, d.size(), 0, d.MmapOffset, fd)
	if err != nil {
		return nil, err
	}
	s.dropInflight()
	s.inflight = &inflight{region: region, queues: int(d.NumQueues), queueSize: int(d.QueueSize)}
	if k := s.b.keeper; k != nil {
		k.SetStatePage(openStatePage(&s.b.space, d, region.FD()))
	}
	return nil, nil
}
