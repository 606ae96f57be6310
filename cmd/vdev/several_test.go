package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/internal/bench/load"
	"vdev/internal/control"
	"vdev/internal/test/hangfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// servingAll starts vdev with an argument list, and waits until all of n devices are served.
func servingAll(t *testing.T, n int, args ...string) *process {
	t.Helper()
	p := start(t, nil, args...)
	for {
		written, more := p.stderr.read()
		if strings.Count(written, "serving a ") == n {
			return p
		}
		select {
		case <-more:
		case <-p.ended:
			t.Fatal("vdev has ended")
		}
	}
}

func TestAFileDescribesDevices(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	text := fmt.Sprintf(`
# All of vdev's.
control = %q
trace = true
log-level = "info"

[[device]]
name = "root"
socket-path = %q
blk-file = %q
serial = "r00t"
read-only = true

[[device]]
socket-path = %q
driver = "fault,lower=md,size=1M"
logical-block-size = "4096"
num-queues = 2
`, in("ctl"), in("a.sock"), image(t, 8), in("scratch.sock"))
	if err := os.WriteFile(in("vdev.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := servingAll(t, 3, "serve", in("vdev.toml"), "--device", "driver=null,,size=1G,socket-path="+in("c.sock"))

	g := connect(t, in("a.sock"))
	g.start()
	g.holds(3)
	connect(t, in("scratch.sock")).start()
	p.waitFor("root vhost ")
	p.waitFor("scratch specfs ")
	p.waitFor("device=root")

	var all []control.Status
	if err := json.Unmarshal([]byte(p.told(in("ctl"), "status", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range all {
		names = append(names, s.Name)
	}
	if !slices.Equal(names, []string{"root", "scratch", "c"}) {
		t.Fatalf("the devices are %q", names)
	}
	if all[0].Disk.Serial != "r00t" || !all[0].Disk.ReadOnly || all[0].FrontEnd == nil || all[2].FrontEnd != nil ||
		all[1].Disk.BlockSize != 4096 || len(all[1].Rings) != 2 {
		t.Errorf("the status is %+v", all)
	}
	if text := p.told(in("ctl"), "status"); strings.Count(text, "\ndevice ") != 3 {
		t.Errorf("the status of all is\n%s", text)
	}
	if text := p.told(in("ctl"), "status", "--device", "scratch"); strings.Contains(text, "root") {
		t.Errorf("the status of one is\n%s", text)
	}
	if text := p.told(in("ctl"), "fault", "--device", "scratch", "error:read"); text != "1 error:read\n" {
		t.Errorf("a fault is answered with %q", text)
	}
	p.refused(in("ctl"), "there are 3 devices, and one has to be named (--device): root, scratch, c", "revoke")
	p.refused(in("ctl"), "has no faults", "fault", "--device", "root")
	p.refused(in("ctl"), `there is no device "roof"; there are: root, scratch, c`, "resize", "--device", "roof")
	var completions bytes.Buffer
	if run(t.Context(), []string{"__complete", "ctl", "--socket", in("ctl"), "status", "--device", ""}, &completions, io.Discard) != exitOK ||
		!strings.HasPrefix(completions.String(), "root\nscratch\nc\n") {
		t.Errorf("the shell completes --device by %q", completions.String())
	}
	p.told(in("ctl"), "revoke", "--device", "root")
	if _, status := g.read(1); status == 0 {
		t.Error("a device that was revoked answers")
	}
	if text := p.told(in("ctl"), "trace", "--device", "scratch"); strings.Contains(text, "revoke") || !strings.Contains(text, "opened") {
		t.Errorf("the trace of the other device is\n%s", text)
	}
	p.signal(syscall.SIGQUIT)
	p.waitFor("the status of device c:")
	p.endsCleanly()
	for _, name := range []string{"a.sock", "scratch.sock", "c.sock", "ctl"} {
		if _, err := os.Lstat(in(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

var isolationRounds = flag.Int("isolation.rounds", 3, "how often TestADeviceThatHangsLeavesTheOthersAsTheyWere measures")

// TestADeviceThatHangsLeavesTheOthersAsTheyWere: eight devices in one process, of which one hangs
// in one way or another. The others' latencies with and without that are printed side by side; that
// they go on at all is what the test is sure of.
func TestADeviceThatHangsLeavesTheOthersAsTheyWere(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for storage that hangs")
	}
	const others = 7
	dir := t.TempDir()
	socket := func(name string) string { return filepath.Join(dir, name+".sock") }
	ctl := filepath.Join(dir, "ctl")
	args := []string{"serve", "--control", ctl, "--log-level", "error"}
	for i := range others {
		driver := "md,,size=16M"
		if i%2 == 1 {
			driver = "vnd,,file=" + sparse(t, 16<<20)
		}
		args = append(args, "--device", fmt.Sprintf("name=d%d,socket-path=%s,driver=%s", i, socket(fmt.Sprint("d", i)), driver))
	}
	args = append(args, "--device", "name=h,socket-path="+socket("h")+",cancel-after=1h,driver=fault,,lower=md,,size=16M")
	fuse := fuseDisk(t)
	if fuse != nil {
		args = append(args, "--device", "name=f,socket-path="+socket("f")+",cancel-after=1h,driver=vnd,,file="+fuse.file)
	}
	p := start(t, nil, args...)
	for _, name := range []string{"d0", "d6", "h"} {
		awaitSocket(t, socket(name))
	}

	// busy keeps a device busy until the function that it returns is called.
	busy := func(name string, pattern load.Pattern) (end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = load.Run(ctx, socket(name), load.Job{Pattern: pattern, BlockSize: 4096, Depth: 128, Queues: 1, Length: time.Hour, ReadPercent: 50})
		}()
		return func() {
			cancel()
			<-ended
		}
	}
	inFlight := func(n int) func(control.Status) bool {
		return func(s control.Status) bool { return len(s.Rings) > 0 && s.Rings[0].InFlight == n }
	}
	status := func(name string, cond func(control.Status) bool) {
		t.Helper()
		for deadline := time.Now().Add(patience); ; {
			var st control.Status
			if err := json.Unmarshal([]byte(p.told(ctl, "status", "--json", "--device", name)), &st); err != nil {
				t.Fatal(err)
			}
			if cond(st) {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("device %s: %+v", name, st)
			}
		}
	}
	release := func(end func()) func() {
		return func() {
			p.told(ctl, "fault", "clear", "--device", "h")
			p.told(ctl, "fault", "release", "--device", "h")
			end()
			status("h", func(s control.Status) bool { return s.FrontEnd == nil && s.State == "closed" && s.Fenced == 0 })
		}
	}
	ways := []struct {
		name string
		hang func() (undo func())
	}{
		{"128 transfers that cannot be interrupted", func() func() {
			end := busy("h", load.RandRW)
			p.told(ctl, "fault", "--device", "h", "hang:read+write:uncancellable")
			status("h", inFlight(128))
			return release(end)
		}},
		{"an open", func() func() {
			p.told(ctl, "fault", "--device", "h", "hang:open")
			end := busy("h", load.RandRW)
			status("h", func(s control.Status) bool { return s.State == "opening" })
			return release(end)
		}},
		{"a front-end that waits for a stop", func() func() {
			g := connect(t, socket("h"))
			g.start()
			p.told(ctl, "fault", "--device", "h", "hang:flush:uncancellable")
			g.flush()
			status("h", inFlight(1))
			stopped := make(chan error, 1)
			go func() { stopped <- g.ring.Stop() }()
			status("h", func(s control.Status) bool { return s.CancelIn != nil })
			return release(func() {
				<-stopped
				g.f.Close()
			})
		}},
		{"a close", func() func() {
			p.told(ctl, "fault", "--device", "h", "hang:close")
			g := connect(t, socket("h"))
			g.start()
			g.read(0)
			g.f.Close()
			status("h", func(s control.Status) bool { return s.State == "closing" })
			return release(func() {})
		}},
		{"a command that waits for a flush", func() func() {
			p.told(ctl, "fault", "--device", "h", "hang:flush:uncancellable")
			g := connect(t, socket("h"))
			g.start()
			g.flush()
			status("h", inFlight(1))
			revoked := make(chan error, 1)
			go func() { revoked <- control.NewClient(ctl).Device("h").Revoke(t.Context()) }()
			status("h", func(s control.Status) bool { return len(s.Devices) > 0 && s.Devices[0].Closing })
			return release(func() {
				if err := <-revoked; err != nil {
					t.Error(err)
				}
				g.f.Close()
			})
		}},
		{"a front-end that does not read", func() func() {
			g := connect(t, socket("h"))
			g.start()
			if err := g.f.Conn().SetWriteDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			// GET_FEATURES, without a payload.
			message := binary.NativeEndian.AppendUint32(nil, uint32(vhostuser.GetFeatures))
			message = binary.NativeEndian.AppendUint32(message, vhostuser.FlagVersion)
			message = binary.NativeEndian.AppendUint32(message, 0)
			for {
				_, err := g.f.Conn().Write(message)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					break // the other side has answers that nobody takes
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			return release(func() { g.f.Close() })
		}},
	}
	if fuse != nil {
		ways = append(ways, struct {
			name string
			hang func() (undo func())
		}{"128 reads of a FUSE file system that has stopped", func() func() {
			end := busy("f", load.RandRead)
			// The open reads, too.
			status("f", func(s control.Status) bool { return s.State == "open" })
			fuse.fs.Hold(hangfs.Read)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := fuse.fs.Await(ctx, hangfs.Read, 64); err != nil {
				t.Fatal(err)
			}
			return func() {
				fuse.fs.Release(hangfs.Read)
				end()
				status("f", func(s control.Status) bool { return s.FrontEnd == nil && s.State == "closed" })
			}
		}})
	}
	for _, way := range ways {
		var p50, p99 [2][]time.Duration // without and with
		for range *isolationRounds {
			for with := range 2 {
				undo := func() {}
				if with == 1 {
					undo = way.hang()
				}
				var wg sync.WaitGroup
				results := make([]load.Result, others)
				for i := range others {
					wg.Go(func() {
						j := load.Job{Pattern: load.RandRead, BlockSize: 4096, Depth: 1, Queues: 1, Warmup: 10 * time.Millisecond}
						// On a machine with much else to do it may take long until anybody gets to
						// do anything.
						for j.Length = 120 * time.Millisecond; j.Length < patience; j.Length *= 4 {
							var err error
							results[i], err = load.Run(t.Context(), socket(fmt.Sprint("d", i)), j)
							if err == nil {
								return
							}
							if !errors.Is(err, load.ErrNoRequest) {
								t.Errorf("%s: device d%d: %v", way.name, i, err)
								return
							}
							t.Logf("%s (%d): nothing from d%d in %v", way.name, with, i, j.Length)
						}
						t.Errorf("%s: device d%d answers nothing", way.name, i)
					})
				}
				wg.Wait()
				if t.Failed() {
					return
				}
				undo()
				all := results[0].Latency
				for _, r := range results[1:] {
					all.Merge(r.Latency)
				}
				p50[with] = append(p50[with], time.Duration(all.ValueAtQuantile(50)))
				p99[with] = append(p99[with], time.Duration(all.ValueAtQuantile(99)))
			}
		}
		t.Logf("%-48s the others' p50 %v, without it %v; p99 %v, without it %v", way.name+":", middle(p50[1]), middle(p50[0]), middle(p99[1]), middle(p99[0]))
	}
	p.endsCleanly()
}

func middle[T cmp.Ordered](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

// sparse makes an empty image.
func sparse(t *testing.T, size int64) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	if err := errors.Join(os.WriteFile(name, nil, 0o600), os.Truncate(name, size)); err != nil {
		t.Fatal(err)
	}
	return name
}

// onFUSE is an image, too large to be cached in a moment, on a file system that can be stopped.
type onFUSE struct {
	fs   *hangfs.FS
	file string
}

// fuseDisk gives one, or nil where the host has no FUSE.
func fuseDisk(t *testing.T) *onFUSE {
	var f onFUSE
	t.Run("FUSE", func(t2 *testing.T) {
		dir, point := t.TempDir(), t.TempDir()
		var err error
		if f.fs, err = hangfs.Mount(dir, point, hangfs.Config{}); err != nil {
			t2.Skipf("no FUSE here: %v", err)
		}
		t.Cleanup(func() {
			if err := f.fs.Close(); err != nil {
				t.Error(err)
			}
		})
		f.file = filepath.Join(point, "disk.img")
		below := filepath.Join(dir, "disk.img")
		if err := errors.Join(os.WriteFile(below, nil, 0o600), os.Truncate(below, 4<<30)); err != nil {
			t.Fatal(err)
		}
	})
	if f.file == "" {
		return nil
	}
	return &f
}

// awaitSocket waits until there is a socket at path.
func awaitSocket(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, err := os.Lstat(path); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s does not appear", path)
		}
	}
}

// helpExample is what the help of serve shows as a file.
func helpExample(t testing.TB) string {
	t.Helper()
	_, text, begun := strings.Cut(newServeCommand().Long, "in TOML:\n")
	text, _, ended := strings.Cut(text, "\nPaths ")
	if !begun || !ended {
		t.Fatal("the help has no example")
	}
	return text
}

// TestTheExampleInTheHelpIsAConfiguration serves what the help of serve shows as a file.
func TestTheExampleInTheHelpIsAConfiguration(t *testing.T) {
	dir := t.TempDir()
	text := strings.NewReplacer("/run/", dir+"/", "root.qcow2", image(t, 8)).Replace(helpExample(t))
	file := filepath.Join(dir, "vdev.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p := servingAll(t, 3, "serve", file, "--log-level", "info")
	var all []control.Status
	if err := json.Unmarshal([]byte(p.told(filepath.Join(dir, "vdev.ctl"), "status", "--json")), &all); err != nil {
		t.Fatal(err)
	}
	if len(all) != 3 || all[0].Name != "root" || all[1].Name != "vm1-scratch" || all[1].Disk.Serial != "scratch" ||
		all[2].Name != "vm1-tty" || len(all[2].Console.Ports) != 2 {
		t.Errorf("the devices are %+v", all)
	}
	p.endsCleanly()
}

// TestADeviceThatHasEndedLeavesTheOthers: one that has a connected socket ends with its front-end,
// and can still be asked about.
func TestADeviceThatHasEndedLeavesTheOthers(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	f, theirs, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	file, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, []*os.File{file}, "serve", "--control", in("ctl"), "--device", "fd=3,driver=fault,,lower=md,,size=1M",
		"--device", "socket-path="+in("b.sock")+",blk-file="+image(t, 4))
	awaitSocket(t, in("b.sock"))
	if err := errors.Join(file.Close(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	newGuest(t, f).start()
	other := connect(t, in("b.sock"))
	other.start()
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	p.waitFor("msg=ended device=fd3")
	other.holds(1)
	if text := p.told(in("ctl"), "status", "--device", "fd3"); !strings.Contains(text, "closed") {
		t.Errorf("the status of the device that has ended is\n%s", text)
	}
	p.refused(in("ctl"), "no such unit", "fault", "--device", "fd3", "hang:read")
	p.refused(in("ctl"), "no guest uses it", "revoke", "--device", "fd3")
	p.refused(in("ctl"), "no such unit", "resize", "--device", "fd3")
	other.holds(2)
	p.endsCleanly()
}

// TestADiskWhoseStorageHangsKeepsNoOtherAway from being served. It is served as soon as it can be,
// and until then the log and the status say what is the matter.
func TestADiskWhoseStorageHangsKeepsNoOtherAway(t *testing.T) {
	if testing.Short() {
		t.Skip("it waits for storage that hangs")
	}
	fs, dir, point := hangfs.New(t, hangfs.Config{})
	data, err := os.ReadFile(image(t, 8))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "hung.img"), data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	fs.Hold(hangfs.Look)
	defer fs.Release(hangfs.Look)
	home := t.TempDir()
	in := func(name string) string { return filepath.Join(home, name) }
	p := servingAll(t, 1, "serve", "--control", in("ctl"),
		"--device", "socket-path="+in("hung.sock")+",blk-file="+filepath.Join(point, "hung.img"),
		"--device", "socket-path="+in("good.sock")+",blk-file="+image(t, 8))
	g := connect(t, in("good.sock"))
	g.start()
	g.holds(3)
	p.waitFor("the device is not served yet: its storage does not answer")
	if text := p.told(in("ctl"), "status", "--device", "hung"); !strings.Contains(text, "opening: its storage has not answered") {
		t.Errorf("its status is\n%s", text)
	}
	p.refused(in("ctl"), "is not served yet", "resize", "--device", "hung")

	fs.Release(hangfs.Look)
	awaitSocket(t, in("hung.sock"))
	late := connect(t, in("hung.sock"))
	late.start()
	late.holds(4)
	g.holds(5)
	p.endsCleanly()
}

// TestADiskThatCannotBeOpenedKeepsNoOtherAway: the log says why it is not served, and so do the
// status and, at the end, the exit status.
func TestADiskThatCannotBeOpenedKeepsNoOtherAway(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	// A guest may have written that into the raw disk.
	odd := in("odd.img")
	if err := os.WriteFile(odd, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 4088)...), 0o600); err != nil {
		t.Fatal(err)
	}
	bad := in("bad.qcow2")
	if err := os.WriteFile(bad, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"serve", "--control", in("ctl"),
		"--device", "socket-path=" + in("bad.sock") + ",blk-file=" + bad,
		"--device", "socket-path=" + in("missing.sock") + ",blk-file=" + in("missing.img"),
		"--device", "socket-path=" + in("gone.sock") + ",blk-file=" + in("gone.qcow2"),
		"--device", "socket-path=" + in("odd.sock") + ",blk-file=" + odd,
		"--device", "socket-path=" + in("good.sock") + ",blk-file=" + image(t, 8),
	}
	p := servingAll(t, 2, args...)
	p.waitFor("odd.img: begins like a qcow2 image, which a guest may have written there")
	p.waitFor("the device is not served")
	g := connect(t, in("good.sock"))
	g.start()
	g.holds(3)
	for name, want := range map[string]string{
		"bad": "is named like a qcow2 image and does not begin like one", "missing": "missing.img: stat: no such file",
		"gone": "gone.qcow2: no such file",
	} {
		if _, err := os.Stat(in(name + ".sock")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket of %s is there: %v", name, err)
		}
		var st control.Status
		if err := json.Unmarshal([]byte(p.told(in("ctl"), "status", "--json", "--device", name)), &st); err != nil {
			t.Fatal(err)
		}
		if st.State != "failed" || !strings.Contains(st.Error, want) || st.Name != name {
			t.Errorf("%s: state %q, error %q", name, st.State, st.Error)
		}
		p.refused(in("ctl"), "is not served", "resize", "--device", name)
	}
	if text := p.told(in("ctl"), "status"); strings.Count(text, "\ndevice ") != 5 {
		t.Errorf("the status of all is\n%s", text)
	}
	p.signal(syscall.SIGUSR1)
	p.waitFor("the last events of device missing's life")
	p.signal(syscall.SIGQUIT)
	p.waitFor("the status of device missing:")
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != 1 {
		t.Errorf("at the end the exit status is %d, want 1", status)
	}
	p.waitFor("3 devices not served")

	// All or none.
	p = start(t, nil, append(args, "--strict")...)
	if status := p.wait(); status != 1 {
		t.Errorf("with --strict the exit status is %d, want 1", status)
	}
	if _, err := os.Stat(in("good.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("with --strict there is a socket: %v", err)
	}
}

// TestADiskThatCouldNotBeOpenedIsTriedAgain, and served as if it had been there at the start.
func TestADiskThatCouldNotBeOpenedIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	p := servingAll(t, 1, "serve", "--control", in("ctl"),
		"--device", "socket-path="+in("late.sock")+",blk-file="+in("late.img"),
		"--device", "socket-path="+in("good.sock")+",blk-file="+image(t, 8))
	status := func() (st control.Status) {
		t.Helper()
		text := p.told(in("ctl"), "status", "--json", "--device", "late")
		if err := json.Unmarshal([]byte(text), &st); err != nil {
			t.Fatal(err)
		}
		return st
	}
	if st := status(); st.State != "failed" || st.RetryIn == nil || *st.RetryIn > 60 {
		t.Errorf("state %q, tried again in %v", st.State, st.RetryIn)
	}
	if text := p.told(in("ctl"), "status"); !strings.Contains(text, "it is tried again in ") {
		t.Errorf("the status of all is\n%s", text)
	}
	p.refused(in("ctl"), "it is tried again in ", "resize", "--device", "late")
	if err := os.Rename(image(t, 8), in("late.img")); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	p.waitFor("file=" + in("late.img") + " bytes=4096")
	g := connect(t, in("late.sock"))
	g.start()
	g.holds(3)
	if st := status(); st.State != "open" || st.RetryIn != nil {
		t.Errorf("state %q, tried again in %v", st.State, st.RetryIn)
	}
	trace := p.told(in("ctl"), "trace", "--device", "late")
	if !strings.Contains(trace, "the device is not served") || !strings.Contains(trace, "opened") {
		t.Errorf("its life is\n%s", trace)
	}
	if written, _ := p.stderr.read(); strings.Count(written, "the device is not served") != 1 {
		t.Error("the log does not say once that it was not served")
	}
	p.endsCleanly()
}

func TestAnImageOfNoBytesIsWarnedOf(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.img")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "s"), "--blk-file", empty)
	p.waitFor("the disk has no bytes")
	p.endsCleanly()
}
