package vnd

import (
	"fmt"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// The majors on NetBSD/amd64 (sys/arch/amd64/conf/majors.amd64).
const (
	bmajor = 14
	cmajor = 41
)

// DefaultLockWait is how long an open waits for an image that is in use, where the Config does not say.
const DefaultLockWait = 3 * time.Second

// Config describes a disk.
type Config struct {
	Path       string // the image: a regular file or a block device
	ReadOnly   bool   // the image is opened for reading, and may be shared with other readers
	Direct     bool   // O_DIRECT: past the host's page cache
	Bounce     bool   // transfers go through memory of the driver's, and are copied (see "A host that does not answer")
	Discard    bool   // discards punch holes, where the file system can; else d_discard is ENODEV, and zeroes keep their space
	SectorSize uint32 // logical sector size: 512 or 4096 bytes; 0: a block device's own, and 512 for a file

	// LockWait is how long d_open waits for an image that is in use: a predecessor that was killed keeps its locks until the
	// host has ended its last transfer. 0: DefaultLockWait; negative: not at all.
	LockWait time.Duration

	// Failures remembers which images have lost writes, over opens and closes and perhaps over the end of the process. It may be shared
	// by all disks. nil: the disk has its own, which it forgets with the driver.
	Failures *Failures
}

// Driver is the vnd driver, attached to a table.
type Driver struct{ disk.Switch[softc] }

// New attaches the driver to t under the name "vnd".
func New(t *devsw.Table) (*Driver, error) {
	d := new(Driver)
	err := d.Attach(t, "vnd", bmajor, cmajor, disk.Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf, Ioctl: d.ioctl,
		Psize: d.psize, Discard: d.discard,
	}, (*softc).retire)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Create makes disk unit and returns its block device. The image is opened as d_open will do, so that what is wrong with it
// shows now, and closed again; no lock is taken. Errors name the image's path and the cause: EEXIST where there is such a unit
// already, EINVAL for a bad Config or a file that cannot be an image, and what opening it gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("vnd: %w", err)
	}
	return d.Switch.Create(unit, sc)
}

func newSoftc(conf Config) (*softc, error) {
	sector, err := disk.CheckSector(conf.SectorSize)
	if err != nil {
		return nil, err
	}
	if conf.LockWait == 0 {
		conf.LockWait = DefaultLockWait
	}
	if conf.Failures == nil {
		conf.Failures = NewFailures("", nil)
	}
	sc := &softc{conf: conf, sector: sector, claim: disk.Claim[image]{Name: conf.Path}}
	img, err := imagefile.Open(conf.Path, sys.OpenFlags{Write: !conf.ReadOnly, Direct: conf.Direct})
	if err != nil {
		return nil, err
	}
	defer img.FD.Close()
	if conf.SectorSize == 0 && img.Block {
		// What others have written there, a partition table for one, goes by it.
		own, err := sys.BlockSectorSize(img.FD.Int())
		if err != nil {
			return nil, imagefile.PathError(conf.Path, err)
		}
		if sc.sector = 4096; own < sc.sector {
			sc.sector = devsw.DEVBSIZE
		}
	}
	if _, err := sc.geometry(img); err != nil {
		return nil, err
	}
	if sc.conf.Discard && !conf.ReadOnly && !img.Block && !sys.CanPunch(img.FD.Int(), img.Size) {
		// Rather than offer the guest what fails each time (FUSE and NFS 3, mostly).
		sc.conf.Discard = false
	}
	if _, err := sc.recognise(img); err != nil {
		return nil, err
	}
	return sc, nil
}

// Info describes disk unit, open or not: where it is not, the image is looked at, without taking its locks. ENXIO where there
// is no such unit, and what opening the image gives.
func (d *Driver) Info(unit int) (devsw.DiskInfo, error) {
	sc, err := d.Unit(unit)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	info, err := sc.info()
	if err != nil {
		return info, fmt.Errorf("vnd%d: %w", unit, err)
	}
	return info, nil
}

// Check looks whether disk unit could be opened now: it opens the image, takes its locks and lets go of everything again,
// without waiting. An error that wraps *LockError tells that the image is in use. nil where the unit is open.
func (d *Driver) Check(unit int) error {
	sc, err := d.Unit(unit)
	if err != nil {
		return err
	}
	if sc.claim.Medium() != nil {
		return nil
	}
	im, err := sc.openImage()
	if err != nil {
		return fmt.Errorf("vnd%d: %w", unit, identify(err))
	}
	im.close()
	return nil
}

// strategy is d_strategy.
func (d *Driver) strategy(b *devsw.Buf) {
	im := d.opened(b.Dev)
	if im == nil {
		b.Fail(devsw.ENXIO)
		return
	}
	im.strategy(b)
}

// cancelBuf is CancelBuf.
func (d *Driver) cancelBuf(b *devsw.Buf) {
	if im := d.opened(b.Dev); im != nil {
		im.cancelBuf(b)
	}
}

// opened gives the open image of a unit, or nil.
func (d *Driver) opened(dev devsw.Dev) *image {
	if sc := d.Get(dev); sc != nil {
		return sc.claim.Medium()
	}
	return nil
}

// ioctl is d_ioctl.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
	im := d.opened(dev)
	if im == nil {
		return devsw.ENXIO
	}
	switch cmd {
	case devsw.DIOCCACHESYNC:
		return im.flush()
	case devsw.DIOCWRITEZEROES:
		zr, ok := data.(*devsw.ZeroRange)
		if !ok || zr == nil {
			return devsw.EINVAL
		}
		return im.writeZeroes(zr.Pos, zr.N, zr.Unmap)
	case devsw.DIOCGROW:
		size, err := im.grow()
		if err != nil {
			return err
		}
		return disk.Grown(data, size)
	}
	return disk.Ioctl(cmd, data, im.info())
}

// psize is d_psize. It works without an open, as in NetBSD.
func (d *Driver) psize(dev devsw.Dev) int64 {
	sc := d.Get(dev)
	if sc == nil {
		return -1
	}
	info, err := sc.info()
	if err != nil {
		return -1
	}
	return info.Size / devsw.DEVBSIZE
}

// discard is d_discard.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	im := d.opened(dev)
	if im == nil {
		return devsw.ENXIO
	}
	return im.discard(pos, n)
}
