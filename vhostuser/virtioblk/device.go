// Package virtioblk is the virtio block device (virtio specification, section 5.2): it makes a devsw.Buf of each request of
// a virtqueue and hands it to a block device through specfs.
//
// A Device's life is the front-end's: the first ring that starts opens the block device, off the control path, and requests
// wait in their rings until it is open; the stop of the last ring closes it (cancel, drain, close). Of the stop sequence see
// StopQueue.
//
// Two kinds of goroutine meet here. The connection's calls the methods of vhostuser.Device; the reactor of a queue calls
// Process and owns the queue and its requests. Device.mu guards what the connection's goroutine, the one that opens the
// device and the reactors share; it is never held while anything is waited for, and never taken on the way of a read or a
// write.
package virtioblk

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/offload"
	"vdev/specfs"
	"vdev/vhostuser"
)

// MaxSerial is the longest serial number, in bytes (VIRTIO_BLK_ID_BYTES).
const MaxSerial = idSize

// One look at a ring starts at most budget requests, and no further one after budgetBytes, so that rings of one reactor take
// turns, and messages of the front-end wait for neither: a driver may copy data on the reactor. Nor
// does it after budgetWork descriptors (virtq.Chain.Work): requests that have no data, or are
// refused, may be long, too.
const (
	budget      = 128
	budgetBytes = 4 << 20
	budgetWork  = 4096
)

// Config says what a Device serves.
type Config struct {
	FS  *specfs.FS
	Dev devsw.Dev
	// Info describes the disk. It is called by New, by Resize, when a session begins and when the disk has been opened, whether the
	// disk is open or not.
	Info func() (devsw.DiskInfo, error)
	// Keeper, where it is set, is what the disk knows of itself beside.
	Keeper Keeper
	// Ended, where it is set, tells of a holder of another disk's (devsw.DiskInfo.Holder) whether it has ended in order, with all that
	// it had put where this disk has it too. known: it knows of it, or that it has not. It is called when the disk has been opened, and
	// may wait, but not for long. nil: it knows of none.
	Ended func(holder uint64) (ended, known bool)
	// SizeChanged, where it is set, is called when a session's beginning or an open has found another size: the front-end is to be told
	// (vhostuser.Backend.ConfigChanged). Any goroutine.
	SizeChanged func()
	Serial      string // at most MaxSerial bytes
	// NumQueues is how many queues the front-end may use; at least 1.
	NumQueues int
	// SegMax is how many buffers a read or a write may have (seg_max), at most MaxSegMax; DefaultSegMax where it is 0. The front-end asks
	// before it says how large a ring is, and a guest driver without indirect descriptors takes it at its word: a request of more buffers
	// than fit its ring then waits for ever for room there. For rings of less than 128 it must be their size less 2.
	SegMax int
	// CancelAfter is how long requests in flight may take to complete, once the front-end stops the rings, before they are
	// cancelled; 0 is at once.
	CancelAfter time.Duration
	// Migratable says that the guest's state may be saved, or go elsewhere, without the in-flight region, so that nothing may
	// stay in it over a GET_VRING_BASE (see StopQueue). It goes with vhostuser.Config.NotMigratable.
	Migratable bool
	// Pool is where requests that may block are done: all but reads and writes. nil: offload.Default.
	Pool *offload.Pool
	// Room bounds the memory of the requests in flight. nil: one that all devices without one share, 64 MiB for each of them and 512 MiB
	// for all.
	Room *Room
	// Trace, where it is set, is called for each request that has ended, was suspended, or has come back cancelled. It is
	// called on the queues' reactors and where drivers end transfers, also at the same time, and must not block.
	Trace func(Request)
	// Failed, where it is set, is told of each request that storage has failed: see Failures. It is called on the queues' reactors, also
	// at the same time, and must not block.
	Failed func(Request)
	// Log, where it is set, is told what went wrong or took long where nobody is there to take an error.
	Log func(msg string, err error)
}

// Device is one virtio block device. It implements vhostuser.Device.
type Device struct {
	fs          *specfs.FS
	dev         devsw.Dev
	readInfo    func() (devsw.DiskInfo, error)
	keeper      Keeper // or nil
	ended       func(holder uint64) (ended, known bool)
	sizeChanged func()
	serial      string
	numQueues   int
	segMax      int
	cancelAfter time.Duration
	migratable  bool
	trace       func(Request)
	log         func(string, error)
	failed      func(Request)
	readOnly    bool
	share       *offload.Share // of Config.Pool
	room        deviceRoom     // of Config.Room

	sectors atomic.Int64          // of 512 bytes
	stable  atomic.Bool           // each write is to be stable when it is answered, because of the cache's mode
	unsaid  atomic.Pointer[error] // how a flush failed that nobody waited for any more; the next one tells it
	looking atomic.Bool           // a session's beginning has asked for the size, and storage has not answered yet

	memory memory

	failures failures

	lives      specfs.Lives     // opens of the block device
	negotiated uint64           // the connection's goroutine only
	lost       devsw.Localcount // transfers that the driver has not returned, and that were abandoned: see fence

	mu        sync.Mutex
	info      devsw.DiskInfo
	open      *specfs.Life // nil while the device is not to be open
	queues    map[*queue]struct{}
	stop      *stop // under way, or nil
	stopGap   time.Duration
	anew      bool  // the guest's driver has begun anew, and the block device has not been opened since
	suspended []int // by ring: requests left in the in-flight region by its last stop
}

// stop is a stop of the device: rings are disabled or stopped, one soon after the other. It begins with the first one that
// has something in flight, and is over when a ring is started or enabled, or Device.stopGap after the front-end was answered
// last.
type stop struct {
	deadline time.Time
	waiting  bool      // the front-end waits for an answer
	answered time.Time // when it was answered last
	drains   bool      // other rings are likely to be disabled or stopped next
}

// defaultStopGap is how long after one ring another one may be disabled, or stopped, and pass for a part of the same stop.
// All of a stop has one deadline, or a device of 64 rings that hang would hold up the front-end for 64 times as long.
const defaultStopGap = time.Second

var _ vhostuser.Device = (*Device)(nil)

// New makes a Device. The block device is not opened.
func New(c Config) (*Device, error) {
	switch {
	case c.NumQueues < 1:
		return nil, fmt.Errorf("virtio-blk: %d queues: there must be at least one", c.NumQueues)
	case c.SegMax < 0 || c.SegMax > MaxSegMax:
		return nil, fmt.Errorf("virtio-blk: seg_max is %d: must be from 1 to %d", c.SegMax, MaxSegMax)
	case len(c.Serial) > MaxSerial:
		return nil, fmt.Errorf("virtio-blk: serial number %q has %d bytes, at most %d fit", c.Serial, len(c.Serial), MaxSerial)
	}
	d := &Device{fs: c.FS, dev: c.Dev, readInfo: c.Info, serial: c.Serial, numQueues: c.NumQueues, segMax: c.SegMax,
		cancelAfter: c.CancelAfter, stopGap: defaultStopGap, migratable: c.Migratable,
		trace: c.Trace, log: c.Log, failed: c.Failed, keeper: c.Keeper, ended: c.Ended, sizeChanged: c.SizeChanged,
		queues: make(map[*queue]struct{}), suspended: make([]int, c.NumQueues)}
	if d.segMax == 0 {
		d.segMax = DefaultSegMax
	}
	if d.log == nil {
		d.log = func(string, error) {}
	}
	if d.sizeChanged == nil {
		d.sizeChanged = func() {}
	}
	if _, err := d.Resize(); err != nil {
		return nil, err
	}
	d.readOnly = d.info.ReadOnly
	d.memory.holds, d.memory.own = d.info.Holds, d.info.Holder
	pool := c.Pool
	if pool == nil {
		pool = offload.Default()
	}
	d.share = pool.Share()
	d.lives = specfs.Lives{FS: c.FS, Mode: devsw.IFBLK, Dev: c.Dev, Flag: d.openFlag, Opened: d.lifeOpened,
		Began: d.lifeBegan, Ending: d.lifeEnding, Ended: d.lifeEnded}
	if d.room.room = c.Room; c.Room == nil {
		d.room.room = defaultRoom
	}
	return d, nil
}

// lifeOpened looks at the disk that has just been opened.
func (d *Device) lifeOpened(*specfs.Life) {
	d.takeOver()
	d.lookAgain()
}

// Close gives up the device's part in Config.Pool. The block device is not open, and is not to be any more.
func (d *Device) Close() { d.share.Close() }

// Resize asks the disk for its size again and tells whether it has changed: then the front-end is to be told
// (vhostuser.Backend.ConfigChanged). Any goroutine.
func (d *Device) Resize() (changed bool, err error) {
	info, err := d.readInfo()
	if err != nil {
		return false, fmt.Errorf("virtio-blk: %w", err)
	}
	if info.SectorSize < sectorSize || info.SectorSize&(info.SectorSize-1) != 0 {
		return false, fmt.Errorf("virtio-blk: sectors of %d bytes: %w", info.SectorSize, devsw.EINVAL)
	}
	d.Learn() // it may be another disk
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = info.Size != d.info.Size
	d.info = info
	d.sectors.Store(info.Size / sectorSize)
	return changed, nil
}

// lookWait is how long the beginning of a session waits for storage to say how large the disk is. The front-end waits as long.
const lookWait = time.Second

// SessionBegin implements vhostuser.Device. The disk may have become another one since the last session: the front-end that asks for
// its size first of all is told the one of now.
func (d *Device) SessionBegin() {
	d.negotiated = 0
	d.memory.beginSession()
	// At most one look at a time: where storage does not answer, further sessions begin with the size that is known.
	if !d.looking.CompareAndSwap(false, true) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer d.looking.Store(false)
		d.lookAgain()
	}()
	timeout := time.NewTimer(lookWait)
	defer timeout.Stop()
	select {
	case <-done:
	case <-timeout.C:
		d.log("the disk's size cannot be read again at the moment: storage does not answer; the front-end is told the one that was known", nil)
	}
}

// lookAgain is Resize for whoever has nobody to tell.
func (d *Device) lookAgain() {
	changed, err := d.Resize()
	if err != nil {
		d.log("the disk's size could not be read again", err)
	}
	if changed {
		// Also where none has been told the old one in this session: a front-end that comes back does not ask.
		d.sizeChanged()
	}
}

// Features implements vhostuser.Device.
func (d *Device) Features() uint64 { return features(d.snapshot(), d.numQueues) }

func (d *Device) snapshot() devsw.DiskInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

// NumQueues implements vhostuser.Device.
func (d *Device) NumQueues() int { return d.numQueues }

// ConfigSize implements vhostuser.Device.
func (d *Device) ConfigSize() int { return configSize }

// ReadConfig implements vhostuser.Device.
func (d *Device) ReadConfig(p []byte) {
	fillConfig(p, d.snapshot(), d.numQueues, d.segMax, d.memory.writeback())
}

// WriteConfig implements vhostuser.Device: the driver may change writeback, and nothing else (section 5.2.5).
func (d *Device) WriteConfig(off int, p []byte) error {
	if off != writebackOff || len(p) != 1 || p[0] > 1 {
		return fmt.Errorf("virtio-blk: %d bytes at offset %d of the configuration: only writeback (1 byte at %d, 0 or 1) may be written", len(p), off, writebackOff)
	}
	d.setWriteback(p[0])
	return nil
}

// SetFeatures implements vhostuser.Device.
func (d *Device) SetFeatures(f uint64) { d.negotiated = f }

func (d *Device) flag() devsw.Flag {
	if d.readOnly {
		return devsw.FREAD
	}
	return devsw.FREAD | devsw.FWRITE
}

// StartQueue implements vhostuser.Device. The first queue opens the block device, in the background.
func (d *Device) StartQueue(vq *vhostuser.Queue) error {
	for _, line := range d.startQueue(vq) {
		d.log(line, nil)
	}
	return nil
}

// startQueue is StartQueue, and returns what the log is to say.
func (d *Device) startQueue(vq *vhostuser.Queue) (news []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop = nil
	first := len(d.queues) == 0
	if d.meetDriver(first, vq.Driver()) {
		news = append(news, unknownMode)
	}
	switch origin := vq.Driver(); {
	case first && origin == vhostuser.DriverNew:
		d.anew = true
	case origin == vhostuser.DriverElsewhere:
		d.anew = false // the first ring may not have shown it
	}
	if first && d.tooSmall(vq.Size()) {
		news = append(news, fmt.Sprintf("the guest's ring has %d descriptors and its driver uses no indirect ones, but requests may have %d: "+
			"larger ones may hang in the guest for ever; use --seg-max %d, or a queue-size of at least %d",
			vq.Size(), d.segMax+2, max(vq.Size()-2, 1), d.segMax+2))
	}
	q := newQueue(d, vq)
	vq.Data = q
	d.queues[q] = struct{}{}
	d.openLocked(q)
	return news
}

// tooSmall tells whether a ring is too small for the requests that its driver may make.
func (d *Device) tooSmall(size int) bool {
	const features = fSegMax | fIndirect
	return d.negotiated&features == fSegMax && size < d.segMax+2
}

// openLocked gives q the open of the block device that there is, or begins one. q is told when it is done.
func (d *Device) openLocked(q *queue) {
	if d.open == nil {
		d.open = d.lives.Begin()
	}
	l := d.open
	q.open, q.node, q.counter = l, l.Node(), l.Node().NewCounter()
	if ended(l.Began()) { // else lifeBegan tells it
		q.vq.Post(func() { q.opened(l) })
	}
}

// openFlag says how the block device is opened that is opened now.
func (d *Device) openFlag() devsw.Flag {
	d.mu.Lock()
	defer d.mu.Unlock()
	flag := d.flag()
	if !d.anew {
		flag |= devsw.FRESUME
	}
	d.anew = false
	return flag
}

// lifeBegan lets the queues go when the block device has been opened, or could not be.
func (d *Device) lifeBegan(l *specfs.Life) {
	err := l.Err()
	if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, devsw.EBADF) {
		d.log("cannot open the device; its requests fail", err)
	}
	for _, q := range d.queuesOf(l) {
		q.vq.Post(func() { q.opened(l) })
	}
}

// queuesOf gives the started queues that use an open.
func (d *Device) queuesOf(l *specfs.Life) []*queue {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.queuesOfLocked(l)
}

func (d *Device) queuesOfLocked(l *specfs.Life) (all []*queue) {
	for q := range d.queues {
		if q.open == l {
			all = append(all, q)
		}
	}
	return all
}

// StopQueue implements vhostuser.Device. It returns when nothing of the queue is in flight; the stop of the last queue also
// closes the block device: cancel, drain, close. A close that takes long goes on in the background, and so does an operation that
// cannot be interrupted: a read or a write, which is in the guest's memory, is fenced from it (see fence), but where that cannot be
// done (devsw.DiskInfo.Pinned) it is waited for.
//
// For GET_VRING_BASE it waits for what is in flight to complete, until the deadline that the first queue's stop has set for
// all of them (Config.CancelAfter), and then cancels. Where the in-flight region travels with the guest
// (GET_VRING_BASE_INFLIGHT) it cancels at once. On a lost connection, and for RESET_DEVICE, it revokes the device, which cancels
// at once too. A front-end that hangs up while it is waited for ends the wait.
//
// To cancel is to close the device where no other queue is fetched from; then what another queue had in flight, which was
// disabled and not stopped, is kept for it (queue.park). Where other queues go on, this one's requests are cancelled alone, and
// the device stays open, unless the driver does not give them back: then it is closed all the same, and opened again for the
// others, who go on where they were.
//
// What completes all the same completes normally. Of what comes back cancelled, that which had not reached the driver is given
// back to the ring, as far as it is what was fetched last. The rest is suspended, that is left recorded in the in-flight region
// for the next start, where there is one and
//
//   - the region travels with the guest, or
//   - the guest's state cannot be saved without it (Config.Migratable), or
//   - the connection is lost.
//
// Else, and always for RESET_DEVICE, it ends with VIRTIO_BLK_S_IOERR.
func (d *Device) StopQueue(vq *vhostuser.Queue, why vhostuser.StopReason) {
	q := vq.Data.(*queue)
	region, travels := vq.CanSuspend(), vq.InflightMigration()
	suspend := region && (why == vhostuser.StopDisconnect || why == vhostuser.StopBase && (travels || !d.migratable))
	after := d.cancelAfter
	if why != vhostuser.StopBase || travels {
		after = 0
	}
	o, deadline, quiet := d.beginStop(q, after, false)

	switch {
	case why != vhostuser.StopBase:
		d.takeDown(o, true)
	case !quiet:
		err := d.completeOrCancel(q, o, deadline)
		if vq.Context().Err() != nil {
			suspend = region
		}
		if err != nil && !suspend {
			d.log("requests were cancelled, and fail: they did not complete in time after the ring was stopped", nil)
		}
	}
	suspended := 0
	if !quiet {
		d.awaitCancelled(q, o)
		q.settle(suspend)
		q.vq.Do(func() { suspended = vq.Suspended() })
	}
	// Of a request that was lost in a fault nobody gives its units back.
	q.vq.Post(func() { q.giveBack(0) })
	q.counter.Release()
	vq.Data = nil

	d.mu.Lock()
	delete(d.queues, q)
	d.suspended[vq.Index()] = suspended
	last := len(d.queuesOfLocked(o)) == 0
	d.answerLocked(len(d.queues) == 0)
	d.mu.Unlock()
	if last {
		d.takeDown(o, false)
		// It may have been begun for another ring, and have waited for transfers that have ended since.
		if d.lost.Count() == 0 {
			o.Await(closeWait)
		}
	}
	d.tellLate(o)
}

// PauseQueue implements vhostuser.Device. It waits for what is in flight to complete, as a stop for GET_VRING_BASE that
// may follow it does, and within the same deadline, and then cancels in the same way. Of what comes back cancelled, that
// which StopQueue would suspend is kept for it, or for ResumeQueue; the rest ends with VIRTIO_BLK_S_IOERR. A front-end that
// hangs up ends the wait: all is left to the stop that comes then.
func (d *Device) PauseQueue(vq *vhostuser.Queue) {
	q := vq.Data.(*queue)
	q.disabled = true
	o, deadline, quiet := d.beginStop(q, d.cancelAfter, true)
	if quiet {
		return
	}
	err := d.completeOrCancel(q, o, deadline)
	if vq.Context().Err() == nil {
		d.awaitCancelled(q, o)
		// What would be suspended by a stop is kept for it.
		if !vq.CanSuspend() || d.migratable {
			q.settle(false)
			if err != nil {
				d.log("requests were cancelled, and fail: they did not complete in time after the ring was disabled", nil)
			}
		}
	}
	d.mu.Lock()
	d.answerLocked(false)
	d.mu.Unlock()
	d.tellLate(o)
}

// ResumeQueue implements vhostuser.Device. What is kept is begun again.
func (d *Device) ResumeQueue(vq *vhostuser.Queue) {
	d.mu.Lock()
	d.stop = nil
	d.mu.Unlock()
	if q := vq.Data.(*queue); q.disabled {
		q.disabled = false
		q.vq.Do(q.resume)
	}
}

// beginStop parks q and gives its open, and the deadline of the stop that is under way, or else of a new one; drains is
// as in stop. quiet says that nothing of q is in flight, nor kept: then that is how it stays, and there is
// no deadline.
func (d *Device) beginStop(q *queue, after time.Duration, drains bool) (o *specfs.Life, deadline time.Time, quiet bool) {
	q.vq.Do(func() {
		q.park()
		quiet = q.vq.InFlight() == 0
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if quiet {
		return q.open, time.Time{}, true
	}
	now := time.Now()
	if d.stop == nil || d.stopLeftLocked(now) == 0 {
		d.stop = &stop{deadline: now.Add(after)}
	}
	d.stop.waiting = true
	d.stop.drains = d.stop.drains || drains
	return q.open, d.stop.deadline, false
}

// stopLeftLocked tells for how long the stop, which there is, is not over yet, if nothing comes of it any more.
func (d *Device) stopLeftLocked(now time.Time) time.Duration {
	if d.stop.waiting {
		return d.stopGap
	}
	return max(d.stopGap-now.Sub(d.stop.answered), 0)
}

// answerLocked says that the front-end is being answered. over: the stop is, too.
func (d *Device) answerLocked(over bool) {
	switch {
	case d.stop == nil:
	case over:
		d.stop = nil
	default:
		d.stop.waiting, d.stop.answered = false, time.Now()
	}
}

// completeOrCancel waits until nothing of q, which is parked, is in flight but what is kept. At the deadline, or when the
// front-end has hung up, it cancels what is left, and returns the error of the wait.
func (d *Device) completeOrCancel(q *queue, o *specfs.Life, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(q.vq.Context(), deadline)
	defer cancel()
	err := q.wait(ctx)
	switch {
	case err == nil:
	case q.vq.DeviceStopping():
		d.takeDown(o, false)
	case q.vq.Context().Err() != nil:
		// All the other rings are stopped next.
		d.mu.Lock()
		d.stop.drains = true
		d.mu.Unlock()
		d.takeDown(o, false)
	default:
		d.cancelAlone(q, o)
	}
	return err
}

// A queue that is stopped alone has its requests cancelled this often, since one may go by unseen, and for this long before
// the device is taken down.
const (
	cancelEvery = 10 * time.Millisecond
	cancelFor   = 10
)

// cancelAlone cancels the requests of a queue that is parked, with the device open, and returns when they have come back.
func (d *Device) cancelAlone(q *queue, o *specfs.Life) {
	for range cancelFor {
		for at, all := 0, false; !all; {
			q.vq.Do(func() { at, all = q.cancel(at) })
		}
		ctx, cancel := context.WithTimeout(context.Background(), cancelEvery)
		err := q.wait(ctx)
		cancel()
		if err == nil {
			return
		}
	}
	d.takeDown(o, false)
}

// takeDown closes or revokes the block device, once: cancel, drain, close. Requests that are cancelled by it are kept by their
// queues, which have to open the device again before they can go on.
//
// It waits for the end of all that, but not for long: what is left then goes on by itself. The next open waits for it, so that
// nothing that begins later is overtaken by what is still in progress.
func (d *Device) takeDown(o *specfs.Life, revoke bool) {
	d.mu.Lock()
	if d.open == o {
		d.open = nil
	}
	// With the lock: an open that begins from now on waits for this close.
	var first bool
	if revoke {
		first = o.Revoke()
	} else {
		first = o.Close(d.flag())
	}
	d.mu.Unlock()
	if first {
		o.Await(closeWait)
	}
}

// lifeEnding has the queues keep what comes back cancelled from now on.
func (d *Device) lifeEnding(l *specfs.Life) {
	for _, q := range d.queuesOf(l) {
		q.vq.Do(func() {
			q.park()
			q.recall()
		})
	}
}

// lifeEnded tells the queues that are still started that the block device has been closed. err is d_close's.
func (d *Device) lifeEnded(l *specfs.Life, err error) {
	if err != nil {
		d.log("close", err)
	}
	d.closed()
	for _, q := range d.queuesOf(l) {
		q.vq.Post(q.orphan)
	}
}

// tellLate logs once that a stop is answered before the close has been done.
func (d *Device) tellLate(o *specfs.Life) {
	if err := o.TellLate(); err != nil {
		d.log("the device is still being closed; the next start waits for it", err)
	}
}

// closeWait is how long a close may take before it is left to itself, and an operation to come back from a cancel.
const closeWait = 200 * time.Millisecond

// awaitCancelled waits until nothing of a queue that is parked is in flight. What does not come back, though it was cancelled some time
// ago, is not waited for: operations that have no part in the guest's memory are given up, and whatever becomes of them, the guest does
// not see it; reads and writes are fenced from that memory, where that can be done.
func (d *Device) awaitCancelled(q *queue, o *specfs.Life) {
	for first := true; ; {
		if o.Late() {
			d.fence(q, o, first)
			first = false
			q.vq.Do(q.abandon)
		}
		ctx, cancel := context.WithTimeout(context.Background(), closeWait)
		err := q.wait(ctx)
		cancel()
		if err == nil {
			return
		}
	}
}

// WaitClosed waits until nothing of the block device is in progress any more, when no front-end is served: a close may go on in
// the background. ctx's end ends the wait, with its error. Any goroutine.
func (d *Device) WaitClosed(ctx context.Context) error { return d.lives.WaitClosed(ctx) }

// SessionEnd implements vhostuser.Device. What was known of the guest goes when the next session begins.
func (d *Device) SessionEnd() {}
