package nbd

import (
	"context"
	"errors"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/specfs"
)

// TestDeviceIsTakenDownWhileTheServerHangs has specfs do all of it: cancel, drain, close; and open
// again.
func TestDeviceIsTakenDownWhileTheServerHangs(t *testing.T) {
	for _, how := range []string{"close", "revoke"} {
		t.Run(how, func(t *testing.T) {
			f := newFake(t, structuredMode)
			r := newRig(t)
			dev := r.create(Config{URI: f.uri(), ReconnectDelay: time.Minute})
			f.next().Close() // the probe
			fs := specfs.New(r.table)
			n := fs.Node(devsw.IFBLK, dev)
			if err := n.Open(context.Background(), rw); err != nil {
				t.Fatal(err)
			}
			c := f.next()
			count := n.NewCounter()
			defer count.Release()
			ends := make(chan devsw.Errno, 2)
			issue := func(op devsw.Op) {
				b := &devsw.Buf{Op: op, Data: [][]byte{make([]byte, 4096)}, Bcount: 4096, AIO: aio(), Iodone: func(b *devsw.Buf) { ends <- b.Error }}
				n.Strategy(count, b)
			}
			issue(devsw.BRead)
			c.request(true)
			issue(devsw.BWrite)
			w, _ := c.request(true)
			flushed := make(chan error, 1)
			go func() { flushed <- n.Ioctl(devsw.DIOCCACHESYNC, nil, rw) }()
			fl, _ := c.request(true)

			if how == "revoke" {
				n.Revoke()
			} else if err := n.Close(rw); err != nil {
				t.Fatal(err)
			}
			// It is closed, so drained: everybody has been told.
			for range 2 {
				if e := <-ends; e != devsw.ECANCELED {
					t.Errorf("a transfer ends with %v", e)
				}
			}
			if err := <-flushed; !errors.Is(err, devsw.ECANCELED) {
				t.Errorf("the flush ends with %v", err)
			}
			again := fs.Node(devsw.IFBLK, dev)
			opened := make(chan error, 1)
			go func() { opened <- again.Open(context.Background(), rw) }()
			c.send(c.ok(w.cookie), c.ok(fl.cookie))
			if err := <-opened; err != nil {
				t.Fatal(err)
			}
			f.next()
			if err := again.Close(rw); err != nil {
				t.Fatal(err)
			}
		})
	}
}
