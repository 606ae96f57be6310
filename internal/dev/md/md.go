package md

import (
	"fmt"
	"math"
	"sync/atomic"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// The majors on NetBSD/amd64 (sys/arch/amd64/conf/majors.amd64).
const (
	bmajor = 17
	cmajor = 24
)

// Config describes a memory disk.
type Config struct {
	Size       int64  // bytes, a multiple of SectorSize; 0: the file's size, rounded up
	File       string // what is copied into the disk's beginning when it is created; "": nothing
	SectorSize uint32 // logical sector size: 512 or 4096 bytes; 0: 512
	ReadOnly   bool
}

// Driver is the memory disk driver, attached to a table.
type Driver struct{ disk.Switch[softc] }

// softc is one disk. What is not Opens does not change; the memory is there as long as the disk is open or listed.
type softc struct {
	opens  disk.Opens
	mem    []byte
	medium disk.Medium
	holder uint64 // see devsw.DiskInfo

	cancelled atomic.Bool // d_cancel of the block device has been, d_close has not
}

// New attaches the driver to t under the name "md".
func New(t *devsw.Table) (*Driver, error) {
	d := new(Driver)
	err := d.Attach(t, "md", bmajor, cmajor, disk.Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf, Ioctl: d.ioctl,
		Psize: d.psize, Discard: d.discard,
	}, (*softc).retire)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Create makes disk unit and returns its block device. Errors: EEXIST where there is one already, EINVAL for a bad size, ENOMEM,
// EFBIG for a file that does not fit, and what reading the file gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("md: %w", err)
	}
	dev, err := d.Switch.Create(unit, sc)
	if err != nil {
		_ = sys.Munmap(sc.mem)
	}
	return dev, err
}

func newSoftc(conf Config) (*softc, error) {
	sector, err := disk.CheckSector(conf.SectorSize)
	if err != nil {
		return nil, err
	}
	size := conf.Size
	var img *imagefile.File
	if conf.File != "" {
		if img, err = imagefile.Open(conf.File, sys.OpenFlags{}); err != nil {
			return nil, err
		}
		defer img.FD.Close()
		if size == 0 {
			size = (img.Size + sector - 1) &^ (sector - 1)
		}
		if img.Size > size {
			return nil, fmt.Errorf("%s: has %d bytes, more than the disk's %d: %w", conf.File, img.Size, size, devsw.EFBIG)
		}
	}
	if size <= 0 || size%sector != 0 || size > math.MaxInt {
		return nil, fmt.Errorf("size %d: must be a multiple of the sector size %d, and not 0: %w", size, sector, devsw.EINVAL)
	}
	mem, err := sys.MmapAnon(int(size))
	if err != nil {
		return nil, fmt.Errorf("%d bytes of memory: %w", size, err)
	}
	if img != nil {
		if err := img.Load(mem[:img.Size]); err != nil {
			_ = sys.Munmap(mem)
			return nil, err
		}
	}
	return &softc{
		mem:    mem,
		medium: disk.Medium{Size: size, High: size, Sector: sector, ReadOnly: conf.ReadOnly},
		holder: devsw.NewHolder(),
	}, nil
}

// retire takes the disk's memory away. EBUSY while it is open.
func (sc *softc) retire() error {
	if err := sc.opens.Retire(); err != nil {
		return err
	}
	return sys.Munmap(sc.mem)
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
	info := devsw.DiskInfo{
		Size:         sc.medium.Size,
		SectorSize:   uint32(sc.medium.Sector),
		ReadOnly:     sc.medium.ReadOnly,
		Discard:      !sc.medium.ReadOnly,
		WriteZeroes:  !sc.medium.ReadOnly,
		DiscardAlign: uint32(sys.PageSize()),
	}
	if !info.ReadOnly {
		info.Holds, info.Holder = devsw.HoldsAlways, sc.holder
	}
	return info
}

// open is d_open. EROFS to open a read-only disk for writing.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	switch {
	case sc == nil:
		return devsw.ENXIO
	case sc.medium.ReadOnly && flag&devsw.FWRITE != 0:
		return fmt.Errorf("md%d: is read-only: %w", dev.Minor(), devsw.EROFS)
	}
	return sc.opens.Open(mode)
}

// cancel is d_cancel. All operations end by themselves, without waiting for anything, but a transfer that goes on in several turns is
// given up between two of them.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	// Those of the character device have no context, and no turns.
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

// strategy is d_strategy. BMediaFUA means nothing here: there is no storage more stable than this.
func (d *Driver) strategy(b *devsw.Buf) {
	b.InContext = true // whatever comes of it
	sc := d.Get(b.Dev)
	if sc == nil {
		b.Fail(devsw.ENXIO)
		return
	}
	if _, n, ok := disk.Check(b, sc.medium); ok {
		disk.Transfer(b, n, sc)
	}
}

// Copy implements disk.Copier.
func (sc *softc) Copy(b *devsw.Buf, off, n int64) devsw.Errno {
	at := b.Blkno*devsw.DEVBSIZE + off
	return b.MoveAt(sc.mem[at:at+n], off)
}

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
		return sc.zero(zr.Pos, zr.N)
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

// discard is d_discard. What is discarded reads as zeroes.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	return sc.zero(pos, n)
}

// zero makes a range zero and gives its whole pages back to the host.
func (sc *softc) zero(pos, n int64) error {
	if err := disk.CheckRange(pos, n, sc.medium); err != nil {
		return err
	}
	page := int64(sys.PageSize())
	end := pos + n
	lo, hi := (pos+page-1)&^(page-1), end&^(page-1)
	if lo >= hi {
		clear(sc.mem[pos:end])
		return nil
	}
	clear(sc.mem[pos:lo])
	if err := sys.Discard(sc.mem[lo:hi]); err != nil {
		// Memory that is locked (mlockall(2)) cannot be given back.
		clear(sc.mem[lo:hi])
	}
	clear(sc.mem[hi:end])
	return nil
}
