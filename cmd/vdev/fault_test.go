package main

import (
	"path/filepath"
	"testing"

	"vdev/virtq/virtqtest"
)

// TestAFaultDiskServesAnImageWithItsFaults runs it until a read hangs, which neither a front-end that goes nor SIGTERM waits for.
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
