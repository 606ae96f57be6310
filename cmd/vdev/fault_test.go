package main

import (
	"path/filepath"
	"strings"
	"testing"

	"vdev/virtq/virtqtest"
)

// TestAFaultDiskServesAnImageWithItsFaults runs it until a read hangs, which neither a front-end
// that goes nor SIGTERM waits for.
func TestAFaultDiskServesAnImageWithItsFaults(t *testing.T) {
	for _, option := range []string{"cache=1M", "no-cancel"} {
		t.Run(option, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			p := serving(t, nil, "blk", "--socket-path", socket, "--driver",
				"fault,rule=error:read:blocks=3,rule=hang:read:blocks=5,"+option+",lower=vnd,file="+image(t, 8))
			for range 2 {
				g := connect(t, socket)
				g.start()
				g.holds(0)
				if _, status := g.read(3); status != 1 { // VIRTIO_BLK_S_IOERR
					t.Errorf("block 3 is read with status %d, want 1", status)
				}
				g.holds(4)
				buf := g.mem.Alloc(1024, 512)
				g.mem.Bytes(buf, 16)[8] = 5 // the sector, of a VIRTIO_BLK_T_IN
				if _, ok := g.ring.Add([]virtqtest.Seg{{Addr: buf, Len: 16}}, []virtqtest.Seg{{Addr: buf + 16, Len: 512}, {Addr: buf + 600, Len: 1}}); !ok {
					t.Fatal("no room")
				}
				if err := g.ring.Notify(); err != nil {
					t.Fatal(err)
				}
				g.holds(7) // so vdev has seen what was before it
				if g.ring.PendingUsed() {
					t.Error("the read of block 5 has ended")
				}
				g.f.Close()
			}
			p.endsCleanly()
		})
	}
}

// TestWhatStorageFailsIsTold in the log, within its bound, and in the status. What a guest asks for
// in vain is no fault of storage.
func TestWhatStorageFailsIsTold(t *testing.T) {
	dir := t.TempDir()
	socket, ctl := filepath.Join(dir, "s"), filepath.Join(dir, "ctl")
	p := serving(t, nil, "blk", "--socket-path", socket, "--control", ctl, "--driver",
		"fault,rule=error:read:blocks=3:errno=ENOSPC,rule=error:flush,lower=vnd,file="+image(t, 8))
	g := connect(t, socket)
	g.start()
	if _, status := g.read(8); status != 1 {
		t.Errorf("a read beyond the end has status %d, want 1", status)
	}
	g.holds(2)
	if text := p.told(ctl, "status"); strings.Contains(text, "failed") {
		t.Errorf("nothing has failed, and the status says:\n%s", text)
	}
	for range 40 {
		if _, status := g.read(3); status != 1 {
			t.Errorf("block 3 is read with status %d, want 1", status)
		}
	}
	p.waitFor(`msg="storage has failed a request" request="queue 0 read sector 3, 512 bytes: i/o error: no space left on device"`)
	if text := p.told(ctl, "status"); !strings.Contains(text, "failed      40 requests, the last ") ||
		!strings.Contains(text, "read sector 3, 512 bytes: i/o error: no space left on device") {
		t.Errorf("40 reads have failed, and the status says:\n%s", text)
	}
	if status := g.flushed(); status != 1 {
		t.Errorf("a flush has status %d, want 1", status)
	}
	if st := p.status(ctl); st.Disk.Failed == nil || st.Disk.Failed.Requests != 41 || !strings.Contains(st.Disk.Failed.Last, "flush") {
		t.Errorf("after a flush that failed the status has %+v", st.Disk.Failed)
	}
	if text, _ := p.stderr.read(); strings.Count(text, "storage has failed a request") > 2*lineBurst {
		t.Errorf("%d lines of the log for 41 requests", strings.Count(text, "storage has failed a request"))
	}
	p.endsCleanly()
}
