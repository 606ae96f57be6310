package virtioblk

import (
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/md"
	"vdev/internal/dev/nbd"
	"vdev/internal/dev/vnd"
	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// vndInMemory is a vnd of a file in memory, where reads and writes never wait.
func vndInMemory(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	dir, err := os.MkdirTemp("/dev/shm", "vdev-test.")
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return vndWith(t, table, dir, vnd.Config{})
}

// nbdDisk is an export of an nbdkit: a server in another process, whose garbage is not counted.
func nbdDisk(t testing.TB, table *devsw.Table) (devsw.Dev, func() (devsw.DiskInfo, error)) {
	path := filepath.Join(t.TempDir(), "nbd")
	name, err := exec.LookPath("nbdkit")
	if err != nil {
		t.Skip("there is no nbdkit (Debian: nbdkit)")
	}
	server := exec.Command(name, "--foreground", "--exit-with-parent", "--unix", path, "memory", "size=8M")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", path); err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nbdkit does not listen")
		}
	}
	d := must(nbd.New(table))(t)
	dev := must(d.Create(0, nbd.Config{URI: "nbd+unix:///?socket=" + path}))(t)
	t.Cleanup(func() {
		if err := d.Destroy(0); err != nil {
			t.Errorf("the device is still open: %v", err)
		}
	})
	return dev, func() (devsw.DiskInfo, error) { return d.Info(0) }
}

// load keeps a number of 4 KiB requests in flight, in prepared buffers, and polls for their end.
type load struct {
	w     *bench
	depth int
	hdr   []virtqtest.Seg
	out   [][]virtqtest.Seg // header and data
	in    [][]virtqtest.Seg // data and status
}

func newLoad(w *bench, depth int) *load { return newLoadInPieces(w, depth, 4096) }

// newLoadInPieces is newLoad with the data of each request in buffers of these lengths.
func newLoadInPieces(w *bench, depth int, pieces ...int) *load {
	b := &load{w: w, depth: depth}
	for i := range depth {
		h, s := w.header(tIn, uint64(i*8)), w.buffer(1)
		var data []virtqtest.Seg
		for _, n := range pieces {
			data = append(data, w.buffer(n))
		}
		b.hdr = append(b.hdr, h)
		b.out = append(b.out, append([]virtqtest.Seg{h}, data...))
		b.in = append(b.in, append(data, s))
	}
	return b
}

// prepare makes the headers those of reads or of writes.
func (b *load) prepare(typ uint32) {
	for _, h := range b.hdr {
		binary.LittleEndian.PutUint32(b.w.bytes(h), typ)
	}
}

// request gives the buffers of request i.
func (b *load) request(i int, typ uint32) (readable, writable []virtqtest.Seg) {
	if typ == tIn {
		return b.out[i][:1], b.in[i]
	}
	return b.out[i], b.in[i][len(b.in[i])-1:]
}

func (b *load) run(typ uint32, n int) {
	r := b.w.rings[0]
	r.DisableCalls()
	b.prepare(typ)
	for done := 0; done < n; {
		for i := range b.depth {
			r.Add(b.request(i, typ))
		}
		if err := r.Notify(); err != nil {
			b.w.t.Fatal(err)
		}
		for range b.depth {
			for !r.PendingUsed() {
				runtime.Gosched()
			}
			r.Used()
			done++
		}
	}
}

func BenchmarkRequest(b *testing.B) {
	for _, d := range []struct {
		name string
		d    disk
	}{{"null", nullDisk}, {"md", mdDisk(md.Config{Size: diskSize})}, {"vnd", vndDisk}} {
		for _, depth := range []int{1, 32} {
			b.Run(map[int]string{1: d.name + "/QD1", 32: d.name + "/QD32"}[depth], func(b *testing.B) {
				w := newBench(b, reactor.ModeURing, 1, d.d, nil)
				w.start(w.all())
				l := newLoad(w, depth)
				l.run(tIn, 100)
				b.ReportAllocs()
				b.ResetTimer()
				l.run(tIn, b.N)
				b.StopTimer()
				w.close()
			})
		}
	}
}

// BenchmarkRing is the reactor's part alone, from the available ring to the used ring: entries are
// offered once, and from then on only avail.idx moves, on the reactor itself, between one round
// and the next.
func BenchmarkRing(b *testing.B) {
	for _, d := range []struct {
		name string
		disk disk
		typ  uint32
	}{
		{"null", nullDisk, tIn},
		{"md/read", mdDisk(md.Config{Size: diskSize}), tIn},
		{"md/write", mdDisk(md.Config{Size: diskSize}), tOut},
		{"vnd/disk/read", vndDisk, tIn},
		{"vnd/disk/write", vndDisk, tOut},
		{"vnd/tmpfs/read", vndInMemory, tIn},
		{"vnd/tmpfs/write", vndInMemory, tOut},
		{"nbd/read", nbdDisk, tIn},
		{"nbd/write", nbdDisk, tOut},
	} {
		for _, c := range []struct {
			name     string
			batch    int
			indirect bool
		}{
			{"direct/batch=1", 1, false},
			{"direct/batch=32", 32, false},
			{"indirect/batch=1", 1, true},
			{"indirect/batch=32", 32, true},
			{"indirect/batch=128", 128, true},
		} {
			b.Run(d.name+"/"+c.name, func(b *testing.B) {
				w := newBench(b, reactor.ModeURing, 1, d.disk, nil)
				w.start(w.all())
				l := newLoad(w, max(c.batch, 32))
				l.prepare(d.typ)
				r := w.rings[0]
				r.DisableCalls()
				add := r.Add
				if c.indirect {
					add = r.AddIndirect
				}
				var heads []uint16
				for i := range l.depth {
					head, ok := add(l.request(i, d.typ))
					if !ok {
						b.Fatal("no room")
					}
					heads = append(heads, head)
				}
				for i := l.depth; i < 128; i++ {
					r.Offer(heads[i%l.depth])
				}
				b.ReportAllocs()
				b.ResetTimer()
				w.serve(c.batch, b.N)
				b.StopTimer()
				w.close()
			})
		}
	}
}

// serve has the reactor serve what ring 0 has been offered, n requests in batches.
func (w *bench) serve(batch, n int) {
	r := w.rings[0]
	q := w.dev.startedQueues()[0]
	idx, ended := uint16(0), make(chan struct{})
	var next func()
	next = func() {
		switch {
		case r.UsedIdx() != idx: // not yet opened
		case n <= 0:
			close(ended)
			return
		default:
			n -= batch
			idx += uint16(batch)
			r.SetAvailIdx(idx)
		}
		q.loop.Post(next)
	}
	q.loop.Post(func() {
		q.vq.Wake()
		next()
	})
	<-ended
}
