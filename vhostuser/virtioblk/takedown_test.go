package virtioblk

import (
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// far is the last page of the guest's memory, which a test can take away without hurting the rest.
func (w *bench) far(n uint32) virtqtest.Seg { return virtqtest.Seg{Addr: 64<<20 - 4096, Len: n} }

// cut takes the last page away, as a front-end can at any time.
func (w *bench) cut() {
	w.t.Helper()
	fd := must(sys.NewFD(w.mem.FD()).Dup())(w.t)
	f := os.NewFile(uintptr(fd.Int()), "memory")
	defer f.Close()
	if err := f.Truncate(64<<20 - 4096); err != nil {
		w.t.Fatal(err)
	}
}

// TestMemoryThatGoesAwayEndsTheConnection takes it away under each part of a request, for drivers
// that end a transfer within d_strategy, later on the reactor, and elsewhere. What is in flight
// must be counted right, or the end never comes.
func TestMemoryThatGoesAwayEndsTheConnection(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for name, d := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
			t.Run(name, func(t *testing.T) {
				for name, c := range map[string]struct {
					typ              uint32
					out, in, farData bool // where data are, and whether they go away
					farStatus        bool
				}{
					"status of a read":   {typ: tIn, in: true, farStatus: true},
					"status of a write":  {typ: tOut, out: true, farStatus: true},
					"status of a flush":  {typ: tFlush, farStatus: true},
					"status of a get-id": {typ: tGetID, in: true, farStatus: true},
					"status of nothing":  {typ: 99, farStatus: true},
					"data of a get-id":   {typ: tGetID, in: true, farData: true},
					"data and status":    {typ: tIn, in: true, farData: true, farStatus: true},
				} {
					t.Run(name, func(t *testing.T) {
						w := newBench(t, mode, 1, d, nil)
						w.start(w.all())
						var out, in []virtqtest.Seg
						data, status := w.buffer(512), w.buffer(1)
						if c.farData {
							data = w.far(512)
						}
						if c.farStatus {
							status = virtqtest.Seg{Addr: 64<<20 - 1, Len: 1}
						}
						out = append(out, w.header(c.typ, 0))
						if c.out {
							out = append(out, data)
						}
						if c.in {
							in = append(in, data)
						}
						if _, ok := w.rings[0].Add(out, append(in, status)); !ok {
							t.Fatal("no room")
						}
						w.cut()
						if err := w.rings[0].Notify(); err != nil {
							t.Fatal(err)
						}
						select {
						case err := <-w.ended:
							var fault *vhostuser.FaultError
							if !errors.As(err, &fault) {
								t.Errorf("the connection ended with %v, want a FaultError", err)
							}
							w.ended <- err
						case <-time.After(time.Minute):
							t.Fatal("the connection has not ended")
						}
					})
				}
			})
		}
	})
}

// TestAFaultInAStopLeavesNothingInFlight: a request that was suspended is read again to be failed,
// and its memory has gone. It would keep the rest of the guest's memory mapped.
func TestAFaultInAStopLeavesNothingInFlight(t *testing.T) {
	d := &keeper{hold: true, wrote: map[int64][]byte{}}
	w, _ := newSuspendBench(t, reactor.ModeURing, 1, d.disk, noInflight, nil)
	header := w.far(headerSize)
	copy(w.bytes(header), w.bytes(w.header(tIn, 1)))
	w.rings[0].Add([]virtqtest.Seg{header}, []virtqtest.Seg{w.buffer(512), w.buffer(1)})
	w.check(w.rings[0].Notify())
	d.await(t, 1)
	q := w.dev.startedQueues()[0]
	w.cut() // so that it cannot be fenced, either
	go func() { _, _ = w.f.GetVringBase(0) }()
	w.until("it is suspended", func() bool { return w.dev.Status().Fenced == 1 })
	d.release()
	err := <-w.ended
	if fault := (*vhostuser.FaultError)(nil); !errors.As(err, &fault) {
		t.Errorf("the session ended with %v", err)
	}
	w.ended <- nil
	w.hangUp()
	for _, r := range q.requests {
		if r.chain.InFlight() {
			t.Error("a request is in flight after the stop")
		}
	}
}

// held is a driver whose transfers end when the test says so, or by d_cancel.
type held struct {
	bufs  devsw.BufSet
	mu    sync.Mutex
	added []devsw.Ticket
	more  chan devsw.BufFlag // of each transfer that has come
}

func newHeld() *held { return &held{more: make(chan devsw.BufFlag, 100)} }

func (h *held) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	ok := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
	b := &devsw.Bdevsw{
		Name: "held", Flag: devsw.DDisk | devsw.DMPSafe, Open: ok,
		Cancel: func(devsw.Dev, devsw.Flag, devsw.Mode) error { h.bufs.Cancel(); return nil },
		Close:  func(devsw.Dev, devsw.Flag, devsw.Mode) error { h.bufs.Reset(); return nil },
		Strategy: func(b *devsw.Buf) {
			flags := b.Flags
			if ticket, ok := h.bufs.Add(b); ok {
				h.mu.Lock()
				h.added = append(h.added, ticket)
				h.mu.Unlock()
				h.more <- flags
			}
		},
	}
	bmajor, _, err := table.Attach("held", b, devsw.NODEVMAJOR, &devsw.Cdevsw{Name: "held"}, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bmajor), 0), func() (devsw.DiskInfo, error) {
		return devsw.DiskInfo{Size: diskSize, SectorSize: 512}, nil
	}
}

// end ends all that is held.
func (h *held) end() {
	h.mu.Lock()
	tickets := h.added
	h.added = nil
	h.mu.Unlock()
	for _, ticket := range tickets {
		if b := h.bufs.Claim(ticket); b != nil {
			b.Resid = 0
			b.Biodone()
		}
	}
}

// read adds a read to ring q, and waits until the driver has it.
func (w *bench) read(q int, h *held) (status virtqtest.Seg) {
	w.t.Helper()
	status = w.buffer(1)
	w.bytes(status)[0] = 0xff
	if _, ok := w.rings[q].Add([]virtqtest.Seg{w.header(tIn, 0)}, []virtqtest.Seg{w.buffer(512), status}); !ok {
		w.t.Fatal("no room")
	}
	if err := w.rings[q].Notify(); err != nil {
		w.t.Fatal(err)
	}
	<-h.more
	return status
}

// TestAResetWaitsForNothing: nobody wants what is in flight any more, and the front-end may wait
// for an answer.
func TestAResetWaitsForNothing(t *testing.T) {
	h := newHeld()
	w := newBench(t, reactor.ModeURing, 2, h.disk, func(c *benchConfig) { c.CancelAfter = time.Hour })
	w.start(w.all())
	status := w.read(0, h)
	if err := w.f.ResetDevice(); err != nil {
		t.Fatal(err)
	}
	if s := w.bytes(status)[0]; s != statusIOErr {
		t.Errorf("the read ended with status %d, want IOERR", s)
	}
	// The next start opens the device again.
	if err := w.rings[1].Start(); err != nil {
		t.Fatal(err)
	}
	status = w.read(1, h)
	h.end()
	if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(status)[0] != statusOK {
		t.Error(err, w.bytes(status)[0])
	}
}

// TestWritesAreStableWhereTheDriverCannotFlush, whatever else it has negotiated (section 5.2.5.2:
// without FLUSH, writeback begins as 0), and where it has switched writeback off.
func TestWritesAreStableWhereTheDriverCannotFlush(t *testing.T) {
	for name, c := range map[string]struct {
		without uint64
		set     []byte
		want    devsw.BufFlag
	}{
		"flush and config-wce":     {0, nil, 0},
		"flush":                    {fConfigWCE, nil, 0},
		"config-wce":               {fFlush, nil, devsw.BMediaFUA},
		"neither":                  {fFlush | fConfigWCE, nil, devsw.BMediaFUA},
		"writethrough by the user": {0, []byte{0}, devsw.BMediaFUA},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHeld()
			w := newBench(t, reactor.ModeURing, 1, h.disk, nil)
			w.start(w.all() &^ c.without)
			if c.set != nil {
				if err := w.f.SetConfig(writebackOff, c.set); err != nil {
					t.Fatal(err)
				}
			}
			w.rings[0].Add([]virtqtest.Seg{w.header(tOut, 0), w.buffer(512)}, []virtqtest.Seg{w.buffer(1)})
			if err := w.rings[0].Notify(); err != nil {
				t.Fatal(err)
			}
			if flags := <-h.more; flags != c.want {
				t.Errorf("flags of the write are %v, want %v", flags, c.want)
			}
			h.end()
		})
	}
}

// TestLargeRequestsDoNotKeepTheReactorFromItsOtherWork: a driver that copies takes its time on the
// reactor, and a guest may have a ring full of requests as large as its memory, and larger. A
// message of the front-end does not wait for all of them.
func TestLargeRequestsDoNotKeepTheReactorFromItsOtherWork(t *testing.T) {
	const size = 16 << 20
	ended, endedBefore := 0, make(chan int, 1)
	var dev atomic.Pointer[Device]
	w := newBench(t, reactor.ModeURing, 1, mdDisk(md.Config{Size: size}), func(c *benchConfig) {
		c.Trace = func(Request) {
			if ended++; ended == 1 {
				d := dev.Load()
				d.mu.Lock()
				defer d.mu.Unlock()
				for q := range d.queues {
					q.vq.Post(func() { endedBefore <- ended })
				}
			}
		}
	})
	dev.Store(w.dev)
	w.start(w.all())
	header, buf, status := w.header(tIn, 0), w.buffer(1<<20), w.buffer(1)
	var in []virtqtest.Seg
	for range size / int(buf.Len) {
		in = append(in, buf)
	}
	const requests = 100
	for range requests {
		if _, ok := w.rings[0].AddIndirect([]virtqtest.Seg{header}, append(in, status)); !ok {
			t.Fatal("no room")
		}
	}
	if err := w.rings[0].Notify(); err != nil {
		t.Fatal(err)
	}
	if n := <-endedBefore; n > requests/10 {
		t.Errorf("the reactor did nothing else before %d requests had ended", n)
	}
	for range requests {
		if _, _, err := w.rings[0].Wait(); err != nil {
			t.Fatal(err)
		}
	}
}
