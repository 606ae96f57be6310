package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"vdev/internal/control"
	"vdev/internal/test/hangfs"
	"vdev/virtq/virtqtest"
)

// prompt bounds what must not wait for storage. It tells what hangs from what does not.
const prompt = 20 * time.Second

// within fails the test where fn does not return.
func within(t *testing.T, what string, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	select {
	case <-done:
	case <-time.After(prompt):
		t.Errorf("%s waits for a file system that does not answer", what)
	}
}

// ask adds a request without waiting for it: some bytes to be read by the device behind the header,
// and room for n.
func (g *guest) ask(typ uint32, sector uint64, data []byte, n int) {
	g.t.Helper()
	buf := g.mem.Alloc(uint64(16+len(data)+n+1), 512)
	b := g.mem.Bytes(buf, uint64(16+len(data)+n+1))
	binary.LittleEndian.PutUint32(b, typ)
	binary.LittleEndian.PutUint64(b[8:], sector)
	copy(b[16:], data)
	out := []virtqtest.Seg{{Addr: buf, Len: 16}}
	if len(data) > 0 {
		out = append(out, virtqtest.Seg{Addr: buf + 16, Len: uint32(len(data))})
	}
	end := buf + 16 + uint64(len(data))
	in := []virtqtest.Seg{{Addr: end + uint64(n), Len: 1}}
	if n > 0 {
		in = append([]virtqtest.Seg{{Addr: end, Len: uint32(n)}}, in...)
	}
	if _, ok := g.ring.Add(out, in); !ok {
		g.t.Fatal("no room")
	}
	if err := g.ring.Notify(); err != nil {
		g.t.Fatal(err)
	}
}

// TestAFileSystemThatDoesNotAnswerHoldsUpItsDiskAlone at any time of a disk's life: what a
// connection's goroutine, a stop, an open, a close, a command or a signal asks of storage keeps
// nobody else waiting, the front-end included.
func TestAFileSystemThatDoesNotAnswerHoldsUpItsDiskAlone(t *testing.T) {
	// The ring has been started and has read, where true. Then the file system does not answer.
	for name, c := range map[string]struct {
		kinds []hangfs.Kind
		runs  bool
	}{
		"a size and an open": {[]hangfs.Kind{hangfs.Look, hangfs.Open}, false},
		"an open":            {[]hangfs.Kind{hangfs.Open}, false},
		"reads and writes":   {[]hangfs.Kind{hangfs.Read, hangfs.Write}, true},
		"a flush":            {[]hangfs.Kind{hangfs.Fsync}, true},
		"a discard":          {[]hangfs.Kind{hangfs.Fallocate}, true},
		"a close":            {[]hangfs.Kind{hangfs.Flush}, true},
		"everything":         {hangfs.Kinds(), true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits three seconds for its vdev to give up
			silent(t, c.kinds, c.runs)
		})
	}
}

func silent(t *testing.T, kinds []hangfs.Kind, runs bool) {
	fs, below, point := hangfs.New(t, hangfs.Config{})
	if err := os.WriteFile(filepath.Join(below, "disk.img"), bytes.Repeat([]byte{1}, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	// With the test's name in it, a socket's path would be too long in some folders.
	dir, err := os.MkdirTemp("", "vdev")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	in := func(name string) string { return filepath.Join(dir, name) }
	disk := func(name, what string) string { return fmt.Sprintf("name=%s,socket-path=%s,%s", name, in(name), what) }
	p := servingAll(t, 2, "serve", "--control", in("ctl"), "--reactors", "1",
		"--device", disk("silent", "cancel-after=100ms,blk-file="+filepath.Join(point, "disk.img")),
		"--device", disk("other", "blk-file="+image(t, 8)))
	t.Cleanup(func() { fs.Release(hangfs.Kinds()...) }) // or it does not end
	other := connect(t, in("other"))
	other.start()
	g := connect(t, in("silent"))
	g.want = 1<<9 | 1<<13 // VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD
	if runs {
		g.start()
		g.read(0)
	}
	ctl := control.NewClient(in("ctl"))
	hold, release := context.WithCancel(t.Context())
	defer release()

	fs.Hold(kinds...)
	look := func(when string) {
		t.Helper()
		within(t, "another disk, "+when+",", func() { other.holds(3) })
		within(t, "the control socket, "+when+",", func() {
			if _, err := ctl.Device("silent").Status(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	if !runs {
		within(t, "the start of a ring", g.start)
	}
	g.ask(4, 0, nil, 0)                                              // VIRTIO_BLK_T_FLUSH
	g.ask(1, 8, bytes.Repeat([]byte{2}, 512), 0)                     // VIRTIO_BLK_T_OUT
	g.ask(0, 1024, nil, 512)                                         // VIRTIO_BLK_T_IN
	g.ask(11, 0, append(make([]byte, 8), 8, 0, 0, 0, 0, 0, 0, 0), 0) // VIRTIO_BLK_T_DISCARD
	time.Sleep(50 * time.Millisecond)
	look("with requests in progress")
	go func() { _, _ = ctl.Device("silent").Resize(hold) }()
	go func() { _, _ = ctl.Device("silent").ClearFailure(hold) }()
	p.signal(syscall.SIGHUP)
	p.signal(syscall.SIGUSR1)
	look("while its size is asked for")
	within(t, "a pause", func() {
		if err := g.f.SetVringEnable(0, false); err != nil {
			t.Error(err)
		}
	})
	within(t, "a stop", func() {
		if _, err := g.f.GetVringBase(0); err != nil {
			t.Error(err)
		}
	})
	look("stopped")
	g.f.Close()
	for i := range 2 {
		within(t, "a session", func() {
			g = connect(t, in("silent"))
			g.start()
		})
		look(fmt.Sprintf("in session %d", i))
		within(t, "a reset", func() {
			if err := g.f.ResetDevice(); err != nil {
				t.Error(err)
			}
		})
		g.f.Close()
	}
	look("without a front-end")
	if t.Failed() {
		return
	}

	p.signal(syscall.SIGTERM)
	within(t, "the end", func() { p.waitFor("ends without it") })
	fs.Release(hangfs.Kinds()...)
	if status := p.wait(); status != exitFailure {
		t.Errorf("exit status %d", status)
	}
}
