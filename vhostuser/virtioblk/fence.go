package virtioblk

import (
	"context"
	"fmt"
	"slices"

	"vdev/devsw"
	"vdev/vhostuser"
	"vdev/virtq"
)

// fence splits off the transfers that the driver has not given back, though their cancel was a while ago, and keeps them off the guest's
// memory (vhostuser.Queue.Fence). o has been taken down, so that all queues are parked and nothing new is begun. On the connection's
// goroutine, in q's StopQueue or PauseQueue.
//
// Of each such request the driver keeps its half: the Buf, with the memory it had, whose end nobody waits for any more but the close of
// the device, and so the next open. A successor has the rest, the chain above all, as if the transfer had come back cancelled: it is
// suspended, or fails, or is begun again when the device has been opened anew. So a write that still reaches the storage late does so
// before anything that is begun later.
//
// A transfer may come back at any moment of this. Up to the split it ends as ever. After it, what it has read is in the guest's memory or
// is not, and what it has written is on the storage or is not, as with any cancelled transfer; the successor knows nothing of it.
//
// What else there is at that moment:
//
//   - Other queues, those that go on as well, are treated alike: what they have in flight lies in the old memory, too. None of them can
//     begin anything, since they are parked until the device has been closed, which waits for the driver's halves.
//   - Requests that have come back already, and operations that go on, are not in the driver's hands as far as memory goes. Their chains
//     are moved (rehome), for they are yet to be answered.
//   - A chain popped before the front-end changed the memory is moved from the generation it was popped in. Where its memory is gone,
//     its ring breaks, and a status byte of nobody's takes the answer.
//   - The late end of a driver's half is posted to the reactor as ever (cameBack), also when its queue has long been stopped: it lets go
//     of the old memory, and so in the end of its addresses, and of nothing else. The queue counts it no more.
//   - A further stop, a lost connection or RESET_DEVICE finds the successors kept, and nothing of the old memory.
func (d *Device) fence(q *queue, o *opening) {
	// With this no queue opens the device again meanwhile: what one begins then is not stuck, nor kept. It does not come too late where
	// the driver still has a transfer of q, and else there is nothing to be fenced for q's sake.
	o.ops.Acquire()
	defer o.ops.Release()
	if !q.hasTransfers() {
		return
	}
	if d.snapshot().Pinned {
		if !o.pinned {
			o.pinned = true
			d.log("reads or writes that storage does not give back hold up the stop: they use the guest's pages themselves, and cannot be fenced from them", nil)
		}
		return
	}
	queues := d.startedQueues()
	var stuck []vhostuser.Stuck
	reads, writes := 0, 0
	for _, q := range queues {
		q.vq.Do(func() {
			for i, r := range q.requests {
				if !r.inDriver() {
					continue
				}
				q.split(i)
				// A transfer that comes back lets go of its memory, and the fence is to stand on it all the same.
				r.memory.Retain()
				stuck = append(stuck, vhostuser.Stuck{Memory: r.memory, Bufs: r.data, Keep: r.typ == tOut})
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

// inDriver tells whether the request is a read or a write that the driver has. On the reactor.
//
// A chain that is not in flight may have a request all the same, which nobody ends: Process has lost both in a fault on the guest's
// memory (vhostuser.Queue.RecoverFault).
func (r *request) inDriver() bool {
	return r.chain.InFlight() && r.kept == nil && (r.typ == tIn || r.typ == tOut)
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

// split leaves the request at i of q.requests to the driver, and puts a successor in its place, which is kept. On the reactor.
func (q *queue) split(i int) {
	r := q.requests[i]
	n := &request{
		q: q, chain: r.chain, data: r.data, status: r.status, typ: r.typ, sector: r.sector, bytes: r.bytes, in: r.in,
		seq: r.seq, began: r.began, at: i, units: r.units,
	}
	r.units = 0 // the driver's halves are those of one life of the device: the next open waits for them
	r.fenced.Store(true)
	r.memory = q.vq.Memory(&r.chain)
	r.chain, r.status = virtq.Chain{}, nil
	q.requests[i] = n
	q.d.lost.Acquire()
	q.open.ops.Acquire()
	q.keep(n, devsw.ECANCELED)
}

// cameBack ends the driver's half of a request. On the reactor.
func (d *Device) cameBack(r *request) {
	memory, o := r.memory, r.q.open
	r.memory, r.data = nil, nil
	memory.ReleaseSoon()
	d.lost.Release()
	o.ops.Release()
}

// rehome takes the requests in flight over to the memory that the ring has now. On the reactor.
func (q *queue) rehome() {
	for _, r := range q.requests {
		if !r.chain.InFlight() {
			continue
		}
		moved, ok := q.vq.Rehome(&r.chain, append(slices.Clone(r.data), r.status))
		if !ok {
			// The ring is broken, and nothing that is done with the request is to be seen.
			r.status = make([]byte, 1)
			continue
		}
		last := len(moved) - 1
		r.data, r.status = moved[:last:last], moved[last]
	}
}
