package specfs

import (
	"slices"
	"testing"
	"testing/synctest"

	"vdev/devsw"
)

// holdOpens makes an FS whose opens stand between their count and d_open until release is called.
func holdOpens(table *devsw.Table, trace *tracer) (fs *FS, release func()) {
	hold := make(chan struct{})
	fs = New(table, WithTrace(func(e Event) {
		trace.add(e)
		if e.Kind == EventOpen {
			<-hold
		}
	}))
	return fs, func() { close(hold) }
}

// Where there is no driver nobody is asked to cancel, and nobody to close: neither has begun
// anything.
func TestTheOpenOfADeviceWithoutADriverIsRevoked(t *testing.T) {
	for _, kind := range []devsw.Mode{devsw.IFBLK, devsw.IFCHR} {
		for how, revoke := range map[string]func(fs *FS, n *Node){
			"Revoke":       func(_ *FS, n *Node) { n.Revoke() },
			"RevokeDevice": func(fs *FS, n *Node) { fs.RevokeDevice(n.Mode(), n.Dev()) },
			"Vdevgone":     func(fs *FS, n *Node) { fs.Vdevgone(n.Mode(), n.Dev().Major(), 0, 0) },
		} {
			t.Run(kind.String()+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					trace := &tracer{}
					fs, release := holdOpens(devsw.NewTable(), trace)
					n := fs.Node(kind, devsw.Makedev(17, 0))
					opening := start(func() error { return n.Open(t.Context(), rw) })
					revoking := start(func() error { revoke(fs, n); return nil })
					revoking.mustSleep(t, "the revoke, while the open is in progress")
					release()
					opening.mustGive(t, "Open", devsw.EBADF)
					revoking.mustGive(t, "the revoke", nil)
					want := []string{"open", "revoke", "drain", "opened: ENXIO", "drained", "revoked"}
					if got := trace.take(); !slices.Equal(got, want) {
						t.Errorf("trace %q, want %q", got, want)
					}
					if len(fs.devs) != 0 {
						t.Error("the device is remembered")
					}
				})
			})
		}
	}
}

// An open that has counted and comes too late for the driver keeps nobody from detaching it, and is
// revoked like any other. The driver is not called any more.
func TestTheOpenOfADetachedDriverIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &unit{flag: devsw.DMPSafe}
		table := devsw.NewTable()
		block, char := u.attach(t, table)
		trace := &tracer{}
		fs, release := holdOpens(table, trace)
		n := fs.Node(devsw.IFBLK, block)
		opening := start(func() error { return n.Open(t.Context(), rw) })
		if err := table.Detach(table.BdevswLookup(block), table.CdevswLookup(char)); err != nil {
			t.Fatal(err)
		}
		revoking := start(func() error { fs.Vdevgone(devsw.IFBLK, block.Major(), 0, 0); return nil })
		release()
		opening.mustGive(t, "Open", devsw.EBADF)
		revoking.mustGive(t, "Vdevgone", nil)
		u.check(t)
		if len(u.calls) != 0 {
			t.Errorf("the detached driver was called: %q", u.calls)
		}
	})
}

// Without d_cancel an operation may be in progress after d_close. It keeps the driver attached.
func TestDetachWaitsForWhatACloseWithoutCancelDrains(t *testing.T) {
	run(t, &unit{flag: devsw.DMPSafe, noCancel: true}, func(t *testing.T, s *setup) {
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		stuck, _ := transfer(n, nil, stuckContext)
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close with a transfer in progress")
		s.check(t, "open", "strategy", "close")
		bdev, cdev := s.table.BdevswLookup(s.block), s.table.CdevswLookup(s.char)
		detaching := start(func() error { return s.table.Detach(bdev, cdev) })
		detaching.mustSleep(t, "Detach with a transfer in progress")
		s.finish(stuck)
		closing.mustGive(t, "Close", nil)
		detaching.mustGive(t, "Detach", nil)
	})
}
