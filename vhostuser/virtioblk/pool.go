package virtioblk

import "vdev/internal/offload"

// Pool is the threads on which devices do requests that may block: all but reads and writes. What
// a device cannot do at once waits, and takes neither a thread nor a goroutine meanwhile. Devices
// take turns, so that one whose storage stalls does not hold up the others.
type Pool offload.Pool

// NewPool makes a Pool that does as many requests at once as it has places, and no more than each
// of one device. 0 stands for 64 places, and for 16 of one device. A Pool has no threads until
// there is work. Close ends it.
func NewPool(places, each int) *Pool {
	return (*Pool)(offload.New(offload.Config{Places: places, Each: each}))
}

// Close ends the Pool, and waits for what is being done on it. It comes after the Close of each
// Device that has it.
func (p *Pool) Close() { (*offload.Pool)(p).Close() }
