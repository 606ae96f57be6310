package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"vdev/internal/test/loopfs"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// pidsGroup makes a control group in which there may be so many tasks, for the length of the test.
// It skips the test where that cannot be.
func pidsGroup(t *testing.T, most int) (dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a control group")
	}
	for _, root := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
		dir = filepath.Join(root, fmt.Sprintf("vdev-test-%d-%d", os.Getpid(), most))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if os.WriteFile(filepath.Join(dir, "pids.max"), []byte(strconv.Itoa(most)), 0) != nil {
			os.Remove(dir)
			continue
		}
		t.Cleanup(func() {
			// The last of its tasks may be about to end.
			for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
				err := os.Remove(dir)
				if err == nil {
					return
				}
				if time.Since(begun) > patience {
					t.Errorf("a control group stays: %v", err)
					return
				}
			}
		})
		return dir
	}
	t.Skip("no control group of the pids controller can be made here")
	return ""
}

// tasksOf is how many tasks a process has.
func tasksOf(t *testing.T, pid int) int {
	t.Helper()
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// memoryOf is how much memory a process has, in KiB.
func memoryOf(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "RssAnon:" {
			n, _ := strconv.Atoi(f[1])
			return n
		}
	}
	t.Fatal("no RssAnon")
	return 0
}

// limited is a vdev's bound on its tasks.
type limited struct {
	most  int
	shell string   // what becomes vdev, with $@ as its command line
	env   []string // for the shell
	uid   int      // who vdev runs as

	// usedUp has nothing left of what is allowed, as others can, or gives it back.
	usedUp func(used bool)
}

// start is start, but bounded.
func (l limited) start(t *testing.T, args ...string) *process {
	t.Helper()
	vdev, err := exec.LookPath("vdev")
	if err != nil {
		t.Fatal(err)
	}
	if l.uid != 0 {
		vdev = forAll(t, vdev)
	}
	cmd := exec.Command("sh", append([]string{"-c", l.shell, "sh", vdev}, args...)...)
	cmd.Env = append(append(os.Environ(), noRaceSleep, "TMPDIR=/tmp", "XDG_RUNTIME_DIR=", "GOMAXPROCS=2"), l.env...)
	return startCommand(t, cmd)
}

// publicDir makes a folder in which anybody finds files, and that belongs to uid.
func publicDir(t *testing.T, uid int) string {
	t.Helper()
	for dir := filepath.Clean(os.TempDir()); dir != "/"; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err != nil || info.Mode()&1 == 0 {
			t.Skipf("another user finds no files in %s (TMPDIR)", dir)
		}
	}
	dir, err := os.MkdirTemp("", "vdev-tasks-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, -1)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// forAll copies a program to where anybody can start it.
func forAll(t *testing.T, program string) string {
	t.Helper()
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(publicDir(t, 0), filepath.Base(program))
	if err := os.WriteFile(name, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return name
}

// inGroup bounds vdev by a control group.
func inGroup(t *testing.T, most int) limited {
	t.Helper()
	group := pidsGroup(t, most)
	return limited{
		most: most, shell: `echo $$ > $GROUP/cgroup.procs && exec "$@"`, env: []string{"GROUP=" + group},
		usedUp: func(used bool) {
			n := []byte(strconv.Itoa(most))
			if used {
				var err error
				if n, err = os.ReadFile(filepath.Join(group, "pids.current")); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(group, "pids.max"), n, 0); err != nil {
				t.Fatal(err)
			}
		},
	}
}

// ofUser bounds vdev by what one user may have, who has nothing else.
func ofUser(t *testing.T, most int) limited {
	t.Helper()
	for _, name := range []string{"prlimit", "setpriv"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("there is no %s (Debian: util-linux)", name)
		}
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	const uid = 64_321
	return limited{
		most: most, uid: uid,
		shell: fmt.Sprintf(`exec prlimit --nproc=%d setpriv --reuid=%d --clear-groups "$@"`, most, uid),
	}
}

// TestManyRequestsWaitUnderALimitOfTasks has 16 rings of 1024 full while the file system of the
// image is frozen: with discards mostly, and with writes and flushes. vdev is killed in the midst,
// and its successor is given the requests. Neither takes more tasks than the host allows, nor needs
// one that the host does not allow any more, and in the end all are answered well.
func TestManyRequestsWaitUnderALimitOfTasks(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes ten seconds")
	}
	for name, c := range map[string]struct {
		limit  func(t *testing.T) limited
		aio    string
		usedUp bool // by others, once vdev runs
	}{
		"pids.max=100":          {func(t *testing.T) limited { return inGroup(t, 100) }, "io_uring", true},
		"pids.max=100, threads": {func(t *testing.T) limited { return inGroup(t, 100) }, "threads", true},
		"pids.max=600":          {func(t *testing.T) limited { return inGroup(t, 600) }, "io_uring", false},
		"RLIMIT_NPROC=100":      {func(t *testing.T) limited { return ofUser(t, 100) }, "io_uring", false},
	} {
		t.Run(name, func(t *testing.T) {
			l := c.limit(t)
			if !c.usedUp {
				l.usedUp = func(bool) {}
			}
			manyRequestsWait(t, l, c.aio)
		})
	}
}

func manyRequestsWait(t *testing.T, l limited, aio string) {
	const (
		queues, size = 16, 1024
		spare        = 4 // for a read
		blocks       = 2048
		ranges       = 2
	)
	fs := loopfs.New(t, "ext4")
	img := filepath.Join(fs.Dir, "disk.img")
	err := errors.Join(os.WriteFile(img, make([]byte, blocks*4096), 0o666), os.Chmod(img, 0o666), os.Chmod(filepath.Dir(fs.Dir), 0o755))
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(publicDir(t, l.uid), "s")
	args := []string{"blk", "--socket-path", socket, "--blk-file", img, "--num-queues", fmt.Sprint(queues), "--aio", aio}
	run := func() *process {
		p := l.start(t, args...)
		t.Cleanup(func() { fs.Thaw(t) }) // or it does not end
		return p
	}
	p := run()
	p.waitFor("serving a disk")

	mem, err := virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: 16 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mem.Close)
	var rings []*vhostusertest.Ring
	var region *vhostusertest.Inflight
	begin := func() *guest {
		t.Helper()
		g := connect(t, socket)
		g.mem = mem
		// VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD
		g.want = virtq.FeatureIndirectDesc | 1<<9 | 1<<13
		g.negotiate()
		if region == nil {
			if region, err = g.f.GetInflightFD(queues, size); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(region.Close)
		}
		if err := g.f.SetInflightFD(region); err != nil {
			t.Fatal(err)
		}
		for i := range queues {
			if len(rings) == i {
				r, err := g.f.NewRing(mem, i, size)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(r.Close)
				rings = append(rings, r)
			} else {
				rings[i].Reconnect(g.f)
			}
			if err := rings[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		g.ring = rings[0]
		return g
	}
	g := begin()
	g.read(0)
	before, memory := tasksOf(t, p.cmd.Process.Pid), memoryOf(t, p.cmd.Process.Pid)
	fs.Freeze(t)
	l.usedUp(true)

	segment := func(n uint64) (virtqtest.Seg, []byte) {
		s := virtqtest.Seg{Addr: mem.Alloc(n, 16), Len: uint32(n)}
		return s, mem.Bytes(s.Addr, n)
	}
	header := func(typ uint32, sector uint64) virtqtest.Seg {
		s, b := segment(16)
		binary.LittleEndian.PutUint32(b, typ)
		binary.LittleEndian.PutUint64(b[8:], sector)
		return s
	}
	discard, flush := header(11, 0), header(4, 0) // VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH
	list, b := segment(ranges * 16)
	for i := range ranges { // struct virtio_blk_discard_write_zeroes: the second half of the disk
		binary.LittleEndian.PutUint64(b[16*i:], uint64(blocks/2+16*i)*8)
		binary.LittleEndian.PutUint32(b[16*i+8:], 8)
	}
	data, b := segment(512)
	copy(b, bytes.Repeat([]byte{0x5a}, len(b)))
	statuses, status := segment(queues * (size - spare))
	copy(status, bytes.Repeat([]byte{0xff}, len(status)))
	all, writes := 0, uint64(0)
	for _, r := range rings {
		for j := range size - spare {
			out := []virtqtest.Seg{discard, list}
			switch j % 64 {
			case 7, 17, 27, 37:
				out = []virtqtest.Seg{header(1, writes*8), data} // VIRTIO_BLK_T_OUT
				writes++
			case 47:
				out = []virtqtest.Seg{flush}
			}
			if _, ok := r.AddIndirect(out, []virtqtest.Seg{{Addr: statuses.Addr + uint64(all), Len: 1}}); !ok {
				t.Fatal("no room")
			}
			all++
		}
		if err := r.Notify(); err != nil {
			t.Fatal(err)
		}
	}
	look := func(when string, p *process) {
		t.Helper()
		time.Sleep(500 * time.Millisecond) // for threads to be made
		tasks := tasksOf(t, p.cmd.Process.Pid)
		t.Logf("%s: %d tasks, %d KiB; %d, %d before", when, tasks, memoryOf(t, p.cmd.Process.Pid), before, memory)
		if tasks > l.most {
			t.Errorf("%s: %d tasks", when, tasks)
		}
	}
	look("frozen", p)

	// It is not gone before its threads have come back from the file system, and has the image
	// until then.
	p.signal(syscall.SIGKILL)
	for begun := time.Now(); tasksOf(t, p.cmd.Process.Pid) > l.most/2; time.Sleep(time.Millisecond) {
		if time.Since(begun) > patience {
			t.Fatal("the threads that are not stuck do not end")
		}
	}
	l.usedUp(false)
	if aio == "threads" {
		early := run()
		if status := early.wait(); status != exitFailure {
			t.Errorf("a vdev beside one that has not ended: exit status %d", status)
		}
		early.waitFor("in use by")
	}
	fs.Thaw(t)
	if p.wait() != -1 {
		t.Fatal("it was not killed")
	}

	next := run()
	next.waitFor("serving a disk")
	fs.Freeze(t)
	l.usedUp(true)
	begin()
	look("the successor", next)
	fs.Thaw(t)
	answered := 0
	for begun := time.Now(); answered < all; time.Sleep(time.Millisecond) {
		for _, r := range rings {
			for r.PendingUsed() {
				r.Used()
				answered++
			}
		}
		if time.Since(begun) > patience {
			t.Fatalf("%d of %d requests were answered", answered, all)
		}
	}
	for i, st := range status {
		if st != 0 {
			t.Fatalf("request %d: status %d", i, st)
		}
	}
	l.usedUp(false)
	next.endsCleanly()
	got, err := os.ReadFile(img)
	if err != nil {
		t.Fatal(err)
	}
	for i := range writes {
		if got[i*4096] != 0x5a {
			t.Fatalf("write %d of %d is not there", i, writes)
		}
	}
}

// TestTooFewTasksAreToldAtTheStart names the limit, and what to do. Nothing is left of the vdev.
func TestTooFewTasksAreToldAtTheStart(t *testing.T) {
	for _, most := range []int{10, 20, 36} {
		l := inGroup(t, most)
		socket, commands := filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "c")
		// What vdev needs goes by the number of its event loops.
		p := l.start(t, "blk", "--socket-path", socket, "--control", commands, "--driver", "md,size=1M", "--reactors", "2")
		status := p.wait()
		text, _ := p.stderr.read()
		want := fmt.Sprintf("vdev: the host allows this vdev %d tasks (pids.max=%d of control group ", most, most)
		if status != exitFailure || !strings.HasPrefix(text, want) || !strings.Contains(text, "TasksMax=") || strings.Count(text, "\n") != 1 {
			t.Errorf("pids.max=%d: exit status %d, %q", most, status, text)
		}
		if exists(t, socket) || exists(t, commands) {
			t.Errorf("pids.max=%d: a socket is left", most)
		}
	}
}
