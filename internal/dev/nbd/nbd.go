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
	URI        string // nbd://HOST[:PORT]/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the same with nbds
	ReadOnly   bool   // nothing is written; a read-only export is served so in any case
	SectorSize uint32 // logical sector size: 512 or 4096 bytes; 0: 512

	// Connections is how many connections the disk has, if the server says that it may have several (NBD_FLAG_CAN_MULTI_CONN);
	// else it has one. 0: as many as the host has CPUs, but not more than 4.
	Connections int

	// ReconnectDelay is how long requests wait for the server to come back when it is gone, before they fail with EIO, and how long
	// d_open tries to reach it. 0: not at all. The driver goes on trying to connect in any case.
	ReconnectDelay time.Duration

	// Unflushed says what a server that is somebody else's loses when it ends.
	Unflushed Unflushed

	// Server starts and ends the server, which listens where URI says when it runs; nil: it is somebody else's.
	Server Server
	// KillAfter is how long after d_cancel the Server may owe answers, before it is killed. 0: 30 seconds.
	KillAfter time.Duration
}

// Driver is the nbd driver, attached to a table.
type Driver struct {
	disk.Switch[softc]
	notify atomic.Pointer[func(unit int, err error)]
}

// Notify has fn be told when the last connection of an open disk is lost, and why; when it cannot be dialed anew, for each other
// reason once; and, with nil, when there is one again; and, with a *LostError, when the server has
// lost writes, or may have. fn is called on goroutines of the driver's, and must not block.
func (d *Driver) Notify(fn func(unit int, err error)) { d.notify.Store(&fn) }

// told calls what was given to Notify.
func (d *Driver) told(unit int, err error) {
	if fn := d.notify.Load(); fn != nil {
		(*fn)(unit, err)
	}
}

// New attaches the driver to t under the name "nbd", with majors of the table's choice.
func New(t *devsw.Table) (*Driver, error) {
	d := new(Driver)
	err := d.Attach(t, "nbd", devsw.NODEVMAJOR, devsw.NODEVMAJOR, disk.Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf, Ioctl: d.ioctl,
		Psize: d.psize, Discard: d.discard,
	}, (*softc).retire)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Create makes disk unit and returns its block device. It connects to the server, to learn the size and to show what is wrong now,
// and hangs up again. Errors: EEXIST where there is such a unit already, EINVAL for a bad Config or an export that does not fit it,
// EOPNOTSUPP for a way of authentication that is not there, a *RefusedError, and what connecting gives.
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
	dev, err := d.Switch.Create(unit, sc)
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
	sc := &softc{conf: conf, sector: sector, patience: besideTimeout, claim: disk.Claim[medium]{Name: conf.URI}}
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

// Info describes disk unit, open or not, as the server has described it last. Where the server is
// the driver's own, and knows the size between two opens (Sizer), that is asked. ENXIO where there
// is no such unit; else what that gives.
func (d *Driver) Info(unit int) (devsw.DiskInfo, error) {
	sc, err := d.Unit(unit)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	if z, ok := sc.conf.Server.(Sizer); ok && !sc.claim.Claimed() {
		size, ok, err := z.Size()
		if err != nil {
			return devsw.DiskInfo{}, fmt.Errorf("nbd%d: %w", unit, err)
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
	sc, err := d.Unit(unit)
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
	cl       *client
	exp      *export // what it was when it was opened
	sector   int64   // bytes
	readOnly bool
	size     atomic.Int64 // bytes, whole sectors
	high     atomic.Int64 // the largest size since the open
}

func (m *medium) disk() disk.Medium {
	return disk.Medium{Size: m.size.Load(), High: m.high.Load(), Sector: m.sector, ReadOnly: m.readOnly}
}

// strategy is d_strategy.
func (d *Driver) strategy(b *devsw.Buf) {
	m := d.opened(b.Dev)
	if m == nil {
		b.Fail(devsw.ENXIO)
		return
	}
	if off, n, ok := disk.Check(b, m.disk()); ok {
		m.cl.transfer(b, off, n, m.exp)
	}
}

// cancelBuf is CancelBuf.
func (d *Driver) cancelBuf(b *devsw.Buf) {
	if m := d.opened(b.Dev); m != nil {
		m.cl.cancelBuf(b)
	}
}

// opened gives the open export of a unit, or nil.
func (d *Driver) opened(dev devsw.Dev) *medium {
	if sc := d.Get(dev); sc != nil {
		return sc.claim.Medium()
	}
	return nil
}

// ioctl is d_ioctl.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
	sc := d.Get(dev)
	m := d.opened(dev)
	if m == nil {
		return devsw.ENXIO
	}
	switch cmd {
	case devsw.DIOCCACHESYNC:
		return m.flush()
	case devsw.DIOCWRITEZEROES:
		zr, ok := data.(*devsw.ZeroRange)
		if !ok || zr == nil {
			return devsw.EINVAL
		}
		return m.writeZeroes(zr.Pos, zr.N, zr.Unmap)
	case devsw.DIOCGROW:
		size, err := sc.grow(m)
		if err != nil {
			return err
		}
		return disk.Grown(data, size)
	}
	return disk.Ioctl(cmd, data, sc.info())
}

// psize is d_psize. It works without an open, as in NetBSD.
func (d *Driver) psize(dev devsw.Dev) int64 {
	sc := d.Get(dev)
	if sc == nil {
		return -1
	}
	return sc.info().Size / devsw.DEVBSIZE
}

// discard is d_discard. ENODEV where the server has no NBD_CMD_TRIM.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	m := d.opened(dev)
	if m == nil {
		return devsw.ENXIO
	}
	if !m.exp.has(sendTrim) {
		return devsw.ENODEV
	}
	if err := disk.CheckRange(pos, n, m.disk()); err != nil {
		return err
	}
	return toError(m.inParts(cmdTrim, m.exp.fua(), pos, n, largePiece))
}

// flush is DIOCCACHESYNC.
func (m *medium) flush() error {
	if m.readOnly || !m.exp.has(sendFlush) {
		return toError(m.cl.stale())
	}
	return toError(m.cl.do(cmdFlush, 0, 0, 0))
}

const (
	// largePiece is how many bytes one request without a payload is about, at most, where the server does it at once.
	largePiece = 1 << 30
	// smallPiece is the same where the server may really write: other requests are to come in between, and a cancel.
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

// writeZeroes is DIOCWRITEZEROES. Where the server can zero at once, it does; where it has to write, it gets the range in pieces; and
// where it cannot even do that, zeroes are sent to it.
func (m *medium) writeZeroes(pos, n int64, unmap bool) error {
	if err := disk.CheckRange(pos, n, m.disk()); err != nil {
		return err
	}
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
		e = m.zeroByWriting(pos, n)
	}
	return toError(e)
}

// zeroes is what is written where a server has nothing better. It is never changed.
var zeroes [256 << 10]byte

// zeroByWriting writes zeroes, as transfers like any other. It waits for each.
func (m *medium) zeroByWriting(pos, n int64) devsw.Errno {
	done := make(chan struct{}, 1)
	b := devsw.Buf{Op: devsw.BWrite, Iodone: func(*devsw.Buf) { done <- struct{}{} }}
	for n > 0 {
		b.Bcount = min(n, int64(len(zeroes)))
		b.Data = append(b.Data[:0], zeroes[:b.Bcount])
		m.cl.transfer(&b, pos, b.Bcount, m.exp)
		<-done
		if b.Error != 0 {
			return b.Error
		}
		pos += b.Bcount
		n -= b.Bcount
		b.Rearm()
	}
	return 0
}

// grow asks the server for the size again, on a connection of its own: the protocol tells it in the handshake alone.
func (sc *softc) grow(m *medium) (int64, error) {
	if !m.cl.enter() {
		return 0, devsw.ECANCELED
	}
	defer m.cl.leave()
	l, err := sc.beside(m.cl.ctx)
	if err != nil {
		return 0, err
	}
	exp := &l.exp
	l.leave()
	size := exp.size &^ (sc.sector - 1)
	m.size.Store(size)
	for high := m.high.Load(); high < size && !m.high.CompareAndSwap(high, size); high = m.high.Load() {
	}
	known := *m.exp
	known.size = exp.size
	sc.known.Store(&known)
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
	case exp.size < m.size.Load():
		return fmt.Errorf("the export has become smaller while it was open, %d bytes instead of %d: %w", exp.size, m.size.Load(), devsw.EIO)
	case exp.has(readOnly) && !m.readOnly:
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
