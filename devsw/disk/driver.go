package disk

import (
	"context"
	"fmt"

	"vdev/devsw"
)

// Disk is one unit of a driver, open or not. Its methods may be called on any goroutine.
type Disk interface {
	// Open opens what the disk is made of, at the first d_open of one of its devices. It may wait.
	// ctx is done when d_cancel, or a d_close under it, has been: Open is to return soon then. flag
	// has FREAD, FWRITE and FRESUME of that d_open. The Medium is the caller's, who closes it.
	// EROFS where it cannot be opened for writing. There is no other Open of the disk until this
	// one has failed or the Medium's Close has begun.
	Open(ctx context.Context, flag devsw.Flag) (Medium, error)

	// Info describes the disk while it is not open. While it is, the Medium is asked.
	Info() (devsw.DiskInfo, error)

	// Destroy says that the disk is no unit of the driver any more. It is not open and will not be.
	// Destroy may wait, and is called once.
	Destroy()
}

// Medium is a disk that is open: from Disk.Open to Close. Every one embeds a *Base, which has all
// functions but Transfer. They may be called on any goroutine, also at the same time, but for
// Close.
//
// The order at the end is NetBSD's: Cancel, then everything in progress ends (drain), then Close,
// which is alone.
type Medium interface {
	// Transfer starts b, a read or a write of n bytes from byte off of the disk on, and returns
	// without waiting. The range lies within the disk and is made of whole sectors; n is more than
	// 0, and less than b.Bcount where the disk's end cuts the transfer. b is the driver's from now
	// on. It ends b by setting Error and Resid (b.Bcount less what was transferred) and calling
	// Biodone, exactly once, on any goroutine. If that is this one, b.InContext is set before. With
	// BMediaFUA in b.Flags a write is on stable storage then.
	Transfer(b *devsw.Buf, off, n int64)

	// CancelBuf interrupts one transfer, where it is in progress: see devsw.Bdevsw.CancelBuf.
	CancelBuf(b *devsw.Buf)

	// Cancel is d_cancel: it interrupts everything in progress, which ends with ECANCELED where it
	// can be interrupted, and makes what begins from now on end so. It does not wait. It may be
	// called more than once. Base.Cancelled is true from before the call.
	Cancel()

	// Close closes what Open has opened. Nothing of the Medium is in progress, nor comes any more.
	Close()

	// Flush puts every write that has ended on stable storage. It may wait.
	Flush() error

	// Discard discards n bytes from byte pos on. It is called where the DiskInfo of NewBase says
	// that discards work. The range lies within the disk, which is not read-only, and is made of
	// whole sectors. EOPNOTSUPP: that does not work here after all. It may wait.
	Discard(pos, n int64) error

	// WriteZeroes makes n bytes from byte pos on zero. It may discard them if unmap is set and they
	// read as zeroes then. The range and the errors are as for Discard. It may wait.
	WriteZeroes(pos, n int64, unmap bool) error

	// Grow looks how large the disk is now, tells it to Base.Resize, and returns the size in bytes.
	// It may wait.
	Grow() (int64, error)

	// Info describes the disk. It does not wait.
	Info() devsw.DiskInfo

	base() *Base
}

// Driver is a disk driver that is attached to a table: the functions of its two devices, its units,
// and who has which of them open. Of a disk's two devices one can be open at a time: EBUSY else.
// Its methods may be called on any goroutine.
type Driver struct {
	s    Switch[unit]
	name string
}

// unit is a disk of a driver.
type unit struct {
	disk  Disk
	claim claim
}

// opened is a Medium with its Base, which a transfer finds without a call.
type opened struct {
	Medium
	base *Base
}

// Attach attaches a driver of that name to t, as a block and as a character device. Majors may be
// devsw.NODEVMAJOR: then the table chooses. It needs no lock of the table's (devsw.DMPSafe). Errors
// are those of devsw.Table.Attach. Detach ends it.
func Attach(t *devsw.Table, name string, bmajor, cmajor int) (*Driver, error) {
	d := &Driver{name: name}
	err := d.s.Attach(t, name, bmajor, cmajor, Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf,
		Ioctl: d.ioctl, Psize: d.psize, Discard: d.discard,
	}, func(u *unit) error {
		if err := u.claim.retire(); err != nil {
			return err
		}
		u.disk.Destroy()
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Detach takes the driver out of the table and destroys all its disks. EBUSY, and nothing changed,
// while one is open. No other method may be called meanwhile or afterwards.
func (d *Driver) Detach() error { return d.s.Detach() }

// Create makes v disk unit of the driver and returns its block device. The character device is
// devsw.Table.Blk2chr of that. EEXIST where there is such a unit already, EINVAL where there can be
// none; v stays the caller's then, and Destroy is not called.
func (d *Driver) Create(number int, v Disk) (devsw.Dev, error) {
	return d.s.Create(number, &unit{disk: v})
}

// Destroy takes disk unit away. EBUSY while it is open or being opened, ENXIO where there is none.
func (d *Driver) Destroy(unit int) error { return d.s.Destroy(unit) }

// Unit returns disk unit and, while it is open, its Medium, which is nil else. It may be closed at
// any time. ENXIO where there is no such unit.
func (d *Driver) Unit(unit int) (Disk, Medium, error) {
	u, err := d.s.Unit(unit)
	if err != nil {
		return nil, nil, err
	}
	if o := u.claim.medium.Load(); o != nil {
		return u.disk, o.Medium, nil
	}
	return u.disk, nil, nil
}

// Claimed tells whether disk unit is open or being opened.
func (d *Driver) Claimed(unit int) bool {
	u, err := d.s.Unit(unit)
	return err == nil && u.claim.claimed()
}

// Info describes disk unit, open or not. ENXIO where there is none, else what Disk.Info gives.
func (d *Driver) Info(unit int) (devsw.DiskInfo, error) {
	u, err := d.s.Unit(unit)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	info, err := u.info()
	if err != nil {
		return info, fmt.Errorf("%s%d: %w", d.name, unit, err)
	}
	return info, nil
}

func (u *unit) info() (devsw.DiskInfo, error) {
	if o := u.claim.medium.Load(); o != nil {
		return o.Info(), nil
	}
	return u.disk.Info()
}

// open is d_open. The first one opens the disk; others of the same device wait for it. EROFS to
// open a read-only disk for writing.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	u := d.s.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	err := u.claim.open(mode, func(ctx context.Context) (*opened, error) { return u.open(ctx, flag) })
	if err == nil {
		if o := u.claim.medium.Load(); o != nil { // a d_close may have come
			err = o.permits(flag)
		}
	}
	if err != nil {
		return fmt.Errorf("%s%d: %w", d.name, dev.Minor(), err)
	}
	return nil
}

func (u *unit) open(ctx context.Context, flag devsw.Flag) (*opened, error) {
	m, err := u.disk.Open(ctx, flag)
	if err != nil {
		return nil, err
	}
	o := &opened{Medium: m, base: m.base()}
	if err = o.permits(flag); err == nil {
		if s := o.base.info.SectorSize; s < devsw.DEVBSIZE || s&(s-1) != 0 {
			err = fmt.Errorf("sector size %d: must be a power of two, and 512 or more: %w", s, devsw.EINVAL)
		}
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return o, nil
}

// permits tells whether the disk may be opened like this.
func (o *opened) permits(flag devsw.Flag) error {
	if flag&devsw.FWRITE != 0 && o.base.info.ReadOnly {
		return fmt.Errorf("is read-only: %w", devsw.EROFS)
	}
	return nil
}

// cancel is d_cancel. It takes locks that are never held for long.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	u := d.s.Get(dev)
	if u == nil {
		return nil // a d_open that failed with ENXIO may be cancelled, too
	}
	if o := u.claim.cancel(mode); o != nil {
		o.base.cancelled.Store(true)
		o.Cancel()
	}
	return nil
}

// close is d_close. It may come for a device that is not open, or whose open has failed.
func (d *Driver) close(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	u := d.s.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	if o := u.claim.close(mode); o != nil {
		o.Close()
	}
	return nil
}

// opened returns what dev has open, or nil. It is Get without the cost of a generic function, which
// each transfer would pay.
func (d *Driver) opened(dev devsw.Dev) *opened {
	if list, minor := d.s.units.List.Load(), int64(dev.Minor()); list != nil && minor < int64(len(*list)) {
		if u := (*list)[minor]; u != nil {
			return u.claim.medium.Load()
		}
	}
	return nil
}

// strategy is d_strategy.
func (d *Driver) strategy(b *devsw.Buf) {
	o := d.opened(b.Dev)
	if o == nil {
		b.InContext = true
		b.Fail(devsw.ENXIO)
		return
	}
	o.start(b)
}

func (o *opened) start(b *devsw.Buf) {
	// As a rule a transfer is within the disk, and needs no further look.
	if off, ok := o.base.within(b); ok {
		b.Error, b.Resid, b.InContext = 0, 0, false
		o.Transfer(b, off, b.Bcount)
		return
	}
	b.InContext = true // where it ends at once
	if off, n, ok := Check(b, o.base.Bounds()); ok {
		b.InContext = false // until the Medium, or the AIO, says otherwise
		o.Transfer(b, off, n)
	}
}

// cancelBuf is CancelBuf.
func (d *Driver) cancelBuf(b *devsw.Buf) {
	if o := d.opened(b.Dev); o != nil {
		o.CancelBuf(b)
	}
}

// ioctl is d_ioctl. EINVAL where data is not what the command wants, ENOTTY for a command there is
// not.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
	o := d.opened(dev)
	if o == nil {
		return devsw.ENXIO
	}
	switch cmd {
	case devsw.DIOCCACHESYNC:
		return o.Flush()
	case devsw.DIOCWRITEZEROES:
		zr, ok := data.(*devsw.ZeroRange)
		if !ok || zr == nil {
			return devsw.EINVAL
		}
		if err := checkRange(zr.Pos, zr.N, o.base.Bounds()); err != nil {
			return err
		}
		return o.WriteZeroes(zr.Pos, zr.N, zr.Unmap)
	case devsw.DIOCGROW:
		size, err := o.Grow()
		if err != nil || data == nil {
			return err
		}
		return answer(data, size)
	case devsw.DIOCGMEDIASIZE:
		return answer(data, o.base.size.Load())
	case devsw.DIOCGSECTORSIZE:
		return answer(data, o.base.info.SectorSize)
	case devsw.DIOCGDISKINFO:
		return answer(data, o.Info())
	}
	return devsw.ENOTTY
}

// answer puts what a command asks for where it is wanted.
func answer[T any](data any, v T) error {
	p, ok := data.(*T)
	if !ok || p == nil {
		return devsw.EINVAL
	}
	*p = v
	return nil
}

// psize is d_psize. It works without an open, as in NetBSD.
func (d *Driver) psize(dev devsw.Dev) int64 {
	if u := d.s.Get(dev); u != nil {
		if info, err := u.info(); err == nil {
			return info.Size / devsw.DEVBSIZE
		}
	}
	return -1
}

// discard is d_discard.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	o := d.opened(dev)
	switch {
	case o == nil:
		return devsw.ENXIO
	case !o.base.info.Discard && !o.base.info.ReadOnly:
		return devsw.ENODEV
	}
	if err := checkRange(pos, n, o.base.Bounds()); err != nil {
		return err
	}
	return o.Discard(pos, n)
}
