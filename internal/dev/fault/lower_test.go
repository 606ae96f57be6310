package fault

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/test/disktest"
)

// probe is a lower device that notes what it is asked for. Its transfers end at once, or when the
// test says so.
type probe struct {
	held     bool // transfers and opens wait
	noCancel bool
	late     bool // an open that was cancelled goes well nevertheless
	slow     bool // what is cancelled ends an hour later

	mu    sync.Mutex
	calls []string
	bufs  []*devsw.Buf
	named []*devsw.Buf // by CancelBuf
	wake  chan struct{}
}

func (p *probe) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, s)
}

// took gives what was noted, and forgets it.
func (p *probe) took() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	calls := p.calls
	p.calls = nil
	return calls
}

// waiting gives the transfers that wait.
func (p *probe) waiting() []*devsw.Buf {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.bufs)
}

// end ends the transfers that wait with an error, or none.
func (p *probe) end(e devsw.Errno) { p.endThose(e, func(*devsw.Buf) bool { return true }) }

// endThose ends some of the transfers that wait.
func (p *probe) endThose(e devsw.Errno, which func(*devsw.Buf) bool) {
	p.mu.Lock()
	bufs := p.bufs
	p.bufs = nil
	for _, b := range bufs {
		if !which(b) {
			p.bufs = append(p.bufs, b)
		}
	}
	p.mu.Unlock()
	for _, b := range bufs {
		if !which(b) {
			continue
		}
		b.Error = e
		p.note("biodone")
		b.Biodone()
	}
}

func (p *probe) interrupt() {
	if p.slow {
		time.AfterFunc(time.Hour, func() { p.end(devsw.ECANCELED) })
		return
	}
	p.end(devsw.ECANCELED)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wake != nil {
		close(p.wake)
		p.wake = nil
	}
}

// on makes a disk on a probe.
func on(t *testing.T, p *probe, attach func(*devsw.Table) (*Driver, error), rules ...string) *rig {
	t.Helper()
	r := &rig{t: t, table: devsw.NewTable()}
	sw := &devsw.Bdevsw{
		Name: "probe", Flag: devsw.DDisk | devsw.DMPSafe,
		Open: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
			p.note("open")
			if !p.held {
				return nil
			}
			wake := make(chan struct{})
			p.mu.Lock()
			p.wake = wake
			p.mu.Unlock()
			<-wake
			p.note("opened")
			if p.late {
				return nil
			}
			return devsw.ECANCELED
		},
		Cancel: func(devsw.Dev, devsw.Flag, devsw.Mode) error { p.note("cancel"); p.interrupt(); return nil },
		Close: func(devsw.Dev, devsw.Flag, devsw.Mode) error {
			p.note("close")
			if p.noCancel {
				p.interrupt()
			}
			return nil
		},
		CancelBuf: func(b *devsw.Buf) {
			p.note("cancelbuf")
			p.mu.Lock()
			p.named = append(p.named, b)
			p.mu.Unlock()
			p.endThose(devsw.ECANCELED, func(w *devsw.Buf) bool { return w == b })
		},
		Strategy: func(b *devsw.Buf) {
			p.note("strategy")
			if !p.held {
				b.InContext = true
			}
			p.mu.Lock()
			p.bufs = append(p.bufs, b)
			p.mu.Unlock()
			if !p.held {
				p.end(0)
			}
		},
	}
	if p.noCancel {
		sw.Cancel = nil
	}
	bmajor, _, err := r.table.Attach("probe", sw, devsw.NODEVMAJOR, &devsw.Cdevsw{}, devsw.NODEVMAJOR)
	must(t, err)
	info := func() (devsw.DiskInfo, error) { return devsw.DiskInfo{Size: size, SectorSize: 512}, nil }
	r.stack(Config{Lower: devsw.Makedev(uint32(bmajor), 0), Info: info, Rules: parse(t, rules...)}, attach)
	t.Cleanup(func() { must(t, r.d.Detach()); must(t, r.table.Detach(sw, nil)) })
	return r
}

func saw(t *testing.T, p *probe, want ...string) {
	t.Helper()
	if got := p.took(); !slices.Equal(got, want) {
		t.Errorf("the lower device saw %q, want %q", got, want)
	}
}

func TestATransferIsPassedOnAsItIs(t *testing.T) {
	p := &probe{held: true}
	r := on(t, p, New)
	p.held = false
	r.open()
	p.held = true
	data := [][]byte{make([]byte, 512), make([]byte, 1024)}
	aio := new(disktest.AIO)
	done := make(chan bool, 1)
	b := &devsw.Buf{Op: devsw.BWrite, Flags: devsw.BMediaFUA, Blkno: 3, Data: data, Bcount: 1536, AIO: aio, Context: "mine",
		Iodone: func(b *devsw.Buf) { done <- b.InContext }}
	for _, inContext := range []bool{true, false} {
		r.node.Strategy(nil, b)
		l := p.waiting()[0]
		if l == b || l.Op != b.Op || l.Flags != b.Flags || l.Blkno != 3 || l.Bcount != 1536 || l.AIO != aio || &l.Data[0] != &data[0] {
			t.Errorf("%+v was made of %+v", l, b)
		}
		l.InContext, l.Resid = inContext, 512
		p.end(devsw.ENOSPC)
		if got := <-done; got != inContext || b.Error != devsw.ENOSPC || b.Resid != 512 || b.Context != "mine" {
			t.Errorf("in context %v, error %v, resid %d", got, b.Error, b.Resid)
		}
		b.Rearm()
	}
	r.close()
}

// TestAForeignGoroutineUsesNoAIO: what was held is not in its issuer's context any more, whatever
// the lower device says. TestATransferOfTheLowerDeviceIsCancelledThere, by itself. Its Buf is not
// used again: whoever was asked to cancel it may be late.
func TestATransferOfTheLowerDeviceIsCancelledThere(t *testing.T) {
	p := &probe{}
	r := on(t, p, New)
	r.open()
	p.held = true
	one, done := r.start(devsw.BWrite, 0, 0, make([]byte, 512))
	_, other := r.start(devsw.BWrite, 0, 1, make([]byte, 512))
	must(t, r.node.CancelBuf(one))
	<-done
	if one.Error != devsw.ECANCELED || ended(other) {
		t.Errorf("error %v; the other one has ended: %v", one.Error, ended(other))
	}
	must(t, r.node.CancelBuf(one))
	saw(t, p, "open", "strategy", "strategy", "cancelbuf", "biodone")
	for i := range 50 {
		_, next := r.start(devsw.BWrite, 0, int64(i), make([]byte, 512))
		last := p.waiting()[1]
		if last == p.named[0] {
			t.Fatal("the Buf that was cancelled is used again")
		}
		p.endThose(0, func(b *devsw.Buf) bool { return b == last })
		<-next
	}
	p.end(0)
	<-other
	r.close()
}

func TestAForeignGoroutineUsesNoAIO(t *testing.T) {
	for _, rule := range []string{"hang:any", "delay:any:time=1s"} {
		bubble(t, rule, func(t *testing.T) {
			p := new(probe)
			r := on(t, p, New, rule)
			r.open()
			defer r.close()
			seen := make(chan bool, 1)
			b := &devsw.Buf{Op: devsw.BWrite, Data: [][]byte{make([]byte, 512)}, Bcount: 512, AIO: new(disktest.AIO),
				Iodone: func(b *devsw.Buf) { seen <- b.InContext }}
			p.held = true
			r.node.Strategy(nil, b)
			if len(p.waiting()) != 0 {
				t.Fatal("it was not held")
			}
			time.Sleep(time.Second)
			r.release()
			synctest.Wait()
			bufs := p.waiting()
			if len(bufs) != 1 || bufs[0].AIO != nil {
				t.Fatalf("the lower device has %+v", bufs)
			}
			bufs[0].InContext = true
			p.end(0)
			if <-seen {
				t.Error("it says that it has ended in its issuer's context")
			}
		})
	}
}

func TestTheLowerDeviceIsTakenDownInOrder(t *testing.T) {
	for name, c := range map[string]struct {
		attach  func(*devsw.Table) (*Driver, error)
		rules   []string
		lowerNo bool
		want    []string
	}{
		"cancel":                     {New, nil, false, []string{"cancel", "biodone", "close"}},
		"no cancel here":             {NewWithoutCancel, nil, false, []string{"cancel", "biodone", "close"}},
		"cancel refused here":        {New, []string{"error:cancel"}, false, []string{"cancel", "biodone", "close"}},
		"no cancel there":            {New, nil, true, []string{"close", "biodone"}},
		"no cancel anywhere":         {NewWithoutCancel, nil, true, []string{"close", "biodone"}},
		"slow cancel and slow close": {New, []string{"delay:cancel+close:time=1h"}, false, []string{"cancel", "biodone", "close"}},
	} {
		for _, slow := range []bool{false, true} {
			bubble(t, fmt.Sprintf("%s, slow %v", name, slow), func(t *testing.T) {
				p := &probe{noCancel: c.lowerNo, slow: slow}
				r := on(t, p, c.attach, c.rules...)
				r.open()
				p.held = true
				b, done := r.start(devsw.BRead, 0, 0, make([]byte, 512))
				saw(t, p, "open", "strategy")
				r.close()
				saw(t, p, c.want...)
				if <-done; b.Error != devsw.ECANCELED {
					t.Errorf("the transfer ended with %v", b.Error)
				}
			})
		}
	}
}

func TestAnOpenOfTheLowerDeviceThatSleepsIsEnded(t *testing.T) {
	for name, c := range map[string]struct {
		p    *probe
		want []string
	}{
		"cancel":              {&probe{held: true}, []string{"open", "cancel", "opened", "close"}},
		"cancel, too late":    {&probe{held: true, late: true}, []string{"open", "cancel", "opened", "close"}},
		"no cancel":           {&probe{held: true, noCancel: true}, []string{"open", "close", "opened"}},
		"no cancel, too late": {&probe{held: true, noCancel: true, late: true}, []string{"open", "close", "opened", "close"}},
	} {
		bubble(t, name, func(t *testing.T) {
			r := on(t, c.p, New)
			answer := make(chan error, 1)
			go func() { answer <- r.node.Open(t.Context(), rw) }()
			synctest.Wait()
			r.node.Revoke()
			is(t, "open", <-answer, devsw.EBADF)
			saw(t, c.p, c.want...)
			c.p.held = false
			n := r.fs.Node(devsw.IFBLK, r.dev)
			must(t, n.Open(t.Context(), rw))
			must(t, n.Close(rw))
		})
	}
}

// The lower open is about to fail for want of a driver when a revoke cancels it. There is nothing
// to cancel there.
func TestALowerDeviceWithoutADriverIsNotCancelled(t *testing.T) {
	r := &rig{t: t, table: devsw.NewTable()}
	info := func() (devsw.DiskInfo, error) { return devsw.DiskInfo{Size: size, SectorSize: 512}, nil }
	r.stack(Config{Lower: devsw.Makedev(17, 0), Info: info}, New)
	sc := r.d.Get(r.dev)
	sc.mu.Lock()
	sc.owner, sc.lowerBegun = devsw.IFBLK, true
	sc.mu.Unlock()
	must(t, r.table.BdevCancel(r.dev, rw, devsw.IFBLK))
	is(t, "close", r.table.BdevClose(r.dev, rw, devsw.IFBLK), devsw.ENXIO)
	is(t, "open", r.node.Open(t.Context(), rw), devsw.ENXIO)
	must(t, r.d.Detach())
}

func TestAnOpenThatFailsLeavesTheLowerDeviceAlone(t *testing.T) {
	p := new(probe)
	r := on(t, p, New, "error:open:count=1")
	is(t, "open", r.node.Open(t.Context(), rw), devsw.EIO)
	saw(t, p)
	c := r.fs.Node(devsw.IFCHR, r.charDev()) // nobody has the unit
	must(t, c.Open(t.Context(), rw))
	must(t, c.Close(rw))
	saw(t, p, "open", "cancel", "close")
}

func TestADriverWithoutDMPSafeCanBeTheLowerOne(t *testing.T) {
	r := &rig{t: t, table: devsw.NewTable()}
	mem := make([]byte, size)
	sw := &devsw.Bdevsw{Name: "old", Flag: devsw.DDisk, Strategy: func(b *devsw.Buf) {
		b.Error = b.MoveAt(mem[b.Blkno*512:][:b.Bcount], 0)
		b.Biodone()
	}}
	bmajor, _, err := r.table.Attach("old", sw, devsw.NODEVMAJOR, &devsw.Cdevsw{}, devsw.NODEVMAJOR)
	must(t, err)
	info := func() (devsw.DiskInfo, error) { return devsw.DiskInfo{Size: size, SectorSize: 512}, nil }
	r.stack(Config{Lower: devsw.Makedev(uint32(bmajor), 0), Info: info, Cache: 1 << 20}, New)
	r.open()
	r.write(1, bytes.Repeat([]byte{1}, 512))
	is(t, "flush", r.flush(), devsw.ENODEV) // it has no d_ioctl
	if mem[512] != 1 {
		t.Error("the cache was not written out")
	}
	r.close()
	must(t, r.d.Detach())
}
