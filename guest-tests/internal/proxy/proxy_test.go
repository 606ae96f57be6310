package proxy

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/internal/sys"
	"vdev/vhostuser"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	memSize  = 1 << 20
	userBase = 0x7f0000000000
	ringSize = 16
	descAt   = 0x1000
	availAt  = 0x2000
	usedAt   = 0x3000
	dataAt   = 0x5000 // of the request that is under way: a page
	doneAt   = 0x6000 // of one that has completed
)

// world is a front-end and a back-end with a Proxy between them, all in this process.
type world struct {
	t           *testing.T
	proxy       *Proxy
	front, back *net.UnixConn
	mem         []byte // guest memory
	call        *sys.FD
	backCall    *sys.FD // what the back-end was given for it
}

func newWorld(t *testing.T) *world {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "b"), Net: "unix"})
	must(err)
	defer l.Close()
	w := &world{t: t}
	w.proxy, err = Listen(filepath.Join(dir, "f"), filepath.Join(dir, "b"))
	must(err)
	t.Cleanup(w.proxy.Close)
	w.front, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: filepath.Join(dir, "f"), Net: "unix"})
	must(err)
	t.Cleanup(func() { w.front.Close() })
	w.back, err = l.AcceptUnix()
	must(err)
	t.Cleanup(func() { w.back.Close() })

	file, err := sys.NewMemfd("guest", memSize)
	must(err)
	w.mem, err = sys.Mmap(file.Int(), 0, memSize, true)
	must(err)
	t.Cleanup(func() { sys.Munmap(w.mem) })
	w.call, err = sys.NewEventfd()
	must(err)
	t.Cleanup(func() { w.call.Close() })

	table := vhostuser.AppendMemoryTable(nil, []vhostuser.MemoryRegion{{Size: memSize, UserAddr: userBase}})
	w.send(vhostuser.SetMemTable, table, file)
	w.send(vhostuser.SetVringNum, binary.NativeEndian.AppendUint64(nil, ringSize<<32))
	addr := make([]byte, 8, 40)
	for _, a := range []uint64{userBase + descAt, userBase + usedAt, userBase + availAt, 0} {
		addr = binary.NativeEndian.AppendUint64(addr, a)
	}
	w.send(vhostuser.SetVringAddr, addr)
	theirs, err := w.call.Dup()
	must(err)
	if m := w.send(vhostuser.SetVringCall, make([]byte, 8), theirs); len(m.fds) == 1 {
		w.backCall = m.fds[0]
	} else {
		t.Fatalf("SET_VRING_CALL came with %d descriptors", len(m.fds))
	}
	t.Cleanup(func() { w.backCall.Close() })
	kick, err := sys.NewEventfd()
	must(err)
	sys.CloseAll(w.send(vhostuser.SetVringKick, make([]byte, 8), kick).fds)

	// Head 3 has completed, head 5 is under way; both read a page.
	for i, head := range []uint16{3, 5} {
		d := w.mem[descAt+16*int(head):]
		binary.LittleEndian.PutUint64(d, uint64(doneAt))
		if head == 5 {
			binary.LittleEndian.PutUint64(d, uint64(dataAt))
		}
		binary.LittleEndian.PutUint32(d[8:], pageSize)
		binary.LittleEndian.PutUint16(d[12:], descWrite)
		binary.LittleEndian.PutUint16(w.mem[availAt+4+2*i:], head)
	}
	binary.LittleEndian.PutUint16(w.mem[availAt+2:], 2)
	binary.LittleEndian.PutUint32(w.mem[usedAt+4:], 3)
	binary.LittleEndian.PutUint16(w.mem[usedAt+2:], 1)
	return w
}

// send has the front-end send a message, and returns what the back-end gets.
func (w *world) send(r vhostuser.Request, payload []byte, fds ...*sys.FD) *message {
	w.t.Helper()
	if err := (&message{r, 1, payload, fds}).send(w.front); err != nil {
		w.t.Fatal(err)
	}
	m, err := receive(w.back)
	if err != nil || m.request != r || string(m.payload) != string(payload) {
		w.t.Fatalf("the back-end got %+v, %v", m, err)
	}
	if r != vhostuser.SetVringCall && r != vhostuser.SetVringKick {
		sys.CloseAll(m.fds)
	}
	return m
}

// stop stops the ring; the back-end does something as soon as it has answered.
func (w *world) stop(then func()) {
	w.t.Helper()
	m := w.send(vhostuser.GetVringBase, make([]byte, 8))
	// The answer is held back until then has been done, which so cannot be too late.
	done := make(chan struct{})
	w.proxy.Hold(time.Millisecond, func() { then(); close(done) })
	m.flags |= flagReply
	if err := m.send(w.back); err != nil {
		w.t.Fatal(err)
	}
	if m, err := receive(w.front); err != nil || m.request != vhostuser.GetVringBase {
		w.t.Fatalf("the front-end got %+v, %v", m, err)
	}
	<-done
}

func (w *world) expect(finding string) {
	w.t.Helper()
	r := w.proxy.Report()
	switch {
	case finding == "" && len(r.Findings) > 0:
		w.t.Errorf("findings %q; want none", r.Findings)
	case finding != "" && (len(r.Findings) != 1 || !strings.Contains(r.Findings[0], finding)):
		w.t.Errorf("findings %q; want %q", r.Findings, finding)
	}
}

func TestABackEndThatKeepsItsWordIsNotBlamed(t *testing.T) {
	w := newWorld(t)
	before := append([]byte(nil), w.mem...)
	if err := sys.EventfdWrite(w.backCall.Int()); err != nil {
		t.Fatal(err)
	}
	// What the guest has got back is the guest's.
	w.stop(func() { w.mem[doneAt]++ })
	w.expect("")
	before[doneAt]++
	if string(before) != string(w.mem) {
		t.Error("the proxy has not put back what it has poisoned")
	}
	if n, err := sys.EventfdRead(w.call.Int()); n != 1 || err != nil {
		t.Errorf("a call before the answer: %d, %v", n, err)
	}
	if r := w.proxy.Report(); r.Stops != 1 || r.Pending != 1 || r.Watched != pageSize+6+8*ringSize || r.Completed != 1 {
		t.Errorf("report %v", r)
	}
}

func TestALateWriteIsFound(t *testing.T) {
	w := newWorld(t)
	w.stop(func() { w.mem[dataAt+100]++ })
	w.expect("buffer 0 of head 5 were written after the answer")
}

func TestALateUsedElementIsFound(t *testing.T) {
	w := newWorld(t)
	w.stop(func() { w.mem[usedAt+2]++ })
	w.expect("the used ring were written after the answer")
}

func TestALateCallIsFound(t *testing.T) {
	w := newWorld(t)
	w.stop(func() {
		if err := sys.EventfdWrite(w.backCall.Int()); err != nil {
			t.Error(err)
		}
	})
	// It is handed on all the same, and found by then.
	if err := sys.WaitReadable(w.call.Int(), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	w.expect("a call after the ring had stopped")
}

func TestAPausedMachinesMemoryIsWatched(t *testing.T) {
	w := newWorld(t)
	for _, where := range []int{-1, 10, memSize - 1} {
		thaw, err := w.proxy.Freeze()
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if where >= 0 {
			w.mem[where]++
			want = 1
		}
		if n, err := thaw(); n != want || err != nil {
			t.Errorf("byte %d: %d pages changed, %v", where, n, err)
		}
	}
}

func TestWhoeverWantsToKnowIsToldOfTheRings(t *testing.T) {
	w := newWorld(t)
	told := make(chan bool, 8)
	w.proxy.Rings(func(run bool) { told <- run })
	expect := func(when string, want ...bool) {
		t.Helper()
		var got []bool
		for len(told) > 0 {
			got = append(got, <-told)
		}
		if !slices.Equal(got, want) {
			t.Errorf("told %v %s; want %v", got, when, want)
		}
	}
	start := func(ring byte) {
		kick, err := sys.NewEventfd()
		if err != nil {
			t.Fatal(err)
		}
		sys.CloseAll(w.send(vhostuser.SetVringKick, []byte{ring, 0, 0, 0, 0, 0, 0, 0}, kick).fds)
	}
	start(1)
	expect("when a ring started", true)
	w.stop(func() {})
	expect("when one ring of two had stopped")
	w.proxy.Hold(0, nil)
	m := w.send(vhostuser.GetVringBase, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	m.flags |= flagReply
	if err := m.send(w.back); err != nil {
		t.Fatal(err)
	}
	if _, err := receive(w.front); err != nil {
		t.Fatal(err)
	}
	expect("when all rings had stopped", false)
}
