package virtioblk

import (
	"context"
	"fmt"

	"vdev/specfs"
	"vdev/vhostuser"
)

// fence abandons the transfers that the driver has not returned, though their cancel was a while
// ago, and keeps them off the guest's memory (vhostuser.Queue.Fence). o has been taken down, so that
// all queues are parked and nothing new is begun. On the connection's goroutine, in StopDevice, or in
// q's StopQueue or PauseQueue; first: for the first time there.
//
// The driver keeps each transfer, with the memory it had. Nobody waits for its end any more but the
// close of the device, and so the next open. The request goes on as if its transfer had come back
// cancelled: it is suspended, or fails, or is begun again when the device has been opened anew. So a
// write that still reaches the storage late does so before anything that is begun later.
//
// A transfer may come back at any moment of this. Until it is abandoned it ends as ever. After that,
// what it has read is in the guest's memory or is not, and what it has written is on the storage or
// is not, as with any cancelled transfer.
//
// What else there is at that moment:
//
//   - Other queues, those that go on as well, are treated alike: what they have in flight lies in the old memory, too. None of them can
//     begin anything, since they are parked until the device has been closed, which waits for what was abandoned.
//   - Requests that have come back already, and operations that go on, are not in the driver's hands as far as memory goes. Their chains
//     are moved (rehome), for they are yet to be answered.
//   - A chain popped before the front-end changed the memory is moved from the generation it was popped in. Where its memory is gone,
//     its ring breaks, and a status byte of nobody's takes the answer.
//   - The late end of a transfer is posted to the reactor as ever (letGo), also when its queue has
//     long been stopped: it lets go of the old memory, and so in the end of its addresses, and of
//     nothing else. The queue counts it no more.
//   - A further stop, a lost connection or RESET_DEVICE finds the requests kept, and nothing of the
//     old memory.
func (d *Device) fence(q *queue, o *specfs.Life, first bool) {
	// With this no queue opens the device again meanwhile: what one begins then is not stuck, nor kept. It does not come too late where
	// the driver still has a transfer of q, and else there is nothing to be fenced for q's sake.
	o.Hold()
	defer o.Release()
	if !q.hasTransfers() {
		return
	}
	if d.snapshot().Pinned {
		if first {
			d.log("reads or writes that storage does not give back hold up the stop: they use the guest's pages themselves, and cannot be fenced from them", nil)
		}
		return
	}
	queues := d.startedQueues()
	var stuck []vhostuser.Stuck
	reads, writes := 0, 0
	for _, q := range queues {
		q.vq.Do(func() {
			for _, r := range q.requests {
				if !r.inDriver() {
					continue
				}
				t := r.transfer
				r.abandon()
				// A transfer that comes back lets go of its memory, and the fence is to stand on it all the same.
				t.memory.Retain()
				stuck = append(stuck, vhostuser.Stuck{Memory: t.memory, Bufs: t.data, Keep: r.typ == tOut})
				if r.typ == tOut {
					writes++
				} else {
					reads++
				}
			}
		})
	}
	if len(stuck) == 0 {
		return
	}
	err := q.vq.Fence(stuck, func() {
		for _, q := range queues {
			q.vq.Do(q.rehome)
		}
	})
	for _, s := range stuck {
		s.Memory.Release()
	}
	if err != nil {
		d.log("reads or writes that storage does not give back hold up the stop: they cannot be fenced from the guest's memory", err)
		// Background never ends, so this does not fail.
		_ = d.lost.Drain(context.Background())
		return
	}
	d.log(fmt.Sprintf("storage does not give back %d reads and %d writes: they were fenced from the guest's memory, and the next start waits for them", reads, writes), nil)
}

// startedQueues gives the queues that are started.
func (d *Device) startedQueues() (all []*queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q := range d.queues {
		all = append(all, q)
	}
	return all
}

// hasTransfers tells whether the driver has a read or a write of this queue.
func (q *queue) hasTransfers() (has bool) {
	q.vq.Do(func() {
		for _, r := range q.requests {
			has = has || r.inDriver()
		}
	})
	return has
}
