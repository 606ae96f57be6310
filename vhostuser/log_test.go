package vhostuser_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

const page = vhostusertest.LogPage

// logSize covers the memory of a rig: its last page is 1<<20 bytes behind 4 GiB.
const logSize = (1<<32 + 1<<20) / page / 8

func newLog(t testing.TB) *vhostusertest.Log {
	t.Helper()
	l, err := vhostusertest.NewLog(logSize)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// paged are buffers of a request whose answer has a page of its own.
func paged(mem *virtqtest.Mem) buffers {
	b := newBuffers(mem)
	b.out[0].Addr = mem.AllocIn(1, page, page)
	return b
}

func (b buffers) page() uint64 { return b.out[0].Addr / page }

// begin adds a request, and shows it.
func (b buffers) begin(g *rig, r *vhostusertest.Ring, n int) {
	g.t.Helper()
	b.fill(n)
	if _, ok := r.Add(b.in, b.out); !ok {
		g.t.Fatal("no room")
	}
	g.must(r.Notify())
}

// end waits for it.
func (b buffers) end(g *rig, r *vhostusertest.Ring, n int) {
	g.t.Helper()
	_, _, err := r.Wait()
	g.must(err)
	g.must(b.check(n))
}

func (b buffers) do(g *rig, r *vhostusertest.Ring, n int) {
	g.t.Helper()
	b.begin(g, r, n)
	b.end(g, r, n)
}

// settle returns when the reactor has done what it was doing with r: the used ring is marked after
// the driver can see it.
func (g *rig) settle(r *vhostusertest.Ring) {
	g.t.Helper()
	g.must(g.SetVringCall(r.Index, r.CallFD()))
}

// release ends all that the device holds back on q.
func (d *reverser) release(q *vhostuser.Queue) { q.Post(func() { d.finishHeld(q) }) }

func TestMigrationIsOfferedUnlessItIsRuledOut(t *testing.T) {
	for _, not := range []bool{false, true} {
		dev := newReverser(1)
		b, err := vhostuser.New(vhostuser.Config{Device: dev, Reactors: newReactors(t), NotMigratable: not})
		if err != nil {
			t.Fatal(err)
		}
		g := &rig{t: t, dev: dev, backend: b, served: make(chan error, 1), mem: newMem(t)}
		g.connect()
		features, err := g.Handshake(vhostusertest.AllProtocolFeatures)
		g.must(err)
		if got := features&vhostuser.FLogAll == 0; got != not {
			t.Errorf("not migratable %v: features %#x", not, features)
		}
		if got := g.ProtocolFeatures()&vhostuser.ProtocolLogSHMFD == 0; got != not {
			t.Errorf("not migratable %v: protocol features %#x", not, g.ProtocolFeatures())
		}
		if not {
			if err := g.SetFeatures(features | vhostuser.FLogAll); !errors.Is(err, vhostusertest.ErrRefused) {
				t.Errorf("LOG_ALL: %v, want a refusal", err)
			}
		}
		g.hangUp()
	}
}

func TestTheDeviceKnowsNothingOfTheLog(t *testing.T) {
	dev := newReverser(1)
	g := newRig(t, dev)
	g.handshake() // with LOG_ALL
	if life := dev.life(); strings.Contains(life, fmt.Sprintf("%#x", g.Features())) {
		t.Errorf("the device's life: %s", life)
	}
	g.io(g.start(0, 4), 1)
}

// The front-end begins while requests are in the device's hands, of which it knows nothing.
func TestWhatIsInFlightWhenTheLogBeginsIsMarked(t *testing.T) {
	dev := newReverser(1)
	var q atomic.Pointer[vhostuser.Queue]
	dev.onStart = func(started *vhostuser.Queue) error { q.Store(started); return nil }
	g := newRig(t, dev)
	g.handshake()
	g.must(g.SetFeatures(g.Features() &^ vhostuser.FLogAll))
	r := g.start(0, 8)
	dev.setHold(true)
	early, late := paged(g.mem), paged(g.mem)
	early.begin(g, r, 1)
	dev.waitHeld(t, 1)
	l := newLog(t)
	g.must(g.StartLog(l, r))
	used := r.UsedPhys() / page
	if pages := l.Take(); !slices.Equal(pages, []uint64{used}) {
		t.Errorf("pages %#x are marked at the beginning, want the used ring's, %#x", pages, used)
	}
	late.begin(g, r, 2)
	dev.waitHeld(t, 2)
	dev.release(q.Load())
	late.end(g, r, 2)
	early.end(g, r, 1)
	g.settle(r)
	if pages, want := l.Take(), []uint64{used, early.page(), late.page()}; !slices.Equal(pages, want) {
		t.Errorf("pages %#x are marked, want %#x", pages, want)
	}
	g.must(g.StopLog(r))
	l.Take()
	dev.setHold(false)
	late.do(g, r, 3)
	g.must(r.Stop())
	if pages := l.Take(); pages != nil {
		t.Errorf("pages %#x are marked when the log is off", pages)
	}
}

func TestEachFlagHasItsPart(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	features := g.Features() &^ vhostuser.FLogAll
	g.must(g.SetFeatures(features))
	r := g.start(0, 8)
	b := paged(g.mem)
	l := newLog(t)
	g.must(g.SetLogBase(logSize, 0, l.FD()))
	set := func(featuresFirst bool, features uint64, flags uint32) {
		a := r.Addr()
		a.Flags = flags
		if featuresFirst {
			g.must(g.SetFeatures(features))
			g.must(g.SetVringAddr(a))
		} else {
			g.must(g.SetVringAddr(a))
			g.must(g.SetFeatures(features))
		}
		l.Take()
	}
	for _, c := range []struct {
		what     string
		features uint64
		flags    uint32
		want     []uint64
	}{
		{"neither", features, 0, nil},
		{"LOG_ALL", features | vhostuser.FLogAll, 0, []uint64{b.page()}},
		{"VHOST_VRING_F_LOG", features, vhostuser.VringLog, []uint64{r.UsedPhys() / page}},
		{"both", features | vhostuser.FLogAll, vhostuser.VringLog, []uint64{r.UsedPhys() / page, b.page()}},
		{"neither again", features, 0, nil},
	} {
		for _, featuresFirst := range []bool{true, false} {
			set(featuresFirst, c.features, c.flags)
			b.do(g, r, 1)
			g.settle(r)
			if pages := l.Take(); !slices.Equal(pages, c.want) {
				t.Errorf("%s: pages %#x are marked, want %#x", c.what, pages, c.want)
			}
			set(featuresFirst, features, 0)
		}
	}
}

// QEMU sets the features first when a device starts in the midst of a migration, and the log when
// its rings are set up, before they are enabled.
func TestADeviceMayStartWithTheLogOn(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake() // with LOG_ALL
	r := g.ring(0, 8)
	g.must(r.Setup())
	g.must(g.SetVringKick(0, r.KickFD()))
	l := newLog(t)
	g.must(g.SetLogBase(logSize, 0, l.FD()))
	g.must(g.SetVringEnable(0, true))
	b := paged(g.mem)
	check := func(what string) {
		t.Helper()
		g.must(r.Stop())
		if pages, want := l.Take(), []uint64{r.UsedPhys() / page, b.page()}; !slices.Equal(pages, want) {
			t.Errorf("%s: pages %#x are marked, want %#x", what, pages, want)
		}
	}
	b.do(g, r, 1)
	check("first start")
	g.must(r.Start())
	b.do(g, r, 2)
	check("next start")
}

func TestOnceALogIsReplacedTheOldOneIsLeftAlone(t *testing.T) {
	g := newRig(t, newReverser(2))
	g.handshake()
	rings := []*vhostusertest.Ring{g.start(0, 8), g.start(1, 8)}
	b := paged(g.mem)
	old := newLog(t)
	g.must(g.StartLog(old, rings...))
	for i := range 20 {
		for _, r := range rings {
			b.do(g, r, i)
		}
		l := newLog(t)
		g.must(g.SetLogBase(logSize, 0, l.FD()))
		if !slices.Contains(old.Take(), b.page()) {
			t.Fatal("a page is not marked")
		}
		for _, r := range rings {
			b.do(g, r, i)
		}
		if pages := old.Take(); pages != nil {
			t.Fatalf("pages %#x are marked in the old log", pages)
		}
		old = l
	}
	// A log within a file, and a back-end that has let go of all others.
	l, err := vhostusertest.NewLog(page + logSize)
	g.must(err)
	defer l.Close()
	g.must(g.SetLogBase(logSize, page, l.FD()))
	b.do(g, rings[0], 1)
	g.must(rings[0].Stop())
	if pages, want := l.Take(), b.page()+8*page; !slices.Contains(pages, want) {
		t.Errorf("pages %#x are marked from the offset on, want %#x there", pages, want)
	}
	ours := 22
	if n := logsMapped(t); n != ours+1 {
		t.Errorf("%d logs are mapped, want the front-end's %d and one", n, ours)
	}
	g.must(g.SetOwner())
	g.must(g.Barrier())
	if n := logsMapped(t); n != ours {
		t.Errorf("%d logs are mapped in a new session, want the front-end's %d", n, ours)
	}
}

// logsMapped counts the mappings of logs in this process.
func logsMapped(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "/memfd:vhost-log ")
}

// What a busy device writes is all there on another host that has copied, in the end, what was
// marked.
func TestAGuestThatMovesHasAllThatWasWritten(t *testing.T) {
	for _, aio := range []vhostuser.Mode{vhostuser.ModeURing, vhostuser.ModeThreads} {
		t.Run(string(aio), func(t *testing.T) {
			dev := newReverser(2)
			g := newRigOn(t, dev, aio)
			g.handshake()
			g.must(g.SetFeatures(g.Features() &^ vhostuser.FLogAll))
			rings := []*vhostusertest.Ring{g.start(0, 16), g.start(1, 16)}
			var bufs [2][]buffers
			for i := range bufs {
				for range 16 / 2 {
					bufs[i] = append(bufs[i], paged(g.mem))
				}
			}
			// The other host: what only the device writes.
			watched := make(map[uint64][]byte) // by page: where it is in memory
			for _, r := range rings {
				watched[r.UsedPhys()/page] = r.UsedBytes()
			}
			for _, list := range bufs {
				for _, b := range list {
					watched[b.page()] = g.mem.Bytes(b.out[0].Addr, page)
				}
			}
			if len(watched) < 2*8+1 {
				t.Fatal("buffers share a page")
			}
			target := make(map[uint64][]byte)
			l := newLog(t)
			sync := func(l *vhostusertest.Log) {
				for _, p := range l.Take() {
					target[p] = bytes.Clone(watched[p])
				}
			}
			busy := func(rounds int) {
				for n := range rounds {
					for i, r := range rings {
						// fill clears the answer, which is a write of the driver's: not here.
						for _, b := range bufs[i] {
							copy(g.mem.Bytes(b.in[0].Addr, 16), fmt.Sprintf("%016d", n+rand.IntN(1e9)))
							if _, ok := r.Add(b.in, b.out); !ok {
								t.Fatal("no room")
							}
						}
						g.must(r.Notify())
					}
					if rand.IntN(2) == 0 {
						sync(l)
					}
					for i, r := range rings {
						for range bufs[i] {
							_, _, err := r.Wait()
							g.must(err)
						}
					}
				}
			}
			busy(3)
			g.must(g.StartLog(l, rings...))
			for p, b := range watched {
				target[p] = bytes.Clone(b)
			}
			for range 10 {
				busy(10)
				old := l
				l = newLog(t)
				g.must(g.SetLogBase(logSize, 0, l.FD()))
				sync(old)
			}
			for _, r := range rings {
				g.must(r.Stop())
			}
			sync(l)
			for p, b := range watched {
				if !bytes.Equal(target[p], b) {
					t.Errorf("page %#x has not been marked after its last write", p)
				}
			}
		})
	}
}

func TestTheLogsDescriptorIsSignalledAfterMarking(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	fd, err := sys.NewEventfd()
	g.must(err)
	defer fd.Close()
	b := paged(g.mem)
	l := newLog(t)
	signalled := func() bool {
		g.settle(r)
		_, err := sys.EventfdRead(fd.Int())
		return err == nil
	}
	g.must(g.SetLogFD(fd.Int()))
	g.must(g.SetLogFD(fd.Int())) // in place of the first
	b.do(g, r, 1)
	if signalled() {
		t.Error("signalled without a log")
	}
	g.must(g.StartLog(l, r))
	signalled()
	b.do(g, r, 2)
	if !signalled() {
		t.Error("not signalled")
	}
	g.must(g.StopLog(r))
	signalled()
	b.do(g, r, 3)
	if signalled() {
		t.Error("signalled when the log is off")
	}
}

func TestBadLogsEndTheConnection(t *testing.T) {
	log := func(size, offset uint64) []byte {
		return vhostuser.LogBase{MmapSize: size, MmapOffset: offset}.Append(nil)
	}
	for _, c := range []struct {
		name    string
		payload []byte
		fds     int
		want    string
	}{
		{"no descriptor", log(page, 0), 0, "fds 0x0"},
		{"two descriptors", log(page, 0), 2, "fds 0x2"},
		{"a descriptor that cannot be mapped", log(page, 0), -1, "it is an eventfd"},
		{"empty", log(0, 0), 1, "size is 0"},
		{"longer than its file", log(page+1, 0), 1, "ends too early"},
		{"behind its file", log(8, page), 1, "ends too early"},
		{"offset that is odd", log(8, 4), 1, "multiple of 8"},
		{"size beyond all bounds", log(1<<63, 0), 1, "overflows"},
		{"only 64 bits", vhostuser.AppendU64(nil, page), 1, "size 0x8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			var fds []int
			if c.fds < 0 {
				efd, err := sys.NewEventfd()
				g.must(err)
				defer efd.Close()
				fds = []int{efd.Int()}
			}
			for range c.fds {
				l, err := vhostusertest.NewLog(page)
				g.must(err)
				defer l.Close()
				fds = append(fds, l.FD())
			}
			g.must(g.Request(vhostuser.SetLogBase, vhostuser.FlagNeedReply, c.payload, fds...))
			wantProtocolError(t, g.wait(), vhostuser.SetLogBase, c.want)
		})
	}
	t.Run("not negotiated", func(t *testing.T) {
		g := newRig(t, newReverser(1))
		_, err := g.Handshake(vhostusertest.AllProtocolFeatures &^ vhostuser.ProtocolLogSHMFD)
		g.must(err)
		l := newLog(t)
		g.must(g.Request(vhostuser.SetLogBase, 0, log(page, 0), l.FD()))
		wantProtocolError(t, g.wait(), vhostuser.SetLogBase, "not negotiated")
	})
}

func TestALogThatLacksPagesBreaksTheRingThatNeedsThem(t *testing.T) {
	small, err := vhostusertest.NewLog(1 << 20 / page / 8) // the first region, with the rings
	if err != nil {
		t.Fatal(err)
	}
	defer small.Close()
	for _, when := range []string{"a buffer", "the used ring"} {
		t.Run(when, func(t *testing.T) {
			g := newRig(t, newReverser(2))
			g.handshake()
			r, other := g.start(0, 4), g.start(1, 4)
			if when == "a buffer" {
				g.must(g.SetLogBase(1<<20/page/8, 0, small.FD()))
				g.must(g.SetVringAddr(r.Addr()))
				paged(g.mem).begin(g, r, 1)
			} else {
				a := r.Addr()
				a.Log = 1 << 20
				g.must(g.SetLogBase(1<<20/page/8, 0, small.FD()))
				g.must(g.SetVringAddr(a))
			}
			g.must(sys.WaitReadable(r.ErrFD(), vhostusertest.Timeout))
			broken := g.rec.find(vhostuser.EventBreak)
			var be *virtq.BrokenError
			if len(broken) != 1 || broken[0].Ring != 0 || !errors.As(broken[0].Err, &be) || be.Reason != virtq.ReasonLog {
				t.Fatalf("%v, want ring 0 broken: %v", broken, virtq.ReasonLog)
			}
			g.io(other, 2)
			g.must(r.Stop())
		})
	}
}

func TestALogThatIsCutOffEndsTheConnection(t *testing.T) {
	for _, when := range []string{"while requests are served", "before it is used"} {
		t.Run(when, func(t *testing.T) {
			g := newRig(t, newReverser(1))
			g.handshake()
			r := g.start(0, 4)
			l := newLog(t)
			if when == "before it is used" {
				g.must(g.SetFeatures(g.Features() &^ vhostuser.FLogAll))
				g.must(g.SetVringAddr(r.Addr()))
				g.must(g.SetLogBase(logSize, 0, l.FD()))
				g.must(syscall.Ftruncate(l.FD(), 0))
				a := r.Addr()
				a.Flags = vhostuser.VringLog
				g.must(g.Request(vhostuser.SetVringAddr, 0, a.Append(nil)))
			} else {
				g.must(g.StartLog(l, r))
				g.must(syscall.Ftruncate(l.FD(), 0))
				b := paged(g.mem)
				b.fill(1)
				r.Add(b.in, b.out)
				g.must(r.Notify())
			}
			err := g.wait()
			var ring *vhostuser.RingError
			var fault *vhostuser.FaultError
			if !errors.As(err, &ring) || ring.Ring != 0 || !errors.As(err, &fault) {
				t.Fatalf("%v, want a fault of ring 0", err)
			}
		})
	}
}
