// Package null is a disk that keeps nothing, for measuring what stands above it: writes vanish, and reads leave the memory
// as it is or, where wanted, make it zero. QEMU's null-co is the model; NetBSD has no such disk.
//
// Concurrency: transfers have ended when d_strategy returns, but for long reads of zeroes in a context with turns (devsw.Turner),
// and take no lock.
package null

import (
	"fmt"
	"sync/atomic"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// Config describes a null disk.
type Config struct {
	Size       int64  // bytes, a multiple of SectorSize
	SectorSize uint32 // logical sector size: 512 or 4096 bytes; 0: 512
	ReadOnly   bool
	ReadZeroes bool // reads make the memory zero; else they do not touch it
}

// Driver is the null disk driver, attached to a table.
type Driver struct{ disk.Switch[softc] }

// softc is one disk. What is not Opens does not change.
type softc struct {
	opens      disk.Opens
	medium     disk.Medium
	readZeroes bool

	cancelled atomic.Bool // d_cancel of the block device has been, d_close has not
}

// New attaches the driver to t under the name "null", with majors of the table's choice.
func New(t *devsw.Table) (*Driver, error) {
	d := new(Driver)
	err := d.Attach(t, "null", devsw.NODEVMAJOR, devsw.NODEVMAJOR, disk.Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf, Ioctl: d.ioctl,
		Psize: d.psize, Discard: d.discard,
	}, func(sc *softc) error { return sc.opens.Retire() })
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Create makes disk unit and returns its block device. Errors: EEXIST where there is one already, EINVAL for a bad size.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sector, err := disk.CheckSector(conf.SectorSize)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("null: %w", err)
	}
	if conf.Size <= 0 || conf.Size%sector != 0 {
		return devsw.NODEV, fmt.Errorf("null: size %d: must be a multiple of the sector size %d, and not 0: %w",
			conf.Size, sector, devsw.EINVAL)
	}
	return d.Switch.Create(unit, &softc{
		medium:     disk.Medium{Size: conf.Size, High: conf.Size, Sector: sector, ReadOnly: conf.ReadOnly},
		readZeroes: conf.ReadZeroes,
	})
}

// Info describes disk unit, open or not. ENXIO where there is none.
func (d *Driver) Info(unit int) (devsw.DiskInfo, error) {
	sc, err := d.Unit(unit)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	return sc.info(), nil
}

func (sc *softc) info() devsw.DiskInfo {
	return devsw.DiskInfo{
		Size:        sc.medium.Size,
		SectorSize:  uint32(sc.medium.Sector),
		ReadOnly:    sc.medium.ReadOnly,
		Discard:     !sc.medium.ReadOnly,
		WriteZeroes: !sc.medium.ReadOnly,
	}
}

// open is d_open. EROFS to open a read-only disk for writing.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	switch {
	case sc == nil:
		return devsw.ENXIO
	case sc.medium.ReadOnly && flag&devsw.FWRITE != 0:
		return fmt.Errorf("null%d: is read-only: %w", dev.Minor(), devsw.EROFS)
	}
	return sc.opens.Open(mode)
}

// cancel is d_cancel. There is nothing to interrupt, but a transfer that goes on in several turns is given up between two of them.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	if sc := d.Get(dev); sc != nil && mode == devsw.IFBLK {
		sc.cancelled.Store(true)
	}
	return nil
}

// cancelBuf is CancelBuf.
func (d *Driver) cancelBuf(b *devsw.Buf) {
	if b.AIO != nil {
		b.AIO.Cancel(b)
	}
}

// close is d_close.
func (d *Driver) close(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	if mode == devsw.IFBLK {
		sc.cancelled.Store(false)
	}
	sc.opens.Close(mode)
	return nil
}

// strategy is d_strategy.
func (d *Driver) strategy(b *devsw.Buf) {
	b.InContext = true // whatever comes of it
	sc := d.Get(b.Dev)
	if sc == nil {
		b.Fail(devsw.ENXIO)
		return
	}
	_, n, ok := disk.Check(b, sc.medium)
	if !ok {
		return
	}
	if sc.readZeroes && b.Op == devsw.BRead {
		disk.Transfer(b, n, sc)
		return
	}
	b.Resid = b.Bcount - n
	b.Biodone()
}

// Copy implements disk.Copier.
func (sc *softc) Copy(b *devsw.Buf, off, n int64) devsw.Errno { return disk.Zero(b, off, n) }

// AIODone goes on with a transfer that takes several turns.
func (sc *softc) AIODone(b *devsw.Buf, _ int64, e devsw.Errno) {
	if e == 0 && sc.cancelled.Load() {
		e = devsw.ECANCELED
	}
	disk.Continue(b, min(b.Bcount, sc.medium.Size-b.Blkno*devsw.DEVBSIZE), e, sc)
}

// ioctl is d_ioctl.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	switch cmd {
	case devsw.DIOCCACHESYNC:
		return nil
	case devsw.DIOCWRITEZEROES:
		zr, ok := data.(*devsw.ZeroRange)
		if !ok || zr == nil {
			return devsw.EINVAL
		}
		return disk.CheckRange(zr.Pos, zr.N, sc.medium)
	case devsw.DIOCGROW:
		return disk.Grown(data, sc.medium.Size)
	}
	return disk.Ioctl(cmd, data, sc.info())
}

// psize is d_psize.
func (d *Driver) psize(dev devsw.Dev) int64 {
	sc := d.Get(dev)
	if sc == nil {
		return -1
	}
	return sc.medium.Size / devsw.DEVBSIZE
}

// discard is d_discard.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	return disk.CheckRange(pos, n, sc.medium)
}
