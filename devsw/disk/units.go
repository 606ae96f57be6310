package disk

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"vdev/devsw"
)

// maxUnit is the largest unit number.
const maxUnit = 1<<16 - 1

// units are the units of one driver, by number. The zero value has none. get takes no lock. The
// methods may be called on any goroutine.
type units[T any] struct {
	mu   sync.Mutex           // serialises changes
	list atomic.Pointer[[]*T] // by unit number; never changed, only replaced
}

// get returns the unit that dev stands for, or nil.
func (u *units[T]) get(dev devsw.Dev) *T {
	if p := u.list.Load(); p != nil {
		if minor := dev.Minor(); int64(minor) < int64(len(*p)) {
			return (*p)[minor]
		}
	}
	return nil
}

// add puts v at number unit: EINVAL where there can be no such unit, EEXIST where the number is
// taken.
func (u *units[T]) add(unit int, v *T) error {
	if unit < 0 || unit > maxUnit {
		return fmt.Errorf("unit %d: must be 0 to %d: %w", unit, maxUnit, devsw.EINVAL)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	var s []*T
	if p := u.list.Load(); p != nil {
		s = slices.Clone(*p)
	}
	if unit >= len(s) {
		s = append(s, make([]*T, unit+1-len(s))...)
	}
	if s[unit] != nil {
		return fmt.Errorf("unit %d: there is one already: %w", unit, devsw.EEXIST)
	}
	s[unit] = v
	u.list.Store(&s)
	return nil
}

// remove takes the unit out, once retire has agreed: where that fails, nothing has changed, and its
// error is returned. ENXIO where there is no such unit.
func (u *units[T]) remove(unit int, retire func(v *T) error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	p := u.list.Load()
	if p == nil || unit < 0 || unit >= len(*p) || (*p)[unit] == nil {
		return fmt.Errorf("unit %d: no such unit: %w", unit, devsw.ENXIO)
	}
	if err := retire((*p)[unit]); err != nil {
		return fmt.Errorf("unit %d: %w", unit, err)
	}
	s := slices.Clone(*p)
	s[unit] = nil
	u.list.Store(&s)
	return nil
}

// all returns the numbers of all units, in order.
func (u *units[T]) all() []int {
	var all []int
	if p := u.list.Load(); p != nil {
		for i, v := range *p {
			if v != nil {
				all = append(all, i)
			}
		}
	}
	return all
}
