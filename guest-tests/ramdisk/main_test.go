package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// paper is what a journal is written on.
type paper struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (p *paper) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

func (p *paper) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// await waits until that was written.
func (p *paper) await(t *testing.T, what string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(p.String(), what); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("nobody has written %q:\n%s", what, p)
		}
	}
}

// guest plays the front-end and the guest driver of a disk with one ring.
type guest struct {
	*vhostusertest.Ring
	t   *testing.T
	f   *vhostusertest.Frontend
	mem *virtqtest.Mem
}

func newGuest(t *testing.T, path string) *guest {
	t.Helper()
	var f *vhostusertest.Frontend
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		var err error
		if f, err = vhostusertest.Dial(path); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	if _, err := f.Handshake(vhostusertest.AllProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	if err := f.SetFeatures(virtq.FeatureVersion1 | vhostuser.FProtocolFeatures); err != nil {
		t.Fatal(err)
	}
	mem, err := virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.AddMemory(mem); err != nil {
		t.Fatal(err)
	}
	ring, err := f.NewRing(mem, 0, 8)
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{ring, t, f, mem}
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	return g
}

func (g *guest) close() {
	_ = g.f.Close()
	g.Ring.Close()
	g.mem.Close()
}

// The types of requests, and how they end (virtio specification, section 5.2.6).
const (
	in, out   = 0, 1
	ok, ioerr = 0, 1
)

// add begins a request for one sector, and returns where its data and its status are.
func (g *guest) add(kind uint32, sector uint64) (data, status []byte) {
	g.t.Helper()
	addr := g.mem.Alloc(16+512+1, 512)
	header := g.mem.Bytes(addr, 16)
	binary.LittleEndian.PutUint32(header, kind)
	binary.LittleEndian.PutUint64(header[8:], sector)
	segs := []virtqtest.Seg{{Addr: addr + 16, Len: 512}}
	readable, writable := []virtqtest.Seg{{Addr: addr, Len: 16}}, []virtqtest.Seg{{Addr: addr + 16 + 512, Len: 1}}
	if kind == out {
		readable = append(readable, segs...)
	} else {
		writable = append(segs, writable...)
	}
	data, status = g.mem.Bytes(addr+16, 512), g.mem.Bytes(addr+16+512, 1)
	status[0] = 0xff
	if kind == out {
		for i := range data {
			data[i] = byte(sector)
		}
	}
	if _, added := g.Add(readable, writable); !added {
		g.t.Fatal("the ring is full")
	}
	if err := g.Notify(); err != nil {
		g.t.Fatal(err)
	}
	return data, status
}

// do does one request.
func (g *guest) do(kind uint32, sector uint64) (data []byte, status byte) {
	g.t.Helper()
	data, at := g.add(kind, sector)
	if _, _, err := g.Wait(); err != nil {
		g.t.Fatal(err)
	}
	return data, at[0]
}

// steps are those of the disk's life, in the order in which they were noted, and the answers to the
// front-end.
var steps = regexp.MustCompile(`specfs +block \d+,0 (\w+)|vhost +(out GET_VRING_BASE|disconnect)|blk +(.*: (?:ok|cancelled|suspended))`)

// life returns what the journal has of the disk's life.
func life(told string) (all []string) {
	for _, m := range steps.FindAllStringSubmatch(told, -1) {
		all = append(all, m[1]+m[2]+m[3])
	}
	return all
}

func TestADiskIsTakenDownInOrderWithAWriteInFlight(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ram.sock")
	told := new(paper)
	j := &journal{w: told, begin: time.Now()}
	r := newRAM(1<<20, j)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- serve(ctx, path, r, j) }()

	g := newGuest(t, path)
	if _, status := g.do(out, 7); status != ok {
		t.Fatalf("a write ends with status %d", status)
	}
	if data, status := g.do(in, 7); status != ok || !bytes.Equal(data, bytes.Repeat([]byte{7}, 512)) {
		t.Fatalf("a read ends with status %d, and %d", status, data[0])
	}

	// The front-end stops the ring, without an in-flight region: what has not completed in time
	// fails.
	r.toggle()
	before := len(told.String())
	_, status := g.add(out, 8)
	told.await(t, "a write at 4096 stalls")
	if err := g.Stop(); err != nil {
		t.Fatal(err)
	}
	want := []string{"cancel", "canceled", "drain", "drained", "close", "closed", "out GET_VRING_BASE"}
	if got := slices.DeleteFunc(life(told.String()[before:]), func(s string) bool { return strings.HasSuffix(s, ": cancelled") }); !slices.Equal(got, want) {
		t.Errorf("the stop was %q, want %q", got, want)
	}
	if status[0] != ioerr {
		t.Errorf("the write ends with status %d, want an I/O error", status[0])
	}

	// The next start opens the disk again, and the front-end dies.
	if err := g.Start(); err != nil {
		t.Fatal(err)
	}
	g.add(out, 9)
	told.await(t, "a write at 4608 stalls")
	before = len(told.String())
	g.close()
	told.await(t, "vhost   disconnect")
	got := slices.DeleteFunc(life(told.String()[before:]), func(s string) bool {
		return strings.HasSuffix(s, ": cancelled") || strings.HasPrefix(s, "revoke")
	})
	if want := []string{"cancel", "canceled", "drain", "drained", "close", "closed", "disconnect"}; !slices.Equal(got, want) {
		t.Errorf("the end was %q, want %q", got, want)
	}

	// Nothing of that has been written, and the next guest has a disk that works.
	r.toggle()
	g = newGuest(t, path)
	for sector, want := range map[uint64]byte{7: 7, 8: 0, 9: 0} {
		if data, status := g.do(in, sector); status != ok || !bytes.Equal(data, bytes.Repeat([]byte{want}, 512)) {
			t.Errorf("sector %d has %d, status %d; want %d", sector, data[0], status, want)
		}
	}
	g.close()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("serve has ended with %v", err)
	}
}
