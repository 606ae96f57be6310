package fault

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vdev/devsw"
	"vdev/internal/units"
)

// lineOps are the operations of a character device that rules can act on.
const lineOps = Read | Write | Open | Close | Cancel

// LineRule looks whether a rule makes sense for a character device. An error wraps EINVAL.
func LineRule(r Rule) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("rule %q: %w: %w", r, fmt.Errorf(format, args...), devsw.EINVAL)
	}
	switch {
	case r.Action > Error:
		return bad("a port of a console knows delay, hang and error")
	case r.Ops&^(lineOps|Any) != 0 || r.Ops&lineOps == 0 || r.Ops&Any != Any && r.Ops&^lineOps != 0:
		return bad("a port of a console has the operations read, write, open, close and cancel")
	case r.Blocks != 0:
		return bad("a port of a console has no blocks")
	}
	return nil
}

// LineDriver makes character devices that stand on others, and do what rules say. A read or a write
// that does not sleep (devsw.FNONBLOCK) and is delayed or hangs answers EAGAIN until it may begin.
// The rules have their numbers from the driver: Control is about all its units.
type LineDriver struct {
	table *devsw.Table
	cdev  devsw.Cdevsw
	major uint32
	units units.Units[lineUnit]

	mu       sync.Mutex
	lastRule int
}

// lineUnit is one device.
type lineUnit struct {
	table *devsw.Table
	lower devsw.Dev
	ops   [nOps]atomic.Uint64 // operations that have come, by kind
	notes devsw.Klist
	polls devsw.Selinfo
	below [3]devsw.Knote // attached to the lower device while it is open

	mu sync.Mutex
	ruleSet
	holds    map[*hold]struct{}
	lastHold uint64
	waits    [2]*hold    // the read, and the write, that was answered EAGAIN and is held
	begins   [2]*verdict // what comes of it when it is tried again, once it is not held
	cv       *devsw.Cv   // where operations sleep
	stuck    *devsw.Cv   // where those sleep that d_cancel does not end
	opening  int         // d_opens in progress
	opens    int         // of the lower device that have gone well, since its d_close
	closes   uint64      // how many d_closes there were
	cancels  bool        // d_cancel has been, d_close has not
}

// NewLine attaches the driver to t under the name "fault", with a major of the table's choice.
func NewLine(t *devsw.Table) (*LineDriver, error) {
	d := &LineDriver{table: t}
	d.cdev = devsw.Cdevsw{
		Name: "fault", Open: d.open, Cancel: d.cancel, Close: d.close, Read: d.read, Write: d.write, Ioctl: d.ioctl, Poll: d.poll,
		Kqfilter: d.kqfilter, Flag: devsw.DTTY | devsw.DMPSafe,
	}
	_, major, err := t.Attach("fault", nil, devsw.NODEVMAJOR, &d.cdev, devsw.NODEVMAJOR)
	if err != nil {
		return nil, fmt.Errorf("fault: attach: %w", err)
	}
	d.major = uint32(major)
	return d, nil
}

// Create makes a unit on the character device lower, which nobody else may use. EEXIST where there
// is one already, EINVAL for a bad rule.
func (d *LineDriver) Create(unit int, lower devsw.Dev, rules []Rule) (devsw.Dev, error) {
	u := &lineUnit{table: d.table, lower: lower, holds: map[*hold]struct{}{}}
	u.cv, u.stuck = devsw.NewCv(&u.mu), devsw.NewCv(&u.mu)
	for i, filter := range []devsw.Filter{devsw.EVFILTRead, devsw.EVFILTWrite, devsw.EVFILTLine} {
		u.below[i].Filter = filter
		u.below[i].Activate = func(int64) { u.notes.Notify(filter, -1) }
	}
	for _, r := range rules {
		if err := LineRule(r); err != nil {
			return devsw.NODEV, fmt.Errorf("fault: %w", err)
		}
		r.ID = d.number()
		u.add(r)
	}
	if err := d.units.Add(unit, u); err != nil {
		return devsw.NODEV, fmt.Errorf("fault: %w", err)
	}
	return devsw.Makedev(d.major, uint32(unit)), nil
}

// number gives the next rule its number.
func (d *LineDriver) number() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lastRule++
	return d.lastRule
}

// Destroy takes a unit away. EBUSY while it is open, ENXIO where there is none.
func (d *LineDriver) Destroy(unit int) error {
	err := d.units.Remove(unit, func(u *lineUnit) error {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.opening+u.opens > 0 || len(u.holds) > 0 {
			return fmt.Errorf("is open: %w", devsw.EBUSY)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("fault: %w", err)
	}
	return nil
}

// Detach takes the driver out of the table. EBUSY, with nothing changed, while a unit is open.
func (d *LineDriver) Detach() error {
	if err := d.table.Detach(nil, &d.cdev); err != nil {
		return fmt.Errorf("fault: detach: %w", err)
	}
	for _, unit := range d.units.All() {
		if err := d.Destroy(unit); err != nil {
			return err
		}
	}
	return nil
}

// Control runs FAULTSET, FAULTCLEAR, FAULTRELEASE or FAULTGET for all units, open or not.
func (d *LineDriver) Control(cmd devsw.Cmd, data any) error {
	var all []*lineUnit
	for _, n := range d.units.All() {
		if u := d.units.Get(devsw.Makedev(d.major, uint32(n))); u != nil {
			all = append(all, u)
		}
	}
	switch data := data.(type) {
	case *Rule:
		if cmd != FAULTSET {
			return devsw.EINVAL
		}
		if err := LineRule(*data); err != nil {
			return err
		}
		data.ID = d.number()
		for _, u := range all {
			u.locked(func() { u.add(*data) })
		}
		return nil
	case *State:
		if cmd != FAULTGET {
			return devsw.EINVAL
		}
		*data = State{Ops: map[Ops]uint64{}, Injected: map[Action]uint64{}}
		for _, u := range all {
			u.tellState(data)
		}
		return nil
	}
	id := 0
	if data != nil {
		p, ok := data.(*int)
		if !ok || *p <= 0 {
			return devsw.EINVAL
		}
		id = *p
	}
	switch cmd {
	case FAULTRELEASE:
		for _, u := range all {
			u.release(id)
		}
		return nil
	case FAULTCLEAR:
		found := id == 0
		for _, u := range all {
			u.locked(func() { found = u.drop(id) || found })
		}
		if !found {
			return devsw.ENOENT
		}
		return nil
	}
	return devsw.ENOTTY
}

func (u *lineUnit) locked(do func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	do()
}

// tellState adds what is going on to s, where a rule that several units have stands once.
func (u *lineUnit) tellState(s *State) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.ops {
		if n := u.ops[i].Load(); n > 0 {
			s.Ops[1<<i] += n
		}
	}
	mine := State{Injected: s.Injected}
	u.tell(&mine)
	for _, r := range mine.Rules {
		if i := slices.IndexFunc(s.Rules, func(o RuleState) bool { return o.ID == r.ID }); i >= 0 {
			s.Rules[i].Matched += r.Matched
			s.Rules[i].Hit += r.Hit
		} else {
			s.Rules = append(s.Rules, r)
		}
	}
	for _, h := range slices.SortedFunc(maps.Keys(u.holds), func(a, b *hold) int { return int(a.order) - int(b.order) }) {
		s.Held = append(s.Held, Held{Op: h.op, N: h.n, Since: h.since, Rule: h.v.rule, Hangs: h.hanging, Uncancellable: h.v.uncancellable})
	}
}

// direction is where in waits an operation that moves bytes has its place.
func direction(op Ops) int {
	if op == Read {
		return 0
	}
	return 1
}

// filters are the events of the directions.
var filters = [2]devsw.Filter{devsw.EVFILTRead, devsw.EVFILTWrite}

// begin lets the rules act on an operation. It returns nil when it may begin, or the error that it
// ends with.
func (u *lineUnit) begin(op Ops, n int64, flag devsw.Flag) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	sleeps := op&(Read|Write) == 0 || flag&devsw.FNONBLOCK == 0
	if d := direction(op); !sleeps {
		if u.waits[d] != nil {
			return devsw.EAGAIN
		}
		if v := u.begins[d]; v != nil {
			u.begins[d] = nil
			return v.err()
		}
	}
	u.ops[op.index()].Add(1)
	v := u.decide(op, 0, n, 1)
	if !v.holds() {
		return v.err()
	}
	h := u.holdLocked(op, n, v)
	if !sleeps {
		u.waits[direction(op)] = h
		return devsw.EAGAIN
	}
	cv := u.cv
	if v.uncancellable {
		cv = u.stuck
	}
	err := cv.Wait(func() bool { return !h.delaying && !h.hanging })
	u.forgetLocked(h)
	if err != nil {
		return err
	}
	return v.err()
}

// err is the error that the rules have chosen, or nil.
func (v *verdict) err() error {
	if v.errno != 0 {
		return v.errno
	}
	return nil
}

func (u *lineUnit) holdLocked(op Ops, n int64, v verdict) *hold {
	u.lastHold++
	h := &hold{op: op, n: n, v: v, since: time.Now(), order: u.lastHold, delaying: v.delay > 0, hanging: v.hang}
	u.holds[h] = struct{}{}
	if h.delaying {
		h.timer = time.AfterFunc(v.delay, func() {
			u.locked(func() { h.delaying = false })
			u.free(h)
		})
	}
	return h
}

func (u *lineUnit) forgetLocked(h *hold) {
	delete(u.holds, h)
	if h.timer != nil {
		h.timer.Stop()
	}
	for d := range u.waits {
		if u.waits[d] == h {
			u.waits[d] = nil
		}
	}
}

// release ends the hangs that a rule has made, or all.
func (u *lineUnit) release(rule int) {
	var all []*hold
	u.locked(func() {
		for h := range u.holds {
			if rule == 0 || h.v.rule == rule {
				h.hanging = false
				all = append(all, h)
			}
		}
	})
	for _, h := range all {
		u.free(h)
	}
}

// free looks whether anything still keeps an operation. Where not, who sleeps is woken, and who was
// answered EAGAIN is told.
func (u *lineUnit) free(h *hold) {
	u.mu.Lock()
	if _, ok := u.holds[h]; !ok || h.delaying || h.hanging {
		u.mu.Unlock()
		return
	}
	d := direction(h.op)
	waits := h == u.waits[d]
	if waits {
		u.forgetLocked(h)
		u.begins[d] = &h.v
	}
	u.cv.Broadcast()
	u.stuck.Broadcast()
	u.mu.Unlock()
	if waits {
		u.notes.Notify(filters[d], -1)
		u.polls.Notify()
	}
}

// open is d_open.
func (d *LineDriver) open(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	u.mu.Lock()
	if u.cancels {
		u.mu.Unlock()
		return devsw.ECANCELED
	}
	closes := u.closes
	u.opening++
	u.mu.Unlock()
	err := u.begin(Open, 0, flag)
	if err == nil {
		err = d.table.CdevOpen(u.lower, flag, mode)
	}
	u.mu.Lock()
	u.opening--
	late := err == nil && u.closes != closes
	first := err == nil && !late && u.opens == 0
	if err == nil && !late {
		u.opens++
	}
	u.mu.Unlock()
	switch {
	case late:
		// The d_close that ended this has been.
		return errors.Join(devsw.ECANCELED, d.table.CdevClose(u.lower, flag, mode))
	case first:
		for i := range u.below {
			// A device that has no such events never has any to tell.
			_ = d.table.CdevKqfilter(u.lower, &u.below[i])
		}
	}
	return err
}

// cancel is d_cancel: what this driver delays, or lets hang, ends with ECANCELED, and the lower
// device is cancelled. It waits for nothing but what a rule for Cancel says.
func (d *LineDriver) cancel(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	u := d.units.Get(dev)
	if u == nil {
		return nil // a d_open that failed with ENXIO may be cancelled, too
	}
	if err := u.begin(Cancel, 0, 0); err != nil {
		return err
	}
	return u.interrupt(flag, mode)
}

// interrupt does d_cancel's work.
func (u *lineUnit) interrupt(flag devsw.Flag, mode devsw.Mode) error {
	u.mu.Lock()
	u.cancels = true
	u.cv.Cancel()
	for _, h := range u.waits {
		if h != nil {
			u.forgetLocked(h)
		}
	}
	u.begins = [2]*verdict{}
	u.mu.Unlock()
	ref := u.table.CdevswAcquire(u.lower)
	if ref == nil {
		return nil
	}
	defer ref.Release()
	return ref.Cancel(flag, mode)
}

// close is d_close.
func (d *LineDriver) close(dev devsw.Dev, flag devsw.Flag, mode devsw.Mode) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	answer := u.begin(Close, 0, flag)
	u.mu.Lock()
	u.closes++
	cancelled := u.cancels
	u.mu.Unlock()
	if !cancelled {
		_ = u.interrupt(flag, mode) // d_cancel has refused
	}
	for i := range u.below {
		u.below[i].Detach()
	}
	err := d.table.CdevClose(u.lower, flag, mode)
	u.mu.Lock()
	defer u.mu.Unlock()
	u.cv.Reset()
	u.opens, u.cancels = 0, false
	if answer != nil {
		return answer
	}
	return err
}

// read is d_read.
func (d *LineDriver) read(dev devsw.Dev, uio *devsw.Uio, flag devsw.Flag) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	if err := u.begin(Read, int64(uio.Resid), flag); err != nil {
		return err
	}
	return d.table.CdevRead(u.lower, uio, flag)
}

// write is d_write.
func (d *LineDriver) write(dev devsw.Dev, uio *devsw.Uio, flag devsw.Flag) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	if err := u.begin(Write, int64(uio.Resid), flag); err != nil {
		return err
	}
	return d.table.CdevWrite(u.lower, uio, flag)
}

// ioctl is d_ioctl.
func (d *LineDriver) ioctl(dev devsw.Dev, cmd devsw.Cmd, data any, flag devsw.Flag) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	return d.table.CdevIoctl(u.lower, cmd, data, flag)
}

// poll is d_poll. What is held is not ready.
func (d *LineDriver) poll(dev devsw.Dev, events devsw.PollEvents, wake func()) devsw.PollEvents {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.POLLERR
	}
	if wake != nil {
		u.polls.Record(wake)
	}
	is := d.table.CdevPoll(u.lower, events, wake)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waits[direction(Read)] != nil {
		is &^= devsw.POLLIN
	}
	if u.waits[direction(Write)] != nil {
		is &^= devsw.POLLOUT
	}
	return is
}

// kqfilter is d_kqfilter.
func (d *LineDriver) kqfilter(dev devsw.Dev, kn *devsw.Knote) error {
	u := d.units.Get(dev)
	if u == nil {
		return devsw.ENXIO
	}
	if kn.Filter != devsw.EVFILTRead && kn.Filter != devsw.EVFILTWrite && kn.Filter != devsw.EVFILTLine {
		return devsw.EINVAL
	}
	u.notes.Insert(kn)
	kn.Activate(-1)
	return nil
}
