package disk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"vdev/devsw"
)

// thing is a Medium that knows whether it was closed.
type thing struct {
	*Base
	closed bool
}

func (t *thing) Transfer(b *devsw.Buf, _, _ int64) { b.Biodone() }

func (t *thing) Close() { t.closed = true }

// opener gives what a claim's open needs: an open that waits until it is told to go on.
func opener(fail error) (goOn chan struct{}, t *thing, open func(context.Context) (*opened, error)) {
	goOn, t = make(chan struct{}), &thing{Base: NewBase(devsw.DiskInfo{})}
	open = func(context.Context) (*opened, error) {
		<-goOn
		if fail != nil {
			return nil, fail
		}
		return &opened{t, t.Base}, nil
	}
	return goOn, t, open
}

// is tells whether a claim has t open.
func is(o *opened, t *thing) bool { return o != nil && o.Medium == Medium(t) }

func TestClaimIsOneDevices(t *testing.T) {
	var c claim
	goOn, want, open := opener(nil)
	close(goOn)
	for range 2 {
		if err := c.open(devsw.IFBLK, open); err != nil || !is(c.medium.Load(), want) {
			t.Fatalf("open: %v", err)
		}
	}
	if err := c.open(devsw.IFCHR, open); !errors.Is(err, devsw.EBUSY) || err.Error() != "the block device is open: "+devsw.EBUSY.Error() {
		t.Errorf("open through the other device: %v", err)
	}
	if err := c.retire(); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("retire while it is open: %v", err)
	}
	if c.cancel(devsw.IFCHR) != nil || c.close(devsw.IFCHR) != nil || !is(c.medium.Load(), want) {
		t.Error("the device that does not have it has closed it")
	}
	if !is(c.cancel(devsw.IFBLK), want) {
		t.Error("d_cancel finds nothing")
	}
	if err := c.open(devsw.IFBLK, open); !errors.Is(err, devsw.ECANCELED) {
		t.Errorf("open between d_cancel and d_close: %v", err)
	}
	if !is(c.close(devsw.IFBLK), want) || c.medium.Load() != nil || c.claimed() {
		t.Error("d_close has not closed it")
	}
	if err := c.open(devsw.IFCHR, open); err != nil {
		t.Errorf("open through the other device, after d_close: %v", err)
	}
	c.close(devsw.IFCHR)
	if err := c.retire(); err != nil {
		t.Errorf("retire: %v", err)
	}
	if err := c.open(devsw.IFBLK, open); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("open after that: %v", err)
	}
}

func TestOthersWaitForTheFirstOpen(t *testing.T) {
	for name, fail := range map[string]error{"goes well": nil, "fails": devsw.EIO} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var c claim
				goOn, _, open := opener(fail)
				ends := make(chan error, 3)
				for range 3 {
					go func() { ends <- c.open(devsw.IFBLK, open) }()
				}
				synctest.Wait()
				if len(ends) != 0 || !c.claimed() || c.medium.Load() != nil {
					t.Fatal("somebody has not waited")
				}
				close(goOn)
				for range 3 {
					if err := <-ends; !errors.Is(err, fail) {
						t.Errorf("one ends with %v", err)
					}
				}
				if c.claimed() != (fail == nil) {
					t.Error("afterwards it is not what the open was")
				}
			})
		})
	}
}

func TestOpenThatIsTakenAwayDropsWhatItHasOpened(t *testing.T) {
	for name, end := range map[string]func(c *claim){
		"cancel": func(c *claim) { c.cancel(devsw.IFBLK) },
		"close":  func(c *claim) { c.close(devsw.IFBLK) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var c claim
				goOn, late, open := opener(nil)
				first, second := make(chan error, 1), make(chan error, 1)
				go func() { first <- c.open(devsw.IFBLK, open) }()
				synctest.Wait()
				go func() { second <- c.open(devsw.IFBLK, open) }()
				synctest.Wait()
				end(&c)
				if err := <-second; !errors.Is(err, devsw.ECANCELED) {
					t.Errorf("one that waited ends with %v", err)
				}
				synctest.Wait()
				if len(first) != 0 {
					t.Fatal("the first has not waited for its open")
				}
				close(goOn)
				if err := <-first; !errors.Is(err, devsw.ECANCELED) {
					t.Errorf("the first ends with %v", err)
				}
				if !late.closed || c.medium.Load() != nil || c.claimed() {
					t.Error("what it has opened is in use")
				}
			})
		})
	}
}
