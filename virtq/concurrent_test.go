package virtq_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"testing"
	"testing/synctest"

	"vdev/virtq"
	"vdev/virtq/virtqtest"
)

// signal sends a notification as writing to an eventfd does: any number of them before the next wait are one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// TestNoWakeUpIsLost lets a driver and a device run against each other, each sleeping whenever it has nothing to do
// and being woken only by notifications that were asked for. A lost one leaves both asleep, which the bubble reports
// as a deadlock. Each request carries a number, and comes back with it.
func TestNoWakeUpIsLost(t *testing.T) {
	total := 100_000
	if testing.Short() {
		total = 10_000
	}
	for _, features := range []uint64{0, modern} {
		for _, size := range []int{1, 16, 256} {
			t.Run(fmt.Sprintf("features=%#x/size=%d", features, size), func(t *testing.T) {
				r := newRing(t, size, features)
				r.driver.DisableCalls()
				synctest.Test(t, func(t *testing.T) {
					kick, call := make(chan struct{}, 1), make(chan struct{}, 1)
					done := make(chan error, 1)
					kicks, calls := 0, 0
					go func() { done <- r.device(total, kick, call, &calls) }()
					r.drive(t, total, kick, call, &kicks)
					if err := <-done; err != nil {
						t.Error(err)
					}
					t.Logf("%d requests, %d kicks, %d calls", total, kicks, calls)
				})
			})
		}
	}
}

// drive makes total requests of 8 bytes each way, as many at once as chance has it.
func (r *ring) drive(t *testing.T, total int, kick, call chan struct{}, kicks *int) {
	size := r.queue.Size()
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	base := r.mem.Alloc(uint64(16*size), 16)
	numbers := make([]uint64, size) // of each head
	free := make([]uint64, 0, size)
	slot := make([]uint64, size)
	for i := range size {
		free = append(free, base+uint64(16*i))
	}
	sent, back := 0, 0
	var segs [2]virtqtest.Seg
	for back < total {
		for n := rng.IntN(size + 1); n >= 0 && sent < total && len(free) > 0; n-- {
			at := free[len(free)-1]
			segs = [2]virtqtest.Seg{{Addr: at, Len: 8}, {Addr: at + 8, Len: 8}}
			var head uint16
			var ok bool
			if size == 1 {
				// One descriptor is not enough for both ways: the number goes and comes in one writable buffer.
				head, ok = r.driver.Add(nil, []virtqtest.Seg{{Addr: at, Len: 16}})
			} else {
				head, ok = r.driver.Add(segs[:1], segs[1:])
			}
			if !ok {
				break
			}
			free = free[:len(free)-1]
			binary.LittleEndian.PutUint64(r.mem.Bytes(at, 8), uint64(sent))
			numbers[head], slot[head] = uint64(sent), at
			sent++
		}
		if r.driver.Kick() {
			*kicks++
			signal(kick)
		}
		for {
			head, written, ok := r.driver.Used()
			if !ok {
				break
			}
			at := slot[head]
			if got := binary.LittleEndian.Uint64(r.mem.Bytes(at+8, 8)); written == 0 || got != ^numbers[head] {
				t.Errorf("request %d came back with %d, %d written", numbers[head], ^got, written)
				return
			}
			free = append(free, at)
			back++
		}
		if back < sent && (sent == total || len(free) == 0 || rng.IntN(4) == 0) {
			if !r.driver.EnableCalls() {
				<-call
			}
			r.driver.DisableCalls()
		}
	}
}

// device answers total requests, with some of them kept back for a while.
func (r *ring) device(total int, kick, call chan struct{}, calls *int) error {
	rng := rand.New(rand.NewPCG(2, uint64(r.queue.Size())))
	idle := []*virtq.Chain{}
	for range r.queue.Size() {
		idle = append(idle, new(virtq.Chain))
	}
	var flight []*virtq.Chain
	for served := 0; served < total; {
		took := false
		for len(idle) > 0 {
			c := idle[len(idle)-1]
			ok, err := r.queue.Pop(c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			took = true
			idle = idle[:len(idle)-1]
			flight = append(flight, c)
		}
		keep := 0
		if took {
			keep = rng.IntN(len(flight) + 1)
		}
		for len(flight) > keep {
			i := rng.IntN(len(flight))
			c := flight[i]
			flight[i] = flight[len(flight)-1]
			flight = flight[:len(flight)-1]
			var number, answer []byte
			if len(c.Readable) > 0 {
				number, answer = c.Readable[0], c.Writable[0]
			} else {
				number, answer = c.Writable[0][:8], c.Writable[0][8:]
			}
			binary.LittleEndian.PutUint64(answer, ^binary.LittleEndian.Uint64(number))
			r.queue.Push(c, 8)
			idle = append(idle, c)
			served++
		}
		if r.queue.Publish() {
			*calls++
			signal(call)
		}
		if took || len(flight) > 0 {
			if rng.IntN(8) == 0 {
				runtime.Gosched()
			}
			continue
		}
		if served < total && !r.queue.EnableNotify() {
			<-kick
		}
		r.queue.DisableNotify()
	}
	return r.queue.Broken()
}
