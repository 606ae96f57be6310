package nbd

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
)

// besideTimeout is how long a connection beside one that is there may take, handshake included. A
// server that takes one client at a time does not answer, and somebody may wait for the open.
const besideTimeout = 3 * time.Second

// keep keeps a connection until the next open: there are servers that end with their last client.
// It tells whether it does. The connection is not looked at meanwhile.
func (sc *softc) keep(l *link) bool {
	if !sc.foreign() || !l.plain {
		return false
	}
	if _, ok := l.raw.(*sys.Stream); !ok {
		s := sys.NewStream(l.raw)
		if s == nil {
			return false
		}
		l.nc, l.raw = s, s
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.kept != nil || sc.retired {
		return false
	}
	sc.kept = l
	return true
}

// takeKept gives the connection that was kept, if it is still there. It is the caller's.
func (sc *softc) takeKept() *link {
	sc.mu.Lock()
	l := sc.kept
	sc.kept = nil
	sc.mu.Unlock()
	if l == nil || l.alive() {
		return l
	}
	l.raw.Close()
	return nil
}

// alive tells whether the server has neither hung up nor sent anything, which it was not asked for.
func (l *link) alive() bool {
	_, err := l.raw.(*sys.Stream).Readv([][]byte{make([]byte, 1)}, true)
	return errors.Is(err, syscall.EAGAIN)
}

// leave says good-bye to the server, and closes the connection.
func (l *link) leave() {
	_ = l.nc.SetWriteDeadline(time.Now().Add(farewell))
	_, _ = l.nc.Write(l.exp.header(nil, cmdDisc, 0, 0, 0, 0))
	l.raw.Close()
}

// begin gives the first connection of an open: a new one, by which the size is known anew, else the
// one that was kept. That goes only when there is a new one. Who goes on where he was has the
// one that was kept: there are exports whose content goes with the connection.
func (sc *softc) begin(ctx context.Context, resumed bool) (*link, error) {
	kept := sc.takeKept()
	if kept == nil {
		l, err := sc.reach(ctx)
		if err != nil && sc.known.Load() != nil && hasEnded(err) {
			err = fmt.Errorf("%w (the server was there before: if it ends with its last client, "+
				"run qemu-nbd with --persistent, nbdkit without exitlast)", err)
		}
		return l, err
	}
	sc.mu.Lock()
	alone := sc.alone
	sc.mu.Unlock()
	if alone || resumed {
		return kept, nil
	}
	l, err := sc.beside(ctx)
	switch {
	case err == nil:
		kept.leave()
		return l, nil
	case ctx.Err() != nil:
		sc.drop(kept)
		return nil, ctx.Err()
	}
	return kept, nil
}

// hasEnded tells whether an error is that there is no server.
func hasEnded(err error) bool {
	var refused *RefusedError
	gone := errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT)
	return gone && !errors.As(err, &refused)
}

// drop keeps a connection for the next open, or else says good-bye.
func (sc *softc) drop(l *link) {
	if !sc.keep(l) {
		l.leave()
	}
}

// beside connects while there is another connection. It notes when the server will not have that.
func (sc *softc) beside(ctx context.Context) (*link, error) {
	timeout := sc.patience
	if !sc.foreign() {
		timeout = dialTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	l, err := sc.connect(ctx)
	var refused *RefusedError
	alone := false
	switch {
	case err == nil:
	case sc.foreign() && ctx.Err() == context.DeadlineExceeded:
		alone = true
		err = fmt.Errorf("%s: the server does not answer a second connection within %v "+
			"(does it take one client at a time? qemu-nbd takes more with --shared=N): %w",
			sc.target.address, sc.patience, devsw.ETIMEDOUT)
	case errors.As(err, &refused) && refused.Again:
		alone = true
	}
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if alone || err == nil {
		sc.alone = alone
	}
	return l, err
}

// Reread asks the server of disk unit for the size again, while the disk is not open: with the
// protocol that takes a new connection. It does nothing where the server is the driver's own, which
// Info asks. EBUSY while the disk is open: there is DIOCGROW.
func (d *Driver) Reread(unit int) error {
	sc, err := d.unit(unit)
	switch {
	case err != nil:
		return err
	case !sc.foreign():
		return nil
	case d.Claimed(unit):
		return fmt.Errorf("nbd%d: is open: %w", unit, devsw.EBUSY)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	l, err := sc.again(ctx)
	if err != nil {
		return fmt.Errorf("nbd%d: %w", unit, err)
	}
	sc.known.Store(&l.exp)
	sc.drop(l)
	return nil
}

// again connects once more, and lets go of the connection that was kept when that has worked.
func (sc *softc) again(ctx context.Context) (*link, error) {
	kept := sc.takeKept()
	if kept == nil {
		return sc.connect(ctx)
	}
	l, err := sc.beside(ctx)
	if err != nil {
		sc.drop(kept)
		return nil, err
	}
	kept.leave()
	return l, nil
}
