package devsw

import (
	"context"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// firstMajor is the first major that the table chooses by itself. Those below
// are left to drivers that have a number on NetBSD (sys/conf/majors and the
// ports' own, all below 400 at the time of writing).
const firstMajor = 400

// Table holds the drivers by major number and by name, and calls them.
// NetBSD: sys/kern/subr_devsw.c. Make one with NewTable.
//
// The methods that begin with Bdev and Cdev are the wrappers: they find the
// driver of a device number and call its operation. All but the opens rely on
// the device being open, which is what keeps the driver attached, and all but
// the dump take the table's one lock for a driver without DMPSafe.
//
// Lock order: the one lock (Lock), then mu. No operation is called with mu held.
type Table struct {
	big sync.Mutex // the one lock, for drivers without DMPSafe

	bdev drivers[Bdevsw]
	cdev drivers[Cdevsw]

	mu    sync.Mutex // guards convs and the open sets; held to change bdev and cdev
	convs []*conv
}

// drivers are the attached ones of one kind, by major.
type drivers[T any] [MAXDEVSW]atomic.Pointer[entry[T]]

// entry is one attached driver of one kind.
type entry[T any] struct {
	sw *T
	attached
}

// attached is what the table does with drivers of either kind.
type attached struct {
	open, cancel, close func(dev Dev, flag Flag, mode Mode) error
	flag                DFlag

	// opens counts the opens in progress. It is closed while the driver is
	// being detached.
	opens Localcount
	// refs counts the Refs. It is closed once a Detach has found no open device.
	refs Localcount
	// isOpen has the devices whose last d_open went well and that were not
	// closed since. Under Table.mu.
	isOpen map[Dev]struct{}
	// detaching: a Detach is under way. Under Table.mu.
	detaching bool
}

// conv remembers a name's majors. It outlives the driver, so that a driver
// attached again has the numbers it had. NetBSD: struct devsw_conv.
type conv struct {
	name           string
	bmajor, cmajor int
}

// NewTable makes an empty table.
func NewTable() *Table { return new(Table) }

// Lock takes the one lock under which the operations of drivers without DMPSafe
// run. Such a driver's own goroutines take it before they touch what its
// operations touch. Table is a sync.Locker so that it can be given to NewCv.
//
// The lock is not recursive: a driver that calls other devices must be DMPSafe.
// NetBSD: KERNEL_LOCK, which is.
func (t *Table) Lock() { t.big.Lock() }

// TryLock takes the one lock if nobody has it.
func (t *Table) TryLock() bool { return t.big.TryLock() }

// Unlock lets go of the one lock.
func (t *Table) Unlock() { t.big.Unlock() }

// Attach adds a driver under a name, with a character major, and with a block major where it has a
// block device switch. For NODEVMAJOR the table chooses: the number that the name had before, if it
// had one. It returns the majors; the block major is NODEVMAJOR where there is no bdev. The
// switches are the table's from then on and must not change.
//
// Errors: EINVAL for an empty name, without a cdev, for a block major without a
// bdev, for a major that cannot be one, and for other majors than the name had
// before; EEXIST where a driver is attached under one of the majors, or another
// name had it before; ENOMEM where no major is left.
//
// Other than NetBSD's devsw_attach(9) it refuses a block major without a
// bdev for a new name too, and a major that another, detached name had: a major
// belongs to one name for the table's life.
func (t *Table) Attach(name string, bdev *Bdevsw, bmajor int, cdev *Cdevsw, cmajor int) (bmaj, cmaj int, err error) {
	if name == "" || cdev == nil || bmajor >= MAXDEVSW || cmajor >= MAXDEVSW {
		return NODEVMAJOR, NODEVMAJOR, EINVAL
	}
	t.mu.Lock()
	defer t.mu.Unlock()

	known := t.convLocked(func(c *conv) bool { return c.name == name })
	if known != nil {
		if bmajor < 0 {
			bmajor = known.bmajor
		}
		if cmajor < 0 {
			cmajor = known.cmajor
		}
		// A name that never had a block device may get its first one.
		if known.bmajor >= 0 && bmajor != known.bmajor || cmajor != known.cmajor {
			return NODEVMAJOR, NODEVMAJOR, EINVAL
		}
	}
	if bmajor >= 0 && bdev == nil {
		return NODEVMAJOR, NODEVMAJOR, EINVAL
	}
	bof := func(c *conv) int { return c.bmajor }
	cof := func(c *conv) int { return c.cmajor }
	if bdev != nil {
		if bmajor, err = t.majorLocked(name, bmajor, bof, func(i int) bool { return t.bdev[i].Load() != nil }); err != nil {
			return NODEVMAJOR, NODEVMAJOR, err
		}
	}
	if cmajor, err = t.majorLocked(name, cmajor, cof, func(i int) bool { return t.cdev[i].Load() != nil }); err != nil {
		return NODEVMAJOR, NODEVMAJOR, err
	}

	if bdev != nil {
		t.bdev[bmajor].Store(&entry[Bdevsw]{sw: bdev, attached: attached{
			open: bdev.Open, cancel: bdev.Cancel, close: bdev.Close, flag: bdev.Flag, isOpen: make(map[Dev]struct{}),
		}})
	} else {
		bmajor = NODEVMAJOR
	}
	t.cdev[cmajor].Store(&entry[Cdevsw]{sw: cdev, attached: attached{
		open: cdev.Open, cancel: cdev.Cancel, close: cdev.Close, flag: cdev.Flag, isOpen: make(map[Dev]struct{}),
	}})
	if known == nil {
		known = &conv{name: name, bmajor: NODEVMAJOR, cmajor: cmajor}
		t.convs = append(t.convs, known)
	}
	if bdev != nil {
		known.bmajor = bmajor
	}
	return bmajor, cmajor, nil
}

// majorLocked checks the major wanted for name, or chooses one.
func (t *Table) majorLocked(name string, want int, of func(*conv) int, used func(int) bool) (int, error) {
	free := func(i int) bool {
		return !used(i) && t.convLocked(func(c *conv) bool { return c.name != name && of(c) == i }) == nil
	}
	if want >= 0 {
		if !free(want) {
			return NODEVMAJOR, EEXIST
		}
		return want, nil
	}
	for i := firstMajor; i < MAXDEVSW; i++ {
		if free(i) {
			return i, nil
		}
	}
	return NODEVMAJOR, ENOMEM
}

func (t *Table) convLocked(match func(*conv) bool) *conv {
	for _, c := range t.convs {
		if match(c) {
			return c
		}
	}
	return nil
}

// Detach removes a driver: the switches that were attached, either of which may be nil. From the
// call on, opens fail with ENXIO. Detach waits for opens that have begun, and for every Ref, so
// also for last closes in progress. When it has returned nil, nothing in the table refers to the
// driver any more. The name keeps its majors.
//
// The caller must see to it that no device of the driver is open, and that opens which sleep
// return: it revokes the driver's nodes (specfs, FS.Vdevgone), before or meanwhile. Until Detach
// has found that no device is open, everything but an open finds the driver: a d_cancel can wake a
// d_open that sleeps, and a device that is open can be used. Where one is open, Detach fails with
// EBUSY and the driver stays attached. ENXIO: a switch is not attached, or is being detached
// already.
//
// NetBSD: devsw_detach(9), which does not look for open devices, and takes the
// driver out of the table before it waits.
func (t *Table) Detach(bdev *Bdevsw, cdev *Cdevsw) error {
	t.mu.Lock()
	be, bmajor := find(&t.bdev, bdev)
	ce, cmajor := find(&t.cdev, cdev)
	var all []*attached
	if be != nil {
		all = append(all, &be.attached)
	}
	if ce != nil {
		all = append(all, &ce.attached)
	}
	busy := slices.ContainsFunc(all, func(a *attached) bool { return a.detaching })
	if busy || bdev != nil && be == nil || cdev != nil && ce == nil {
		t.mu.Unlock()
		return ENXIO
	}
	for _, a := range all {
		a.detaching = true
		a.opens.Close()
	}
	t.mu.Unlock()
	step("detach refuses")

	drainAll(all, func(a *attached) *Localcount { return &a.opens })
	step("detach drained")

	t.mu.Lock()
	if slices.ContainsFunc(all, func(a *attached) bool { return len(a.isOpen) > 0 }) {
		for _, a := range all {
			a.detaching = false
			a.opens.Reopen()
		}
		t.mu.Unlock()
		return EBUSY
	}
	for _, a := range all {
		a.refs.Close()
	}
	t.mu.Unlock()
	step("detach lets nobody refer")

	drainAll(all, func(a *attached) *Localcount { return &a.refs })
	step("detach lets go")
	t.mu.Lock()
	defer t.mu.Unlock()
	if be != nil {
		t.bdev[bmajor].Store(nil)
	}
	if ce != nil {
		t.cdev[cmajor].Store(nil)
	}
	return nil
}

// drainAll waits until nobody is in any of the counts, which are closed.
func drainAll(all []*attached, of func(*attached) *Localcount) {
	for _, a := range all {
		// Background never ends, so this does not fail.
		_ = of(a).Drain(context.Background())
	}
}

// find gives the entry and the major of an attached switch.
func find[T any](list *drivers[T], sw *T) (*entry[T], int) {
	if sw != nil {
		for i := range list {
			if e := list[i].Load(); e != nil && e.sw == sw {
				return e, i
			}
		}
	}
	return nil, NODEVMAJOR
}

func lookup[T any](list *drivers[T], dev Dev) *entry[T] {
	if m := dev.Major(); m < MAXDEVSW {
		return list[m].Load()
	}
	return nil
}

func bySwitch[T any](list *drivers[T], dev Dev) *T {
	if e := lookup(list, dev); e != nil {
		return e.sw
	}
	return nil
}

// BdevswLookup gives the block driver of a device number, or nil. It takes no
// reference: the caller has the device open, or else only looks.
func (t *Table) BdevswLookup(dev Dev) *Bdevsw { return bySwitch(&t.bdev, dev) }

// CdevswLookup gives the character driver of a device number, or nil; see
// BdevswLookup.
func (t *Table) CdevswLookup(dev Dev) *Cdevsw { return bySwitch(&t.cdev, dev) }

// BdevswLookupMajor gives the major of an attached block driver, or NODEVMAJOR.
func (t *Table) BdevswLookupMajor(bdev *Bdevsw) int {
	_, major := find(&t.bdev, bdev)
	return major
}

// CdevswLookupMajor gives the major of an attached character driver, or
// NODEVMAJOR.
func (t *Table) CdevswLookupMajor(cdev *Cdevsw) int {
	_, major := find(&t.cdev, cdev)
	return major
}

// BdevswGetname gives the name that has, or had, this block major, or "".
func (t *Table) BdevswGetname(bmajor int) string {
	return t.getname(func(c *conv) bool { return bmajor >= 0 && c.bmajor == bmajor })
}

// CdevswGetname gives the name that has, or had, this character major, or "".
func (t *Table) CdevswGetname(cmajor int) string {
	return t.getname(func(c *conv) bool { return cmajor >= 0 && c.cmajor == cmajor })
}

func (t *Table) getname(match func(*conv) bool) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c := t.convLocked(match); c != nil {
		return c.name
	}
	return ""
}

// Name2blk gives the block major of an attached driver by a device's name, with
// or without a unit ("vnd", "vnd0", "vnd0a"), and the driver's name; NODEVMAJOR
// and "" where there is none. NetBSD: devsw_name2blk.
func (t *Table) Name2blk(name string) (bmajor int, driver string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.convLocked(func(c *conv) bool { return names(c.name, name) })
	if c == nil || c.bmajor < 0 || t.bdev[c.bmajor].Load() == nil {
		return NODEVMAJOR, ""
	}
	return c.bmajor, c.name
}

// Name2chr gives the character major; see Name2blk. NetBSD: devsw_name2chr.
func (t *Table) Name2chr(name string) (cmajor int, driver string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.convLocked(func(c *conv) bool { return names(c.name, name) })
	if c == nil || t.cdev[c.cmajor].Load() == nil {
		return NODEVMAJOR, ""
	}
	return c.cmajor, c.name
}

// names tells whether device is the driver's name, perhaps with a unit.
func names(driver, device string) bool {
	rest, ok := strings.CutPrefix(device, driver)
	return ok && (rest == "" || rest[0] >= '0' && rest[0] <= '9')
}

// Chr2blk gives the block device of the same driver and minor as a character
// device, or NODEV; both must be attached. NetBSD: devsw_chr2blk.
func (t *Table) Chr2blk(cdev Dev) Dev {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lookup(&t.cdev, cdev) == nil {
		return NODEV
	}
	c := t.convLocked(func(c *conv) bool { return c.cmajor == int(cdev.Major()) })
	if c == nil || c.bmajor < 0 || t.bdev[c.bmajor].Load() == nil {
		return NODEV
	}
	return Makedev(uint32(c.bmajor), cdev.Minor())
}

// Blk2chr gives the character device of the same driver and minor as a block
// device, or NODEV; both must be attached. NetBSD: devsw_blk2chr.
func (t *Table) Blk2chr(bdev Dev) Dev {
	t.mu.Lock()
	defer t.mu.Unlock()
	if lookup(&t.bdev, bdev) == nil {
		return NODEV
	}
	c := t.convLocked(func(c *conv) bool { return c.bmajor == int(bdev.Major()) })
	if c == nil || t.cdev[c.cmajor].Load() == nil {
		return NODEV
	}
	return Makedev(uint32(c.cmajor), bdev.Minor())
}

// enter takes the one lock for a driver that needs it.
func (t *Table) enter(f DFlag) {
	if f&DMPSafe == 0 {
		t.big.Lock()
	}
}

// exit undoes enter.
func (t *Table) exit(f DFlag) {
	if f&DMPSafe == 0 {
		t.big.Unlock()
	}
}
