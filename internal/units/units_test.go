package units

import (
	"errors"
	"math"
	"testing"

	"vdev/devsw"
)

func TestUnitsComeAndGoByNumber(t *testing.T) {
	var u Units[string]
	dev := func(unit int) devsw.Dev { return devsw.Makedev(14, uint32(unit)) }
	a, b := "a", "b"
	if u.Get(dev(0)) != nil || len(u.All()) != 0 {
		t.Fatal("units where there are none")
	}
	if err := u.Add(3, &a); err != nil {
		t.Fatal(err)
	}
	if err := u.Add(3, &b); !errors.Is(err, devsw.EEXIST) {
		t.Errorf("adding a unit twice: %v, want EEXIST", err)
	}
	for _, unit := range []int{-1, Max + 1} {
		if err := u.Add(unit, &b); !errors.Is(err, devsw.EINVAL) {
			t.Errorf("adding unit %d: %v, want EINVAL", unit, err)
		}
	}
	if err := u.Add(0, &b); err != nil {
		t.Fatal(err)
	}
	if u.Get(dev(3)) != &a || u.Get(dev(0)) != &b || u.Get(dev(1)) != nil || u.Get(dev(math.MaxUint32)) != nil {
		t.Error("units are not where they were put")
	}
	if all := u.All(); len(all) != 2 || all[0] != 0 || all[1] != 3 {
		t.Errorf("all units: %v, want 0 and 3", all)
	}
	if err := u.Remove(3, func(*string) error { return devsw.EBUSY }); !errors.Is(err, devsw.EBUSY) || u.Get(dev(3)) != &a {
		t.Errorf("removing a busy unit: %v, and it is %v", err, u.Get(dev(3)))
	}
	if err := u.Remove(3, func(*string) error { return nil }); err != nil || u.Get(dev(3)) != nil {
		t.Errorf("removing a unit: %v, and it is %v", err, u.Get(dev(3)))
	}
	for _, unit := range []int{-1, 3, 100} {
		if err := u.Remove(unit, func(*string) error { return nil }); !errors.Is(err, devsw.ENXIO) {
			t.Errorf("removing unit %d: %v, want ENXIO", unit, err)
		}
	}
}
