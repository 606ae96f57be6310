package vhostuser

import (
	"slices"

	"vdev/internal/guestmem"
	"vdev/virtq"
)

// Stuck is a transfer that storage does not return, and that must not touch the guest's memory
// any more.
type Stuck struct {
	// Memory is what Bufs lie in, as Queue.Memory gives it. The caller holds one reference until
	// Fence has returned, and one until the transfer has come back.
	Memory *virtq.Memory
	Bufs   [][]byte // where storage writes to, or reads from
	// Keep says that storage reads from Bufs, and is to find what is there now, whatever the guest
	// makes of its memory later.
	Keep bool
}

// Fence keeps transfers that storage does not return off the guest's memory, for good.
// StopDevice, StopQueue and PauseQueue call it, and nobody else may: it runs on the connection's
// goroutine, and the front-end waits.
//
// Other than to wait there is no way to end a system call that the host's kernel is stuck in. It
// knows the guest's memory by its addresses in this process, though, and those can be taken from
// under it:
//
//  1. The regions that a stuck transfer uses are mapped anew, elsewhere, and make a new generation
//     of guest memory, to which every ring of the session goes over. No ring has anything in flight
//     by then: the Device has suspended it. Nothing is translated into the old mapping any more.
//  2. Private memory, with a copy of what the stuck writes have yet to read, takes the place of the
//     old mapping.
//
// Until 2 a stuck transfer may go on in the guest's memory, as it may before any stop is answered;
// what ends before it, ends as ever. From 2 on it reads the copy, and writes to memory that nobody
// looks at. The transfers' Memory holds the addresses, so that nothing else comes to lie there
// before they have ended. Storage is not fenced: a write may still reach it at any time, so that
// nobody must open it anew before.
//
// It holds for whatever copies by address: system calls and io_uring on files that are cached, and
// this process's own code. It does not hold for transfers that pin pages (O_DIRECT, registered
// buffers), which must not be fenced.
//
// An error says that the fence could not be put up. Then the stuck transfers still are in the
// guest's memory, and have to be waited for.
func (q *Queue) Fence(stuck []Stuck) error {
	fences := fencesFor(stuck)
	if err := q.s.renewMemory(fences); err != nil {
		return err
	}
	for _, f := range fences {
		if err := f.region.Fence(f.keep); err != nil {
			return err
		}
	}
	return nil
}

// fence is a region that is to be fenced, with what of it is to be kept.
type fence struct {
	region *guestmem.Region
	keep   [][]byte
}

// fencesFor finds the regions that stuck transfers use.
func fencesFor(stuck []Stuck) (fences []*fence) {
	for _, t := range stuck {
		for _, b := range t.Bufs {
			if len(b) == 0 {
				continue
			}
			r := (*guestmem.Memory)(t.Memory).Holding(b)
			i := slices.IndexFunc(fences, func(f *fence) bool { return f.region == r })
			if i < 0 {
				i = len(fences)
				fences = append(fences, &fence{region: r})
			}
			if t.Keep {
				fences[i].keep = append(fences[i].keep, b)
			}
		}
	}
	return fences
}

// renewMemory maps the regions of these fences that are still the guest's anew, in a new generation
// of its memory, and takes the rings over. A ring that is nowhere in it breaks: it must not stay in
// memory that is fenced.
func (s *session) renewMemory(fences []*fence) error {
	regions := slices.Clone(s.mem.Regions())
	var renewed []*guestmem.Region
	defer func() {
		// The generation has references of its own.
		for _, r := range renewed {
			r.Release()
		}
	}()
	for i, r := range regions {
		if !slices.ContainsFunc(fences, func(f *fence) bool { return f.region == r }) {
			continue
		}
		again, err := r.Again()
		if err != nil {
			return err
		}
		renewed = append(renewed, again)
		regions[i] = again
	}
	mem, err := guestmem.New(regions...)
	if err != nil {
		return err
	}
	for _, r := range s.rings {
		if q := r.q; q != nil {
			q.reactor.Do(func() { q.setMemory(mem, true) })
		}
	}
	s.mem.Release()
	s.mem = mem
	return nil
}

// Memory returns the memory that the buffers of c, a chain in flight, lie in, with a reference to
// it that is the caller's.
func (q *Queue) Memory(c *virtq.Chain) *virtq.Memory { return q.vq.Memory(c) }
