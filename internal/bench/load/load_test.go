package load

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/sys"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/vhostuser/virtioblk"
	"vdev/virtq/virtqtest"
)

const (
	// listening is set for a process that is to listen on the socket that is its descriptor 3, and
	// then does a little of something else.
	listening = "VDEV_LOAD_TEST_LISTENS"
	// starting is set for a process that starts threads as soon as its first one is bound.
	starting = "VDEV_LOAD_TEST_STARTS"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(listening) != "":
		fmt.Println(syscall.Listen(3, 16))
		for range time.Tick(time.Millisecond) {
		}
	case os.Getenv(starting) != "":
		startWhenBound()
		return
	}
	goleak.VerifyTestMain(m)
}

// startWhenBound starts some more threads each time when the first one is bound, for each line that
// it reads. It writes a line when it waits for that, and one when they have been started.
func startWhenBound() {
	runtime.LockOSThread()
	start := func(n int) {
		var there sync.WaitGroup
		for range n {
			there.Add(1)
			go func() {
				runtime.LockOSThread()
				there.Done()
				select {}
			}()
		}
		there.Wait()
	}
	debug.SetGCPercent(-1) // it would start threads at other times
	at := func() []int {
		cpus, err := sys.Affinity(0)
		if err != nil {
			panic(err)
		}
		return cpus
	}
	former := at()
	start(50) // to bind these takes some time
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		fmt.Println("waits")
		for slices.Equal(at(), former) {
		}
		start(4)
		fmt.Println("has started them")
	}
}

// serve serves a memory disk with four queues, and returns its socket.
func serve(t *testing.T, conf md.Config) string {
	t.Helper()
	socket, _ := serveUntil(t, conf)
	return socket
}

// serveUntil is serve, and end has the back-end end before the test does.
func serveUntil(t *testing.T, conf md.Config) (socket string, end func()) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	ln, err := vhostuser.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	return socket, serveOn(t, ln, conf)
}

// serveOn serves a memory disk with four queues on a socket, until end is called or the test ends.
func serveOn(t *testing.T, ln net.Listener, conf md.Config) (end func()) {
	t.Helper()
	table := devsw.NewTable()
	driver, err := md.New(table)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := driver.Create(0, conf)
	if err != nil {
		t.Fatal(err)
	}
	return serveDisk(t, ln, table, dev, func() (devsw.DiskInfo, error) { return driver.Info(0) }, driver.Detach)
}

// serveDisk serves a disk with four queues, until end is called or the test ends; detach takes it
// away.
func serveDisk(t *testing.T, ln net.Listener, table *devsw.Table, dev devsw.Dev, info func() (devsw.DiskInfo, error), detach func() error) (end func()) {
	t.Helper()
	device, err := virtioblk.New(virtioblk.Config{FS: specfs.New(table), Dev: dev, NumQueues: 4, Info: info})
	if err != nil {
		t.Fatal(err)
	}
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{Reactors: 2, Mode: vhostuser.ModeThreads})
	if err != nil {
		t.Fatal(err)
	}
	backend, err := vhostuser.New(vhostuser.Config{Device: device, Reactors: reactors})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- backend.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		reactors.Close()
		if err := detach(); err != nil {
			t.Error(err)
		}
	})
	return cancel
}

func job(pattern Pattern) Job {
	return Job{Pattern: pattern, BlockSize: 4096, Depth: 8, Queues: 2, Length: 30 * time.Millisecond, Warmup: 5 * time.Millisecond, ReadPercent: 50}
}

// patiently has a job of some length done, and of more where nothing was counted in it: on a busy
// machine that may take a while.
func patiently(j Job, do func(j Job) error) error {
	for ; ; j.Length *= 4 {
		if err := do(j); err == nil || !strings.Contains(err.Error(), "a longer length is needed") || j.Length > time.Minute {
			return err
		}
	}
}

// runSome runs a job until something was counted.
func runSome(t *testing.T, socket string, j Job) (r Result) {
	t.Helper()
	err := patiently(j, func(j Job) (err error) {
		r, err = Run(t.Context(), socket, j)
		return err
	})
	if err != nil {
		t.Fatalf("%+v: %v", j, err)
	}
	return r
}

func TestEveryPatternKeepsTheDiskBusyAndIsVerified(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures for many seconds")
	}
	socket := serve(t, md.Config{Size: 4 << 20})
	for _, pattern := range Patterns {
		for _, poll := range []bool{false, true} {
			name := string(pattern) + ",event"
			if poll {
				name = string(pattern) + ",poll"
			}
			t.Run(name, func(t *testing.T) {
				j := job(pattern)
				j.Poll, j.Verify, j.Seed = poll, true, 7
				r := runSome(t, socket, j)
				if r.Bytes != 4096*r.Requests || r.Latency.TotalCount() != int64(r.Requests) {
					t.Errorf("%d requests, %d bytes, %d latencies", r.Requests, r.Bytes, r.Latency.TotalCount())
				}
				if !r.Backend.Known || r.Backend.CPU <= 0 || r.Length <= 0 || r.Waited < 0 || r.Waited > 1 {
					t.Errorf("usage %+v in %v, waited %v", r.Backend, r.Length, r.Waited)
				}
			})
		}
	}
}

func TestSwitchesOfAThreadThatHasEndedAreNotKnown(t *testing.T) {
	before := sample{known: true, cpu: 10, switches: map[int]uint64{1: 5, 2: 30}}
	for _, tt := range []struct {
		after sample
		want  Usage
	}{
		{sample{known: true, cpu: 14, switches: map[int]uint64{1: 7, 2: 31, 3: 100}}, Usage{Known: true, CPU: 4, SwitchesKnown: true, Switches: 103}},
		{sample{known: true, cpu: 14, switches: map[int]uint64{1: 7, 3: 100}}, Usage{Known: true, CPU: 4}},
		{sample{}, Usage{}},
	} {
		if got := tt.after.since(before); got != tt.want {
			t.Errorf("since %+v, %+v: %+v, want %+v", before, tt.after, got, tt.want)
		}
	}
	if s := usedBy(os.Getpid()); !s.known || s.cpu <= 0 || s.switches[os.Getpid()] == 0 {
		t.Errorf("this process: %+v", s)
	}
}

func TestABackEndIsWatchedWhenItIsIdle(t *testing.T) {
	socket := serve(t, md.Config{Size: 4 << 20})
	j := job(RandRead)
	if r := runSome(t, socket, j); r.Idle != (Usage{}) {
		t.Errorf("idle use %+v, and nobody asked for it", r.Idle)
	}
	// The back-end is this process, which works to find that out.
	j.Idle = time.Millisecond
	if r := runSome(t, socket, j); !r.Idle.Known || r.Idle.CPU <= 0 {
		t.Errorf("idle use %+v", r.Idle)
	}
}

func TestSmallLargeAndManyRequests(t *testing.T) {
	socket := serve(t, md.Config{Size: 4 << 20})
	for _, j := range []Job{
		{BlockSize: 512, Depth: 1, Queues: 1},
		{BlockSize: 1 << 20, Depth: 3, Queues: 1},
		{BlockSize: 512, Depth: 1000, Queues: 4}, // in indirect tables
		{BlockSize: 65536, Depth: 4, Queues: 3, Size: 4<<20 - 65536},
	} {
		j.Pattern, j.ReadPercent, j.Length, j.Verify = RandRW, 70, 20*time.Millisecond, true
		runSome(t, socket, j)
	}
}

// connect makes a connection that is ready for j.
func connect(t *testing.T, socket string, j *Job) *disk {
	t.Helper()
	d, err := dial(t.Context(), socket)
	if err == nil {
		err = d.start(t.Context(), j)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWhatIsWrongIsNamed(t *testing.T) {
	socket := serve(t, md.Config{Size: 4 << 20, ReadOnly: true})
	change := func(f func(*Job)) Job {
		j := job(RandRead)
		f(&j)
		return j
	}
	for want, j := range map[string]Job{
		"pattern":                 change(func(j *Job) { j.Pattern = "trim" }),
		"block size 1000":         change(func(j *Job) { j.BlockSize = 1000 }),
		"depth 0":                 change(func(j *Job) { j.Depth = 0 }),
		"0 queues":                change(func(j *Job) { j.Queues = 0 }),
		"the back-end has 4":      change(func(j *Job) { j.Queues = 5 }),
		"read-only":               change(func(j *Job) { j.Pattern = RandWrite }),
		"the disk has 4194304":    change(func(j *Job) { j.Size = 5 << 20 }),
		"to be used":              change(func(j *Job) { j.Size = 2048 }),
		"one for each queue":      change(func(j *Job) { j.BlockSize, j.Queues = 4<<20, 2 }),
		"the length must be":      change(func(j *Job) { j.Length = 0 }),
		"the length must be more": change(func(j *Job) { j.Length, j.Verify, j.Idle = 0, true, time.Second }),
		"the idle time less":      change(func(j *Job) { j.Idle = -1 }),
		"110 per cent":            change(func(j *Job) { j.ReadPercent = 110 }),
		"processor 1000 is not ":  change(func(j *Job) { j.CPUs = []int{0, 1000} }),
		"processor 2000 is not ":  change(func(j *Job) { j.BackendCPUs = []int{0, 2000} }),
		"size -1":                 change(func(j *Job) { j.Size = -1 }),
		"must be a multiple of ":  change(func(j *Job) { j.BlockSize = MaxBlockSize + 512 }),
	} {
		if _, err := Run(t.Context(), socket, j); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: error %v, want %q", j, err, want)
		}
		if _, err := Check(t.Context(), Target{Name: "a", Socket: socket}, []Job{job(RandRead), j}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: checked: error %v, want %q", j, err, want)
		}
	}
	small := serve(t, md.Config{Size: 2048})
	if _, err := Check(t.Context(), Target{Socket: small}, []Job{job(RandRead)}); err == nil || !strings.Contains(err.Error(), "the disk has only 2048 bytes") {
		t.Error(err)
	}
	if pid, err := Check(t.Context(), Target{Socket: socket}, []Job{job(RandRead), job(Read)}); err != nil || pid != os.Getpid() {
		t.Errorf("what can be done, by process %d: %v", pid, err)
	}
	somebody := func(context.Context, Job) (Result, error) { return Result{}, nil }
	if pid, err := Check(t.Context(), Target{Do: somebody}, []Job{job(RandWrite)}); err != nil || pid != 0 {
		t.Errorf("somebody else, process %d: %v", pid, err)
	}
	runSome(t, socket, job(RandRead)) // after all this
	if _, err := Run(t.Context(), filepath.Join(t.TempDir(), "none"), job(Read)); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestABackEndThatGoesEndsTheLoad(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
	}()
	if _, err := Run(t.Context(), socket, job(Read)); !errors.Is(err, vhostusertest.ErrHungUp) || !strings.Contains(err.Error(), "does it serve another front-end") {
		t.Error(err)
	}

	for _, poll := range []bool{false, true} {
		socket, end := serveUntil(t, md.Config{Size: 4 << 20})
		j := job(RandRead)
		j.Length, j.Poll = time.Hour, poll
		d := connect(t, socket, &j)
		end()
		if _, err := d.run(t.Context(), &j); err != vhostusertest.ErrHungUp {
			t.Error(err)
		}
		d.close()
	}

	// Between the handshake and the load, and between the load and the stop.
	const hungUp = "the back-end has hung up"
	for _, started := range []bool{false, true} {
		socket, end := serveUntil(t, md.Config{Size: 4 << 20})
		j := job(RandRead)
		d, err := dial(t.Context(), socket)
		if err == nil && started {
			err = d.start(t.Context(), &j)
		}
		if err != nil {
			t.Fatal(err)
		}
		end()
		d.f.Conn().SetReadDeadline(time.Time{})
		if n, err := d.f.Conn().Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("the back-end does not hang up: %d, %v", n, err)
		}
		if started {
			if err, want := d.stop(), "queue 0: SET_VRING_ENABLE: "+hungUp; err == nil || err.Error() != want {
				t.Errorf("error %v, want %q", err, want)
			}
		} else if err, want := d.start(t.Context(), &j), "guest memory: ADD_MEM_REG: "+hungUp; err == nil || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
		d.close()
	}
}

func TestTheEndOfTheContextEndsTheLoad(t *testing.T) {
	// It accepts and never answers.
	silent := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, socket := range []string{silent, serve(t, md.Config{Size: 4 << 20})} {
		for _, poll := range []bool{false, true} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			j := job(RandRead)
			j.Length, j.Poll = time.Hour, poll
			if _, err := Run(ctx, socket, j); !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
			cancel()
		}
	}
}

func TestMemoryThatIsNotThereIsNotAskedFor(t *testing.T) {
	const kib = 1 << 10
	for text, want := range map[string]uint64{
		"MemTotal:       6291456 kB\nMemAvailable:   4200000 kB\n": 4200000 * kib,
		"MemAvailable:   some kB\n":                                math.MaxUint64,
		"":                                                         math.MaxUint64,
	} {
		if got := available([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
	d := &disk{size: 1 << 40}
	j := Job{Pattern: RandRead, BlockSize: MaxBlockSize, Depth: MaxDepth, Queues: 2}
	const most = 2 * MaxDepth * (MaxBlockSize + kib)
	if err := d.affords(&j, most); err != nil {
		t.Error(err)
	}
	if err := d.affords(&j, most/2); err == nil || !regexp.MustCompile(`343\d{8} bytes of memory are wanted .*, and 17184063488 are available`).MatchString(err.Error()) {
		t.Error(err)
	}
	// For each of 2 Gi blocks something is to be kept.
	j = Job{Pattern: RandRead, BlockSize: 512, Depth: 1, Queues: 1}
	if err := d.affords(&j, 1<<30); err != nil {
		t.Error(err)
	}
	j.Verify = true
	if err := d.affords(&j, 1<<30); err == nil {
		t.Error("a large disk is verified with no memory")
	}
}

func TestTheEndOfTheContextEndsTheLayingOut(t *testing.T) {
	j := job(RandRead)
	d, err := dial(t.Context(), serve(t, md.Config{Size: 4 << 20}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.start(ctx, &j); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestABackEndThatStallsIsFoundOut(t *testing.T) {
	f, peer, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	defer peer.Close()
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	ring, err := f.NewRing(mem, 0, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer ring.Close()
	q := &queue{ring: ring}
	q.attach(4)
	d := &disk{queues: []*queue{q}}

	now := time.Unix(1000, 0)
	looks := func(after time.Duration, want string) {
		t.Helper()
		now = now.Add(after)
		if err := d.stalled(now); (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
	}
	looks(0, "")
	looks(2*patience, "") // nothing was asked for
	q.avail.Store(2 << 16)
	looks(patience/2, "")
	q.usedIdx.Store(1)
	looks(patience, "") // one of two was completed
	looks(patience-1, "")
	looks(1, "no request was completed for 10s")
	q.usedIdx.Store(2)
	looks(patience, "")
	if err := sys.EventfdWrite(ring.ErrFD()); err != nil {
		t.Fatal(err)
	}
	looks(0, "broken")
}

// unserved makes a queue of depth 2 for a pass over the first blocks of 512 bytes, which a test
// serves itself. Two requests are issued.
func unserved(t *testing.T, pass int, blocks int64) *queue {
	t.Helper()
	f, peer, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.Close()
		peer.Close()
	})
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	ring, err := f.NewRing(mem, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ring.Close)
	j := Job{Pattern: Read, BlockSize: 512, Depth: 2, Queues: 1}
	q := &queue{d: &disk{mem: mem}, j: &j, ring: ring, mask: 7, step: 3, pass: pass, part: blocks, ledger: newLedger(1, 0, blocks, 512),
		start: time.Now(), window: never}
	q.attach(8)
	if err := q.layOut(t.Context()); err != nil {
		t.Fatal(err)
	}
	q.issue(0, 0)
	q.issue(1, 0)
	return q
}

// complete gives back the request of a slot, as the nth of those that take does not know yet.
func (q *queue) complete(n, s int) {
	binary.LittleEndian.PutUint64(q.used[8*((int(q.lastUsed)+n)&int(q.mask)):], uint64(s*q.step))
}

func TestAllThatHasCompletedIsLookedAtBeforeMoreIsIssued(t *testing.T) {
	for _, damaged := range []bool{false, true} {
		q := unserved(t, loading, 1000)
		for s := range 2 {
			q.ledger.fill(q.memory(s), q.blocks[s])
			q.status[s] = statusOK
			q.complete(s, s)
		}
		if damaged {
			q.memory(1)[100] ^= 1
		}
		err := q.take(2, false)
		switch {
		case damaged && (err == nil || q.added != 2):
			t.Errorf("the second of two is damaged: %d were issued, %v", q.added, err)
		case !damaged && (err != nil || q.added != 4 || q.issued[0] <= 0 || q.issued[0] != q.issued[1]):
			t.Errorf("%d were issued, the last two after %v, %v", q.added, q.issued, err)
		}
	}
}

func TestARequestThatIsCompletedTwiceIsFoundOut(t *testing.T) {
	for _, pass := range []int{loading, filling, checking} {
		q := unserved(t, pass, 1000)
		q.ledger = nil
		if pass != loading {
			q.part = 2 // there are no more requests then
		}
		// take has the back-end complete the request of slot 0.
		take := func(status bool) error {
			if status {
				q.status[0] = statusOK
			}
			q.complete(0, 0)
			return q.take(q.lastUsed+1, false)
		}
		if err := take(true); err != nil {
			t.Fatal(err)
		}
		want := "the request for the 512 bytes from 1024 on was completed without a status, or the one before it twice"
		if pass != loading {
			want = "has completed the request of head 0 twice"
			if err := take(true); err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("pass %d: error %v, want %q", pass, err, want)
			}
		}
		if err := take(false); err == nil || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("pass %d: error %v, want %q", pass, err, want)
		}
	}
}

func TestTheBackEndIsBoundAndLetGo(t *testing.T) {
	former, err := sys.Affinity(0)
	if err != nil {
		t.Fatal(err)
	}
	// Any other process will do.
	child := exec.Command("sleep", "1000")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	at := func() []int {
		t.Helper()
		cpus, err := sys.Affinity(child.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		return cpus
	}
	b, err := bind(child.Process.Pid, former[:1])
	if err != nil {
		t.Fatal(err)
	}
	if got := at(); !slices.Equal(got, former[:1]) {
		t.Errorf("bound to %v, want %v", got, former[:1])
	}
	if err := b.undo(); err != nil {
		t.Fatal(err)
	}
	if got := at(); !slices.Equal(got, former) {
		t.Errorf("let go to %v, want %v", got, former)
	}
	// The system says nothing of the second one.
	if _, err := bind(child.Process.Pid, []int{former[0], 1000}); err == nil || !strings.Contains(err.Error(), "processor 1000 is not there, or not allowed: there are [") {
		t.Errorf("bound to what the machine does not have: %v", err)
	}
	if got := at(); !slices.Equal(got, former) {
		t.Errorf("bound to %v, want %v", got, former)
	}
	if _, err := bind(0, former); err == nil || !strings.Contains(err.Error(), "cannot be seen from here") {
		t.Error(err)
	}
	// Who serves here is this process: all of it is bound for the time of the load, and none of it
	// afterwards.
	socket := serve(t, md.Config{Size: 4 << 20})
	j := job(RandRead)
	j.BackendCPUs = former[len(former)-1:]
	if r := runSome(t, socket, j); r.PID != os.Getpid() {
		t.Errorf("the back-end is process %d", r.PID)
	}
	for _, tid := range sys.Threads(os.Getpid()) {
		if got, err := sys.Affinity(tid); err == nil && !slices.Equal(got, former) {
			t.Errorf("a thread remains bound to %v", got)
		}
	}
}

func TestThreadsThatAreStartedWhileOthersAreBoundAreLetGo(t *testing.T) {
	former, err := sys.Affinity(0)
	if err != nil {
		t.Fatal(err)
	}
	if len(former) < 2 {
		t.Skip("there is only one processor")
	}
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), starting+"=1")
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer child.Wait()
	defer child.Process.Kill()
	out := bufio.NewScanner(stdout)
	says := func(want string) {
		t.Helper()
		if !out.Scan() || out.Text() != want {
			t.Fatalf("it says %q, want %q", out.Text(), want)
		}
	}
	for range 20 {
		fmt.Fprintln(in)
		says("waits")
		b, err := bind(child.Process.Pid, former[:1])
		if err != nil {
			t.Fatal(err)
		}
		says("has started them")
		if err := b.undo(); err != nil {
			t.Fatal(err)
		}
		for _, tid := range sys.Threads(child.Process.Pid) {
			if got, err := sys.Affinity(tid); err != nil || !slices.Equal(got, former) {
				t.Fatalf("a thread remains bound to %v, %v", got, err)
			}
		}
	}
}

// listener has another process listen on a socket for this one, which is to serve there.
func listener(t *testing.T) (by *exec.Cmd, ln net.Listener, socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), socket)
	defer f.Close()
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}); err != nil {
		t.Fatal(err)
	}
	by = exec.Command(os.Args[0])
	by.Env, by.ExtraFiles = append(os.Environ(), listening+"=1"), []*os.File{f}
	out, err := by.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := by.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		by.Process.Kill()
		by.Wait()
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "<nil>\n" {
		t.Fatalf("listen: %s%v", line, err)
	}
	if ln, err = net.FileListener(f); err != nil {
		t.Fatal(err)
	}
	return by, ln, socket
}

func TestWhoListenedNeedNotBeWhoServes(t *testing.T) {
	former, err := sys.Affinity(0)
	if err != nil {
		t.Fatal(err)
	}
	by, ln, socket := listener(t)
	m := serveMemoryOn(t, ln)
	type bounds struct{ listened, serves []int }
	var during []bounds
	m.now(func(_ devsw.Op, _ int, at []byte) []byte {
		if len(during) == 0 {
			listened, _ := sys.Affinity(by.Process.Pid)
			serves, _ := sys.Affinity(os.Getpid())
			during = append(during, bounds{listened, serves})
		}
		return at
	})
	j := job(RandRead)
	j.Idle, j.BackendCPUs = time.Millisecond, former[:1]
	if r := runSome(t, socket, j); r.PID != os.Getpid() || !r.Backend.Known || !r.Idle.Known {
		t.Errorf("process %d uses %+v, and %+v when idle; it is %d that serves", r.PID, r.Backend, r.Idle, os.Getpid())
	}
	m.now(nil)
	if b := during[0]; !slices.Equal(b.listened, former) || !slices.Equal(b.serves, former[:1]) {
		t.Errorf("who listened was bound to %v, and who serves to %v; want %v and %v", b.listened, b.serves, former, former[:1])
	}
	if pid, err := Check(t.Context(), Target{Socket: socket}, []Job{j}); pid != os.Getpid() || err != nil {
		t.Errorf("process %d, %v", pid, err)
	}

	// It has ended.
	by.Process.Kill()
	by.Wait()
	j.Idle = 0
	if r := runSome(t, socket, j); r.PID != os.Getpid() || !r.Backend.Known {
		t.Errorf("process %d uses %+v; it is %d that serves", r.PID, r.Backend, os.Getpid())
	}
}

func TestOfABackEndThatCannotBeSeenNothingIsKnown(t *testing.T) {
	socket := serve(t, md.Config{Size: 4 << 20})
	err := patiently(job(RandRead), func(j Job) error {
		j.Idle = time.Millisecond
		d := connect(t, socket, &j)
		defer d.close()
		d.pid = 0
		r, err := d.run(t.Context(), &j)
		if err == nil && (r.PID != 0 || r.Backend != (Usage{}) || r.Idle != (Usage{})) {
			err = fmt.Errorf("process %d uses %+v, and %+v when idle", r.PID, r.Backend, r.Idle)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestWhoServesHasTheOtherEnd(t *testing.T) {
	ours, theirs, err := sys.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	inode, err := sys.PeerInode(ours)
	if err != nil {
		t.Skip(err)
	}
	f, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	var children []*exec.Cmd
	for range 2 {
		child := exec.Command("sleep", "1000")
		child.ExtraFiles = []*os.File{f}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		defer child.Wait()
		defer child.Process.Kill()
		children = append(children, child)
	}
	f.Close()
	a, b := children[0].Process.Pid, children[1].Process.Pid
	looks := func(probable, want int) {
		t.Helper()
		if got := holder(inode, probable); got != want {
			t.Errorf("process %d has it, want %d of %d and %d", got, want, a, b)
		}
	}
	looks(a, a)
	looks(b, b)
	looks(0, 0) // either of them
	looks(os.Getpid(), 0)
	children[0].Process.Kill()
	children[0].Wait()
	looks(0, b)
	looks(os.Getpid(), b)
	looks(a, b)
	children[1].Process.Kill()
	children[1].Wait()
	looks(b, 0)
	if pid := serverOf(ours); pid != 0 {
		t.Errorf("process %d has what is closed", pid)
	}
}

func TestAStallAtTheEndOfTheTimeThatCountsIsALatency(t *testing.T) {
	m, socket := serveMemory(t)
	err := patiently(job(RandRead), func(j Job) error {
		j.Queues = 1
		d := connect(t, socket, &j)
		defer d.close()
		seen, stalled := 0, time.Duration(0)
		m.now(func(_ devsw.Op, _ int, at []byte) []byte {
			// Of so many some were issued in the time that counts.
			if d.queues[0].state.Load() == measuring {
				if seen++; seen > 10*j.Depth && stalled == 0 {
					from := time.Now()
					for d.queues[0].state.Load() == measuring {
						runtime.Gosched()
					}
					stalled = time.Since(from)
				}
			}
			return at
		})
		r, err := d.run(t.Context(), &j)
		m.now(nil)
		switch {
		case err != nil:
			return err
		case stalled == 0:
			return errors.New("it has not stalled: a longer length is needed")
		case time.Duration(r.Latency.Max()) < stalled:
			return fmt.Errorf("it has stalled for %v, and the longest latency is %v", stalled, time.Duration(r.Latency.Max()))
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestNoRequestInTheTimeThatCountsIsAnError(t *testing.T) {
	m, socket := serveMemory(t)
	j := job(RandRead)
	d := connect(t, socket, &j)
	defer d.close()
	m.now(func(_ devsw.Op, _ int, at []byte) []byte {
		for d.queues[0].state.Load() < stopping {
			runtime.Gosched()
		}
		return at
	})
	if r, err := d.run(t.Context(), &j); err == nil || !strings.Contains(err.Error(), "no request was completed in the 30ms that count: a longer length is needed") ||
		!math.IsNaN(r.Waited) || LimitedByLoad([]Result{r}) {
		t.Errorf("waited %v, %v", r.Waited, err)
	}
}
