// Package units is where the kits for drivers (devsw/disk, devsw/line) keep the units of a driver.
package units

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vdev/devsw"
)

// Max is the largest unit number.
const Max = 1<<16 - 1

// Units are the units of one driver, by number. The zero value has none. Get takes no lock. The
// methods may be called on any goroutine.
type Units[T any] struct {
	// List has them by unit number, nil where there is none. It is never changed, only replaced, by
	// Add and Remove. Get looks here; so may others, to save the cost of a generic function.
	List atomic.Pointer[[]*T]

	mu sync.Mutex // serialises changes
}

// Get returns the unit that dev stands for, or nil.
func (u *Units[T]) Get(dev devsw.Dev) *T {
	if p := u.List.Load(); p != nil {
		if minor := dev.Minor(); int64(minor) < int64(len(*p)) {
			return (*p)[minor]
		}
	}
	return nil
}

// Add puts v at number unit: EINVAL where there can be no such unit, EEXIST where the number is
// taken.
func (u *Units[T]) Add(unit int, v *T) error {
	if unit < 0 || unit > Max {
		return fmt.Errorf("unit %d: must be 0 to %d: %w", unit, Max, devsw.EINVAL)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var s []*T
	if p := u.List.Load(); p != nil {
		s = slices.Clone(*p)
	}
	if unit >= len(s) {
		s = append(s, make([]*T, unit+1-len(s))...)
	}
	if s[unit] != nil {
		return fmt.Errorf("unit %d: there is one already: %w", unit, devsw.EEXIST)
	}
	s[unit] = v
	u.List.Store(&s)
	return nil
}

// Remove takes the unit out, once retire has agreed: where that fails, nothing has changed, and its
// error is returned. ENXIO where there is no such unit.
func (u *Units[T]) Remove(unit int, retire func(v *T) error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.List.Load()
	if p == nil || unit < 0 || unit >= len(*p) || (*p)[unit] == nil {
		return fmt.Errorf("unit %d: no such unit: %w", unit, devsw.ENXIO)
	}
	if err := retire((*p)[unit]); err != nil {
		return fmt.Errorf("unit %d: %w", unit, err)
	}
	s := slices.Clone(*p)
	s[unit] = nil
	u.List.Store(&s)
	return nil
}

// All returns the numbers of all units, in order.
func (u *Units[T]) All() []int {
	var all []int
	if p := u.List.Load(); p != nil {
		for i, v := range *p {
			if v != nil {
				all = append(all, i)
			}
		}
	}
	return all
}
