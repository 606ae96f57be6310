//go:build !race

// The race detector does atomic accesses in C, where the runtime cannot turn a fault into a panic.

package virtq_test

import (
	"fmt"
	"runtime/debug"
	"syscall"
	"testing"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// faults tells whether f touched memory that is not there.
func faults(f func()) (fault bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if err, ok := recover().(interface{ Addr() uintptr }); ok {
			fault = err.Addr() != 0
		}
	}()
	f()
	return false
}

// TestAFaultLeavesTheCountsRight takes the ring's memory away, as a front-end can that truncates
// its file.
func TestAFaultLeavesTheCountsRight(t *testing.T) {
	for _, tc := range []struct {
		name     string
		do       func(q *virtq.Queue, a, b *virtq.Chain)
		inFlight int // of two
	}{
		{"Pop", func(q *virtq.Queue, _, _ *virtq.Chain) { _, _ = q.Pop(new(virtq.Chain)) }, 2},
		{"Push", func(q *virtq.Queue, a, _ *virtq.Chain) { q.Push(a, 0) }, 1},
		{"EnableNotify", func(q *virtq.Queue, _, _ *virtq.Chain) { q.EnableNotify() }, 2},
		{"DisableNotify", func(q *virtq.Queue, _, _ *virtq.Chain) { q.DisableNotify() }, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := newMem(t, virtqtest.Range{Size: 0x4000})
			r := start(t, mem, virtqtest.New(mem, 8, 0))
			seg := []virtqtest.Seg{r.seg(1)}
			var a, b virtq.Chain
			for range 3 {
				r.driver.Add(seg, nil)
			}
			r.driver.Kick()
			r.pop(t, &a)
			r.pop(t, &b)
			if err := syscall.Ftruncate(mem.FD(), 0); err != nil {
				t.Fatal(err)
			}
			if !faults(func() { tc.do(r.queue, &a, &b) }) {
				t.Fatal("no fault")
			}
			if r.queue.InFlight() != tc.inFlight || r.queue.NextAvail() != 2 {
				t.Errorf("%d in flight, next entry %d", r.queue.InFlight(), r.queue.NextAvail())
			}
			r.queue.Break(syscall.EFAULT)
			if faults(func() {
				r.queue.Publish()
				r.queue.EnableNotify()
				if tc.inFlight == 2 {
					r.queue.Push(&a, 0)
				}
				r.queue.Push(&b, 0)
				r.queue.Publish()
			}) {
				t.Error("a broken ring was touched")
			}
			if r.queue.InFlight() != 0 {
				t.Errorf("%d in flight at the end", r.queue.InFlight())
			}
		})
	}
}

func TestAFaultInNewLeavesNoReference(t *testing.T) {
	mem := newMem(t, virtqtest.Range{Size: 0x4000})
	d := virtqtest.New(mem, 8, 0)
	memory, err := mem.Memory()
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("%p", &guest(memory).Regions()[0].Bytes()[0])
	if err := syscall.Ftruncate(mem.FD(), 0); err != nil {
		t.Fatal(err)
	}
	if !faults(func() { _, _ = virtq.New(memory, d.Layout()) }) {
		t.Fatal("no fault")
	}
	memory.Release()
	if remainsMapped(t, at) {
		t.Error("still mapped")
	}
}
