package virtioblk

import (
	"runtime"
	"testing"
	"time"

	"vdev/devsw"
	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// offerLong fills ring i with writes of so many buffers, which all are the same memory and
// descriptors.
func (w *bench) offerLong(i, buffers int) (n int) {
	w.t.Helper()
	data, status := w.buffer(512), w.buffer(1)
	out := []virtqtest.Seg{w.header(tOut, 0)}
	for range buffers {
		out = append(out, data)
	}
	r := w.rings[i]
	head, ok := r.AddIndirect(out, []virtqtest.Seg{status})
	if !ok {
		w.t.Fatal("no room")
	}
	first := r.DescBytes()[virtqtest.DescSize*int(head):][:virtqtest.DescSize]
	for n = 1; r.Room() > 0; n++ {
		head, ok := r.AddIndirect(out[:1], []virtqtest.Seg{status})
		if !ok {
			w.t.Fatal("no room")
		}
		copy(r.DescBytes()[virtqtest.DescSize*int(head):], first)
	}
	w.check(r.Notify())
	return n
}

// TestRequestsInFlightTakeBoundedMemory fills a ring with requests of many buffers each, with a
// driver that does not end them.
func TestRequestsInFlightTakeBoundedMemory(t *testing.T) {
	const size, buffers = 1024, 1000
	for name, c := range map[string]struct {
		process, device int
		want            int // units beside the queue's own
	}{
		"of the device":  {16 * roomChunk, 8 * roomChunk, 8 * roomChunk},
		"of the process": {4 * roomChunk, 8 * roomChunk, 4 * roomChunk},
		"none":           {0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			room := newRoom(c.process, c.device)
			h := newHeld()
			h.more = make(chan devsw.BufFlag, 1<<16)
			w := newBench(t, reactor.ModeURing, 2, h.disk, func(c *benchConfig) { c.room = room })
			w.startSized(size, nil)
			n := w.offerLong(0, buffers)
			// A request that is begun where there is room for a little may exceed it.
			most := (queueUnits+c.want)/(requestUnits+buffers) + 1
			w.until("the room is full", func() bool { return w.inFlight() >= most })
			time.Sleep(5 * time.Millisecond) // for more, if any were begun
			if got := w.inFlight(); got != most {
				t.Fatalf("%d of %d requests are in flight, want %d", got, n, most)
			}
			if got := room.used.Load(); got != int64(c.want) {
				t.Errorf("%d units are taken, want %d", got, c.want)
			}
			// The other ring goes on with what it has to itself.
			small := w.request(1, tOut)
			w.until("another ring's request has come", func() bool { return w.inFlight() == most+1 })
			h.end()
			if _, _, err := w.rings[1].Wait(); err != nil || w.bytes(small)[0] != statusOK {
				t.Fatal(err, w.bytes(small)[0])
			}
			// All come in the end.
			w.finish(h, n)
			w.until("nothing is taken", func() bool { return room.used.Load() == 0 })
		})
	}
}

// finish ends n requests of ring 0, as they come.
func (w *bench) finish(h *held, n int) {
	w.t.Helper()
	begun := time.Now()
	for done := 0; done < n; {
		h.end()
		for w.rings[0].PendingUsed() {
			w.rings[0].Used()
			done++
		}
		if time.Since(begun) > time.Minute {
			w.t.Fatalf("%d of %d requests have ended", done, n)
		}
		runtime.Gosched()
	}
}

// TestRoomIsReleasedWithTheFrontEnd hangs up in the midst.
func TestRoomIsReleasedWithTheFrontEnd(t *testing.T) {
	const chunks = largeUnits / roomChunk
	room := newRoom(chunks*roomChunk, chunks*roomChunk)
	h := newHeld()
	h.more = make(chan devsw.BufFlag, 1<<16)
	w := newBench(t, reactor.ModeURing, 1, h.disk, func(c *benchConfig) { c.room = room })
	w.startSized(1024, nil)
	w.offerLong(0, 1000)
	w.until("the room is full", func() bool { return room.used.Load() == chunks*roomChunk })
	w.hangUp()
	w.until("nothing is taken", func() bool { return room.used.Load() == 0 })
	// It was much: freeAfter from then on the host has it back.
	for begun := time.Now(); !freeing.Load(); time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("memory is not returned to the host")
		}
	}
}

// TestRangesTakeRoom, as buffers do: there may be 64 of them in one request.
func TestRangesTakeRoom(t *testing.T) {
	const size, units = 1024, requestUnits + 3 + maxRanges/rangesAUnit
	f := newFrozen(t)
	w := newBench(t, reactor.ModeURing, 1, f.disk, func(c *benchConfig) { c.room = newRoom(0, 0) })
	t.Cleanup(f.thaw) // before the bench is closed
	w.startSized(size, nil)
	var list [][3]uint64
	for i := range uint64(maxRanges) {
		list = append(list, [3]uint64{i * 8, 8, 0})
	}
	head, ranges, status := w.header(tDiscard, 0), w.rangeSeg(list...), w.buffer(1)
	for range size {
		if _, ok := w.rings[0].AddIndirect([]virtqtest.Seg{head, ranges}, []virtqtest.Seg{status}); !ok {
			t.Fatal("no room")
		}
	}
	w.check(w.rings[0].Notify())
	const most = queueUnits/units + 1
	w.until("the room is full", func() bool { return w.inFlight() >= most })
	time.Sleep(5 * time.Millisecond) // for more, if any were begun
	if got := w.inFlight(); got != most {
		t.Errorf("%d requests are in flight, want %d", got, most)
	}
}

// TestAQueueKeepsLittle looks at what a queue keeps of many requests, some of them long, when they
// have ended.
func TestAQueueKeepsLittle(t *testing.T) {
	const size, buffers = 4096, 600
	h := newHeld()
	h.more = make(chan devsw.BufFlag, 1<<16)
	w := newBench(t, reactor.ModeURing, 1, h.disk, nil)
	before := heap()
	w.startSized(size, nil)
	n := w.offerLong(0, buffers)
	w.finish(h, n)
	q := w.dev.startedQueues()[0]
	q.vq.Do(func() {
		for _, r := range q.requests {
			if room := cap(r.chain.Readable); room >= buffers {
				t.Errorf("a request that has ended keeps room for %d buffers", room)
				return
			}
		}
	})
	n = w.offerLong(0, 1)
	w.until("all have come", func() bool { return w.inFlight() == n })
	w.finish(h, n)
	requests, room := 0, 0
	q.vq.Do(func() {
		w.dev.Process(q.vq)
		requests = len(q.requests)
		for _, r := range q.requests {
			room += cap(r.chain.Readable) + cap(r.chain.Writable)
		}
	})
	if requests > 2*keepRequests || room > requests*keepBuffers {
		t.Errorf("%d requests are kept, with room for %d buffers", requests, room)
	}
	runtime.KeepAlive(w)
	t.Logf("%d KiB are kept", (heap()-before)>>10)
}

// TestRoomOfWhatWasLostIsReleasedWithTheFrontEnd: a request that was lost in a fault on the
// guest's memory has units, and ends nowhere.
func TestRoomOfWhatWasLostIsReleasedWithTheFrontEnd(t *testing.T) {
	room := newRoom(4*roomChunk, 4*roomChunk)
	w := newBench(t, reactor.ModeURing, 1, nullDisk, func(c *benchConfig) { c.room = room })
	w.start(w.all())
	q := w.dev.startedQueues()[0]
	q.vq.Do(func() {
		q.held += queueUnits
		q.moreRoom()
	})
	if got := room.used.Load(); got != roomChunk {
		t.Fatalf("%d units are taken, want %d", got, roomChunk)
	}
	w.hangUp()
	for begun := time.Now(); room.used.Load() != 0; time.Sleep(time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatalf("%d units are taken for ever", room.used.Load())
		}
	}
}
