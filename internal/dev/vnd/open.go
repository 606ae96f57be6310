package vnd

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
	"vdev/internal/dev/imagefile"
	"vdev/internal/sys"
)

// Between two looks at an image in use an open waits this long at first, and twice as long each
// time up to the maximum.
const (
	firstRetry = 5 * time.Millisecond
	lastRetry  = 100 * time.Millisecond
)

// softc is one disk.
type softc struct {
	conf   Config // does not change
	sector int64  // logical sector size in bytes; does not change

	identity atomic.Pointer[string] // of the image that was looked at last; never nil
}

// Open implements disk.Disk: it opens the image and takes its locks, for which it waits as long as
// the Config says. EBUSY, as a *LockError, where the image stays in use; EROFS to open a read-only
// disk for writing; else what opening the image gives. Errors name the image.
func (sc *softc) Open(ctx context.Context, flag devsw.Flag) (disk.Medium, error) {
	if sc.conf.ReadOnly && flag&devsw.FWRITE != 0 {
		return nil, fmt.Errorf("%s: is used read-only: %w", sc.conf.Path, devsw.EROFS)
	}
	im, err := sc.waitForImage(ctx)
	if err != nil {
		return nil, err
	}
	return im, nil
}

// Destroy implements disk.Disk.
func (sc *softc) Destroy() {}

// waitForImage opens the image, as often as it takes and the Config allows while others use it.
func (sc *softc) waitForImage(ctx context.Context) (*image, error) {
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
		case <-ctx.Done():
			retry.Stop()
			return nil, ctx.Err()
		case <-deadline.C:
			retry.Stop()
			return nil, identify(err)
		}
	}
}

// openImage opens the image and takes its locks, once.
func (sc *softc) openImage() (*image, error) {
	fl := sys.OpenFlags{Write: !sc.conf.ReadOnly, Direct: sc.conf.Direct, Exclusive: !sc.conf.ReadOnly}
	file, err := imagefile.Open(sc.conf.Path, fl)
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
	var identity string
	if err == nil {
		identity, err = file.FD.Identity()
	}
	if err != nil {
		file.FD.Close()
		return nil, err
	}
	sc.identity.Store(&identity)
	// A read of what is in memory has nothing to write down then, for which it might have to wait.
	// Not everybody may have that.
	_ = file.FD.KeepQuiet()
	conf := sc.conf
	conf.Bounce = conf.Bounce || file.MayBlock && !conf.Direct && pinned(file.FD.Int())
	return newImage(file, identity, conf, sc.sector, g), nil
}

// recognise notes which image is the disk's now, and looks what is known of it.
func (sc *softc) recognise(img *imagefile.File) (identity string, err error) {
	if identity, err = img.FD.Identity(); err != nil {
		return "", imagefile.PathError(img.Path, err)
	}
	sc.identity.Store(&identity)
	sc.conf.Failures.Look(identity)
	return identity, nil
}

// explain gives a better error than a block device's EBUSY where it has one: that of the image's
// locks, which tell who has it.
func (sc *softc) explain(busy error) error {
	file, err := imagefile.Open(sc.conf.Path, sys.OpenFlags{})
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
