package guestmem

import "vdev/internal/sys"

// Again maps the same range of the same file anew, at other addresses of this process. The caller holds the one reference to the
// Region it returns. Errors are *RegionError. Both count; for the second, which is there to take the first one's place, there is room
// beyond what a Space may hold otherwise.
func (r *Region) Again() (*Region, error) {
	fd, err := r.fd.Dup()
	if err != nil {
		return nil, r.error(err)
	}
	return r.space.mapRegion(r.GuestPhys, r.Size, r.UserAddr, r.MmapOffset, fd, hostLimits().again())
}

// Fence puts private memory in the place of the guest's at the region's addresses, for good: see sys.Fence, whose errors it has, and
// after which everything is as it was. keep are parts of the region whose content stays. Nobody but those who are to be kept off uses
// the region any more, then or later; its addresses stay mapped until the last reference goes, so that nothing else comes to lie
// there before.
func (r *Region) Fence(keep [][]byte) error {
	if err := sys.Fence(r.mapping, keep); err != nil {
		return r.error(err)
	}
	return nil
}

// holding gives the region that p, which is not empty, lies in, or nil.
func (m *Memory) holding(p []byte) (*Region, uint64) {
	for _, r := range m.regions {
		if off, ok := within(r.mem, p); ok {
			return r, off
		}
	}
	return nil, 0
}

// Holding gives the region that p lies in, or nil. p is not empty.
func (m *Memory) Holding(p []byte) *Region {
	r, _ := m.holding(p)
	return r
}

// Move gives the guest's memory that p, a slice of m's, stands for as it is in another generation; an empty one is nil. It fails where
// p does not lie in one region of m, or to has no such memory in one piece.
func (m *Memory) Move(p []byte, to *Memory) ([]byte, bool) {
	if len(p) == 0 {
		return nil, true
	}
	r, off := m.holding(p)
	if r == nil {
		return nil, false
	}
	return to.Slice(r.GuestPhys+off, uint64(len(p)))
}
