package vhostuser_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// QEMU's device_del and device_add over one chardev.
func TestSecondSessionOnTheSameConnection(t *testing.T) {
	dev := newReverser(2)
	g := newRig(t, dev)
	for i := range 5 {
		g.handshake()
		r0, r1 := g.start(0, 8), g.start(1, 8)
		g.io(r0, 10)
		g.io(r1, 10)
		g.must(g.SetStatus(0xf))
		g.must(r0.Stop())
		if i%2 == 0 {
			g.must(r1.Stop())
		}
		dev.life()
	}
	g.must(g.hangUp())
	if dev.sessions != 5 {
		t.Errorf("%d sessions ended, want 5", dev.sessions)
	}
	if n := len(g.rec.find(vhostuser.EventSession)); n != 4 {
		t.Errorf("%d new sessions told, want 4", n)
	}
}

func TestNewSessionForgetsTheOldOneAndKeepsWhatCameBefore(t *testing.T) {
	dev := newReverser(1)
	g := newRig(t, dev)
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 3)
	g.must(g.SetStatus(0xf))
	dev.life()

	// The ring still runs: a new owner ends that.
	features, err := g.Handshake(vhostusertest.AllProtocolFeatures)
	g.must(err)
	if got, want := dev.life(), "stop 0 disconnect, end"; got != want {
		t.Errorf("device's life: %s, want %s", got, want)
	}
	if base, err := g.GetVringBase(0); base != 0 || err != nil {
		t.Errorf("base %d, %v, want 0", base, err)
	}
	if status, err := g.GetStatus(); status != 0 || err != nil {
		t.Errorf("status %#x, %v, want 0", status, err)
	}
	// The regions are gone.
	if err := g.RemoveMemory(g.mem); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("removing memory of the old session: %v, want a refusal", err)
	}
	g.must(g.SetFeatures(features))
	g.must(g.AddMemory(g.mem))
	fresh := g.start(0, 8)
	g.io(fresh, 3)
	// The back-end channel came before SET_OWNER, and is the new session's.
	g.backend.ConfigChanged()
	if _, err := g.ReceiveBackend(); err != nil {
		t.Error(err)
	}
}

// Firmware, boot loader and kernel each negotiate features of their own.
func TestFeaturesChangeBetweenBootPhases(t *testing.T) {
	dev := newReverser(1)
	g := newRig(t, dev)
	g.handshake()
	for _, features := range []uint64{
		virtq.FeatureVersion1, virtq.FeatureVersion1 | virtq.FeatureEventIdx, 0, virtq.FeatureIndirectDesc,
	} {
		g.must(g.SetFeatures(features | vhostuser.FProtocolFeatures))
		g.must(g.SetFeatures(features | vhostuser.FProtocolFeatures))
		r := g.start(0, 8)
		g.io(r, 20)
		g.must(r.Stop())
	}
}

func TestBusyBackendRefusesASecondConnection(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	f, conn, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := g.backend.ServeConn(context.Background(), conn); !errors.Is(err, vhostuser.ErrBusy) {
		t.Errorf("ServeConn: %v, want ErrBusy", err)
	}
	if _, _, err := f.Receive(); err == nil {
		t.Error("the second connection is open")
	}
	g.io(g.start(0, 8), 3)
}

// server is a Backend that serves a socket.
type server struct {
	backend *vhostuser.Backend
	dev     *reverser
	rec     recorder
	path    string
	cancel  context.CancelFunc
	served  chan error
}

func serve(t *testing.T, dev *reverser) *server {
	t.Helper()
	s := newServer(t, dev)
	var ln net.Listener
	ln, s.path = listen(t)
	return s.serve(t, ln)
}

// newServer makes a server that has no socket yet.
func newServer(t *testing.T, dev *reverser) *server {
	t.Helper()
	checkFDs(t)
	s := &server{dev: dev, served: make(chan error, 1)}
	var err error
	s.backend, err = vhostuser.New(vhostuser.Config{Device: dev, Reactors: newReactors(t), Trace: s.rec.trace})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// serve serves what comes from ln, until the end of the test.
func (s *server) serve(t *testing.T, ln net.Listener) *server {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	go func() { s.served <- s.backend.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-s.served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(s.path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return s
}

func (s *server) dial(t *testing.T) *vhostusertest.Frontend {
	t.Helper()
	f, err := vhostusertest.Dial(s.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestServeTakesFrontEndsOneAfterTheOther(t *testing.T) {
	s := serve(t, newReverser(1))
	for range 3 {
		f := s.dial(t)
		if _, err := f.GetFeatures(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	// One that breaks the protocol does not end the service.
	f := s.dial(t)
	if err := f.Request(99, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, _, err := f.Receive(); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := s.dial(t).GetFeatures(); err != nil {
		t.Fatal(err)
	}
}

func TestSecondFrontEndIsToldOff(t *testing.T) {
	s := serve(t, newReverser(1))
	first := s.dial(t)
	if _, err := first.GetFeatures(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := s.dial(t).GetFeatures(); err == nil {
			t.Error("a second front-end is served")
		}
	}
	if _, err := first.GetFeatures(); err != nil {
		t.Errorf("the first front-end: %v", err)
	}
	if n := len(s.rec.find(vhostuser.EventRefuse)); n != 3 {
		t.Errorf("%d front-ends told off, want 3", n)
	}
}

// While the device is taken down after a hang-up the next front-end waits, and the one after it is
// told off.
func TestFrontEndWaitsForThePredecessorsEnd(t *testing.T) {
	dev := newReverser(1)
	goOn := make(chan struct{})
	dev.onStop = func(*vhostuser.Queue, vhostuser.Stop) { <-goOn }
	s := serve(t, dev)
	mem := newMem(t)
	first := s.dial(t)
	if _, err := first.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.SetFeatures(vhostuser.FProtocolFeatures), first.AddMemory(mem)); err != nil {
		t.Fatal(err)
	}
	r, err := first.NewRing(mem, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Start(); err != nil {
		t.Fatal(err)
	}
	first.Close()
	dev.waitFor(t, "stop 0 disconnect")

	second := s.dial(t)
	if err := second.Request(vhostuser.GetFeatures, 0, nil); err != nil {
		t.Fatal(err)
	}
	third := s.dial(t)
	if _, _, err := third.Receive(); err == nil {
		t.Error("a third front-end is served")
	}
	close(goOn)
	if h, _, err := second.Receive(); err != nil || h.Request != uint32(vhostuser.GetFeatures) {
		t.Errorf("the second front-end: %+v, %v", h, err)
	}
}

// shortListener cannot accept the first times.
type shortListener struct {
	net.Listener
	fails int
}

func (l *shortListener) Accept() (net.Conn, error) {
	if l.fails > 0 {
		l.fails--
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return l.Listener.Accept()
}

func TestFrontEndWaitsUntilThereAreDescriptorsAgain(t *testing.T) {
	s := newServer(t, newReverser(1))
	ln, path := listen(t)
	s.path = path
	s.serve(t, &shortListener{ln, 3})
	if _, err := s.dial(t).GetFeatures(); err != nil {
		t.Fatal(err)
	}
	if told := s.rec.find(vhostuser.EventShort); len(told) != 1 || !errors.Is(told[0].Err, syscall.EMFILE) {
		t.Errorf("told %v, want EMFILE once", told)
	}
}

func TestServeEndsWithItsContext(t *testing.T) {
	dev := newReverser(1)
	s := serve(t, dev)
	f := s.dial(t)
	if _, err := f.GetFeatures(); err != nil {
		t.Fatal(err)
	}
	s.cancel()
	if err := <-s.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	s.served <- nil
	if _, _, err := f.Receive(); err == nil {
		t.Error("the connection is open")
	}
	if got := dev.life(); got != "end" {
		t.Errorf("device's life: %s, want end", got)
	}
}

func TestListenReplacesOnlyDeadSockets(t *testing.T) {
	checkFDs(t)
	dir := t.TempDir()
	path := dir + "/sock"
	ln, err := vhostuser.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vhostuser.Listen(path); !errors.Is(err, vhostuser.ErrInUse) || !strings.Contains(err.Error(), path) {
		t.Errorf("second Listen: %v, want ErrInUse with the path", err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the socket in use was removed: %v", err)
	}
	// Dead: nobody listens, but the file stayed.
	ln.(*sys.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	ln, err = vhostuser.Listen(path)
	if err != nil {
		t.Fatalf("dead socket: %v", err)
	}
	ln.Close()
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket was not removed: %v", err)
	}
	// Something else.
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := vhostuser.Listen(path); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way: %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file in the way: %q, %v", b, err)
	}
	if _, err := vhostuser.Listen(dir + "/none/sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
}

// inherit returns a duplicate of what c is, as a descriptor that nobody owns.
func inherit(t testing.TB, c interface{ File() (*os.File, error) }) int {
	t.Helper()
	f, err := c.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := sys.NewFD(int(f.Fd()))
	dup, err := fd.Dup()
	if err != nil {
		t.Fatal(err)
	}
	return dup.Int()
}

func TestFromFDTakesListeningAndConnectedSockets(t *testing.T) {
	checkFDs(t)
	b, err := vhostuser.New(vhostuser.Config{Device: newReverser(1), Reactors: newReactors(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Run("connected", func(t *testing.T) {
		f, conn, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		fd := inherit(t, conn)
		conn.Close()
		ln, err := vhostuser.FromFD(fd)
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() { served <- b.Serve(context.Background(), ln) }()
		if _, err := f.GetFeatures(); err != nil {
			t.Error(err)
		}
		f.Close()
		// There is no second connection to wait for.
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Run("listening", func(t *testing.T) {
		made, path := listen(t)
		fd := inherit(t, made.(*sys.UnixListener).UnixListener)
		made.(*sys.UnixListener).SetUnlinkOnClose(false)
		made.Close()
		ln, err := vhostuser.FromFD(fd)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- b.Serve(ctx, ln) }()
		for range 2 {
			f, err := vhostusertest.Dial(path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.GetFeatures(); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		cancel()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("a socket that is not ours was removed: %v", err)
		}
	})
	t.Run("unused", func(t *testing.T) {
		f, conn, err := vhostusertest.Pair()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd := inherit(t, conn)
		conn.Close()
		ln, err := vhostuser.FromFD(fd)
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		ln.Close()
	})
}

func TestFromFDSaysWhatIsWrong(t *testing.T) {
	checkFDs(t)
	e, err := sys.NewEventfd()
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer tcp.Close()
	udp, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: t.TempDir() + "/s", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	tcpFD, udpFD := sys.NewFD(inherit(t, tcp.(*net.TCPListener))), sys.NewFD(inherit(t, udp))
	defer tcpFD.Close()
	defer udpFD.Close()
	for _, c := range []struct {
		fd   int
		want string
	}{
		{e.Int(), "not a socket"},
		{100000, "not open"},
		{-1, "not open"},
		{tcpFD.Int(), "not a Unix stream socket"},
		{udpFD.Int(), "not a Unix stream socket"},
	} {
		if _, err := vhostuser.FromFD(c.fd); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("descriptor %d: %v, want %q", c.fd, err, c.want)
		}
	}
	// What was refused stays its owner's.
	if err := sys.EventfdWrite(e.Int()); err != nil {
		t.Error(err)
	}
}

func TestMemoryComesAndGoesUnderLoad(t *testing.T) {
	dev := newReverser(1)
	g := newRig(t, dev)
	g.handshake()
	r := g.start(0, 64)
	extra, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 16})
	g.must(err)
	defer extra.Close()
	region := vhostuser.MemoryRegion(extra.Regions()[0])
	region.UserAddr += 1 << 40
	for i := range 30 {
		g.must(g.AddMemReg(region, extra.FD()))
		// Once more: it is known.
		g.must(g.AddMemReg(region, extra.FD()))
		g.io(r, 5)
		b := newBuffers(g.mem)
		b.fill(i)
		far := extra.Alloc(16, 16)
		written, err := r.Do(b.in, []virtqtest.Seg{{Addr: far, Len: 16}})
		g.must(err)
		if written != 16 || extra.Bytes(far, 1)[0] == 0 {
			t.Fatalf("a buffer in new memory: %d bytes written", written)
		}
		g.must(g.RemMemReg(region))
		g.io(r, 5)
	}
	if err := g.RemMemReg(region); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("removed twice: %v, want a refusal", err)
	}
	g.must(g.SetMemTable(g.mem))
	g.io(r, 5)
	// A known region at another offset of the file is not the same, and it overlaps.
	other := vhostuser.MemoryRegion(g.mem.Regions()[0])
	other.MmapOffset += 4096
	if err := g.AddMemReg(other, g.mem.FD()); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("another region at the same addresses: %v, want a refusal", err)
	}
	g.io(r, 5)
}

func TestRequestsInFlightKeepMemoryThatIsRemoved(t *testing.T) {
	dev := newReverser(1)
	var q *vhostuser.Queue
	dev.onStart = func(started *vhostuser.Queue) error { q = started; return nil }
	g := newRig(t, dev)
	g.handshake()
	extra, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 16})
	g.must(err)
	defer extra.Close()
	region := vhostuser.MemoryRegion(extra.Regions()[0])
	region.UserAddr += 1 << 40
	g.must(g.AddMemReg(region, extra.FD()))
	r := g.start(0, 8)
	dev.setHold(true)
	b := newBuffers(g.mem)
	b.fill(1)
	far := extra.Alloc(16, 16)
	r.Add(b.in, []virtqtest.Seg{{Addr: far, Len: 16}})
	g.must(r.Notify())
	dev.waitHeld(t, 1)
	dev.setHold(false)
	g.must(g.RemMemReg(region))
	g.io(r, 3)
	q.Post(func() { dev.finishHeld(q) })
	if _, _, err := r.Wait(); err != nil {
		t.Fatal(err)
	}
	if extra.Bytes(far, 1)[0] != '1' {
		t.Error("the request did not write to the memory it was given")
	}
	// A new request there breaks the ring.
	r.Add(b.in, []virtqtest.Seg{{Addr: far, Len: 16}})
	g.must(r.Notify())
	g.must(sys.WaitReadable(r.ErrFD(), vhostusertest.Timeout))
	var be *virtq.BrokenError
	if broken := g.rec.find(vhostuser.EventBreak); len(broken) != 1 || !errors.As(broken[0].Err, &be) || be.Reason != virtq.ReasonAddress {
		t.Errorf("break events %v, want one for the address", broken)
	}
}

func TestRemovingARingsMemoryBreaksIt(t *testing.T) {
	g := newRig(t, newReverser(2))
	g.handshake()
	g.must(g.RemoveMemory(g.mem))
	extra, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 1 << 40, Size: 1 << 16})
	g.must(err)
	defer extra.Close()
	region := vhostuser.MemoryRegion(extra.Regions()[0])
	g.must(g.AddMemReg(region, extra.FD()))
	r, err := g.NewRing(extra, 0, 8)
	g.must(err)
	defer r.Close()
	g.must(r.Start())
	b := newBuffers(extra)
	b.fill(1)
	_, err = r.Do(b.in, b.out)
	g.must(err)
	g.must(g.RemMemReg(region))
	if r.Failed() {
		t.Error("the ring broke before the front-end was done with its memory")
	}
	g.must(g.Barrier())
	if !r.Failed() {
		t.Error("the error descriptor was not signalled")
	}
	if base, err := g.GetVringBase(0); base != 1 || err != nil {
		t.Errorf("base %d, %v, want 1", base, err)
	}
}

// A front-end whose memory changes its shape removes the region that the rings are in, and adds it
// again.
func TestRingWaitsForItsMemoryToComeBack(t *testing.T) {
	dev := newReverser(2)
	g := newRig(t, dev)
	g.handshake()
	r := g.start(0, 16)
	q := dev.queue()
	other := g.start(1, 16)
	region := vhostuser.MemoryRegion(g.mem.Regions()[0])
	far := vhostuser.MemoryRegion(g.mem.Regions()[1])
	for i := range 10 {
		g.io(r, 3)
		bufs := g.hold(r, 2)
		g.must(g.RemMemReg(region))
		// What is added now is not looked at, and what was in flight completes.
		late := newBuffers(g.mem)
		late.fill(77)
		r.Add(late.in, late.out)
		g.must(r.Notify())
		q.Loop().Do(func() { dev.finishHeld(q) })
		for range bufs {
			_, _, err := r.Wait()
			g.must(err)
		}
		if i%2 == 0 {
			g.must(g.RemMemReg(far))
			g.must(g.AddMemReg(far, g.mem.FD()))
		}
		// There is nothing to wait for, and any message but those about memory would end the wait.
		time.Sleep(time.Millisecond)
		if r.PendingUsed() {
			t.Fatal("a request was fetched without memory")
		}
		if i%3 == 0 {
			g.must(g.SetMemTable(g.mem))
		} else {
			g.must(g.AddMemReg(region, g.mem.FD()))
		}
		_, _, err := r.Wait()
		g.must(err)
		g.must(late.check(77))
	}
	// Disabled, it stays so.
	g.must(g.SetVringEnable(0, false))
	g.must(g.RemMemReg(region))
	g.must(g.AddMemReg(region, g.mem.FD()))
	b := newBuffers(g.mem)
	b.fill(1)
	r.Add(b.in, b.out)
	g.idle(r)
	g.must(g.SetVringEnable(0, true))
	_, _, err := r.Wait()
	g.must(err)
	g.io(other, 3)
	if broken := g.rec.find(vhostuser.EventBreak); len(broken) > 0 {
		t.Errorf("broken: %v", broken)
	}
	// A hang-up in between is like any other.
	g.must(g.RemMemReg(region))
	g.must(g.hangUp())
}

// A front-end can take memory away without a message, by truncating its file: that ends its
// connection, and no other.
func TestFaultOnTruncatedMemoryEndsOnlyThatConnection(t *testing.T) {
	type victim struct {
		name string
		// fault truncates, and makes the back-end look.
		fault func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers)
	}
	cut := func(t *testing.T, mem *virtqtest.Mem, to int64) {
		t.Helper()
		f := os.NewFile(uintptr(mustDup(t, mem.FD())), "mem")
		defer f.Close()
		if err := f.Truncate(to); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range []victim{
		{"ring", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			r.Add(b.in, b.out)
			r.Kick()
			cut(t, mem, 0)
			g.must(sys.EventfdWrite(r.KickFD()))
		}},
		{"buffer", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			// The last page holds the buffer alone.
			far := uint64(1<<16 - 4096)
			r.Add([]virtqtest.Seg{{Addr: far, Len: 16}}, b.out)
			cut(t, mem, 1<<16-4096)
			g.must(r.Notify())
		}},
		{"buffer, with no descriptor left", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			far := uint64(1<<16 - 4096)
			r.Add([]virtqtest.Seg{{Addr: far, Len: 16}}, b.out)
			cut(t, mem, 1<<16-4096)
			noDescriptors(t)
			g.must(r.Notify())
		}},
		{"buffer of a careless device", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			far := uint64(1<<16 - 4096)
			g.dev.setCareless()
			r.Add([]virtqtest.Seg{{Addr: far, Len: 16}}, b.out)
			r.Add(b.in, b.out)
			cut(t, mem, 1<<16-4096)
			g.must(r.Notify())
		}},
		{"answer", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			g.dev.setHold(true)
			far := uint64(1<<16 - 4096)
			r.Add(b.in, []virtqtest.Seg{{Addr: far, Len: 16}})
			g.must(r.Notify())
			g.dev.waitHeld(t, 1)
			cut(t, mem, 1<<16-4096)
			g.must(g.SetVringEnable(0, false))
			// StopQueue finishes it; the fault is in a function given to Post.
			g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil))
		}},
		{"start", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			g.must(r.Stop())
			cut(t, mem, 0)
			r.Start()
		}},
		{"stop", func(t *testing.T, g *rig, r *vhostusertest.Ring, mem *virtqtest.Mem, b buffers) {
			g.dev.setHold(true)
			r.Add(b.in, b.out)
			g.must(r.Notify())
			g.dev.waitHeld(t, 1)
			g.must(g.SetVringEnable(0, false))
			cut(t, mem, 0)
			g.Request(vhostuser.GetVringBase, 0, vhostuser.VringState{}.Append(nil))
		}},
	} {
		t.Run(v.name, func(t *testing.T) {
			healthy := newRig(t, newReverser(1))
			healthy.handshake()
			good := healthy.start(0, 8)

			g := newRig(t, newReverser(1))
			features, err := g.Handshake(vhostusertest.AllProtocolFeatures)
			g.must(err)
			g.must(g.SetFeatures(features))
			mem, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: 1 << 16})
			g.must(err)
			defer mem.Close()
			g.must(g.AddMemory(mem))
			r, err := g.NewRing(mem, 0, 8)
			g.must(err)
			defer r.Close()
			g.must(r.Start())
			b := newBuffers(mem)
			b.fill(1)
			_, err = r.Do(b.in, b.out)
			g.must(err)

			v.fault(t, g, r, mem, b)
			err = g.wait()
			var fe *vhostuser.FaultError
			if !errors.As(err, &fe) {
				t.Errorf("ServeConn: %v, want a FaultError", err)
			}
			if broken := g.rec.find(vhostuser.EventBreak); len(broken) == 0 || !errors.As(broken[0].Err, &fe) {
				t.Errorf("break events %v, want one for the fault", broken)
			}
			healthy.io(good, 10)
		})
	}
}

// noDescriptors has the host refuse the process any new descriptor, until the test's end.
func noDescriptors(t testing.TB) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Fatal(err)
		}
	})
	// Standard input, output and error are open.
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 3, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	if f, err := os.Open(os.DevNull); !errors.Is(err, syscall.EMFILE) {
		f.Close()
		t.Fatalf("open: %v, want EMFILE", err)
	}
}

func mustDup(t testing.TB, fd int) int {
	t.Helper()
	d, err := sys.NewFD(fd).Dup()
	if err != nil {
		t.Fatal(err)
	}
	return d.Int()
}
