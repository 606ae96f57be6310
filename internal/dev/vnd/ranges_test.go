package vnd

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"vdev/devsw"
	"vdev/devsw/disk"
)

const block = 4096 // of the images of the model

// rangesModel is what ranges is to do, by a search through all that hold blocks or wait.
type rangesModel struct{ held, waiting []*op }

func (m *rangesModel) collides(o *op, with []*op) bool {
	return slices.ContainsFunc(with, func(w *op) bool {
		return !(o.whole && w.whole) && m.meet(o, w)
	})
}

// meet tells whether two have a queue in common.
func (m *rangesModel) meet(a, b *op) bool {
	for x := a.lo / block; x < a.hi/block; x++ {
		for y := b.lo / block; y < b.hi/block; y++ {
			if (x-y)%rangeQueues == 0 {
				return true
			}
		}
	}
	return false
}

func (m *rangesModel) add(o *op) (held bool) {
	if m.collides(o, m.held) || m.collides(o, m.waiting) {
		m.waiting = append(m.waiting, o)
		return false
	}
	m.held = append(m.held, o)
	return true
}

// remove takes o away, and gives those that hold their blocks since then.
func (m *rangesModel) remove(o *op) (free []*op) {
	is := func(x *op) bool { return x == o }
	m.held, m.waiting = slices.DeleteFunc(m.held, is), slices.DeleteFunc(m.waiting, is)
	waiting := m.waiting
	m.waiting = nil
	for _, w := range waiting {
		if m.add(w) {
			free = append(free, w)
		}
	}
	return free
}

// TestRangesBehaveAsASearchThroughAll: writes are locked, unlocked and cancelled in any order.
func TestRangesBehaveAsASearchThroughAll(t *testing.T) {
	im := &image{geo: geometry{offAlign: block}}
	rapid.Check(t, func(rt *rapid.T) {
		var r ranges
		var m rangesModel
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			var want, got []*op
			all := slices.Concat(m.held, m.waiting)
			if len(all) == 0 || rapid.IntRange(0, 2).Draw(rt, "what") > 0 {
				lo := rapid.SampledFrom([]int64{0, 1, 2, 3, 5, 8, rangeQueues - 1, rangeQueues, 3*rangeQueues + 5}).Draw(rt, "from")
				o := &op{im: im, b: new(devsw.Buf), lo: lo * block, whole: rapid.Bool().Draw(rt, "whole")}
				o.hi = o.lo + rapid.SampledFrom([]int64{1, 1, 2, 3, 4, 3 * rangeQueues}).Draw(rt, "blocks")*block
				if got, want := r.lock(o), m.add(o); got != want {
					rt.Fatalf("locked: %v, want %v", got, want)
				}
			} else {
				o := rapid.SampledFrom(all).Draw(rt, "which")
				waits := !o.held
				r.mu.Lock()
				if waits {
					r.leave(o)
				}
				got = r.release(o)
				for _, o := range got {
					r.leave(o)
					o.held = true
				}
				r.mu.Unlock()
				want = m.remove(o)
			}
			if len(got) != len(want) || slices.ContainsFunc(got, func(o *op) bool { return !slices.Contains(want, o) }) {
				rt.Fatalf("%d go on, want %d", len(got), len(want))
			}
			n := 0
			for o := r.first; o != nil; o = o.after {
				if o != m.waiting[n] {
					rt.Fatalf("number %d of those that wait is another", n)
				}
				n++
			}
			if n != len(m.waiting) {
				rt.Fatalf("%d wait, want %d", n, len(m.waiting))
			}
		}
		for _, o := range slices.Concat(m.held, m.waiting) {
			if !o.held {
				r.leave(o)
			}
			for _, o := range r.release(o) {
				r.leave(o)
				o.held = true
			}
		}
		if r.queues != [rangeQueues]queue{} || r.first != nil || r.last != nil {
			rt.Fatal("blocks are still locked")
		}
	})
}

// TestManyThatWaitForOneBlockAreCancelled one by one, oldest and newest first. A search of all for
// each one would not come to an end.
func TestManyThatWaitForOneBlockAreCancelled(t *testing.T) {
	const n = 32768
	im := &image{geo: geometry{offAlign: block}, ranges: new(ranges)}
	for _, from := range []int{0, n - 1} {
		first := &op{im: im, b: new(devsw.Buf), hi: block}
		if !im.ranges.lock(first) {
			t.Fatal("the first one waits")
		}
		bufs := make([]devsw.Buf, n)
		ended := 0
		for i := range bufs {
			bufs[i] = devsw.Buf{Op: devsw.BWrite, Iodone: func(*devsw.Buf) { ended++ }}
			o := &op{im: im, b: &bufs[i], hi: block, asked: devsw.Buf{Op: devsw.BWrite}}
			if im.ranges.lock(o) {
				t.Fatal("two have a block")
			}
		}
		for i := range bufs {
			b := &bufs[max(from-i, i-from)]
			im.ranges.cancelBuf(b)
			if b.Error != devsw.ECANCELED {
				t.Fatalf("number %d ends with %v", i, b.Error)
			}
		}
		im.ranges.unlock(first)
		if ended != n || im.ranges.queues != [rangeQueues]queue{} || im.ranges.first != nil {
			t.Errorf("%d have ended, and blocks are locked", ended)
		}
	}
}

// TestWhoWaitsForOneThatIsCancelledGoesOn: the first write has a block, the second one waits for
// it, and the third one for the second.
func TestWhoWaitsForOneThatIsCancelledGoesOn(t *testing.T) {
	// Who goes on fails soon: there is no file.
	im := &image{Base: disk.NewBase(devsw.DiskInfo{}), fd: -1, geo: geometry{offAlign: block}, ranges: new(ranges)}
	ended := make(chan devsw.Errno, 2)
	add := func(from, to int64) (o *op, held bool) {
		b := &devsw.Buf{Op: devsw.BWrite, Iodone: func(b *devsw.Buf) { ended <- b.Error }}
		o = &op{im: im, b: b, lo: from * block, hi: to * block, left: 512, asked: devsw.Buf{Op: devsw.BWrite, Bcount: 512}}
		return o, im.ranges.lock(o)
	}
	_, first := add(0, 1)
	second, secondHas := add(0, 2)
	_, third := add(1, 2)
	if !first || secondHas || third {
		t.Fatal("the wrong ones wait")
	}
	im.ranges.cancelBuf(second.b)
	got := make(map[devsw.Errno]bool)
	for range 2 {
		select {
		case e := <-ended:
			got[e] = true
		case <-time.After(20 * time.Second):
			t.Fatalf("ended with %v; want the one that was cancelled and the one behind it", got)
		}
	}
	if !got[devsw.ECANCELED] || !got[devsw.EBADF] {
		t.Errorf("ended with %v, want ECANCELED and EBADF", got)
	}
}
