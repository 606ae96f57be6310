package virtioblk

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// A guest decides how many requests there are, and of how many buffers each is made: up to 32768
// of up to 32768, in each of 256 queues. What is in flight is charged in units of about 64 bytes
// of memory, which is what a buffer takes, here and in the reactor, and a queue that has no units
// left leaves the rest in its ring until some of its requests have ended.
const (
	requestUnits = 16 // of a request without buffers, with all that the driver has of it
	rangesAUnit  = 2  // ranges of a discard or write-zeroes

	// queueUnits are a queue's own. They do for a ring of 256 with small requests. Where more is
	// refused, it goes on with these: its requests end, and then it is its turn again.
	queueUnits = 8 << 10
	// roomChunk is how many more a queue asks for at a time.
	roomChunk = queueUnits

	// keepRequests and keepBuffers are what a queue keeps for later: requests, and in each room for
	// so many buffers. They do for QEMU's largest ring and for what seg_max allows, which a guest
	// driver that behaves does not exceed; beyond them memory is made anew each time.
	keepRequests = 1024
	keepBuffers  = 512
)

// The default room.
const (
	processUnits = 8 << 20 // 512 MiB
	deviceUnits  = 1 << 20 // 64 MiB
)

// room is the units that devices share, beside what each queue has to itself.
type room struct {
	process, device int64
	used            atomic.Int64
}

// newRoom makes a room of so many units for all devices that share it, and for each of them.
func newRoom(process, device int) *room { return &room{process: int64(process), device: int64(device)} }

// defaultRoom is for a Config that has none.
var defaultRoom = newRoom(processUnits, deviceUnits)

// deviceRoom is a device's part in a room.
type deviceRoom struct {
	room *room
	used atomic.Int64
}

// take takes another chunk, if there is one.
func (r *deviceRoom) take() bool {
	if r.used.Add(roomChunk) <= r.room.device {
		if r.room.used.Add(roomChunk) <= r.room.process {
			return true
		}
		r.room.used.Add(-roomChunk)
	}
	r.used.Add(-roomChunk)
	return false
}

func (r *deviceRoom) release(units int64) {
	r.used.Add(-units)
	r.room.used.Add(-units)
}

// account is a queue's units. It is its reactor's.
type account struct {
	held    int // of requests in flight
	granted int // how many there may be; a request that is begun below that may exceed it
	most    int // of granted, since memory was last freed to the host
}

// moreRoom asks for more than is granted, and tells whether another request may be begun. On the
// reactor.
func (q *queue) moreRoom() bool {
	for q.held >= q.granted {
		if !q.d.room.take() {
			return false
		}
		q.granted += roomChunk
		q.most = max(q.most, q.granted)
	}
	return true
}

// charge takes the units of a request that was popped. On the reactor.
func (q *queue) charge(r *request) {
	r.units = requestUnits + len(r.chain.Readable) + len(r.chain.Writable)
	q.held += r.units
}

// shrink releases the chunks that are not needed for so many units. On the reactor.
func (q *queue) shrink(need int) {
	spare := (q.granted - max(need, queueUnits)) / roomChunk * roomChunk
	if spare <= 0 {
		return
	}
	q.granted -= spare
	q.d.room.release(int64(spare))
	if q.granted == queueUnits && q.most >= largeUnits {
		q.most = 0
		freeMemory()
	}
}

// largeUnits is from how many units on a queue that has done with them frees memory to the host: 16
// MiB.
const largeUnits = 16 << 20 / 64

var freeing atomic.Bool

// freeAfter is how long after that, so that it is done once for many queues, and not all the time
// for a guest that provokes it.
const freeAfter = 2 * time.Second

// freeMemory frees memory to the host, soon. The runtime by itself looks for garbage only when
// there is more, or after two minutes, and then keeps much of what it finds.
func freeMemory() {
	if freeing.CompareAndSwap(false, true) {
		time.AfterFunc(freeAfter, func() {
			freeing.Store(false)
			debug.FreeOSMemory()
		})
	}
}

// trim gives up requests that are not in use, if they are many. On the reactor, while nobody goes
// through q.requests.
func (q *queue) trim() {
	for _, r := range q.free[keepRequests:] {
		last := len(q.requests) - 1
		q.requests[r.at] = q.requests[last]
		q.requests[r.at].at = r.at
		q.requests[last] = nil
		q.requests = q.requests[:last]
	}
	// Not only shorter: the lists themselves go.
	q.free = append([]*request(nil), q.free[:keepRequests]...)
	q.requests = append([]*request(nil), q.requests...)
}
