package virtioblk

import (
	"bytes"
	"cmp"
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// keeper is a driver that does not complete what it is told to hold, cancelled or not: when it
// goes on, it uses the memory that it was given. While it has the Buf of an odd block, Data is
// memory of its own, as a driver's is that bounces.
type keeper struct {
	mu    sync.Mutex
	hold  bool
	fill  byte // what reads give
	kept  []*devsw.Buf
	given map[*devsw.Buf][][]byte // the memory of those whose Data is the driver's
	wrote map[int64][]byte        // by block: what the last write there had
	order []int64                 // the blocks that were written

	flush   chan struct{} // where it is set, a flush waits for it, and then ends well
	flushes atomic.Int64
	cancel  func() // where it is set, d_cancel calls it
}

func (d *keeper) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	ok := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
	b := &devsw.Bdevsw{Name: "keeper", Flag: devsw.DDisk | devsw.DMPSafe, Open: ok, Close: ok, Cancel: ok, Strategy: d.strategy}
	if d.cancel != nil {
		b.Cancel = func(devsw.Dev, devsw.Flag, devsw.Mode) error { d.cancel(); return nil }
	}
	if d.flush != nil {
		b.Ioctl = func(devsw.Dev, devsw.Cmd, any, devsw.Flag) error {
			d.flushes.Add(1)
			<-d.flush
			return nil
		}
	}
	return attach(t, table, b)
}

// attach attaches a driver of one disk of diskSize bytes.
func attach(t testing.TB, table *devsw.Table, b *devsw.Bdevsw) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	t.Helper()
	bmajor, _, err := table.Attach(b.Name, b, devsw.NODEVMAJOR, &devsw.Cdevsw{Name: b.Name}, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bmajor), 0), func() (devsw.DiskInfo, error) {
		return devsw.DiskInfo{Size: diskSize, SectorSize: 512}, nil
	}
}

func (d *keeper) strategy(b *devsw.Buf) {
	d.mu.Lock()
	if d.hold {
		d.kept = append(d.kept, b)
		if b.Blkno%2 != 0 {
			if d.given == nil {
				d.given = make(map[*devsw.Buf][][]byte)
			}
			d.given[b], b.Data = b.Data, [][]byte{make([]byte, b.Bcount)}
		}
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	d.transfer(b)
}

func (d *keeper) transfer(b *devsw.Buf) {
	p := make([]byte, b.Bcount)
	d.mu.Lock()
	if given, ok := d.given[b]; ok {
		b.Data = given
		delete(d.given, b)
	}
	if b.Op == devsw.BRead {
		copy(p, bytes.Repeat([]byte{d.fill}, len(p)))
	}
	d.mu.Unlock()
	if e := b.MoveAt(p, 0); e != 0 {
		b.Fail(e)
		return
	}
	if b.Op == devsw.BWrite {
		d.mu.Lock()
		d.wrote[b.Blkno] = p
		d.order = append(d.order, b.Blkno)
		d.mu.Unlock()
	}
	b.Resid = 0
	b.Biodone()
}

// release lets what is held go on, and holds no more.
func (d *keeper) release() {
	d.mu.Lock()
	kept := d.kept
	d.kept, d.hold = nil, false
	d.mu.Unlock()
	for _, b := range kept {
		d.transfer(b)
	}
}

// end ends the transfers of one block with e, on the calling goroutine.
func (d *keeper) end(block int64, e devsw.Errno) {
	d.mu.Lock()
	var all []*devsw.Buf
	d.kept = slices.DeleteFunc(d.kept, func(b *devsw.Buf) bool {
		if b.Blkno == block {
			all = append(all, b)
		}
		return b.Blkno == block
	})
	d.mu.Unlock()
	for _, b := range all {
		if e == 0 {
			d.transfer(b)
		} else {
			d.mu.Lock()
			if given, ok := d.given[b]; ok {
				b.Data = given
				delete(d.given, b)
			}
			d.mu.Unlock()
			b.Fail(e)
		}
	}
}

// written gives what the last write to a block had, and the blocks of all writes in order.
func (d *keeper) written(block int64) (data []byte, order []int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.wrote[block], slices.Clone(d.order)
}

func (d *keeper) await(t testing.TB, n int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
		d.mu.Lock()
		got := len(d.kept)
		d.mu.Unlock()
		if got == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d transfers are held, want %d", got, n)
		}
	}
}

// write adds a write of a sector full of v to ring q.
func (w *bench) write(q int, block uint64, v byte) (data, status virtqtest.Seg) {
	w.t.Helper()
	data, status = w.buffer(512), w.buffer(1)
	w.bytes(status)[0] = 0xff
	copy(w.bytes(data), bytes.Repeat([]byte{v}, 512))
	if _, ok := w.rings[q].Add([]virtqtest.Seg{w.header(tOut, block), data}, []virtqtest.Seg{status}); !ok {
		w.t.Fatal("no room")
	}
	w.check(w.rings[q].Notify())
	return data, status
}

// TestATransferThatNeverEndsIsFenced, whatever ends the rings: the stop is answered; what the
// storage reads and writes when it goes on is a copy of the guest's memory as it was then; and the
// next start waits for it, so that nothing newer is overtaken.
func TestATransferThatNeverEndsIsFenced(t *testing.T) {
	byBase := func(w *bench) { w.stopRings() }
	byHangUp := func(w *bench) { w.hangUp() }
	for name, c := range map[string]struct {
		end       func(*bench)
		knows     vhostuser.ProtocolFeatures
		suspended bool
		lost      bool // the region goes as well
	}{
		"base, suspending":       {byBase, everything, true, false},
		"base, failing":          {byBase, noMigration, false, false},
		"base, no region":        {byBase, noInflight, false, false},
		"disconnect, suspending": {byHangUp, everything, true, false},
		"disconnect, failing":    {byHangUp, noInflight, false, false},
		"reset":                  {func(w *bench) { w.check(w.f.ResetDevice()) }, everything, false, true},
		"another owner":          {func(w *bench) { w.check(w.f.SetOwner()); w.check(w.f.Barrier()) }, everything, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			eachMode(t, func(t *testing.T, mode reactor.Mode) {
				const queues = 2
				d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
				logged := make(chan string, 100)
				w, region := newSuspendBench(t, mode, queues, d.disk, c.knows, func(conf *benchConfig) {
					conf.CancelAfter = time.Millisecond
					conf.Migratable = true
					conf.Log = func(msg string, _ error) { logged <- msg }
				})
				var reads, writes, data [queues]virtqtest.Seg
				for q := range queues {
					reads[q] = w.readAt(q, uint64(q))
					data[q], writes[q] = w.write(q, uint64(10+q), byte(1+q))
				}
				d.await(t, 2*queues)
				c.end(w)
				told := 0
				for len(logged) > 0 {
					if strings.Contains(<-logged, "2 reads and 2 writes: they were fenced") {
						told++
					}
				}
				if told != 1 {
					t.Errorf("the fence was told %d times", told)
				}
				if got := w.dev.Status(); got.State != StateClosing || got.Fenced != 2*queues {
					t.Errorf("the device is %v, with %d transfers fenced", got.State, got.Fenced)
				}
				w.watch(d.release)
				w.waitClosed()
				if got := w.dev.Status(); got.State != StateClosed || got.Fenced != 0 {
					t.Errorf("after all that the device is %v, with %d transfers fenced", got.State, got.Fenced)
				}
				want, used := uint8(statusIOErr), 2
				if c.suspended {
					want, used = 0xff, 0
				}
				for q, r := range w.rings {
					if late, _ := d.written(int64(10 + q)); !bytes.Equal(late, bytes.Repeat([]byte{byte(1 + q)}, 512)) {
						t.Errorf("ring %d: what was written late is not what the guest had when the ring was stopped: %#x...", q, late[:8])
					}
					if rd, wr := w.bytes(reads[q])[0], w.bytes(writes[q])[0]; rd != want || wr != want {
						t.Errorf("ring %d: the read has status %#x, the write %#x, want %#x", q, rd, wr, want)
					}
					if got := int(r.UsedIdx()); got != used {
						t.Errorf("ring %d: %d were used, want %d", q, got, used)
					}
				}
				if c.lost {
					return
				}
				if w.f == nil {
					w.again(c.knows)
					w.restart(region)
				} else {
					w.startRings(region)
				}
				for q, r := range w.rings {
					for range 2 {
						if _, _, err := r.Wait(); err != nil {
							t.Fatal(err)
						}
					}
					if rd, wr := w.bytes(reads[q])[0], w.bytes(writes[q])[0]; c.suspended && (rd != statusOK || wr != statusOK) {
						t.Errorf("ring %d: begun again, the read has status %#x, the write %#x", q, rd, wr)
					}
					in := w.buffer(512)
					if st, _ := w.do(q, tIn, 0, nil, []virtqtest.Seg{in}); st != statusOK || w.bytes(in)[511] != 0xcc {
						t.Errorf("ring %d: a read after all that has status %d, and gives %#x", q, st, w.bytes(in)[511])
					}
				}
			})
		})
	}
}

// TestTheNextStartWaitsForWhatWasFenced: what the guest writes then is not overtaken, over several
// starts and stops.
func TestTheNextStartWaitsForWhatWasFenced(t *testing.T) {
	d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
	w, _ := newSuspendBench(t, reactor.ModeURing, 1, d.disk, noInflight, nil)
	w.write(0, 5, 1)
	d.await(t, 1)
	w.stopRings()
	for range 3 {
		w.startRings(nil)
		w.stopRings()
	}
	w.startRings(nil)
	w.rings[0].Used()
	_, status := w.write(0, 5, 2)
	time.Sleep(2 * time.Millisecond) // time in which it might wrongly be begun
	d.await(t, 1)
	d.release()
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Fatal(err, w.bytes(status)[0])
	}
	if data, order := d.written(5); !slices.Equal(order, []int64{5, 5}) || data[0] != 2 {
		t.Errorf("blocks %v were written, and block 5 has %d", order, data[0])
	}
}

// TestARingThatGoesOnIsNotFencedOut: one ring is stopped alone, and storage gives nothing back.
// The other one's requests, which hang as well, are begun again when it does, in the memory that
// the guest has.
func TestARingThatGoesOnIsNotFencedOut(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xaa, wrote: map[int64][]byte{}}
		w, _ := newSuspendBench(t, mode, 2, d.disk, noInflight, func(c *benchConfig) { c.CancelAfter, c.StopGap = time.Millisecond, time.Millisecond })
		gone := w.readAt(0, 1)
		in, status := w.buffer(512), w.buffer(1)
		w.bytes(status)[0] = 0xff
		w.rings[1].Add([]virtqtest.Seg{w.header(tIn, 2)}, []virtqtest.Seg{in, status})
		w.check(w.rings[1].Notify())
		flush := w.request(1, tFlush)
		data, written := w.write(1, 3, 7)
		d.await(t, 3)
		w.check(w.rings[0].Stop())
		if got := w.bytes(gone)[0]; got != statusIOErr {
			t.Errorf("the read of the ring that was stopped has status %#x", got)
		}
		// The guest may change a write's memory before it has ended. What is begun again sees it;
		// the late one does not.
		copy(w.bytes(data), bytes.Repeat([]byte{8}, 512))
		d.mu.Lock()
		d.fill = 0xbb
		d.mu.Unlock()
		d.release()
		for range 3 {
			if _, _, err := w.rings[1].Wait(); err != nil {
				t.Fatal(err)
			}
		}
		for what, s := range map[string]virtqtest.Seg{"read": status, "flush": flush, "write": written} {
			if got := w.bytes(s)[0]; got != statusOK && what != "flush" { // the keeper has no flush
				t.Errorf("the %s has status %#x", what, got)
			}
		}
		if got := w.bytes(in)[0]; got != 0xbb {
			t.Errorf("the guest reads %#x", got)
		}
		if last, order := d.written(3); last[0] != 8 || !slices.Equal(order, []int64{3, 3}) {
			t.Errorf("block 3 has %d, after writes to %v", last[0], order)
		}
		w.check(w.rings[0].Start())
		w.rings[0].Used()
		if st, _ := w.do(0, tIn, 9, nil, []virtqtest.Seg{in}); st != statusOK || w.bytes(in)[511] != 0xbb {
			t.Errorf("status %d, the guest reads %#x", st, w.bytes(in)[511])
		}
	})
}

// TestAnOperationThatEndsWhileAFenceIsPutUpIsAnswered: it has ended, and the reactor does not know
// yet. The byte for its status is in the guest's memory, and not in what is fenced.
func TestAnOperationThatEndsWhileAFenceIsPutUpIsAnswered(t *testing.T) {
	d := &keeper{hold: true, wrote: map[int64][]byte{}, flush: make(chan struct{})}
	fenced := make(chan struct{})
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, noInflight, func(c *benchConfig) {
		c.CancelAfter, c.StopGap = time.Millisecond, time.Millisecond
		c.Log = func(line string, _ error) {
			if strings.Contains(line, "were fenced") {
				close(fenced)
			}
		}
	})
	w.readAt(0, 1)
	status := w.request(1, tFlush)
	d.await(t, 1)
	var o *operation
	for _, q := range w.dev.startedQueues() {
		if q.vq.Index() == 1 {
			for o == nil || d.flushes.Load() == 0 {
				q.vq.Do(func() {
					for _, r := range q.requests {
						o = cmp.Or(o, r.op)
					}
				})
			}
		}
	}
	if !o.settled.CompareAndSwap(false, true) {
		t.Fatal("the flush has ended")
	}
	stopped := make(chan error)
	go func() { stopped <- w.rings[0].Stop() }()
	select {
	case <-fenced:
	case <-time.After(5 * closeWait):
	}
	o.q.vq.Post(func() { o.told(nil) })
	w.check(<-stopped)
	if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Errorf("%v; the flush has status %#x", err, w.bytes(status)[0])
	}
	close(d.flush)
	d.release()
}

// TestARingThatWasStartedSinceIsNotHeldByAFence: it waits for the close in which another ring's
// transfer hangs, and nobody tells it to go on but the open that comes then.
func TestARingThatWasStartedSinceIsNotHeldByAFence(t *testing.T) {
	d := &keeper{hold: true, wrote: map[int64][]byte{}, flush: make(chan struct{})}
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, noInflight, func(c *benchConfig) {
		c.CancelAfter, c.StopGap = time.Millisecond, time.Millisecond
	})
	w.readAt(1, 1)
	w.request(0, tFlush)
	d.await(t, 1)
	for d.flushes.Load() == 0 {
		runtime.Gosched()
	}
	// The flush is no transfer, so that nothing is fenced yet.
	w.check(w.rings[0].Stop())
	w.check(w.rings[0].Start())
	w.rings[0].Used()
	status := w.readAt(0, 2)
	w.check(w.rings[1].Stop())
	close(d.flush)
	d.release()
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Errorf("%v; the read has status %#x", err, w.bytes(status)[0])
	}
}

// TestTransfersThatEndWhileTheyAreFencedEndOnce, at whatever moment they do.
func TestTransfersThatEndWhileTheyAreFencedEndOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("it fences many times")
	}
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for i := range 12 {
			d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
			w, region := newSuspendBench(t, mode, 2, d.disk, everything, nil)
			var status []virtqtest.Seg
			for b := range uint64(20) {
				status = append(status, w.readAt(int(b%2), b))
			}
			d.await(t, 20)
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				// Around the time at which the fence is put up.
				time.Sleep(closeWait + time.Duration(i-6)*300*time.Microsecond)
				d.release()
			}()
			w.stopRings()
			<-stopped
			d.mu.Lock()
			d.hold = false
			d.mu.Unlock()
			w.startRings(region)
			for _, r := range w.rings {
				for range 10 { // those that ended before the stop are among them
					if _, _, err := r.Wait(); err != nil {
						t.Fatal(err)
					}
				}
			}
			for b := range 20 {
				if got := w.bytes(status[b])[0]; got != statusOK {
					t.Errorf("request %d has status %#x", b, got)
				}
			}
			for q, r := range w.rings {
				if got := r.UsedIdx(); got != 10 {
					t.Errorf("ring %d has completed %d requests, want 10", q, got)
				}
			}
			w.close()
		}
	})
}

// TestATransferThatCannotBeFencedHoldsTheReply, since it writes into the guest's memory whenever
// it ends; what else hangs with it does not wait for its own end then.
func TestATransferThatCannotBeFencedHoldsTheReply(t *testing.T) {
	f := newFaulty(t, mdDisk(md.Config{Size: diskSize}), "hang:read:uncancellable", "hang:flush:uncancellable")
	logged := make(chan string, 100)
	w, _ := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, func(c *benchConfig) {
		info := c.Info
		c.Info = func() (devsw.DiskInfo, error) {
			i, err := info()
			i.Pinned = true
			return i, err
		}
		c.Log = func(msg string, _ error) { logged <- msg }
	})
	read, flush := w.request(0, tIn), w.request(0, tFlush)
	f.waitHeld(2)
	stopped := make(chan error, 1)
	go func() { stopped <- w.rings[0].Stop() }()
	time.Sleep(3 * closeWait) // time in which a wrong answer would come
	if len(stopped) != 0 {
		t.Fatal("the ring was answered with a read in flight")
	}
	told := 0
	for len(logged) > 0 {
		if strings.Contains(<-logged, "cannot be fenced") {
			told++
		}
	}
	if told != 1 {
		t.Errorf("that it cannot be fenced was told %d times", told)
	}
	rule := 1
	f.control(fault.FAULTRELEASE, &rule)
	w.check(<-stopped)
	w.watch(func() { f.control(fault.FAULTRELEASE, nil) })
	if r, fl := w.bytes(read)[0], w.bytes(flush)[0]; r != statusOK || fl != 0xff {
		t.Errorf("the read has status %#x, want OK, and the flush %#x, want none", r, fl)
	}
	if got := w.ring(0).Suspended; got != 1 {
		t.Errorf("%d are suspended, want the flush", got)
	}
}

// TestAQueueWithNothingStuckFencesNobody: what it has waited for may have ended a moment ago, and
// another queue have opened the device anew since. That one is not parked, so that what was split
// off it would be kept for good.
func TestAQueueWithNothingStuckFencesNobody(t *testing.T) {
	d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
	w, _ := newSuspendBench(t, reactor.ModeURing, 2, d.disk, noInflight, nil)
	read := w.readAt(1, 0)
	d.await(t, 1)
	var idle *queue
	w.dev.mu.Lock()
	for q := range w.dev.queues {
		if q.vq.Index() == 0 {
			idle = q
		}
	}
	w.dev.mu.Unlock()
	w.dev.fence(idle, true)
	if n := w.dev.Status().Fenced; n != 0 {
		t.Errorf("%d transfers of the other queue were fenced", n)
	}
	d.release()
	if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(read)[0] != statusOK {
		t.Error(err, w.bytes(read)[0])
	}
}

// TestAFenceTakesTheOperationsOfAnotherRingAlong: they use nothing of the guest's memory but the
// byte for the status. That, too, is to be in the memory that the guest has when they have ended.
func TestAFenceTakesTheOperationsOfAnotherRingAlong(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xaa, wrote: map[int64][]byte{}, flush: make(chan struct{})}
		w, _ := newSuspendBench(t, mode, 2, d.disk, noInflight, func(c *benchConfig) {
			c.CancelAfter, c.StopGap = time.Millisecond, time.Millisecond
		})
		w.readAt(0, 1)
		status := w.request(1, tFlush)
		d.await(t, 1)
		w.until("the flush has begun", func() bool { return d.flushes.Load() == 1 })
		w.check(w.rings[0].Stop())
		if got := w.dev.Status(); got.Fenced != 1 {
			t.Fatalf("%d transfers are fenced, want 1", got.Fenced)
		}
		close(d.flush)
		d.release()
		if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(status)[0] != statusOK {
			t.Errorf("%v; the flush has status %#x", err, w.bytes(status)[0])
		}
		if n := d.flushes.Load(); n != 2 {
			t.Errorf("the flush was begun %d times, want 2", n)
		}
	})
}

// TestARingThatGoesOnLosesNothing, at whatever moment storage goes on while the other one is
// stopped.
func TestARingThatGoesOnLosesNothing(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for i := range 6 {
			d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
			w, _ := newSuspendBench(t, mode, 2, d.disk, noInflight, func(c *benchConfig) { c.CancelAfter, c.StopGap = time.Millisecond, time.Millisecond })
			w.readAt(0, 0)
			var status []virtqtest.Seg
			for b := range uint64(10) {
				status = append(status, w.readAt(1, b))
			}
			d.await(t, 11)
			released := make(chan struct{})
			go func() {
				defer close(released)
				// Around the time at which the fence is put up.
				time.Sleep(cancelFor*cancelEvery + closeWait + time.Duration(i)*time.Millisecond)
				d.release()
			}()
			w.check(w.rings[0].Stop())
			<-released
			for range 10 {
				if _, _, err := w.rings[1].Wait(); err != nil {
					t.Fatal(err)
				}
			}
			for b := range 10 {
				if got := w.bytes(status[b])[0]; got != statusOK {
					t.Errorf("request %d has status %#x", b, got)
				}
			}
			w.close()
		}
	})
}

// TestAFenceLeavesOutWhatAFaultHasLost: a request whose header was cut off is nobody's, when a
// transfer that hangs is fenced.
func TestAFenceLeavesOutWhatAFaultHasLost(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
		w, _ := newSuspendBench(t, mode, 1, d.disk, everything, nil)
		far := must(virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 16}))(t)
		defer far.Close()
		region := vhostuser.MemoryRegion(far.Regions()[0])
		region.UserAddr += 1 << 40
		w.check(w.f.AddMemReg(region, far.FD()))
		w.readAt(0, 1)
		d.await(t, 1)
		w.check(syscall.Ftruncate(far.FD(), 0))
		lost := virtqtest.Seg{Addr: region.GuestPhys, Len: headerSize}
		w.rings[0].Add([]virtqtest.Seg{lost}, []virtqtest.Seg{w.buffer(512), w.buffer(1)})
		w.check(w.rings[0].Notify())
		var fault *vhostuser.FaultError
		if err := <-w.ended; !errors.As(err, &fault) {
			t.Errorf("the session ended with %v", err)
		}
		w.ended <- nil
		w.hangUp()
		if got := w.dev.Status(); got.Fenced != 1 {
			t.Errorf("%d transfers are fenced, want 1", got.Fenced)
		}
		w.watch(d.release)
	})
}

// TestWhatIsTracedOfATransferIsNobodyElses: the driver returns one while it is fenced, and what is
// told of it then does not touch the request, which is another one's by now.
func TestWhatIsTracedOfATransferIsNobodyElses(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
		var told [2]atomic.Bool
		var of Request
		w, _ := newSuspendBench(t, mode, 1, d.disk, noInflight, func(c *benchConfig) {
			c.CancelAfter = time.Millisecond
			c.Trace = func(r Request) {
				if r.Cancelled {
					of = r
					told[0].Store(true)
					for !told[1].Load() {
						time.Sleep(time.Millisecond)
					}
				}
			}
		})
		w.readAt(0, 7)
		d.await(t, 1)
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.end(7, devsw.ECANCELED)
		}()
		w.until("the driver returns it", told[0].Load)
		w.stopRings()
		told[1].Store(true)
		<-done
		if of.Type != tIn || of.Sector != 7 || of.Bytes != 512 {
			t.Errorf("what was told of is %v", of)
		}
		w.waitClosed()
	})
}

// TestTheTraceTellsOfEachRequestThatFails: also of one that fails in the place of another one that
// the driver has told to have ended.
func TestTheTraceTellsOfEachRequestThatFails(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		d := &keeper{hold: true, fill: 0xcc, wrote: map[int64][]byte{}}
		d.cancel = func() {
			d.end(2, devsw.ECANCELED)
			d.end(3, 0)
		}
		var mu sync.Mutex
		var answered []uint64
		w, _ := newSuspendBench(t, mode, 2, d.disk, noInflight, func(c *benchConfig) {
			c.CancelAfter, c.StopGap = time.Millisecond, time.Hour
			c.Trace = func(r Request) {
				if r.Answered {
					mu.Lock()
					defer mu.Unlock()
					answered = append(answered, r.Sector)
				}
			}
		})
		w.readAt(0, 1)
		cancelled := w.readAt(1, 2)
		w.readAt(1, 3)
		d.await(t, 3)
		w.check(w.rings[0].Stop())
		w.check(w.rings[1].Stop())
		if st := w.bytes(cancelled)[0]; st != statusIOErr {
			t.Errorf("the read that was cancelled has status %#x", st)
		}
		mu.Lock()
		if !slices.Equal(answered, []uint64{1, 2}) {
			t.Errorf("the trace tells that the reads of %v were answered, want those of 1 and 2", answered)
		}
		mu.Unlock()
		w.watch(d.release)
		w.waitClosed()
	})
}
