package specfs

import (
	"testing"

	"vdev/devsw"
)

func TestDevicesTellsWhatIsOpenAndWhatACloseWaitsFor(t *testing.T) {
	run(t, nil, func(t *testing.T, s *setup) {
		if all := s.fs.Devices(); len(all) != 0 {
			t.Errorf("before any open there is %+v", all)
		}
		n := s.fs.Node(devsw.IFBLK, s.block)
		s.mustOpen(t, n)
		stuck, end := transfer(n, nil, stuckContext)
		one := func() DeviceStatus {
			t.Helper()
			all := s.fs.Devices()
			if len(all) != 1 || all[0].Mode != devsw.IFBLK || all[0].Dev != s.block {
				t.Fatalf("the devices are %+v, want the one that is open", all)
			}
			return all[0]
		}
		if d := one(); d.Opens != 1 || d.Opening != 0 || d.Closing || len(d.Operations) != 1 || d.Operations[0].What != "strategy" {
			t.Errorf("open, with a transfer in progress: %+v", d)
		}
		closing := start(func() error { return n.Close(rw) })
		closing.mustSleep(t, "Close with a transfer that cannot be cancelled")
		if d := one(); d.Opens != 0 || !d.Closing || len(d.Operations) != 1 {
			t.Errorf("while it is being closed: %+v", d)
		}
		s.finish(stuck)
		end.mustGive(t, "the transfer", nil)
		closing.mustGive(t, "Close", nil)
		if all := s.fs.Devices(); len(all) != 0 {
			t.Errorf("after the close there is %+v", all)
		}
	})
}
