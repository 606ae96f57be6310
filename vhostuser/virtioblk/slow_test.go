package virtioblk

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/vnd"
	"vdev/internal/offload"
	"vdev/internal/reactor"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// frozen is a driver whose discards, write-zeroes and flushes are in a system call, with their
// thread, until it is thawed: nothing interrupts them. Reads and writes end at once.
type frozen struct {
	pipe  [2]int
	thaw  func()
	begun atomic.Int64
	now   atomic.Int64
	most  atomic.Int64
	seen  func(z devsw.ZeroRange)
}

func newFrozen(t testing.TB) *frozen {
	f := new(frozen)
	if err := syscall.Pipe2(f.pipe[:], syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	f.thaw = sync.OnceFunc(func() { syscall.Close(f.pipe[1]) })
	t.Cleanup(func() {
		f.thaw()
		syscall.Close(f.pipe[0])
	})
	return f
}

func (f *frozen) stall() error {
	f.begun.Add(1)
	n := f.now.Add(1)
	defer f.now.Add(-1)
	for most := f.most.Load(); n > most && !f.most.CompareAndSwap(most, n); most = f.most.Load() {
	}
	var b [1]byte
	for {
		if _, err := syscall.Read(f.pipe[0], b[:]); err != syscall.EINTR {
			return nil
		}
	}
}

func (f *frozen) disk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	ok := func(devsw.Dev, devsw.Flag, devsw.Mode) error { return nil }
	b := &devsw.Bdevsw{
		Name: "frozen", Flag: devsw.DDisk | devsw.DMPSafe, Open: ok, Cancel: ok, Close: ok,
		Strategy: func(b *devsw.Buf) {
			b.Resid, b.InContext = 0, true
			b.Biodone()
		},
		Discard: func(_ devsw.Dev, pos, n int64) error {
			if f.seen != nil {
				f.seen(devsw.ZeroRange{Pos: pos, N: n})
			}
			return f.stall()
		},
		Ioctl: func(_ devsw.Dev, cmd devsw.Cmd, data any, _ devsw.Flag) error {
			if z, ok := data.(*devsw.ZeroRange); ok && f.seen != nil {
				f.seen(*z)
			}
			return f.stall()
		},
	}
	bmajor, _, err := table.Attach("frozen", b, devsw.NODEVMAJOR, &devsw.Cdevsw{Name: "frozen"}, devsw.NODEVMAJOR)
	if err != nil {
		t.Fatal(err)
	}
	return devsw.Makedev(uint32(bmajor), 0), func() (devsw.DiskInfo, error) {
		return devsw.DiskInfo{Size: 8 << 40, SectorSize: 512, Discard: true, WriteZeroes: true}, nil
	}
}

// startSized starts all rings with so many descriptors each.
func (w *bench) startSized(size int, region *vhostusertest.Inflight) {
	w.t.Helper()
	w.check(w.f.SetFeatures(w.all()))
	w.check(w.f.AddMemory(w.mem))
	if region != nil {
		w.check(w.f.SetInflightFD(region))
	}
	for i := range w.dev.NumQueues() {
		r := must(w.f.NewRing(w.mem, i, size))(w.t)
		w.rings = append(w.rings, r)
		w.check(r.Start())
	}
}

func threads(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func (w *bench) until(what string, is func() bool) {
	w.t.Helper()
	for begun := time.Now(); !is(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			w.t.Fatalf("it is not so: %s", what)
		}
	}
}

// inFlight is how many requests the rings have in flight.
func (w *bench) inFlight() (n int) {
	for i := range w.rings {
		n += w.ring(i).InFlight
	}
	return n
}

// TestStorageThatStallsTakesABoundedNumberOfThreads fills 16 rings of 1024 with discards of 64
// ranges each while none of them ends, has the front-end die and come back in the midst, and lets
// storage go on. Reads behind the discards, and another device's flush, do not wait for them.
func TestStorageThatStallsTakesABoundedNumberOfThreads(t *testing.T) {
	const queues, size, spare = 16, 1024, 4 // spare is for a read
	pool := offload.New(offload.Config{Places: 24, Each: 12})
	t.Cleanup(pool.Close)
	in := func(c *benchConfig) { c.Pool = (*Pool)(pool) }
	neighbour := newBench(t, reactor.ModeURing, 1, vndDisk, in)
	neighbour.start(neighbour.all())
	f := newFrozen(t)
	w := newBench(t, reactor.ModeURing, queues, f.disk, in)
	t.Cleanup(f.thaw) // before the bench is closed
	region := must(w.f.GetInflightFD(queues, size))(t)
	t.Cleanup(region.Close)
	before, memory := threads(t), heap()
	w.startSized(size, region)

	head := w.header(tDiscard, 0)
	var list [][3]uint64
	for i := range uint64(maxRanges) {
		list = append(list, [3]uint64{i * 1000, 8, 0})
	}
	ranges, status := w.rangeSeg(list...), w.buffer(queues*size)
	for i, r := range w.rings {
		for j := range size - spare {
			st := virtqtest.Seg{Addr: status.Addr + uint64(i*size+j), Len: 1}
			w.mem.Bytes(st.Addr, 1)[0] = 0xff
			if _, ok := r.AddIndirect([]virtqtest.Seg{head, ranges}, []virtqtest.Seg{st}); !ok {
				t.Fatal("no room")
			}
		}
		w.check(r.Notify())
	}
	all := queues * (size - spare)
	w.until("all have been fetched", func() bool { return w.inFlight() == all })
	w.until("discards have begun", func() bool { return f.now.Load() == 12 })
	look := func(when string) {
		t.Helper()
		// The pool's, and what the runtime adds when a thread is in a system call.
		if n := threads(t); n > before+24+8 {
			t.Errorf("%s: %d threads, %d before", when, n, before)
		}
		if n := f.most.Load(); n > 12 {
			t.Errorf("%s: %d discards were in progress at once", when, n)
		}
	}
	look("stalled")
	t.Logf("%d discards wait: %d threads more, %d KiB of memory", all, threads(t)-before, (heap()-memory)>>10)
	if st, _ := w.do(0, tIn, 0, nil, []virtqtest.Seg{w.buffer(4096)}); st != statusOK {
		t.Errorf("a read behind them: status %d", st)
	}
	if st, _ := neighbour.do(0, tFlush, 0, nil, nil); st != statusOK {
		t.Errorf("another device's flush: status %d", st)
	}

	// The rings stop at once, with what is stuck left to itself. What comes next waits for it.
	w.again(everything)
	look("the front-end has gone")
	w.restart(region)
	look("it has come back")
	if st, _ := neighbour.do(0, tFlush, 0, nil, nil); st != statusOK {
		t.Errorf("another device's flush: status %d", st)
	}
	f.thaw()
	answered := 0
	w.until("all are answered", func() bool {
		for _, r := range w.rings {
			for r.PendingUsed() {
				r.Used()
				answered++
			}
		}
		return answered == all
	})
	for i := range all {
		if st := w.mem.Bytes(status.Addr+uint64(i/(size-spare)*size+i%(size-spare)), 1)[0]; st != statusOK {
			t.Fatalf("discard %d: status %d", i, st)
		}
	}
	look("at the end")
	w.until("the threads have gone", func() bool { return threads(t) <= before+12 })
}

// heap is how much memory Go objects take that are in use, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestAStopTakesBackWhatWaitsForAPlace stops rings whose operations wait, one of them or one of
// another ring being stuck: those that wait have not reached the driver, never do, and are given
// back.
func TestAStopTakesBackWhatWaitsForAPlace(t *testing.T) {
	for name, c := range map[string]struct {
		alone   bool // one ring is stopped
		stuckAt int  // the ring of the one that is stuck
		closes  bool // the device is closed over that
	}{
		"of the device":                    {false, 0, true},
		"of one ring":                      {true, 0, true},
		"of one ring, which only waits":    {true, 1, false},
		"of the device, also another ring": {false, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			pool := offload.New(offload.Config{Places: 2, Each: 1})
			t.Cleanup(pool.Close)
			f := newFrozen(t)
			w, _ := newSuspendBench(t, reactor.ModeURing, 2, f.disk, noInflight, func(c *benchConfig) { c.Pool = (*Pool)(pool) })
			t.Cleanup(f.thaw)
			st := w.buffer(1)
			ask := func(q int, typ uint32, ranges ...[3]uint64) {
				out := []virtqtest.Seg{w.header(typ, 0)}
				if ranges != nil {
					out = append(out, w.rangeSeg(ranges...))
				}
				if _, ok := w.rings[q].Add(out, []virtqtest.Seg{st}); !ok {
					t.Fatal("no room")
				}
				w.check(w.rings[q].Notify())
			}
			const n = 20
			ask(c.stuckAt, tDiscard, [3]uint64{0, 8, 0}, [3]uint64{8, 8, 0})
			w.until("one is stuck", func() bool { return f.now.Load() >= 1 })
			for i := range n {
				ask(0, []uint32{tDiscard, tWriteZeroes, tFlush}[i%3], [][][3]uint64{{{0, 8, 0}}, {{0, 8, 0}}, nil}[i%3]...)
			}
			w.until("all have been fetched", func() bool { return w.inFlight() == n+1 })
			if c.alone {
				w.check(w.f.SetVringEnable(0, false))
				must(w.f.GetVringBase(0))(t)
			} else {
				w.hangUp()
			}
			answered := 0
			if c.stuckAt == 0 {
				answered = 1
			}
			if got := int(w.rings[0].UsedIdx()); got != answered {
				t.Errorf("%d requests of the ring were answered, want %d: the others are unfetched", got, answered)
			}
			f.thaw()
			if c.closes {
				w.waitClosed()
				w.until("nothing is left", func() bool { return f.now.Load() == 0 })
			}
			w.until("nothing waits", func() bool { return w.dev.share.Waiting() == 0 && w.dev.share.Running() == 0 })
			// The first one's ranges, or the first of them.
			want := int64(1)
			if !c.closes {
				want = 2
			}
			if got := f.begun.Load(); got != want {
				t.Errorf("%d pieces have reached the driver, want %d", got, want)
			}
			order := slices.Clone(opens)
			if c.closes {
				order = append(order, closes...)
			}
			if !c.closes || c.alone {
				w.expectOrder("the stop", order...)
			}
		})
	}
}

// TestARecalledOperationDoesNoMore than the piece that is being done when a stop wants it back.
func TestARecalledOperationDoesNoMore(t *testing.T) {
	f := newFrozen(t)
	w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
	t.Cleanup(f.thaw)
	w.start(w.all())
	st := w.buffer(1)
	out := []virtqtest.Seg{w.header(tDiscard, 0), w.rangeSeg([3]uint64{0, 8, 0}, [3]uint64{8, 8, 0}, [3]uint64{16, 8, 0})}
	if _, ok := w.rings[0].Add(out, []virtqtest.Seg{st}); !ok {
		t.Fatal("no room")
	}
	w.check(w.rings[0].Notify())
	w.until("it has begun", func() bool { return f.now.Load() == 1 })
	w.dev.mu.Lock()
	for q := range w.dev.queues {
		w.dev.mu.Unlock()
		q.vq.Do(q.recall)
		w.dev.mu.Lock()
	}
	w.dev.mu.Unlock()
	f.thaw()
	if _, _, err := w.rings[0].Wait(); err != nil {
		t.Fatal(err)
	}
	if got, st := f.begun.Load(), w.bytes(st)[0]; got != 1 || st != statusIOErr {
		t.Errorf("%d pieces have reached the driver, and the status is %d", got, st)
	}
}

// TestLargeRangesAreDoneInPieces looks at what reaches the driver of ranges as large as there can
// be, whole and in order.
func TestLargeRangesAreDoneInPieces(t *testing.T) {
	const sectors = 1<<32 - 8 // num_sectors has 32 bits
	for name, c := range map[string]struct {
		typ   uint32
		piece int64
	}{
		"discard":      {tDiscard, discardPiece},
		"write-zeroes": {tWriteZeroes, writeZeroesPiece},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFrozen(t)
			f.thaw()
			var at, most int64
			at = 8 * sectorSize
			f.seen = func(z devsw.ZeroRange) {
				if z.Pos != at || z.N <= 0 || z.Pos/c.piece != (z.Pos+z.N-1)/c.piece {
					t.Errorf("%d bytes from %d on came, and %d was next", z.N, z.Pos, at)
				}
				at += z.N
				most = max(most, z.N)
			}
			w := newBench(t, reactor.ModeURing, 1, f.disk, nil)
			w.start(w.all())
			st, _ := w.do(0, c.typ, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{8, sectors, 0})}, nil)
			w.close() // only the guest's memory orders what was seen before the answer
			if want := int64(8+sectors) * sectorSize; st != statusOK || at != want || most != c.piece {
				t.Errorf("status %d, done up to %d in pieces of at most %d, want %d in pieces of %d", st, at, most, want, c.piece)
			}
		})
	}
}

// TestTheTraceNamesARefusedRange has one of several ranges lie beyond the end.
func TestTheTraceNamesARefusedRange(t *testing.T) {
	var got []Request
	w := newBench(t, reactor.ModeURing, 1, vndDisk, func(c *benchConfig) { c.Trace = func(r Request) { got = append(got, r) } })
	w.start(w.all())
	st, _ := w.do(0, tWriteZeroes, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 0}, [3]uint64{diskSize / 512, 16, 0})}, nil)
	w.close()
	if st != statusIOErr || len(got) != 1 || got[0].Sector != diskSize/512 || got[0].Bytes != 16*512 {
		t.Errorf("status %d, and the trace says %v", st, got)
	}
}

// TestAFrozenFileSystem is the same for a real one, with little.
func TestAFrozenFileSystem(t *testing.T) {
	const n = 100
	dir, freeze, thaw := freezable(t)
	pool := offload.New(offload.Config{Places: 8, Each: 6})
	t.Cleanup(pool.Close)
	disk := func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
		return vndWith(t, table, dir, vnd.Config{Discard: true})
	}
	w := newBench(t, reactor.ModeURing, 1, disk, func(c *benchConfig) { c.Pool = (*Pool)(pool) })
	t.Cleanup(thaw)
	w.startSized(128, nil)
	r := w.rings[0]
	if st, _ := w.do(0, tDiscard, 0, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 0})}, nil); st != statusOK {
		t.Fatalf("a discard before: status %d", st)
	}
	before := threads(t)
	freeze()
	head := w.header(tDiscard, 0)
	status := w.buffer(n)
	for i := range n {
		if _, ok := r.AddIndirect([]virtqtest.Seg{head, w.rangeSeg([3]uint64{uint64(i * 64), 64, 0})},
			[]virtqtest.Seg{{Addr: status.Addr + uint64(i), Len: 1}}); !ok {
			t.Fatal("no room")
		}
	}
	w.check(r.Notify())
	w.until("the discards are stuck", func() bool { return w.inFlight() == n && w.dev.share.Running() == 6 })
	time.Sleep(20 * time.Millisecond) // for threads to be made, if any were
	if got := threads(t); got > before+6+8 {
		t.Errorf("%d threads, %d before the file system was frozen", got, before)
	}
	thaw()
	for range n {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		if _, _, err := r.WaitContext(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	for i, st := range w.bytes(status) {
		if st != statusOK {
			t.Errorf("discard %d: status %d", i, st)
		}
	}
}

// freezable mounts a file system of its own, and gives what freezes and thaws it.
func freezable(t *testing.T) (dir string, freeze, thaw func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can mount and freeze a file system")
	}
	for _, name := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("there is no %s (Debian: e2fsprogs, mount, util-linux)", name)
		}
	}
	run := func(name string, args ...string) error {
		// Looking for a free loop device hangs where another's backing file does.
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		if err != nil {
			t.Logf("%s %v: %v: %s", name, args, err, out)
		}
		return err
	}
	image := filepath.Join(t.TempDir(), "image")
	w := must(os.Create(image))(t)
	if err := w.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	w.Close()
	dir = t.TempDir()
	if run("mkfs.ext4", "-q", image) != nil || run("mount", "-o", "loop", image, dir) != nil {
		t.Skip("no file system can be mounted here")
	}
	// It is thawed and unmounted by a shell, when this process lets go of its input: also where a
	// test does not come to its end.
	guard := exec.Command("sh", "-c", `read x; fsfreeze --unfreeze "$0" 2>/dev/null; umount "$0"`, dir)
	hold := must(guard.StdinPipe())(t)
	if err := guard.Start(); err != nil {
		_ = run("umount", dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		hold.Close()
		if guard.Wait() != nil {
			t.Error("the file system stays mounted")
		}
	})
	unfreeze := sync.OnceFunc(func() {
		if run("fsfreeze", "--unfreeze", dir) != nil {
			t.Error("the file system stays frozen")
		}
	})
	frozen := false
	return dir, func() {
			frozen = true
			if run("fsfreeze", "--freeze", dir) != nil {
				t.Skip("no file system can be frozen here")
			}
		}, func() {
			if frozen {
				unfreeze()
			}
		}
}
