package virtioconsole

import "vdev/virtq/virtqtest"

// segs makes buffers of these sizes in the guest's memory.
func segs(mem *virtqtest.Mem, sizes ...int) (all []virtqtest.Seg) {
	for _, n := range sizes {
		all = append(all, virtqtest.Seg{Addr: mem.Alloc(uint64(max(n, 1)), 16), Len: uint32(n)})
	}
	return all
}
