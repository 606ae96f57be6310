package vhostuser_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/sys"
	"vdev/internal/test/hangfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// newNeighbour returns another device on g's reactors, with a ring that runs.
func newNeighbour(t testing.TB, reactors *vhostuser.Reactors) (*rig, *vhostusertest.Ring) {
	t.Helper()
	g := newRigWith(t, newReverser(1), reactors)
	g.handshake()
	r := g.start(0, 8)
	g.io(r, 1)
	return g, r
}

// fill makes the counter of an eventfd full, and whoever writes to it wait.
func fill(t testing.TB, fd int) {
	t.Helper()
	sys.DrainEventfd(fd)
	if _, err := syscall.Write(fd, vhostuser.AppendU64(nil, ^uint64(0)-1)); err != nil {
		t.Fatal(err)
	}
	if err := syscall.SetNonblock(fd, false); err != nil {
		t.Fatal(err)
	}
}

func TestAnEventfdThatWaitsEndsItsConnectionAndNothingElse(t *testing.T) {
	for _, c := range []struct {
		what string
		set  func(g *rig, r *vhostusertest.Ring, fd int)
		make func(g *rig, r *vhostusertest.Ring) // makes the back-end write
	}{
		{"call", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetVringCall(0, fd))
		}, func(g *rig, r *vhostusertest.Ring) {
			b := newBuffers(g.mem)
			r.EnableCalls()
			r.Add(b.in, b.out)
			g.must(r.Notify())
		}},
		{"error", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetVringErr(0, fd))
		}, func(g *rig, r *vhostusertest.Ring) {
			q := g.dev.queue()
			q.Post(func() { q.Break(errors.New("no more")) })
		}},
		{"log", func(g *rig, r *vhostusertest.Ring, fd int) {
			g.must(r.Start())
			g.must(g.SetLogFD(fd))
			g.must(g.StartLog(newLog(g.t), r))
		}, func(g *rig, r *vhostusertest.Ring) {
			b := newBuffers(g.mem)
			r.Add(b.in, b.out)
			g.must(r.Notify())
		}},
	} {
		for _, aio := range []vhostuser.Mode{vhostuser.ModeURing, vhostuser.ModeThreads} {
			t.Run(c.what+"/"+string(aio), func(t *testing.T) {
				checkFDs(t)
				reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Mode: aio})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(reactors.Close)
				other, ring := newNeighbour(t, reactors)
				g := newRigWith(t, newReverser(1), reactors)
				g.handshake()
				r := g.ring(0, 8)
				fd, err := sys.NewEventfd()
				g.must(err)
				defer fd.Close()
				c.set(g, r, fd.Int())
				g.must(g.Barrier())
				fill(t, fd.Int())
				c.make(g, r)
				other.io(ring, 20)
				if err := g.waitCancelled(); err == nil || !strings.Contains(err.Error(), "counter is full") {
					t.Errorf("the connection ended with %v, want the cause", err)
				}
				other.io(ring, 20)
			})
		}
	}
}

func TestADeviceWhoseFrontEndMadeAReactorWaitServesNobodyForAMoment(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	g.must(g.Barrier())
	fill(t, r.CallFD())
	b := newBuffers(g.mem)
	r.EnableCalls()
	r.Add(b.in, b.out)
	begun := time.Now()
	g.must(r.Notify())
	if err := g.wait(); err == nil {
		t.Error("the connection ended without an error")
	}
	if took := time.Since(begun); took < time.Second {
		t.Errorf("the next front-end could come after %v, want a second", took)
	}
	g.connect()
	g.handshake()
	g.io(g.start(0, 8), 3)
}

func TestAFullCounterThatDoesNotWaitIsNoFault(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	r := g.start(0, 8)
	fill(t, r.CallFD())
	g.must(syscall.SetNonblock(r.CallFD(), true))
	b := newBuffers(g.mem)
	r.EnableCalls()
	r.Add(b.in, b.out)
	g.must(r.Notify())
	for !r.PendingUsed() {
		time.Sleep(time.Millisecond)
	}
	g.must(r.Stop())
}

// kinds are descriptors of every kind that one may be sent, each with the words that name it in an
// error.
func kinds(t testing.TB) map[string]struct {
	fd   int
	name string
} {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	own := func(fd int, err error) int {
		t.Helper()
		must(err)
		t.Cleanup(func() { syscall.Close(fd) })
		return fd
	}
	call := func(trap, a, b uintptr) int {
		t.Helper()
		n, _, errno := syscall.Syscall(trap, a, b, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
		return own(int(n), nil)
	}
	memfd, err := sys.NewMemfd("kind", 1<<16)
	must(err)
	t.Cleanup(func() { memfd.Close() })
	path := t.TempDir() + "/file"
	must(os.WriteFile(path, make([]byte, 1<<16), 0o600))
	if memory, err := sys.IsMemory(own(syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0))); memory || err != nil {
		t.Skipf("files for tests lie in memory here (%v)", err)
	}
	shm, err := os.CreateTemp("/dev/shm", "vdev-test")
	if err != nil {
		t.Skipf("there is no tmpfs at /dev/shm: %v", err)
	}
	must(os.Remove(shm.Name()))
	t.Cleanup(func() { shm.Close() })
	must(shm.Truncate(1 << 16))
	var pipe [2]int
	must(syscall.Pipe2(pipe[:], syscall.O_CLOEXEC))
	stream, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(err)
	own(stream[1], nil)
	packets, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET|syscall.SOCK_CLOEXEC, 0)
	must(err)
	own(packets[1], nil)
	return map[string]struct {
		fd   int
		name string
	}{
		"eventfd":             {call(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK), "an eventfd"},
		"eventfd that waits":  {call(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC), "an eventfd"},
		"eventfd semaphore":   {call(syscall.SYS_EVENTFD2, 7, syscall.O_CLOEXEC|1), "an eventfd"},
		"timerfd":             {call(syscall.SYS_TIMERFD_CREATE, 1, syscall.O_CLOEXEC), "timerfd"},
		"epoll":               {own(syscall.EpollCreate1(syscall.O_CLOEXEC)), "eventpoll"},
		"memfd":               {memfd.Int(), "a memfd"},
		"file of tmpfs":       {own(syscall.Dup(int(shm.Fd()))), "a file"},
		"file":                {own(syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)), "a file"},
		"folder":              {own(syscall.Open(t.TempDir(), syscall.O_RDONLY|syscall.O_CLOEXEC, 0)), "a file"},
		"/dev/null":           {own(syscall.Open(os.DevNull, syscall.O_RDWR|syscall.O_CLOEXEC, 0)), "a file"},
		"/dev/zero":           {own(syscall.Open("/dev/zero", syscall.O_RDWR|syscall.O_CLOEXEC, 0)), "a file"},
		"pipe to read from":   {own(pipe[0], nil), "a pipe"},
		"pipe to write to":    {own(pipe[1], nil), "a pipe"},
		"stream socket":       {own(stream[0], nil), "a socket"},
		"socket with packets": {own(packets[0], nil), "a socket"},
	}
}

func TestADescriptorOfEveryKindIsTakenOrNamedInEveryPlace(t *testing.T) {
	checkFDs(t)
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reactors.Close)
	other, ring := newNeighbour(t, reactors)
	g := newRigWith(t, newReverser(1), reactors)
	events := []string{"eventfd", "eventfd that waits", "eventfd semaphore"}
	memory := []string{"memfd", "file of tmpfs"}
	all := kinds(t)
	inflight := vhostuser.Inflight{MmapSize: 1 << 15, NumQueues: 1, QueueSize: 8}.Append(nil)
	region := vhostuser.MemoryRegion{GuestPhys: 1 << 40, Size: 1 << 16, UserAddr: 1 << 46}
	for _, place := range []struct {
		name  string
		takes []string
		wants string
		send  func(fd int) error
	}{
		{"kick", events, "an eventfd", func(fd int) error { return g.SetVringKick(0, fd) }},
		{"call", events, "an eventfd", func(fd int) error { return g.SetVringCall(0, fd) }},
		{"error", events, "an eventfd", func(fd int) error { return g.SetVringErr(0, fd) }},
		{"log's eventfd", events, "an eventfd", func(fd int) error { return g.SetLogFD(fd) }},
		{"region", memory, "a memfd", func(fd int) error { return g.AddMemReg(region, fd) }},
		{"table", memory, "a memfd", func(fd int) error {
			return g.Tell(vhostuser.SetMemTable, vhostuser.AppendMemoryTable(nil, []vhostuser.MemoryRegion{region}), fd)
		}},
		{"in-flight region", memory, "a memfd", func(fd int) error { return g.Tell(vhostuser.SetInflightFD, inflight, fd) }},
		{"log", memory, "a memfd", func(fd int) error { return g.SetLogBase(4096, 0, fd) }},
		{"back-end channel", []string{"stream socket"}, "a Unix stream socket", func(fd int) error {
			return g.Tell(vhostuser.SetBackendReqFD, nil, fd)
		}},
	} {
		for name, kind := range all {
			g.hangUp()
			g.connect()
			g.handshake()
			refused := len(g.rec.find(vhostuser.EventFail))
			err := place.send(kind.fd)
			fails := g.rec.find(vhostuser.EventFail)[refused:]
			if slices.Contains(place.takes, name) {
				if err != nil || len(fails) > 0 {
					t.Errorf("%s as %s: %v, %v, want it taken", name, place.name, err, fails)
				}
				continue
			}
			if err == nil || len(fails) != 1 {
				t.Errorf("%s as %s: %v, %v, want a refusal", name, place.name, err, fails)
				continue
			}
			if text := fails[0].Err.Error(); !strings.Contains(text, place.wants) || !strings.Contains(text, kind.name) {
				t.Errorf("%s as %s: %q names not both %q and %q", name, place.name, text, place.wants, kind.name)
			}
		}
		other.io(ring, 1)
	}
}

func TestAnyFileIsMemoryWhereThatWasAskedFor(t *testing.T) {
	checkFDs(t)
	path := t.TempDir() + "/memory"
	if err := os.WriteFile(path, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	g := &rig{t: t, dev: newReverser(1), served: make(chan error, 1), mem: newMem(t)}
	g.backend, err = vhostuser.New(vhostuser.Config{Device: g.dev, Reactors: newReactors(t), AnyMemoryFiles: true})
	g.must(err)
	g.connect()
	g.handshake()
	region := vhostuser.MemoryRegion{GuestPhys: 1 << 40, Size: 1 << 16, UserAddr: 1 << 46}
	g.must(g.AddMemReg(region, int(file.Fd())))
	g.must(g.Tell(vhostuser.SetInflightFD, vhostuser.Inflight{MmapSize: 1 << 15, NumQueues: 1, QueueSize: 8}.Append(nil), int(file.Fd())))
	g.must(g.SetLogBase(4096, 0, int(file.Fd())))
	if err := g.AddMemReg(vhostuser.MemoryRegion{Size: 4096}, int(file.Fd())); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("a region that overlaps: %v", err)
	}
	// What cannot be mapped is refused by the system.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	g.must(err)
	defer null.Close()
	region.GuestPhys, region.UserAddr = 1<<41, 1<<45
	if err := g.AddMemReg(region, int(null.Fd())); !errors.Is(err, vhostusertest.ErrRefused) {
		t.Errorf("/dev/null as memory: %v, want a refusal", err)
	}
}

func TestAFrontEndFillsNoAddressSpace(t *testing.T) {
	g := newRig(t, newReverser(1))
	g.handshake()
	// Half a front-end's share, out of nothing.
	size := int64(sys.AddressSpace() / 16)
	fd, err := sys.NewMemfd("huge", size)
	if err != nil {
		t.Skipf("the host has no file of %#x bytes: %v", size, err)
	}
	defer fd.Close()
	var refused error
	taken := 0
	for i := range uint64(4) {
		region := vhostuser.MemoryRegion{GuestPhys: 1<<50 + i*uint64(size), Size: uint64(size), UserAddr: 1<<51 + i*uint64(size)}
		if refused = g.AddMemReg(region, fd.Int()); refused != nil {
			break
		}
		taken++
	}
	if !errors.Is(refused, vhostusertest.ErrRefused) || taken > 1 {
		t.Errorf("%d regions of %#x bytes were taken, then %v", taken, size, refused)
	}
	fails := g.rec.find(vhostuser.EventFail)
	if len(fails) != 1 || !errors.Is(fails[0].Err, vhostuser.ErrMemorySpace) {
		t.Errorf("refused with %v, want %v", fails, vhostuser.ErrMemorySpace)
	}
	g.io(g.start(0, 8), 1)
	// A log counts, too.
	if err := g.SetLogBase(uint64(size), 0, fd.Int()); err == nil {
		t.Errorf("a log of %#x bytes was taken", size)
	} else if err := g.wait(); !errors.Is(err, vhostuser.ErrMemorySpace) {
		t.Errorf("a log of %#x bytes: %v, want %v", size, err, vhostuser.ErrMemorySpace)
	}
}

// A file system in user space whose server does not answer makes wait whoever reads its files, asks
// for their size or closes them.
func TestMemoryOfAServerThatDoesNotAnswerHoldsUpNobody(t *testing.T) {
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	if err := os.WriteFile(dir+"/memory", make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reactors.Close)
	other, ring := newNeighbour(t, reactors)
	g := newRigWith(t, newReverser(1), reactors)
	g.handshake()
	file, err := sys.OpenFile(point+"/memory", sys.OpenFlags{Write: true})
	g.must(err)
	fs.Hold(hangfs.Kinds()...)
	defer fs.Release(hangfs.Kinds()...)
	region := vhostuser.MemoryRegion{GuestPhys: 1 << 40, Size: 1 << 16, UserAddr: 1 << 46}
	inflight := vhostuser.Inflight{MmapSize: 1 << 15, NumQueues: 1, QueueSize: 8}.Append(nil)
	for _, send := range []func() error{
		func() error { return g.AddMemReg(region, file.Int()) },
		func() error { return g.Tell(vhostuser.SetInflightFD, inflight, file.Int()) },
		func() error { return g.SetVringKick(0, file.Int()) },
		func() error { return g.Tell(vhostuser.SetBackendReqFD, nil, file.Int()) },
		func() error { return g.Tell(vhostuser.SetOwner, nil, file.Int()) },
	} {
		if err := send(); !errors.Is(err, vhostusertest.ErrRefused) {
			t.Fatalf("got %v, want a refusal", err)
		}
	}
	other.io(ring, 10)
	g.io(g.start(0, 8), 1)
	if err := g.hangUp(); err != nil {
		t.Error(err)
	}
	fs.Release(hangfs.Kinds()...)
	file.Close()
}

// TestAFrontEndMakesAReactorWaitOnce, though it has several descriptors that would.
func TestAFrontEndMakesAReactorWaitOnce(t *testing.T) {
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reactors.Close)
	dev := newReverser(3)
	dev.setHold(true)
	g := newRigWith(t, dev, reactors)
	g.handshake()
	for i := range 3 {
		r := g.start(i, 8)
		b := newBuffers(g.mem)
		r.EnableCalls()
		r.Add(b.in, b.out)
		g.must(r.Notify())
		fill(t, r.CallFD())
	}
	dev.waitHeld(t, 3)
	q := dev.queue()
	q.Post(func() { dev.finishHeld(q) })
	if err := g.waitCancelled(); err == nil || !strings.Contains(err.Error(), "counter is full") {
		t.Errorf("the connection ended with %v, want the cause", err)
	}
	if got := g.rec.find(vhostuser.EventBreak); len(got) != 1 {
		t.Errorf("%d descriptors have made the reactor wait, want 1: %v", len(got), got)
	}
}

// TestDescriptorsThatCannotBeClosedAreBounded, and their front-end is told so, and the next one,
// instead of being kept waiting.
func TestDescriptorsThatCannotBeClosedAreBounded(t *testing.T) {
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reactors.Close)
	other, ring := newNeighbour(t, reactors)
	g := newRigWith(t, newReverser(1), reactors)
	g.handshake()
	file, err := sys.OpenFile(point+"/file", sys.OpenFlags{})
	g.must(err)
	defer file.Close()
	fs.Hold(hangfs.Flush) // each close waits for it
	defer fs.Release(hangfs.Flush)
	sent := 0
	for err = error(vhostusertest.ErrRefused); errors.Is(err, vhostusertest.ErrRefused); sent++ {
		if err = g.Tell(vhostuser.SetOwner, nil, file.Int()); sent > 1000 {
			t.Fatal("there is no bound")
		}
	}
	if err := g.wait(); !errors.Is(err, vhostuser.ErrClosing) {
		t.Errorf("the connection ended after %d descriptors with %v", sent, err)
	}
	for range 3 {
		g.connect()
		if err := g.wait(); !errors.Is(err, vhostuser.ErrClosing) {
			t.Errorf("the next one ended with %v", err)
		}
	}
	other.io(ring, 10)
	fs.Release(hangfs.Flush)
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		g.connect()
		if _, err := g.Handshake(vhostusertest.AllProtocolFeatures); err == nil {
			break
		}
		if time.Since(begun) > vhostusertest.Timeout {
			t.Fatal("nobody is served though all could be closed")
		}
		if err := g.wait(); !errors.Is(err, vhostuser.ErrClosing) {
			t.Fatal(err)
		}
	}
	g.handshake()
	g.io(g.start(0, 8), 1)
}
