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

// DefaultLockWait is how long an open waits for an image that is in use, where the Config does not
// say.
const DefaultLockWait = 3 * time.Second

// Config describes a disk.
type Config struct {
	Path     string // the image: a regular file or a block device
	ReadOnly bool   // the image is opened for reading, and may be shared with other readers
	Direct   bool   // O_DIRECT: past the host's page cache
	// transfers go through memory of the driver's, and are copied (see "A host that does not
	// answer")
	Bounce bool
	// discards punch holes, where the file system can; else d_discard is ENODEV, and zeroes keep
	// their space
	Discard bool
	// logical sector size: 512 or 4096 bytes; 0: a block device's own, and 512 for a file
	SectorSize uint32

	// LockWait is how long d_open waits for an image that is in use: a predecessor that was killed
	// keeps its locks until the host has ended its last transfer. 0: DefaultLockWait; negative: not
	// at all.
	LockWait time.Duration

	// Failures remembers which images have lost writes, over opens and closes and perhaps over the
	// end of the process. It may be shared by all disks. nil: the disk has its own, which it
	// forgets with the driver.
	Failures *Failures
}

// Driver is the vnd driver, attached to a table.
type Driver struct{ *disk.Driver }

// New attaches the driver to t under the name "vnd".
func New(t *devsw.Table) (*Driver, error) {
	d, err := disk.Attach(t, "vnd", bmajor, cmajor)
	if err != nil {
		return nil, err
	}
	return &Driver{d}, nil
}

// Create makes disk unit and returns its block device. The image is opened as d_open will do, so
// that what is wrong with it shows now, and closed again; no lock is taken. Errors name the image's
// path and the cause: EEXIST where there is such a unit already, EINVAL for a bad Config or a file
// that cannot be an image, and what opening it gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("vnd: %w", err)
	}
	return d.Driver.Create(unit, sc)
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
	sc := &softc{conf: conf, sector: sector}
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

// unit returns disk unit and, while it is open, its image. ENXIO where there is no such unit.
func (d *Driver) unit(unit int) (*softc, *image, error) {
	v, m, err := d.Unit(unit)
	if err != nil {
		return nil, nil, err
	}
	im, _ := m.(*image)
	return v.(*softc), im, nil
}

// Check looks whether disk unit could be opened now: it opens the image, takes its locks and lets
// go of everything again, without waiting. An error that wraps *LockError tells that the image is
// in use. nil where the unit is open.
func (d *Driver) Check(unit int) error {
	sc, im, err := d.unit(unit)
	if err != nil || im != nil {
		return err
	}
	im, err = sc.openImage()
	if err != nil {
		return fmt.Errorf("vnd%d: %w", unit, identify(err))
	}
	im.Close()
	return nil
}
