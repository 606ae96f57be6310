package virtioblk

import (
	"context"
	"fmt"

	"vdev/vhostuser"
)

// fence abandons the transfers that the driver has not returned, though their cancel was a while
// ago, and keeps them off the guest's memory (vhostuser.Queue.Fence). q is being stopped or
// disabled, and its open is being closed, so that all queues are held and nothing new is begun.
// first says that it is tried for the first time. On the connection's goroutine.
//
// The driver keeps each transfer, with the memory it had. Nobody waits for its end any more but
// the close of the device, and so the next open. The request is suspended, as if its transfer had
// come back cancelled. So a write that still reaches the storage late does so before anything that
// is begun later.
//
// Other queues, those that go on as well, are treated alike: what they have in flight lies in the
// old memory, too. Operations are given up with it, since the byte for their status does. So no
// ring has anything in flight when it goes over to the new memory, and what is suspended holds no
// memory.
//
// A transfer may come back at any moment of this. Until it is abandoned it ends as ever. After
// that, what it has read is in the guest's memory or is not, and what it has written is on the
// storage or is not, as with any cancelled transfer. Its end is posted to the reactor as ever
// (letGo), also when its queue has long been stopped: it lets go of the old memory, and so in the
// end of its addresses, and of nothing else.
func (d *Device) fence(q *queue, first bool) {
	// With this no queue opens the device again meanwhile: what one begins then is not stuck. It
	// does not come too late where the driver still has a transfer of q, and else there is nothing
	// to be fenced for q's sake.
	q.open.Hold()
	defer q.open.Release()
	if !q.hasTransfers() {
		return
	}
	if d.snapshot().Pinned {
		if first {
			d.config.Log("reads or writes that storage does not complete hold up the stop: they use the guest's pages themselves, and cannot be fenced from them", nil)
		}
		return
	}
	var stuck []vhostuser.Stuck
	writes := 0
	queues := d.queuesOf(q.open) // what was started since has begun nothing
	for _, q := range queues {
		q.vq.Do(func() {
			q.hold()
			for _, r := range q.requests {
				if !r.inDriver() {
					continue
				}
				write := r.typ == tOut
				if write {
					writes++
				}
				t := r.abandon()
				// A transfer that comes back lets go of its memory, and the fence is to stand on
				// it all the same.
				t.memory.Retain()
				stuck = append(stuck, vhostuser.Stuck{Memory: t.memory, Bufs: t.data, Keep: write})
			}
			q.giveUp()
		})
	}
	if len(stuck) == 0 {
		return
	}
	// An operation that has ended by itself tells so in a moment. The byte for its status is in the
	// old memory, too.
	_ = waitIdle(context.Background(), queues)
	err := q.vq.Fence(stuck)
	for _, s := range stuck {
		s.Memory.Release()
	}
	if err != nil {
		d.config.Log("reads or writes that storage does not complete hold up the stop: they cannot be fenced from the guest's memory", err)
		// Background never ends, so this does not fail.
		_ = d.lost.Drain(context.Background())
		return
	}
	d.config.Log(fmt.Sprintf("storage does not complete %d reads and %d writes: they were fenced from the guest's memory, and the next start waits for them", len(stuck)-writes, writes), nil)
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
