package nbd

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"vdev/devsw"
)

// TestServerThatIsAwayOverAPauseHasGoneAllTheSame: it went before the close, and came back after
// the next open had begun, so that no open has seen both.
func TestServerThatIsAwayOverAPauseHasGoneAllTheSame(t *testing.T) {
	for name, c := range map[string]struct {
		unflushed Unflushed
		perhaps   bool
	}{
		"lost": {UnflushedLost, false},
		"auto": {UnflushedAuto, true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, structuredMode)
			f.listenTCP()
			r := newRig(t)
			told := make(chan *LostError, 9)
			gone := make(chan struct{}, 9)
			r.d.Notify(func(_ int, err error) {
				if e := (*LostError)(nil); errors.As(err, &e) {
					told <- e
				} else if err != nil && strings.Contains(err.Error(), "refused") {
					gone <- struct{}{}
				}
			})
			d, conn := f.disk(r, Config{ReconnectDelay: time.Minute, Unflushed: c.unflushed})
			d.write(conn, 0)
			f.l.Close()
			<-f.gone
			conn.Close()
			<-gone
			r.close(d.Dev)
			r.gone(d.Dev)

			f.listenAgain()
			d = &diskUnderTest{r.resume(d.Dev), r}
			conn = f.next()
			if e := nextLoss(t, told); e.Perhaps != c.perhaps || !e.Foreign || e.Writes != 1 {
				t.Errorf("it is told as %+v", e)
			}
			if c.perhaps {
				d.write(conn, 0)
			} else if b := d.Transfer(devsw.BRead, 0, 0, make([]byte, 512)); b.Error != devsw.ESTALE {
				t.Errorf("a read ends with %v, want ESTALE", b.Error)
			}
		})
	}
}

// listenAgain has a server that listened by TCP do so again.
func (f *fake) listenAgain() {
	f.t.Helper()
	l, err := net.Listen("tcp", f.l.Addr().String())
	if err != nil {
		f.t.Fatal(err)
	}
	f.l = l
	gone := make(chan struct{})
	f.gone = gone
	go f.accept(l, gone)
}
