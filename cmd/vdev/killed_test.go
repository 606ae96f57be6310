package main

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vdev/internal/control"
	"vdev/internal/test/halt"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq/virtqtest"
)

// written does a write of one block, and returns its status byte.
func (g *guest) written(sector uint64) byte {
	g.t.Helper()
	const head, data, status = 0, 512, 1024
	const size = 1025
	buf := g.mem.Alloc(size, 512)
	b := g.mem.Bytes(buf, size)
	binary.LittleEndian.PutUint32(b[head:], 1) // VIRTIO_BLK_T_OUT
	binary.LittleEndian.PutUint64(b[head+8:], sector)
	b[status] = 0xff
	if _, err := g.ring.Do(
		[]virtqtest.Seg{{Addr: buf + head, Len: 16}, {Addr: buf + data, Len: 512}},
		[]virtqtest.Seg{{Addr: buf + status, Len: 1}}); err != nil {
		g.t.Fatal(err)
	}
	return b[status]
}

// startWith is start for a guest that knows flushes, with a new in-flight region.
func (g *guest) startWith() *vhostusertest.Inflight {
	g.t.Helper()
	g.want |= 1 << 9 // VIRTIO_BLK_F_FLUSH
	region, err := g.f.NewInflight(1, 16)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(region.Close)
	g.start()
	return region
}

// goesOn connects the guest to the vdev that serves the socket now.
func (g *guest) goesOn(socket string, region *vhostusertest.Inflight) *guest {
	g.t.Helper()
	o := connect(g.t, socket)
	o.mem, o.ring, o.want = g.mem, g.ring, g.want
	o.negotiate()
	if err := o.f.SetInflightFD(region); err != nil {
		g.t.Fatal(err)
	}
	o.ring.Reconnect(o.f)
	if err := o.ring.Start(); err != nil {
		g.t.Fatal(err)
	}
	return o
}

// children are the processes that the process has started.
func (p *process) children() (pids []int) {
	p.t.Helper()
	out, err := exec.Command("sh", "-c", fmt.Sprintf("cat /proc/%d/task/*/children", p.cmd.Process.Pid)).Output()
	if err != nil {
		p.t.Fatal(err)
	}
	for _, text := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(text)
		if err != nil {
			p.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestAGuestGoesOnAfterAKillWhereNothingIsLost. A qemu-nbd that outlives its vdev writes what it
// has answered. One that was killed with it, as in a container, does not; nor does the memory of a
// disk, whatever was flushed.
func TestAGuestGoesOnAfterAKillWhereNothingIsLost(t *testing.T) {
	together := func(p *process, _ string) {
		halt.Process(p.t, p.cmd.Process.Pid)
		for _, pid := range p.children() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		p.signal(syscall.SIGKILL)
	}
	alone := func(p *process, _ string) { p.signal(syscall.SIGKILL) }
	// By no request: the guest does not ask anything.
	afterItsProgram := func(p *process, ctl string) {
		for _, pid := range p.children() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		p.until(ctl, func(s control.Status) bool { return s.Disk.Unflushed })
		alone(p, ctl)
	}
	told := func(p *process, _ string) { p.signal(syscall.SIGTERM) }
	qcow2, memory := "file", "md,size=1M"
	for name, c := range map[string]struct {
		disk    string
		flushed bool
		kill    func(p *process, ctl string)
		status  byte
	}{
		"qcow2, vdev alone":                 {qcow2, false, alone, 0},
		"qcow2, an end in order":            {qcow2, false, told, 0},
		"qcow2, with its qemu-nbd":          {qcow2, false, together, 1},
		"qcow2, with its qemu-nbd, flushed": {qcow2, true, together, 0},
		"qcow2, after its qemu-nbd":         {qcow2, false, afterItsProgram, 1},
		"memory":                            {memory, true, alone, 1},
		"memory, an end in order":           {memory, true, told, 1},
	} {
		t.Run(name, func(t *testing.T) {
			args := []string{"--driver", c.disk}
			if c.disk == qcow2 {
				image := filepath.Join(t.TempDir(), "disk.qcow2")
				if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", image, "1M").CombinedOutput(); err != nil {
					t.Skipf("qemu-img: %v: %s", err, out)
				}
				args = []string{"--blk-file", image}
			}
			socket, ctl := sockets(t)
			args = append([]string{"blk", "--socket-path", socket, "--control", ctl, "--state-dir", filepath.Join(t.TempDir(), "state")}, args...)
			p := serving(t, nil, args...)
			g := connect(t, socket)
			region := g.startWith()
			if st := g.written(0); st != 0 {
				t.Fatalf("a write has status %d", st)
			}
			if c.flushed && g.flushed() != 0 {
				t.Fatal("a flush fails")
			}
			c.kill(p, ctl)
			p.wait()

			p = serving(t, nil, args...)
			o := g.goesOn(socket, region)
			_, read := o.read(0)
			if write, flush := o.written(0), o.flushed(); read != c.status || write != c.status || flush != c.status {
				t.Errorf("read, write and flush have statuses %d, %d, %d; want %d", read, write, flush, c.status)
			}
			if lost := p.status(ctl).Disk.Unflushed; lost != (c.status != 0) {
				t.Errorf("the status says that writes are lost: %v", lost)
			}
			p.endsCleanly()
		})
	}
}
