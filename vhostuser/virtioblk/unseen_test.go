package virtioblk

import (
	"context"
	"errors"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/dev/fault"
	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// TestAFlushThatFailsUnseenFailsTheNextOne: the host tells a failed writeback once. The one who
// was told of it is not waited for any more, and the flush that is begun again after the stop
// would find nothing wrong.
func TestAFlushThatFailsUnseenFailsTheNextOne(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:flush:uncancellable:count=1", "error:flush:count=1")
	w, region := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, nil)
	status := w.request(0, tFlush)
	f.waitHeld(1)
	w.stopRings()
	w.startRings(region)
	f.control(fault.FAULTRELEASE, nil)
	if _, _, err := w.rings[0].Wait(); err != nil || w.bytes(status)[0] != statusIOErr {
		t.Errorf("%v; the flush has status %#x", err, w.bytes(status)[0])
	}
	if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusOK {
		t.Errorf("the flush after it has status %#x", st)
	}
}

// TestADiscardDoesNotTakeTheNewsOfAFlush that has failed unseen: a guest that is told by a discard
// may think no more of it.
func TestADiscardDoesNotTakeTheNewsOfAFlush(t *testing.T) {
	f := newFaulty(t, vndDisk)
	w, _ := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, nil)
	w.dev.setWriteback(0) // so that a flush follows each discard
	lost := error(devsw.EIO)
	w.dev.unsaid.Store(&lost)
	for _, c := range []struct {
		typ  uint32
		data []virtqtest.Seg
		want byte
	}{
		{tDiscard, []virtqtest.Seg{w.rangeSeg([3]uint64{0, 8, 0})}, statusIOErr},
		{tFlush, nil, statusIOErr},
		{tFlush, nil, statusOK},
	} {
		if st, _ := w.do(0, c.typ, 0, c.data, nil); st != c.want {
			t.Errorf("%s: status %#x, want %#x", typeName(c.typ), st, c.want)
		}
	}
}

// TestACloseBySomebodyElseIsWaitedFor: where the device was revoked, the close that a stop finds
// begun is the stop's affair, too.
func TestACloseBySomebodyElseIsWaitedFor(t *testing.T) {
	f := newFaulty(t, vndDisk, "hang:close:count=1")
	w, region := newSuspendBench(t, reactor.ModeURing, 1, f.disk, everything, nil)
	if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusOK {
		t.Fatal(st)
	}
	revoked := make(chan struct{})
	go func() {
		defer close(revoked)
		w.dev.config.FS.RevokeDevice(devsw.IFBLK, w.dev.config.Dev)
	}()
	f.waitHeld(1)
	w.stopRings()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := w.dev.WaitClosed(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while the device is being closed: %v", err)
	}
	f.control(fault.FAULTRELEASE, nil)
	<-revoked
	if err := w.dev.WaitClosed(t.Context()); err != nil {
		t.Error(err)
	}
	w.startRings(region)
	if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusOK {
		t.Errorf("after the next start: status %#x", st)
	}
}
