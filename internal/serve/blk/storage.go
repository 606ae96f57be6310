package blk

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/dev/nbd"
	"vdev/internal/dev/null"
	"vdev/internal/dev/qemunbd"
	"vdev/internal/dev/vnd"
	"vdev/internal/serve"
	"vdev/vhostuser/virtioblk"
)

// diskDriver is what the drivers of disks have in common beside their device switches.
type diskDriver interface {
	Info(unit int) (devsw.DiskInfo, error)
	Detach() error
}

// storage is unit 0 of an attached driver: what is behind a disk. Nothing is open, in the sense of
// d_open, before a guest starts it.
type storage struct {
	driver diskDriver
	dev    devsw.Dev
	faults *fault.Driver   // the driver, where it is that one
	lower  diskDriver      // the driver without faults: driver, or the one below
	server *qemunbd.Server // what serves the lower driver, where that is vdev's own
}

func (s *storage) info() (devsw.DiskInfo, error) { return s.driver.Info(0) }

// detach takes the drivers away, and ends the server.
func (s *storage) detach() (err error) {
	if s.faults != nil {
		err = s.faults.Detach()
	}
	if s.server != nil {
		s.server.End()
	}
	err = errors.Join(err, s.lower.Detach())
	if s.server != nil {
		err = errors.Join(err, s.server.Close())
	}
	return err
}

// keeper is what the disk knows of itself beside, where its driver has such a thing. nil where it
// has not.
func (s *storage) keeper() virtioblk.Keeper {
	if k, ok := s.lower.(keepingDriver); ok {
		return unit0{k}
	}
	return nil
}

// ended is for virtioblk.Config: nil where no other disk's holder is known of.
func (s *storage) ended() func(holder uint64) (ended, known bool) {
	if s.server == nil {
		return nil
	}
	return s.server.Ended
}

// keepingDriver is a driver whose disks know more of themselves than what is on them
// (devsw.DiskState).
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

// notify has fn be told of the loss and, with nil, the return of the server behind the disk, where
// there is one.
func (s *storage) notify(fn func(unit int, err error)) {
	if n, ok := s.lower.(interface{ Notify(func(int, error)) }); ok {
		n.Notify(fn)
	}
}

// warnings are what the operator should know of the disk, one line each.
func (s *storage) warnings() []string {
	if w, ok := s.lower.(interface{ Warnings(int) ([]string, error) }); ok {
		list, _ := w.Warnings(0) // it is there
		return list
	}
	return nil
}

// reread has the driver look at the disk's size again, while it is not open, where Info alone does
// not.
func (s *storage) reread() error {
	if r, ok := s.lower.(interface{ Reread(int) error }); ok {
		return r.Reread(0)
	}
	return nil
}

// openStorage attaches the driver and makes its unit 0, with the driver fault on it where that was
// asked for.
func (d Disk) openStorage(ctx context.Context, p serve.Parts) (*storage, error) {
	lower, err := d.openLower(ctx, p)
	f := d.Driver.Faults
	if err != nil || f == nil {
		return lower, err
	}
	attach := fault.New
	if f.NoCancel {
		attach = fault.NewWithoutCancel
	}
	upper, err := makeUnit(p.Table, attach, fault.Config{Lower: lower.dev, Info: lower.info, Rules: f.Rules, Cache: f.Cache})
	if err != nil {
		return nil, errors.Join(err, lower.detach())
	}
	upper.faults, upper.lower, upper.server = upper.driver.(*fault.Driver), lower.lower, lower.server
	return upper, nil
}

// openLower is openStorage without faults. What is wrong with an image shows here, and not at a
// guest's first request: checkImage looks at it, until ctx ends.
func (d Disk) openLower(ctx context.Context, p serve.Parts) (*storage, error) {
	c := &d.Driver
	switch c.Name {
	case "vnd":
		s, err := makeUnit(p.Table, vnd.New, vnd.Config{
			Path: c.File, ReadOnly: c.ReadOnly, Direct: c.Direct, Bounce: c.Bounce, Discard: !c.NoDiscard, SectorSize: d.BlockSize,
			Failures: d.Failures,
		})
		if err != nil {
			return nil, err
		}
		check := func() error { return s.driver.(*vnd.Driver).Check(0) }
		if err := checkImage(ctx, check, ending, d.inUse(p)); err != nil {
			return nil, errors.Join(err, s.detach())
		}
		return s, nil
	case "md":
		return makeUnit(p.Table, md.New, md.Config{Size: c.Size, File: c.File, ReadOnly: c.ReadOnly, SectorSize: d.BlockSize})
	case "nbd":
		return makeNBD(ctx, p.Table, nbd.Config{
			URI: c.NBD.URI, ReadOnly: c.ReadOnly, SectorSize: d.BlockSize, Connections: c.NBD.Connections, ReconnectDelay: c.NBD.Delay,
			Unflushed: c.NBD.Unflushed,
		})
	case "qemu":
		return d.openImage(ctx, p)
	case "null":
		return makeUnit(p.Table, null.New, null.Config{Size: c.Size, ReadOnly: c.ReadOnly, SectorSize: d.BlockSize})
	}
	return nil, fmt.Errorf("there is no driver %q", c.Name)
}

// inUse is told that an image is in use, where that is no reason not to serve it: the guest comes
// from there. nil: it is one.
func (d Disk) inUse(p serve.Parts) func(error) {
	if !d.Incoming {
		return nil
	}
	return func(err error) { p.Log.Asked.Info("the image is opened when the guest starts here", "now", err) }
}

// qemuReturn is how long requests wait for a qemu-nbd that has died: vdev starts it again itself,
// which takes as long as it takes to open the image.
const qemuReturn = 30 * time.Second

// openImage makes a disk of an image that qemu-nbd serves. What that says goes to the log.
func (d Disk) openImage(ctx context.Context, p serve.Parts) (*storage, error) {
	c, log := &d.Driver, p.Log.Asked
	server, err := qemunbd.New(qemunbd.Config{
		File: c.File, Format: c.QEMU.Format, Program: c.QEMU.Program, ReadOnly: c.ReadOnly, Direct: c.Direct,
		Discard: !c.NoDiscard, DetectZeroes: c.QEMU.DetectZeroes, Snapshot: c.QEMU.Snapshot, InUse: d.inUse(p),
		Log: func(text string) { log.Warn(text) }, Note: func(text string) { log.Info(text) }, Chain: c.QEMU.Chain,
		Records: d.Failures.Dir(),
	})
	if err != nil {
		return nil, err
	}
	s, err := makeNBD(ctx, p.Table, nbd.Config{
		URI: server.URI(), Server: server, ReadOnly: c.ReadOnly, SectorSize: d.BlockSize, Connections: c.NBD.Connections,
		ReconnectDelay: qemuReturn,
	})
	if err != nil {
		return nil, errors.Join(err, server.Close())
	}
	s.server = server
	return s, nil
}

// creator is a driver with its configuration type.
type creator[Config any] interface {
	diskDriver
	Create(unit int, conf Config) (devsw.Dev, error)
}

func makeUnit[Config any, Driver creator[Config]](table *devsw.Table, attach func(*devsw.Table) (Driver, error), conf Config) (*storage, error) {
	driver, err := attach(table)
	if err != nil {
		return nil, err
	}
	dev, err := driver.Create(0, conf)
	if err != nil {
		return nil, errors.Join(err, driver.Detach())
	}
	return &storage{driver: driver, lower: driver, dev: dev}, nil
}

// makeNBD is makeUnit of the driver nbd, which waits for its server until ctx ends.
func makeNBD(ctx context.Context, table *devsw.Table, conf nbd.Config) (*storage, error) {
	driver, err := nbd.New(table)
	if err != nil {
		return nil, err
	}
	dev, err := driver.CreateContext(ctx, 0, conf)
	if err != nil {
		return nil, errors.Join(err, driver.Detach())
	}
	return &storage{driver: driver, lower: driver, dev: dev}, nil
}
