package virtioblk

import (
	"errors"
	"os"
	"testing"
	"time"

	"vdev/internal/dev/md"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/vhostuser"
	"vdev/virtq/virtqtest"
)

// far is the last page of the guest's memory, which a test can take away without hurting the rest.
func (w *bench) far(n uint32) virtqtest.Seg { return virtqtest.Seg{Addr: 64<<20 - 4096, Len: n} }

// cut takes the last page away, as a front-end can at any time.
func (w *bench) cut() {
	w.t.Helper()
	fd := must(sys.NewFD(w.mem.FD()).Dup())(w.t)
	f := os.NewFile(uintptr(fd.Int()), "memory")
	defer f.Close()
	if err := f.Truncate(64<<20 - 4096); err != nil {
		w.t.Fatal(err)
	}
}

// TestMemoryThatGoesAwayEndsTheConnection takes it away under each part of a request, for drivers that end a transfer within
// d_strategy, later on the reactor, and elsewhere. What is in flight must be counted right, or the end never comes.
func TestMemoryThatGoesAwayEndsTheConnection(t *testing.T) {
	eachMode(t, func(t *testing.T, mode reactor.Mode) {
		for name, d := range map[string]disk{"md": mdDisk(md.Config{Size: diskSize}), "vnd": vndDisk} {
			t.Run(name, func(t *testing.T) {
				for name, c := range map[string]struct {
					typ              uint32
					out, in, farData bool // where data are, and whether they go away
					farStatus        bool
				}{
					"status of a read":   {typ: tIn, in: true, farStatus: true},
					"status of a write":  {typ: tOut, out: true, farStatus: true},
					"status of a flush":  {typ: tFlush, farStatus: true},
					"status of a get-id": {typ: tGetID, in: true, farStatus: true},
					"status of nothing":  {typ: 99, farStatus: true},
					"data of a get-id":   {typ: tGetID, in: true, farData: true},
					"data and status":    {typ: tIn, in: true, farData: true, farStatus: true},
				} {
					t.Run(name, func(t *testing.T) {
						w := newBench(t, mode, 1, d, nil)
						w.start(w.all())
						var out, in []virtqtest.Seg
						data, status := w.buffer(512), w.buffer(1)
						if c.farData {
							data = w.far(512)
						}
						if c.farStatus {
							status = virtqtest.Seg{Addr: 64<<20 - 1, Len: 1}
						}
						out = append(out, w.header(c.typ, 0))
						if c.out {
							out = append(out, data)
						}
						if c.in {
							in = append(in, data)
						}
						if _, ok := w.rings[0].Add(out, append(in, status)); !ok {
							t.Fatal("no room")
						}
						w.cut()
						if err := w.rings[0].Notify(); err != nil {
							t.Fatal(err)
						}
						select {
						case err := <-w.ended:
							var fault *vhostuser.FaultError
							if !errors.As(err, &fault) {
								t.Errorf("the connection ended with %v, want a FaultError", err)
							}
							w.ended <- err
						case <-time.After(5 * time.Second):
							t.Fatal("the connection has not ended")
						}
					})
				}
			})
		}
	})
}
