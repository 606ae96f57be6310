package devsw

import "testing"

func TestSelinfoWakesEachRecordOnce(t *testing.T) {
	var s Selinfo
	wakes := 0
	s.Record(nil)
	s.Record(func() { wakes++ })
	s.Record(func() { wakes++; s.Record(func() { wakes += 10 }) }) // polls again
	s.Notify()
	if wakes != 2 {
		t.Errorf("%d wakes after the first Notify, want 2", wakes)
	}
	s.Notify()
	s.Notify()
	if wakes != 12 {
		t.Errorf("%d after all, want 12", wakes)
	}
}

func TestKlistActivatesUntilDetached(t *testing.T) {
	var l Klist
	var reads, writes []int64
	r := &Knote{Filter: EVFILTRead, Activate: func(n int64) { reads = append(reads, n) }}
	w := &Knote{Filter: EVFILTWrite, Activate: func(n int64) { writes = append(writes, n) }}
	r.Detach() // not attached: nothing
	l.Insert(r)
	l.Insert(w)
	l.Notify(EVFILTRead, 5)
	l.Notify(EVFILTWrite, -1)
	r.Detach()
	r.Detach()
	l.Notify(EVFILTRead, 6)
	if len(reads) != 1 || reads[0] != 5 || len(writes) != 1 || writes[0] != -1 {
		t.Errorf("reads %v, writes %v", reads, writes)
	}
}

func TestNotifyAllocatesNothing(t *testing.T) {
	var l Klist
	n := 0
	for range 3 {
		l.Insert(&Knote{Filter: EVFILTRead, Activate: func(int64) { n++ }})
	}
	if a := testing.AllocsPerRun(100, func() { l.Notify(EVFILTRead, -1) }); a != 0 || n == 0 {
		t.Errorf("%v allocations", a)
	}
}
