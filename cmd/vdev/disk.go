package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/dev/nbd"
	"vdev/internal/dev/null"
	"vdev/internal/dev/vnd"
	"vdev/internal/spec"
	"vdev/vhostuser/virtioblk"
)

// diskDriver is what the drivers of disks have in common beside their device switches.
type diskDriver interface {
	Info(unit int) (devsw.DiskInfo, error)
	Detach() error
}

// openedDisk is unit 0 of an attached driver: the disk that is served. Despite the name nothing is open, in the sense
// of d_open, before a guest starts it.
type openedDisk struct {
	driver diskDriver
	dev    devsw.Dev
	faults *fault.Driver // the driver, where it is that one
}

func (d *openedDisk) info() (devsw.DiskInfo, error) { return d.driver.Info(0) }

// keeper is what the disk knows of itself beside, where its driver has such a thing. nil where it has not.
func (d *openedDisk) keeper() virtioblk.Keeper {
	driver := d.driver
	if s, ok := driver.(*stacked); ok {
		driver = s.lower
	}
	if k, ok := driver.(keepingDriver); ok {
		return unit0{k}
	}
	return nil
}

// ended is for virtioblk.Config: nil where no other disk's holder is known of.
func (d *openedDisk) ended() func(holder uint64) (ended, known bool) {
	driver := d.driver
	if s, ok := driver.(*stacked); ok {
		driver = s.lower
	}
	if w, ok := driver.(*withServer); ok {
		return w.server.Ended
	}
	return nil
}

// keepingDriver is a driver whose disks know more of themselves than what is on them (devsw.DiskState).
type keepingDriver interface {
	State(unit int) devsw.DiskState
	SetState(unit int, s devsw.DiskState)
	ClearState(unit int) (devsw.DiskState, error)
}

var (
	_ keepingDriver = (*vnd.Driver)(nil)
	_ keepingDriver = (*nbd.Driver)(nil)
)

// unit0 is the virtioblk.Keeper of its driver's only disk.
type unit0 struct{ driver keepingDriver }

func (u unit0) State() devsw.DiskState               { return u.driver.State(0) }
func (u unit0) SetState(s devsw.DiskState)           { u.driver.SetState(0, s) }
func (u unit0) ClearState() (devsw.DiskState, error) { return u.driver.ClearState(0) }

// notify has fn be told of the loss and, with nil, the return of the server behind the disk, where there is one.
func (d *openedDisk) notify(fn func(unit int, err error)) {
	driver := d.driver
	if s, ok := driver.(*stacked); ok {
		driver = s.lower
	}
	if n, ok := driver.(interface{ Notify(func(int, error)) }); ok {
		n.Notify(fn)
	}
}

// warnings are what the operator should know of the disk, one line each.
func (d *openedDisk) warnings() []string {
	driver := d.driver
	if s, ok := driver.(*stacked); ok {
		driver = s.lower
	}
	if w, ok := driver.(interface{ Warnings(int) ([]string, error) }); ok {
		list, _ := w.Warnings(0) // it is there
		return list
	}
	return nil
}

// reread has the driver look at the disk's size again, while it is not open, where Info alone does
// not.
func (d *openedDisk) reread() error {
	driver := d.driver
	if s, ok := driver.(*stacked); ok {
		driver = s.lower
	}
	if r, ok := driver.(interface{ Reread(int) error }); ok {
		return r.Reread(0)
	}
	return nil
}

// openDisk attaches the driver to the table and makes its unit 0. What is wrong with an image shows here, and not at a
// guest's first request: checkImage looks at it, until ctx ends. log is told what a program says that serves the image.
func openDisk(ctx context.Context, table *devsw.Table, spec spec.Driver, blockSize uint32, failures *vnd.Failures, inUse func(error), log *slog.Logger) (*openedDisk, error) {
	if spec.Faults != nil {
		return stackFaults(ctx, table, spec, blockSize, failures, inUse, log)
	}
	switch spec.Name {
	case "vnd":
		d, err := makeDisk(table, vnd.New, vnd.Config{
			Path: spec.File, ReadOnly: spec.ReadOnly, Direct: spec.Direct, Bounce: spec.Bounce, Discard: !spec.NoDiscard, SectorSize: blockSize,
			Failures: failures,
		})
		if err == nil {
			driver := d.driver.(*vnd.Driver)
			if err = checkImage(ctx, func() error { return driver.Check(0) }, ending, inUse); err != nil {
				err = errors.Join(err, driver.Detach())
			}
		}
		if err != nil {
			return nil, err
		}
		return d, nil
	case "md":
		return makeDisk(table, md.New, md.Config{Size: spec.Size, File: spec.File, ReadOnly: spec.ReadOnly, SectorSize: blockSize})
	case "nbd":
		return makeNBD(ctx, table, nbd.Config{
			URI: spec.NBD.URI, ReadOnly: spec.ReadOnly, SectorSize: blockSize, Connections: spec.NBD.Connections, ReconnectDelay: spec.NBD.Delay,
			Unflushed: spec.NBD.Unflushed,
		})
	case "qemu":
		return openImage(ctx, table, spec, blockSize, failures.Dir(), inUse, log)
	case "null":
		return makeDisk(table, null.New, null.Config{Size: spec.Size, ReadOnly: spec.ReadOnly, SectorSize: blockSize})
	}
	return nil, fmt.Errorf("there is no driver %q", spec.Name)
}

// creator is a driver with its configuration type.
type creator[Config any] interface {
	diskDriver
	Create(unit int, conf Config) (devsw.Dev, error)
}

func makeDisk[Config any, Driver creator[Config]](table *devsw.Table, attach func(*devsw.Table) (Driver, error), conf Config) (*openedDisk, error) {
	driver, err := attach(table)
	if err != nil {
		return nil, err
	}
	dev, err := driver.Create(0, conf)
	if err != nil {
		return nil, err
	}
	return &openedDisk{driver: driver, dev: dev}, nil
}

// makeNBD is makeDisk of the driver nbd, which waits for its server until ctx ends.
func makeNBD(ctx context.Context, table *devsw.Table, conf nbd.Config) (*openedDisk, error) {
	driver, err := nbd.New(table)
	if err != nil {
		return nil, err
	}
	dev, err := driver.CreateContext(ctx, 0, conf)
	if err != nil {
		return nil, errors.Join(err, driver.Detach())
	}
	return &openedDisk{driver: driver, dev: dev}, nil
}

// stacked is a driver on another one.
type stacked struct {
	diskDriver
	lower diskDriver
}

// Detach takes both away.
func (s *stacked) Detach() error { return errors.Join(s.diskDriver.Detach(), s.lower.Detach()) }

// stackFaults makes the disk without faults, and puts the driver fault on it.
func stackFaults(ctx context.Context, table *devsw.Table, spec spec.Driver, blockSize uint32, failures *vnd.Failures, inUse func(error), log *slog.Logger) (*openedDisk, error) {
	f := spec.Faults
	spec.Faults = nil
	lower, err := openDisk(ctx, table, spec, blockSize, failures, inUse, log)
	if err != nil {
		return nil, err
	}
	attach := fault.New
	if f.NoCancel {
		attach = fault.NewWithoutCancel
	}
	upper, err := makeDisk(table, attach, fault.Config{Lower: lower.dev, Info: lower.info, Rules: f.Rules, Cache: f.Cache})
	if err != nil {
		return nil, errors.Join(err, lower.driver.Detach())
	}
	upper.faults = upper.driver.(*fault.Driver)
	upper.driver = &stacked{diskDriver: upper.driver, lower: lower.driver}
	return upper, nil
}
