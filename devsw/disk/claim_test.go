package disk

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"vdev/devsw"
)

type thing struct{ dropped bool }

// opener gives what a Claim's Open needs: an open that waits until it is told to go on.
func opener(fail error) (goOn chan struct{}, t *thing, open func(context.Context) (*thing, error), drop func(*thing)) {
	goOn, t = make(chan struct{}), new(thing)
	open = func(context.Context) (*thing, error) {
		<-goOn
		if fail != nil {
			return nil, fail
		}
		return t, nil
	}
	return goOn, t, open, func(t *thing) { t.dropped = true }
}

func TestClaimIsOneDevices(t *testing.T) {
	c := Claim[thing]{Name: "x"}
	goOn, want, open, drop := opener(nil)
	close(goOn)
	for range 2 {
		if err := c.Open(devsw.IFBLK, open, drop); err != nil || c.Medium() != want {
			t.Fatalf("open: %v", err)
		}
	}
	if err := c.Open(devsw.IFCHR, open, drop); !errors.Is(err, devsw.EBUSY) || err.Error() != "x: the block device is open: "+devsw.EBUSY.Error() {
		t.Errorf("open through the other device: %v", err)
	}
	if err := c.Retire(); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("retire while it is open: %v", err)
	}
	if c.Cancel(devsw.IFCHR) != nil || c.Close(devsw.IFCHR) != nil || c.Medium() != want {
		t.Error("the device that does not have it has closed it")
	}
	if c.Cancel(devsw.IFBLK) != want {
		t.Error("d_cancel finds nothing")
	}
	if err := c.Open(devsw.IFBLK, open, drop); !errors.Is(err, devsw.ECANCELED) {
		t.Errorf("open between d_cancel and d_close: %v", err)
	}
	if c.Close(devsw.IFBLK) != want || c.Medium() != nil || c.Claimed() {
		t.Error("d_close has not closed it")
	}
	if err := c.Open(devsw.IFCHR, open, drop); err != nil {
		t.Errorf("open through the other device, after d_close: %v", err)
	}
	c.Close(devsw.IFCHR)
	if err := c.Retire(); err != nil {
		t.Errorf("retire: %v", err)
	}
	if err := c.Open(devsw.IFBLK, open, drop); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("open after that: %v", err)
	}
}

func TestOthersWaitForTheFirstOpen(t *testing.T) {
	for name, fail := range map[string]error{"goes well": nil, "fails": devsw.EIO} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := Claim[thing]{Name: "x"}
				goOn, _, open, drop := opener(fail)
				ends := make(chan error, 3)
				for range 3 {
					go func() { ends <- c.Open(devsw.IFBLK, open, drop) }()
				}
				synctest.Wait()
				if len(ends) != 0 || !c.Claimed() || c.Medium() != nil {
					t.Fatal("somebody has not waited")
				}
				close(goOn)
				for range 3 {
					if err := <-ends; !errors.Is(err, fail) {
						t.Errorf("one ends with %v", err)
					}
				}
				if c.Claimed() != (fail == nil) {
					t.Error("afterwards it is not what the open was")
				}
			})
		})
	}
}

func TestOpenThatIsTakenAwayDropsWhatItHasOpened(t *testing.T) {
	for name, end := range map[string]func(c *Claim[thing]){
		"cancel": func(c *Claim[thing]) { c.Cancel(devsw.IFBLK) },
		"close":  func(c *Claim[thing]) { c.Close(devsw.IFBLK) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := Claim[thing]{Name: "x"}
				goOn, late, open, drop := opener(nil)
				first, second := make(chan error, 1), make(chan error, 1)
				go func() { first <- c.Open(devsw.IFBLK, open, drop) }()
				synctest.Wait()
				go func() { second <- c.Open(devsw.IFBLK, open, drop) }()
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
				if !late.dropped || c.Medium() != nil || c.Claimed() {
					t.Error("what it has opened is in use")
				}
			})
		})
	}
}
