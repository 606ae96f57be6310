package main

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vdev/devsw"
	"vdev/internal/control"
	"vdev/internal/dev/vnd"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// flushed does a flush and returns its status byte.
func (g *guest) flushed() byte {
	g.t.Helper()
	buf := g.mem.Alloc(32, 16)
	b := g.mem.Bytes(buf, 32)
	binary.LittleEndian.PutUint32(b, 4) // VIRTIO_BLK_T_FLUSH
	b[16] = 0xff
	if _, err := g.ring.Do([]virtqtest.Seg{{Addr: buf, Len: 16}}, []virtqtest.Seg{{Addr: buf + 16, Len: 1}}); err != nil {
		g.t.Fatal(err)
	}
	return b[16]
}

// TestAFailedFlushIsShownUntilItIsCleared, which a vdev before this one has had.
func TestAFailedFlushIsShownUntilItIsCleared(t *testing.T) {
	image, state := filepath.Join(t.TempDir(), "disk.img"), t.TempDir()
	if err := os.WriteFile(image, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := sys.OpenFile(image, sys.OpenFlags{})
	if err != nil {
		t.Fatal(err)
	}
	identity, err := fd.Identity()
	fd.Close()
	if err != nil {
		t.Fatal(err)
	}
	vnd.NewFailures(state, func(err error) { t.Error(err) }).Record(identity, image, devsw.ENOSPC)

	serve := func() (*process, string, *guest) {
		socket, ctl := sockets(t)
		p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--blk-file", image, "--state-dir", state)
		g := connect(t, socket)
		g.start()
		return p, ctl, g
	}
	p, ctl, g := serve()
	p.waitFor("a flush has failed: writes that were acknowledged are lost")
	p.until(ctl, func(s control.Status) bool { return s.Disk.FailedFlush == devsw.ENOSPC.Error() })
	if got := p.told(ctl, "status"); !strings.Contains(got, "a flush has failed (no space left on device), and all fail since") {
		t.Errorf("the status does not tell:\n%s", got)
	}
	if status := g.flushed(); status != 1 {
		t.Errorf("a flush has status %d, want 1", status)
	}
	// A guest that is moved without its in-flight region takes nothing of that along.
	dirty, err := sys.NewSealedMemfd("log", 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer dirty.Close()
	if err := g.f.SetLogBase(4096, 0, dirty.Int()); err != nil {
		t.Fatal(err)
	}
	p.waitFor("where it goes nobody will know that a flush has failed")
	if got := p.told(ctl, "clear-failure"); got != "a flush had failed (no space left on device): that is forgotten\n" {
		t.Errorf("clear-failure says %q", got)
	}
	if got := p.told(ctl, "clear-failure"); got != "no flush has failed\n" {
		t.Errorf("clear-failure says %q the second time", got)
	}
	if status := g.flushed(); status != 0 {
		t.Errorf("a flush has status %d, want 0", status)
	}
	if got := p.told(ctl, "status"); strings.Contains(got, "has failed") {
		t.Errorf("the status still tells:\n%s", got)
	}
	p.endsCleanly()

	p, ctl, g = serve()
	if s := p.status(ctl); s.Disk.FailedFlush != "" {
		t.Errorf("the next vdev knows of %q", s.Disk.FailedFlush)
	}
	if status := g.flushed(); status != 0 {
		t.Errorf("the next vdev's flush has status %d, want 0", status)
	}
	p.endsCleanly()
}

// TestTheSizeIsThatOfTheImageWhenAGuestComes: it was replaced by a larger and by a smaller one
// while nobody had it.
func TestTheSizeIsThatOfTheImageWhenAGuestComes(t *testing.T) {
	image := filepath.Join(t.TempDir(), "disk.img")
	replace := func(size int64) {
		t.Helper()
		if err := os.WriteFile(image+".new", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(image+".new", size); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(image+".new", image); err != nil {
			t.Fatal(err)
		}
	}
	replace(1 << 20)
	socket, ctl := sockets(t)
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--blk-file", image)
	for _, size := range []int64{1 << 20, 2 << 20, 512 << 10} {
		replace(size)
		g := connect(t, socket)
		if got := g.capacity(); got != uint64(size/512) {
			t.Errorf("the guest is told %d blocks of an image of %d bytes", got, size)
		}
		g.start()
		if _, status := g.read(uint64(size/512) - 1); status != 0 {
			t.Errorf("the last block of %d bytes is read with status %d", size, status)
		}
		if _, status := g.read(uint64(size / 512)); status != 1 {
			t.Errorf("the block behind %d bytes is read with status %d", size, status)
		}
		g.f.Close()
		p.until(ctl, func(s control.Status) bool { return s.FrontEnd == nil && s.State == "closed" })
	}
	p.endsCleanly()
}

// TestAFrontEndThatComesIsToldOfANewSize: one that comes back does not ask.
func TestAFrontEndThatComesIsToldOfANewSize(t *testing.T) {
	img := image(t, 4)
	socket := filepath.Join(t.TempDir(), "s")
	p := serving(t, nil, "blk", "--socket-path", socket, "--blk-file", img)
	if err := os.Truncate(img, 16*512); err != nil {
		t.Fatal(err)
	}
	g := connect(t, socket)
	g.start() // until then the message waits
	req, err := g.f.ReceiveBackend()
	if err != nil || req != vhostuser.BackendConfigChangeMsg {
		t.Errorf("the back-end's message is %v, %v", req, err)
	}
	p.endsCleanly()
}
