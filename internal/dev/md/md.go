package md

import (
	"context"
	"fmt"
	"math"

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
type Driver struct{ *disk.Driver }

// New attaches the driver to t under the name "md".
func New(t *devsw.Table) (*Driver, error) {
	d, err := disk.Attach(t, "md", bmajor, cmajor)
	if err != nil {
		return nil, err
	}
	return &Driver{d}, nil
}

// softc is one disk. It does not change; the memory is there as long as the disk is a unit.
type softc struct {
	mem  []byte
	info devsw.DiskInfo
}

// Create makes disk unit and returns its block device. Errors: EEXIST where there is one already,
// EINVAL for a bad size, ENOMEM, EFBIG for a file that does not fit, and what reading the file
// gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("md: %w", err)
	}
	dev, err := d.Driver.Create(unit, sc)
	if err != nil {
		sc.Destroy()
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
	sc := &softc{mem: mem, info: devsw.DiskInfo{
		Size:         size,
		SectorSize:   uint32(sector),
		ReadOnly:     conf.ReadOnly,
		Discard:      !conf.ReadOnly,
		WriteZeroes:  !conf.ReadOnly,
		DiscardAlign: uint32(sys.PageSize()),
	}}
	if !conf.ReadOnly {
		sc.info.Holds, sc.info.Holder = devsw.HoldsAlways, devsw.NewHolder()
	}
	return sc, nil
}

// Info implements disk.Disk.
func (sc *softc) Info() (devsw.DiskInfo, error) { return sc.info, nil }

// Open implements disk.Disk.
func (sc *softc) Open(context.Context, devsw.Flag) (disk.Medium, error) {
	return &medium{disk.NewBase(sc.info), sc.mem}, nil
}

// Destroy implements disk.Disk.
func (sc *softc) Destroy() { _ = sys.Munmap(sc.mem) }

// medium is a disk that is open. There is no storage more stable than this: flushes and BMediaFUA
// mean nothing here.
type medium struct {
	*disk.Base
	mem []byte
}

// Transfer implements disk.Medium.
func (m *medium) Transfer(b *devsw.Buf, _, n int64) { m.CopyTurns(b, n, m) }

// Copy implements disk.Copier.
func (m *medium) Copy(b *devsw.Buf, off, n int64) devsw.Errno {
	at := b.Blkno*devsw.DEVBSIZE + off
	return b.MoveAt(m.mem[at:at+n], off)
}

// AIODone goes on with a transfer that takes several turns.
func (m *medium) AIODone(b *devsw.Buf, _ int64, e devsw.Errno) { m.Continue(b, e, m) }

// Discard implements disk.Medium. What is discarded reads as zeroes.
func (m *medium) Discard(pos, n int64) error { return m.WriteZeroes(pos, n, true) }

// WriteZeroes makes a range zero and discards its whole pages.
func (m *medium) WriteZeroes(pos, n int64, _ bool) error {
	page := int64(sys.PageSize())
	end := pos + n
	lo, hi := (pos+page-1)&^(page-1), end&^(page-1)
	if lo >= hi {
		clear(m.mem[pos:end])
		return nil
	}
	clear(m.mem[pos:lo])
	if err := sys.Discard(m.mem[lo:hi]); err != nil {
		// Memory that is locked (mlockall(2)) cannot be discarded.
		clear(m.mem[lo:hi])
	}
	clear(m.mem[hi:end])
	return nil
}
