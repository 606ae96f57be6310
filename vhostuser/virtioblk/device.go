// Package virtioblk is the virtio block device (virtio 1.2, section 5.2). It makes a devsw.Buf of
// each request of a virtqueue, and hands it to a block device through specfs. Somebody else's
// storage is behind it as a driver: see vdev/devsw/disk.
//
// A Device lives as its front-end wants. The first ring that starts opens the block device, off
// the control path, and requests wait in their rings until it is open. The stop of the last ring
// closes it: cancel, drain, close. See StopDevice.
//
// Two kinds of goroutine meet here. The connection's calls the methods of vhostuser.Device. The
// reactor of a queue calls Process, and owns the queue and its requests. Device.mu guards what the
// connection's goroutine, those of specfs.Life and the reactors share. It is never held while
// anything is waited for, and never taken on the way of a read or a write that succeeds. memory.mu,
// and what a Life locks, are taken after it.
package virtioblk

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// One look at a ring starts at most budget requests, and no further one after budgetBytes, so that
// rings of one reactor take turns, and messages of the front-end wait for neither: a driver may
// copy data on the reactor. Nor does it after budgetWork descriptors (virtq.Chain.Work): requests
// that have no data, or are refused, may be long, too.
const (
	budget      = 128
	budgetBytes = 4 << 20
	budgetWork  = 4096
)

// Config says what a Device serves. FS, Dev, Info and NumQueues must be set. The functions are
// called on any goroutine, but where it is said otherwise.
type Config struct {
	FS  *specfs.FS
	Dev devsw.Dev // a block device's number
	// Info describes the disk. It is called by New, by Resize, when a session begins and when the
	// disk has been opened, whether the disk is open or not. It may wait for storage: a session's
	// beginning waits for it for a second.
	Info func() (devsw.DiskInfo, error)
	// Keeper is what the disk knows of itself beside. nil: nothing.
	Keeper Keeper
	// Ended tells of a holder of another disk's (devsw.DiskInfo.Holder) whether it has ended in
	// order, with all that it had put where this disk has it too. known: it knows of it, or that
	// it has not. It is called when the disk has been opened, and may wait, but not for long. nil:
	// it knows of none.
	Ended func(holder uint64) (ended, known bool)
	// SizeChanged is called when a session's beginning or an open has found another size. The
	// front-end is to be told (vhostuser.Backend.ConfigChanged). nil: nobody is told.
	SizeChanged func()
	// Serial is what the guest reads as the disk's serial number, at most MaxSerial bytes.
	Serial string
	// NumQueues is how many queues the front-end may use, 1 to 256.
	NumQueues int
	// SegMax is how many buffers a read or a write may have (seg_max), at most MaxSegMax. 0 stands
	// for DefaultSegMax. The front-end asks before it says how large a ring is, and a guest driver
	// without indirect descriptors takes it at its word: a request of more buffers than fit its
	// ring then waits for ever for room there. For rings of less than 128 it must be their size
	// less 2.
	SegMax int
	// Pool is where requests that may block are done. nil: one that all devices without one share,
	// which has 64 places, and 16 of them for each device.
	Pool *Pool
	// room bounds the memory of the requests in flight. nil: one that all devices without one
	// share, 64 MiB for each of them and 512 MiB for all.
	room *room
	// Trace is called for each request that has ended, was suspended, or has come back cancelled.
	// It is called on the queues' reactors and where drivers end transfers, also at the same time,
	// and must not block. nil: nobody wants to know.
	Trace func(Request)
	// Failed is told of each request that storage has failed: see Failures. It is called on the
	// queues' reactors, also at the same time, and must not block. nil: nobody is told.
	Failed func(Request)
	// Log is told what went wrong or took long where nobody is there to take an error. err may be
	// nil. Log may be nil.
	Log func(msg string, err error)
}

// Device is one virtio block device. It implements vhostuser.Device, whose methods are the
// Backend's to call. One Backend at a time serves it.
type Device struct {
	config   Config // with the defaults
	readOnly bool
	share    *offload.Share // of Config.Pool
	room     deviceRoom     // of Config.room

	sectors atomic.Int64 // of 512 bytes
	stable  atomic.Bool  // each write is to be stable when it is answered
	// how a flush failed that nobody waited for any more; the next one tells it
	unsaid atomic.Pointer[error]
	// a session's beginning has asked for the size, and storage has not answered yet
	looking atomic.Bool

	memory memory

	lives      specfs.Lives // opens of the block device
	negotiated uint64       // changes while no ring runs
	// transfers that the driver has not returned, and that were abandoned: see fence
	lost devsw.Localcount

	mu       sync.Mutex
	info     devsw.DiskInfo
	open     *specfs.Life // nil while the device is not to be open
	queues   map[*queue]struct{}
	stop     stop
	failures Failures
	// the guest driver has begun anew, and the block device has not been opened since
	anew bool
}

// stop is what the device knows of a stop that the session has rings disabled or stopped for, one
// soon after the other. It is over when a ring is started or enabled.
type stop struct {
	cancelAt time.Time // when requests will be cancelled; zero where no front-end waits
	more     time.Time // until then further rings are likely to follow
}

func (s *stop) over() bool { return s.cancelAt.IsZero() && !time.Now().Before(s.more) }

var _ vhostuser.Device = (*Device)(nil)

// New makes a Device, which Close ends. The block device is not opened, but Info is asked for its
// size. It fails where Config is not as it must be, with the error of Info, and with devsw.EINVAL
// (errors.Is) for sectors whose size is no power of two from 512 on.
func New(c Config) (*Device, error) {
	switch {
	case c.NumQueues < 1:
		return nil, fmt.Errorf("virtio-blk: %d queues: there must be at least one", c.NumQueues)
	case c.SegMax < 0 || c.SegMax > MaxSegMax:
		return nil, fmt.Errorf("virtio-blk: seg_max is %d: must be from 1 to %d", c.SegMax, MaxSegMax)
	case len(c.Serial) > MaxSerial:
		return nil, fmt.Errorf("virtio-blk: serial number %q has %d bytes, at most %d fit", c.Serial, len(c.Serial), MaxSerial)
	}
	if c.SegMax == 0 {
		c.SegMax = DefaultSegMax
	}
	if c.Log == nil {
		c.Log = func(string, error) {}
	}
	if c.SizeChanged == nil {
		c.SizeChanged = func() {}
	}
	if c.room == nil {
		c.room = defaultRoom
	}
	d := &Device{config: c, room: deviceRoom{room: c.room}, queues: make(map[*queue]struct{})}
	if _, err := d.Resize(); err != nil {
		return nil, err
	}
	d.readOnly = d.info.ReadOnly
	d.memory.holds, d.memory.own = d.info.Holds, d.info.Holder
	pool := (*offload.Pool)(c.Pool)
	if pool == nil {
		pool = offload.Default()
	}
	d.share = pool.Share()
	d.lives = specfs.Lives{FS: c.FS, Mode: devsw.IFBLK, Dev: c.Dev, Flag: d.openFlag, Opened: d.lifeOpened,
		Began: d.lifeBegan, Ending: d.lifeEnding, Ended: d.lifeEnded}
	return d, nil
}

// lifeOpened looks at the disk that has just been opened.
func (d *Device) lifeOpened(*specfs.Life) {
	d.takeOver()
	d.lookAgain()
}

// Close lets go of Config.Pool. No front-end is served any more, and WaitClosed has returned nil.
func (d *Device) Close() { d.share.Close() }

// Resize asks the disk for its size again and tells whether it has changed. Then the front-end is
// to be told (vhostuser.Backend.ConfigChanged). Any goroutine. It fails as New does, and the size
// stays as it was.
func (d *Device) Resize() (changed bool, err error) {
	info, err := d.config.Info()
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

// lookWait is how long the beginning of a session waits for storage to say how large the disk is.
// The front-end waits as long.
const lookWait = time.Second

// SessionBegin implements vhostuser.Device. The disk may have become another one since the last
// session: the front-end that asks for its size first of all is told the one of now.
func (d *Device) SessionBegin() {
	d.negotiated = 0
	d.memory.beginSession()
	// At most one look at a time: where storage does not answer, further sessions begin with the
	// size that is known.
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
		d.config.Log("the disk's size cannot be read again at the moment: storage does not answer; the front-end is told the one that was known", nil)
	}
}

// lookAgain is Resize for whoever has nobody to tell.
func (d *Device) lookAgain() {
	changed, err := d.Resize()
	if err != nil {
		d.config.Log("the disk's size could not be read again", err)
	}
	if changed {
		// Also where none has been told the old one in this session: a front-end that comes back
		// does not ask.
		d.config.SizeChanged()
	}
}

// Features implements vhostuser.Device.
func (d *Device) Features() uint64 { return features(d.snapshot(), d.config.NumQueues) }

func (d *Device) snapshot() devsw.DiskInfo {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.info
}

// NumQueues implements vhostuser.Device.
func (d *Device) NumQueues() int { return d.config.NumQueues }

// ConfigSize implements vhostuser.Device.
func (d *Device) ConfigSize() int { return configSize }

// ReadConfig implements vhostuser.Device.
func (d *Device) ReadConfig(p []byte) {
	fillConfig(p, d.snapshot(), d.config.NumQueues, d.config.SegMax, d.memory.writeback())
}

// WriteConfig implements vhostuser.Device: the guest driver may change writeback, and nothing else
// (section 5.2.5).
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

// StartQueue implements vhostuser.Device. The first queue opens the block device, in the
// background.
func (d *Device) StartQueue(vq *vhostuser.Queue) error {
	d.stopOver()
	first, origin := len(d.queues) == 0, vq.Driver() // nobody but this goroutine changes queues
	if d.meetDriver(first, origin) {
		d.config.Log(unknownMode, nil)
	}
	if first && d.tooSmall(vq.Size()) {
		d.config.Log(fmt.Sprintf("the guest's ring has %d descriptors and its driver uses no indirect ones, but requests may have %d: "+
			"larger ones may hang in the guest for ever; use --seg-max %d, or a queue-size of at least %d",
			vq.Size(), d.config.SegMax+2, max(vq.Size()-2, 1), d.config.SegMax+2), nil)
	}
	q := newQueue(d, vq)
	vq.Data = q
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case first && origin == vhostuser.DriverNew:
		d.anew = true
	case origin == vhostuser.DriverElsewhere:
		d.anew = false // the first ring may not have shown it
	}
	d.queues[q] = struct{}{}
	d.openLocked(q)
	return nil
}

// tooSmall tells whether a ring is too small for the requests that its guest driver may make.
func (d *Device) tooSmall(size int) bool {
	const features = fSegMax | fIndirect
	return d.negotiated&features == fSegMax && size < d.config.SegMax+2
}

// openLocked gives q the open of the block device that there is, or begins one. q is told when it
// is done.
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
		d.config.Log("cannot open the device; its requests fail", err)
	}
	d.letGo(l)
}

// letGo lets the queues go that use an open, or has their requests fail.
func (d *Device) letGo(l *specfs.Life) {
	for _, q := range d.queuesOf(l) {
		q.vq.Post(func() { q.opened(l) })
	}
}

// queuesOf gives the started queues that use an open.
func (d *Device) queuesOf(l *specfs.Life) (all []*queue) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q := range d.queues {
		if q.open == l {
			all = append(all, q)
		}
	}
	return all
}

// StopDevice implements vhostuser.Device. It closes the block device (cancel, drain, close), and
// returns when nothing of the queues is in flight. A close that takes long goes on in the
// background. So does an operation that cannot be interrupted: a read or a write is fenced from the
// guest's memory (see fence). Where that is impossible (devsw.DiskInfo.Pinned) StopDevice waits for
// it.
//
// It waits until how.Deadline for what is in flight to complete, and then cancels, by closing the
// device. Where how.Revoke is set it revokes the device, which cancels at once. If the front-end
// hangs up meanwhile, the wait ends.
//
// What completes all the same completes normally. Of what comes back cancelled, that which had not
// reached the driver goes back to the ring, as far as it was fetched last. The rest is suspended,
// or ends with VIRTIO_BLK_S_IOERR, as how.Suspends says.
func (d *Device) StopDevice(vqs []*vhostuser.Queue, how vhostuser.Stop) {
	all := make([]*queue, len(vqs))
	for i, vq := range vqs {
		all[i] = vq.Data.(*queue)
	}
	busy := d.hold(all)
	if len(busy) > 0 {
		d.beginStop(how)
	}
	if how.Revoke {
		d.fails(busy, how)
		d.takeDown(all, true)
	} else if d.completeOrCancel(busy, how) != nil && d.fails(busy, how) {
		d.config.Log("requests were cancelled, and fail: they did not complete in time after the ring was stopped", nil)
	}
	d.awaitCancelled(busy)
	for _, q := range busy {
		q.settle(how.Suspends(q.vq))
	}
	for _, q := range all {
		d.release(q)
	}
	d.endStop(how)
	for _, o := range opensOf(all) {
		if len(d.queuesOf(o)) > 0 {
			continue
		}
		// It may have been ended for another ring, and have waited for transfers that have come
		// back since.
		if d.endLife(o, false) || d.lost.Count() == 0 {
			o.Await(closeWait)
		}
	}
	for _, o := range opensOf(all) {
		d.tellLate(o)
	}
}

// StopQueue implements vhostuser.Device. It is StopDevice for one queue, while others go on. Only
// this queue's requests are cancelled, and the device stays open. But if the driver does not return
// them, the device is closed, and opened again for the others, who go on where they were.
func (d *Device) StopQueue(vq *vhostuser.Queue, how vhostuser.Stop) {
	d.StopDevice([]*vhostuser.Queue{vq}, how)
}

// opensOf gives what the queues have open: more than one Life where some have not begun a new one
// yet.
func opensOf(queues []*queue) (all []*specfs.Life) {
	for _, q := range queues {
		if !slices.Contains(all, q.open) {
			all = append(all, q.open)
		}
	}
	return all
}

// hold holds queues, and returns those that have something in flight or suspended. What an
// in-flight region has brought is as it was, where the queue has begun nothing.
func (d *Device) hold(all []*queue) (busy []*queue) {
	for _, q := range all {
		q.vq.Do(func() {
			q.hold()
			if q.vq.InFlight() > 0 || q.vq.Suspended() > 0 && len(q.requests) > 0 {
				busy = append(busy, q)
			}
		})
	}
	return busy
}

// fails tells the queues what is to become of requests that come back cancelled, and returns
// whether any are to fail.
func (d *Device) fails(busy []*queue, how vhostuser.Stop) (any bool) {
	for _, q := range busy {
		state := queueSuspends
		if !how.Suspends(q.vq) {
			state, any = queueFails, true
		}
		q.vq.Do(func() {
			if q.state < queueClosed {
				q.state = state
			}
		})
	}
	return any
}

// release lets go of a queue that has nothing in flight.
func (d *Device) release(q *queue) {
	// Of a request that was lost in a fault nobody returns the units.
	q.vq.Do(func() { q.shrink(0) })
	q.counter.Release()
	q.vq.Data = nil
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.queues, q)
}

// PauseQueue implements vhostuser.Device. It waits for what is in flight to complete, as a stop
// for GET_VRING_BASE that may follow it does, and within the same deadline, and then cancels in
// the same way. Of what comes back cancelled, that which a stop would suspend stays suspended for
// it, or for ResumeQueue. The rest ends with VIRTIO_BLK_S_IOERR. A front-end that hangs up ends
// the wait: all is left to the stop that comes then.
func (d *Device) PauseQueue(vq *vhostuser.Queue, how vhostuser.Stop) {
	q := vq.Data.(*queue)
	busy := d.hold([]*queue{q})
	if len(busy) == 0 {
		return
	}
	d.beginStop(how)
	err := d.completeOrCancel(busy, how)
	if how.Context().Err() == nil {
		d.awaitCancelled(busy)
		// What would be suspended by a stop stays so for it.
		if !how.Suspends(vq) {
			q.settle(false)
			if err != nil {
				d.config.Log("requests were cancelled, and fail: they did not complete in time after the ring was disabled", nil)
			}
		}
	}
	d.endStop(how)
	d.tellLate(q.open)
}

// ResumeQueue implements vhostuser.Device. What is suspended is begun again.
func (d *Device) ResumeQueue(vq *vhostuser.Queue) {
	d.stopOver()
	vq.Do(vq.Data.(*queue).resume)
}

// beginStop says that the front-end waits from now on.
func (d *Device) beginStop(how vhostuser.Stop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop.cancelAt = how.Deadline
}

// endStop says that the front-end is being answered.
func (d *Device) endStop(how vhostuser.Stop) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stop = stop{}
	if next := how.Next(); len(d.queues) > 0 {
		d.stop.more = time.Now().Add(next)
		time.AfterFunc(next, d.wake)
	}
}

// stopOver says that no further ring is likely to be disabled or stopped.
func (d *Device) stopOver() {
	d.mu.Lock()
	goesOn := !d.stop.over()
	d.stop = stop{}
	d.mu.Unlock()
	if goesOn {
		d.wake()
	}
}

// wake has the queues look whether they may open the device again.
func (d *Device) wake() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for q := range d.queues {
		q.vq.Wake()
	}
}

// completeOrCancel waits until nothing of the queues, which are held, is in flight. At the
// deadline, or when the front-end has hung up, it cancels what is left, and returns the error of
// the wait.
func (d *Device) completeOrCancel(busy []*queue, how vhostuser.Stop) error {
	ctx, cancel := context.WithDeadline(how.Context(), how.Deadline)
	defer cancel()
	err := waitIdle(ctx, busy)
	if err == nil {
		return nil
	}
	d.fails(busy, how)
	switch {
	case how.WholeDevice, how.Context().Err() != nil: // all the other rings are stopped next
		d.takeDown(busy, false)
	default:
		d.cancelAlone(busy)
	}
	return err
}

// waitIdle waits until nothing of the queues is in flight, or ctx is done, whose error it then
// returns.
func waitIdle(ctx context.Context, queues []*queue) error {
	for _, q := range queues {
		if err := q.vq.WaitIdle(ctx); err != nil {
			return err
		}
	}
	return nil
}

// waitIdleFor is waitIdle for so long.
func waitIdleFor(patience time.Duration, queues []*queue) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return waitIdle(ctx, queues)
}

// A queue that is stopped alone has its requests cancelled this often, since one may go by unseen,
// and for this long before the device is taken down.
const (
	cancelEvery = 10 * time.Millisecond
	cancelFor   = 10
)

// cancelAlone cancels the requests of queues that are held, with the device open, and returns when
// they have come back.
func (d *Device) cancelAlone(busy []*queue) {
	for range cancelFor {
		for _, q := range busy {
			for at, all := 0, false; !all; {
				q.vq.Do(func() { at, all = q.cancel(at) })
			}
		}
		if waitIdleFor(cancelEvery, busy) == nil {
			return
		}
	}
	d.takeDown(busy, false)
}

// takeDown closes or revokes what the queues have open, once: cancel, drain, close. Requests that
// are cancelled by it are suspended by queues that go on, which have to open the device again
// before.
//
// It waits for the end of all that, but not for long: what is left then goes on by itself. The
// next open waits for it, so that nothing that begins later is overtaken by what is still in
// progress.
func (d *Device) takeDown(queues []*queue, revoke bool) {
	for _, o := range opensOf(queues) {
		if d.endLife(o, revoke) {
			o.Await(closeWait)
		}
	}
}

// endLife has an open end, and tells whether it is this call that does.
func (d *Device) endLife(o *specfs.Life, revoke bool) (first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == o {
		d.open = nil
	}
	// With the lock: an open that begins from now on waits for this close.
	if revoke {
		return o.Revoke()
	}
	return o.Close(d.flag())
}

// lifeEnding has the queues suspend what comes back cancelled from now on.
func (d *Device) lifeEnding(l *specfs.Life) {
	for _, q := range d.queuesOf(l) {
		q.vq.Do(func() {
			q.hold()
			q.recall()
		})
	}
}

// lifeEnded tells the queues that are still started that the block device has been closed. err is
// d_close's.
func (d *Device) lifeEnded(l *specfs.Life, err error) {
	if err != nil {
		d.config.Log("close", err)
	}
	// Where it was ended before it was open, the one before may still be being closed.
	if l.Err() == nil {
		d.closed()
	}
	for _, q := range d.queuesOf(l) {
		q.vq.Post(q.closed)
	}
}

// tellLate logs once that a stop is answered before the close has been done.
func (d *Device) tellLate(o *specfs.Life) {
	if err := o.TellLate(); err != nil {
		d.config.Log("the device is still being closed; the next start waits for it", err)
	}
}

// closeWait is how long a close may take before it is left to itself, and an operation to come
// back from a cancel.
const closeWait = 200 * time.Millisecond

// awaitCancelled waits until nothing of queues that are held is in flight. What does not come
// back, though it was cancelled some time ago, is not waited for: operations that have no part in
// the guest's memory are given up, and whatever becomes of them, the guest does not see it; reads
// and writes are fenced from that memory, where that can be done.
func (d *Device) awaitCancelled(busy []*queue) {
	for first := true; ; {
		for _, q := range busy {
			if q.open.Late() {
				d.fence(q, first)
				q.vq.Do(q.giveUp)
				first = false
			}
		}
		if waitIdleFor(closeWait, busy) == nil {
			return
		}
	}
}

// WaitClosed waits until nothing of the block device is in progress any more, when no front-end is
// served: a close may go on in the background. Where ctx is done first it returns ctx's error. Any
// goroutine.
func (d *Device) WaitClosed(ctx context.Context) error { return d.lives.WaitClosed(ctx) }

// SessionEnd implements vhostuser.Device. What was known of the guest goes when the next session
// begins.
func (d *Device) SessionEnd() {}
