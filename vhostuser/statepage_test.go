package vhostuser_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// remembering is a reverser with a state.
type remembering struct {
	*reverser
	mu     sync.Mutex
	page   *vhostuser.StatePage
	found  []uint32 // the state of each page that came
	begins int
}

func (k *remembering) SessionBegin() { k.begins++ }

func (k *remembering) SetStatePage(p *vhostuser.StatePage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.page != nil {
		k.page.Close()
	}
	if k.page = p; p != nil {
		k.found = append(k.found, p.State())
	}
}

// store stores a state, and tells whether there is a page for it.
func (k *remembering) store(state uint32) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.page == nil {
		return false
	}
	k.page.Store(state, 0, 0)
	return true
}

// sends brings the region as d describes it to the back-end, whose device then has found what it
// returns; ok: a page was there.
func (k *remembering) sends(g *rig, d vhostuser.Inflight, fd int) (state uint32, ok bool) {
	g.t.Helper()
	dup, err := sys.Dup(fd)
	g.must(err)
	i := vhostusertest.NewInflight(d, dup)
	defer i.Close()
	k.mu.Lock()
	k.found = nil
	k.mu.Unlock()
	g.must(g.SetInflightFD(i))
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.found) == 0 {
		return 0, false
	}
	return k.found[0], true
}

// TestWhatIsStoredInTheStatePageIsFoundByTheNextOne, and nothing is that somebody else has written.
func TestWhatIsStoredInTheStatePageIsFoundByTheNextOne(t *testing.T) {
	k := &remembering{reverser: newReverser(3)}
	g := newRigFor(t, k, k.reverser, "")
	g.handshake()
	region, err := g.GetInflightFD(3, 128)
	g.must(err)
	defer region.Close()
	if want := uint64(3*2112+4095)&^4095 + 4096; region.MmapSize != want {
		t.Errorf("the region has %d bytes, want %d", region.MmapSize, want)
	}
	find := func(what string, d vhostuser.Inflight, want uint32, there bool) {
		t.Helper()
		if state, ok := k.sends(g, d, region.FD()); ok != there || state != want {
			t.Errorf("%s: a page %v with %#x, want %v with %#x", what, ok, state, there, want)
		}
	}
	find("new", region.Inflight, 0, true)
	k.store(0xcafe0001)
	find("stored", region.Inflight, 0xcafe0001, true)
	g.io(g.start(0, 16), 3)
	g.must(g.ResetDevice())
	if k.store(1) {
		t.Error("a page is left after RESET_DEVICE")
	}
	find("used by a ring", region.Inflight, 0xcafe0001, true)
	g.handshake()
	if k.store(1) {
		t.Error("a page is left in a new session")
	}
	find("another session", region.Inflight, 0xcafe0001, true)

	d := region.Inflight
	d.MmapSize -= 4096
	find("a region without the page", d, 0, false)
	d.MmapSize, d.MmapOffset = region.MmapSize, 8
	find("at another offset", d, 0, false)
	at := int64(region.MmapSize - 4096)
	put := func(off int64, p ...byte) {
		t.Helper()
		if _, errno := sys.Pwritev(region.FD(), [][]byte{p}, at+off, false); errno != 0 {
			t.Fatal(errno)
		}
	}
	put(8, 2)
	find("changed by somebody", region.Inflight, 0, true)
	k.store(7)
	find("stored anew", region.Inflight, 7, true)
	put(0, 'x')
	find("another's page", region.Inflight, 0, false)
	if k.begins != 2 {
		t.Errorf("%d sessions have begun, want 2", k.begins)
	}
}

// TestTheStatePageIsWrittenWhateverBecomesOfItsFile: a front-end may seal the file, and cut it off,
// without a fault. No system call on it is made, which could wait for the front-end.
func TestTheStatePageIsWrittenWhateverBecomesOfItsFile(t *testing.T) {
	k := &remembering{reverser: newReverser(1)}
	g := newRigFor(t, k, k.reverser, "")
	g.handshake()
	region, err := g.GetInflightFD(1, 16)
	g.must(err)
	defer region.Close()
	ours, err := sys.NewSealableMemfd("in-flight", int64(region.MmapSize))
	g.must(err)
	defer ours.Close()
	content := make([]byte, region.MmapSize)
	read := func(fd int) {
		t.Helper()
		if _, errno := sys.Preadv(fd, [][]byte{content}, 0); errno != 0 {
			t.Fatal(errno)
		}
	}
	read(region.FD())
	if _, errno := sys.Pwritev(ours.Int(), [][]byte{content}, 0, false); errno != 0 {
		t.Fatal(errno)
	}
	if state, ok := k.sends(g, region.Inflight, ours.Int()); !ok || state != 0 {
		t.Fatalf("a page %v with %#x, want one with 0", ok, state)
	}
	g.must(sys.SealWrites(ours.Int()))
	if !k.store(0x12345678) {
		t.Fatal("there is no page")
	}
	read(ours.Int())
	if got := binary.LittleEndian.Uint32(content[region.MmapSize-4096+8:]); got != 0x12345678 {
		t.Errorf("the sealed page has %#x, want what was stored", got)
	}
	g.must(os.Truncate(fmt.Sprintf("/proc/self/fd/%d", ours.Int()), 4096))
	k.store(1)
	g.must(g.Barrier())
}

// TestTheOriginOfADriverShowsInTheBases: where it begins, goes on, or comes from elsewhere.
func TestTheOriginOfADriverShowsInTheBases(t *testing.T) {
	g := newRig(t, newReverser(2))
	g.handshake()
	ring := g.ring(0, 16)
	origin := func(what string, base uint16, want vhostuser.DriverOrigin) {
		t.Helper()
		ring.Base = base
		g.must(ring.Start())
		g.must(g.Barrier())
		if got := g.dev.queue().Driver(); got != want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	origin("the first start", 0, vhostuser.DriverNew)
	g.must(ring.Stop())
	origin("after a pause without a request", ring.Base, vhostuser.DriverSame)
	g.io(ring, 3)
	g.must(ring.Stop())
	origin("after a pause", ring.Base, vhostuser.DriverSame)
	g.must(ring.Stop())
	origin("set back", ring.Base-1, vhostuser.DriverElsewhere)
	g.must(ring.Stop())
	origin("begun anew", 0, vhostuser.DriverNew)
	g.must(ring.Stop())
	g.must(g.ResetDevice())
	origin("after a reset", 0, vhostuser.DriverNew)
	g.must(ring.Stop())
	g.must(g.ResetDevice())
	origin("elsewhere after a reset", 5, vhostuser.DriverElsewhere)
	g.must(ring.Stop())
	g.must(g.ResetDevice())
	origin("another one", 0, vhostuser.DriverNew)
	ring = g.ring(1, 16)
	origin("another ring's base is of elsewhere", 7, vhostuser.DriverElsewhere)
}

// TestTheOriginOfADriverShowsInTheRegion: it has begun what the region has, whatever the base says.
func TestTheOriginOfADriverShowsInTheRegion(t *testing.T) {
	g := newRig(t, newReverser(1).suspends())
	g.handshake()
	region := g.newInflight(1, 16)
	r := g.start(0, 16)
	if got := g.dev.queue().Driver(); got != vhostuser.DriverNew {
		t.Errorf("with a new region: %v, want %v", got, vhostuser.DriverNew)
	}
	bufs := g.hold(r, 3)
	g.must(g.hangUp())
	g.connect()
	g.handshake()
	g.must(g.SetInflightFD(region))
	r.Reconnect(g.Frontend)
	r.Base = 0
	g.must(r.Start())
	g.answered(r, bufs)
	if got := g.dev.queue().Driver(); got != vhostuser.DriverElsewhere {
		t.Errorf("with requests in the region: %v, want %v", got, vhostuser.DriverElsewhere)
	}
}
