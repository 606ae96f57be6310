package vhostuser

import (
	"vdev/internal/guestmem"
	"vdev/internal/sys"
)

// setMemTable replaces the whole of guest memory.
func (s *session) setMemTable(m *message) ([]byte, error) {
	table, err := ParseMemoryTable(m.payload)
	if err != nil {
		return nil, err
	}
	if len(m.fds) != len(table) {
		return nil, field("fds", uint64(len(m.fds)), "%d, one for each region", len(table))
	}
	regions := make([]*guestmem.Region, 0, len(table))
	defer func() {
		// The generation has references of its own.
		for _, r := range regions {
			r.Release()
		}
	}()
	for i, t := range table {
		r, err := s.mapRegion(t, m, i)
		if err != nil {
			return nil, err
		}
		regions = append(regions, r)
	}
	mem, err := guestmem.New(regions...)
	if err != nil {
		return nil, err
	}
	s.setMemory(mem)
	return nil, nil
}

// addMemReg adds a region. One that is known already stays as it is: a front-end that has lost
// count may send it again.
func (s *session) addMemReg(m *message) ([]byte, error) {
	d := ParseMemoryRegion(m.payload)
	for _, r := range s.mem.Regions() {
		if r.Is(d.GuestPhys, d.Size, d.UserAddr) && r.MmapOffset == d.MmapOffset {
			return nil, nil
		}
	}
	r, err := s.mapRegion(d, m, 0)
	if err != nil {
		return nil, err
	}
	defer r.Release()
	mem, err := s.mem.With(r)
	if err != nil {
		return nil, err
	}
	s.setMemory(mem)
	return nil, nil
}

// remMemReg removes a region. Requests in flight keep its mapping until they have ended, and so
// does a ring that lies in it, which waits for a while (setMemory).
//
// The specification says that the back-end "must unmap" the region, and that the answer to
// NEED_REPLY tells how the message has ended. Of requests in flight it says nothing, and of what
// SET_MEM_TABLE leaves out nothing at all. So the answer means here that nothing is fetched any
// more whose memory is in the region. To wait for what is in flight would have the front-end stand
// still for as long as storage takes. To cancel it, or to fence it, would lose data: a front-end
// also removes regions to give the same memory back in another shape, under requests that the guest
// waits for. Memory that is to go for good is not in flight: by the virtio specification a buffer
// is the device's until it has been used. (libvhost-user unmaps at once, and a late transfer fails;
// rust-vmm keeps the mapping as here; SPDK, which has SET_MEM_TABLE alone, waits for all requests
// without bound.)
func (s *session) remMemReg(m *message) ([]byte, error) {
	d := ParseMemoryRegion(m.payload)
	mem, err := s.mem.Without(d.GuestPhys, d.Size, d.UserAddr)
	if err != nil {
		return nil, err
	}
	s.setMemory(mem)
	return nil, nil
}

// mapRegion maps what d describes of the i-th descriptor of m.
func (s *session) mapRegion(d MemoryRegion, m *message, i int) (*guestmem.Region, error) {
	fd, err := s.takeMemory(m, i)
	if err != nil {
		return nil, err
	}
	return s.b.space.Map(d.GuestPhys, d.Size, d.UserAddr, d.MmapOffset, fd)
}

// takeMemory takes the i-th descriptor of m, of which memory is to be mapped. One that is refused
// stays the message's, which knows how to close it.
func (s *session) takeMemory(m *message, i int) (*sys.FD, error) {
	if err := s.b.space.Admits(m.fds[i]); err != nil {
		return nil, err
	}
	return m.takeFD(i), nil
}

// setMemory makes mem, to which it takes over the caller's reference, the current generation. When
// it returns, no ring fetches from the old one any more.
//
// A front-end whose memory changes its shape removes regions and adds others in their place, while
// the rings in them run. So a ring that is not in mem waits: it is not fetched from, and what
// completes is shown in the memory it had. With the next message that is not about memory the
// front-end has done what it wanted to, and a ring that still is nowhere breaks (breakHomeless).
func (s *session) setMemory(mem *guestmem.Memory) {
	s.homeless = false
	for _, r := range s.rings {
		if q := r.q; q != nil {
			q.reactor.Do(func() { q.setMemory(mem, false) })
			s.homeless = s.homeless || q.homeless
		}
	}
	s.mem.Release()
	s.mem = mem
}

// aboutMemory tells whether r is one of the messages that change guest memory, of which several may
// belong together.
func (r Request) aboutMemory() bool { return r == AddMemReg || r == RemMemReg || r == SetMemTable }

// breakHomeless breaks the rings whose memory is gone.
func (s *session) breakHomeless() {
	s.homeless = false
	for _, r := range s.rings {
		if q := r.q; q != nil && q.homeless {
			q.reactor.Do(func() { q.setMemory(s.mem, true) })
		}
	}
}
