package virtioblk

import (
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/vnd"
	"vdev/internal/reactor"
	"vdev/internal/test/loopfs"
)

// TestAStopIsAnsweredThoughTheFileSystemIsFrozen, and by all queues, whose writes sleep in it: the
// first on a reactor's own thread.
func TestAStopIsAnsweredThoughTheFileSystemIsFrozen(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		const queues = 3 // on two reactors
		m := loopfs.New(t, "ext4")
		frozen := func(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
			return vndWith(t, table, m.Dir, vnd.Config{})
		}
		w, _ := newSuspendBench(t, mode, queues, frozen, noInflight, func(c *benchConfig) { c.CancelAfter = time.Millisecond })
		for q := range queues {
			w.write(q, uint64(q), 1)
			if _, _, err := w.rings[q].Wait(); err != nil {
				t.Fatal(err)
			}
		}
		m.Freeze(t)
		for q := range queues {
			for i := range 5 {
				w.write(q, uint64(q*8+i), 2)
			}
		}
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			w.stopRings()
		}()
		select {
		case <-stopped:
		case <-time.After(30 * time.Second):
			m.Thaw(t)
			<-stopped
			t.Error("a stop is not answered while the file system is frozen")
		}
		if got := w.dev.Status(); got.Fenced == 0 && !t.Failed() {
			t.Error("no write was fenced")
		}
		m.Thaw(t)
		w.waitClosed()
		w.startRings(nil)
		for q := range queues {
			w.write(q, uint64(q), 3)
			if _, _, err := w.rings[q].Wait(); err != nil {
				t.Fatal(err)
			}
		}
	})
}
