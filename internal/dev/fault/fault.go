package fault

import (
	"fmt"
	"sync"
	"sync/atomic"

	"vdev/devsw"
	"vdev/devsw/disk"
)

// Config describes a disk.
type Config struct {
	// Lower is the block device that the disk stands on, attached to the same table. It is opened
	// and closed with the disk.
	Lower devsw.Dev
	// Info describes the lower device, open or not.
	Info func() (devsw.DiskInfo, error)
	// Rules are in force from the start. Their IDs are 1, 2 and so on.
	Rules []Rule
	// Cache is how many bytes of writes the volatile cache takes, beyond which a write waits until
	// the cache has been written out; 0: there is no such cache.
	Cache int64
}

// Driver is the fault driver, attached to a table.
type Driver struct {
	disk.Switch[softc]
	table *devsw.Table
}

// softc is one disk.
type softc struct {
	table  *devsw.Table
	conf   Config
	sector int64  // bytes
	cache  *cache // or nil

	ops [nOps]atomic.Uint64 // operations that have come, by kind

	// armed: there may be rules, or the power is off.
	armed atomic.Bool
	xfers xferList // what the lower device has in progress

	// lower counts the calls of the lower device that have not returned, and twice the transfers
	// that it has not ended. It is closed while the lower device is not open.
	lower devsw.Localcount

	mu sync.Mutex

	ruleSet
	lastRule int
	off      bool // since a crash, until d_close

	holds    map[*hold]struct{}
	holdOf   devsw.BufIndex[*hold] // of those that cancelBuf can end
	lastHold uint64
	cv       *devsw.Cv    // where operations sleep
	stuck    *devsw.Cv    // where those sleep that d_cancel does not end; never cancelled
	held     devsw.BufSet // the transfers that are delayed, or hang
	lost     devsw.BufSet // those that d_cancel does not end; never cancelled

	retired   bool
	owner     devsw.Mode // of the device that is open, or being opened; 0: none
	opening   int        // d_opens in progress
	opened    bool       // a d_open has gone well
	cancelled [2]bool    // by side: d_cancel has been, d_close has not
	closes    uint64     // how many d_closes there were
	// What d_close has to do for the lower device.
	lowerBegun     bool // an open of it has begun, and not failed
	lowerCancelled bool // its d_cancel has been called
	lowerAnswer    error
	lateOpen       bool // an open of it has gone well although d_close has begun
}

func side(mode devsw.Mode) int {
	if mode == devsw.IFBLK {
		return 0
	}
	return 1
}

// New attaches the driver to t under the name "fault", with majors of the table's choice.
func New(t *devsw.Table) (*Driver, error) { return attach(t, "fault", true) }

// NewWithoutCancel attaches the driver under the name "fault-nocancel", with a table that has no
// d_cancel.
func NewWithoutCancel(t *devsw.Table) (*Driver, error) { return attach(t, "fault-nocancel", false) }

func attach(t *devsw.Table, name string, cancel bool) (*Driver, error) {
	d := &Driver{table: t}
	f := disk.Funcs{
		Open: d.open, Cancel: d.cancel, Close: d.close, Strategy: d.strategy, CancelBuf: d.cancelBuf, Ioctl: d.ioctl,
		Psize: d.psize, Discard: d.discard,
	}
	if !cancel {
		f.Cancel = nil
	}
	if err := d.Attach(t, name, devsw.NODEVMAJOR, devsw.NODEVMAJOR, f, (*softc).retire); err != nil {
		return nil, err
	}
	return d, nil
}

// Create makes disk unit and returns its block device. Errors: EEXIST where there is one already,
// EINVAL for a bad rule, and what the Config's Info gives.
func (d *Driver) Create(unit int, conf Config) (devsw.Dev, error) {
	sc, err := newSoftc(d.table, conf)
	if err != nil {
		return devsw.NODEV, fmt.Errorf("fault: %w", err)
	}
	return d.Switch.Create(unit, sc)
}

func newSoftc(table *devsw.Table, conf Config) (*softc, error) {
	info, err := conf.Info()
	if err != nil {
		return nil, err
	}
	if conf.Cache < 0 {
		return nil, fmt.Errorf("cache of %d bytes: %w", conf.Cache, devsw.EINVAL)
	}
	sc := &softc{table: table, conf: conf, sector: int64(info.SectorSize), holds: make(map[*hold]struct{})}
	sc.cv, sc.stuck = devsw.NewCv(&sc.mu), devsw.NewCv(&sc.mu)
	sc.lower.Close()
	if conf.Cache > 0 {
		sc.cache = newCache(sc.sector, conf.Cache)
	}
	for _, r := range conf.Rules {
		if _, err := sc.setRule(r); err != nil {
			return nil, err
		}
	}
	return sc, nil
}

// retire forgets the disk, and what is in its cache. EBUSY while it is open.
func (sc *softc) retire() error {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	if sc.owner != 0 || len(sc.holds) != 0 {
		return fmt.Errorf("is open: %w", devsw.EBUSY)
	}
	sc.retired = true
	return nil
}

// Info describes disk unit, open or not. ENXIO where there is none.
func (d *Driver) Info(unit int) (devsw.DiskInfo, error) {
	sc, err := d.Unit(unit)
	if err != nil {
		return devsw.DiskInfo{}, err
	}
	return sc.conf.Info()
}

// Control runs one of the driver's own commands (FAULTSET and so on) for disk unit, open or not:
// who tells a hang to end cannot always do so through the device, which may be closing because of
// it. ENXIO where there is no such unit.
func (d *Driver) Control(unit int, cmd devsw.Cmd, data any) error {
	sc, err := d.Unit(unit)
	if err != nil {
		return err
	}
	return sc.control(cmd, data)
}

// psize is d_psize.
func (d *Driver) psize(dev devsw.Dev) int64 {
	sc := d.Get(dev)
	if sc == nil {
		return -1
	}
	return d.table.BdevSize(sc.conf.Lower)
}

// ioctl is d_ioctl.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, flag devsw.Flag) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	switch cmd {
	case FAULTSET, FAULTCLEAR, FAULTRELEASE, FAULTCRASH, FAULTGET:
		return sc.control(cmd, data)
	case devsw.DIOCCACHESYNC:
		return sc.flush(flag)
	case devsw.DIOCWRITEZEROES:
		zr, ok := data.(*devsw.ZeroRange)
		if !ok || zr == nil {
			return devsw.EINVAL
		}
		return sc.change(Zeroes, zr.Pos, zr.N, func() error {
			return sc.table.BdevIoctl(sc.conf.Lower, cmd, data, flag)
		})
	}
	if !sc.lower.Acquire() {
		return devsw.ENXIO
	}
	defer sc.lower.Release()
	return sc.table.BdevIoctl(sc.conf.Lower, cmd, data, flag)
}

// flush is DIOCCACHESYNC.
func (sc *softc) flush(flag devsw.Flag) error {
	if err := sc.pause(Flush, 0, 0); err != nil {
		return err
	}
	if !sc.lower.Acquire() {
		return devsw.ENXIO
	}
	defer sc.lower.Release()
	if sc.cache != nil {
		if e := sc.writeBack(everything, 0); e != 0 {
			return e
		}
	}
	return sc.table.BdevIoctl(sc.conf.Lower, devsw.DIOCCACHESYNC, nil, flag)
}

// discard is d_discard.
func (d *Driver) discard(dev devsw.Dev, pos, n int64) error {
	sc := d.Get(dev)
	if sc == nil {
		return devsw.ENXIO
	}
	return sc.change(Discard, pos, n, func() error { return sc.table.BdevDiscard(sc.conf.Lower, pos, n) })
}

// change has the lower device do something to the n bytes from pos on, which makes what the cache
// has of them obsolete.
func (sc *softc) change(op Ops, pos, n int64, do func() error) error {
	if err := sc.pause(op, pos, n); err != nil {
		return err
	}
	if !sc.lower.Acquire() {
		return devsw.ENXIO
	}
	defer sc.lower.Release()
	if sc.cache == nil {
		return do()
	}
	sc.cache.writing <- struct{}{}
	defer func() { <-sc.cache.writing }()
	old := sc.cache.dirty(sc.cache.extent(pos, n))
	if err := do(); err != nil {
		return err
	}
	sc.cache.clean(old)
	return nil
}
