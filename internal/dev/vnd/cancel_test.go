package vnd

import (
	"bytes"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
	"vdev/internal/sys"
	"vdev/internal/test/disktest"
)

func TestCancelInterruptsWhatIsInProgressAndWhatBeginsLater(t *testing.T) {
	for _, direct := range []bool{false, true} {
		r := newRig(t)
		dev := r.create(Config{Path: newFile(t, make([]byte, 64<<10)), Direct: direct})
		m := r.open(dev)
		// Two contexts, and one that this device has never been used from.
		aios := []*disktest.AIO{new(disktest.AIO), new(disktest.AIO)}
		unused := new(disktest.AIO)
		var (
			bufs  []*devsw.Buf
			dones []chan struct{}
		)
		for i := range 6 {
			m.AIO = aios[i%2]
			// Under O_DIRECT the odd ones go through memory of the driver's.
			b, done := m.Buf(devsw.Op(i/2%2), 0, int64(i)*4096, sys.AlignedBuffer(4096+i%2, 4096)[i%2:])
			r.table.BdevStrategy(b)
			bufs, dones = append(bufs, b), append(dones, done)
		}
		aios[0].Step(0) // one has ended before
		if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		for _, a := range aios {
			if len(a.Cancels()) == 0 {
				t.Error("a context was not told")
			}
			a.Drain()
		}
		if len(unused.Cancels()) != 0 {
			t.Error("a context was told that had nothing to do with it")
		}
		for i, b := range bufs {
			<-dones[i]
			if want := devsw.ECANCELED; (i == 0) != (b.Error == 0) || i != 0 && (b.Error != want || b.Resid != 4096) {
				t.Errorf("transfer %d: error %v, resid %d", i, b.Error, b.Resid)
			}
		}
		m.AIO = unused
		for i := range int64(2) {
			b, done := m.Buf(devsw.BWrite, 0, 0, make([]byte, 512+i*512))
			r.table.BdevStrategy(b)
			select {
			case <-done:
			default:
				t.Error("a transfer that begins after the cancel has not ended at once")
			}
			if b.Error != devsw.ECANCELED {
				t.Errorf("a transfer that begins after the cancel: error %v", b.Error)
			}
		}
		for cmd, data := range map[devsw.Cmd]any{
			devsw.DIOCCACHESYNC:   nil,
			devsw.DIOCWRITEZEROES: &devsw.ZeroRange{N: 4096},
		} {
			if err := r.table.BdevIoctl(dev, cmd, data, rw); err != devsw.ECANCELED {
				t.Errorf("%v after the cancel: %v, want ECANCELED", cmd, err)
			}
		}
		if err := r.table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		if err := r.tryOpen(dev); err != nil {
			t.Fatal(err)
		}
		// What a cancel of the last open still does hits nobody.
		b, done := m.Buf(devsw.BRead, 0, 0, make([]byte, 4096))
		r.table.BdevStrategy(b)
		for _, done := range aios[0].Cancels() {
			unused.CancelAll(done)
		}
		m.Wait(done)
		if b.Error != 0 {
			t.Errorf("after opening again: %v", b.Error)
		}
	}
}

// TestOneTransferIsInterruptedWhereverItIs: with an AIO, waiting for a block, or for one of the
// driver's threads. The device stays open, and the others go on.
func TestOneTransferIsInterruptedWhereverItIs(t *testing.T) {
	for _, direct := range []bool{false, true} {
		r := newRig(t)
		dev := r.create(Config{Path: newFile(t, make([]byte, 64<<10)), Direct: direct})
		m := r.open(dev)
		if direct {
			r.image(dev).impose(4096)
		}
		aio := new(disktest.AIO)
		m.AIO = aio
		var (
			bufs  []*devsw.Buf
			dones []chan struct{}
		)
		// Under O_DIRECT these are of one block: the others wait for the first, and the last for
		// nothing but the second.
		for _, place := range []struct{ off, n int64 }{{0, 512}, {512, 4096}, {4608, 512}} {
			b, done := m.Buf(devsw.BWrite, 0, place.off, sys.AlignedBuffer(int(place.n), 4096))
			r.table.BdevStrategy(b)
			bufs, dones = append(bufs, b), append(dones, done)
		}
		// the second time it has ended, or is about to
		for _, b := range []*devsw.Buf{bufs[1], bufs[1]} {
			if err := r.table.BdevCancelBuf(b); err != nil {
				t.Fatal(err)
			}
		}
		aio.Drain()
		for i, b := range bufs {
			m.Wait(dones[i])
			want, left := devsw.Errno(0), int64(0)
			if i == 1 {
				want, left = devsw.ECANCELED, b.Bcount
			}
			if b.Error != want || b.Resid != left {
				t.Errorf("direct %v: transfer %d: error %v, resid %d", direct, i, b.Error, b.Resid)
			}
		}
		if err := r.table.BdevCancelBuf(&devsw.Buf{Dev: dev, AIO: aio}); err != nil {
			t.Errorf("cancel of a transfer that is not there: %v", err)
		}
	}
}

// racer is an AIO that lets the device be cancelled at the moment a transfer is handed to it,
// before it has it.
type racer struct {
	disktest.AIO
	cancel func()
}

func (r *racer) ReadAt(b *devsw.Buf, fd int, off int64, done devsw.AIODone) {
	r.cancel()
	r.AIO.ReadAt(b, fd, off, done)
}

func TestATransferThatCancelJustMissedIsInterrupted(t *testing.T) {
	for _, direct := range []bool{false, true} {
		r := newRig(t)
		dev := r.create(Config{Path: newFile(t, make([]byte, 8192)), Direct: direct})
		m := r.open(dev)
		a := &racer{cancel: func() {
			if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
				t.Error(err)
			}
		}}
		b, done := m.Buf(devsw.BRead, 0, 0, sys.AlignedBuffer(513, 4096)[1:])
		b.AIO = a
		r.table.BdevStrategy(b)
		a.Drain()
		<-done
		if b.Error != devsw.ECANCELED {
			t.Errorf("direct %v: error %v, want ECANCELED", direct, b.Error)
		}
	}
}

// deaf is an AIO that cannot interrupt anything.
type deaf struct{ disktest.AIO }

func (*deaf) CancelAll(devsw.AIODone) {}

func TestATransferThroughMemoryOfOursEndsBetweenChunks(t *testing.T) {
	r := newRig(t)
	dev := r.create(Config{Path: newFile(t, make([]byte, 1<<20)), Direct: true})
	m := r.open(dev)
	aio := new(deaf)
	m.AIO = aio
	b, done := m.Buf(devsw.BWrite, 0, 0, sys.AlignedBuffer(1<<20+1, 4096)[1:])
	r.table.BdevStrategy(b)
	aio.Step(0)
	aio.Step(0)
	// The third chunk has been given to the host, and is carried out all the same; a fourth must
	// not follow.
	if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
		t.Error(err)
	}
	aio.Drain()
	<-done
	if b.Error != devsw.ECANCELED || b.Resid != 1<<20-3*bounceChunk {
		t.Errorf("error %v, resid %d, want ECANCELED and %d", b.Error, b.Resid, 1<<20-3*bounceChunk)
	}
}

// stuck is an AIODone whose calls wait until it is let go.
type stuck struct {
	entered atomic.Int32
	gate    chan struct{}
	ended   chan devsw.Errno
}

func (s *stuck) AIODone(_ *devsw.Buf, _ int64, e devsw.Errno) {
	if e == 0 {
		s.entered.Add(1)
		<-s.gate
	}
	s.ended <- e
}

func TestThreadsAreBoundedAndWhatWaitsForOneIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, err := os.Open(newFile(t, make([]byte, 4096)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		const n = 3 * maxThreads
		var (
			th    threads
			mine  = &stuck{gate: make(chan struct{}), ended: make(chan devsw.Errno, n)}
			other = &stuck{gate: mine.gate, ended: make(chan devsw.Errno, n)}
		)
		for range n - 1 {
			th.ReadAt(&devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}, int(f.Fd()), 0, mine)
		}
		th.ReadAt(&devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}, int(f.Fd()), 0, other)
		synctest.Wait()
		if got := mine.entered.Load(); got != maxThreads {
			t.Errorf("%d at once, want %d", got, maxThreads)
		}
		alone := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
		third := &stuck{gate: mine.gate, ended: make(chan devsw.Errno, 1)}
		th.ReadAt(alone, int(f.Fd()), 0, third)
		th.Cancel(alone)
		if e := <-third.ended; e != devsw.ECANCELED {
			t.Errorf("the one that was interrupted alone ended with %v", e)
		}
		if len(mine.ended)+len(other.ended) != 0 {
			t.Error("others were interrupted with it")
		}
		th.CancelAll(mine)
		synctest.Wait()
		if got := len(mine.ended); got != n-1-maxThreads {
			t.Errorf("%d were interrupted, want %d", got, n-1-maxThreads)
		}
		if len(other.ended) != 0 {
			t.Error("another's was interrupted")
		}
		close(mine.gate)
		for i := range n - 1 {
			if e, want := <-mine.ended, i < n-1-maxThreads; (e == devsw.ECANCELED) != want {
				t.Errorf("number %d ended with %v", i, e)
			}
		}
		if e := <-other.ended; e != 0 {
			t.Errorf("another's ended with %v", e)
		}
		synctest.Wait() // no goroutine is left when the bubble ends
	})
}

// TestManyCancelsSearchOnce: what is cancelled after the first one is found without a look at all
// that wait.
func TestManyCancelsSearchOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 20
		f, err := os.Open(newFile(t, make([]byte, 4096)))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var (
			th   threads
			d    = &stuck{gate: make(chan struct{}), ended: make(chan devsw.Errno, n+maxThreads)}
			bufs []*devsw.Buf
		)
		for range maxThreads + n {
			b := &devsw.Buf{Data: [][]byte{make([]byte, 512)}, Bcount: 512}
			th.ReadAt(b, int(f.Fd()), 0, d)
			bufs = append(bufs, b)
		}
		synctest.Wait() // the first ones have threads
		waiting := bufs[:0]
		for e := th.queue.Front(); e != nil; e = e.Next() {
			waiting = append(waiting, e.Value.(transfer).b)
		}
		th.Cancel(waiting[0])
		for e := th.queue.Front(); e != nil; e = e.Next() {
			x := e.Value.(transfer)
			x.b = new(devsw.Buf) // who looks here finds nothing
			e.Value = x
		}
		for _, b := range waiting[1:] {
			th.Cancel(b)
		}
		if got := len(d.ended); got != n {
			t.Errorf("%d of %d were found", got, n)
		}
		close(d.gate)
	})
}

func TestWritesOfOneBlockWaitForEachOther(t *testing.T) {
	for _, cancel := range []bool{false, true} {
		r := newRig(t)
		path := newFile(t, bytes.Repeat([]byte{1}, 64<<10))
		dev := r.create(Config{Path: path, Direct: true})
		m := r.open(dev)
		r.image(dev).impose(4096)
		aio := new(disktest.AIO)
		m.AIO = aio
		write := func(off int64, n int, fill byte) (*devsw.Buf, chan struct{}) {
			data := sys.AlignedBuffer(n, 4096)
			for i := range data {
				data[i] = fill
			}
			b, done := m.Buf(devsw.BWrite, 0, off, data)
			r.table.BdevStrategy(b)
			return b, done
		}
		part, partDone := write(512, 512, 2)     // reads its block
		_, nextDone := write(1024, 512, 3)       // the same block
		whole, wholeDone := write(0, 8192, 4)    // and the block as a whole, after both
		_, otherDone := write(16384, 4096, 5)    // another
		_, anotherDone := write(16384, 16384, 6) // which whole blocks share
		if got := aio.Pending(); got != 3 {
			t.Fatalf("%d transfers are with the host, want the first and the two of other blocks", got)
		}
		if cancel {
			if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
				t.Fatal(err)
			}
			<-wholeDone
			if whole.Error != devsw.ECANCELED || whole.Resid != 8192 {
				t.Errorf("one that waited: error %v, resid %d", whole.Error, whole.Resid)
			}
		}
		for _, done := range []chan struct{}{partDone, otherDone, anotherDone, nextDone, wholeDone} {
			m.Wait(done)
		}
		if cancel {
			if part.Error != devsw.ECANCELED {
				t.Errorf("one in progress: %v", part.Error)
			}
			continue
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{1}, 64<<10)
		for i := range 8192 {
			want[i] = 4
		}
		for i := range 16384 {
			want[16384+i] = 6
		}
		if !bytes.Equal(got, want) {
			t.Error("the file is not as the order of the writes makes it")
		}
		if im := r.image(dev); im.ranges.queues != [rangeQueues]queue{} || im.ranges.first != nil {
			t.Error("blocks are still locked")
		}
	}
}

// A revoke meets an open that is about to fail with ENXIO.
func TestAUnitThatIsNotThereIsCancelled(t *testing.T) {
	r := newRig(t)
	dev := devsw.Makedev(r.create(Config{Path: newFile(t, make([]byte, 4096))}).Major(), 99)
	if err := r.table.BdevCancel(dev, rw, devsw.IFBLK); err != nil {
		t.Errorf("d_cancel answers %v: it may answer nil or ENODEV", err)
	}
}

func TestOpensOfOneDeviceAreOneOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := newFile(t, make([]byte, 4096))
		first, dev := r.create(Config{Path: path}), r.create(Config{Path: path})
		if err := r.tryOpen(first); err != nil {
			t.Fatal(err)
		}
		cdev := r.table.Blk2chr(dev)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				if err := r.table.CdevOpen(cdev, rw, devsw.IFCHR); err != nil {
					t.Error(err)
				}
			})
		}
		time.Sleep(time.Second)
		r.close(first)
		wg.Wait()
		if err := r.table.CdevOpen(cdev, rw, devsw.IFCHR); err != nil {
			t.Error(err)
		}
		if err := r.table.CdevCancel(cdev, rw, devsw.IFCHR); err != nil {
			t.Error(err)
		}
		if err := r.table.CdevClose(cdev, rw, devsw.IFCHR); err != nil {
			t.Error(err)
		}
	})
}

func TestAnOpenThatLosesToACloseLeavesNothingOpen(t *testing.T) {
	// specfs never closes before d_open has returned; the driver does not rely on it.
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		path := newFile(t, make([]byte, 4096))
		first, dev := r.create(Config{Path: path}), r.create(Config{Path: path})
		if err := r.tryOpen(first); err != nil {
			t.Fatal(err)
		}
		opened := make(chan error)
		go func() { opened <- r.tryOpen(dev) }()
		time.Sleep(time.Second)
		if err := r.table.BdevClose(dev, rw, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		r.close(first)
		if err := <-opened; err == nil {
			t.Error("the open succeeded")
		}
		if r.image(dev) != nil {
			t.Error("the image is open")
		}
		if err := r.d.Check(0); err != nil {
			t.Errorf("the image is not free: %v", err)
		}
	})
}

func TestMemoryTakenAwayFailsTheTransferAndNothingElse(t *testing.T) {
	const n = 64 << 10
	r := newRig(t)
	fd, err := sys.NewMemfd("guest", n)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	mem, err := sys.Mmap(fd.Int(), 0, n, true)
	if err != nil {
		t.Fatal(err)
	}
	defer sys.Munmap(mem)
	// A file that ends within its last sector has that one's rest cleared by us.
	straight := r.open(r.create(Config{Path: newFile(t, make([]byte, 5000))}))
	ours := r.open(r.create(Config{Path: newFile(t, make([]byte, n)), Direct: true}))
	if err := truncate(fd); err != nil {
		t.Fatal(err)
	}
	for _, aio := range []devsw.AIO{nil, new(disktest.AIO)} {
		straight.AIO, ours.AIO = aio, aio
		for name, b := range map[string]*devsw.Buf{
			"a read to the end":            straight.Transfer(devsw.BRead, 0, 4608, mem[:512]),
			"a write":                      straight.Transfer(devsw.BWrite, 0, 0, mem[:512]),
			"a read through other memory":  ours.Transfer(devsw.BRead, 0, 0, mem[1:513]),
			"a write through other memory": ours.Transfer(devsw.BWrite, 0, 0, mem[1:513]),
		} {
			if b.Error != devsw.EFAULT || b.Resid != 512 {
				t.Errorf("%s: error %v, resid %d, want EFAULT", name, b.Error, b.Resid)
			}
		}
	}
}
