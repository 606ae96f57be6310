package nbd

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vdev/devsw"
)

// keeper is a Server. It notes what is asked of it.
type keeper struct {
	mu         sync.Mutex
	generation uint64
	running    bool
	stops      int
	kills      int
	starting   int
	confused   bool // Stop came while a Start ran
	err        error
	killed     func() // what Kill does
}

func (k *keeper) Start(ctx context.Context) (uint64, error) {
	k.mu.Lock()
	k.starting++
	k.mu.Unlock()
	time.Sleep(time.Millisecond)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.starting--
	if k.err != nil {
		return 0, k.err
	}
	k.running = true
	return k.generation, nil
}

func (k *keeper) Stop() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.confused = k.confused || k.starting > 0
	k.running = false
	k.stops++
}

func (k *keeper) Kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.running = false
	k.kills++
	k.generation++
	k.killed()
}

func (k *keeper) set(change func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	change()
}

// check looks whether the server runs, after so many stops.
func (k *keeper) check(t *testing.T, running bool, stops, kills int) {
	t.Helper()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != running || k.stops != stops || k.kills != kills || k.confused {
		t.Errorf("it runs: %v, after %d stops and %d kills, in order: %v; want %v after %d and %d", k.running, k.stops, k.kills, !k.confused, running, stops, kills)
	}
}

// gone waits until the connections of the last open have gone.
func (r *rig) gone(dev devsw.Dev) { <-r.softc(dev).last.Load().done }

func (r *rig) flush(dev devsw.Dev) error {
	return r.table.BdevIoctl(dev, devsw.DIOCCACHESYNC, nil, devsw.FWRITE)
}

func TestServerRunsWhileTheDiskIsOpen(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	dev := r.create(Config{URI: f.uri(), Server: k})
	f.next()
	k.check(t, false, 1, 0)
	d := &diskUnderTest{r.open(dev), r}
	c := f.next()
	k.check(t, true, 1, 0)
	_, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 512))
	q, _ := c.request(true)
	r.close(dev)
	d.Wait(done)
	k.check(t, true, 1, 0) // it owes an answer
	c.send(c.ok(q.cookie))
	r.gone(dev)
	k.check(t, false, 2, 0)

	// One that does not start is no disk.
	k.set(func() { k.err = devsw.EINVAL })
	if err := r.table.BdevOpen(dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EINVAL) {
		t.Errorf("it opens with %v", err)
	}
	r.gone(dev)
	k.check(t, false, 3, 0)
	k.set(func() { k.err = nil })
	r.open(dev)
	f.next()
	k.check(t, true, 3, 0)
}

func TestServerThatOwesAnAnswerForTooLongIsKilled(t *testing.T) {
	for _, how := range []string{"after a time", "when the disk is destroyed"} {
		t.Run(how, func(t *testing.T) {
			f := newFake(t, structuredMode)
			k := &keeper{}
			r := newRig(t)
			conf := Config{URI: f.uri(), Server: k, KillAfter: 20 * time.Millisecond}
			if how != "after a time" {
				conf.KillAfter = time.Hour
			}
			dev := r.create(conf)
			f.next()
			d := &diskUnderTest{r.open(dev), r}
			c := f.next()
			k.set(func() { k.killed = func() { c.Close() } })
			_, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 512))
			c.request(true)
			r.close(dev)
			d.Wait(done)
			if how == "after a time" {
				r.open(dev)
				f.next()
				k.check(t, true, 2, 1)
				return
			}
			r.softc(dev).Destroy()
			k.check(t, false, 2, 1)
		})
	}
}

// TestServerThatAnswersInTimeIsNotKilled: by then it is the next open's.
func TestServerThatAnswersInTimeIsNotKilled(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{killed: func() {}}
	r := newRig(t)
	dev := r.create(Config{URI: f.uri(), Server: k, KillAfter: 300 * time.Millisecond})
	f.next()
	for range 3 {
		r.open(dev)
		f.next()
		r.close(dev)
	}
	r.gone(dev)
	time.Sleep(400 * time.Millisecond) // for one that does it nevertheless
	k.check(t, false, 4, 0)
}

// write does a write.
func (d *diskUnderTest) write(c *fakeConn, flags devsw.BufFlag) {
	d.r.t.Helper()
	b, done := d.begin(devsw.BWrite, flags, 0, make([]byte, 512))
	q, _ := c.request(true)
	c.send(c.ok(q.cookie))
	d.Wait(done)
	if b.Error != 0 {
		d.r.t.Errorf("a write ends with %v", b.Error)
	}
}

// sync has a flush answered, and returns what it ends with.
func (d *diskUnderTest) sync(c *fakeConn) error {
	d.r.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- d.r.flush(d.Dev) }()
	q, _ := c.request(true)
	if q.cmd != cmdFlush {
		d.r.t.Errorf("the server gets %+v", q)
	}
	c.send(c.ok(q.cookie))
	return <-ended
}

// nextLoss waits for the next loss that is told.
func nextLoss(t *testing.T, told <-chan *LostError) *LostError {
	t.Helper()
	select {
	case e := <-told:
		return e
	case <-time.After(time.Minute):
		t.Fatal("no loss is told")
		return nil
	}
}

// TestNothingIsServedOfADiskWhoseServerHasTakenWritesWithIt, until somebody opens it who does not
// go on where he was.
func TestNothingIsServedOfADiskWhoseServerHasTakenWritesWithIt(t *testing.T) {
	tests := map[string]struct {
		before func(d *diskUnderTest, c *fakeConn)
		same   bool // the server that comes is the same
		lost   bool
	}{
		"a write":                  {before: func(d *diskUnderTest, c *fakeConn) { d.write(c, 0) }, lost: true},
		"the same server":          {before: func(d *diskUnderTest, c *fakeConn) { d.write(c, 0) }, same: true},
		"a stable write":           {before: func(d *diskUnderTest, c *fakeConn) { d.write(c, devsw.BMediaFUA) }},
		"a write that was flushed": {before: func(d *diskUnderTest, c *fakeConn) { d.write(c, 0); _ = d.sync(c) }},
		"a write after the flush":  {before: func(d *diskUnderTest, c *fakeConn) { _ = d.sync(c); d.write(c, 0) }, lost: true},
		"nothing but a flush":      {before: func(d *diskUnderTest, c *fakeConn) { _ = d.sync(c) }},
		"a write during the flush": {lost: true, before: func(d *diskUnderTest, c *fakeConn) {
			ended := make(chan error, 1)
			go func() { ended <- d.r.flush(d.Dev) }()
			q, _ := c.request(true)
			d.write(c, 0)
			c.send(c.ok(q.cookie))
			if err := <-ended; err != nil {
				d.r.t.Error(err)
			}
		}},
		"zeroes": {lost: true, before: func(d *diskUnderTest, c *fakeConn) {
			ended := make(chan error, 1)
			go func() {
				ended <- d.r.table.BdevIoctl(d.Dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: 512}, devsw.FWRITE)
			}()
			q, _ := c.request(true)
			c.send(c.ok(q.cookie))
			if err := <-ended; err != nil {
				d.r.t.Error(err)
			}
		}},
	}
	for name, tt := range tests {
		for _, closed := range []bool{false, true} {
			t.Run(name+map[bool]string{true: " before d_close"}[closed], func(t *testing.T) {
				f := newFake(t, structuredMode)
				k := &keeper{}
				r := newRig(t)
				lost := make(chan *LostError, 9)
				r.d.Notify(func(_ int, err error) {
					if e := (*LostError)(nil); errors.As(err, &e) {
						lost <- e
					}
				})
				d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
				tt.before(d, c)
				if closed {
					r.close(d.Dev)
					r.gone(d.Dev)
				}
				if !tt.same {
					k.set(func() { k.generation++ })
				}
				if closed {
					d = &diskUnderTest{r.resume(d.Dev), r}
				} else {
					c.Close()
				}
				c = f.next()
				if tt.lost {
					if e := nextLoss(t, lost); *e != (LostError{Writes: 1}) || !errors.Is(e, devsw.ESTALE) {
						t.Errorf("the loss is told as %+v: %v", e, e)
					}
					d.stale()
					// A pause, which its opener goes on after.
					r.close(d.Dev)
					d = &diskUnderTest{r.resume(d.Dev), r}
					f.next()
					d.stale()
					// The end of a guest, which another one does not know of.
					r.close(d.Dev)
					d = &diskUnderTest{r.open(d.Dev), r}
					c = f.next()
				}
				d.write(c, 0)
				if err := d.sync(c); err != nil {
					t.Errorf("a flush ends with %v", err)
				}
				if len(lost) != 0 {
					t.Errorf("a loss is told: %v", <-lost)
				}
			})
		}
	}
}

// stale looks whether everything fails. Nothing of it reaches the server, which answers nothing.
func (d *diskUnderTest) stale() {
	d.r.t.Helper()
	for _, op := range []devsw.Op{devsw.BRead, devsw.BWrite} {
		for _, flags := range []devsw.BufFlag{0, devsw.BMediaFUA} {
			b := d.Transfer(op, flags, 0, make([]byte, 512))
			if b.Error != devsw.ESTALE || b.Resid != 512 {
				d.r.t.Errorf("%v with flags %v ends with %v, resid %d", op, flags, b.Error, b.Resid)
			}
		}
	}
	table, zr := d.r.table, &devsw.ZeroRange{N: 512}
	for what, err := range map[string]error{
		"flush":   d.r.flush(d.Dev),
		"discard": table.BdevDiscard(d.Dev, 0, 512),
		"zeroes":  table.BdevIoctl(d.Dev, devsw.DIOCWRITEZEROES, zr, devsw.FWRITE),
	} {
		if !errors.Is(err, devsw.ESTALE) {
			d.r.t.Errorf("%s ends with %v", what, err)
		}
	}
}

// TestWhatIsInProgressWhenWritesAreLostFails, too: it was asked for by somebody who trusts what he
// has written.
func TestWhatIsInProgressWhenWritesAreLostFails(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	d.write(c, 0)
	read, ended := d.begin(devsw.BRead, 0, 0, make([]byte, 512))
	c.request(true)
	k.set(func() { k.generation++ })
	c.Close()
	// This one finds no connection.
	write, done := d.begin(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512))
	f.next()
	d.Wait(ended)
	d.Wait(done)
	if read.Error != devsw.ESTALE || write.Error != devsw.ESTALE {
		t.Errorf("they end with %v and %v", read.Error, write.Error)
	}
}

// TestAnswerOfAServerThatHasGoneIsTooLate: it comes on one connection, when another one has found
// the next server already.
func TestAnswerOfAServerThatHasGoneIsTooLate(t *testing.T) {
	f := newFake(t, structuredMode)
	f.exp.flags |= canMultiConn
	k := &keeper{}
	r := newRig(t)
	lost := make(chan *LostError, 9)
	r.d.Notify(func(_ int, err error) {
		if e := (*LostError)(nil); errors.As(err, &e) {
			lost <- e
		}
	})
	d, first := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute, Connections: 2})
	d.AIO = nil // those of one context stay together
	second := f.next()
	for d.connections() < 2 {
		time.Sleep(time.Millisecond)
	}
	read, ended := d.begin(devsw.BRead, 0, 0, make([]byte, 512))
	q, _ := first.request(true)
	d.write(second, 0)
	k.set(func() { k.generation++ })
	second.Close()
	nextLoss(t, lost)
	first.send(first.read(q, make([]byte, 512)))
	d.Wait(ended)
	if read.Error != devsw.ESTALE {
		t.Errorf("the read ends with %v, want ESTALE", read.Error)
	}
}

// TestFlushOfAServerWithoutFlushFailsAfterALoss, though there is nothing to ask the server for.
func TestFlushOfAServerWithoutFlushFailsAfterALoss(t *testing.T) {
	f := newFake(t, structuredMode)
	f.exp.flags = hasFlags
	k := &keeper{}
	r := newRig(t)
	lost := make(chan *LostError, 9)
	r.d.Notify(func(_ int, err error) {
		if e := (*LostError)(nil); errors.As(err, &e) {
			lost <- e
		}
	})
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	d.write(c, 0)
	if err := r.flush(d.Dev); err != nil {
		t.Errorf("a flush before it ends with %v", err)
	}
	k.set(func() { k.generation++ })
	c.Close()
	nextLoss(t, lost)
	if err := r.flush(d.Dev); !errors.Is(err, devsw.ESTALE) {
		t.Errorf("a flush ends with %v, want ESTALE", err)
	}
}

// TestOpenThatFailsIsTheEndOfALossAsWell: the guest has begun anew, whether or not it finds a
// server.
func TestOpenThatFailsIsTheEndOfALossAsWell(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k})
	d.write(c, 0)
	r.close(d.Dev)
	r.gone(d.Dev)
	k.set(func() { k.generation++; k.err = devsw.EINVAL })
	if err := r.table.BdevOpen(d.Dev, rw, devsw.IFBLK); !errors.Is(err, devsw.EINVAL) {
		t.Fatalf("it opens with %v", err)
	}
	r.close(d.Dev)
	k.set(func() { k.err = nil })
	d = &diskUnderTest{r.resume(d.Dev), r}
	d.write(f.next(), 0)
}

// TestOpenThatIsCancelledIsTheEndOfALossAsWell, while it waits for the answers that are owed to the
// one before.
func TestOpenThatIsCancelledIsTheEndOfALossAsWell(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k})
	d.write(c, 0)
	_, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 512))
	q, _ := c.request(true)
	r.close(d.Dev)
	d.Wait(done)
	opened := make(chan error, 1)
	go func() { opened <- r.table.BdevOpen(d.Dev, rw, devsw.IFBLK) }()
	for !r.claimed(d.Dev) {
		time.Sleep(time.Millisecond)
	}
	r.close(d.Dev)
	if err := <-opened; !errors.Is(err, devsw.ECANCELED) {
		t.Errorf("it opens with %v", err)
	}
	c.send(c.ok(q.cookie))
	r.gone(d.Dev)
	k.set(func() { k.generation++ })
	d = &diskUnderTest{r.resume(d.Dev), r}
	f.next()
	if s := r.d.State(0); s != (devsw.DiskState{}) {
		t.Errorf("the next one is told %+v", s)
	}
}

// TestServerOfOthersIsKnownByItsProcess: what another process had answered is lost; a connection to
// the same one is not.
func TestServerOfOthersIsKnownByItsProcess(t *testing.T) {
	for name, c := range map[string]struct {
		unflushed Unflushed
		restart   bool // by another process
		tcp       bool
		lost      bool
		perhaps   bool
	}{
		"another process":              {restart: true, lost: true},
		"another process, which keeps": {restart: true, unflushed: UnflushedKept},
		"the same process":             {},
		"the same process, by option":  {unflushed: UnflushedLost},
		"TCP":                          {tcp: true, perhaps: true},
		"TCP, which keeps":             {tcp: true, unflushed: UnflushedKept},
		"TCP, which loses":             {tcp: true, unflushed: UnflushedLost, lost: true},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, structuredMode)
			if c.tcp {
				f.listenTCP()
			}
			r := newRig(t)
			told := make(chan *LostError, 9)
			r.d.Notify(func(_ int, err error) {
				if e := (*LostError)(nil); errors.As(err, &e) {
					told <- e
				}
			})
			d, conn := f.disk(r, Config{ReconnectDelay: time.Minute, Unflushed: c.unflushed})
			d.write(conn, 0)
			if c.restart {
				sc := r.softc(d.Dev)
				sc.mu.Lock()
				sc.listener.start-- // as if that one had been
				sc.mu.Unlock()
			}
			conn.Close()
			conn = f.next()
			if c.lost || c.perhaps {
				if e := nextLoss(t, told); e.Perhaps != c.perhaps || !e.Foreign || e.Writes != 1 {
					t.Errorf("it is told as %+v", e)
				}
			}
			if c.lost {
				d.stale()
			} else {
				d.write(conn, 0)
			}
			if len(told) != 0 {
				t.Errorf("a loss is told: %v", <-told)
			}
		})
	}
}

func TestServerThatIsKilledWithUnflushedWritesFailsTheDisk(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "nbd")
	s := nbdkitAt(t, sock, "memory", "size=1M")
	r := newRig(t)
	dev := r.create(Config{URI: s.uri(), ReconnectDelay: 30 * time.Second})
	d := &diskUnderTest{r.open(dev), r}
	if b := d.Transfer(devsw.BWrite, 0, 0, pattern(4096, 1)); b.Error != 0 {
		t.Fatal(b.Error)
	}
	s.kill()
	read, done := d.begin(devsw.BRead, 0, 0, make([]byte, 4096))
	nbdkitAt(t, sock, "memory", "size=1M")
	d.Wait(done)
	if read.Error != devsw.ESTALE {
		t.Errorf("a read of what is lost ends with %v", read.Error)
	}
	d.stale()
	r.close(dev)
	d = &diskUnderTest{r.resume(dev), r}
	d.stale()
	r.close(dev)
	if b := r.open(dev).Transfer(devsw.BRead, 0, 0, make([]byte, 4096)); b.Error != 0 {
		t.Errorf("a read after a new beginning ends with %v", b.Error)
	}
}

func TestProcessStatIsRead(t *testing.T) {
	line := []byte("42 (a ) (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20")
	if comm, start := readStat(line); comm != "a ) (b" || start != 4711 {
		t.Errorf("%q, %d", comm, start)
	}
	for _, bad := range []string{"", "42", "42 )(", "42 (a) S 1"} {
		if _, start := readStat([]byte(bad)); start != 0 {
			t.Errorf("%q: %d", bad, start)
		}
	}
}

// TestFlushThatHasFailedStaysSo although nobody waited for it: a server tells of an error once.
func TestFlushThatHasFailedStaysSo(t *testing.T) {
	for name, code := range map[string]uint32{"error": 28, "none": 0} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t, structuredMode)
			r := newRig(t)
			d, c := f.disk(r, Config{})
			flushed := make(chan error, 1)
			go func() { flushed <- r.flush(d.Dev) }()
			q, _ := c.request(true)
			r.close(d.Dev)
			if err := <-flushed; !errors.Is(err, devsw.ECANCELED) {
				t.Errorf("the flush ends with %v", err)
			}
			opened := make(chan error, 1)
			go func() { opened <- r.table.BdevOpen(d.Dev, rw, devsw.IFBLK) }()
			for !r.claimed(d.Dev) {
				time.Sleep(time.Millisecond)
			}
			if len(f.conns) != 0 {
				t.Error("the client dials while the server owes the end of a flush")
			}
			want := []error{nil, nil}
			if code == 0 {
				c.send(c.ok(q.cookie))
			} else {
				c.send(c.chunk(replyFlagDone, replyError, q.cookie, errorChunk(code, "")))
				want = []error{devsw.ENOSPC, devsw.ENOSPC}
			}
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			c = f.next()
			for _, want := range want {
				if err := d.sync(c); !errors.Is(err, want) {
					t.Errorf("the next flush ends with %v, want %v", err, want)
				}
			}
			wanted := devsw.DiskState{FlushError: devsw.ToErrno(want[0])}
			if s, err := r.d.ClearState(0); s != wanted || err != nil {
				t.Errorf("cleared %+v, %v; want %+v", s, err, wanted)
			}
			if err := d.sync(c); err != nil {
				t.Errorf("the flush after that ends with %v", err)
			}
		})
	}
}

func TestServerWithoutFlushIsWarnedOf(t *testing.T) {
	for flags, warned := range map[uint16]bool{
		0: true, sendFlush: false, sendFUA: false, sendFlush | sendFUA: false, readOnly: false,
	} {
		f := newFake(t, structuredMode)
		f.exp.flags = hasFlags | flags
		r := newRig(t)
		r.create(Config{URI: f.uri()})
		list, err := r.d.Warnings(0)
		told := len(list) == 1 && strings.Contains(list[0], "'flush = true'")
		if err != nil || told != warned || len(list) > 1 {
			t.Errorf("flags %#x: %q, %v", flags, list, err)
		}
	}
}

// TestServerThatHasOnlyFUAMakesEachWriteStable, so that a flush has nothing to do and nothing is
// lost.
func TestServerThatHasOnlyFUAMakesEachWriteStable(t *testing.T) {
	f := newFake(t, structuredMode)
	f.exp.flags = hasFlags | sendFUA | sendTrim | sendWriteZeroes
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	b, done := d.begin(devsw.BWrite, 0, 0, make([]byte, 512))
	ended := make(chan error, 2)
	go func() {
		<-done
		ended <- d.r.table.BdevDiscard(d.Dev, 0, 512)
		zr := &devsw.ZeroRange{N: 512}
		ended <- d.r.table.BdevIoctl(d.Dev, devsw.DIOCWRITEZEROES, zr, devsw.FWRITE)
	}()
	for range 3 {
		q, _ := c.request(true)
		if q.flags&cmdFlagFUA == 0 {
			t.Errorf("the server gets %+v, without FUA", q)
		}
		c.send(c.ok(q.cookie))
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if err := r.flush(d.Dev); err != nil || b.Error != 0 {
		t.Errorf("write %v, flush %v", b.Error, err)
	}
	k.set(func() { k.generation++ })
	c.Close()
	d.write(f.next(), 0)
}

func TestWarningsTellOfAServerThatIsGoneAndOfALoss(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	check := func(want string) {
		t.Helper()
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			list, err := r.d.Warnings(0)
			got := strings.Join(list, "; ")
			if err == nil && (got == "") == (want == "") && strings.Contains(got, want) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("warnings %q, %v; want %q", list, err, want)
			}
		}
	}
	check("")
	d.write(c, 0)
	k.set(func() { k.err = errors.New("out to lunch") })
	c.Close()
	check("the server is gone: out to lunch")
	k.set(func() { k.err = nil; k.generation++ })
	f.next()
	check("up to 1 write that it had answered and not been asked to flush are lost")
	r.close(d.Dev)
	check("are lost")
	d.Disk = r.open(d.Dev)
	f.next()
	check("")
}

// TestStateOfADiskIsHandedOn to another process, which is another driver here.
func TestStateOfADiskIsHandedOn(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	if s := r.d.State(0); s != (devsw.DiskState{}) {
		t.Errorf("at first it is %+v", s)
	}
	d.write(c, 0)
	k.set(func() { k.generation++ })
	c.Close()
	f.next()
	d.stale()
	lost := devsw.DiskState{Unflushed: true}
	if s := r.d.State(0); s != lost {
		t.Errorf("after a loss it is %+v", s)
	}
	r.close(d.Dev)
	if s := r.d.State(0); s != lost {
		t.Errorf("after a close it is %+v", s)
	}

	// Whoever opens it sees to the guest, which may be another one.
	next := newRig(t)
	o, c := f.disk(next, Config{})
	failed := devsw.DiskState{FlushError: devsw.EIO}
	next.d.SetState(0, devsw.DiskState{FlushError: devsw.EIO, Unflushed: true})
	o.write(c, 0)
	if s := next.d.State(0); s != failed {
		t.Errorf("when it was told of both it is %+v", s)
	}
	if err := o.sync(c); !errors.Is(err, devsw.EIO) {
		t.Errorf("its flush ends with %v", err)
	}
}

// TestStateOfADiskWhoseFlushHasFailedIsTakenOver from a predecessor: its server told it that, and
// tells nobody again.
func TestStateOfADiskWhoseFlushHasFailedIsTakenOver(t *testing.T) {
	f := newFake(t, structuredMode)
	r := newRig(t)
	d, c := f.disk(r, Config{})
	failed := devsw.DiskState{FlushError: devsw.ENOSPC}
	r.d.SetState(0, failed)
	if s := r.d.State(0); s != failed {
		t.Errorf("it is %+v, want %+v", s, failed)
	}
	if err := d.sync(c); !errors.Is(err, devsw.ENOSPC) {
		t.Errorf("a flush ends with %v, want %v", err, devsw.ENOSPC)
	}
}
