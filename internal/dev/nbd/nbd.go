package nbd

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"vdev/devsw"
	"vdev/devsw/disk"
)

const (
	// defaultConnections is how many connections a disk has at most where nobody has said it.
	defaultConnections = 4
	// MaxConnections is the most that a Config may ask for.
	MaxConnections = 16
)

// Config describes a disk.
type Config struct {
	// nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the same with nbds
	URI        string
	ReadOnly   bool   // nothing is written; a read-only export is served so in any case
	SectorSize uint32 // logical sector size: 512 or 4096 bytes; 0: 512

	// Connections is how many connections the disk has, if the server says that it may have several
	// (NBD_FLAG_CAN_MULTI_CONN); else it has one. 0: as many as the host has CPUs, but not more
	// than 4.
	Connections int

	// ReconnectDelay is how long requests wait for the server to come back when it is gone, before
	// they fail with EIO, and how long d_open tries to reach it. 0: not at all. The driver goes on
	// trying to connect in any case.
	ReconnectDelay time.Duration

	// Unflushed says what a server that is somebody else's loses when it ends.
	Unflushed Unflushed

	// Server starts and ends the server, which listens where URI says when it runs; nil: it is
	// somebody else's.
	Server Server
	// KillAfter is how long after d_cancel the Server may owe answers, before it is killed. 0: 30
	// seconds.
	KillAfter time.Duration
}

// Driver is the nbd driver, attached to a table.
type Driver struct {
	*disk.Driver
	notify atomic.Pointer[func(unit int, err error)]
}

// Notify has fn be told when the last connection of an open disk is lost, and why; when it cannot
// be dialed anew, for each other reason once; and, with nil, when there is one again; and, with a
// *LostError, when the server has lost writes, or may have. fn is called on goroutines of the
// driver's, and must not block.
func (d *Driver) Notify(fn func(unit int, err error)) { d.notify.Store(&fn) }

// told calls what was given to Notify.
func (d *Driver) told(unit int, err error) {
	if fn := d.notify.Load(); fn != nil {
		(*fn)(unit, err)
	}
}

// New attaches the driver to t under the name "nbd", with majors of the table's choice.
func New(t *devsw.Table) (*Driver, error) {
	d, err := disk.Attach(t, "nbd", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		return nil, err
	}
	return &Driver{Driver: d}, nil
}

// Create makes disk unit and returns its block device. It connects to the server, to learn the size
// and to show what is wrong now, and hangs up again. Errors: EEXIST where there is such a unit
// already, EINVAL for a bad Config or an export that does not fit it, EOPNOTSUPP for a way of
// authentication that is not there, a *RefusedError, and what connecting gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	return d.CreateContext(context.Background(), unit, conf)
}

// CreateContext is Create. It waits for the server until ctx is done, and gives ctx's error then.
func (d *Driver) CreateContext(ctx context.Context, unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(ctx, conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("nbd: %w", err)
	}
	sc.notify = func(err error) { d.told(unit, err) }
	sc.claimed = func() bool { return d.Claimed(unit) }
	dev, err := d.Driver.Create(unit, sc)
	if err != nil {
		sc.forget()
	}
	return dev, err
}

func newSoftc(ctx context.Context, conf Config) (*softc, error) {
	sector, err := disk.CheckSector(conf.SectorSize)
	if err != nil {
		return nil, err
	}
	switch {
	case conf.Connections < 0 || conf.Connections > MaxConnections:
		return nil, fmt.Errorf("%d connections: must be 1 to %d: %w", conf.Connections, MaxConnections, devsw.EINVAL)
	case conf.ReconnectDelay < 0:
		return nil, fmt.Errorf("reconnect delay %v: must not be negative: %w", conf.ReconnectDelay, devsw.EINVAL)
	case conf.KillAfter < 0:
		return nil, fmt.Errorf("time until the server is killed %v: must not be negative: %w", conf.KillAfter, devsw.EINVAL)
	}
	if conf.Server == nil {
		conf.Server = nobody{}
	}
	if conf.KillAfter == 0 {
		conf.KillAfter = defaultKillAfter
	}
	if conf.Connections == 0 {
		conf.Connections = min(defaultConnections, runtime.GOMAXPROCS(0))
	}
	sc := &softc{conf: conf, sector: sector, patience: besideTimeout}
	if sc.target, err = parseURI(conf.URI); err != nil {
		return nil, err
	}
	l, err := sc.first(ctx)
	if err != nil {
		conf.Server.Stop()
		return nil, err
	}
	sc.known.Store(&l.exp)
	sc.drop(l)
	conf.Server.Stop()
	return sc, nil
}

// unit returns disk unit. ENXIO where there is none.
func (d *Driver) unit(unit int) (*softc, error) {
	v, _, err := d.Unit(unit)
	if err != nil {
		return nil, err
	}
	return v.(*softc), nil
}

// Info implements disk.Disk, as the server has described the disk last. Where the server is the
// driver's own, and knows the size between two opens (Sizer), that is asked.
func (sc *softc) Info() (devsw.DiskInfo, error) {
	if z, ok := sc.conf.Server.(Sizer); ok && !sc.claimed() {
		size, ok, err := z.Size()
		if err != nil {
			return devsw.DiskInfo{}, err
		}
		// An open that has come meanwhile knows better.
		if known := sc.known.Load(); ok && known.size != size {
			now := *known
			now.size = size
			sc.known.CompareAndSwap(known, &now)
		}
	}
	return sc.info(), nil
}

// Warnings gives what the operator of disk unit should know, one line each: what its server lacks,
// that it is gone, that it has lost writes. It does not wait. ENXIO where there is no such unit.
func (d *Driver) Warnings(unit int) ([]string, error) {
	sc, err := d.unit(unit)
	if err != nil {
		return nil, err
	}
	return sc.warnings(), nil
}

// noFlush is what an operator has to know of a server that has neither FLUSH nor FUA.
const noFlush = "the server offers no flush (NBD_FLAG_SEND_FLUSH): the guest's flushes are " +
	"answered as if they were done, and what it writes may be lost when the server or its " +
	"host fails (nbd-server offers it with 'flush = true' in its configuration)"

func (sc *softc) warnings() (list []string) {
	if exp := sc.known.Load(); !sc.info().ReadOnly && !exp.has(sendFlush) && !exp.has(sendFUA) {
		list = append(list, noFlush)
	}
	cl := sc.last.Load()
	if cl == nil {
		return list
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if cl.trouble != "" && !cl.givenUp {
		list = append(list, "the server is gone: "+cl.trouble)
	}
	if cl.flushed.lost > 0 {
		list = append(list, cl.lossLocked().Error())
	}
	return list
}

func (sc *softc) info() devsw.DiskInfo {
	exp := sc.known.Load()
	info := devsw.DiskInfo{
		Size:       exp.size &^ (sc.sector - 1),
		SectorSize: uint32(sc.sector),
		ReadOnly:   sc.conf.ReadOnly || exp.has(readOnly),
		Rotational: exp.has(rotational),
	}
	if exp.prefBlock > sc.sector {
		info.OptIOSize, info.DiscardAlign = uint32(exp.prefBlock), uint32(exp.prefBlock)
	}
	if !info.ReadOnly {
		info.Discard, info.WriteZeroes = exp.has(sendTrim), true
		if h, ok := sc.conf.Server.(Holder); ok {
			info.Holds, info.Holder = h.Holding()
		}
	}
	return info
}

// medium is an export that is open.
type medium struct {
	*disk.Base
	sc  *softc
	cl  *client
	exp *export // what it was when it was opened
}

// Transfer implements disk.Medium.
func (m *medium) Transfer(b *devsw.Buf, off, n int64) { m.cl.transfer(b, off, n, m.exp) }

// CancelBuf implements disk.Medium.
func (m *medium) CancelBuf(b *devsw.Buf) { m.cl.cancelBuf(b) }

// Cancel implements disk.Medium. It takes locks that are never held for long.
func (m *medium) Cancel() { m.cl.giveUp() }

// Close implements disk.Medium. The connections go by themselves, when the server has nothing left
// to do on them.
func (m *medium) Close() { m.cl.giveUp() }

// Info implements disk.Medium.
func (m *medium) Info() devsw.DiskInfo { return m.sc.info() }

// Discard implements disk.Medium.
func (m *medium) Discard(pos, n int64) error {
	return toError(m.inParts(cmdTrim, m.exp.fua(), pos, n, largePiece))
}

// Flush implements disk.Medium.
func (m *medium) Flush() error {
	if m.Bounds().ReadOnly || !m.exp.has(sendFlush) {
		return toError(m.cl.stale())
	}
	return toError(m.cl.do(cmdFlush, 0, 0, 0))
}

const (
	// largePiece is how many bytes one request without a payload is about, at most, where the
	// server does it at once.
	largePiece = 1 << 30
	// smallPiece is the same where the server may really write: other requests are to come in
	// between, and a cancel.
	smallPiece = 32 << 20
)

// inParts has the server do something to a range.
func (m *medium) inParts(cmd, flags uint16, pos, n, piece int64) devsw.Errno {
	for n > 0 {
		k := min(n, piece)
		if e := m.cl.do(cmd, flags, pos, k); e != 0 {
			return e
		}
		pos += k
		n -= k
	}
	return 0
}

// WriteZeroes implements disk.Medium. Where the server can zero at once, it does; where it has to
// write, it gets the range in pieces; and where it cannot even do that, zeroes are sent to it.
func (m *medium) WriteZeroes(pos, n int64, unmap bool) error {
	flags := m.exp.fua()
	if !unmap {
		flags |= cmdFlagNoHole
	}
	e := devsw.EOPNOTSUPP
	if m.exp.has(sendWriteZeroes) && m.exp.has(sendFastZero) {
		e = m.inParts(cmdWriteZeroes, flags|cmdFlagFastZero, pos, n, largePiece)
	}
	if m.exp.has(sendWriteZeroes) && e == devsw.EOPNOTSUPP {
		e = m.inParts(cmdWriteZeroes, flags, pos, n, smallPiece)
	}
	if e == devsw.EOPNOTSUPP {
		return disk.WriteZeroes(m, pos, n, zeroes[:])
	}
	return toError(e)
}

// zeroes is what is written where a server has nothing better. It is never changed.
var zeroes [256 << 10]byte

// Grow asks the server for the size again, on a connection of its own: the protocol tells it in the
// handshake alone.
func (m *medium) Grow() (int64, error) {
	if !m.cl.enter() {
		return 0, devsw.ECANCELED
	}
	defer m.cl.leave()
	l, err := m.sc.beside(m.cl.ctx)
	if err != nil {
		return 0, err
	}
	exp := &l.exp
	l.leave()
	size := m.Resize(exp.size)
	known := *m.exp
	known.size = exp.size
	m.sc.known.Store(&known)
	return size, nil
}

// toError makes an error of an Errno, nil of 0.
func toError(e devsw.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

// check tells whether an export fits the Config.
func (sc *softc) check(exp *export) error {
	switch {
	case exp.minBlock > sc.sector:
		return fmt.Errorf("the server takes blocks of %d bytes and more, and the disk has sectors of %d (--logical-block-size %d): %w",
			exp.minBlock, sc.sector, exp.minBlock, devsw.EINVAL)
	case exp.size < sc.sector:
		return fmt.Errorf("the export has %d bytes, which is less than a sector of %d: %w", exp.size, sc.sector, devsw.EINVAL)
	}
	return nil
}

// needed are the transmission flags that a server must still have when it comes back.
const needed = sendFlush | sendFUA | sendTrim | sendWriteZeroes | sendFastZero | canMultiConn

// fits tells whether a server that has come back still has the export m.
func (m *medium) fits(exp *export) error {
	switch {
	case exp.size < m.Bounds().Size:
		return fmt.Errorf("the export has become smaller while it was open, %d bytes instead of %d: %w", exp.size, m.Bounds().Size, devsw.EIO)
	case exp.has(readOnly) && !m.Bounds().ReadOnly:
		return fmt.Errorf("the export has become read-only while it was open: %w", devsw.EROFS)
	case exp.flags&m.exp.flags&needed != m.exp.flags&needed:
		return fmt.Errorf("the export had transmission flags %#x when it was opened, and has %#x now: %w", m.exp.flags, exp.flags, devsw.EIO)
	}
	return nil
}

// foreign tells whether the server is somebody else's.
func (sc *softc) foreign() bool { return sc.conf.Server == Server(nobody{}) }

// connect connects once.
func (sc *softc) connect(ctx context.Context) (*link, error) {
	generation, err := sc.conf.Server.Start(ctx)
	if err != nil {
		return nil, err
	}
	l, err := dial(ctx, &sc.target)
	if err != nil {
		return nil, err
	}
	l.generation = generation
	if sc.foreign() {
		sc.identify(l)
	}
	if err = sc.check(&l.exp); err == nil {
		// It may have been another one already that took the connection.
		var now uint64
		if now, err = sc.conf.Server.Start(ctx); err == nil && now != generation {
			err = fmt.Errorf("the server has ended during the handshake: %w", syscall.ECONNRESET)
		}
	}
	if err != nil {
		l.raw.Close()
		return nil, fmt.Errorf("%s: %w", sc.target.address, err)
	}
	return l, nil
}

// first connects to learn what the export is like. What is wrong is to show at once; but a server
// that is busy with others is waited for, as long as the Config says.
func (sc *softc) first(ctx context.Context) (*link, error) {
	return sc.retry(ctx, func(err error) bool {
		return errors.Is(err, devsw.ETIMEDOUT) || refusedForNow(err)
	})
}

// mayReturn tells whether trying again may help.
func mayReturn(err error) bool {
	var refused *RefusedError
	return refusedForNow(err) || !errors.As(err, &refused) && !errors.Is(err, devsw.EINVAL)
}

// refusedForNow tells whether the server refuses what it may do another time.
func refusedForNow(err error) bool {
	var refused *RefusedError
	return errors.As(err, &refused) && refused.Again
}
