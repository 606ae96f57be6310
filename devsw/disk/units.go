package disk

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vdev/devsw"
)

// MaxUnit is the largest unit number.
const MaxUnit = 1<<16 - 1

// Units are the units of one driver, by number. The zero value has none. Get takes no lock; everything may be called on
// any goroutine.
type Units[T any] struct {
	mu    sync.Mutex           // serialises changes
	units atomic.Pointer[[]*T] // by unit number; never changed, only replaced
}

// Get returns the unit that dev stands for, or nil.
func (u *Units[T]) Get(dev devsw.Dev) *T {
	if p := u.units.Load(); p != nil {
		if minor := dev.Minor(); int64(minor) < int64(len(*p)) {
			return (*p)[minor]
		}
	}
	return nil
}

// Add puts v at number unit: EINVAL where there can be no such unit, EEXIST where the number is taken.
func (u *Units[T]) Add(unit int, v *T) error {
	if unit < 0 || unit > MaxUnit {
		return fmt.Errorf("unit %d: must be 0 to %d: %w", unit, MaxUnit, devsw.EINVAL)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var s []*T
	if p := u.units.Load(); p != nil {
		s = slices.Clone(*p)
	}
	if unit >= len(s) {
		s = append(s, make([]*T, unit+1-len(s))...)
	}
	if s[unit] != nil {
		return fmt.Errorf("unit %d: there is one already: %w", unit, devsw.EEXIST)
	}
	s[unit] = v
	u.units.Store(&s)
	return nil
}

// Remove takes the unit out, once retire has agreed: nothing is changed where retire fails, with whose error Remove then
// returns. ENXIO where there is no such unit.
func (u *Units[T]) Remove(unit int, retire func(v *T) error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.units.Load()
	if p == nil || unit < 0 || unit >= len(*p) || (*p)[unit] == nil {
		return fmt.Errorf("unit %d: no such unit: %w", unit, devsw.ENXIO)
	}
	if err := retire((*p)[unit]); err != nil {
		return fmt.Errorf("unit %d: %w", unit, err)
	}
	s := slices.Clone(*p)
	s[unit] = nil
	u.units.Store(&s)
	return nil
}

// All returns the numbers of all units, in order.
func (u *Units[T]) All() []int {
	var all []int
	if p := u.units.Load(); p != nil {
		for i, v := range *p {
			if v != nil {
				all = append(all, i)
			}
		}
	}
	return all
}

// Opens says through which of its two devices a unit is open, for drivers whose open does nothing else. The zero value is
// closed. It may be used on any goroutine.
type Opens struct {
	mu      sync.Mutex
	block   bool
	char    bool
	retired bool
}

// Open notes an open: ENXIO once the unit is retired.
func (o *Opens) Open(mode devsw.Mode) error { return o.set(mode, true) }

// Close notes the last close. It may come for a device that is not open.
func (o *Opens) Close(mode devsw.Mode) { _ = o.set(mode, false) }

func (o *Opens) set(mode devsw.Mode, open bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.retired {
		return devsw.ENXIO
	}
	if mode == devsw.IFBLK {
		o.block = open
	} else {
		o.char = open
	}
	return nil
}

// Retire makes later opens fail: EBUSY, and nothing changed, while the unit is open.
func (o *Opens) Retire() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.block || o.char {
		return fmt.Errorf("is open: %w", devsw.EBUSY)
	}
	o.retired = true
	return nil
}
