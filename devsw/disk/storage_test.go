package disk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"vdev/devsw"
)

const rw = devsw.FREAD | devsw.FWRITE

// box is a Storage in memory that notes what is asked of it. While gate is not nil, ReadAt,
// WriteAt, Discard and Flush wait for it, or for the end of their context.
type box struct {
	mem      []byte
	info     devsw.DiskInfo
	gate     chan struct{}
	deaf     bool // nothing but the gate ends a wait
	openErr  error
	infoErr  error
	flushErr error
	fail     error // of ReadAt and WriteAt

	mu     sync.Mutex
	inside int
	calls  []string
}

func (s *box) note(call string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, call)
}

func (s *box) noted() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

func (s *box) wait(ctx context.Context, call string) error {
	s.note(call)
	s.mu.Lock()
	s.inside++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.inside--
	}()
	if s.gate == nil {
		return s.fail
	}
	done := ctx.Done()
	if s.deaf {
		done = nil
	}
	select {
	case <-s.gate:
		return s.fail
	case <-done:
		return ctx.Err()
	}
}

func (s *box) Info() (devsw.DiskInfo, error) {
	info := s.info
	info.Size = int64(len(s.mem))
	return info, s.infoErr
}

func (s *box) Open(ctx context.Context, _ devsw.Flag) error {
	s.note("open")
	if s.openErr == context.Canceled {
		<-ctx.Done()
		return ctx.Err()
	}
	return s.openErr
}

func (s *box) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside > 0 {
		panic("closed while something is in progress")
	}
	s.calls = append(s.calls, "close")
}

func (s *box) ReadAt(ctx context.Context, p []byte, off int64) error {
	err := s.wait(ctx, "read")
	copy(p, s.mem[off:])
	return err
}

func (s *box) WriteAt(ctx context.Context, p []byte, off int64) error {
	err := s.wait(ctx, "write")
	if err == nil {
		copy(s.mem[off:], p)
	}
	return err
}

func (s *box) Flush(ctx context.Context) error {
	if err := s.wait(ctx, "flush"); err != nil {
		return err
	}
	return s.flushErr
}

// punching is a box that can discard and zero.
type punching struct{ *box }

func (s punching) Discard(ctx context.Context, pos, n int64) error {
	err := s.wait(ctx, "discard")
	clear(s.mem[pos : pos+n])
	return err
}

func (s punching) WriteZeroes(ctx context.Context, pos, n int64, unmap bool) error {
	err := s.wait(ctx, "zero")
	clear(s.mem[pos : pos+n])
	return err
}

// shelf is a driver with one disk, on a Storage.
type shelf struct {
	*Driver
	t     *testing.T
	table *devsw.Table
	dev   devsw.Dev
}

func newShelf(t *testing.T, s Storage) *shelf {
	t.Helper()
	table := devsw.NewTable()
	d, err := Attach(table, "box", devsw.NODEVMAJOR, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := d.Create(0, NewDisk(s))
	if err != nil {
		t.Fatal(err)
	}
	return &shelf{d, t, table, dev}
}

func (s *shelf) open() {
	s.t.Helper()
	if err := s.table.BdevOpen(s.dev, rw, devsw.IFBLK); err != nil {
		s.t.Fatal(err)
	}
}

// cancel is the first half of a last close, close the other one.
func (s *shelf) cancel() {
	s.t.Helper()
	if err := s.table.BdevCancel(s.dev, rw, devsw.IFBLK); err != nil {
		s.t.Fatal(err)
	}
}

func (s *shelf) close() {
	s.t.Helper()
	if err := s.table.BdevClose(s.dev, rw, devsw.IFBLK); err != nil {
		s.t.Fatal(err)
	}
}

// start begins a transfer; ended is told of its end.
func (s *shelf) start(op devsw.Op, flags devsw.BufFlag, off int64, data ...[]byte) (b *devsw.Buf, ended chan struct{}) {
	ended = make(chan struct{})
	b = &devsw.Buf{Op: op, Flags: flags, Dev: s.dev, Blkno: off / devsw.DEVBSIZE, Data: data, Iodone: func(*devsw.Buf) { close(ended) }}
	for _, p := range data {
		b.Bcount += int64(len(p))
	}
	s.table.BdevStrategy(b)
	return b, ended
}

// do does one, and waits for its end.
func (s *shelf) do(op devsw.Op, flags devsw.BufFlag, off int64, data ...[]byte) *devsw.Buf {
	b, ended := s.start(op, flags, off, data...)
	<-ended
	return b
}

func TestAStorageGetsLongTransfersInPieces(t *testing.T) {
	st := &box{mem: make([]byte, 3<<20)}
	s := newShelf(t, st)
	s.open()
	defer s.close()
	data := make([]byte, 2<<20+512)
	for i := range data {
		data[i] = byte(i >> 9)
	}
	if b := s.do(devsw.BWrite, 0, 512, data[:700], data[700:]); b.Error != 0 || b.Resid != 0 {
		t.Fatalf("write: %v, resid %d", b.Error, b.Resid)
	}
	if !bytes.Equal(st.mem[512:512+len(data)], data) {
		t.Error("the storage does not have what was written")
	}
	// The end of the disk cuts this one.
	got := make([]byte, len(data))
	b := s.do(devsw.BRead, 0, 1<<20, got[:1<<20], got[1<<20:])
	if b.Error != 0 || b.Resid != 512 {
		t.Fatalf("read across the end: %v, resid %d", b.Error, b.Resid)
	}
	if !bytes.Equal(got[:2<<20], st.mem[1<<20:]) {
		t.Error("what was read is not what the storage has")
	}
	if want := []string{"open", "write", "write", "write", "read", "read"}; !slices.Equal(st.noted(), want) {
		t.Errorf("the storage was asked to %q, want %q", st.noted(), want)
	}
}

func TestAStableWriteIsFlushedBeforeItEnds(t *testing.T) {
	st := &box{mem: make([]byte, 4096)}
	s := newShelf(t, st)
	s.open()
	defer s.close()
	if b := s.do(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512)); b.Error != 0 || b.Resid != 0 {
		t.Errorf("%v, resid %d", b.Error, b.Resid)
	}
	if want := []string{"open", "write", "flush"}; !slices.Equal(st.noted(), want) {
		t.Errorf("the storage was asked to %q, want %q", st.noted(), want)
	}
	st.flushErr = devsw.ENOSPC
	if b := s.do(devsw.BWrite, devsw.BMediaFUA, 0, make([]byte, 512)); b.Error != devsw.ENOSPC || b.Resid != 512 {
		t.Errorf("with a flush that fails: %v, resid %d", b.Error, b.Resid)
	}
	if err := s.table.BdevIoctl(s.dev, devsw.DIOCCACHESYNC, nil, rw); !errors.Is(err, devsw.ENOSPC) {
		t.Errorf("a flush that fails: %v", err)
	}
	st.fail = io.ErrUnexpectedEOF
	if b := s.do(devsw.BRead, 0, 0, make([]byte, 512)); b.Error != devsw.EIO || b.Resid != 512 {
		t.Errorf("an error that is no errno: %v, resid %d", b.Error, b.Resid)
	}
}

func TestACloseCancelsWhatIsInAStorageAndWhatWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &box{mem: make([]byte, 1<<20), gate: make(chan struct{})}
		s := newShelf(t, st)
		const n = maxWorkers + 4
		for range 2 { // whoever opens it again has a disk that works
			s.open()
			var bufs []*devsw.Buf
			var ends []chan struct{}
			for i := range n {
				b, ended := s.start(devsw.BWrite, 0, int64(i)*512, bytes.Repeat([]byte{1}, 512))
				bufs, ends = append(bufs, b), append(ends, ended)
			}
			flushed := make(chan error, 1)
			go func() { flushed <- s.table.BdevIoctl(s.dev, devsw.DIOCCACHESYNC, nil, rw) }()
			synctest.Wait()
			if st.inside != maxWorkers+1 {
				t.Fatalf("%d are in the storage, want %d transfers and the flush", st.inside, maxWorkers)
			}
			s.cancel()
			for i, ended := range ends {
				<-ended
				if bufs[i].Error != devsw.ECANCELED || bufs[i].Resid != 512 {
					t.Errorf("transfer %d ends with %v, resid %d", i, bufs[i].Error, bufs[i].Resid)
				}
			}
			if err := <-flushed; devsw.ToErrno(err) != devsw.ECANCELED {
				t.Errorf("the flush ends with %v", err)
			}
			before := len(st.noted())
			if b := s.do(devsw.BRead, 0, 0, make([]byte, 512)); b.Error != devsw.ECANCELED {
				t.Errorf("a read after d_cancel: %v", b.Error)
			}
			if len(st.noted()) != before {
				t.Error("it has come to the storage")
			}
			s.close()
			if calls := st.noted(); calls[len(calls)-1] != "close" {
				t.Errorf("d_close has not closed the storage: %q", calls)
			}
		}
		if !bytes.Equal(st.mem, make([]byte, 1<<20)) {
			t.Error("something was written")
		}
		close(st.gate)
		s.open()
		if b := s.do(devsw.BWrite, 0, 0, make([]byte, 512)); b.Error != 0 {
			t.Errorf("a write in the third open: %v", b.Error)
		}
		s.cancel()
		s.close()
	})
}

func TestOneTransferInAStorageIsInterruptedAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &box{mem: make([]byte, 1<<20), gate: make(chan struct{})}
		s := newShelf(t, st)
		s.open()
		var bufs []*devsw.Buf
		var ends []chan struct{}
		for i := range maxWorkers + 2 {
			b, ended := s.start(devsw.BRead, 0, int64(i)*512, make([]byte, 512))
			bufs, ends = append(bufs, b), append(ends, ended)
		}
		synctest.Wait()
		// The last one waits, and one of the first is in the storage.
		last := len(bufs) - 1
		for _, i := range []int{last, 3} {
			if err := s.table.BdevCancelBuf(bufs[i]); err != nil {
				t.Fatal(err)
			}
			<-ends[i]
			if bufs[i].Error != devsw.ECANCELED {
				t.Errorf("transfer %d ends with %v", i, bufs[i].Error)
			}
			if err := s.table.BdevCancelBuf(bufs[i]); err != nil { // it has ended
				t.Fatal(err)
			}
		}
		close(st.gate)
		for i, ended := range ends {
			<-ended
			if i != last && i != 3 && bufs[i].Error != 0 {
				t.Errorf("transfer %d ends with %v", i, bufs[i].Error)
			}
		}
		s.cancel()
		s.close()
		if n := len(st.noted()); n != maxWorkers+1+2 {
			t.Errorf("the storage was called %d times: the one that waited has come to it", n)
		}
	})
}

func TestACancelEndsALongTransferBetweenTwoPieces(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &box{mem: make([]byte, 4<<20), gate: make(chan struct{}), deaf: true}
		s := newShelf(t, st)
		s.open()
		b, ended := s.start(devsw.BRead, 0, 0, make([]byte, 4<<20))
		st.gate <- struct{}{}
		synctest.Wait()
		s.cancel()
		synctest.Wait()
		close(st.gate)
		<-ended
		if b.Error != devsw.ECANCELED || b.Resid != 2<<20 {
			t.Errorf("%v, resid %d", b.Error, b.Resid)
		}
		s.close()
	})
}

func TestAnOpenThatWaitsIsInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &box{mem: make([]byte, 4096), openErr: context.Canceled}
		s := newShelf(t, st)
		opened := make(chan error, 1)
		go func() { opened <- s.table.BdevOpen(s.dev, rw, devsw.IFBLK) }()
		synctest.Wait()
		if !s.Claimed(0) {
			t.Error("it is not being opened")
		}
		s.cancel()
		if err := <-opened; !errors.Is(err, devsw.ECANCELED) || err.Error() != "box0: open interrupted: operation canceled" {
			t.Errorf("the open ends with %v", err)
		}
		s.close()
		if s.Claimed(0) || slices.Contains(st.noted(), "close") {
			t.Errorf("what was not open is: %q", st.noted())
		}
	})
}

func TestAStorageSaysWhatItCanDo(t *testing.T) {
	for _, c := range []struct {
		can, readOnly bool
		discard, zero error
		calls         []string
	}{
		{true, false, nil, nil, []string{"open", "discard", "zero", "close"}},
		{false, false, devsw.ENODEV, devsw.EOPNOTSUPP, []string{"open", "close"}},
		{true, true, devsw.EROFS, devsw.EROFS, []string{"open", "close"}},
	} {
		st := &box{mem: bytes.Repeat([]byte{1}, 8192), info: devsw.DiskInfo{ReadOnly: c.readOnly}}
		var storage Storage = st
		if c.can {
			storage = punching{st}
		}
		s := newShelf(t, storage)
		closed, err := s.Info(0)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.table.BdevOpen(s.dev, devsw.FREAD, devsw.IFBLK); err != nil {
			t.Fatal(err)
		}
		can := c.can && !c.readOnly
		info, err := s.Info(0)
		want := devsw.DiskInfo{Size: 8192, SectorSize: 512, ReadOnly: c.readOnly, Discard: can, WriteZeroes: can}
		if err != nil || info != want || closed != want {
			t.Errorf("%+v, %v; closed %+v; want %+v", info, err, closed, want)
		}
		if err := s.table.BdevDiscard(s.dev, 0, 512); !errors.Is(err, c.discard) {
			t.Errorf("discard: %v, want %v", err, c.discard)
		}
		if err := s.table.BdevIoctl(s.dev, devsw.DIOCWRITEZEROES, &devsw.ZeroRange{N: 512}, rw); !errors.Is(err, c.zero) {
			t.Errorf("zeroes: %v, want %v", err, c.zero)
		}
		s.close()
		if !slices.Equal(st.noted(), c.calls) {
			t.Errorf("the storage was asked to %q, want %q", st.noted(), c.calls)
		}
	}
}

func TestWhatCannotBeOpenedIsClosedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		st    *box
		want  devsw.Errno
		calls []string
	}{
		"read-only":           {&box{info: devsw.DiskInfo{ReadOnly: true}}, devsw.EROFS, []string{"open", "close"}},
		"odd sectors":         {&box{info: devsw.DiskInfo{SectorSize: 520}}, devsw.EINVAL, []string{"open", "close"}},
		"no description":      {&box{infoErr: devsw.ENOENT}, devsw.ENOENT, []string{"open", "close"}},
		"an open that failed": {&box{openErr: devsw.EACCES}, devsw.EACCES, []string{"open"}},
	} {
		s := newShelf(t, c.st)
		if err := s.table.BdevOpen(s.dev, rw, devsw.IFBLK); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if !slices.Equal(c.st.noted(), c.calls) || s.Claimed(0) {
			t.Errorf("%s: the storage was asked to %q, want %q", name, c.st.noted(), c.calls)
		}
		if err := s.Detach(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestADiskThatIsOpenIsAsLargeAsItsLastGrow, and what has gone of it is an error.
func TestADiskThatIsOpenIsAsLargeAsItsLastGrow(t *testing.T) {
	st := &box{mem: make([]byte, 8192)}
	s := newShelf(t, st)
	s.open()
	defer s.close()
	for _, c := range []struct {
		size int
		read devsw.Errno // of the last sector there was
	}{{16384 + 100, 0}, {4096, devsw.EIO}} {
		st.mem = make([]byte, c.size)
		var size int64
		if err := s.table.BdevIoctl(s.dev, devsw.DIOCGROW, &size, rw); err != nil || size != int64(c.size)&^511 {
			t.Errorf("%d bytes, %v", size, err)
		}
		if n := s.table.BdevSize(s.dev); n != size/512 {
			t.Errorf("size %d, want %d", n, size/512)
		}
		if b := s.do(devsw.BRead, 0, 16384-512, make([]byte, 512)); b.Error != c.read {
			t.Errorf("%d bytes: the read ends with %v, want %v", c.size, b.Error, c.read)
		}
	}
}

func TestADriversUnitIsWhatItWasGiven(t *testing.T) {
	st := &box{mem: make([]byte, 4096)}
	s := newShelf(t, st)
	d, m, err := s.Unit(0)
	if err != nil || d != NewDisk(st) || m != nil {
		t.Errorf("closed: %v, %v, %v", d, m, err)
	}
	s.open()
	if _, m, err := s.Unit(0); err != nil || m == nil {
		t.Errorf("open: no medium, %v", err)
	}
	if _, err := s.Create(0, d); !errors.Is(err, devsw.EEXIST) {
		t.Errorf("the same unit once more: %v", err)
	}
	if err := s.Destroy(0); !errors.Is(err, devsw.EBUSY) {
		t.Errorf("destroy while it is open: %v", err)
	}
	s.cancel()
	s.close()
	if err := s.Destroy(0); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Unit(0); !errors.Is(err, devsw.ENXIO) || s.Claimed(0) {
		t.Errorf("afterwards: %v", err)
	}
	if _, err := s.Info(0); !errors.Is(err, devsw.ENXIO) {
		t.Errorf("Info afterwards: %v", err)
	}
	if _, err := Attach(s.table, "box", devsw.NODEVMAJOR, devsw.NODEVMAJOR); !errors.Is(err, devsw.EEXIST) {
		t.Errorf("a second driver of the name: %v", err)
	}
	if err := s.Detach(); err != nil {
		t.Error(err)
	}
}

// late is a Medium whose transfers end when they are told, as those of a driver that has
// devsw.BufSet.
type late struct {
	*Base
	begun []*devsw.Buf
}

func (m *late) Transfer(b *devsw.Buf, off, n int64) { m.begun = append(m.begun, b) }

func TestWriteZeroesWritesWholeTransfersAndStopsAtAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &late{Base: NewBase(devsw.DiskInfo{Size: 1 << 20})}
		zero := make([]byte, 4096)
		ended := make(chan error, 1)
		go func() { ended <- WriteZeroes(m, 512, 4096+512, zero) }()
		for i, want := range []struct{ off, n int64 }{{512, 4096}, {4608, 512}} {
			synctest.Wait()
			b := m.begun[i]
			if b.Op != devsw.BWrite || b.Blkno*512 != want.off || b.Bcount != want.n || len(m.begun) != i+1 {
				t.Fatalf("%v of %d bytes at %d, want a write of %d at %d", b.Op, b.Bcount, b.Blkno*512, want.n, want.off)
			}
			b.Biodone()
		}
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		go func() { ended <- WriteZeroes(m, 0, 8192, zero) }()
		synctest.Wait()
		m.begun[2].Fail(devsw.ENOSPC)
		if err := <-ended; err != devsw.ENOSPC || len(m.begun) != 3 {
			t.Errorf("%v after %d writes", err, len(m.begun)-2)
		}
		// The disk becomes smaller in between.
		go func() { ended <- WriteZeroes(m, 0, 8192, zero) }()
		synctest.Wait()
		m.Resize(4096)
		m.begun[3].Biodone()
		if err := <-ended; err != devsw.EIO || len(m.begun) != 4 {
			t.Errorf("beyond the end: %v after %d writes", err, len(m.begun)-3)
		}
	})
}

func TestAStorageThatIsSlowHoldsUpNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow, fast := newShelf(t, &box{mem: make([]byte, 4096), gate: make(chan struct{})}), newShelf(t, &box{mem: make([]byte, 4096)})
		slow.open()
		fast.open()
		_, ended := slow.start(devsw.BRead, 0, 0, make([]byte, 512))
		began := time.Now()
		fast.do(devsw.BRead, 0, 0, make([]byte, 512))
		if time.Since(began) != 0 {
			t.Error("it has waited")
		}
		slow.cancel()
		<-ended
		slow.close()
		fast.cancel()
		fast.close()
	})
}
