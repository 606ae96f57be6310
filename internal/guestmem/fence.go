package guestmem

import "vdev/internal/sys"

// Again maps the same range of the same file anew, at other addresses of this process. The caller
// holds the one reference to the Region it returns. Errors are *RegionError. Both mappings count in
// the Space. The second one is there to take the first one's place, so it has room beyond the
// Space's bound.
func (r *Region) Again() (*Region, error) {
	fd, err := r.fd.Dup()
	if err != nil {
		return nil, r.error(err)
	}
	return r.space.mapRegion(r.GuestPhys, r.Size, r.UserAddr, r.MmapOffset, fd, hostLimits().again())
}

// Fence replaces the guest's memory at the region's addresses by private memory, for good; see
// sys.Fence, whose errors it returns. After an error everything is as it was. keep are parts of the
// region whose content stays. From then on only those who are to be kept off may use the region.
// Its addresses stay mapped until the last reference goes, so that nothing else comes to lie there
// before.
func (r *Region) Fence(keep [][]byte) error {
	if err := sys.Fence(r.mapping, keep); err != nil {
		return r.error(err)
	}
	return nil
}

// Holding gives the region that p lies in, or nil. p is not empty.
func (m *Memory) Holding(p []byte) *Region {
	for _, r := range m.regions {
		if _, ok := within(r.mem, p); ok {
			return r
		}
	}
	return nil
}
