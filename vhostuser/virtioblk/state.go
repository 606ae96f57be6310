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

// memory is what of a Device outlives its sessions and its process. It stands in the state page of
// the in-flight region, as far as a front-end has brought one.
//
// A front-end such as QEMU reads writeback once, when it makes its device, and from then on
// answers the guest with its own copy, over resets of the guest and over lost connections. It
// sends SET_CONFIG when the guest changes that copy, and never again. A migration's target makes a
// new copy, of what its back-end says, while the guest driver goes on with what it knows. So the
// two are two things, and neither is known just because there is a connection:
//
//   - told is the front-end's copy. It is known from a SET_CONFIG, from a GET_CONFIG before a ring
//     has run in the session, which is how a front-end begins, and from the page. RESET_DEVICE
//     leaves it as it is, because the front-end's copy stays; after a reset either mode may be
//     found (section 5.2.5).
//   - driver is what the guest driver takes the cache for. A driver that begins reads the copy;
//     one that goes on elsewhere (vhostuser.DriverElsewhere) has read another one, of which only
//     the page tells.
//
// What the guest has written is a third thing. A disk in memory ends with its process, and so may
// what a process of the disk's holds (devsw.DiskInfo.Holds). The page says whose it is, from
// before a write is answered that depends on it. A driver that goes on with a disk that does not
// have its writes must not see what was there before them: everything fails until it begins anew.
//
// mu is taken last. Nothing is waited for with it, but for the system call that writes the page.
type memory struct {
	// held while the disk is asked for its state and that is noted; taken before mu
	asking sync.Mutex

	mu       sync.Mutex
	page     *vhostuser.StatePage // nil for none
	late     *vhostuser.StatePage // one that was dropped before the disk was closed; nil for none
	told     cacheMode
	driver   cacheMode
	fromPage bool                   // driver is what the page has said
	ran      bool                   // a ring has run in this session
	origin   vhostuser.DriverOrigin // of the driver of the rings that run, or ran last
	// with what a flush has failed, as the page has said, until the next open
	brought devsw.Errno
	disk    devsw.DiskState // what the driver has said last
	taken   bool            // an open has taken what page has said
	open    bool            // the disk is open, or is still being closed

	holds   devsw.Holding // the disk's; does not change
	own     uint64        // its holder; does not change
	writes  whereabouts   // of what the guest driver has written
	holder  uint64        // of writesHeld and writesHandedOver
	known   bool          // page says where they are
	served  bool          // a driver has had the disk in this process
	fresh   bool          // none had, when the first of the rings that run was started
	mourned bool          // the log has it that they are lost

	// unflushed is unflushedNo, unflushedYes, or the number of the last flush, where no write has
	// been answered since that began. It says whether the disk's holder has anything. Changed
	// under mu.
	unflushed atomic.Uint64
	handed    bool   // the disk has been closed in order since
	flushes   uint64 // the number of the last flush
}

// whereabouts says where is what the guest driver has written.
type whereabouts uint8

const (
	writesHere whereabouts = iota // on the disk
	// with a holder that is not this disk's: the next open asks how it has ended
	writesHeld
	// likewise; the disk that it was of has been closed in order
	writesHandedOver
	writesLost // nowhere: everything fails until a driver begins
)

const (
	unflushedNo uint64 = iota
	unflushedYes
	// Numbers of flushes are larger.
)

// The state in the page.
const (
	stateDriver    = 0      // the first of 2 bits: cacheMode
	stateTold      = 2      // likewise
	stateUnflushed = 1 << 4 // devsw.DiskState.Unflushed
	stateHeld      = 1 << 5 // the tag names the holder of what the guest has written
	stateHanded    = 1 << 6 // that was told to end in order
	stateErrno     = 16     // the first of 16 bits
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
	// What the disk says of itself.
	state := uint32(min(max(m.disk.FlushError, m.brought), maxErrno)) << stateErrno
	if m.disk.Unflushed {
		state |= stateUnflushed
	}
	const held = stateHeld | stateHanded
	if m.unflushed.Load() != unflushedNo {
		state |= stateHeld
		if m.handed {
			state |= stateHanded
		}
	}
	if m.late != nil {
		// Whose guest it is says the rest.
		const ours = held | 0xffff<<stateErrno
		m.late.Store(m.late.State()&^ours|state, m.own, stateUnflushed)
	}
	state |= uint32(m.driver)<<stateDriver | uint32(m.told)<<stateTold
	tag := m.own
	switch m.writes {
	case writesHeld:
		state, tag = state&^held|stateHeld, m.holder
	case writesHandedOver:
		state, tag = state|held, m.holder
	case writesLost:
		state |= stateUnflushed
	}
	// After that one: a front-end that comes back brings the same page again.
	if m.page != nil && (m.late != nil || m.page.State() != state || m.page.Tag() != tag) {
		m.page.Store(state, tag, stateUnflushed)
	}
}

// SetStatePage implements vhostuser.StateKeeper.
func (d *Device) SetStatePage(p *vhostuser.StatePage) {
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	// That a flush has failed (brought) is the disk's affair, whoever its guest is. It stays until
	// an open has taken it. Where the writes are stays known as well, until another page says it,
	// or a driver begins.
	m.fromPage, m.known = false, false
	m.dropLocked(m.page, m.open && m.taken)
	m.page, m.taken = p, false
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
	m.brought = max(m.brought, disk.FlushError)
	m.findWritesLocked(disk.Unflushed)
	m.storeLocked()
}

// findWritesLocked finds out from the page where the writes of its guest are. lost: it says that
// they are nowhere.
func (m *memory) findWritesLocked(lost bool) {
	state, tag := m.page.State(), m.page.Tag()
	m.known = lost || tag != 0
	switch {
	case lost:
		m.writes = writesLost
	case state&stateHeld != 0 && tag != m.own:
		m.writes, m.holder = writesHeld, tag
		if state&stateHanded != 0 {
			m.writes = writesHandedOver
		}
	case m.known:
		m.writes = writesHere
	}
}

// dropLocked closes a page, but keeps it for as long as the disk is used: a close may still have
// something to say.
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

// beginSession forgets what the session before knew of the front-end and of the guest: they may be
// others.
func (m *memory) beginSession() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.told, m.driver, m.fromPage, m.ran = cacheUnknown, cacheUnknown, false, false
	m.writes, m.known = writesHere, false
}

// ConfigRead implements vhostuser.ConfigWatcher. Once a ring has run it is the new size that a
// front-end wants, and its copy of writeback stays as it was.
func (d *Device) ConfigRead(off, n int) {
	m := &d.memory
	m.mu.Lock()
	defer m.mu.Unlock()
	if off <= writebackOff && off+n > writebackOff && !m.ran && m.told == cacheUnknown {
		m.told = cacheWriteback // as writeback says it
	}
}

// status gives what the disk has lost, and what the guest driver takes its cache for.
func (m *memory) status() (devsw.DiskState, string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	lost := m.disk
	if lost.FlushError == 0 {
		lost.FlushError = m.brought
	}
	lost.Unflushed = lost.Unflushed || m.writes == writesLost
	return lost, [...]string{"unknown", "writeback", "writethrough"}[m.driver]
}

// Failure returns with what a flush of the disk has failed: 0 where none has. Any goroutine; it
// waits for nothing.
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

// meetDriver finds out what the guest driver takes the disk's cache for, and where its writes
// are, when a ring starts. first: no other one runs. unknown: the log is to say that the former is
// not known.
func (d *Device) meetDriver(first bool, origin vhostuser.DriverOrigin) (unknown bool) {
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
	if first {
		m.fresh = !m.served
	}
	switch {
	case first && origin == vhostuser.DriverNew:
		m.writes = writesHere
	case origin == vhostuser.DriverElsewhere && !m.known && m.fresh && m.holds == devsw.HoldsAlways:
		// Whatever it has written is elsewhere, too. That it has written nothing nobody knows.
		m.writes = writesLost
	}
	m.ran, m.origin = true, origin
	m.storeLocked()
	d.setStableLocked()
	return first && m.driver == cacheUnknown && d.negotiated&fConfigWCE != 0 && !d.readOnly
}

// unknownMode is what the log says where meetDriver says so.
const unknownMode = "it is not known whether the guest counts on a write cache, since its driver began elsewhere: each write is made stable, " +
	"which is slow, until the guest sets its cache mode or its machine is started anew"

// setStableLocked works out whether each write is to be stable: because of the cache's mode, or
// since the guest driver cannot flush. One without CONFIG_WCE counts on nothing but its flushes,
// unless somebody has switched the cache off all the same.
func (d *Device) setStableLocked() {
	m := &d.memory
	d.stable.Store(d.negotiated&fFlush == 0 || m.driver == cacheWritethrough ||
		m.driver == cacheUnknown && d.negotiated&fConfigWCE != 0)
}

// Keeper is a disk that knows more of itself than what is on it (devsw.DiskState). Its methods
// work whether it is open or not, on any goroutine, those of reactors included, and do not block.
type Keeper interface {
	// State tells what the disk knows now.
	State() devsw.DiskState
	// SetState tells with what a flush failed that a predecessor knew of. It comes after d_open
	// has succeeded, and before the first transfer.
	SetState(devsw.DiskState)
	// ClearState has it forgotten, and returns what that was. After an error nothing is forgotten.
	ClearState() (devsw.DiskState, error)
}

// takeOver tells the disk, which has just been opened, what a predecessor knew of it, and finds
// out where the guest's writes are.
func (d *Device) takeOver() {
	m := &d.memory
	for again := true; again; {
		m.mu.Lock()
		brought, writes, holder := m.brought, m.writes, m.holder
		m.mu.Unlock()
		found := d.followed(writes, holder)
		if brought != 0 && d.config.Keeper != nil {
			d.config.Keeper.SetState(devsw.DiskState{FlushError: brought})
		}
		d.ask(func() {
			// Another guest's page may have come meanwhile.
			if again = m.brought != brought || m.writes != writes || m.holder != holder; again {
				return
			}
			m.writes = found
			m.tookLocked()
		})
	}
}

// tookLocked notes that the disk knows what the page has said of it.
func (m *memory) tookLocked() {
	m.brought, m.taken, m.open, m.handed = 0, true, true, false
	if m.holds == devsw.HoldsToClose && !m.disk.Unflushed {
		m.unflushed.Store(unflushedNo) // what held it before has ended in order
	}
	m.served = m.served || m.writes == writesHere
}

// followed finds out where the writes of a guest are that a holder of another disk has had.
func (d *Device) followed(writes whereabouts, holder uint64) whereabouts {
	if writes != writesHeld && writes != writesHandedOver {
		return writes
	}
	ended, known := false, false
	if d.config.Ended != nil {
		ended, known = d.config.Ended(holder)
	}
	if ended || !known && writes == writesHandedOver {
		return writesHere
	}
	return writesLost
}

// What is told once of each failure.
const (
	lostWrites = "a flush has failed: writes that were acknowledged are lost, and every flush fails from now on; " +
		"once the image is known to be good, or was made so, 'vdev ctl clear-failure' ends that, and so does another image"
	lostDisk = "what the guest has written is not on this disk: memory, or a process, that had it has ended with another vdev; " +
		"every request fails until the guest resets the device (restart the guest: it finds the disk as after a power failure)"
)

// Learn asks the disk for its state and puts that into the page, before the guest is told of what
// has led to it. Requests that fail do so. It is called as well when a disk finds out by itself
// that it has lost something. Any goroutine; it waits for the disk's Keeper alone.
func (d *Device) Learn() {
	if d.config.Keeper != nil {
		d.ask(func() {})
	}
}

// ask asks the disk for its state and puts that, and what change changes of memory, with mu held,
// into the page. One that asks notes what it was told before another one asks, so that the last
// answer stays.
func (d *Device) ask(change func()) {
	m := &d.memory
	m.asking.Lock()
	var s devsw.DiskState
	if d.config.Keeper != nil {
		s = d.config.Keeper.State()
	}
	m.mu.Lock()
	failed := s.FlushError != 0 && m.disk.FlushError == 0
	m.disk = s
	change()
	// Of what a driver has lost it tells itself.
	gone := m.taken && m.writes == writesLost && !m.mourned && !s.Unflushed
	m.mourned = m.writes == writesLost && (m.mourned || gone)
	m.storeLocked()
	m.mu.Unlock()
	m.asking.Unlock()
	if failed {
		d.config.Log(lostWrites, s.FlushError)
	}
	if gone {
		d.config.Log(lostDisk, nil)
	}
}

// lost tells whether everything is to fail.
func (m *memory) lost() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.writes == writesLost
}

// ClearFailure has it forgotten that a flush has failed and that writes are lost, and returns what
// was known of that. Any goroutine.
func (d *Device) ClearFailure() (cleared devsw.DiskState, err error) {
	if d.config.Keeper != nil {
		if cleared, err = d.config.Keeper.ClearState(); err != nil {
			return devsw.DiskState{}, fmt.Errorf("virtio-blk: %w", err)
		}
	}
	m := &d.memory
	// What has failed since is not forgotten with it.
	d.ask(func() {
		cleared.FlushError, m.brought = max(cleared.FlushError, m.brought), 0
		if m.writes == writesLost {
			cleared.Unflushed, m.writes, m.served = true, writesHere, true
		}
	})
	d.mu.Lock()
	o := d.open
	d.mu.Unlock()
	if o != nil && ended(o.Began()) {
		d.letGo(o)
	}
	return cleared, nil
}

// answered says that a write, or a discard, is about to be answered that depends on the disk's
// holder.
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

// endFlush says that a flush has succeeded. Where another one has begun meanwhile, that one says
// whether all is flushed.
func (m *memory) endFlush(number uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unflushed.Load() == number {
		m.unflushed.Store(unflushedNo)
		m.storeLocked()
	}
}

// closed says that the disk has been closed, which was open.
func (d *Device) closed() {
	m := &d.memory
	d.ask(func() { m.handed = m.holds == devsw.HoldsToClose })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open = false
	if m.late != nil {
		m.late.Close()
		m.late = nil
	}
}

var (
	_ vhostuser.StateKeeper   = (*Device)(nil)
	_ vhostuser.ConfigWatcher = (*Device)(nil)
)
