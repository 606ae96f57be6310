package virtioblk

import (
	"testing"

	"vdev/internal/reactor"
	"vdev/virtq/virtqtest"
)

// TestALookAtARingDoesSoMuchWork: requests that are long but have no data, or are refused, take
// turns with those of other rings, too.
func TestALookAtARingDoesSoMuchWork(t *testing.T) {
	const size, length, requests = 128, 1000, 100
	for name, c := range map[string]struct {
		typ, buffer uint32
		status      bool // each buffer is writable
	}{
		"refused, without data":      {typ: 200},
		"refused, with data":         {typ: 200, buffer: 512},
		"refused, with data to read": {typ: 200, buffer: 512, status: true},
		"a write without data":       {typ: tOut},
	} {
		t.Run(name, func(t *testing.T) {
			ended := 0
			count := func(c *benchConfig) { c.Trace = func(Request) { ended++ } }
			w := newBench(t, reactor.ModeURing, 1, nullDisk, count)
			w.startSized(size, nil)
			if status, _ := w.do(0, tFlush, 0, nil, nil); status != statusOK {
				t.Fatalf("flush: status %#x", status)
			}
			data := w.buffer(max(int(c.buffer), 1))
			data.Len = c.buffer
			out, in := []virtqtest.Seg{w.header(c.typ, 0)}, []virtqtest.Seg(nil)
			for range length {
				if c.status {
					in = append(in, data)
				} else {
					out = append(out, data)
				}
			}
			in = append(in, w.buffer(1))
			r := w.rings[0]
			for range requests {
				if _, ok := r.AddIndirect(out, in); !ok {
					t.Fatal("no room")
				}
			}
			w.dev.mu.Lock()
			var q *queue
			for q = range w.dev.queues {
			}
			w.dev.mu.Unlock()
			n := 0
			q.vq.Do(func() {
				r.Kick()
				before := ended
				w.dev.Process(q.vq)
				n = ended - before
			})
			if most := budgetWork/length + 1; n < 1 || n > most {
				t.Errorf("%d requests of %d descriptors were begun, want 1 to %d", n, length, most)
			}
			q.vq.Wake()
			for range requests {
				if _, _, err := r.Wait(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
