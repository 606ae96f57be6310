package vhostuser_test

import (
	"context"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"vdev/vhostuser"
	"vdev/vhostuser/vhostusertest"
	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// Pauses, lost connections and back-ends that come and go do not show in what the driver gets: each
// request is answered once.
func TestEveryRequestIsAnsweredOnceWhateverInterrupts(t *testing.T) {
	reactors := newReactors(t)
	rapid.Check(t, func(rt *rapid.T) {
		w := &interrupted{t: t, rt: rt, dev: newReverser(1), reactors: reactors, waiting: make(map[uint16]int)}
		w.dev.hold = true
		w.dev.onStop = w.stopQueue
		var err error
		w.mem, err = virtqtest.NewMem(virtqtest.Range{Size: 1 << 20})
		w.must(err)
		for range 16 {
			w.bufs = append(w.bufs, newBuffers(w.mem))
		}
		w.connect()
		w.region, err = w.NewInflight(1, 16)
		w.must(err)
		w.ring, err = w.NewRing(w.mem, 0, 16)
		w.must(err)
		w.must(w.ring.Start())
		defer func() {
			w.hangUp()
			w.ring.Close()
			w.region.Close()
			w.mem.Close()
		}()

		rt.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { w.collect() },
			"add": func(rt *rapid.T) {
				for range rapid.IntRange(1, 5).Draw(rt, "requests") {
					w.add()
				}
				w.must(w.ring.Notify())
			},
			"answer one": func(rt *rapid.T) {
				i := rapid.IntRange(0, 15).Draw(rt, "which")
				w.onReactor(func(l *lane) {
					if len(l.held) > 0 {
						i %= len(l.held)
						c := l.held[i]
						l.held = append(l.held[:i], l.held[i+1:]...)
						w.dev.finish(w.dev.queue(), c)
					}
				})
			},
			"suspend some": func(rt *rapid.T) {
				which := rapid.Uint16().Draw(rt, "which")
				w.onReactor(func(l *lane) {
					q := w.dev.queue()
					var kept []*virtq.Chain
					for i, c := range l.held {
						if which>>(i%16)&1 != 0 {
							q.Suspend(c)
						} else {
							kept = append(kept, c)
						}
					}
					l.held = kept
					if which>>15 != 0 {
						q.Unfetch(nil)
					}
				})
				w.dev.queue().Wake()
			},
			"pause": func(rt *rapid.T) {
				w.drawEnd(rt)
				w.must(w.ring.Stop())
				if got, want := w.ring.Base, w.ring.UsedIdx(); got != want {
					rt.Fatalf("base %d with used.idx %d", got, want)
				}
				w.must(w.SetInflightFD(w.region))
				w.must(w.ring.Start())
			},
			"disable": func(*rapid.T) {
				w.must(w.SetVringEnable(0, false))
				w.must(w.SetVringEnable(0, true))
			},
			"lose the connection": func(rt *rapid.T) {
				w.drawEnd(rt)
				w.hangUp()
				w.connect()
				w.must(w.SetInflightFD(w.region))
				w.ring.Reconnect(w.Frontend)
				w.must(w.ring.Start())
			},
		})
		// All that is left is answered.
		w.dev.setHold(false)
		w.onReactor(func(*lane) { w.dev.finishHeld(w.dev.queue()) })
		for len(w.waiting) > 0 {
			head, _, err := w.ring.Wait()
			w.must(err)
			w.answered(head)
		}
		w.collect()
	})
}

// interrupted is a ring that goes on over pauses and connections.
type interrupted struct {
	*vhostusertest.Frontend
	t        *testing.T
	rt       *rapid.T
	dev      *reverser
	reactors *vhostuser.Reactors
	served   chan error
	mem      *virtqtest.Mem
	bufs     []buffers // request n has bufs[n%16]
	ring     *vhostusertest.Ring
	region   *vhostusertest.Inflight
	serial   int
	waiting  map[uint16]int // number of the request by its head

	mu  sync.Mutex
	end uint16 // bit i: request i of those held is completed by a stop, and not suspended
}

// drawEnd draws how the next stop ends each request.
func (w *interrupted) drawEnd(rt *rapid.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.end = rapid.Uint16().Draw(rt, "how each one ends")
}

func (w *interrupted) must(err error) {
	if err != nil {
		w.rt.Fatal(err)
	}
}

// connect serves a new connection with a Backend of its own, as another process does.
func (w *interrupted) connect() {
	b, err := vhostuser.New(vhostuser.Config{Device: w.dev, Reactors: w.reactors})
	w.must(err)
	f, conn, err := vhostusertest.Pair()
	w.must(err)
	w.Frontend, w.served = f, make(chan error, 1)
	go func() { w.served <- b.ServeConn(context.Background(), conn) }()
	features, err := w.Handshake(vhostusertest.AllProtocolFeatures)
	w.must(err)
	w.must(w.SetFeatures(features))
	w.must(w.AddMemory(w.mem))
}

func (w *interrupted) hangUp() {
	w.Close()
	w.must(<-w.served)
}

func (w *interrupted) onReactor(f func(*lane)) {
	q := w.dev.queue()
	q.Loop().Do(func() { f(q.Data.(*lane)) })
}

// stopQueue completes some of what is held back, suspends some, and unpops what it can.
func (w *interrupted) stopQueue(q *vhostuser.Queue, _ vhostuser.Stop) {
	w.mu.Lock()
	end := w.end
	w.mu.Unlock()
	q.Loop().Do(func() {
		l := q.Data.(*lane)
		for n := len(l.held) - 1; n >= 0 && end>>(n%16)&1 == 0 && q.CanUnpop(l.held[n]) && end>>15 != 0; n-- {
			q.Unpop(l.held[n])
			l.held = l.held[:n]
		}
		for i, c := range l.held {
			if end>>(i%16)&1 != 0 {
				w.dev.finish(q, c)
			} else {
				q.Suspend(c)
			}
		}
		if end>>14&1 != 0 {
			q.Unfetch(nil)
		}
		l.held = nil
	})
}

func (w *interrupted) add() {
	if w.ring.Room() < 2 {
		return
	}
	inUse := make(map[int]bool)
	for _, n := range w.waiting {
		inUse[n%16] = true
	}
	// 8 requests at most are in the ring.
	for w.serial++; inUse[w.serial%16]; w.serial++ {
	}
	b := w.bufs[w.serial%16]
	b.fill(w.serial)
	head, ok := w.ring.Add(b.in, b.out)
	if !ok {
		w.rt.Fatal("no room")
	}
	w.waiting[head] = w.serial
}

// collect takes what was answered.
func (w *interrupted) collect() {
	for {
		head, _, ok := w.ring.Used()
		if !ok {
			return
		}
		w.answered(head)
	}
}

func (w *interrupted) answered(head uint16) {
	n, ok := w.waiting[head]
	if !ok {
		w.rt.Fatalf("head %d was answered twice", head)
	}
	delete(w.waiting, head)
	w.must(w.bufs[n%16].check(n))
}
