package line

import (
	"fmt"

	"vdev/devsw"
	"vdev/internal/units"
)

// Driver is a driver of character devices that are Lines, attached to a table. Its methods may be
// called on any goroutine.
type Driver struct {
	table *devsw.Table
	cdev  devsw.Cdevsw
	major uint32
	units units.Units[Line]
}

// Attach attaches a driver of that name to t. major may be devsw.NODEVMAJOR: then the table
// chooses. It needs no lock of the table's (devsw.DMPSafe). Errors are those of devsw.Table.Attach.
// Detach ends it.
func Attach(t *devsw.Table, name string, major int) (*Driver, error) {
	d := &Driver{table: t}
	d.cdev = devsw.Cdevsw{
		Name: name, Open: d.open, Cancel: d.cancel, Close: d.close, Read: d.read, Write: d.write, Ioctl: d.ioctl,
		Poll: d.poll, Kqfilter: d.kqfilter, Flag: devsw.DTTY | devsw.DMPSafe,
	}
	_, cmaj, err := t.Attach(name, nil, devsw.NODEVMAJOR, &d.cdev, major)
	if err != nil {
		return nil, fmt.Errorf("%s: attach: %w", name, err)
	}
	d.major = uint32(cmaj)
	return d, nil
}

// Detach takes the driver out of the table and closes all its Lines. EBUSY, with nothing changed,
// while one is open. No other method may be called meanwhile or afterwards.
func (d *Driver) Detach() error {
	if err := d.table.Detach(nil, &d.cdev); err != nil {
		return fmt.Errorf("%s: detach: %w", d.cdev.Name, err)
	}
	for _, n := range d.units.All() {
		if err := d.Destroy(n); err != nil {
			return err
		}
	}
	return nil
}

// Create makes l unit n, and returns its character device. The Line is the driver's from then on,
// which closes it. EEXIST where there is such a unit already, EINVAL where there can be none.
func (d *Driver) Create(n int, l *Line) (devsw.Dev, error) {
	if err := d.units.Add(n, l); err != nil {
		return devsw.NODEV, fmt.Errorf("%s: %w", d.cdev.Name, err)
	}
	return devsw.Makedev(d.major, uint32(n)), nil
}

// Destroy closes the Line of unit n, and takes it away. EBUSY while it is open, ENXIO where there
// is no such unit.
func (d *Driver) Destroy(n int) error {
	if err := d.units.Remove(n, (*Line).retire); err != nil {
		return fmt.Errorf("%s: %w", d.cdev.Name, err)
	}
	return nil
}

// Unit returns the Line of unit n, open or not. ENXIO where there is no such unit.
func (d *Driver) Unit(n int) (*Line, error) {
	if n >= 0 && n <= units.Max {
		if l := d.line(devsw.Makedev(d.major, uint32(n))); l != nil {
			return l, nil
		}
	}
	return nil, fmt.Errorf("%s: unit %d: no such unit: %w", d.cdev.Name, n, devsw.ENXIO)
}

// line returns the Line that dev stands for, or nil.
func (d *Driver) line(dev devsw.Dev) *Line {
	if list, minor := d.units.List.Load(), int64(dev.Minor()); list != nil && minor < int64(len(*list)) {
		return (*list)[minor]
	}
	return nil
}

// open is d_open. A Line is there before it is opened, so there is nothing to do or to wait for.
func (d *Driver) open(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return devsw.ENXIO
	case l.room.Cancelled():
		return devsw.ECANCELED
	}
	l.open = true
	return nil
}

// cancel is d_cancel: it wakes those who sleep. Reads and writes fail with ECANCELED until d_close.
func (d *Driver) cancel(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
	if l := d.line(dev); l != nil {
		l.each((*devsw.Cv).Cancel)
	}
	return nil
}

// close is d_close. What the Line holds, and who is at its other side, stays.
func (d *Driver) close(dev devsw.Dev, _ devsw.Flag, _ devsw.Mode) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	l.each((*devsw.Cv).Reset)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = false
	return nil
}

// each calls f for what d_read and d_write sleep by, with both locks held.
func (l *Line) each(f func(*devsw.Cv)) {
	l.input.mu.Lock()
	defer l.input.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	f(l.input.cv)
	f(l.room)
}

// retire closes a Line that is to be no unit any more. EBUSY while it is open.
func (l *Line) retire() error {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	if open {
		return fmt.Errorf("is open: %w", devsw.EBUSY)
	}
	l.Close()
	return nil
}

// read is d_read.
func (d *Driver) read(dev devsw.Dev, u *devsw.Uio, flag devsw.Flag) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	return l.input.transfer(u, flag)
}

// write is d_write.
func (d *Driver) write(dev devsw.Dev, u *devsw.Uio, flag devsw.Flag) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	return l.write(u, flag)
}

// ioctl is d_ioctl.
func (d *Driver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	if cmd != devsw.TIOCGWINSZ {
		return devsw.ENOTTY
	}
	size, ok := data.(*devsw.Winsize)
	if !ok || size == nil {
		return devsw.EINVAL
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size == (devsw.Winsize{}) {
		return devsw.ENOTTY
	}
	*size = l.size
	return nil
}

// poll is d_poll.
func (d *Driver) poll(dev devsw.Dev, events devsw.PollEvents, wake func()) devsw.PollEvents {
	l := d.line(dev)
	if l == nil {
		return devsw.POLLERR
	}
	is := l.events() & (events | devsw.POLLERR | devsw.POLLHUP)
	if is == 0 && wake != nil {
		l.polls.Record(wake)
		// It may have come before the record was there.
		is = l.events() & (events | devsw.POLLERR | devsw.POLLHUP)
	}
	return is
}

// kqfilter is d_kqfilter. EINVAL: there is no such filter.
func (d *Driver) kqfilter(dev devsw.Dev, kn *devsw.Knote) error {
	l := d.line(dev)
	if l == nil {
		return devsw.ENXIO
	}
	var is devsw.PollEvents
	switch kn.Filter {
	case devsw.EVFILTRead:
		is = devsw.POLLIN
	case devsw.EVFILTWrite:
		is = devsw.POLLOUT
	case devsw.EVFILTLine:
	default:
		return devsw.EINVAL
	}
	l.notes.Insert(kn)
	if is == 0 || l.events()&is != 0 {
		kn.Activate(-1)
	}
	return nil
}

// events is what the Line is ready for. Where there is no room, who makes some tells of it.
func (l *Line) events() (e devsw.PollEvents) {
	l.input.mu.Lock()
	defer l.input.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return devsw.POLLERR
	}
	if l.input.waits() {
		e |= devsw.POLLIN
	}
	if l.conf.Overflow == Drop || l.hasRoomLocked() {
		e |= devsw.POLLOUT
	}
	if l.main == nil {
		e |= devsw.POLLHUP
	}
	return e
}
