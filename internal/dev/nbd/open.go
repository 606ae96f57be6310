package nbd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// softc is one disk.
type softc struct {
	conf     Config          // does not change
	target   target          // what its URI says
	sector   int64           // logical sector size in bytes; does not change
	patience time.Duration   // besideTimeout, but in tests
	notify   func(err error) // tells of the loss of the server; see Driver.Notify
	claimed  func() bool     // tells whether the disk is open or being opened

	known atomic.Pointer[export] // as the server has described it last

	mu         sync.Mutex
	listener   process // where the server is somebody else's: who it was last, as far as is known
	generation uint64  // how often it has changed
	kept       *link   // a connection between two opens, or nil: see keep
	alone      bool    // the server has not answered a connection beside that
	retired    bool    // nothing is kept any more

	anew bool // Open's, which is called once at a time
	// that of the last open, whose connections may not have gone yet; or nil
	last atomic.Pointer[client]
}

// Open implements disk.Disk. It waits until the connections of the last open have gone (see the
// package's comment), and connects to the server, for which it tries as long as the Config says.
// EROFS to open a read-only disk for writing; else what connecting gives. An opener that does not
// go on where it was, even if its open fails, is the end of what was lost before.
func (sc *softc) Open(ctx context.Context, flag devsw.Flag) (disk.Medium, error) {
	if sc.conf.ReadOnly && flag&devsw.FWRITE != 0 {
		return nil, fmt.Errorf("is used read-only: %w", devsw.EROFS)
	}
	sc.anew = sc.anew || flag&devsw.FRESUME == 0
	var before stability
	outages, away := uint64(0), false
	if last := sc.last.Load(); last != nil {
		select {
		case <-last.done:
			last.mu.Lock()
			before = last.flushed.inherited(!sc.anew)
			outages, away = last.outages, last.away
			last.mu.Unlock()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	m := &medium{sc: sc}
	m.cl = newClient(&sc.conf, func(ctx context.Context) (*link, error) {
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
	// A server that went and did not come back before the close has gone all the same.
	m.cl.flushed, m.cl.outages, m.cl.away = before, max(before.generation, outages), away
	if sc.foreign() {
		m.cl.keep = sc.keep
	}
	sc.last.Store(m.cl)
	sc.anew = false
	l, err := sc.begin(ctx, flag&devsw.FRESUME != 0)
	if err == nil && flag&devsw.FWRITE != 0 && l.exp.has(readOnly) {
		l.raw.Close()
		err = fmt.Errorf("the export is read-only: %w", devsw.EROFS)
	}
	if err != nil {
		m.cl.giveUp()
		m.cl.leave()
		return nil, err
	}
	sc.known.Store(&l.exp)
	m.exp, m.Base = &l.exp, disk.NewBase(sc.info())
	m.cl.start(l, sc.conf.Connections)
	return m, nil
}

// reach waits for the server, for as long as the Config says.
func (sc *softc) reach(ctx context.Context) (*link, error) { return sc.retry(ctx, mayReturn) }

// retry connects, again and again for as long as the Config says, while an error is one that may
// pass.
func (sc *softc) retry(ctx context.Context, may func(error) bool) (*link, error) {
	deadline := time.NewTimer(sc.conf.ReconnectDelay)
	defer deadline.Stop()
	for wait := firstRetry; ; wait = min(2*wait, lastRetry) {
		l, err := sc.connect(ctx)
		switch {
		case err == nil:
			return l, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case sc.conf.ReconnectDelay == 0 || !may(err):
			return nil, err
		}
		retry := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-retry.C:
		case <-ctx.Done():
			retry.Stop()
			return nil, ctx.Err()
		case <-deadline.C:
			retry.Stop()
			return nil, err
		}
	}
}

// retirePatience is how long the end of a disk waits for a server that still owes answers: what
// comes after this process, and begins its writes again, is not to be overtaken by them. A Server
// that is killed then gets as long to go.
const retirePatience = 1 * time.Second

// Destroy implements disk.Disk. It gives the server a moment to answer what it owes, kills it or
// else closes what connections there are left, whatever it may still do, and waits for them.
func (sc *softc) Destroy() {
	defer sc.forget()
	last := sc.last.Load()
	if last == nil {
		return
	}
	patience := time.NewTimer(retirePatience)
	defer patience.Stop()
	select {
	case <-last.done:
		return
	case <-patience.C:
	}
	last.kill()
	patience.Reset(retirePatience)
	select {
	case <-last.done:
	case <-patience.C:
	}
}

// forget says good-bye on the connection that was kept, and has none kept any more.
func (sc *softc) forget() {
	sc.mu.Lock()
	l := sc.kept
	sc.kept, sc.retired = nil, true
	sc.mu.Unlock()
	if l != nil {
		l.leave()
	}
}
