package nbd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
)

// softc is one disk.
type softc struct {
	conf   Config          // does not change
	target target          // what its URI says
	sector int64           // logical sector size in bytes; does not change
	notify func(err error) // tells of the loss of the server; see Driver.Notify

	known atomic.Pointer[export] // as the server has described it last

	// export is there while the disk is open. Changed under mu, read by anybody: what the operations of an open device find here
	// stays, since d_close comes when they are over.
	export atomic.Pointer[medium]

	mu        sync.Mutex
	claim     *claim  // who has the disk open, or is opening it
	last      *client // the one before, whose connections may not have gone yet; or nil
	cancelled [2]bool // by side: d_cancel has been, d_close has not
	retired   bool    // destroyed
}

// claim is the hold that one of a disk's two devices has on it, from the first d_open until that fails or until d_close.
type claim struct {
	mode  devsw.Mode
	ctx   context.Context // done when d_cancel has been
	intr  context.CancelFunc
	ready chan struct{} // closed when the first d_open has ended, one way or the other
}

func side(mode devsw.Mode) int {
	if mode == devsw.IFBLK {
		return 0
	}
	return 1
}

// open is d_open. The first one waits until the connections of the last open have gone (see the package's comment), and connects to
// the server, for which it tries as long as the Config says; others of the same device wait for the first. d_cancel ends the wait
// with ECANCELED. EBUSY where the disk is open through its other device; EROFS to open a read-only disk for writing; else what
// connecting gives.
func (d *Driver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	if err := sc.open(flag, mode); err != nil {
		return fmt.Errorf("nbd%d: %w", dev.Minor(), err)
	}
	return nil
}

func (sc *softc) open(flag devsw.Flag, mode devsw.Mode) error {
	if sc.conf.ReadOnly && flag&devsw.FWRITE != 0 {
		return fmt.Errorf("is used read-only: %w", devsw.EROFS)
	}
	for {
		c, first, err := sc.enter(mode)
		switch {
		case err != nil:
			return err
		case first:
			return sc.openFirst(c, flag)
		case c == nil:
			if flag&devsw.FWRITE != 0 && sc.info().ReadOnly {
				return fmt.Errorf("the export is read-only: %w", devsw.EROFS)
			}
			return nil
		}
		select {
		case <-c.ready:
		case <-c.ctx.Done():
			return interrupted()
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
		return nil, false, interrupted()
	case sc.claim == nil:
		c = &claim{mode: mode, ready: make(chan struct{})}
		c.ctx, c.intr = context.WithCancel(context.Background())
		sc.claim = c
		return c, true, nil
	case sc.claim.mode != mode:
		return nil, false, fmt.Errorf("the %s device is open: %w", sc.claim.mode, devsw.EBUSY)
	case sc.export.Load() != nil:
		return nil, false, nil
	}
	return sc.claim, false, nil
}

func interrupted() error { return fmt.Errorf("open interrupted: %w", devsw.ECANCELED) }

func (sc *softc) openFirst(c *claim, flag devsw.Flag) error {
	l, err := sc.reach(c.ctx)
	if err == nil && flag&devsw.FWRITE != 0 && l.exp.has(readOnly) {
		l.raw.Close()
		err = fmt.Errorf("the export is read-only: %w", devsw.EROFS)
	}

	sc.mu.Lock()
	defer sc.mu.Unlock()
	defer close(c.ready)
	if err == nil && c.ctx.Err() != nil {
		// d_cancel has been while this open was under way, or d_close, too.
		l.raw.Close()
		err = interrupted()
	}
	if err == nil {
		sc.export.Store(sc.use(l))
		return nil
	}
	if sc.claim == c {
		sc.claim = nil
	}
	c.intr()
	return err
}

// use makes a connection the open disk.
func (sc *softc) use(l *link) *medium {
	sc.known.Store(&l.exp)
	m := &medium{exp: &l.exp, sector: sc.sector, readOnly: sc.info().ReadOnly}
	m.size.Store(sc.info().Size)
	m.high.Store(sc.info().Size)
	m.cl = newClient(l, sc.conf.Connections, sc.conf.ReconnectDelay, func(ctx context.Context) (*link, error) {
		l, err := sc.connect(ctx)
		if err != nil {
			return nil, err
		}
		if err := m.fits(&l.exp); err != nil {
			l.raw.Close()
			return nil, err
		}
		return l, nil
	}, sc.notify)
	return m
}

// reach waits until the last open's connections have gone, and then for the server, for as long as the Config says.
func (sc *softc) reach(ctx context.Context) (*link, error) {
	sc.mu.Lock()
	last := sc.last
	sc.mu.Unlock()
	if last != nil {
		select {
		case <-last.done:
		case <-ctx.Done():
			return nil, interrupted()
		}
	}
	deadline := time.NewTimer(sc.conf.ReconnectDelay)
	defer deadline.Stop()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		l, err := sc.connect(ctx)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, interrupted()
		case sc.conf.ReconnectDelay == 0 || !mayReturn(err):
			return nil, err
		}
		retry := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return nil, interrupted()
		case <-deadline.C:
			retry.Stop()
			return nil, err
		}
	}
}

// cancel is d_cancel: it ends the opens that wait and whatever is in progress with ECANCELED, and what begins before d_close, too. It
// takes locks that are never held for long, and waits for nothing.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return nil // a d_open that failed with ENXIO may be cancelled, too
	}
	sc.mu.Lock()
	sc.cancelled[side(mode)] = true
	var m *medium
	if sc.claim != nil && sc.claim.mode == mode {
		sc.claim.intr()
		m = sc.export.Load()
	}
	sc.mu.Unlock()
	if m != nil {
		m.cl.giveUp()
	}
	return nil
}

// close is d_close. The connections go by themselves, when the server has nothing left to do on them. No operation of the device is in
// progress. It may come for a device that is not open, or whose open failed.
func (d *Driver) close(dev devsw.Dev, _ devsw.Flag, mode devsw.Mode) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	sc.mu.Lock()
	sc.cancelled[side(mode)] = false
	var m *medium
	if sc.claim != nil && sc.claim.mode == mode {
		sc.claim.intr()
		sc.claim = nil
		if m = sc.export.Swap(nil); m != nil {
			sc.last = m.cl
		}
	}
	sc.mu.Unlock()
	if m != nil {
		m.cl.giveUp()
	}
	return nil
}

// retirePatience is how long the end of a disk waits for a server that still owes answers: what comes after this process, and begins
// its writes again, is not to be overtaken by them.
const retirePatience = 1 * time.Second

// retire makes later opens fail, gives the server a moment to answer what it owes, closes what connections there are left,
// whatever it may still do, and waits for them.
func (sc *softc) retire() error {
	sc.mu.Lock()
	if sc.claim != nil {
		sc.mu.Unlock()
		return fmt.Errorf("%s: is open: %w", sc.conf.URI, devsw.EBUSY)
	}
	sc.retired = true
	last := sc.last
	sc.mu.Unlock()
	if last != nil {
		owed := time.NewTimer(retirePatience)
		defer owed.Stop()
		select {
		case <-last.done:
		case <-owed.C:
		}
		last.kill()
		<-last.done
	}
	return nil
}
