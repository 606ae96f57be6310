package virtioblk

import (
	"encoding/binary"
	"sync/atomic"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/internal/sys"
	"vdev/virtq/virtqtest"
)

// slowToTell is a Keeper that holds an answer back.
type slowToTell struct {
	*cautious
	armed    atomic.Bool
	asked    chan struct{}
	released chan struct{}
}

func (s *slowToTell) State() devsw.DiskState {
	st := s.cautious.State()
	if s.armed.CompareAndSwap(true, false) {
		close(s.asked)
		<-s.released
	}
	return st
}

// TestAFailureThatWasClearedIsNotLearnedAgain by an answer of before.
func TestAFailureThatWasClearedIsNotLearnedAgain(t *testing.T) {
	c := &slowToTell{cautious: &cautious{}, asked: make(chan struct{}), released: make(chan struct{})}
	w := newBench(t, reactor.ModeURing, 1, c.disk, func(conf *benchConfig) { conf.Keeper = c })
	region := w.startWith(w.all())
	c.setFail(devsw.EIO)
	if st, _ := w.do(0, tFlush, 0, nil, nil); st != statusIOErr {
		t.Fatalf("the flush has status %d", st)
	}
	c.setFail(0)
	c.armed.Store(true)
	learned, cleared := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(learned)
		w.dev.Learn()
	}()
	<-c.asked
	go func() {
		defer close(cleared)
		if s, err := w.dev.ClearFailure(); s.FlushError != devsw.EIO || err != nil {
			t.Errorf("cleared %+v, %v", s, err)
		}
	}()
	for c.cautious.State() != (devsw.DiskState{}) {
		time.Sleep(time.Millisecond)
	}
	close(c.released)
	<-learned
	<-cleared
	if e := w.dev.Failure(); e != 0 {
		t.Errorf("the failure is known still, or again: %v", e)
	}
	if state := pageState(t, region); state>>stateErrno != 0 {
		t.Errorf("the page has %#x", state)
	}
}

// TestAPageThatNoOpenHasTakenStaysAsItIs, though the close of another guest's disk ends meanwhile.
func TestAPageThatNoOpenHasTakenStaysAsItIs(t *testing.T) {
	c := &cautious{volatile: true, slow: make(chan struct{})}
	w := cautiousBench(t, c)
	w.startWith(w.all())
	if st, _ := w.do(0, tOut, 0, []virtqtest.Seg{w.buffer(512)}, nil); st != statusOK {
		t.Fatalf("write: %d", st)
	}
	w.hangUp()
	w.connect(everything)
	brought := must(w.f.GetInflightFD(1, 128))(t)
	t.Cleanup(brought.Close)
	const state, holder = stateHeld | uint32(devsw.ENOSPC)<<stateErrno, 4711
	word := binary.LittleEndian.AppendUint64(nil, uint64(state)|uint64(^state)<<32)
	word = binary.LittleEndian.AppendUint64(word, holder)
	if _, errno := sys.Pwritev(brought.FD(), [][]byte{word}, int64(brought.MmapSize-4096+8), false); errno != 0 {
		t.Fatal(errno)
	}
	w.check(w.f.SetInflightFD(brought))
	other := must(w.f.GetInflightFD(1, 128))(t)
	t.Cleanup(other.Close)
	w.check(w.f.SetInflightFD(other))
	close(c.slow)
	w.waitClosed()
	var tag [8]byte
	if _, errno := sys.Preadv(brought.FD(), [][]byte{tag[:]}, int64(brought.MmapSize-4096+16)); errno != 0 {
		t.Fatal(errno)
	}
	const what = stateHeld | stateHanded | 0xffff<<stateErrno
	if got, by := pageState(t, brought), binary.LittleEndian.Uint64(tag[:]); got&what != state || by != holder {
		t.Errorf("the page has %#x, held by %d; want %#x, %d", got, by, state, holder)
	}
}
