// Package null is a disk that keeps nothing, for measuring what stands above it. Writes vanish.
// Reads leave the memory as it is or, with Config.ReadZeroes, make it zero. QEMU's null-co is the
// model; NetBSD has no such disk.
//
// Concurrency: transfers take no lock. They have ended when d_strategy returns, but for long reads
// of zeroes in a context with turns (devsw.Turner).
package null

import (
	"context"
	"fmt"

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
type Driver struct{ *disk.Driver }

// New attaches the driver to t under the name "null", with majors of the table's choice.
func New(t *devsw.Table) (*Driver, error) {
	d, err := disk.Attach(t, "null", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		return nil, err
	}
	return &Driver{d}, nil
}

// softc is one disk. It does not change.
type softc struct {
	info       devsw.DiskInfo
	readZeroes bool
}

// Create makes disk unit and returns its block device. Errors: EEXIST where there is one already,
// EINVAL for a bad size.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sector, err := disk.CheckSector(conf.SectorSize)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("null: %w", err)
	}
	if conf.Size <= 0 || conf.Size%sector != 0 {
		return devsw.NODEV, fmt.Errorf("null: size %d: must be a multiple of the sector size %d, and not 0: %w",
			conf.Size, sector, devsw.EINVAL)
	}
	return d.Driver.Create(unit, &softc{
		info: devsw.DiskInfo{
			Size:        conf.Size,
			SectorSize:  uint32(sector),
			ReadOnly:    conf.ReadOnly,
			Discard:     !conf.ReadOnly,
			WriteZeroes: !conf.ReadOnly,
		},
		readZeroes: conf.ReadZeroes,
	})
}

// Info implements disk.Disk.
func (sc *softc) Info() (devsw.DiskInfo, error) { return sc.info, nil }

// Open implements disk.Disk.
func (sc *softc) Open(context.Context, devsw.Flag) (disk.Medium, error) {
	return &medium{disk.NewBase(sc.info), sc.readZeroes}, nil
}

// Destroy implements disk.Disk.
func (sc *softc) Destroy() {}

// medium is a disk that is open.
type medium struct {
	*disk.Base
	readZeroes bool
}

// Transfer implements disk.Medium.
func (m *medium) Transfer(b *devsw.Buf, _, n int64) {
	if m.readZeroes && b.Op == devsw.BRead {
		m.CopyTurns(b, n, m)
		return
	}
	b.InContext = true
	b.Resid = b.Bcount - n
	b.Biodone()
}

// Copy implements disk.Copier.
func (m *medium) Copy(b *devsw.Buf, off, n int64) devsw.Errno { return disk.Zero(b, off, n) }

// AIODone goes on with a transfer that takes several turns.
func (m *medium) AIODone(b *devsw.Buf, _ int64, e devsw.Errno) { m.Continue(b, e, m) }

// Discard implements disk.Medium.
func (m *medium) Discard(pos, n int64) error { return nil }

// WriteZeroes implements disk.Medium.
func (m *medium) WriteZeroes(pos, n int64, unmap bool) error { return nil }
