package virtioblk

import (
	"fmt"
	"sync"
	"sync/atomic"

	"vdev/devsw"
	"vdev/vhostuser"
)

// cacheMode is what somebody takes the disk's cache for (section 5.2.5, writeback).
type cacheMode uint8

const (
	cacheUnknown cacheMode = iota
	cacheWriteback
	cacheWritethrough
)

// memory is what of a Device outlives its sessions and its process. It stands in the state page of the in-flight region, as far as a
// front-end has brought one.
//
// A front-end such as QEMU reads writeback once, when it makes its device, and from then on answers the guest with its own copy, over
// resets of the guest and over lost connections. It sends SET_CONFIG when the guest changes that copy, and never again. A migration's
// target makes a new copy, of what its back-end says, while the guest's driver goes on with what it knows. So the two are two things,
// and neither is known just because there is a connection:
//
//   - told is the front-end's copy. It is known from a SET_CONFIG, from a GET_CONFIG before a ring has run in the session, which is how
//     a front-end begins, and from the page. RESET_DEVICE leaves it as it is, because the front-end's copy stays; after a reset either
//     mode may be found (section 5.2.5).
//   - driver is what the guest's driver takes the cache for. A driver that begins reads the copy; one that goes on elsewhere
//     (vhostuser.DriverElsewhere) has read another one, of which only the page tells.
//
// mu is taken last. Nothing is waited for with it, but for the system call that writes the page.
type memory struct {
	mu       sync.Mutex
	page     *vhostuser.StatePage // nil for none
	late     *vhostuser.StatePage // one that was dropped before the disk was closed; nil for none
	told     cacheMode
	driver   cacheMode
	fromPage bool                   // driver is what the page has said
	ran      bool                   // a ring has run in this session
	origin   vhostuser.DriverOrigin // of the driver of the rings that run, or ran last
	brought  devsw.DiskState        // what the page has said of the disk, until the next open
	disk     devsw.DiskState        // what the driver has said last

	// unflushed is unflushedNo, unflushedYes, or the number of the last flush, where no write has been answered since that began. It is
	// of use where the disk is Volatile. Changed under mu.
	unflushed atomic.Uint64
	flushes   uint64 // the number of the last flush
}

const (
	unflushedNo uint64 = iota
	unflushedYes
	// Numbers of flushes are larger.
)

// The state in the page.
const (
	stateDriver    = 0 // the first of 2 bits: cacheMode
	stateTold      = 2 // likewise
	stateUnflushed = 1 << 4
	stateErrno     = 16 // the first of 16 bits
	maxErrno       = 4095
)

// parseState reads what is in a page. It is the front-end's, which may have written anything.
func parseState(state uint32) (driver, told cacheMode, disk devsw.DiskState) {
	mode := func(shift int) cacheMode {
		if m := cacheMode(state >> shift & 3); m <= cacheWritethrough {
			return m
		}
		return cacheUnknown
	}
	disk.FlushError = devsw.Errno(min(state>>stateErrno, maxErrno))
	disk.Unflushed = state&stateUnflushed != 0
	return mode(stateDriver), mode(stateTold), disk
}

// storeLocked writes the page.
func (m *memory) storeLocked() {
	state := uint32(m.driver)<<stateDriver | uint32(m.told)<<stateTold
	if e := max(m.disk.FlushError, m.brought.FlushError); e != 0 {
		state |= uint32(min(e, maxErrno)) << stateErrno
	}
	if m.unflushed.Load() != unflushedNo || m.brought.Unflushed || m.disk.Unflushed {
		state |= stateUnflushed
	}
	if m.late != nil {
		// Whose guest it is says the rest.
		const ours = stateUnflushed | 0xffff<<stateErrno
		m.late.Store(m.late.State()&^ours | state&ours)
	}
	// After that one: a front-end that comes back brings the same page again.
	if m.page != nil && (m.late != nil || m.page.State() != state) {
		m.page.Store(state)
	}
}

// SetStatePage implements vhostuser.StateKeeper.
func (d *Device) SetStatePage(p *vhostuser.StatePage) {
	d.mu.Lock()
	used := d.open != nil || d.closes.Count() > 0
	d.mu.Unlock()
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	// That a flush has failed is the disk's affair, whoever its guest is. It stays until an open has taken it.
	m.fromPage, m.brought.Unflushed = false, false
	m.dropLocked(m.page, used)
	m.page = p
	if p == nil {
		return
	}
	driver, told, disk := parseState(p.State())
	if driver != cacheUnknown {
		m.driver, m.fromPage = driver, true
		if m.told == cacheUnknown {
			m.told = told
		}
	}
	if m.unflushed.Load() != unflushedNo {
		disk.Unflushed = false // it is what this process has put there, and it has not been killed
	}
	disk.FlushError = max(disk.FlushError, m.brought.FlushError)
	m.brought = disk
	m.storeLocked()
}

// dropLocked closes a page, but keeps it for as long as the disk is used: a close may still have something to say.
func (m *memory) dropLocked(p *vhostuser.StatePage, used bool) {
	if p == nil {
		return
	}
	if m.late != nil {
		m.late.Close()
		m.late = nil
	}
	if used {
		m.late = p
		return
	}
	p.Close()
}

// beginSession forgets what the session before knew of the front-end and of the guest: they may be others.
func (m *memory) beginSession() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told, m.driver, m.fromPage, m.ran = cacheUnknown, cacheUnknown, false, false
}

// ConfigRead implements vhostuser.ConfigWatcher. Once a ring has run it is the new size that a front-end wants, and its copy of
// writeback stays as it was.
func (d *Device) ConfigRead(off, n int) {
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if off <= writebackOff && off+n > writebackOff && !m.ran && m.told == cacheUnknown {
		m.told = cacheWriteback // as writeback says it
	}
}

// status gives what the disk has lost, and what the guest's driver takes its cache for.
func (m *memory) status() (devsw.DiskState, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lost := m.disk
	if lost.FlushError == 0 {
		lost.FlushError = m.brought.FlushError
	}
	lost.Unflushed = lost.Unflushed || m.brought.Unflushed
	return lost, [...]string{"unknown", "writeback", "writethrough"}[m.driver]
}

// Failure returns with what a flush of the disk has failed: 0 where none has. Any goroutine; it waits for nothing.
func (d *Device) Failure() devsw.Errno {
	lost, _ := d.memory.status()
	return lost.FlushError
}

// setWriteback is the guest's choice.
func (d *Device) setWriteback(v byte) {
	mode := cacheWriteback
	if v == 0 {
		mode = cacheWritethrough
	}
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told, m.driver = mode, mode
	m.storeLocked()
	d.setStableLocked()
}

// writeback is what the configuration space says.
func (m *memory) writeback() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.told != cacheWritethrough
}

// meetDriver finds out what the guest's driver takes the disk's cache for, when a ring starts. first: no other one runs.
func (d *Device) meetDriver(first bool, origin vhostuser.DriverOrigin) {
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.fromPage:
	case first && origin == vhostuser.DriverNew:
		m.driver = m.told
	case origin == vhostuser.DriverElsewhere && (first || m.origin != origin):
		m.driver = cacheUnknown
	}
	m.ran, m.origin = true, origin
	m.storeLocked()
	d.setStableLocked()
	if first && m.driver == cacheUnknown && d.negotiated&fConfigWCE != 0 && !d.readOnly {
		d.log("it is not known whether the guest counts on a write cache, since its driver began elsewhere: each write is made stable, "+
			"which is slow, until the guest sets its cache mode or its machine is started anew", nil)
	}
}

// setStableLocked works out whether each write is to be stable because of the cache's mode. A driver without CONFIG_WCE counts on
// nothing but its flushes, unless somebody has switched the cache off all the same.
func (d *Device) setStableLocked() {
	m := &d.memory
	d.stable.Store(m.driver == cacheWritethrough || m.driver == cacheUnknown && d.negotiated&fConfigWCE != 0)
}

// Keeper is a disk that knows more of itself than what is on it (devsw.DiskState). Its methods work whether it is open or not, on any
// goroutine, those of reactors included, and do not block.
type Keeper interface {
	State() devsw.DiskState
	// SetState tells what a predecessor knew. It comes after d_open has succeeded, and before the first transfer.
	SetState(devsw.DiskState)
	// ClearState has it forgotten, and returns what that was. After an error nothing is.
	ClearState() (devsw.DiskState, error)
}

// takeOver tells the disk, which has just been opened, what a predecessor knew of it.
func (d *Device) takeOver() {
	if d.keeper == nil {
		return
	}
	m := &d.memory
	m.mu.Lock()
	brought := m.brought
	m.mu.Unlock()
	if brought != (devsw.DiskState{}) {
		d.keeper.SetState(brought)
	}
	m.mu.Lock()
	m.brought = devsw.DiskState{}
	m.mu.Unlock()
	d.learn()
}

// lostWrites is told once of each failure.
const lostWrites = "a flush has failed: writes that were acknowledged are lost, and every flush fails from now on; " +
	"once the image is known to be good, or was made so, 'vdev ctl clear-failure' ends that, and so does another image"

// learn asks the disk for its state and puts that into the page, before the guest is told of what has led to it.
func (d *Device) learn() {
	if d.keeper == nil {
		return
	}
	s := d.keeper.State()
	m := &d.memory
	m.mu.Lock()
	failed := s.FlushError != 0 && m.disk.FlushError == 0
	m.disk = s
	m.storeLocked()
	m.mu.Unlock()
	if failed {
		d.log(lostWrites, s.FlushError)
	}
}

// ClearFailure has it forgotten that a flush has failed and that writes are lost, and returns what was known of that. Any goroutine.
func (d *Device) ClearFailure() (devsw.DiskState, error) {
	if d.keeper == nil {
		return devsw.DiskState{}, nil
	}
	cleared, err := d.keeper.ClearState()
	if err != nil {
		return devsw.DiskState{}, fmt.Errorf("virtio-blk: %w", err)
	}
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	cleared.FlushError = max(cleared.FlushError, m.brought.FlushError)
	cleared.Unflushed = cleared.Unflushed || m.brought.Unflushed
	m.disk, m.brought = devsw.DiskState{}, devsw.DiskState{}
	m.storeLocked()
	return cleared, nil
}

// answered says that a write, or a discard, is about to be answered that a flush has not covered. The disk is Volatile.
func (m *memory) answered() {
	if m.unflushed.Load() == unflushedYes {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.unflushed.Store(unflushedYes)
	m.storeLocked()
}

// beginFlush numbers a flush. What was answered before, it covers.
func (m *memory) beginFlush() (number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.flushes = max(m.flushes, unflushedYes) + 1
	if m.unflushed.Load() != unflushedNo {
		m.unflushed.Store(m.flushes)
	}
	return m.flushes
}

// endFlush says that a flush has succeeded. Where another one has begun meanwhile, that one says whether all is flushed.
func (m *memory) endFlush(number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unflushed.Load() == number {
		m.unflushed.Store(unflushedNo)
		m.storeLocked()
	}
}

// closed says that the disk has been closed: what held the writes of a Volatile one has ended in good order, or says that it has not.
func (d *Device) closed() {
	d.learn()
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.disk.Unflushed {
		m.unflushed.Store(unflushedNo)
	}
	m.storeLocked()
	if m.late != nil {
		m.late.Close()
		m.late = nil
	}
}

var (
	_ vhostuser.StateKeeper   = (*Device)(nil)
	_ vhostuser.ConfigWatcher = (*Device)(nil)
)
