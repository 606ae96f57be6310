//go:build !race

package virtioconsole

import (
	"context"
	"errors"
	"testing"

	"vdev/devsw"
	kit "vdev/devsw/line"
	"vdev/internal/test/consoletest"
	"vdev/specfs"
	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
)

// TestAPortsTransfersAllocateNothing has bytes go all the way out and back, through a line that has
// both its threads at work. (Under the race detector pools forget on purpose.)
func TestAPortsTransfersAllocateNothing(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	table := devsw.NewTable()
	driver, err := kit.Attach(table, "line", devsw.NODEVMAJOR)
	must(err)
	defer func() {
		if err := driver.Detach(); err != nil {
			t.Error(err)
		}
	}()
	l := kit.New(kit.Config{Overflow: kit.Wait})
	must(l.Add(kit.NewLoop(), "loop", kit.Main))
	dev, err := driver.Create(0, l)
	must(err)
	d, err := New(Config{FS: specfs.New(table), Ports: []Port{{ID: 0, Name: "data", Dev: dev}}, Multiport: true, MaxPorts: 1})
	must(err)
	defer func() {
		if err := d.WaitClosed(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	reactors, err := vhostuser.NewReactors(vhostuser.ReactorConfig{})
	must(err)
	defer reactors.Close()
	backend, err := vhostuser.New(d.BackendConfig(vhostuser.Config{Reactors: reactors}))
	must(err)
	front, conn, err := vhostusertest.Pair()
	must(err)
	ended := make(chan error, 1)
	go func() { ended <- backend.ServeConn(context.Background(), conn) }()
	g, err := consoletest.New(front, consoletest.Linux())
	must(err)
	defer func() {
		g.Close()
		<-ended
	}()
	must(g.Bind())
	must(g.Wait("the port", func() bool { return g.Port(0) != nil && g.Port(0).HostOpen }))
	p := g.Port(0)
	must(p.Open())

	for _, size := range []int{16, 4096, 32 << 10} {
		data, back := make([]byte, size), 0
		some := func() bool { return p.Buffered() > 0 }
		once := func() {
			sent, err := p.Offer(data, consoletest.Shape{})
			if !sent || err != nil {
				t.Fatal(sent, err)
			}
			for back = 0; back < size; {
				err := g.Wait("an echo", some)
				n := len(p.Peek())
				if err := errors.Join(err, p.Skip(n)); err != nil {
					t.Fatal(err)
				}
				back += n
			}
		}
		for range 200 {
			once()
		}
		if n := testing.AllocsPerRun(200, once); n > 0 {
			t.Errorf("%d bytes out and back: %v allocations", size, n)
		}
	}
}
