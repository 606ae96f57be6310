package nbd

import (
	"context"
	"errors"
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
func (r *rig) gone(dev devsw.Dev) { <-r.d.Get(dev).last.Load().done }

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
			if err := r.d.Get(dev).retire(); err != nil {
				t.Error(err)
			}
			k.check(t, false, 2, 1)
		})
	}
}

// TestServerThatAnswersInTimeIsNotKilled: by then it is the next open's.
func TestServerThatAnswersInTimeIsNotKilled(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{killed: func() {}}
	r := newRig(t)
	dev := r.create(Config{URI: f.uri(), Server: k, KillAfter: 10 * time.Millisecond})
	f.next()
	for range 3 {
		r.open(dev)
		f.next()
		r.close(dev)
	}
	r.gone(dev)
	time.Sleep(30 * time.Millisecond) // for one that does it nevertheless
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

// TestFlushTellsOfWritesThatTheServerHasTakenWithIt, and of those alone.
func TestFlushTellsOfWritesThatTheServerHasTakenWithIt(t *testing.T) {
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
				forgotten := make(chan error, 9)
				r.d.Notify(func(_ int, err error) {
					if errors.Is(err, ErrForgotten) {
						forgotten <- err
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
					d = &diskUnderTest{r.open(d.Dev), r}
				}
				c.Close()
				c = f.next()
				for range 2 {
					if err := d.sync(c); errors.Is(err, devsw.EIO) != tt.lost || err != nil && !tt.lost {
						t.Errorf("the flush ends with %v", err)
					}
				}
				d.write(c, devsw.BMediaFUA)
				if len(forgotten) != map[bool]int{true: 1}[tt.lost] {
					t.Errorf("the loss is told %d times", len(forgotten))
				}
				r.close(d.Dev)
				r.open(d.Dev)
				if err := d.sync(f.next()); err != nil {
					t.Errorf("the flush of the next open ends with %v", err)
				}
			})
		}
	}
}

func TestLossThatNoFlushWasToldOfIsToldAfterTheNextOpen(t *testing.T) {
	f := newFake(t, structuredMode)
	k := &keeper{}
	r := newRig(t)
	d, c := f.disk(r, Config{Server: k, ReconnectDelay: time.Minute})
	d.write(c, 0)
	k.set(func() { k.generation++ })
	c.Close()
	f.next()
	for d.connections() == 0 {
		time.Sleep(time.Millisecond)
	}
	r.close(d.Dev)
	r.open(d.Dev)
	c = f.next()
	for _, want := range []error{devsw.EIO, nil} {
		if err := d.sync(c); !errors.Is(err, want) {
			t.Errorf("the flush ends with %v, want %v", err, want)
		}
	}
}

// TestErrorOfAFlushThatWasGivenUpIsTheNextOnes: a server tells of an error once.
func TestErrorOfAFlushThatWasGivenUpIsTheNextOnes(t *testing.T) {
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
				want[0] = devsw.ENOSPC
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
		})
	}
}
