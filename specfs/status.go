package specfs

import (
	"cmp"
	"slices"

	"vdev/devsw"
)

// DeviceStatus is what is known of one device at a moment.
type DeviceStatus struct {
	Mode devsw.Mode // block or character
	Dev  devsw.Dev  // its number
	// Opens is the number of opens, of all nodes, those in progress included.
	Opens int
	// Opening is the number of opens in progress among them.
	Opening int
	// Closing: a last close is under way, from before d_cancel to after the last
	// drain.
	Closing bool
	// Claimed: a node has claimed the device.
	Claimed bool
	// Operations are the I/O sections, as InProgress tells them.
	Operations []Operation
}

// Devices tells of each device that there is anything to know about: it is open,
// being opened or being closed, or something is in progress on it. They are
// ordered by kind and number. It waits for no operation. vdev's own.
func (fs *FS) Devices() []DeviceStatus {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	all := make([]DeviceStatus, 0, len(fs.devs))
	for _, sd := range fs.devs {
		all = append(all, DeviceStatus{
			Mode: sd.kind, Dev: sd.dev, Opens: sd.opencnt, Opening: sd.opens.Count(), Closing: sd.closing,
			Claimed: sd.claim != nil, Operations: sd.operationsLocked(),
		})
	}
	slices.SortFunc(all, func(a, b DeviceStatus) int {
		return cmp.Or(cmp.Compare(a.Mode, b.Mode), cmp.Compare(a.Dev, b.Dev))
	})
	return all
}
