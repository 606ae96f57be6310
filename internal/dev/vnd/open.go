package vnd

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/disk"
	"vdev/internal/sys"
)

// Between two looks at an image in use an open waits this long at first, and twice as long each time up to the maximum.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 100 * time.Millisecond
)

// softc is one disk.
type softc struct {
	conf   Config // does not change
	sector int64  // logical sector size in bytes; does not change

	// image is there while the disk is open. Changed under mu, read by anybody: what the operations of an open device find here
	// stays, since d_close comes when they are over.
	image atomic.Pointer[image]

	mu        sync.Mutex
	claim     *claim  // who has the disk open, or is opening it
	cancelled [2]bool // by side: d_cancel has been, d_close has not
	retired   bool    // destroyed
}

// claim is the hold that one of a disk's two devices has on it, from the first d_open until that fails or until d_close.
type claim struct {
	mode  devsw.Mode
	intr  chan struct{} // closed by d_cancel, under softc.mu
	ready chan struct{} // closed when the first d_open has ended, one way or the other
}

func side(mode devsw.Mode) int {
	if mode == devsw.IFBLK {
		return 0
	}
	return 1
}

// open is d_open. The first one opens the image and takes its locks, for which it waits as long as the Config says; others
// of the same device wait for the first. d_cancel ends the wait with ECANCELED. EBUSY, as a *LockError, where the image stays in
// use, and plain where the disk is open through its other device; EROFS to open a read-only disk for writing; else what
// opening the image gives. Errors name the image.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	err := sc.open(flag, mode)
	if err != nil {
		return fmt.Errorf("vnd%d: %w", dev.Minor(), err)
	}
	return nil
}

func (sc *softc) open(flag devsw.Flag, mode devsw.Mode) error {
	if sc.conf.ReadOnly && flag&devsw.FWRITE != 0 {
		return fmt.Errorf("%s: is used read-only: %w", sc.conf.Path, devsw.EROFS)
	}
	for {
		c, first, err := sc.enter(mode)
		if err != nil {
			return err
		}
		if first {
			return sc.openFirst(c)
		}
		if c == nil {
			return nil
		}
		select {
		case <-c.ready:
		case <-c.intr:
			return sc.interrupted()
		}
	}
}

// enter gives an opener its part: to be the first, with a claim of its own; to wait for the first, whose claim it gets; or,
// without a claim, nothing, since the disk is open.
func (sc *softc) enter(mode devsw.Mode) (c *claim, first bool, err error) {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	switch {
	case sc.retired:
		return nil, false, devsw.ENXIO
	case sc.cancelled[side(mode)]:
		return nil, false, sc.interrupted()
	case sc.claim == nil:
		sc.claim = &claim{mode: mode, intr: make(chan struct{}), ready: make(chan struct{})}
		return sc.claim, true, nil
	case sc.claim.mode != mode:
		return nil, false, fmt.Errorf("%s: the %s device is open: %w", sc.conf.Path, sc.claim.mode, devsw.EBUSY)
	case sc.image.Load() != nil:
		return nil, false, nil
	}
	return sc.claim, false, nil
}

func (sc *softc) openFirst(c *claim) error {
	im, err := sc.waitForImage(c.intr)

	sc.mu.Lock()
	mine := sc.claim == c
	if mine && err == nil {
		sc.image.Store(im)
	} else if mine {
		sc.claim = nil
	}
	close(c.ready)
	sc.mu.Unlock()

	if err == nil && !mine {
		// d_close has been while this open was under way.
		im.close()
		err = sc.interrupted()
	}
	return err
}

// waitForImage opens the image, as often as it takes and the Config allows while others use it.
func (sc *softc) waitForImage(intr <-chan struct{}) (*image, error) {
	deadline := time.NewTimer(max(sc.conf.LockWait, 0))
	defer deadline.Stop()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		im, err := sc.openImage()
		if err == nil || !errors.Is(err, devsw.EBUSY) || sc.conf.LockWait < 0 {
			return im, identify(err)
		}
		// Two that wait for each other's attempts must fall out of step.
		retry := time.NewTimer(wait + rand.N(wait))
		select {
		case <-retry.C:
		case <-intr:
			retry.Stop()
			return nil, sc.interrupted()
		case <-deadline.C:
			retry.Stop()
			return nil, identify(err)
		}
	}
}

func (sc *softc) interrupted() error {
	return fmt.Errorf("%s: open interrupted: %w", sc.conf.Path, devsw.ECANCELED)
}

// openImage opens the image and takes its locks, once.
func (sc *softc) openImage() (*image, error) {
	fl := sys.OpenFlags{Write: !sc.conf.ReadOnly, Direct: sc.conf.Direct, Exclusive: !sc.conf.ReadOnly}
	file, err := disk.OpenImage(sc.conf.Path, fl)
	if errors.Is(err, devsw.EBUSY) {
		return nil, sc.explain(err)
	}
	if err != nil {
		return nil, err
	}
	err = lockImage(file.FD.Int(), sc.conf.Path, sc.conf.ReadOnly)
	if err == nil {
		// The size may have changed until the locks were there.
		file.Size, err = file.Length()
	}
	var g geometry
	if err == nil {
		g, err = sc.geometry(file)
	}
	if err != nil {
		file.FD.Close()
		return nil, err
	}
	return newImage(file, sc.conf, sc.sector, g), nil
}

// explain gives a better error than a block device's EBUSY where it has one: that of the image's locks, which tell who has it.
func (sc *softc) explain(busy error) error {
	file, err := disk.OpenImage(sc.conf.Path, sys.OpenFlags{})
	if err != nil {
		return busy
	}
	defer file.FD.Close()
	var le *LockError
	if err := lockImage(file.FD.Int(), sc.conf.Path, sc.conf.ReadOnly); errors.As(err, &le) {
		return err
	}
	return busy
}

// cancel is d_cancel: it ends the opens that wait and the transfers in progress with ECANCELED where the host can, and those
// that begin before d_close too. It takes softc.mu, which is never held for long.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	sc.mu.Lock()
	var im *image
	if again := sc.cancelled[side(mode)]; !again {
		sc.cancelled[side(mode)] = true
		if sc.claim != nil && sc.claim.mode == mode {
			close(sc.claim.intr)
			im = sc.image.Load()
		}
	}
	sc.mu.Unlock()
	if im != nil {
		im.cancel()
	}
	return nil
}

// close is d_close: it closes the image, and the locks go with it. No operation of the device is in progress. It may come for
// a device that is not open, or whose open failed.
func (d *Driver) close(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	sc.mu.Lock()
	sc.cancelled[side(mode)] = false
	var im *image
	if sc.claim != nil && sc.claim.mode == mode {
		sc.claim = nil
		im = sc.image.Swap(nil)
	}
	sc.mu.Unlock()
	if im != nil {
		im.close()
	}
	return nil
}

// retire makes later opens fail.
func (sc *softc) retire() error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.claim != nil {
		return fmt.Errorf("%s: is open: %w", sc.conf.Path, devsw.EBUSY)
	}
	sc.retired = true
	return nil
}
