package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vdev/internal/child"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// patience bounds each wait of these tests; what is waited for is an event, and comes long before.
const patience = 30 * time.Second

// process is a vdev that runs.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	stderr *transcript
	ended  <-chan struct{} // closed when it has ended
}

// transcript is what a process has written so far.
type transcript struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{} // closed and replaced at each write
}

func (s *transcript) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.more)
	s.more = make(chan struct{})
	return s.text.Write(p)
}

func (s *transcript) read() (text string, more <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String(), s.more
}

// start starts vdev with an argument list, and with files as descriptors from 3 on.
func start(t *testing.T, files []*os.File, args ...string) *process {
	t.Helper()
	cmd := exec.Command("vdev", args...)
	cmd.Env = append(os.Environ(), noRaceSleep)
	cmd.ExtraFiles = files
	return startCommand(t, cmd)
}

// startCommand is start for a command that is vdev, or becomes it.
func startCommand(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{t: t, cmd: cmd, stderr: &transcript{more: make(chan struct{})}}
	p.cmd.Stderr = p.stderr
	c, err := child.Start(p.cmd, syscall.SIGKILL)
	if err != nil {
		t.Fatal(err)
	}
	p.ended = c.Ended()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.ended
		if t.Failed() {
			text, _ := p.stderr.read()
			t.Logf("%s wrote:\n%s", p.cmd, text)
		}
	})
	return p
}

// serving starts vdev and waits until a front-end can connect.
func serving(t *testing.T, files []*os.File, args ...string) *process {
	t.Helper()
	p := start(t, files, args...)
	p.waitFor("serving a ")
	return p
}

// waitFor waits until the process has written text.
func (p *process) waitFor(text string) {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		written, more := p.stderr.read()
		if strings.Contains(written, text) {
			return
		}
		select {
		case <-more:
		case <-p.ended:
			if written, _ = p.stderr.read(); !strings.Contains(written, text) {
				p.t.Fatalf("vdev ended and had not written %q", text)
			}
			return
		case <-timeout:
			p.t.Fatalf("vdev did not write %q", text)
		}
	}
}

// wait waits for the end of the process and returns its exit status, -1 where a signal killed it.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatal("vdev did not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

// signal sends a signal.
func (p *process) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

// endsCleanly sends SIGTERM, upon which the process must end with status 0.
func (p *process) endsCleanly() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if status := p.wait(); status != exitOK {
		p.t.Errorf("on SIGTERM the exit status is %d, want %d", status, exitOK)
	}
}

// image makes a file of n blocks of 512 bytes; each byte of a block is the block's number plus one.
func image(t *testing.T, n int) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.img")
	var data []byte
	for i := range n {
		data = append(data, bytes.Repeat([]byte{byte(i + 1)}, 512)...)
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// guest is a front-end with a guest that drives one queue.
type guest struct {
	t    *testing.T
	f    *vhostusertest.Frontend
	mem  *virtqtest.Mem
	ring *vhostusertest.Ring
	want uint64 // features beside VERSION_1
}

// connect makes a front-end on the socket at path.
func connect(t *testing.T, path string) *guest {
	t.Helper()
	f, err := vhostusertest.Dial(path)
	// A socket has its name before it listens.
	for deadline := time.Now().Add(patience); errors.Is(err, syscall.ECONNREFUSED) && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
		f, err = vhostusertest.Dial(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return newGuest(t, f)
}

func newGuest(t *testing.T, f *vhostusertest.Frontend) *guest {
	t.Helper()
	g := &guest{t: t, f: f}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	return g
}

// start negotiates features, shares memory, and starts queue 0.
func (g *guest) start() {
	g.t.Helper()
	var err error
	if g.mem, err = virtqtest.NewMem(virtqtest.Range{GuestPhys: 0, Size: 1 << 20}); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(g.mem.Close)
	g.negotiate()
	if g.ring, err = g.f.NewRing(g.mem, 0, 16); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(g.ring.Close)
	if err := g.ring.Start(); err != nil {
		g.t.Fatal(err)
	}
}

// negotiate negotiates features, and shares memory.
func (g *guest) negotiate() {
	g.t.Helper()
	err := errors.Join(g.f.SetFeatures(virtq.FeatureVersion1|vhostuser.FProtocolFeatures|g.want), g.f.AddMemory(g.mem))
	if err != nil {
		g.t.Fatal(err)
	}
}

// read reads one block, and returns its data and the status byte.
func (g *guest) read(sector uint64) ([]byte, byte) {
	g.t.Helper()
	const head, data, status = 0, 512, 1024
	const size = 1025
	buf := g.mem.Alloc(size, 512)
	b := g.mem.Bytes(buf, size)
	binary.LittleEndian.PutUint64(b[head+8:], sector) // type 0 is VIRTIO_BLK_T_IN
	b[status] = 0xff
	_, err := g.ring.Do(
		[]virtqtest.Seg{{Addr: buf + head, Len: 16}},
		[]virtqtest.Seg{{Addr: buf + data, Len: 512}, {Addr: buf + status, Len: 1}})
	if err != nil {
		g.t.Fatal(err)
	}
	return b[data : data+512], b[status]
}

// flush asks for a flush, and does not wait for it.
func (g *guest) flush() {
	g.t.Helper()
	buf := g.mem.Alloc(32, 16)
	binary.LittleEndian.PutUint32(g.mem.Bytes(buf, 32), 4) // VIRTIO_BLK_T_FLUSH
	g.ring.Add([]virtqtest.Seg{{Addr: buf, Len: 16}}, []virtqtest.Seg{{Addr: buf + 16, Len: 1}})
	if err := g.ring.Notify(); err != nil {
		g.t.Fatal(err)
	}
}

// holds checks that a block has what image put there.
func (g *guest) holds(sector uint64) {
	g.t.Helper()
	got, status := g.read(sector)
	if want := bytes.Repeat([]byte{byte(sector + 1)}, 512); status != 0 || !bytes.Equal(got, want) {
		g.t.Errorf("block %d begins with %#x, status %d; want %#x, status 0", sector, got[:4], status, want[:4])
	}
}

// capacity returns the disk's size in blocks of 512 bytes, from the configuration space.
func (g *guest) capacity() uint64 {
	g.t.Helper()
	p, err := g.f.GetConfig(0, 8)
	if err != nil {
		g.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(p)
}

func exists(t *testing.T, name string) bool {
	t.Helper()
	_, err := os.Lstat(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestServesAnImageAndEndsCleanlyOnSIGTERM(t *testing.T) {
	for _, aio := range []string{"io_uring", "threads"} {
		t.Run(aio, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			p := serving(t, nil, "blk", "--socket-path", socket, "--blk-file", image(t, 8), "--aio", aio)
			g := connect(t, socket)
			g.start()
			g.holds(0)
			g.holds(7)
			if _, status := g.read(8); status == 0 {
				t.Error("a read beyond the end succeeds")
			}
			// The front-end is connected, and its ring runs.
			p.endsCleanly()
			if exists(t, socket) {
				t.Error("the socket is still there")
			}
		})
	}
}

func TestServesOneFrontEndAfterTheOther(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--blk-file", image(t, 4))
	for i := range 3 {
		g := connect(t, socket)
		g.start()
		g.holds(uint64(i))
		if err := g.f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.endsCleanly()
	if text, _ := p.stderr.read(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
		t.Errorf("front-ends that just hang up are reported as trouble:\n%s", text)
	}
}

func TestSIGINTEndsWithoutAFrontEnd(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "null,size=1G")
	p.signal(os.Interrupt)
	if status := p.wait(); status != exitOK || exists(t, socket) {
		t.Errorf("exit status %d, socket left: %v", status, exists(t, socket))
	}
}

func TestInheritedListeningSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	file, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	p := serving(t, []*os.File{file}, "blk", "--fd", "3", "--blk-file", image(t, 4))
	if err := errors.Join(file.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		g := connect(t, socket)
		g.start()
		g.holds(2)
		if err := g.f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	p.endsCleanly()
	if !exists(t, socket) {
		t.Error("the path of a socket that vdev did not make is gone")
	}
}

func TestInheritedConnectedSocketEndsWithItsFrontEnd(t *testing.T) {
	f, theirs, err := vhostusertest.Pair()
	if err != nil {
		t.Fatal(err)
	}
	file, err := theirs.File()
	if err != nil {
		t.Fatal(err)
	}
	// As a management program starts it: by the conventions' options alone.
	p := serving(t, []*os.File{file}, "--fd=3", "--blk-file="+image(t, 4), "--read-only")
	if err := errors.Join(file.Close(), theirs.Close()); err != nil {
		t.Fatal(err)
	}
	g := newGuest(t, f)
	g.start()
	g.holds(3)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(); status != exitOK {
		t.Errorf("exit status %d after the front-end has hung up, want 0", status)
	}
}

func TestImageInUseIsToldAtTheStart(t *testing.T) {
	dir, img := t.TempDir(), image(t, 4)
	first := serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "a"), "--blk-file", img)
	g := connect(t, filepath.Join(dir, "a"))
	g.start()
	g.holds(0)

	second := start(t, nil, "blk", "--socket-path", filepath.Join(dir, "b"), "--blk-file", img)
	if status := second.wait(); status != exitFailure {
		t.Errorf("exit status %d for an image in use, want %d", status, exitFailure)
	}
	if text, _ := second.stderr.read(); !strings.Contains(text, img+": in use by") || strings.Count(text, "\n") != 1 {
		t.Errorf("the error is %q", text)
	}
	if exists(t, filepath.Join(dir, "b")) {
		t.Error("the second vdev has left its socket")
	}
	g.holds(1)
	first.endsCleanly()
}

func TestAGuestThatComesFromElsewhereBringsItsImage(t *testing.T) {
	dir, img := t.TempDir(), image(t, 4)
	first := serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "a"), "--blk-file", img)
	source := connect(t, filepath.Join(dir, "a"))
	source.start()
	source.holds(0)

	second := serving(t, nil, "blk", "--socket-path", filepath.Join(dir, "b"), "--blk-file", img, "--incoming")
	if text, _ := second.stderr.read(); !strings.Contains(text, "opened when the guest starts here") {
		t.Errorf("the log of the one that waits: %q", text)
	}
	target := connect(t, filepath.Join(dir, "b"))
	if err := source.ring.Stop(); err != nil {
		t.Fatal(err)
	}
	target.start()
	target.holds(1)
	first.endsCleanly()
	second.endsCleanly()
}

func TestSocketInUseIsRefusedAndAStaleOneReplaced(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	args := []string{"blk", "--socket-path", socket, "--driver", "md,size=1M"}
	first := serving(t, nil, args...)
	second := start(t, nil, args...)
	if status := second.wait(); status != exitFailure {
		t.Errorf("exit status %d for a socket in use, want %d", status, exitFailure)
	}
	if text, _ := second.stderr.read(); !strings.Contains(text, socket) || !strings.Contains(text, "another process listens") {
		t.Errorf("the error is %q", text)
	}
	connect(t, socket).start()

	first.signal(syscall.SIGKILL)
	first.wait()
	if !exists(t, socket) {
		t.Fatal("a killed vdev has left no socket, so the test shows nothing")
	}
	third := serving(t, nil, args...)
	connect(t, socket).start()
	third.endsCleanly()
}

func TestSIGHUPTellsTheFrontEndOfANewSize(t *testing.T) {
	img := image(t, 4)
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--blk-file", img)
	g := connect(t, socket)
	g.start()
	g.holds(3)
	if got := g.capacity(); got != 4 {
		t.Fatalf("capacity %d, want 4", got)
	}

	p.signal(syscall.SIGHUP)
	p.waitFor("changed=false")
	if !g.f.BackendQuiet() {
		t.Error("a size that has not changed is told")
	}

	if err := os.Truncate(img, 16*512); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	p.waitFor("changed=true")
	req, err := g.f.ReceiveBackend()
	if err != nil || req != vhostuser.BackendConfigChangeMsg {
		t.Errorf("the back-end's message is %v, %v", req, err)
	}
	if got := g.capacity(); got != 16 {
		t.Errorf("capacity %d after growing, want 16", got)
	}
	if data, status := g.read(15); status != 0 || !bytes.Equal(data, make([]byte, 512)) {
		t.Errorf("the last of the new blocks is %x, status %d", data[:4], status)
	}
	p.endsCleanly()
}

func TestServesOnWhenTheLogsReaderHasGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	cmd := exec.Command("vdev", "blk", "--socket-path", socket, "--blk-file", image(t, 4), "--trace")
	cmd.Stderr = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		g := connect(t, socket)
		g.start()
		g.holds(1)
		if err := g.f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("vdev ended with %v", err)
	}
}

func TestTraceShowsMessagesRequestsAndTheDevicesLife(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--blk-file", image(t, 4), "--trace")
	g := connect(t, socket)
	g.start()
	g.holds(2)
	if err := g.ring.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := g.f.Close(); err != nil {
		t.Fatal(err)
	}
	p.waitFor("disconnect")
	text, _ := p.stderr.read()
	for _, order := range [][]string{
		{"in SET_OWNER\n", "out GET_FEATURES u64=0x", "in SET_VRING_NUM ring=0 num=16", " start ring=0", "in GET_VRING_BASE ring=0", " stop ring=0", "disconnect\n"},
		{"block 14,0 open\n", "queue 0 read sector 2, 512 bytes: ok\n", "in GET_VRING_BASE ring=0", "block 14,0 cancel\n", "block 14,0 drained\n", "block 14,0 closed\n", "out GET_VRING_BASE"},
	} {
		rest := text
		for _, want := range order {
			_, after, found := strings.Cut(rest, want)
			if !found {
				t.Fatalf("the trace has no %q, or not in this order: %q", want, order)
			}
			rest = after
		}
	}

	// The record of the device's life comes on demand, with or without the trace.
	p.signal(syscall.SIGUSR1)
	p.waitFor("the last events of the device's life")
	p.waitFor(" drained\n")
	p.endsCleanly()
}

func TestJSONLogIsJSONThroughout(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--driver", "md,size=1M", "--trace", "--log-format", "json")
	g := connect(t, socket)
	g.start()
	if _, status := g.read(0); status != 0 {
		t.Fatalf("status %d", status)
	}
	p.signal(syscall.SIGUSR1)
	p.waitFor(`"msg":"life"`)
	p.endsCleanly()
	text, _ := p.stderr.read()
	for line := range strings.Lines(text) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Errorf("line %q: %v", line, err)
		}
	}
	if !strings.Contains(text, "read sector 0") {
		t.Error("the trace has no read")
	}
}

func TestDescriptorsThatAreNoSocket(t *testing.T) {
	file, err := os.Open(image(t, 1))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	datagram, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "d"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer datagram.Close()
	gram, err := datagram.File()
	if err != nil {
		t.Fatal(err)
	}
	defer gram.Close()
	for fd, want := range map[string]string{
		"3": "descriptor 3 is not a socket", "4": "descriptor 4 is a socket, but not a Unix stream socket", "99": "descriptor 99 is not open",
	} {
		p := start(t, []*os.File{file, gram}, "blk", "--fd", fd, "--driver", "null,size=1M")
		status := p.wait()
		text, _ := p.stderr.read()
		if status != exitFailure || !strings.HasPrefix(text, "vdev: --fd: ") || !strings.Contains(text, want) || strings.Count(text, "\n") != 1 {
			t.Errorf("--fd %s: exit status %d, %q; want status %d and %q", fd, status, text, exitFailure, want)
		}
	}
}
