package disk

import (
	"fmt"

	"vdev/devsw"
	"vdev/internal/units"
)

// Funcs are the functions of a disk driver. Its block and its character device share them. Each is
// what devsw.Bdevsw says of the field of that name, with the same units, and the same meaning of
// nil.
type Funcs struct {
	// Open is d_open, Cancel is d_cancel and Close is d_close, for the device of kind mode.
	Open, Cancel, Close func(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error
	// Strategy is d_strategy, for the block device's transfers, and those that d_read and d_write
	// of the character device are made of.
	Strategy func(b *devsw.Buf)
	// CancelBuf interrupts one transfer.
	CancelBuf func(b *devsw.Buf)
	// Ioctl is d_ioctl of both devices.
	Ioctl func(dev devsw.Dev, cmd devsw.Cmd, data any, flag devsw.Flag) error
	// Psize is d_psize of the block device, in units of devsw.DEVBSIZE.
	Psize func(dev devsw.Dev) int64
	// Discard is d_discard of both devices, in bytes.
	Discard func(dev devsw.Dev, pos, n int64) error
}

// Switch is a disk driver's place in a device switch: its two devices there, and its units. A
// Driver stands on one. It is for a driver that needs all functions of its own, as one that stands
// on another driver's device may. Its methods may be called on any goroutine.
type Switch[T any] struct {
	units  units.Units[T]
	table  *devsw.Table
	bdev   devsw.Bdevsw
	cdev   devsw.Cdevsw
	bmajor uint32
	retire func(*T) error
}

// Attach attaches the driver to t, as one that needs no lock. Reads and writes of its character
// device are transfers by f.Strategy. A Cancel that is nil stays so. Majors may be
// devsw.NODEVMAJOR: the table chooses. retire is called when a unit is to go. It makes later opens
// fail; or it answers EBUSY, and changes nothing, while the unit is open. Errors are those of
// devsw.Table.Attach.
func (s *Switch[T]) Attach(t *devsw.Table, name string, bmajor, cmajor int, f Funcs, retire func(*T) error) error {
	rw := func(dev devsw.Dev, u *devsw.Uio, _ devsw.Flag) error { return physio(f.Strategy, dev, u) }
	s.table, s.retire = t, retire
	s.bdev = devsw.Bdevsw{
		Name: name, Open: f.Open, Cancel: f.Cancel, Close: f.Close, Strategy: f.Strategy, CancelBuf: f.CancelBuf, Ioctl: f.Ioctl,
		Psize: f.Psize, Discard: f.Discard, Flag: devsw.DDisk | devsw.DMPSafe,
	}
	s.cdev = devsw.Cdevsw{
		Name: name, Open: f.Open, Cancel: f.Cancel, Close: f.Close, Read: rw, Write: rw, Ioctl: f.Ioctl,
		Discard: f.Discard, Flag: devsw.DDisk | devsw.DMPSafe,
	}
	bmaj, _, err := t.Attach(name, &s.bdev, bmajor, &s.cdev, cmajor)
	if err != nil {
		return fmt.Errorf("%s: attach: %w", name, err)
	}
	s.bmajor = uint32(bmaj)
	return nil
}

// Detach takes the driver out of the table and destroys all its disks. EBUSY, with nothing changed,
// while one is open. No other method may be called meanwhile or afterwards.
func (s *Switch[T]) Detach() error {
	if err := s.table.Detach(&s.bdev, &s.cdev); err != nil {
		return fmt.Errorf("%s: detach: %w", s.bdev.Name, err)
	}
	for _, unit := range s.units.All() {
		if err := s.Destroy(unit); err != nil {
			return err
		}
	}
	return nil
}

// Create makes v disk unit and returns its block device: EEXIST where there is one already, EINVAL
// where there can be none.
func (s *Switch[T]) Create(unit int, v *T) (devsw.Dev, error) {
	if err := s.units.Add(unit, v); err != nil {
		return devsw.NODEV, fmt.Errorf("%s: %w", s.bdev.Name, err)
	}
	return devsw.Makedev(s.bmajor, uint32(unit)), nil
}

// Destroy takes disk unit away. EBUSY while it is open, ENXIO where there is none.
func (s *Switch[T]) Destroy(unit int) error {
	if err := s.units.Remove(unit, s.retire); err != nil {
		return fmt.Errorf("%s: %w", s.bdev.Name, err)
	}
	return nil
}

// Get returns the unit that dev, a device of either kind, stands for, or nil. It takes no lock.
func (s *Switch[T]) Get(dev devsw.Dev) *T { return s.units.Get(dev) }

// Unit returns disk unit, open or not. ENXIO where there is none.
func (s *Switch[T]) Unit(unit int) (*T, error) {
	if unit >= 0 && unit <= units.Max {
		if v := s.Get(devsw.Makedev(s.bmajor, uint32(unit))); v != nil {
			return v, nil
		}
	}
	return nil, fmt.Errorf("%s: unit %d: no such unit: %w", s.bdev.Name, unit, devsw.ENXIO)
}
